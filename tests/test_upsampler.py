"""The upsampler: what it does untrained, in closed form; crops that fit one another; that it learns; its file."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from threed.distill import upsampler as inference
from threed.distill.folder import UnreadablePrior
from threed.distill.start import Start, StartConfig, voxels_of
from threed.distill.text import Text
from threed.distill.upsampler import Upsampler, UpsamplerConfig, interpolated, unfolded
from threed.renderers.voxels import TRUNCATION
from threed.training import upsampler as training
from threed.training.upsampler import CROPS, Lattices, UpsamplerLoss, cropped, fresh, write
from threed.training.volumes import STEPS, Volumes

SMALL = UpsamplerConfig(width=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def axis(side: int) -> torch.Tensor:
    """Centres of voxels, in a lattice of length 1 about the origin."""
    return (torch.arange(side) + 0.5) / side - 0.5


def lattice(side: int) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[axis(side)] * 3, indexing="ij"), dim=-1)


def ball(side: int, radius: float, colour: tuple[float, float, float]) -> torch.Tensor:
    """A volume as networks see it: distances in voxels of this lattice, over the truncation."""
    distance = (lattice(side).norm(dim=-1) - radius) * side / TRUNCATION
    shade = torch.tensor(colour)[:, None, None, None].expand(-1, side, side, side)
    return torch.cat([distance.clamp(-1, 1)[None], shade])


def stored(volumes: torch.Tensor) -> Volumes:
    distance = (volumes[:, 0] * STEPS).round().char()
    colour = ((volumes[:, 1:].movedim(1, -1) + 1) * 127.5).round().byte()
    return Volumes((("a ball",),) * len(volumes), distance, colour, {})


def balls(growth: float = 0.0, sign: float = 1.0) -> Lattices:
    """Balls of four sizes and colours, coarse and fine; what belongs together stands in other rows.

    The fine ones may be larger, and of the opposite colour.
    """
    what = [(0.2, (1.0, -1.0, 0.0)), (0.25, (0.0, 1.0, 0.5)), (0.3, (-1.0, 0.0, 1.0)), (0.35, (0.6, 0.2, -0.8))]
    coarse = torch.stack([ball(16, *each) for each in what])
    fine = torch.stack([ball(32, radius + growth, tuple(sign * c for c in colour)) for radius, colour in what])
    rows = torch.tensor([[0, 3], [1, 2], [2, 1], [3, 0]])
    nothing = Text(torch.zeros(1, 1, 1), torch.zeros(1, 1))
    return Lattices(stored(coarse), stored(fine.flip(0)), rows, Text(torch.zeros(4, 1, 1), torch.zeros(4, 1)), nothing)


def seeing_all(monkeypatch) -> None:
    """The start guesses volumes as they are."""
    monkeypatch.setattr(training, "guessed", lambda start, volume, *_: volume)


def loss_of(lattices: Lattices) -> UpsamplerLoss:
    return UpsamplerLoss(lattices, Start(StartConfig(components=4, width=64, layers=1)))


def test_untrained_it_interpolates_and_distances_are_in_its_own_voxels():
    """A plane lies where it lay: trilinear interpolation of a linear distance is exact, away from the border."""
    position = lattice(16)[..., 0] * 16  # coarse voxels
    plane = torch.stack([(position - 0.3) / TRUNCATION, *[position / 20] * 3])[None].clamp(-1, 1)
    fine = fresh(SMALL, 0)(plane)
    assert torch.equal(fine, interpolated(plane))
    expected = ((lattice(32)[..., 0] * 32 - 0.6) / TRUNCATION).clamp(-1, 1)
    torch.testing.assert_close(fine[0, 0, 1:-1], expected[1:-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(fine[0, 2, 1:-1], (lattice(32)[..., 0] * 32 / 40)[1:-1], atol=1e-5, rtol=0)


def test_channels_become_the_voxels_that_lie_in_them():
    cells = torch.randn(2, 32, 3, 3, 3, generator=seeded())
    fine = unfolded(cells)
    for place in torch.randint(6, (20, 3), generator=seeded(1)).tolist():
        (x, i), (y, j), (z, k) = (divmod(p, 2) for p in place)
        own = cells[:, :, x, y, z].reshape(2, 4, 2, 2, 2)[:, :, i, j, k]
        assert torch.equal(fine[:, :, place[0], place[1], place[2]], own)


def test_every_weight_counts():
    network = Upsampler(SMALL)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network(torch.rand(1, 4, 8, 8, 8, generator=seeded())).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_crops_show_one_place_and_turn_together():
    """Of a fine volume that is the coarse one repeated, a crop is its coarse crop repeated."""
    coarse = torch.rand(3, 4, 24, 24, 24, generator=seeded()) * 2 - 1
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    small, large = cropped(coarse, fine, 5, seeded(1))
    assert small.shape == (5, 4, 16, 16, 16)
    assert torch.equal(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4))
    for number, each in enumerate(small):  # distances stay distances, and colours of the own volume
        own = coarse[number // CROPS]
        assert torch.isin(each[0], own[0]).all()
        assert torch.isin(each[1:], own[1:]).all()


def test_crops_are_drawn_at_the_surface():
    """Of a small ball in a large lattice every crop shows some surface; of nothing, crops are drawn all the same."""
    coarse, fine = (ball(side, 0.08, (0, 0, 0))[None].expand(8, -1, -1, -1, -1) for side in (40, 80))
    small, _ = cropped(coarse, fine, 8 * CROPS, seeded())
    assert (small[:, 0].amin((1, 2, 3)) < 0.5).all()
    assert (small[:, 0].amax((1, 2, 3)) == 1).all()
    small, _ = cropped(torch.ones_like(coarse), torch.ones_like(fine), 8 * CROPS, seeded())
    assert (small == 1).all()


def test_the_loss_of_knowing_all_is_zero_and_rows_belong_together(monkeypatch):
    seeing_all(monkeypatch)
    lattices = balls()
    guess, truth = loss_of(lattices).volumes(16, seeded())
    halved = functional.avg_pool3d(truth, 2)
    assert torch.equal(halved[:, 0] < 0, guess[:, 0] < 0)  # the same ball
    torch.testing.assert_close(halved[:, 1:], guess[:, 1:])

    class Oracle(torch.nn.Module):
        def forward(self, coarse):
            del coarse
            return made.pop()

    made = list[torch.Tensor]()

    def kept(*given):
        pair = cropped(*given)
        made.append(pair[1])
        return pair

    monkeypatch.setattr(training, "cropped", kept)
    assert loss_of(lattices)(Oracle(), 8, seeded()) == 0


def test_it_learns_what_a_coarse_volume_stands_for(monkeypatch):
    """Where fine balls are larger and of the opposite colour, 60 steps leave about half of interpolation's error."""
    seeing_all(monkeypatch)
    loss, network, generator = loss_of(balls(growth=0.03, sign=-1.0)), fresh(SMALL, 0), seeded()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    before = loss(network, 8, seeded(5)).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(network, 2, generator).backward()
        optimizer.step()
    assert loss(network, 8, seeded(5)).item() < 0.65 * before


def test_a_sheet_is_a_picture_of_three_rows(monkeypatch):
    seeing_all(monkeypatch)
    assert training.sheet(fresh(SMALL, 0), loss_of(balls()), count=2, size=16).startswith(b"\x89PNG")


def test_what_is_written_is_what_is_loaded(tmp_path):
    network = fresh(SMALL, 3)
    write(tmp_path, network)
    assert set(load_file(tmp_path / "upsampler" / "model.safetensors")) == set(network.state_dict())
    loaded = inference.load(tmp_path)
    assert loaded.config == SMALL
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    assert voxels_of(loaded(ball(16, 0.3, (0.2, 0.1, 0.0))[None])[0]).distance.shape == (32, 32, 32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_file_is_named(tmp_path, name):
    write(tmp_path, fresh(SMALL, 0))
    (tmp_path / "upsampler" / name).write_bytes(b"{")
    with pytest.raises(UnreadablePrior, match=rf"cannot use .*upsampler/{name}: .*; copy the prior's folder again"):
        inference.load(tmp_path)
