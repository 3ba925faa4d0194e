"""Voxels of solids whose distances are known, of meshes that are no solids, and the way back to a mesh."""

import math

import pytest
import torch
import trimesh

from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.voxels import MARGIN, SHEET, THICKNESS, TRUNCATION, Voxels, frames, voxelise

RED, BLUE = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9])


def painted(mesh: trimesh.Trimesh, colour=lambda centre: RED) -> Asset:
    """Every face in one colour, given its centre."""
    vertices, faces = torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces)
    texels = torch.stack([colour(centre) for centre in vertices[faces].mean(1)])
    u = (torch.arange(len(faces)) + 0.5) / len(faces)
    uvs = torch.stack([u, torch.full_like(u, 0.5)], dim=-1)
    return Asset(
        "it", Mesh(vertices, faces), uvs, torch.arange(len(faces))[:, None].expand(-1, 3), Material(texels[None])
    )


def lattice(resolution: int) -> torch.Tensor:
    """Voxel centres, in voxels from the middle."""
    axis = torch.arange(resolution) - (resolution - 1) / 2
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def ball(centre: torch.Tensor, radius: float, points: torch.Tensor) -> torch.Tensor:
    return (points - centre).norm(dim=-1) - radius


def test_looks_from_everywhere():
    """42 directions, right-handed frames, none farther than 37 degrees from any other direction."""
    rows = frames()
    torch.testing.assert_close(rows @ rows.mT, torch.eye(3).expand(42, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[:, 0].cross(rows[:, 1], dim=-1), rows[:, 2])
    anywhere = torch.nn.functional.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert (anywhere @ rows[:, 2].T).amax(1).min() > math.cos(math.radians(37))


def test_a_sphere_has_its_distances():
    """Within the accuracy of the depth maps, and with the thickness added; in its middle too."""
    found = voxelise(painted(trimesh.creation.icosphere(4, 0.3)), 24).distance
    expected = ball(torch.zeros(3), (24 - 2 * MARGIN) / 2, lattice(24)) - THICKNESS
    assert (found - expected.clamp(-TRUNCATION, TRUNCATION)).abs().max() < 0.25


@pytest.mark.parametrize("extents", [(1.0, 2.0, 0.7), (3.0, 1.0, 1.0)])
def test_a_box_has_its_volume_and_place(extents):
    """The longest side fills the lattice up to its margin; the surface is where it was, but for the thickness."""
    found = voxelise(painted(trimesh.creation.box(extents)), 32)
    vertices = found.mesh().vertices / found.pitch
    side = torch.tensor(extents) / max(extents) * (32 - 2 * MARGIN) + 2 * THICKNESS
    torch.testing.assert_close(vertices.amax(0) - vertices.amin(0), side, atol=0.3, rtol=0)
    torch.testing.assert_close(vertices.amax(0), -vertices.amin(0), atol=0.15, rtol=0)
    assert found.occupied.sum() == pytest.approx(float(side.prod()), rel=0.1)


def test_orientation_of_the_axes():
    """Indexed [x, y, z]: a small ball on the +y side is found there, in its colour."""
    big, small = trimesh.creation.icosphere(3, 0.5), trimesh.creation.icosphere(3, 0.2)
    small.apply_translation([0.3, 1.0, -0.2])
    both = trimesh.util.concatenate([big, small])
    found = voxelise(painted(both, lambda centre: BLUE if centre[1] > 0.75 else RED), 32)
    size = both.extents.max()
    place = (torch.tensor([0.3, 1.0, -0.2]) - torch.tensor(both.bounds.mean(0))) / size * (32 - 2 * MARGIN) + 15.5
    x, y, z = place.round().long().tolist()
    assert found.occupied[x, y, z]
    assert not found.occupied[x, 31, z]
    torch.testing.assert_close(found.colour[x, y, z], BLUE, atol=0.01, rtol=0)
    torch.testing.assert_close(found.colour[15, 5, 15], RED, atol=0.01, rtol=0)


def test_what_nobody_sees_is_inside():
    """A sphere within a sphere, and one with its faces turned round, are the sphere."""
    outer = trimesh.creation.icosphere(3, 1.0)
    plain = voxelise(painted(outer), 20)
    inverted = outer.copy()
    inverted.invert()
    torch.testing.assert_close(voxelise(painted(inverted), 20).distance, plain.distance)
    nested = trimesh.util.concatenate([outer, trimesh.creation.icosphere(2, 0.5)])
    hidden = voxelise(painted(nested, lambda centre: RED if centre.norm() > 0.7 else BLUE), 20)
    torch.testing.assert_close(hidden.distance, plain.distance)
    torch.testing.assert_close(hidden.colour, RED.expand(20, 20, 20, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_a_sheet_survives_without_a_hole(tilt):
    """Also midway between two layers of voxels, where it lies untilted: half a voxel from either."""
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 0.8, 0], [0, 0.8, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    sheet.apply_transform(trimesh.transformations.rotation_matrix(tilt, [1, 0, 0]))
    found = voxelise(painted(sheet), 24)
    mesh = found.mesh()
    assert mesh.is_watertight
    assert len(mesh.vertices) - len(mesh.faces) // 2 == 2  # one piece, no hole
    area = 0.8 * (24 - 2 * MARGIN) ** 2  # voxels
    if tilt:
        assert found.occupied.sum() == pytest.approx(2 * SHEET * area, rel=0.3)
    else:
        assert found.occupied.any(2).sum() >= area


def test_what_is_seen_edge_on_stays_where_it_is():
    """A box's sides are seen at every angle; nothing of it may lie anywhere but on it."""
    found = voxelise(painted(trimesh.creation.box((3.0, 1.0, 1.0))), 32)
    half = torch.tensor([3.0, 1.0, 1.0]) / 3 * (32 - 2 * MARGIN) / 2
    away = (lattice(32).abs() - half).clamp(min=0).norm(dim=-1)
    assert (found.distance[away > 0] > away[away > 0].clamp(max=TRUNCATION) - THICKNESS - 0.25).all()


def test_the_hole_of_a_torus_stays_open():
    found = voxelise(painted(trimesh.creation.torus(1.0, 0.25)), 32).mesh()
    assert found.is_watertight
    assert len(found.vertices) - len(found.faces) // 2 == 0  # genus 1
    assert found.volume > 0


def test_looking_up_is_trilinear():
    """Exact on a field that is linear in space, which distances from a plane are."""
    points = lattice(8)
    linear = Voxels(points @ torch.tensor([0.2, -0.1, 0.3]), points.abs() / 4)
    where = (torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * 7  # in voxels
    distance, colour = linear.at(where * linear.pitch)
    torch.testing.assert_close(distance, where @ torch.tensor([0.2, -0.1, 0.3]), atol=1e-5, rtol=0)
    assert colour.shape == (200, 3)
    at_centres, colours = linear.at(points.reshape(-1, 3) * linear.pitch)
    torch.testing.assert_close(at_centres, linear.distance.reshape(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(colours, linear.colour.reshape(-1, 3), atol=1e-5, rtol=0)


def test_the_same_asset_gives_the_same_bytes():
    asset = painted(trimesh.creation.icosphere(4, 1.0))
    first, again = voxelise(asset, 32), voxelise(asset, 32)
    assert torch.equal(first.distance, again.distance)
    assert torch.equal(first.colour, again.colour)


def test_nothing_to_see():
    point = trimesh.Trimesh([[1, 1, 1]] * 3, [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="single point; export it again"):
        voxelise(painted(point), 16)
    line = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="no triangle of the mesh has an area"):
        voxelise(painted(line), 16)
    with pytest.raises(ValueError, match="no voxel is inside"):
        Voxels(torch.ones(4, 4, 4), torch.zeros(4, 4, 4, 3)).mesh()


def test_a_lattice_twice_as_fine_lies_on_the_coarse_one():
    """The same box in 32 and in 64 voxels: in metres it is in one place, but for the thickness."""
    coarse, fine = (voxelise(painted(trimesh.creation.box((1.0, 0.6, 0.8))), side) for side in (32, 64))
    assert fine.pitch == pytest.approx(coarse.pitch / 2)
    reach, true = fine.mesh().vertices.amax(0), torch.tensor([0.5, 0.3, 0.4])
    torch.testing.assert_close(reach, true + THICKNESS * fine.pitch, atol=0.15 * fine.pitch, rtol=0)


def test_more_voxels_hold_the_same_object():
    """A field that is linear in space stays it, in voxels twice as small, and cut at TRUNCATION."""
    slope, points = torch.tensor([0.1, -0.05, 0.08]), lattice(32)
    coarse = Voxels(points @ slope, (points / 40 + 0.5).clamp(0, 1))
    fine = coarse.finer(64)
    inner = (slice(2, -2),) * 3  # beyond the outermost voxels there is nothing to look up
    torch.testing.assert_close(fine.distance[inner], (lattice(64) @ slope).clamp(-3, 3)[inner], atol=1e-4, rtol=0)
    torch.testing.assert_close(fine.colour[inner], (lattice(64) / 80 + 0.5)[inner], atol=1e-5, rtol=0)


def test_parts_touch_at_corners():
    distance = torch.ones(8, 8, 8)
    distance[1:3, 1:3, 1:3] = -1
    assert Voxels(distance, torch.zeros(8, 8, 8, 3)).parts == 1
    distance[3, 3, 3] = -1
    distance[6, 6, 6] = -1
    assert Voxels(distance, torch.zeros(8, 8, 8, 3)).parts == 2
    assert Voxels(torch.ones(8, 8, 8), torch.zeros(8, 8, 8, 3)).parts == 0
