"""What an optimisation begins from: voxels as a field, against a ball of known surface, and a NeRF that follows."""

from dataclasses import replace

import pytest
import torch
import trimesh

from threed.distill.upsampler import UpsamplerConfig
from threed.errors import Failure, Mistake
from threed.isosurface import Volume, extract
from threed.nerf import NeRF, NeRFConfig
from threed.pictures import agreement, silhouette_iou
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Mesh
from threed.renderers.ops import HashGrid
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.start import VoxelField, begin, flattened, imitate, smoothed, upsampled
from threed.training.upsampler import fresh, write

RADIUS = 10.0  # voxels


def ball(resolution: int = 32) -> Voxels:
    """Red above, blue below."""
    axis = torch.arange(resolution) - (resolution - 1) / 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    colour = torch.where(points[..., 1:2] > 0, red, blue)
    return Voxels((points.norm(dim=-1) - RADIUS).clamp(-TRUNCATION, TRUNCATION), colour)


def sphere() -> Mesh:
    mesh = trimesh.creation.icosphere(4, 1.0)
    return Mesh(torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces))


def test_the_object_reaches_radius_one():
    field = VoxelField(ball())
    assert isinstance(field, Volume)
    outward = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    on, inside, outside = (field.density(outward * radius) for radius in (1.0, 0.8, 1.2))
    assert (inside > 5 * on.max()).all()
    assert (outside < 0.01 * on.min()).all()
    torch.testing.assert_close(on.mean().item(), field.thresholds[0], rtol=0.2, atol=0)


def test_normals_and_colours_of_the_ball():
    outward = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    sample = VoxelField(ball())(outward)
    assert (sample.normal * outward).sum(-1).min() > 0.97
    above, below = outward[:, 1] > 0.1, outward[:, 1] < -0.1
    assert (sample.albedo[above, 0] > 0.8).all()
    assert (sample.albedo[below, 2] > 0.8).all()


def test_a_volume_is_as_fine_as_the_prior_makes_it(tmp_path):
    """Without an upsampler it stays as it is; an untrained one interpolates, and the ball stays where it is."""
    coarse = ball()
    assert upsampled(coarse, tmp_path) is coarse
    write(tmp_path, fresh(UpsamplerConfig(width=8), 0))
    fine = upsampled(coarse, tmp_path)
    assert fine.distance.shape == (64, 64, 64)
    radius = fine.mesh().vertices.norm(dim=-1) / fine.pitch
    torch.testing.assert_close(radius, torch.full_like(radius, 2 * RADIUS), atol=0.2, rtol=0)
    reach, before = (each.mesh().vertices.amax(0) for each in (fine, coarse))
    torch.testing.assert_close(reach, before, atol=0.01, rtol=0)


def test_blotches_go_and_parts_keep_their_colours():
    clean = ball()
    noise = 0.05 * torch.randn(clean.colour.shape, generator=torch.Generator().manual_seed(0))
    found = flattened(replace(clean, colour=clean.colour + noise))
    near = clean.distance.abs() < 1.5
    error = (found.colour - clean.colour)[near]
    assert error.abs().mean() < 0.1 * noise[near].abs().mean()
    assert error.norm(dim=-1).max() < 0.1  # red stays red up to its border with blue
    assert torch.equal(found.distance, clean.distance)


def test_its_pictures_and_its_mesh_are_the_ball():
    field, cameras = VoxelField(ball()), orbit(4)
    true = surface.render(sphere(), cameras, 64, 64).alpha
    assert silhouette_iou(field.render(cameras).alpha, true) > 0.95
    solid = extract(field, grid=64, smoothing=5)
    assert solid.is_watertight
    torch.testing.assert_close(solid.vertices.norm(dim=-1), torch.ones(len(solid.vertices)), atol=0.02, rtol=0)


def test_a_nerf_goes_on_from_it():
    config = NeRFConfig(grid=HashGrid(levels=4, coarsest=8, finest=32))
    nerf, field, cameras = NeRF(config, torch.Generator().manual_seed(0)), VoxelField(ball()), orbit(4)
    imitate(nerf, field, torch.Generator().manual_seed(0))
    with torch.no_grad():
        psnr, iou = agreement(nerf.render(cameras, 64), field.render(cameras))
    assert psnr > 27
    assert iou > 0.97


def test_begins_from_nothing_or_a_mesh(tmp_path):
    assert begin("sphere", "a ball", 0, tmp_path) is None
    trimesh.creation.icosphere(3, 5.0).export(tmp_path / "ball.glb")
    field = begin(str(tmp_path / "ball.glb"), "a ball", 0, tmp_path)
    assert silhouette_iou(field.render(orbit(4)).alpha, surface.render(sphere(), orbit(4), 64, 64).alpha) > 0.93
    (tmp_path / "broken.glb").write_bytes(b"glTF")
    with pytest.raises(Mistake, match=r"cannot start from .*broken\.glb"):
        begin(str(tmp_path / "broken.glb"), "a ball", 0, tmp_path)


def test_an_empty_volume_is_refused(monkeypatch, tmp_path):
    empty = Voxels(torch.ones(8, 8, 8), torch.zeros(8, 8, 8, 3))
    monkeypatch.setattr("threed.start.imagined", lambda *_: empty)
    with pytest.raises(Failure, match=r"no volume came out of 'a void' .*; try another --seed, other words, or --rec"):
        begin("volume", "a void", 0, tmp_path)
    with pytest.raises(ValueError, match="no voxel is inside"):
        VoxelField(empty)


def test_smoothing_keeps_the_surface_and_drops_twigs():
    """A ball stays where it was within a fifth of a voxel; a faint needle and what touches the border go."""
    voxels = ball()
    assert (smoothed(voxels).distance - voxels.distance)[voxels.distance.abs() < 1].abs().max() < 0.2
    voxels.distance[16, 27:, 16] = -0.2
    voxels.distance[:, 0, :] = -1
    clean = smoothed(voxels).distance
    assert (clean[16, 28:, 16] > 0).all()
    assert (clean[:, 0, :] > 0).all()
