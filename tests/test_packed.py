"""Marching and compositing: against loops over single rays, finite differences, and each other."""

import math
from types import ModuleType

import pytest
import torch
from cuda_on_cpu import CUDA
from torch import Tensor
from torch.autograd import gradcheck

from threed.renderers import cpu_ops, torch_ops
from threed.renderers.ops import Packed

BACKENDS = [pytest.param(torch_ops, id="torch"), pytest.param(cpu_ops, id="numba"), CUDA]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rays(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """From around the cube and from within it; some miss, some run along an axis."""
    generator = seeded()
    origins = torch.randn(count, 3, generator=generator, dtype=dtype)
    directions = torch.randn(count, 3, generator=generator, dtype=dtype) - origins
    directions[::7, 1:] = 0
    return origins, torch.nn.functional.normalize(directions, dim=-1)


def ragged(lengths: list[int], dtype: torch.dtype = torch.float64) -> Packed:
    """Rays of so many samples, with gaps between them."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    ray = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    near = (torch.arange(len(ray)) - starts[ray]).to(dtype) * 0.3 + 1
    return Packed(starts, ray, near, near + 0.05 + 0.2 * torch.rand(len(ray), generator=seeded(9), dtype=dtype))


def march_by_hand(
    origin: Tensor, direction: Tensor, occupied: Tensor, bound: float, step: float, jitter: float
) -> list:
    """Every piece of one ray's lattice, tested one by one."""
    enter, leave = 0.0, math.inf
    for o, d in zip(origin.tolist(), direction.tolist(), strict=True):
        if d == 0 and abs(o) > bound:
            return []
        if d != 0:
            enter, leave = (
                max(enter, min((-bound - o) / d, (bound - o) / d)),
                min(leave, max((-bound - o) / d, (bound - o) / d)),
            )
    pieces = []
    for k in range(-1, 200):
        near, far = max((k + jitter) * step, enter), min((k + 1 + jitter) * step, leave)
        if near < far:
            middle = origin + direction * (near + far) / 2
            cell = ((middle / bound + 1) / 2 * len(occupied)).long().clamp(0, len(occupied) - 1)
            if occupied[tuple(cell)]:
                pieces.append([near, far])
    return pieces


def composite_by_hand(density: Tensor, values: Tensor, packed: Packed) -> tuple[Tensor, ...]:
    weights, rays = [], []
    for start, stop in zip(packed.starts[:-1].tolist(), packed.starts[1:].tolist(), strict=True):
        light, color, depth = torch.tensor(1.0, dtype=density.dtype), torch.zeros_like(values[0]), 0.0
        for n in range(start, stop):
            weight = light * (1 - torch.exp(-density[n] * (packed.far[n] - packed.near[n])))
            light = light - weight
            color, depth = color + weight * values[n], depth + weight * (packed.near[n] + packed.far[n]) / 2
            weights.append(weight)
        rays.append(torch.cat([color, (1 - light)[None], torch.as_tensor(depth, dtype=density.dtype)[None]]))
    total = torch.stack(rays)
    return total[:, :-2], total[:, -2], total[:, -1], torch.stack(weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("jittered", [False, True])
def test_march_against_loops(backend: ModuleType, jittered: bool) -> None:
    origins, directions = random_rays(60)
    occupied = torch.rand(5, 5, 5, generator=seeded(1)) < 0.4
    jitter = torch.rand(60, generator=seeded(2), dtype=torch.float64) if jittered else None
    packed = backend.march(origins, directions, occupied, 0.8, 0.11, jitter)
    expected = [
        march_by_hand(o, d, occupied, 0.8, 0.11, 0.0 if jitter is None else jitter[r].item())
        for r, (o, d) in enumerate(zip(origins, directions, strict=True))
    ]
    counts = [len(pieces) for pieces in expected]
    assert min(counts) == 0 < max(counts)
    assert packed.starts.tolist() == torch.tensor([0, *counts]).cumsum(0).tolist()
    assert packed.ray.tolist() == [r for r, count in enumerate(counts) for _ in range(count)]
    pieces = torch.tensor([piece for pieces in expected for piece in pieces], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([packed.near, packed.far], dim=-1), pieces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marches_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    origins, directions = random_rays(500, dtype)
    jitter = torch.rand(500, generator=seeded(3), dtype=dtype)
    occupied = torch.rand(17, 17, 17, generator=seeded(4)) < 0.3
    ours = cpu_ops.march(origins, directions, occupied, 1.0, 1 / 30, jitter)
    reference = torch_ops.march(origins, directions, occupied, 1.0, 1 / 30, jitter)
    for name in ("starts", "ray", "near", "far"):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_march_covers_the_cube_exactly(backend: ModuleType) -> None:
    """In a full grid the pieces of a ray touch one another, and add up to its way through the cube."""
    origins = torch.tensor([[0.2, -0.3, 5.0], [0.0, 0.0, 0.0], [3.0, 3.0, 3.0], [0.0, 5.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [-(3**-0.5)] * 3, [0.0, 1.0, 0.0]])
    packed = backend.march(origins, directions, torch.ones(4, 4, 4, dtype=torch.bool), 1.0, 0.07)
    lengths = torch.zeros(4).index_add(0, packed.ray, packed.far - packed.near)
    torch.testing.assert_close(lengths, torch.tensor([2.0, 1.0, 2 * 3**0.5, 0.0]))
    inner = packed.ray[1:] == packed.ray[:-1]
    assert torch.equal(packed.far[:-1][inner], packed.near[1:][inner])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_march(backend: ModuleType) -> None:
    origins, directions = random_rays(9)
    for packed in (
        backend.march(origins, directions, torch.zeros(3, 3, 3, dtype=torch.bool), 1.0, 0.1),
        backend.march(origins[:0], directions[:0], torch.ones(3, 3, 3, dtype=torch.bool), 1.0, 0.1),
    ):
        assert len(packed.ray) == len(packed.near) == packed.starts[-1] == 0
        accumulated, alpha, depth, weights = backend.composite(packed.near, packed.near[:, None], packed)
        assert accumulated.shape == (len(packed.starts) - 1, 1)
        assert not alpha.any()
        assert not depth.any()
        assert len(weights) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[4, 0, 1, 7, 0], [0, 3], [1]])
def test_composite_against_loops(backend: ModuleType, lengths: list[int]) -> None:
    """Values, and gradients through every output at once."""
    packed = ragged(lengths)
    density = (torch.rand(sum(lengths), generator=seeded(5), dtype=torch.float64) * 9).requires_grad_()
    values = torch.rand(sum(lengths), 4, generator=seeded(6), dtype=torch.float64).requires_grad_()

    def everything(composite: object) -> list[Tensor]:
        outputs = composite(density, values, packed)
        loss = sum((each * torch.linspace(1, 2, each.numel()).reshape(each.shape).double()).sum() for each in outputs)
        return [*outputs, *torch.autograd.grad(loss, (density, values))]

    for got, expected in zip(everything(backend.composite), everything(composite_by_hand), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_composite_gradcheck(backend: ModuleType) -> None:
    packed = ragged([3, 0, 1, 5])
    density = (torch.rand(9, generator=seeded(5), dtype=torch.float64) * 5).requires_grad_()
    values = torch.rand(9, 2, generator=seeded(6), dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda density, values: backend.composite(density, values, packed), (density, values))


def test_composites_agree_on_many_samples() -> None:
    """Single precision, ten thousand samples a ray, densities from nothing to a wall."""
    packed = ragged([10_000, 0, 1, 3000], torch.float32)
    density = 10 ** (torch.rand(len(packed.ray), generator=seeded(7)) * 12 - 9)
    density = density.requires_grad_()
    values = torch.rand(len(packed.ray), 3, generator=seeded(8)).requires_grad_()
    results = []
    for backend in (cpu_ops, torch_ops):
        accumulated, alpha, depth, weights = backend.composite(density, values, packed)
        loss = accumulated.sum() + alpha.sum() + depth.sum() + (weights**2).sum()
        results.append([accumulated, alpha, depth, weights, *torch.autograd.grad(loss, (density, values))])
    for ours, reference in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, reference, atol=3e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_transmittance_is_what_the_samples_in_front_leave(backend: ModuleType) -> None:
    packed = ragged([5, 0, 2])
    density = torch.rand(7, generator=seeded(), dtype=torch.float64) * 3
    weights = backend.composite(density, density[:, None], packed)[3]
    opacity = 1 - torch.exp(-density * (packed.far - packed.near))
    torch.testing.assert_close(backend.transmittance(density, packed), weights / opacity)


def test_select_keeps_rays_apart() -> None:
    packed = ragged([3, 0, 2, 4])
    part = packed.select(torch.tensor([1, 2, 5, 8]))
    assert part.starts.tolist() == [0, 2, 2, 2, 4]
    assert part.ray.tolist() == [0, 0, 3, 3]
    assert torch.equal(part.near, packed.near[[1, 2, 5, 8]])


def test_same_bytes_whatever_the_threads() -> None:
    packed = ragged([50] * 100, torch.float32)
    density, values = torch.rand(5000, generator=seeded()).requires_grad_(), torch.rand(5000, 6, generator=seeded(1))
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outputs = cpu_ops.composite(density, values, packed)
        results.append([*outputs, *torch.autograd.grad(sum(each.sum() for each in outputs), density)])
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
