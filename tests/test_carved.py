"""How far a glance is trusted: its outline decides; and what of the picture's colours is its light."""

from dataclasses import replace

import pytest
import torch
from tiny_exemplars import BOXES, COLOURS, SIDE, picture, solid

from threed import carved as carving
from threed import recalled
from threed.carved import Guess, Words, carved, coloured, finer, sighted, trust, usual
from threed.cutout import Cutout
from threed.distill.angles import Angles, AnglesConfig
from threed.distill.exemplars import Exemplars
from threed.distill.lift import LiftConfig
from threed.hull import Sight
from threed.renderers.voxels import TRUNCATION, Voxels, lattice
from threed.training import exemplars as exemplar_training
from threed.training import lift as lift_training
from threed.training.angles import write
from threed.viewpoint import Viewpoint


def voxels(radius=9.0, side=24):
    axis = torch.arange(side) - (side - 1) / 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    return Voxels((points.norm(dim=-1) - radius).clamp(-TRUNCATION, TRUNCATION), 0.05 * points.abs())


def ball():
    return coloured(voxels())


def test_a_painted_surface_is_at_radius_1_in_the_voxels_colours():
    thing = ball()
    assert thing.mesh.vertices.norm(dim=-1).max().item() == pytest.approx(1)
    found = thing.albedo(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.45, 0.025, 0.025], [0.025, 0.225, 0.025]]), atol=0.02, rtol=0)


