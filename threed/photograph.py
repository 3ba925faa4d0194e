"""Pictures that users give: files become display sRGB in [0, 1] and alpha, or a message that says what to do.

Files are not trusted: what is too large is refused before it is decoded. What is laid out in other ways comes out the
same way round and in the same colours: rotated by EXIF, 16 bits, grey, with a palette, CMYK, in a colour profile of its
own; of an animation, the first frame.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from threed.errors import Mistake

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
MOST_BYTES = 128 * 2**20
MOST_PIXELS = 64 * 2**20
SIDE = 1024  # pixels: larger pictures are reduced before anything else
WIDE = {"I", "I;16", "I;16B", "I;16L", "I;16N"}  # 16 bits of grey, as Pillow names them
REMEDY = "save it again as PNG or JPEG"


@dataclass(frozen=True)
class Photograph:
    rgb: Float[Tensor, "H W 3"]  # display sRGB in [0, 1], not multiplied by alpha
    alpha: Float[Tensor, "H W 1"]  # in [0, 1]; ones where the file has none
    digest: str  # SHA-256 of the file, in hexadecimal

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rgb.shape[0], self.rgb.shape[1]


def read(path: Path) -> Photograph:
    """A picture of at most SIDE pixels a side. Raises Mistake for a file that cannot be used."""
    where = repr(str(path))
    if not path.is_file():
        raise Mistake(f"there is no file {where}; check the path")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Mistake(f"{where} is larger than {MOST_BYTES >> 20} MiB; save it again with fewer pixels")
        content = path.read_bytes()
    except OSError as error:
        raise Mistake(f"{where} cannot be read ({error.strerror}); check its permissions") from error
    if not content:
        raise Mistake(f"{where} is empty; {REMEDY}")
    picture = np.asarray(_decoded(content, where), np.float32) / 255
    rgb, alpha = torch.from_numpy(picture).split([3, 1], dim=-1)
    return Photograph(rgb, alpha, hashlib.sha256(content).hexdigest())


def _decoded(content: bytes, where: str) -> Image.Image:
    """RGBA, upright, reduced. Raises Mistake."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(where) from error
    except Image.UnidentifiedImageError as error:
        raise Mistake(f"{where} is no picture that can be read; {REMEDY}") from error
    except Exception as error:  # whatever a malformed header makes the parser trip over
        raise Mistake(f"{where} cannot be read ({error}); {REMEDY}") from error
    if image.width * image.height > MOST_PIXELS:
        raise _too_large(where)
    if image.mode == "F":
        raise Mistake(f"{where} has floating-point pixels, whose range nobody knows; {REMEDY}")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _reduced(_coloured(upright, image.info.get("icc_profile")))
    except Exception as error:  # and so for the pixels
        raise Mistake(f"{where} is cut short or damaged ({error}); copy it again, or {REMEDY}") from error


def _too_large(where: str) -> Mistake:
    return Mistake(f"{where} has more than {MOST_PIXELS >> 20} megapixels; save it again with fewer")


def _coloured(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGBA in sRGB, 8 bits a channel."""
    if image.mode in WIDE:
        grey = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGBA")
    if not profile or image.mode not in {"RGB", "RGBA", "CMYK"}:
        return image.convert("RGBA")
    alpha = image.convert("RGBA").getchannel("A")
    try:
        told = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        plain = image.convert("RGB") if image.mode == "RGBA" else image
        colours = ImageCms.profileToProfile(plain, told, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one of other channels than the picture's
        return image.convert("RGBA")
    assert colours is not None
    colours.putalpha(alpha)
    return colours


def _reduced(image: Image.Image) -> Image.Image:
    """By the mean over areas, weighted by alpha, as Pillow does it."""
    longest = max(image.size)
    if longest <= SIDE:
        return image
    width, height = (max(1, round(side * SIDE / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
