"""Pictures onto surfaces: colours come back from renders, hidden sides are not spoken of, outlines do not bleed."""

import math

import pytest
import torch
import trimesh

from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Mesh
from threed.renderers.projection import Projection


def ball(radius=0.8, subdivisions=4):
    made = trimesh.creation.icosphere(subdivisions, radius)
    return Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))


def squares(*depths):
    """Squares of 1 metre that face +Z, at these z."""
    corner = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    vertices = torch.cat([torch.cat([corner, torch.full((4, 1), z)], dim=1) for z in depths])
    faces = torch.cat([torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(len(depths))])
    return Mesh(vertices, faces)


def gradient(points):
    """A colour that changes in all directions."""
    return 0.5 + 0.4 * points / 0.8


def projected(mesh, cameras, colour, size=128):
    render = surface.render(mesh, cameras, size, size, supersample=3, albedo=colour)
    return Projection.of(mesh, cameras, render.albedo, render.alpha)


def test_colours_of_a_ball_come_back():
    """Seen all around, every point that is well seen has its own colour again; the poles are not well seen."""
    mesh = ball()
    points = mesh.vertices
    normals = torch.nn.functional.normalize(points, dim=-1)
    colour, belief = projected(mesh, orbit(8), gradient)(points, normals)
    sure = belief[:, 0] == 1
    assert sure.float().mean() > 0.65
    assert (colour[sure] - gradient(points[sure])).abs().max() < 0.02
    seen = belief[:, 0] > 0
    assert (colour[seen] - gradient(points[seen])).abs().max() < 0.05
    assert not seen[points[:, 1] < -0.79].any()


def test_one_picture_speaks_of_its_side_alone():
    mesh = ball()
    points = mesh.vertices
    normals = torch.nn.functional.normalize(points, dim=-1)
    camera = orbit(1, elevation=0.0)
    _, belief = projected(mesh, camera, gradient)(points, normals)
    facing = (normals * torch.nn.functional.normalize(camera.position - points, dim=-1)).sum(-1)
    assert not belief[facing <= 0.2].any()
    assert (belief[facing > 0.55] > 0.9999).all()
    assert ((belief[:, 0] > 0) == (facing > 0.2)).float().mean() > 0.99


def test_what_is_hidden_is_not_painted():
    """Of two squares, one behind the other, the picture speaks of the one in front, and never past its own frame."""
    mesh, camera = squares(0.0, -0.4), orbit(1, elevation=0.0)
    around = projected(mesh, camera, lambda points: torch.zeros_like(points) + points[:, 2:].clamp(-1, 0).abs())
    inner = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * 0.7 - 0.35
    for z, believed in ((0.0, 1.0), (-0.4, 0.0)):
        points = torch.cat([inner, torch.full((100, 1), z)], dim=1)
        colour, belief = around(points, torch.tensor([0.0, 0.0, 1.0]).expand(100, 3))
        assert (belief == believed).all()
        if believed:
            torch.testing.assert_close(colour, torch.zeros(100, 3), rtol=0, atol=1e-5)
    _, away = around(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -1.0]]))
    assert away.item() == 0
    near = Cameras(*(torch.tensor([x]) for x in (0.0, 0.0, 1.0, math.radians(20))))
    close = projected(squares(0.0), near, gradient)
    _, outside = close(torch.tensor([[0.45, 0.0, 0.0], [0.1, 0.1, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3))
    assert outside[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_the_background_does_not_bleed_into_the_object(background):
    """Premultiplied colours say nothing of what is behind them, up to the outline."""
    mesh, camera = squares(0.0), orbit(1, elevation=0.0)
    render = surface.render(mesh, camera, 48, 48, supersample=4, albedo=lambda points: torch.full_like(points, 0.3))
    picture = render.albedo + (1 - render.alpha) * background
    around = Projection.of(mesh, camera, picture - (1 - render.alpha) * background, render.alpha)
    edge = torch.linspace(-0.5, 0.5, 101)
    points = torch.stack([edge, torch.zeros(101), torch.zeros(101)], dim=1)
    colour, belief = around(points, torch.tensor([0.0, 0.0, 1.0]).expand(101, 3))
    assert belief[50] == 1
    torch.testing.assert_close(
        colour[belief[:, 0] > 0], torch.full_like(colour, 0.3)[belief[:, 0] > 0], rtol=0, atol=1e-4
    )


def test_the_squarest_picture_counts_most():
    """Two pictures that disagree: the point in front of the one has that one's colour, the one between both."""
    mesh, cameras = ball(), Cameras(*torch.tensor([[0.0, math.pi / 2], [0.0] * 2, [3.1] * 2, [math.radians(40)] * 2]))
    render = surface.render(mesh, cameras, 128, 128)
    pictures = render.alpha * torch.tensor([1.0, 0.0])[:, None, None, None].expand(-1, 1, 1, 3)
    points = torch.tensor([[0.0, 0.0, 0.8], [0.8, 0.0, 0.0], [0.8 * math.sqrt(0.5), 0.0, 0.8 * math.sqrt(0.5)]])
    colour, _ = Projection.of(mesh, cameras, pictures, render.alpha)(points, points / 0.8)
    assert colour[0, 0] > 0.99
    assert colour[1, 0] < 0.01
    assert colour[2, 0] == pytest.approx(0.5, abs=1e-3)
