"""From where a picture was taken: beliefs in closed form, what is drawn for training, that it learns, its file."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_assets import box

from threed.distill import angles as inference
from threed.distill.angles import (
    AZIMUTHS,
    BIN,
    ELEVATIONS,
    Angles,
    AnglesConfig,
    Belief,
    believed,
    median,
)
from threed.distill.folder import UnreadablePrior
from threed.renderers import surface
from threed.training import angles as training
from threed.training.angles import AnglesLoss, framed, fresh, likely, sheet, write
from threed.training.views_cache import Cache, Shots

SMALL = AnglesConfig(size=16, width=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cache():
    """Two long boxes, from around."""
    shots = Shots(views=8, size=16, supersample=1)
    cameras = shots.cameras(0)
    seen = [
        surface.render(box(extents, (0.8, 0.3, 0.1)), cameras, 16, 16) for extents in ((2, 0.5, 0.4), (1.5, 1, 0.4))
    ]

    def bytes_of(pictures):
        return (torch.stack(pictures).movedim(-1, 2) * 255).round().byte()

    return Cache(
        (("a box",), ("a crate",)),
        bytes_of([each.albedo for each in seen]),
        bytes_of([(each.normal + each.alpha) / 2 for each in seen]),
        bytes_of([each.alpha for each in seen])[:, :, 0],
        torch.zeros(2, 4, 3, dtype=torch.uint8),
        torch.stack([cameras.azimuth, cameras.elevation, cameras.distance, cameras.fov_y], dim=1).expand(2, -1, -1),
        {},
    )


def test_the_middle_has_half_on_either_side():
    assert median(torch.zeros(7)) == pytest.approx(3.5 * BIN)
    assert median(torch.tensor([0.25, 0.75]).log()) == pytest.approx((1 + 1 / 3) * BIN)
    assert median(torch.tensor([0.75, 0.25]).log()) == pytest.approx(2 / 3 * BIN)
    nothing = Belief(torch.zeros(AZIMUTHS), torch.zeros(ELEVATIONS))
    assert nothing.middle == pytest.approx((0, 20))


def test_shares_of_bins_are_a_bell_and_azimuths_a_circle():
    angle = torch.tensor([0.0, -44.0, 44.0, 20.0])
    shares = likely(angle, -45.0, AZIMUTHS, 90.0)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    torch.testing.assert_close(shares[1], shares[2].flip(0))
    middle = -45 + (torch.arange(AZIMUTHS) + 0.5) * BIN
    for a, found in zip(angle.tolist(), shares, strict=True):
        apart = np.array([min(abs(m - a), 90 - abs(m - a)) for m in middle.tolist()])
        wanted = np.exp(-((apart / training.SOFT) ** 2) / 2)
        np.testing.assert_allclose(found.numpy(), wanted / wanted.sum(), rtol=1e-4)


def test_a_mirrored_picture_was_taken_from_the_other_side():
    network = Angles(SMALL)
    picture = torch.rand(4, 16, 16, generator=seeded())
    one, other = believed(network, picture), believed(network, picture.flip(2))
    torch.testing.assert_close(one.azimuth, other.azimuth.flip(0))
    torch.testing.assert_close(one.elevation, other.elevation)
    assert one.azimuth.exp().sum().item() == pytest.approx(1)
    assert (one.azimuth - other.azimuth).abs().max() > 1e-3


def test_objects_are_framed_as_cutouts_are():
    picture = torch.zeros(3, 4, 64, 64)
    picture[0, :, 5:15, 30:60] = 1
    picture[1, :, 20:60, 3:9] = 1
    found = framed(picture)
    extent = training.EXTENT
    for one, sides in zip(found, ((extent / 3, extent), (extent, 0.15 * extent)), strict=False):
        inside = one[-1] > 0.5
        for axis, side in enumerate(sides):
            places = torch.nonzero(inside.any(1 - axis)).flatten()
            assert (len(places) / 64) == pytest.approx(side, abs=1.5 / 64)
            assert (places.float().mean().item() + 0.5) / 64 == pytest.approx(0.5, abs=1 / 64)
    assert not found[2].any()


def test_angles_are_those_of_the_pictures(cache, monkeypatch):
    """Of photographs without faults: each is one of the cache's views, mirrored or not, with its own angles."""
    monkeypatch.setattr(training, "photographed", lambda picture, _: picture)
    picture, azimuth, elevation = AnglesLoss(cache).drawn(64, seeded())
    assert (azimuth.abs() <= 45).all()
    views = framed(cache.alpha.flatten(0, 1).float()[:, None] / 255)[:, 0]
    degrees = cache.cameras.flatten(0, 1) * (180 / math.pi)
    for shown, a, e in zip(picture[:, -1], azimuth.tolist(), elevation.tolist(), strict=True):
        for sign, of_it in ((1, shown), (-1, shown.flip(1))):
            same = (views - of_it).abs().amax((1, 2)) < 1e-4
            if any(
                abs((sign * a - b + 45) % 90 - 45) < 1e-3 and abs(e - c) < 1e-3
                for b, c in degrees[same][:, :2].tolist()
            ):
                break
        else:
            pytest.fail(f"no view is {a}, {e}")


def test_it_learns_from_where_boxes_are_seen(cache):
    """An untrained network's loss is that of knowing nothing; 40 steps take 0.7 off it."""
    loss, network, generator = AnglesLoss(cache), fresh(SMALL, 0), seeded()
    before = loss(network, 64, seeded(5)).item()
    assert before == pytest.approx(math.log(AZIMUTHS) + math.log(ELEVATIONS), abs=1e-4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss(network, 32, generator).backward()
        optimizer.step()
    assert loss(network, 64, seeded(5)).item() < before - 0.7
    assert sheet(network, loss, 3).startswith(b"\x89PNG")


def test_what_is_written_is_what_is_loaded(tmp_path):
    network = Angles(SMALL)
    write(tmp_path, network)
    assert set(load_file(tmp_path / "angles" / "model.safetensors")) == set(network.state_dict())
    loaded = inference.load(tmp_path)
    assert loaded.config == SMALL
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_file_is_named(tmp_path, name):
    write(tmp_path, Angles(SMALL))
    (tmp_path / "angles" / name).write_bytes(b"{")
    with pytest.raises(UnreadablePrior, match=rf"cannot use .*angles/{name}: .*; copy the prior's folder again"):
        inference.load(tmp_path)
