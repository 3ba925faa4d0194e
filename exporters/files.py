"""Bytes on disk: a file appears whole or not at all, and a picture's bytes follow from its values alone."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, on the disk itself before this returns. Raises OSError and leaves no half file."""
    # A fixed name: what a killed process left behind is overwritten by the next one instead of piling up.
    partial = path.with_name(partial_name(path.name))
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":  # which cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name is the folder's data
        finally:
            os.close(folder)


def partial_name(name: str) -> str:
    """What a file is called while it is being written."""
    return f".{name}.partial"


def png(picture: Float[Tensor, "H W 3"]) -> bytes:
    """Values in [0, 1], display sRGB if they are colours, as an 8-bit PNG; the grey k / 255 becomes the byte k."""
    levels = (picture.detach().cpu().clamp(0, 1) * 255).round().byte()
    stream = io.BytesIO()
    Image.fromarray(levels.numpy(), "RGB").save(stream, "PNG", optimize=False, compress_level=6)
    return stream.getvalue()


def normal_png(normal: Float[Tensor, "H W 3"]) -> bytes:
    """A normal map: -1 becomes the byte 0 and 1 the byte 255 (glTF 2.0, section 3.9.3); flat is (128, 128, 255)."""
    return png((normal + 1) / 2)
