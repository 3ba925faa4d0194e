"""Reading pictures: every format and layout gives the same colours the same way up; what is no picture says so."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from threed import photograph
from threed.errors import Mistake
from threed.photograph import MOST_PIXELS, SIDE, read

RED, BLUE = (200, 40, 30), (20, 60, 220)


def halves(mode="RGB"):
    """8 wide, 4 high: red on the left, blue on the right."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = RED, BLUE
    return Image.fromarray(pixels).convert(mode)


def through():
    """The same, its right half transparent."""
    image = halves("RGBA")
    image.paste((*BLUE, 0), (4, 0, 8, 4))
    return image


def kept(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return read(tmp_path / name)


def near(found, expected, tolerance=2):
    return (found * 255 - torch.tensor(expected).float()).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0.01),
        ("a.bmp", {}, 0.01),
        ("a.tiff", {"compression": "tiff_lzw"}, 0.01),
        ("a.webp", {"lossless": True}, 0.01),
        ("a.gif", {}, 1),
        ("a.jpg", {"quality": 100, "subsampling": 0}, 4),
        ("a.avif", {"quality": 100, "subsampling": "4:4:4"}, 4),
    ],
)
def test_every_format(tmp_path, name, options, tolerance):
    found = kept(tmp_path, halves(), name, **options)
    assert found.rgb.dtype == torch.float32
    assert found.size == (4, 8)
    assert near(found.rgb[1, 1], RED, tolerance)
    assert near(found.rgb[2, 6], BLUE, tolerance)
    assert (found.alpha == 1).all()


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_alpha(tmp_path, name):
    found = kept(tmp_path, through(), name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    assert (found.alpha[:, :4] == 1).all()
    assert (found.alpha[:, 4:] == 0).all()
    assert near(found.rgb[0, 0], RED, 0.01)


def test_palettes_with_transparency(tmp_path):
    palette = halves().quantize(2)
    clear = palette.getpixel((7, 0))
    for name in ("a.png", "a.gif"):
        found = kept(tmp_path, palette, name, transparency=clear)
        assert near(found.rgb[0, 0], RED, 0.01)
        assert (found.alpha[:, 4:] == 0).all()
        assert (found.alpha[:, :4] == 1).all()


def test_grey_of_8_and_16_bits_one_bit_and_with_alpha(tmp_path):
    ramp = np.array([[0, 64, 128, 255]], np.uint8).repeat(2, 0)
    expected = torch.from_numpy(ramp / 255).float()[..., None].expand(2, 4, 3)
    eight = kept(tmp_path, Image.fromarray(ramp), "8.png")
    wide = Image.fromarray(ramp.astype(np.uint16) * 257)
    for found in (eight, kept(tmp_path, wide, "16.png"), kept(tmp_path, wide, "16.tiff")):
        torch.testing.assert_close(found.rgb, expected, atol=1e-6, rtol=0)
        assert (found.alpha == 1).all()
    both = Image.merge("LA", [Image.fromarray(ramp), Image.fromarray(ramp[:, ::-1].copy())])
    found = kept(tmp_path, both, "la.png")
    torch.testing.assert_close(found.rgb, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.alpha, expected.flip(1)[..., :1], atol=1e-6, rtol=0)
    assert kept(tmp_path, Image.new("1", (2, 2), 1), "1.png").rgb.min() == 1


def test_16_bit_colour(tmp_path):
    """A PNG of our own making: Pillow writes none."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">6H", *(257 * value for value in (*RED, *BLUE)))
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(content)
    found = read(tmp_path / "deep.png")
    assert near(found.rgb[0], [RED, BLUE], 1)


def test_cmyk(tmp_path):
    for name in ("a.jpg", "a.tiff"):
        found = kept(tmp_path, halves("CMYK"), name)
        assert near(found.rgb[0, 0], RED, 12)
        assert near(found.rgb[3, 7], BLUE, 12)


@pytest.mark.parametrize(("orientation", "left"), [(1, RED), (3, BLUE), (6, None), (8, None)])
def test_exif_rotation(tmp_path, orientation, left):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = kept(tmp_path, halves(), "a.png", exif=exif)
    if left:
        assert found.size == (4, 8)
        assert near(found.rgb[0, 0], left, 0.01)
    else:
        assert found.size == (8, 4)
        assert near(found.rgb[0, 0], RED if orientation == 6 else BLUE, 0.01)  # 6: the top was on the left


def test_an_animations_first_frame(tmp_path):
    blue = Image.new("RGB", (8, 4), BLUE)
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tiff", {})):
        found = kept(tmp_path, halves(), name, save_all=True, append_images=[blue, blue], **options)
        assert near(found.rgb[1, 1], RED, 1), name


def test_colour_profiles_are_minded_and_broken_ones_ignored(tmp_path):
    """The same profile changes nothing; Lab's is for other channels."""
    for profile in ("sRGB", "LAB"):
        told = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes()
        assert near(kept(tmp_path, through(), "a.png", icc_profile=told).rgb[0, 0], RED)
    found = kept(tmp_path, halves(), "a.png", icc_profile=b"nonsense")
    assert near(found.rgb[0, 0], RED)


def test_large_pictures_are_reduced_by_area_and_alpha_counts(tmp_path):
    pixels = np.zeros((6, 2 * SIDE, 4), np.uint8)
    pixels[:, ::2] = (*RED, 255)
    pixels[:, 1::2] = (*BLUE, 0)  # which cannot be seen
    found = kept(tmp_path, Image.fromarray(pixels), "wide.png")
    assert found.size == (3, SIDE)
    assert near(found.rgb, RED)
    assert near(found.alpha, 128, 1)


def test_the_digest_is_of_the_file(tmp_path):
    assert kept(tmp_path, halves(), "a.png").digest == kept(tmp_path, halves(), "b.png").digest
    assert kept(tmp_path, halves(), "c.bmp").digest != read(tmp_path / "a.png").digest


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_truncated_files(tmp_path, kind, share):
    content = saved(noise(), kind)
    (tmp_path / "half").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(Mistake, match=r"half' (cannot be read|is no picture|is cut short or damaged).* as PNG or JPEG"):
        read(tmp_path / "half")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; save it again as PNG or JPEG"),
        (b"%PDF-1.7 and so on", "is no picture that can be read; save it again as PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n", "is no picture that can be read; save it again as PNG or JPEG"),
        (saved(Image.new("F", (2, 2)), "TIFF"), "has floating-point pixels.*; save it again as PNG or JPEG"),
        (saved(halves(), "PPM"), "is no picture that can be read; save it again as PNG or JPEG"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, message):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(Mistake, match=rf"'.*file\.png' {message}"):
        read(tmp_path / "file.png")


@pytest.mark.parametrize("side", [MOST_PIXELS // 1024 + 1, 30_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, side):
    """The file says how many it has, and has none of them."""
    header = bytearray(saved(Image.new("1", (1, 1)), "PNG"))
    header[16:24] = struct.pack(">II", max(1024, side // 2), side)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    (tmp_path / "huge.png").write_bytes(header)
    with pytest.raises(Mistake, match=r"huge\.png' has more than 64 megapixels; save it again with fewer"):
        read(tmp_path / "huge.png")


def test_files_that_are_missing_too_large_or_closed(tmp_path, monkeypatch):
    with pytest.raises(Mistake, match=r"there is no file .*; check the path"):
        read(tmp_path / "none.png")
    with pytest.raises(Mistake, match=re.escape(f"there is no file {str(tmp_path)!r}")):
        read(tmp_path)
    halves().save(tmp_path / "a.png")
    monkeypatch.setattr(photograph, "MOST_BYTES", 10)
    with pytest.raises(Mistake, match=r"a\.png' is larger than 0 MiB; save it again with fewer pixels"):
        read(tmp_path / "a.png")
