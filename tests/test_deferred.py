"""Deferred back-propagation: pictures and gradients are those of the whole at once, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from threed.live import Live
from threed.nerf import NeRF, NeRFConfig
from threed.paint import PaintConfig
from threed.regularizers import orientation, z_variance
from threed.renderers import volume
from threed.renderers.camera import Cameras, orbit
from threed.renderers.ops import HashGrid
from threed.renderers.volume import Render
from threed.sdf import SDF, SDFConfig
from threed.solid import Solid, SolidConfig
from threed.tets import TetConfig, TetScene
from threed.train import seeded

GRID = HashGrid(levels=2, coarsest=4, finest=8)
PICTURES = ("rgb", "albedo", "alpha", "depth", "normal")


def nerf(deferred: bool) -> nn.Module:
    return NeRF(NeRFConfig(GRID, samples=24, occupancy=8, deferred=deferred), seeded(0))


def sdf(deferred: bool) -> nn.Module:
    return SDF(SDFConfig(GRID, samples=24, occupancy=8, deferred=deferred), seeded(0))


def solid(deferred: bool) -> nn.Module:
    """With a finish, whose gradient comes by way of the light."""
    paint = PaintConfig(GRID, finish=True)
    config = SolidConfig(TetConfig(resolution=8), paint, supersample=1, deferred=deferred)
    return Solid(config, TetScene.from_ellipsoid((config.start_radius,) * 3, config.tets))


def looked(scene: Any, size: int = 12, views: int = 2) -> tuple[Render, list[Tensor]]:
    """Views, and the gradient of all that a step may ask of them."""
    dtype = next(scene.parameters()).dtype
    cameras = Cameras(*(getattr(orbit(views), each.name).to(dtype) for each in fields(Cameras)))
    render = scene.render(cameras, size, seeded(1))
    asked = [(getattr(render, name) * weights(getattr(render, name), k)).sum() for k, name in enumerate(PICTURES)]
    if rays := render.rays:
        asked += [orientation(rays.weights, rays.normal, rays.directions, rays.packed)]
        asked += [z_variance(rays.weights, rays.packed)]
    parameters = [each for each in scene.parameters() if each.requires_grad]
    return render, list(torch.autograd.grad(torch.stack(asked).sum(), parameters, allow_unused=True))


def weights(picture: Tensor, seed: int) -> Tensor:
    return torch.randn(picture.shape, generator=seeded(seed)).to(picture)


@pytest.mark.parametrize("made", [nerf, sdf, solid])
def test_the_gradient_is_that_of_the_whole(made: Callable[[bool], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "PIECE", 100)
    found = [looked(made(deferred).double()) for deferred in (False, True)]
    (whole, exact), (pieces, deferred) = found
    for name in PICTURES:
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=0, atol=1e-12)
    assert any(each is not None and each.abs().max() > 0.1 for each in exact)
    for one, other in zip(deferred, exact, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11 * max(1.0, float(other.abs().max())))
    if whole.rays:
        for each in fields(whole.rays.packed):
            assert torch.equal(getattr(pieces.rays.packed, each.name), getattr(whole.rays.packed, each.name))


def test_rays_without_samples_are_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture that is mostly empty, in pieces smaller than what a ray has."""
    monkeypatch.setattr(volume, "PIECE", 3)
    whole, pieces = (nerf(deferred) for deferred in (False, True))
    cameras = replace(orbit(1), distance=torch.tensor([9.0]))
    one, other = (scene.render(cameras, 8) for scene in (whole, pieces))
    assert (one.alpha == 0).any()
    torch.testing.assert_close(one.rgb, other.rgb)
    for scene in (whole, pieces):
        scene.occupancy.occupied[:] = False
        assert not scene.render(cameras, 8).alpha.any()


@pytest.mark.parametrize(("made", "share"), [(nerf, 0.7), (solid, 0.75)])
def test_it_needs_less_memory(made: Callable[[bool], nn.Module], share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "PIECE", 1500)
    peaks = []
    for deferred in (False, True):
        scene = made(deferred)
        looked(scene, 4)  # compiled, and what is kept for good made
        with Live() as live:
            looked(scene, 32, 4)
        peaks.append(live.peak)
    assert peaks[1] < share * peaks[0], peaks
