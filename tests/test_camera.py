"""Cameras: the conventions of the whole project, as goldens and round trips."""

import math

import pytest
import torch

from threed.renderers.camera import Cameras, orbit


def cameras(**angles: float) -> Cameras:
    values = {"azimuth": 0.0, "elevation": 0.0, "distance": 2.0, "fov_y": math.pi / 2} | angles
    return Cameras(**{name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()})


def random_cameras(count: int) -> Cameras:
    draw = torch.rand(4, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Cameras(draw[0] * 7 - 3.5, draw[1] * 3 - 1.5, draw[2] * 3 + 1, draw[3] * 1.5 + 0.3)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position", "right", "up"),
    [
        (0, 0, [0, 0, 2], [1, 0, 0], [0, 1, 0]),  # in front of the object, looking at its front
        (90, 0, [2, 0, 0], [0, 0, -1], [0, 1, 0]),  # azimuth grows toward +X
        (180, 0, [0, 0, -2], [-1, 0, 0], [0, 1, 0]),
        (0, 45, [0, 2**0.5, 2**0.5], [1, 0, 0], [0, 0.5**0.5, -(0.5**0.5)]),  # up is positive
    ],
)
def test_goldens(azimuth: float, elevation: float, position: list, right: list, up: list) -> None:
    camera = cameras(azimuth=math.radians(azimuth), elevation=math.radians(elevation))
    expected = torch.tensor([position, right, up], dtype=torch.float64)
    got = torch.cat([camera.position, camera.rotation[..., 0], camera.rotation[..., 1]])
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_rotation_is_right_handed_and_looks_at_the_origin() -> None:
    camera = random_cameras(20)
    rotation = camera.rotation
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(rotation[..., 2] * camera.distance[:, None], camera.position)


def test_rays_of_a_right_angle() -> None:
    """At 90 degrees and 2 x 2 pixels, the centres lie half way to the frame: at (+-1/2, +-1/2, -1), row 0 on top."""
    _, directions = cameras().rays(2, 2)
    through = torch.tensor([[[-1, 1], [1, 1]], [[-1, -1], [1, -1]]]) / 2
    expected = torch.cat([through, -torch.ones(2, 2, 1)], dim=-1).double() / 1.5**0.5
    torch.testing.assert_close(directions[0], expected)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 9), (7, 3), (1, 1)])
def test_points_of_a_ray_project_to_its_pixel(height: int, width: int) -> None:
    camera = random_cameras(6)
    origins, directions = camera.rays(height, width)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(directions[..., 0]))
    for distance in (0.5, 1.7, 30.0):
        points = origins + distance * directions
        clip = torch.einsum(
            "bij,bhwj->bhwi",
            camera.clip_from_world(width / height),
            torch.cat([points, torch.ones_like(points[..., :1])], dim=-1),
        )
        column = (clip[..., 0] / clip[..., 3] + 1) / 2 * width - 0.5
        row = (1 - clip[..., 1] / clip[..., 3]) / 2 * height - 0.5
        torch.testing.assert_close(row, torch.arange(height).double()[None, :, None].expand_as(row))
        torch.testing.assert_close(column, torch.arange(width).double()[None, None].expand_as(column))


def test_depth_range_is_that_of_opengl() -> None:
    """w is the distance along the view direction; z/w runs from -1 at the near plane to 1 at the far one."""
    along = torch.tensor([0.1, 100.0, 2.0], dtype=torch.float64)
    points = torch.stack([torch.zeros(3).double(), torch.zeros(3).double(), 2 - along, torch.ones(3).double()], dim=-1)
    clip = points @ cameras().clip_from_world()[0].T
    torch.testing.assert_close(clip[:, 3], along)
    torch.testing.assert_close(clip[:2, 2] / clip[:2, 3], torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_orbit_starts_at_the_front_and_goes_toward_x() -> None:
    position = orbit(4, elevation=0.0, distance=1.0).position
    expected = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]]).float()
    torch.testing.assert_close(position, expected, atol=1e-6, rtol=0)


def test_indexing_and_moving_keep_every_field() -> None:
    camera = random_cameras(5)
    part = camera[torch.tensor([3, 1])].to("cpu")
    assert len(part) == 2
    torch.testing.assert_close(part.position, camera.position[[3, 1]])


def test_shapes_are_enforced() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(TypeError, match="fov_y"):
        Cameras(one, one, one, two)
