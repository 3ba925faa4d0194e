"""Texture look-ups, bilinear and trilinear: closed forms, loops over texels, and the backends against each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from cuda_on_cpu import CUDA
from torch.nn import functional

from threed.renderers import cpu_ops, torch_ops
from threed.renderers.camera import Cameras

BACKENDS = pytest.mark.parametrize("ops", [pytest.param(torch_ops, id="torch"), pytest.param(cpu_ops, id="cpu"), CUDA])
WRAPS = pytest.mark.parametrize("wrap", ["clamp", "repeat"])
SIZES = pytest.mark.parametrize("size", [(8, 8), (4, 16), (7, 5), (6, 9), (1, 12), (13, 1), (1, 1)], ids=str)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def looked_up(image, u, v, wrap):
    """One bilinear look-up, texel by texel."""
    height, width, _ = image.shape
    x, y = u * width - 0.5, v * height - 0.5
    total = np.zeros(image.shape[2])
    for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        weight = (1 - abs(y - row)) * (1 - abs(x - column))
        if wrap == "repeat":
            texel = image[row % height, column % width]
        else:
            texel = image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
        total += weight * texel
    return total


@BACKENDS
@WRAPS
def test_texture_is_bilinear(ops, wrap):
    image = torch.rand(5, 7, 3, generator=seeded(7), dtype=torch.float64)
    uv = torch.rand(4, 9, 2, generator=seeded(8), dtype=torch.float64) * 3 - 1
    found = ops.texture(image, uv, wrap)
    expected = [looked_up(image.numpy(), u, v, wrap) for u, v in uv.reshape(-1, 2).tolist()]
    torch.testing.assert_close(found, torch.tensor(np.array(expected)).view(4, 9, 3))


@BACKENDS
@WRAPS
def test_texture_has_exact_gradients(ops, wrap):
    image = torch.rand(4, 3, 2, generator=seeded(9), dtype=torch.float64, requires_grad=True)
    uv = (torch.rand(6, 2, generator=seeded(10), dtype=torch.float64) * 2 - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda image, uv: ops.texture(image, uv, wrap), (image, uv))


@BACKENDS
@WRAPS
def test_every_grey_keeps_its_byte(ops, wrap):
    uv = torch.rand(40, 2, generator=seeded(11)) * 3 - 1
    for grey in range(256):
        found = ops.texture(torch.full((3, 5, 1), grey / 255), uv, wrap)
        assert ((found * 255).round() == grey).all()


@BACKENDS
@WRAPS
def test_texture_of_no_points(ops, wrap):
    assert ops.texture(torch.rand(4, 3, 2), torch.zeros(0, 2), wrap).shape == (0, 2)


def shrunk(image, axis):
    """Half of an axis, the means of exact areas: every texel is cut into as many pieces as there will be texels."""
    size = image.shape[axis]
    half = max(size // 2, 1)
    pieces = np.moveaxis(np.repeat(image, half, axis=axis), axis, 0)
    return np.moveaxis(pieces.reshape(half, size, *pieces.shape[1:]).mean(1), 0, axis)


@BACKENDS
@SIZES
def test_levels_are_means_of_areas(ops, size):
    image = torch.rand(*size, 3, generator=seeded(12), dtype=torch.float64)
    levels = ops.mipmap(image).levels
    assert torch.equal(levels[0], image)
    assert levels[-1].shape == (1, 1, 3)
    for finer, coarser in itertools.pairwise(levels):
        torch.testing.assert_close(coarser, torch.from_numpy(shrunk(shrunk(finer.numpy(), 0), 1)))
        torch.testing.assert_close(coarser.mean((0, 1)), image.mean((0, 1)))
        if all(n % 2 == 0 for n in finer.shape[:2]):
            quads = [finer[i::2, j::2] for i in (0, 1) for j in (0, 1)]
            torch.testing.assert_close(coarser, sum(quads) / 4)


def points(count, generator, dtype=torch.float64):
    return torch.rand(count, 2, generator=generator, dtype=dtype) * 3 - 1


@BACKENDS
@WRAPS
@SIZES
def test_whole_levels_are_bilinear_look_ups(ops, size, wrap):
    """Of the picture itself at level 0 and below, of the smaller ones, and of its mean from the last level on."""
    image, uv = torch.rand(*size, 3, generator=seeded(13)), points(50, seeded(14), torch.float32)
    pyramid = ops.mipmap(image)

    def at(lod):
        return ops.texture(image, uv, wrap, torch.tensor(lod))

    for lod in (0.0, -1.5, -math.inf, math.nan):
        assert torch.equal(at(lod), ops.texture(image, uv, wrap))
    for lod, level in enumerate(pyramid.levels):
        assert torch.equal(at(float(lod)), ops.texture(level, uv, wrap))
    for lod in (len(pyramid.sizes) - 1.0, 40.0, math.inf):
        torch.testing.assert_close(at(lod), image.mean((0, 1)).expand(50, 3))
    assert torch.equal(ops.texture(pyramid, uv, wrap), ops.texture(image, uv, wrap))
    assert torch.equal(ops.texture(pyramid, uv, wrap, torch.tensor(0.7)), at(0.7))


@BACKENDS
@WRAPS
def test_between_levels_colours_are_mixed(ops, wrap):
    image, uv = torch.rand(5, 12, 2, generator=seeded(15), dtype=torch.float64), points(40, seeded(16))
    lod = torch.rand(40, generator=seeded(17), dtype=torch.float64) * 5 - 1
    levels = [ops.texture(level, uv, wrap) for level in ops.mipmap(image).levels]
    for n, each in enumerate(lod.clamp(0, 3).tolist()):
        finer = min(int(each), 2)
        expected = (1 - (each - finer)) * levels[finer][n] + (each - finer) * levels[finer + 1][n]
        torch.testing.assert_close(ops.texture(image, uv, wrap, lod)[n], expected)


@BACKENDS
def test_a_ramp_is_a_ramp_at_every_level(ops):
    """Look-ups within the outermost texel centres of the coarsest level asked see no border."""
    place = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    v, u = torch.meshgrid(place, place, indexing="ij")
    uv = torch.rand(200, 2, generator=seeded(18), dtype=torch.float64) / 2 + 0.25
    lod = torch.rand(200, generator=seeded(19), dtype=torch.float64) * 4 - 1
    found = ops.texture(torch.stack([u, v, 3 * u - 2 * v + 1], dim=-1), uv, lod=lod)
    torch.testing.assert_close(found, torch.stack([*uv.unbind(-1), uv @ uv.new_tensor([3, -2]) + 1], dim=-1))


@BACKENDS
@WRAPS
@pytest.mark.parametrize("size", [(8, 8), (7, 5)], ids=str)
def test_every_grey_keeps_its_byte_at_every_level(ops, wrap, size):
    uv = points(40, seeded(20), torch.float32)
    lod = torch.rand(40, generator=seeded(21)) * 5 - 1
    greys = torch.arange(256.0)
    found = ops.texture((greys / 255).expand(*size, 256), uv, wrap, lod)
    assert torch.equal((found * 255).round(), greys.expand(40, 256))


@BACKENDS
@WRAPS
@pytest.mark.parametrize("size", [(4, 8), (5, 3)], ids=str)
def test_trilinear_look_ups_have_exact_gradients(ops, wrap, size):
    """To the picture through all levels, to the place, and to the level of detail, beyond its range too."""
    image = torch.rand(*size, 2, generator=seeded(22), dtype=torch.float64, requires_grad=True)
    uv = points(12, seeded(23)).requires_grad_()
    lod = (torch.rand(12, generator=seeded(24), dtype=torch.float64) * 5 - 1).requires_grad_()
    assert (lod < 0).any()
    assert (lod > 3).any()
    assert torch.autograd.gradcheck(lambda image, uv, lod: ops.texture(image, uv, wrap, lod), (image, uv, lod))


@WRAPS
@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trilinear", [False, True], ids=["bilinear", "trilinear"])
def test_backends_agree(dtype, size, wrap, trilinear):
    image = torch.rand(*size, 3, generator=seeded(25), dtype=dtype)
    uv = points(300, seeded(26), dtype).view(2, 150, 2)
    lod = torch.rand(2, 150, generator=seeded(27), dtype=dtype) * 6 - 1
    lod[0, :8] = torch.arange(8.0) - 2  # whole levels, and the ends of the range
    weight = torch.randn(2, 150, 3, generator=seeded(28), dtype=dtype)
    results = []
    for ops in (torch_ops, cpu_ops):
        inputs = [each.clone().requires_grad_() for each in ((image, uv, lod) if trilinear else (image, uv))]
        found = ops.texture(*inputs[:2], wrap, *inputs[2:])
        results.append([found.detach(), *torch.autograd.grad((weight * found).sum(), inputs)])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, **({"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}))


@BACKENDS
def test_a_mipmap_is_made_once_for_many_look_ups(ops):
    image = torch.rand(6, 7, 2, generator=seeded(29), dtype=torch.float64, requires_grad=True)
    uv = points(20, seeded(30)).view(2, 10, 2)
    lod = torch.rand(2, 10, generator=seeded(31), dtype=torch.float64) * 3
    pyramid = ops.mipmap(image)
    apart = torch.stack([ops.texture(pyramid, *each) for each in zip(uv, ["clamp"] * 2, lod, strict=True)])
    together = ops.texture(image, uv, lod=lod)
    assert torch.equal(apart, together)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), image) for each in (apart, together)))


def test_any_number_of_threads_looks_up_the_same_bytes():
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        inputs = [
            torch.rand(41, 64, 3, generator=seeded(32)),
            points(5000, seeded(33), torch.float32),
            torch.rand(5000, generator=seeded(34)) * 6,
        ]
        image, uv, lod = (each.requires_grad_() for each in inputs)
        found = cpu_ops.texture(image, uv, "repeat", lod)
        results.append([found, *torch.autograd.grad(found.square().sum(), inputs)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_level_of_detail_is_the_longer_axis_of_the_footprint():
    """The largest singular value of the derivatives in texels, by the singular value decomposition."""
    derivatives = torch.randn(100, 2, 2, generator=seeded(35), dtype=torch.float64) * 0.1
    texels = derivatives * torch.tensor([[64.0], [256.0]], dtype=torch.float64)
    found = torch_ops.level_of_detail(derivatives, 256, 64)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(texels, 2).log2())
    square = torch.eye(2) / 32  # pixels as large as texels; then as large as those of the second level, turned
    assert torch_ops.level_of_detail(square, 32, 32) == 0
    assert torch_ops.level_of_detail(4 * square.flip(0), 32, 32) == 2
    nothing = torch_ops.level_of_detail(torch.zeros(2, 2), 32, 32)
    assert nothing.isfinite()
    assert nothing < 0


def floor(ops, height, width, filtered):
    """A picture of a chequered floor, 40 squares of 8 x 8 texels a side, seen until far away; and what is covered."""
    camera = Cameras(*torch.tensor([[0.5], [0.35], [1.2], [0.9]]))
    corners = torch.tensor([[-4.0, -0.3, -4.0], [4.0, -0.3, -4.0], [4.0, -0.3, 4.0], [-4.0, -0.3, 4.0]])
    clip = functional.pad(corners, (0, 1), value=1.0) @ camera.clip_from_world(width / height).mT
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uvs = (corners[:, [0, 2]] + 4) / 8
    square = torch.arange(320) // 8 % 2
    image = (square[:, None] != square).float()[..., None]
    fragments = ops.rasterize(clip, faces, height, width)
    uv, covered = ops.interpolate(uvs, faces, fragments), fragments.face >= 0
    derivatives = ops.screen_derivatives(uvs, faces, clip, faces, fragments)
    lod = ops.level_of_detail(derivatives, 320, 320) if filtered else None
    return ops.texture(image, uv, lod=lod)[..., 0], covered


@BACKENDS
def test_a_minified_chequered_floor_does_not_alias(ops):
    """Against 24 x 24 samples a pixel."""
    exact, covered = floor(cpu_ops, 48 * 24, 64 * 24, filtered=False)
    covered = functional.avg_pool2d(covered.float(), 24) == 1
    exact = functional.avg_pool2d(exact, 24)[covered]
    assert 0.3 < covered.float().mean() < 1
    errors = [(floor(ops, 48, 64, filtered)[0][covered] - exact).square().mean().sqrt() for filtered in (False, True)]
    assert errors[1] < 0.6 * errors[0]
