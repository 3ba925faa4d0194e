"""Bytes on disk: a file appears whole or not at all, and a picture's bytes follow from its values alone."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor


def replace(path: Path, content: bytes) -> None:
    """Write beside `path` and move into place, so that readers never meet half a file. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp keeps a file private, an export is meant to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def png(picture: Float[Tensor, "H W 3"]) -> bytes:
    """Display sRGB in [0, 1] as an 8-bit PNG; the grey k / 255 becomes the byte k."""
    levels = (picture.detach().cpu().clamp(0, 1) * 255).round().byte()
    stream = io.BytesIO()
    Image.fromarray(levels.numpy(), "RGB").save(stream, "PNG", optimize=False, compress_level=6)
    return stream.getvalue()
