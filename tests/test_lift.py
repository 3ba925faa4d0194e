"""A volume out of a picture: where voxels are seen, what stands in a lattice, in closed form and rendered; its file."""

import math
from dataclasses import replace

import pytest
import tiny_pairs
import torch
from safetensors.torch import load_file
from tiny_assets import box

from threed.distill import lift as inference
from threed.distill.folder import UnreadablePrior
from threed.distill.lift import EXTENT, FOV, ROOM, Lift, LiftConfig, before, lattice, lifted, projected, voxels_of
from threed.distill.start import volume_of
from threed.hull import projected as seen_by
from threed.renderers import surface
from threed.renderers.voxels import TRUNCATION, span, voxelise
from threed.training.lift import NEAR, LiftLoss, apart, fresh, sheet, standing, write
from threed.training.views_cache import Shots
from threed.training.volumes import Lattice

SMALL = LiftConfig(resolution=16, size=16, flat=(8, 8, 16), told=8, solid=(8, 16))
EXTENTS = (2.0, 0.5, 0.7), (0.6, 1.5, 1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def radians(*degrees):
    return torch.tensor([math.radians(each) for each in degrees])


@pytest.fixture(scope="module")
def loss():
    """Two boxes without any symmetry but their own, from around."""
    shots, lattice = Shots(views=8, size=48, supersample=1), Lattice(24)
    assets = [box(extents, (0.8, 0.3, 0.1)) for extents in EXTENTS]
    assets = [
        replace(a, mesh=replace(a.mesh, vertices=a.mesh.vertices / a.mesh.vertices.norm(dim=-1).max())) for a in assets
    ]
    cameras = shots.cameras(0)
    seen = [surface.render(asset, cameras, 48, 48) for asset in assets]
    solid = [voxelise(asset, lattice.resolution) for asset in assets]

    return LiftLoss.of(tiny_pairs.pairs(solid, seen, cameras))


def test_voxels_are_seen_where_cameras_see_them():
    cameras = before(radians(-40.0, 0.0, 25.0), radians(-10.0, 0.0, 50.0))
    places = lattice(4)
    where, toward = projected(places, cameras)
    for index in range(3):
        torch.testing.assert_close(where[index], seen_by(places, cameras[index : index + 1]))
        depth = (places - cameras.position[index]) @ cameras.rotation[index, :, 2]
        torch.testing.assert_close(toward[index] - cameras.distance[index], depth)


def test_the_lattice_has_room_for_what_is_as_long_as_its_outline():
    """What is EXTENT of the frame long, in the plane through the middle, is 1 / ROOM of the lattice."""
    where, _ = projected(
        torch.tensor([[1 / ROOM, 0.0, 0.0], [0.0, -1 / ROOM, 0.0]]), before(radians(0.0), radians(0.0))
    )
    torch.testing.assert_close(where[0], torch.tensor([[EXTENT, 0.0], [0.0, EXTENT]]))


def test_a_ball_stands_in_the_lattice_where_it_is_seen():
    """A ball of radius 1 whose picture's middle lies elsewhere: distances and colours in closed form."""
    side, resolution = 32, 20
    rho = span(side) / 2  # voxels: the longest side fills the volume
    points = lattice(side) * (side / 2)
    volume = torch.cat([
        ((points.norm(dim=-1) - rho) / TRUNCATION).clamp(-1, 1)[None],
        (points / (side / 2)).T,
    ]).view(1, 4, side, side, side)  # fmt: skip
    angle, size, middle = radians(30.0, 20.0)[None], torch.tensor([1.25]), torch.tensor([[0.2, -0.1]])
    found = standing(volume, torch.tensor([0.5]), angle, size, middle, resolution)[0]
    rotation = before(*angle.unbind(1)).rotation[0]
    places = lattice(resolution) * 1.25 + rotation @ torch.tensor([0.2, 0.1, 0.0])
    wanted = ((places.norm(dim=-1) - 1) / 1.25 * resolution / 2).clamp(-NEAR, NEAR) / TRUNCATION
    torch.testing.assert_close(found[0].flatten(), wanted, atol=0.02, rtol=0)
    near = (places.norm(dim=-1) - 1).abs() < 0.1
    colour = places[near] * (rho / (side / 2))
    torch.testing.assert_close(found[1:].flatten(1).T[near], colour, atol=0.03, rtol=0)


def test_what_is_drawn_is_what_the_picture_shows(loss):
    """From all sides, turned and mirrored: all that is solid is seen within the outline, and fills it."""
    picture, angle, truth = loss.drawn(48, 24, seeded())
    assert angle[:, 0].abs().max() <= math.pi / 4 + 1e-6
    where, _ = projected(lattice(24), before(*angle.unbind(1)))
    alpha = torch.nn.functional.grid_sample(picture[:, 3:], where[:, :, None], align_corners=False)[:, 0, :, 0]
    solid = truth[:, 0].flatten(1) < -0.5 / TRUNCATION
    inside = torch.stack([each[there].mean() for each, there in zip(alpha, solid, strict=True)])
    assert inside.min() > 0.93
    bins = 12
    column, row = ((where + 1) * (bins / 2)).long().clamp(0, bins - 1).unbind(-1)
    met = torch.zeros(48, bins**2).scatter_reduce(1, row * bins + column, (truth[:, 0] < 0).flatten(1).float(), "amax")
    asked = torch.nn.functional.adaptive_avg_pool2d(picture[:, 3:], bins).flatten(1) > 0.9
    assert (met[asked] > 0).float().mean() > 0.99
    assert (truth[:, 1:].amax(1) > truth[:, 1:].amin(1)).all()  # in some colour of the box's


def test_channels_are_exchanged_alike_in_picture_and_volume(loss):
    picture, _, truth = loss.drawn(16, 24, seeded(3))
    near = truth[:, :1].abs() < NEAR / TRUNCATION * 0.99
    theirs = (picture[:, :3] + picture[:, 3:]).mean((2, 3))
    ours = (truth[:, 1:] * near).sum((2, 3, 4)) / near.sum((2, 3, 4))
    assert torch.equal(theirs.argmin(1), ours.argmin(1))
    assert len(set(ours.argmin(1).tolist())) > 1


def test_mirrored_pictures_make_mirrored_volumes():
    network, picture = fresh(SMALL, 0).eval(), torch.randn(4, 16, 16, generator=seeded())
    there, here = lifted(network, picture.flip(2), -0.3, 0.2), lifted(network, picture, 0.3, 0.2)
    torch.testing.assert_close(there, here.flip(1))
    with torch.no_grad():
        alone = network(picture[None], before(torch.tensor([0.3]), torch.tensor([0.2])))[0]
    assert (alone - alone.flip(1)).abs().max() > 0.01  # which it does not owe to being alike everywhere


def test_a_voxel_learns_from_its_pixel_and_from_its_reflections():
    """What the pixels tell reaches voxels on their rays, here and mirrored, and no others."""
    network, cameras = Lift(SMALL), before(radians(20.0), radians(10.0))
    told = torch.zeros(1, SMALL.told, 16, 16)
    told[0, 0, 5, 11] = 1.0
    found = network.unprojected(told, cameras)[0]
    places, pixel = lattice(8), torch.tensor([(11 + 0.5) / 8 - 1, (5 + 0.5) / 8 - 1])
    for channel, sign in ((0, 1.0), (SMALL.told, -1.0)):
        where = seen_by(places * torch.tensor([sign, 1.0, 1.0]), cameras)
        wanted = (1 - (where - pixel).abs() * 8).clamp(min=0).prod(-1)  # bilinear
        torch.testing.assert_close(found[channel].flatten(), wanted, atol=1e-5, rtol=0)


def test_an_object_gets_a_lattice_of_its_own():
    """A small ball beside the middle: in the middle, as large as it may be, distances in voxels, in its colours."""
    points = lattice(32)
    volume = torch.cat([
        (((points - torch.tensor([0.3, -0.2, 0.1])).norm(dim=-1) - 0.5) * 16 / TRUNCATION).clamp(-1, 1)[None],
        torch.tensor([0.4, -0.2, 0.0])[:, None].expand(3, len(points)),
    ]).view(4, 32, 32, 32)  # fmt: skip
    found = voxels_of(volume, 32)
    wanted = (lattice(32) * 16).norm(dim=-1) - span(32) / 2
    near = wanted.abs() < 1
    torch.testing.assert_close(found.distance.flatten()[near], wanted[near], atol=0.1, rtol=0)
    torch.testing.assert_close(
        found.colour.reshape(-1, 3)[near], torch.tensor([[0.7, 0.4, 0.5]]).expand(int(near.sum()), 3)
    )
    with pytest.raises(ValueError, match="no voxel is inside"):
        voxels_of(volume.abs() + 0.1, 32)
    again = voxels_of(volume_of(found), 32)
    torch.testing.assert_close(again.distance, found.distance, atol=0.1, rtol=0)


def test_how_far_volumes_are_apart_in_closed_form():
    """Of a box and of its half: half of the volume overlaps, and half of two of the three silhouettes."""
    whole = torch.full((1, 12, 12, 12), 1.0)
    whole[:, 2:10, 3:9, 4:8] = -1.0
    half = whole.clone()
    half[:, 6:10] = 1.0
    assert apart(whole, whole).item() == pytest.approx(0, abs=1e-3)
    assert apart(half, whole).item() == pytest.approx((1 - 1 / 2) + (1 - (1 + 1 / 2 + 1 / 2) / 3), abs=1e-3)
    nothing = torch.full_like(whole, 1.0)
    assert apart(nothing, whole).item() == pytest.approx(2, abs=0.02)
    both = apart(torch.cat([half, nothing]), torch.cat([whole, whole]))
    assert both.item() == pytest.approx((apart(half, whole) + apart(nothing, whole)).item() / 2, abs=1e-5)


def test_it_learns(loss):
    network = fresh(SMALL, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        found = loss(network, 2, seeded())
        found.backward()
        optimizer.step()
        losses.append(found.item())
    assert losses[-1] < 0.5 * losses[0]


def test_its_file_gives_it_back(tmp_path, loss):
    network = fresh(SMALL, 1)
    write(tmp_path, network)
    again = inference.load(tmp_path)
    assert again.config == SMALL
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16().float()), name
    assert load_file(tmp_path / "lift" / "model.safetensors")["tell.weight"].dtype == torch.bfloat16
    assert sheet(again, loss, count=2, size=16).startswith(b"\x89PNG")
    (tmp_path / "lift" / "config.json").write_text('{"flat": 3}')
    with pytest.raises(UnreadablePrior):
        inference.load(tmp_path)


def test_the_camera_is_that_of_a_view_that_fills_the_frame():
    camera = before(torch.zeros(1), torch.zeros(1))
    assert camera.distance.item() * math.tan(FOV / 2) == pytest.approx(1 / (ROOM * EXTENT))
