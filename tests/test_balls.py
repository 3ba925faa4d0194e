"""Objects made of balls beside a picture: every pixel asked of every ball, one by one, and what must not matter."""

import math

import pytest
import torch

from threed.renderers.camera import Cameras
from threed.renderers.cpu_ops.balls import BRIGHTEST, DARKEST, LEAST, Balls, likeness

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


def looked_at(balls, row, camera, size=SIZE):
    """The colour and the mask of one object, pixel by pixel, as `likeness` states them."""
    mine = slice(int(balls.begin[row]), int(balls.begin[row + 1]))
    x, y, z = (balls.centre[mine] @ camera.rotation[0]).unbind(-1)
    scale = 1 / ((camera.distance - z) * (camera.fov_y / 2).tan())
    x, y, r = x * scale, -y * scale, balls.radius[mine] * scale
    left, right, top, bottom = (x - r).min(), (x + r).max(), (y - r).min(), (y + r).max()
    zoom = EXTENT * size / max(right - left, bottom - top)
    x, y = (x - (left + right) / 2) * zoom + size / 2, (y - (top + bottom) / 2) * zoom + size / 2
    r = (r * zoom).clamp(min=LEAST)
    axis = torch.arange(size) + 0.5
    covers = (axis[None, :, None] - x) ** 2 + (axis[:, None, None] - y) ** 2 <= r * r
    first = torch.where(covers, z, -torch.inf).max(-1).indices
    return balls.colour[mine][first] / 255, covers.any(-1)


def test_every_pixel_sees_the_ball_that_is_nearest():
    """Outlines and colours of all objects from all cameras, beside the twin by brute force."""
    things, seen = balls(), cameras((20.0, 15.0), (-70.0, 40.0), (130.0, -20.0))
    generator = torch.Generator().manual_seed(1)
    rgb, inside = torch.rand(SIZE, SIZE, 3, generator=generator), torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[6:25, 9:27] = True
    rows = torch.tensor([3, 0, 1])
    overlap, apart = likeness(things, rows, seen, rgb, inside, EXTENT)
    for n, row in enumerate(rows):
        for k in range(len(seen)):
            colour, there = looked_at(things, int(row), seen[k : k + 1])
            both = there & inside
            assert overlap[n, k].item() == pytest.approx(float(both.sum() / (there | inside).sum()), abs=2e-3)
            own, shown = colour[both], rgb[both]
            light = ((own * shown).sum() / own.square().sum()).clamp(DARKEST, BRIGHTEST)
            assert apart[n, k].item() == pytest.approx(float((light * own - shown).square().mean().sqrt()), abs=5e-3)


def test_what_is_compared_with_its_own_picture_is_like_it_in_any_light_size_and_place():
    things, seen = balls(), cameras((35.0, 20.0))
    colour, there = looked_at(things, 0, seen)
    small = Balls(things.begin, things.centre * 0.01, things.radius * 0.01, things.colour)
    far = cameras((35.0, 20.0), distance=0.03)
    for thing, camera in ((things, seen), (small, far)):
        overlap, apart = likeness(thing, torch.tensor([0, 1]), camera, 0.7 * colour, there, EXTENT)
        assert overlap[0, 0] > 0.99
        assert apart[0, 0] < 0.01
        assert overlap[1, 0] < 0.8


def test_light_has_limits():
    """A white ball before a black picture is not called a ball in no light."""
    white = Balls(torch.tensor([0, 1]), torch.zeros(1, 3), torch.ones(1), torch.full((1, 3), 255, dtype=torch.uint8))
    inside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    _, apart = likeness(white, torch.tensor([0]), cameras((0.0, 0.0)), torch.zeros(SIZE, SIZE, 3), inside, EXTENT)
    assert apart.item() == pytest.approx(DARKEST)


def test_nothing_is_like_nothing():
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
            found.append(torch.stack(likeness(things, torch.arange(40), seen, rgb, inside, EXTENT)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
