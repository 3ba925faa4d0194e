"""Triangles out of a Draco stream, as glTF holds them (KHR_draco_mesh_compression), by the package DracoPy.

A stream of a few bytes can ask for any number of triangles, so what its header says is read here first (Draco bitstream
specification, sections 4 to 6). How many attributes it has stands behind what is compressed, and is not known before.
"""

from __future__ import annotations

from jaxtyping import Int, Num
from numpy import int64, ndarray

from threed.renderers.document import NotInstalled

EXTENSION = "KHR_draco_mesh_compression"
VERSION = b"\2\2"  # of bitstreams: all since Draco 1.2, of 2017; glTF knows no other
MESH, EDGEBREAKER = 1, 1
METADATA = 0x80  # in the second byte of flags; no writer of glTF is known to add any
HEADER = 11  # bytes
Numbers = Num[ndarray, "V _"]


def decoded(stream: bytes, most: int) -> tuple[Int[ndarray, "F 3"], dict[int, Numbers]]:
    """Triangles, and attributes by their unique numbers. Raises ValueError for more than `most` triangles, for what
    is no such stream, and without DracoPy."""
    if (count := announced(stream)) > most:
        raise ValueError(f"its compressed geometry has {count} triangles, and {most} are announced")
    try:
        import DracoPy
    except ImportError as error:
        raise NotInstalled("DracoPy", "compress") from error
    found = DracoPy.decode(stream)
    return found.faces.astype(int64).reshape(-1, 3), {each["unique_id"]: each["data"] for each in found.attributes}


def announced(stream: bytes) -> int:
    """How many triangles a stream's header says. Raises ValueError for what is no mesh that glTF allows."""
    if stream[:5] != b"DRACO" or stream[5:7] != VERSION or stream[7] != MESH or stream[10] & METADATA:
        raise ValueError(f"its compressed geometry begins with {stream[:HEADER]!r}, which is no Draco mesh for glTF")
    # Edgebreaker has the kind of its traversal and a number of vertices before that of triangles.
    at = HEADER
    if stream[8] == EDGEBREAKER:
        _, at = _varint(stream, at + 1)
    return _varint(stream, at)[0]


def _varint(stream: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for place, byte in enumerate(stream[at : at + 5]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number in its compressed geometry has no end")
