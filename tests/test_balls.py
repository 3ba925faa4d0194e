"""Objects made of balls beside a picture: discs in closed form, both backends, and what must not matter."""

import math

import pytest
import torch

from threed.renderers import cpu_ops, torch_ops
from threed.renderers.alike import DARKEST, compared, judged
from threed.renderers.camera import Cameras
from threed.renderers.ops import Balls

EXTENT, SIZE = 0.78, 32


def cameras(*degrees, distance=3.0):
    azimuth, elevation = (torch.tensor(angles).deg2rad() for angles in zip(*degrees, strict=True))
    return Cameras(azimuth, elevation, torch.full_like(azimuth, distance), torch.full_like(azimuth, math.radians(40)))


def balls(counts=(40, 7, 0, 25), seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum(counts)
    return Balls(
        torch.tensor([0, *counts]).cumsum(0),
        torch.rand(count, 3, generator=generator) - 0.5,
        torch.rand(count, generator=generator) * 0.1 + 0.02,
        torch.randint(0, 256, (count, 3), generator=generator, dtype=torch.uint8),
    )


@pytest.fixture(params=[torch_ops, cpu_ops], ids=["torch", "cpu"])
def likeness(request):
    return request.param.likeness


def test_backends_agree():
    """Objects of many balls, of few and of none, from all around, in a picture that none of them is."""
    things, seen = balls(), cameras((20.0, 15.0), (-70.0, 40.0), (130.0, -20.0))
    generator = torch.Generator().manual_seed(1)
    rgb, inside = torch.rand(SIZE, SIZE, 3, generator=generator), torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[6:25, 9:27] = True
    asked = things, torch.tensor([3, 0, 2, 1]), seen, rgb, inside, EXTENT
    for reference, found in zip(torch_ops.likeness(*asked), cpu_ops.likeness(*asked), strict=True):
        torch.testing.assert_close(found, reference, atol=4e-3, rtol=0)  # a pixel may fall on either side of a rim


def pair(scale=1.0):
    """A red ball, and half of it before it to the right a green one half as large, from the front at any distance."""
    colours = torch.tensor([[200, 20, 20], [20, 180, 20]], dtype=torch.uint8)
    centres = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.5]])
    return Balls(torch.tensor([0, 2]), scale * centres, scale * torch.tensor([1.0, 0.5]), colours)


def picture_of_pair(distance):
    """In closed form: discs at what lies before the eye over how far it is, framed by the outermost points."""
    far, near = 1 / distance, 1 / (distance - 0.5)
    left, right = -far, 1.5 * near
    pixel = (right - left) / (EXTENT * SIZE)
    axis = (torch.arange(SIZE) + 0.5 - SIZE / 2) * pixel
    x, y = axis[None] + (left + right) / 2, axis[:, None]
    red, green = x * x + y * y <= far * far, (x - near) ** 2 + y * y <= (0.5 * near) ** 2
    colours = torch.tensor([[200.0, 20.0, 20.0], [20.0, 180.0, 20.0]]) / 255
    return torch.where(green[..., None], colours[1], red[..., None] * colours[0]), red | green


def test_discs_are_where_they_are_seen_in_any_light_size_and_place(likeness):
    for distance, scale in ((3.0, 1.0), (0.03, 0.01), (40.0, 1.0)):
        rgb, inside = picture_of_pair(distance / scale)
        seen = cameras((0.0, 0.0), distance=distance)
        overlap, apart = likeness(pair(scale), torch.tensor([0]), seen, 0.7 * rgb, inside, EXTENT)
        assert overlap.item() > 0.98
        assert apart.item() < 0.03
        _, apart = likeness(pair(scale), torch.tensor([0]), seen, rgb.flip(-1), inside, EXTENT)
        assert apart.item() > 0.2


@pytest.mark.parametrize("backend", [torch_ops, cpu_ops], ids=["torch", "cpu"])
def test_drawings_in_closed_form(backend):
    """From the front, and from behind, where what is small is on the left and hidden in part."""
    pictures, toward = backend.draw_balls(pair(), torch.tensor([0, 0]), cameras((0.0, 0.0), (180.0, 0.0)), SIZE, EXTENT)
    rgb, inside = picture_of_pair(3.0)
    there = pictures[0, ..., 3] > 0
    assert (there == inside).float().mean() > 0.99
    both = there & inside
    same = (pictures[0][both][:, :3] / 255 - rgb[both]).abs().amax(-1) < 0.01
    assert same.float().mean() > 0.98
    green = pictures[..., 1] > 100
    torch.testing.assert_close(toward[0], 0.5 * green[0].float())
    torch.testing.assert_close(toward[1], -0.5 * green[1].float())
    assert green[1].any(0).nonzero().max() < SIZE / 2


def test_backends_draw_the_same():
    seen = cameras((20.0, 15.0), (-70.0, 40.0), (130.0, -20.0), (0.0, 0.0))
    asked = balls(), torch.tensor([3, 0, 2, 1]), seen, SIZE, EXTENT
    (pictures, toward), (found, near) = torch_ops.draw_balls(*asked), cpu_ops.draw_balls(*asked)
    same = (found == pictures).all(-1)
    assert same.float().mean() > 0.995
    torch.testing.assert_close(near[same], toward[same])
    assert not found[2].any()


def test_pictures_are_compared_at_once_as_one_by_one():
    """All with all, and each with that in its place, as `likeness` has it."""
    things, seen = balls((40, 7, 25)), cameras((20.0, 15.0))
    generator = torch.Generator().manual_seed(1)
    rgb, inside = torch.rand(3, SIZE, SIZE, 3, generator=generator), torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    for index in range(3):
        inside[index, 4 + index : 25, 9 : 29 - index] = True
    drawn, _ = cpu_ops.draw_balls(things, torch.arange(3), seen[torch.zeros(3, dtype=torch.int64)], SIZE, EXTENT)
    every, paired = compared(drawn, rgb, inside), compared(drawn, rgb, inside, paired=True)
    torch.testing.assert_close(every.diagonal().T, paired)
    for index in range(3):
        wanted = cpu_ops.likeness(things, torch.arange(3), seen, rgb[index], inside[index], EXTENT)
        for mine, theirs in zip(judged(every[:, index]), wanted, strict=True):
            torch.testing.assert_close(mine, theirs[:, 0])


def test_light_has_limits(likeness):
    """A white ball before a black picture is not called a ball in no light."""
    white = Balls(torch.tensor([0, 1]), torch.zeros(1, 3), torch.ones(1), torch.full((1, 3), 255, dtype=torch.uint8))
    inside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    _, apart = likeness(white, torch.tensor([0]), cameras((0.0, 0.0)), torch.zeros(SIZE, SIZE, 3), inside, EXTENT)
    assert apart.item() == pytest.approx(DARKEST)


def test_nothing_is_like_nothing(likeness):
    things, inside = balls(), torch.zeros(SIZE, SIZE, dtype=torch.bool)
    overlap, apart = likeness(
        things, torch.tensor([2, 0]), cameras((0.0, 0.0)), torch.zeros(SIZE, SIZE, 3), inside, EXTENT
    )
    assert overlap.flatten().tolist() == [0, 0]
    assert apart.flatten().tolist() == [1, 1]


def test_the_same_bytes_on_any_number_of_threads():
    things, seen = balls((30,) * 40), cameras(*[(10.0 * k, 10.0) for k in range(6)])
    rgb, inside = torch.rand(SIZE, SIZE, 3), torch.ones(SIZE, SIZE, dtype=torch.bool)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(torch.stack(cpu_ops.likeness(things, torch.arange(40), seen, rgb, inside, EXTENT)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
