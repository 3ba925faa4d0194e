"""Surfaces and lattices made even: what is round stays round, and distances are those of the even surface."""

import pytest
import torch
import trimesh
from test_denoise import lumpy, meshed

from threed.even import FARTHEST, evened, evened_voxels
from threed.renderers.voxels import TRUNCATION, Voxels, span

SIDE = 48


def lattice():
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)  # voxels


def ball(radius):
    return lattice().norm(dim=-1) - radius


def box(*half):
    away = lattice().abs() - torch.tensor(half)
    return away.clamp(min=0).norm(dim=-1) + away.amax(-1).clamp(max=0)


def voxels(distance, lumps):
    """With waves of so many voxels on its surface, a quarter of its size long."""
    x, y, z = (lattice() * (2 * torch.pi / (0.25 * span(SIDE)))).unbind(-1)
    waves = (x.sin() * (y + 1).cos() + y.sin() * (z + 2).cos() + z.sin() * (x + 3).cos()) / 1.5
    colour = torch.rand(SIDE, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    return Voxels((distance + lumps * waves).clamp(-TRUNCATION, TRUNCATION), colour)


def off(found, truth):
    """Root mean square of the distance's error near the surface, in voxels."""
    near = truth.abs() < 1.5
    return float((found.distance - truth)[near].square().mean().sqrt())


def test_a_tube_stays_round_at_the_defaults():
    """8,000 triangles and a sigma of 0.15 would make a prism of it, whose normals are 5.4 degrees off."""
    rough = lumpy(meshed(trimesh.creation.torus(0.7, 0.27, major_sections=160, minor_sections=80)), 0.004)
    found = evened(rough, 8000)
    assert len(found.faces) <= 8000
    middle = found.vertices[found.faces].mean(1)
    ring = torch.nn.functional.normalize(middle * torch.tensor([1.0, 1, 0]), dim=-1) * 0.7
    out = torch.nn.functional.normalize(middle - ring, dim=-1)
    angle = torch.rad2deg((found.face_normals * out).sum(-1).clamp(-1, 1).acos())
    assert angle.mean() < 2.5


@pytest.mark.parametrize("truth", [ball(18.0), box(18.0, 12.0, 15.0)], ids=["ball", "box"])
def test_lumps_leave_a_lattice(truth):
    lumps = voxels(truth, 0.4)
    found = evened_voxels(lumps)
    assert off(found, truth) < 0.6 * off(lumps, truth)
    assert torch.equal(found.colour, lumps.colour)
    assert torch.equal(found.distance, evened_voxels(lumps).distance)
    assert (found.distance - lumps.distance).abs().max() <= FARTHEST + 1e-6
    assert torch.equal(
        found.occupied[lumps.distance.abs() == TRUNCATION], lumps.occupied[lumps.distance.abs() == TRUNCATION]
    )


def test_an_even_lattice_stays_as_it_is():
    truth = ball(18.0)
    found = evened_voxels(voxels(truth, 0.0))
    assert off(found, truth) < 0.05


def test_nothing_cannot_be_evened():
    with pytest.raises(ValueError, match="no voxel is inside"):
        evened_voxels(Voxels(torch.full((8,) * 3, TRUNCATION), torch.zeros(8, 8, 8, 3)))
