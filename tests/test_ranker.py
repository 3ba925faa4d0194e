"""The ranker: what it is shown, candidates against one search at a time, overlaps by brute force; its file."""

import math

import pytest
import tiny_pairs
import torch
from safetensors.torch import load_file
from tiny_exemplars import BOXES, COLOURS, solid

from threed.carved import coloured
from threed.distill import ranker as inference
from threed.distill.exemplars import Exemplars
from threed.distill.folder import UnreadablePrior
from threed.distill.lift import EXTENT
from threed.distill.ranker import RankerConfig, beside
from threed.recalled import Views
from threed.renderers import surface
from threed.renderers.ops import ops
from threed.training import candidates as searching
from threed.training.candidates import CAMERAS, FOV, KEPT, Candidates, candidates, nearest
from threed.training.pairs import facing, quarters
from threed.training.ranker import TOGETHER, RankerLoss, fresh, sheet, write
from threed.training.views_cache import Shots

SMALL = RankerConfig(size=16, width=8, hidden=8)
SHOTS = Shots(views=8, size=48, supersample=1, elevation=(5.0, 30.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pairs():
    """Eight solids, two of every shape in other colours, from around."""
    solids = [solid(shape, rgb) for order in (1, -1) for shape, rgb in zip(BOXES, COLOURS[::order], strict=True)]
    cameras = SHOTS.cameras(0)
    things = [coloured(each) for each in solids]
    seen = [surface.render(thing.mesh, cameras, 48, 48, albedo=thing.albedo) for thing in things]

    return tiny_pairs.pairs(solids, seen, cameras)


def known(pairs):
    return Exemplars.of(pairs.volumes)


def itself(pairs):
    """Every picture's own asset, as it shows it, and the one after it."""
    shape = pairs.cache.albedo.shape[:2]
    row = torch.arange(shape[0])[:, None, None].expand(*shape, KEPT).clone()
    row[:, :, 1::2] = (row[:, :, 1::2] + 1) % shape[0]
    turns = quarters(pairs.cache.cameras[..., 0].flatten()).view(*shape, 1)
    return Candidates(row, turns.expand(-1, -1, KEPT))


def test_what_the_network_is_shown_and_told(pairs):
    """An exemplar beside its own drawing, in half the light, and beside another's."""
    exemplars, front = known(pairs), torch.zeros(2, dtype=torch.int64)
    cameras = Views(torch.tensor([20.0, -10.0]), torch.tensor([15.0, 30.0]), front).cameras(FOV)
    drawn, toward = ops(torch.device("cpu")).draw_balls(exemplars.balls, torch.tensor([1, 2]), cameras, 16, EXTENT)
    rgb, inside = drawn[..., :3] / 510, drawn[..., 3] > 0
    shown, told = beside(rgb, inside, drawn, toward, torch.tensor([False, True]))
    assert shown.shape == (2, inference.CHANNELS, 16, 16)
    assert torch.equal(shown[:, 3], shown[:, 7])
    torch.testing.assert_close(2 * shown[:, :3], shown[:, 4:7])
    assert torch.equal(shown[:, 8], toward)
    torch.testing.assert_close(told, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]), atol=1e-3, rtol=0)
    _, told = beside(rgb.flip(0), inside.flip(0), drawn, toward, front > 0)
    both, either = (inside[0] & inside[1]).sum(), (inside[0] | inside[1]).sum()
    torch.testing.assert_close(told[:, 0], (both / either).expand(2))
    assert (told[:, 1] > 0.1).all()


