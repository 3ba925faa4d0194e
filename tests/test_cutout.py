"""Finding the object in a picture: by alpha, by a mask, by colours; what is no single whole object says so."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from threed import photograph
from threed.cutout import EXTENT, Cutout, cleaned, found_by_colours, framed, masked
from threed.errors import Mistake
from threed.photograph import Photograph


def picture(draw, size=(200, 160), background="white", mode="RGB"):
    image = Image.new(mode, size, background)
    draw(ImageDraw.Draw(image))
    return of(image)


def of(image):
    pixels = torch.from_numpy(np.asarray(image.convert("RGBA"), np.float32) / 255)
    return Photograph(*pixels.split([3, 1], dim=-1), digest="")


def disc(draw, x=100, y=80, radius=40, colour="brown"):
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def inside(x=100, y=80, radius=40, size=(200, 160)):
    image = Image.new("L", size)
    disc(ImageDraw.Draw(image), x, y, radius, 255)
    return torch.from_numpy(np.array(image)) > 127


def iou(a, b):
    return float((a & b).sum() / (a | b).sum())


def test_alpha_that_says_something_is_the_mask():
    found, how = masked(picture(disc, mode="RGBA", background=(0, 0, 0, 0)), None, True)
    assert how == "alpha"
    assert torch.equal(found > 0.5, inside())


def test_alpha_that_says_nothing_is_not():
    photo = picture(disc, mode="RGBA", background=(255, 255, 255, 255))
    photo.alpha[0, 0] = 0
    found, how = masked(photo, None, True)
    assert how == "colours"
    assert iou(found > 0.5, inside()) > 0.97


@pytest.mark.parametrize("kind", ["white", "gradient", "noise", "floor"])
def test_the_background_goes_by_its_colours_the_same_every_time(kind):
    """On a plain, a sliding and a noisy background, and before a wall on a floor."""
    rows, columns = np.mgrid[0:160, 0:200]
    ground = {
        "white": np.full((160, 200, 3), 1.0),
        "gradient": np.stack([0.3 + rows / 400, 0.5 + columns / 500, np.full((160, 200), 0.9)], axis=-1),
        "noise": np.random.default_rng(0).uniform(0.5, 1, (160, 200, 3)),
        "floor": np.where((rows < 110)[..., None], [0.8, 0.9, 0.8], [0.5, 0.6, 0.8]),
    }[kind].astype(np.float32)
    ground[inside().numpy()] = 0.45, 0.2, 0.1
    found = found_by_colours(ground)
    assert iou(torch.from_numpy(found > 0.5), inside()) > 0.97
    assert found.tobytes() == found_by_colours(ground).tobytes()
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_large_picture_keeps_its_size():
    photo = picture(lambda draw: disc(draw, 400, 300, 200), size=(800, 640))
    found, _ = masked(photo, None, True)
    assert found.shape == (640, 800)
    assert iou(found > 0.5, inside(400, 300, 200, (800, 640))) > 0.995  # not only as fine as it was looked for


def test_a_mask_from_a_file_of_another_size():
    mask = of(Image.fromarray((inside().numpy() * 255).astype(np.uint8)).resize((400, 320)))
    found, how = masked(picture(lambda draw: None), mask, True)
    assert how == "mask"
    assert iou(found > 0.5, inside()) > 0.97
    cut_out = picture(disc, **CLEAR)
    assert torch.equal(masked(picture(lambda draw: None), cut_out, True)[0], cut_out.alpha[..., 0])
    with pytest.raises(Mistake, match="--mask is 160 x 200 pixels and the picture 200 x 160; give a mask of the same"):
        masked(picture(lambda draw: None), of(Image.new("L", (160, 200))), True)


def test_a_mask_that_was_found_can_be_given_back():
    photo = picture(disc)
    found, _ = masked(photo, None, True)
    again, how = masked(photo, of(Image.fromarray((found.numpy() * 255).round().astype(np.uint8))), True)
    assert how == "mask"
    torch.testing.assert_close(again, found, atol=1 / 255, rtol=0)


def test_the_whole_picture():
    found, how = masked(picture(lambda draw: None), None, False)
    assert how == "whole"
    assert found.min() == 1


def two(draw):
    disc(draw, 50, 80, 35)
    disc(draw, 150, 80, 30)


CLEAR = {"mode": "RGBA", "background": (0, 0, 0, 0)}


@pytest.mark.parametrize("layout", [{}, CLEAR])
def test_several_objects(layout):
    with pytest.raises(Mistake, match=r"several objects were found in the picture; crop it to one, or .* --mask"):
        masked(picture(two, **layout), None, True)


CUT = {
    "alpha": "the {} border of the picture cuts the object; .* put a margin around it",
    "colours": "what stands out from the background reaches over the {} border .* margin .* background, .* --mask",
}


@pytest.mark.parametrize("how", CUT)
@pytest.mark.parametrize(
    ("place", "side"), [((0, 80), "left"), ((199, 80), "right"), ((100, 0), "top"), ((100, 159), "bottom")]
)
def test_an_object_that_the_border_cuts(how, place, side):
    """Where colours alone say so, it may not be the object at all."""
    photo = picture(lambda draw: disc(draw, *place), **(CLEAR if how == "alpha" else {}))
    with pytest.raises(Mistake, match=CUT[how].format(side)):
        masked(photo, None, True)


def test_a_picture_that_was_trimmed_to_its_object():
    """It touches all four sides, and none of them cuts it."""
    photo = picture(lambda draw: draw.rectangle((0, 10, 79, 79), fill="brown"), size=(80, 80), **CLEAR)
    with pytest.raises(Mistake, match="the bottom border of the picture cuts the object"):
        masked(photo, None, True)
    photo = picture(
        lambda draw: draw.polygon([(0, 40), (40, 0), (79, 40), (79, 79), (0, 79)], fill="brown"), size=(80, 80), **CLEAR
    )
    found, _ = masked(photo, None, True)
    assert framed(photo, found, 64).alpha[:6].sum() == 0


def test_no_object():
    with pytest.raises(Mistake, match="no object was found in the picture: it is all one colour; use another picture"):
        masked(picture(lambda draw: None), None, True)
    with pytest.raises(Mistake, match=r"no object was found in the picture; use one in front of .* --mask"):
        masked(picture(lambda draw: None, **CLEAR), None, True)
    grain = of(Image.fromarray(np.random.default_rng(0).integers(120, 140, (160, 200, 3), dtype=np.uint8)))
    with pytest.raises(Mistake, match=r"no object .* --mask"):
        masked(grain, None, True)
    with pytest.raises(Mistake, match=r"no object was found in the picture; .* --mask"):
        masked(picture(lambda draw: None), of(Image.new("L", (200, 160))), True)
    with pytest.raises(Mistake, match="only 3 x 3 pixels; use a larger one"):
        masked(picture(lambda draw: None, size=(3, 3)), None, True)


def test_specks_and_hairs_go_and_small_holes_are_filled():
    whole = inside().numpy()
    spoilt = whole.copy()
    spoilt[80, 100] = False  # a pinhole
    spoilt[10:13, 10:13] = True  # a speck
    spoilt[20, 100:160] = True  # a hair
    ring = whole & ~inside(radius=15).numpy()
    assert iou(torch.from_numpy(cleaned(spoilt)), torch.from_numpy(whole)) > 0.99
    assert iou(torch.from_numpy(cleaned(ring)), torch.from_numpy(ring)) > 0.99
    speckled = torch.from_numpy(whole).float()
    speckled[10:13, 10:13] = 1
    found, _ = masked(picture(lambda draw: None), of(Image.fromarray((speckled.numpy() * 255).astype(np.uint8))), True)
    assert found[11, 11] == 0


@pytest.mark.parametrize("size", [64, 300, None])
@pytest.mark.parametrize("place", [(100, 80, 40), (60, 110, 20), (100, 80, 79)])
def test_the_object_is_in_the_middle_of_a_square(size, place):
    """At the size that the training pictures have it, however near the picture's border it was."""
    photo = picture(lambda draw: disc(draw, *place))
    cutout = framed(photo, inside(*place).float(), size)
    side = size or round((2 * place[2] + 1) / EXTENT)
    assert cutout.rgb.shape == (side, side, 3)
    rows, columns = (torch.nonzero((cutout.alpha[..., 0] > 0.5).any(axis)).flatten() for axis in (1, 0))
    for line in (rows, columns):
        assert len(line) / side == pytest.approx(EXTENT, abs=2 / side + 0.01)
        assert float(line.double().mean()) == pytest.approx((side - 1) / 2, abs=1.5)
    brown = torch.tensor([165, 42, 42]) / 255
    middle = cutout.rgb[side // 2, side // 2]
    torch.testing.assert_close(middle, brown, atol=0.01, rtol=0)
    assert (cutout.rgb <= cutout.alpha).all()
    assert not cutout.rgb[0, 0].any()


def test_the_largest_cutout():
    photo = picture(lambda draw: disc(draw, 512, 512, 400), size=(1024, 1024))
    assert framed(photo, inside(512, 512, 400, (1024, 1024)).float()).alpha.shape == (512, 512, 1)
    assert photograph.SIDE == 1024


def test_light_is_taken_out_of_the_colours():
    """But for what would be brighter than white, it can be put in again."""
    alpha = torch.tensor([1.0, 1.0, 0.5, 0.0])[:, None, None].expand(4, 4, 1)
    own = torch.tensor([0.3, 0.6, 1.0])
    back = Cutout(0.8 * own * alpha, alpha).unlit(0.8)
    torch.testing.assert_close(back.rgb, own * alpha)
    assert back.alpha is alpha
    assert torch.equal(Cutout(own * alpha, alpha).unlit(0.5).rgb[..., 1:], alpha.expand(-1, -1, 2))
