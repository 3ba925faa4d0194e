"""A prior's folder: where the shipped one is, whether its files are whole, and its compressed weights.

A compressed folder holds large weights as int8, symmetric, one scale per output channel: `name` and `name.scale`, or,
deflated (RFC 1950), `name.deflated`, `name.shape` and `name.scale`.
`SHA256SUMS`, where a folder has it (the shipped one does), is checked before anything is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int8
from safetensors import SafetensorError
from torch import Tensor

SHIPPED = Path(__file__).parent / "weights"


def located(name: str) -> Path:
    """The folder of the prior that a request names: "embedded", or a folder.

    A checkpoint of others (`hub.checkpoint`) has neither a start nor a list of words; the shipped ones stand in.
    """
    from threed.distill.hub.checkpoint import is_checkpoint

    return SHIPPED if name == "embedded" or is_checkpoint(name) else Path(name)


class UnreadablePrior(ValueError):
    """A prior's file is missing, altered or corrupt."""


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while reading `path` becomes one error that names it and the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        shipped = path.is_relative_to(SHIPPED)
        remedy = "reinstall the package" if shipped else "copy the prior's folder again"
        raise UnreadablePrior(f"cannot use {path}: {error}; {remedy}") from error


def verify(folder: Path | str | None = None) -> None:
    """Compare a prior's files with its SHA256SUMS; raises UnreadablePrior naming the first that differs."""
    folder = SHIPPED if folder is None else Path(folder)
    sums = folder / "SHA256SUMS"
    if folder != SHIPPED and folder.is_dir() and not sums.exists():
        return
    with readable(sums):
        expected = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines()]
    for digest, name in expected:
        with readable(folder / name):
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError("its checksum differs from SHA256SUMS")


def restore(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights from their compressed form: int8 times the scale of its output channel, float32.

    Raises ValueError where a stream of bytes is not as long as its shape says.
    """
    names = [name.removesuffix(".deflated") for name in stored if not name.endswith((".scale", ".shape"))]
    plain = {name: stored[name] if name in stored else inflated(stored, name) for name in names}
    scales = {name: stored[f"{name}.scale"] for name in names if f"{name}.scale" in stored}
    return {
        name: value.float() * scales[name].view(-1, *[1] * (value.ndim - 1)) if name in scales else value.float()
        for name, value in plain.items()
    }


def deflated(name: str, value: Int8[Tensor, "*S"]) -> dict[str, Tensor]:
    """What `inflated` makes the tensor of."""
    stream = zlib.compress(value.contiguous().numpy().tobytes(), 9)
    shape = torch.tensor(value.shape, dtype=torch.int64)
    return {f"{name}.deflated": torch.frombuffer(bytearray(stream), dtype=torch.uint8), f"{name}.shape": shape}


def inflated(stored: dict[str, Tensor], name: str) -> Int8[Tensor, "*S"]:
    """A tensor out of its deflated bytes. Raises ValueError where there are more or fewer than its shape says."""
    shape = [int(side) for side in stored[f"{name}.shape"]]
    size = math.prod(shape)
    try:
        found = zlib.decompressobj().decompress(stored[f"{name}.deflated"].numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"{name} cannot be inflated ({error})") from error
    if len(found) != size or min(shape, default=1) < 1:
        raise ValueError(f"{name} does not inflate to the {size} bytes of its shape {shape}")
    return torch.frombuffer(bytearray(found), dtype=torch.int8).view(shape)
