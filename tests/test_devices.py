"""Scenes on a device that is not the CPU's: nothing is mixed up, and the pictures and gradients are the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from cuda_on_cpu import COMPILER
from pretend_gpu import pretended

from threed.nerf import NeRF, NeRFConfig
from threed.renderers.camera import orbit
from threed.renderers.ops import HashGrid
from threed.sdf import SDF, SDFConfig
from threed.solid import Solid, SolidConfig
from threed.tets import TetConfig, TetScene
from threed.train import Scene, seeded

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def there() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, pretended(patch) as name:
        yield name


def nerf() -> NeRF:
    return NeRF(NeRFConfig(HashGrid(levels=2, coarsest=4, finest=8), samples=16, occupancy=8), seeded(0))


def sdf() -> SDF:
    return SDF(SDFConfig(), seeded(0))


def solid() -> Solid:
    config = SolidConfig(TetConfig(resolution=8), supersample=1)
    return Solid(config, TetScene.from_ellipsoid((config.start_radius,) * 3, config.tets))


@pytest.mark.parametrize("made", [nerf, sdf, solid])
def test_a_scene_looks_the_same_on_every_device(made: Callable[[], Scene], there: str) -> None:
    here, cameras = made(), orbit(2)
    moved = copy.deepcopy(here).to(there)
    pictures, gradients = [], []
    for scene, seen in ((here, cameras), (moved, cameras.to(there))):
        render = scene.render(seen, 12, seeded(1))
        picture = torch.cat([render.rgb, render.alpha, render.depth, render.normal], dim=-1)
        weight = torch.randn(picture.shape, generator=seeded(2)).to(picture.device)
        (weight * picture).sum().backward()
        scene.after_step(1, seeded(3))
        pictures.append(picture.detach().cpu())
        gradients.append({name: p.grad.cpu() for name, p in scene.named_parameters() if p.grad is not None})
    assert moved.render(cameras.to(there), 12).rgb.device.type == there
    torch.testing.assert_close(*pictures, rtol=1e-3, atol=1e-3)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_what_a_gpu_refuses_is_refused(there: str) -> None:
    here = torch.rand(3, generator=seeded(0))
    moved = here.to(there)
    assert torch.equal((moved + torch.ones(3, device=there)).cpu(), here + 1)
    assert torch.equal((moved * torch.tensor(2.0)).cpu(), 2 * here)  # a number may be anywhere
    with pytest.raises(RuntimeError, match="two devices"):
        moved + here
    assert torch.equal(moved[torch.tensor([2, 0])].cpu(), here[[2, 0]])  # so may indices, but not what is indexed
    with pytest.raises(RuntimeError, match="two devices"):
        here[torch.tensor([2, 0], device=there)]
    with pytest.raises(RuntimeError, match="numpy"):
        moved.numpy()
    with pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.rand(3, generator=seeded(0), device=there)
