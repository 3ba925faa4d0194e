"""The hash grid: closed forms, its layout by hand, both backends against each other and against finite differences."""

from itertools import product
from types import ModuleType

import pytest
import torch
from cuda_on_cpu import CUDA
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from threed.renderers import cpu_ops, torch_ops
from threed.renderers.ops import HashGrid, ops

BACKENDS = [pytest.param(torch_ops, id="torch"), pytest.param(cpu_ops, id="numba"), CUDA]
SMALL = HashGrid(levels=3, features=2, log2_table=8, coarsest=4, finest=12)  # one level fits, two are hashed

TINY = HashGrid(levels=2, features=2, log2_table=5, coarsest=3, finest=5)  # few enough entries for finite differences


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inside_cells(count: int, grid: HashGrid) -> Tensor:
    """Points so far from the faces of every level's cells that a finite difference stays within the cell."""
    x = draw(20 * count, 3)
    fractions = torch.stack([(x * scale + 0.5) % 1 for scale in grid.scales])
    return x[((fractions > 1e-3) & (fractions < 1 - 1e-3)).all(-1).all(0)][:count]


def encode_by_hand(x: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """Müller et al. 2022, section 3, one corner at a time, in Python integers of 32 bits."""
    rows = []
    for point in x.clamp(0, 1):
        row = []
        for level, (scale, resolution) in enumerate(zip(grid.scales, grid.resolutions, strict=True)):
            start, stop = grid.offsets[level : level + 2]
            position = point * scale + 0.5
            total = torch.zeros(table.shape[1], dtype=table.dtype)
            for corner in product((0, 1), repeat=3):
                i, j, k = (int(p) + c for p, c in zip(position, corner, strict=True))
                weight = torch.stack([p % 1 if c else 1 - p % 1 for p, c in zip(position, corner, strict=True)]).prod()
                dense = i + j * resolution + k * resolution * resolution
                hashed = i ^ (j * 2654435761 & 0xFFFFFFFF) ^ (k * 805459861 & 0xFFFFFFFF)
                entry = (dense if resolution**3 <= stop - start else hashed) % (stop - start)
                total += weight * table[start + entry]
            row.append(total)
        rows.append(torch.cat(row))
    return torch.stack(rows)


def test_geometry_is_that_of_tiny_cuda_nn() -> None:
    grid = HashGrid(levels=4, features=2, log2_table=15, coarsest=16, finest=128)
    assert grid.scales == pytest.approx((15, 31, 63, 127))
    assert grid.resolutions == (16, 32, 64, 128)
    assert grid.offsets == (0, 4096, 36864, 69632, 102400)
    assert grid.size == 102400
    assert HashGrid(levels=1, coarsest=5).offsets == (0, 128)  # 5^3 rounded up to a multiple of 8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("features", [1, 2, 3])
def test_layout_by_hand(backend: ModuleType, features: int) -> None:
    """Including the corners of the cube, where a vertex beyond the last wraps around, and points outside."""
    x = torch.cat([draw(30, 3) * 1.4 - 0.2, torch.tensor(list(product((0.0, 1.0), repeat=3))).double()])
    table = draw(SMALL.size, features, seed=1)
    torch.testing.assert_close(backend.hash_encode(x, table, SMALL), encode_by_hand(x, table, SMALL))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reproduces_linear_functions(backend: ModuleType) -> None:
    """A dense level that stores a + b . vertex interpolates to a + b . (x scale + 1/2), of slope b scale."""
    grid = HashGrid(levels=1, features=1, log2_table=12, coarsest=10)
    (scale,), (resolution,) = grid.scales, grid.resolutions
    vertices = torch.cartesian_prod(*[torch.arange(resolution)] * 3).flip(-1).double()  # x fastest
    slope = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    table = torch.zeros(grid.size, 1, dtype=torch.float64)
    table[: len(vertices), 0] = vertices @ slope + 3
    x = draw(200, 3) * 0.9 + 0.02
    torch.testing.assert_close(backend.hash_encode(x, table, grid)[:, 0], (x * scale + 0.5) @ slope + 3)
    gradient = backend.hash_gradient(x, table, torch.ones(200, 1, dtype=torch.float64), grid)
    torch.testing.assert_close(gradient, (slope * scale).expand(200, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: ModuleType) -> None:
    x, table = inside_cells(4, TINY).requires_grad_(), draw(TINY.size, 2, seed=1).requires_grad_()
    v = draw(4, 4, seed=2).requires_grad_()
    assert gradcheck(lambda x, table: backend.hash_encode(x, table, TINY), (x, table))
    assert gradcheck(lambda table, v: backend.hash_gradient(x.detach(), table, v, TINY), (table, v))
    assert gradgradcheck(lambda table: backend.hash_encode(x.detach(), table, TINY), (table,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_analytic_normals_can_be_trained(backend: ModuleType) -> None:
    """The slope of a function of the encoding is itself differentiable in the table and in the function."""
    x = inside_cells(4, TINY).requires_grad_()

    def slope(table: Tensor, head: Tensor) -> Tensor:
        logit = (backend.hash_encode(x, table, TINY) @ head).tanh().sum()
        return torch.autograd.grad(logit, x, create_graph=True)[0]

    arguments = draw(TINY.size, 2, seed=1).requires_grad_(), draw(4, 1, seed=2).requires_grad_()
    assert gradcheck(slope, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_outside_the_cube_have_no_slope(backend: ModuleType) -> None:
    x = torch.tensor([[-0.5, 0.41, 1.3], [0.37, 2.0, 0.61]], dtype=torch.float64)
    gradient = backend.hash_gradient(x, draw(SMALL.size, 2), torch.ones(2, 6, dtype=torch.float64), SMALL)
    assert torch.equal(gradient == 0, torch.tensor([[True, False, True], [False, True, False]]))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 1000])
def test_backends_agree(count: int) -> None:
    """Values and all gradients, in single precision, across the edges of the blocks that numba works in."""
    grid = HashGrid()
    x = draw(count, 3, dtype=torch.float32)
    table, v = draw(grid.size, 2, seed=1, dtype=torch.float32) - 0.5, draw(count, 16, seed=2, dtype=torch.float32) - 0.5
    u = draw(count, 3, seed=3, dtype=torch.float32) - 0.5

    def everything(backend: ModuleType) -> list[Tensor]:
        leaves = [each.clone().requires_grad_() for each in (x, table, v)]
        encoded = backend.hash_encode(leaves[0], leaves[1], grid)
        slope = backend.hash_gradient(x, leaves[1], leaves[2], grid)
        first = torch.autograd.grad(encoded, leaves[:2], v)
        second = torch.autograd.grad(slope, leaves[1:], u)
        return [encoded, slope, *first, *second]

    for ours, reference in zip(everything(cpu_ops), everything(torch_ops), strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-4, rtol=1e-4)


def test_same_bytes_whatever_the_threads() -> None:
    grid, x = HashGrid(), draw(5000, 3, dtype=torch.float32)
    table, v = draw(grid.size, 2, dtype=torch.float32).requires_grad_(), draw(5000, 16, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        encoded = cpu_ops.hash_encode(x, table, grid)
        slope = cpu_ops.hash_gradient(x, table, v, grid)
        results.append([encoded, slope, *torch.autograd.grad((encoded * v).sum() + slope.square().sum(), table)])
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_the_tensor_chooses_the_backend() -> None:
    assert ops(torch.device("cpu")) is cpu_ops
    assert ops(torch.device("meta")) is torch_ops


def test_shapes_are_enforced_in_the_reference() -> None:
    with pytest.raises(TypeError, match="table"):
        torch_ops.hash_encode(torch.zeros(3, 3), torch.zeros(7), SMALL)