@pytest.mark.parametrize("own", [True, False])
def test_candidates_are_those_of_one_search_after_another(pairs, monkeypatch, own):
    pictures, taken, done = {}, searching.photographs, []

    def told(pairs, asset, view, generator):
        found = taken(pairs, asset, view, generator)
        for index, place in enumerate(zip(asset.tolist(), view.tolist(), strict=True)):
            pictures[place] = found[0][index], found[1][index]
        return found

    monkeypatch.setattr(searching, "photographs", told)
    monkeypatch.setattr(searching, "AT_ONCE", 3)
    exemplars = known(pairs)
    found = candidates(exemplars, pairs, own, 4, done.append)
    assert done == list(range(1, len(CAMERAS) + 1))
    near = nearest(pairs.cache.cameras.flatten(0, 1), seeded(4)).view(8, 8)
    for (asset, view), (rgb, inside) in pictures.items():
        seen = Views.quarters(*CAMERAS[near[asset, view]].tolist())
        overlap, apart = ops(torch.device("cpu")).likeness(
            exemplars.balls, torch.arange(8), seen.cameras(FOV), rgb, inside, EXTENT
        )
        score = seen.resemblance(overlap, apart)
        row, turns = found.row[asset, view], found.turns[asset, view]
        assert (asset in row.tolist()) != own
        others = torch.arange(8) != (asset if own else -1)
        wanted = score[others].flatten().sort(descending=True).values[:KEPT]
        torch.testing.assert_close(score[row, turns], wanted)
    assert len(pictures) == 64
    best = found.row[..., 0] % 4 == torch.arange(8)[:, None] % 4
    assert best.float().mean() > 0.8  # the same shape in other colours, or in its own


def test_the_nearest_camera_is_found_for_any_quarter():
    cameras = torch.tensor([[math.radians(180 - 21.0), math.radians(14.0), 3.0, 0.7]]).expand(400, -1)
    found = CAMERAS[nearest(cameras, seeded())]
    assert found.mode(0).values.tolist() == [-20.0, 15.0]
    assert 3 < found[:, 0].std() < 8


def test_overlaps_by_brute_force(pairs):
    loss = RankerLoss(pairs, known(pairs), itself(pairs))
    volume, front = torch.tensor([0, 5, 2]), torch.tensor([3, 0, 1])
    row, turns = torch.tensor([[0, 1], [5, 5], [6, 7]]), torch.tensor([[3, 2], [1, 0], [2, 0]])
    found = loss.overlap(volume, front, row, turns)
    none = torch.zeros(2, dtype=torch.bool)
    for p in range(3):
        truth = facing(pairs.volumes.tensor(volume[p : p + 1]), front[p : p + 1], none[:1])[0, 0] < 0
        for k, other in enumerate(facing(pairs.volumes.tensor(row[p]), turns[p], none)[:, 0] < 0):
            assert found[p, k].item() == pytest.approx(float((truth & other).sum() / (truth | other).sum()), abs=0.01)
    assert found[0, 0] > 0.99
    assert found[1, 1] > 0.99
    assert found[1, 0] < 0.9


def test_what_is_drawn_is_the_picture_beside_its_candidates(pairs):
    """Mirrored and in any colours, a picture's own asset looks like it; half of the candidates here are that."""
    loss = RankerLoss(pairs, known(pairs), itself(pairs))
    drawn = loss.drawn(48, 32, seeded())
    assert drawn.shown.shape == (48 * TOGETHER, inference.CHANNELS, 32, 32)
    own = drawn.overlap > 0.99
    assert 0.4 < own.float().mean() < 0.6
    overlap, apart, turned = drawn.told.T.unflatten(1, drawn.overlap.shape)
    assert overlap[own].mean() > 0.85
    assert overlap[own].mean() > overlap[~own].mean() + 0.2
    assert apart[own].mean() < 0.6 * apart[~own].mean()
    assert set(turned.unique().tolist()) == {0.0, 1.0}


def test_it_learns(pairs):
    loss = RankerLoss(pairs, known(pairs), itself(pairs)).to("cpu")
    network = fresh(SMALL, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        found = loss(network, 4, seeded(step))
        found.backward()
        optimizer.step()
        losses.append(found.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_its_file_gives_it_back(tmp_path, pairs):
    assert inference.load(tmp_path) is None
    network = fresh(SMALL, 1)
    write(tmp_path, network)
    again = inference.load(tmp_path)
    assert again.config == SMALL
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16().float()), name
    assert load_file(tmp_path / "ranker" / "model.safetensors")["begin.weight"].dtype == torch.bfloat16
    assert sheet(again, RankerLoss(pairs, known(pairs), itself(pairs)), count=2).startswith(b"\x89PNG")
    (tmp_path / "ranker" / "config.json").write_text('{"width": "3"}')
    with pytest.raises(UnreadablePrior):
        inference.load(tmp_path)


def test_the_same_seed_draws_the_same(pairs):
    loss = RankerLoss(pairs, known(pairs), itself(pairs))
    one, two, other = (loss.drawn(4, 16, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.shown, two.shown)
    assert not torch.equal(one.shown, other.shown)