def test_trust_goes_by_the_outline():
    """All in a ball whose picture is a disc, less in one whose picture is a bar, none where it is thin."""
    seen, found = Viewpoint(0.0, 15.0), []
    disc = seen.of(ball(), 96).alpha[0]
    for height in (96, 52, 6):
        alpha = disc.clone()
        alpha[: 48 - height // 2] = 0
        alpha[48 + height // 2 :] = 0
        cutout = Cutout(alpha.expand(-1, -1, 3) * 0.5, alpha)
        found.append(trust(ball(), cutout, seen))
    assert found[0] == 1
    assert 0 < found[1] < 1
    assert found[2] == 0


def test_what_is_not_trusted_is_the_usual():
    seen = Viewpoint(-40.0, 55.0, zoom=1.2)
    assert usual(seen, 1.0, tilted=True) == seen
    assert usual(seen, 0.0, tilted=True) == Viewpoint(0.0, 15.0, zoom=1.2)
    assert usual(seen, 0.5, tilted=True) == Viewpoint(-20.0, 35.0, zoom=1.2)
    assert usual(seen, 0.5, tilted=False) == Viewpoint(-20.0, 55.0, zoom=1.2)


def test_the_priors_angles_say_from_where_and_the_glance_where_there_are_none(tmp_path):
    """A ball shows neither; angles that are sure of a bin are believed, but for the elevation that was given."""
    seen, picture = Viewpoint(30.0, 40.0), torch.zeros(4, 16, 16)
    cutout = Cutout(seen.of(ball(), 96).albedo[0], seen.of(ball(), 96).alpha[0])
    plain, trusted = sighted(tmp_path, picture, ball(), cutout, None, 40.0)
    assert (plain.azimuth, plain.elevation, trusted) == (pytest.approx(0, abs=10), pytest.approx(15, abs=10), 1)
    network = Angles(AnglesConfig(size=16, width=8))
    torch.nn.init.zeros_(network.tell.weight)
    # Both ends of a mirror: what is seen of a picture and of its mirror image is averaged.
    network.tell.bias.data = torch.zeros(34).index_fill(0, torch.tensor([8, 9, 18 + 9]), 30.0)
    write(tmp_path, network)
    told, _ = sighted(tmp_path, picture, ball(), cutout, None, 40.0)
    assert (told.azimuth, told.elevation) == (pytest.approx(0, abs=0.1), pytest.approx(27.5, abs=0.1))
    told, _ = sighted(tmp_path, picture, ball(), cutout, 33.0, 20.0)
    assert (told.elevation, told.fov) == (33.0, 20.0)


def test_a_lift_knows_the_colours_without_the_light(tmp_path, monkeypatch):
    """Of a green ball in a light of 0.8; what the start makes of it keeps the light in its colours."""
    green, seen = torch.tensor([0.1, 0.7, 0.2]), Viewpoint(0.0, 15.0)
    thing = replace(voxels(), colour=green.expand(24, 24, 24, 3))
    look = seen.of(coloured(thing), 128)
    cutout = Cutout(0.8 * look.albedo[0], look.alpha[0])

    sight = Sight.of(seen, thing, cutout, 96)
    monkeypatch.setattr(carving, "lifted", lambda *_: Guess(thing, sight, seen))
    monkeypatch.setattr(carving, "dreamt", lambda *_: Guess(thing, sight, seen))
    for lifts, light in ((True, 0.8), (False, 1.0)):
        monkeypatch.setattr(carving, "lifts", lambda words, lifts=lifts: lifts)
        found = carved(Words("", "", 0, tmp_path, "cpu"), torch.zeros(4, 16, 16), cutout, None, 40.0)
        assert found.light == pytest.approx(light, abs=0.01)
        assert not found.known
        skin = found.field.voxels.distance.abs() < 1
        assert (found.field.voxels.colour[skin] - green * 0.8 / light).abs().max() < 0.03


@pytest.mark.parametrize("followed", [True, False])
def test_what_a_lift_knows_by_heart_it_knows_again(tmp_path, monkeypatch, followed):
    """A chair, one among others, from where the angles say within 5 degrees; carved or left as it is known."""
    known = Exemplars.of([solid(*each) for each in zip(BOXES, COLOURS, strict=True)])
    sure = Angles(AnglesConfig(size=16, width=8))
    torch.nn.init.zeros_(sure.tell.weight)
    sure.tell.bias.data = torch.zeros(34).index_fill(0, torch.tensor([13, 4, 18 + 7]), 9.0)
    write(tmp_path, sure)
    config = LiftConfig(resolution=SIDE, size=16, flat=(8, 8, 16), told=8, solid=(8, 16))
    lift_training.write(tmp_path, lift_training.fresh(config, 0))
    exemplar_training.write(tmp_path, known)
    if not followed:
        monkeypatch.setattr(recalled, "FOLLOWED", 1.01)
    chair, seen = known[1], Viewpoint(22.0, 17.0)
    look = seen.of(coloured(chair), 128)
    cutout = Cutout(look.albedo[0], look.alpha[0])
    found = carved(Words("", "", 0, tmp_path, "cpu"), picture(chair, 22.0, 17.0), cutout, None, 40.0)
    assert found.followed == followed
    assert found.known
    assert found.seen.azimuth == pytest.approx(22, abs=5)
    solid_again = found.field.voxels.at(lattice(SIDE))[0] < 0
    truth = chair.occupied.flatten()
    assert (solid_again & truth).sum() / (solid_again | truth).sum() > 0.85


def test_an_upsampler_may_not_tear_what_keeps_its_own_outline(tmp_path, monkeypatch):
    """A rod that comes back as two is twice as fine by looking up; one that comes back whole is the upsampler's."""
    axis = torch.arange(32) - 15.5
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    rod = Voxels(
        torch.stack([x.abs() - 1, y.abs() - 13, z.abs() - 1]).amax(0).clamp(-TRUNCATION, TRUNCATION),
        torch.full((32, 32, 32, 3), 0.5),
    )
    whole = rod.finer(64)
    black = replace(whole, colour=whole.colour * 0)
    torn = replace(black, distance=whole.distance.clone())
    torn.distance[:, 30:34] = TRUNCATION
    seen = Viewpoint(0.0, 15.0)
    cutout = Cutout(seen.of(coloured(rod), 64).albedo[0], seen.of(coloured(rod), 64).alpha[0])
    guess = Guess(rod, Sight.of(seen, rod, cutout, 64), seen, followed=False)
    for made, parts in ((torn, 2), (black, 1)):
        assert made.parts == parts
        monkeypatch.setattr(carving, "upsampled", lambda voxels, prior, made=made: made)
        found = finer(guess, rod, tmp_path)
        assert found.parts == 1
        assert torch.equal(found.colour, made.colour) == (parts == 1)
