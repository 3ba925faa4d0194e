"""Rasterisation and interpolation: both backends against closed forms and against each other."""

import itertools
import math

import pytest
import torch
from cuda_on_cpu import CUDA
from scipy.spatial import Delaunay
from torch.nn import functional

from threed.renderers import cpu_ops, torch_ops
from threed.renderers.camera import Cameras, orbit

BACKENDS = pytest.mark.parametrize("ops", [pytest.param(torch_ops, id="torch"), pytest.param(cpu_ops, id="cpu"), CUDA])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def flat(points, height, width):
    """Clip positions [1 V 4] of points in pixels, x right and y down."""
    points = torch.as_tensor(points, dtype=torch.float64)
    x, y = 2 * points[:, 0] / width - 1, 1 - 2 * points[:, 1] / height
    return torch.stack([x, y, torch.zeros_like(x), torch.ones_like(x)], dim=-1)[None]


def clip_from(vertices, cameras, aspect=1.0):
    return functional.pad(vertices, (0, 1), value=1.0) @ cameras.clip_from_world(aspect).mT


def soup(generator, dtype, views=2, vertices=60, triangles=50):
    """Random triangles, many of them crossing the plane of the camera."""
    clip = torch.randn(views, vertices, 4, generator=generator, dtype=dtype)
    clip[..., 3] = torch.rand(views, vertices, generator=generator, dtype=dtype) * 2 - 0.3
    return clip, torch.randint(0, vertices, (triangles, 3), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (40, 24)])
def test_backends_draw_the_same_picture(dtype, size):
    clip, faces = soup(seeded(0), dtype)
    expected, found = (ops.rasterize(clip, faces, *size) for ops in (torch_ops, cpu_ops))
    assert (expected.face >= 0).double().mean() > 0.9
    assert torch.equal(found.face, expected.face)
    torch.testing.assert_close(found.depth, expected.depth)
    torch.testing.assert_close(found.barycentric, expected.barycentric)
    attribute = torch.randn(2, 60, 5, generator=seeded(1), dtype=dtype)
    torch.testing.assert_close(
        cpu_ops.interpolate(attribute, faces, expected), torch_ops.interpolate(attribute, faces, expected)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(15, 9), (16, 9), (17, 9), (33, 40), (100, 3)])
def test_no_triangle_is_lost_between_bands_of_rows(dtype, size):
    """Tall and flat ones, slivers, corners at pixel centres and borders, the same depth, in layers, in many views."""
    generator, views, count = seeded(13), 5, 120
    height, width = size
    corners = torch.rand(views, count, 3, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    corners[:, ::4, :, 0] = corners[:, ::4, :1, 0] + 0.1 * torch.rand(3, generator=generator, dtype=torch.float64)
    corners[:, 1::4, :, 1] = corners[:, 1::4, :1, 1] + 0.1 * torch.rand(3, generator=generator, dtype=torch.float64)
    corners = corners * torch.tensor([width, height])
    corners[:, ::3] = (2 * corners[:, ::3]).round() / 2
    depth = torch.randint(-3, 4, (views, count, 1, 1), generator=generator).expand(-1, -1, 3, -1) / 4
    tilted = torch.rand(views, count, 1, 1, generator=generator) < 0.5
    depth = torch.where(tilted, depth * corners[..., :1] / width, depth)
    w = 0.5 + torch.rand(views, count, 3, 1, generator=generator)
    clip = torch.cat([2 * corners / torch.tensor([width, height]) - 1, depth, torch.ones_like(depth)], dim=-1) * w
    clip, faces = clip.flatten(1, 2).to(dtype), torch.arange(3 * count).view(count, 3)
    expected, found = (ops.rasterize(clip, faces, height, width) for ops in (torch_ops, cpu_ops))
    assert (expected.face >= 0).double().mean() > 0.5
    assert torch.equal(found.face, expected.face)
    torch.testing.assert_close(found.depth, expected.depth)
    torch.testing.assert_close(found.barycentric, expected.barycentric)


@BACKENDS
@pytest.mark.parametrize("lattice", [True, False], ids=["through pixel centres", "anywhere"])
def test_a_triangulation_covers_every_pixel_exactly_once(ops, lattice):
    height, width = 12, 16
    points = torch.rand(60, 2, generator=seeded(2), dtype=torch.float64) * 24 - 4
    corners = torch.tensor([[-9.0, -9.0], [30.0, -9.0], [-9.0, 30.0], [30.0, 30.0]], dtype=torch.float64)
    points = torch.cat([(points * 2).round() / 2 if lattice else points, corners]).unique(dim=0)
    faces = torch.from_numpy(Delaunay(points.numpy()).simplices).long()
    faces[::2] = faces[::2].flip(1)  # both windings
    clip = flat(points, height, width)
    times = sum((ops.rasterize(clip, face[None], height, width).face >= 0).int() for face in faces)
    assert torch.equal(times, torch.ones_like(times))


@BACKENDS
def test_coverage_follows_the_top_left_rule(ops):
    """A rectangle whose border runs through pixel centres owns its left and top ones only."""
    height, width = 6, 7
    clip = flat([[1.5, 2.5], [4.5, 2.5], [4.5, 4.5], [1.5, 4.5]], height, width)
    face = ops.rasterize(clip, torch.tensor([[0, 1, 2], [0, 2, 3]]), height, width).face[0]
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[2:4, 1:4] = True
    assert torch.equal(face >= 0, expected)


def crossing(origin, direction, triangle):
    """Barycentrics of the first two corners and the distance where a ray meets a triangle's plane."""
    columns = torch.stack([triangle[0] - triangle[2], triangle[1] - triangle[2], -direction], dim=-1)
    return torch.linalg.solve(columns, origin - triangle[2])


@BACKENDS
def test_pixels_see_what_their_rays_meet(ops):
    """Perspective-correct barycentrics, depth and picture axes, from ray casting."""
    cameras = Cameras(*torch.tensor([[0.4, 2.5], [0.3, -0.6], [3.0, 2.6], [0.7, 0.9]], dtype=torch.float64))
    triangle = torch.tensor([[-0.9, -0.4, 0.8], [0.9, -0.6, -0.7], [0.1, 0.9, 0.2]], dtype=torch.float64)
    faces, height, width = torch.tensor([[0, 1, 2]]), 20, 31
    fragments = ops.rasterize(clip_from(triangle, cameras, width / height), faces, height, width)
    points = ops.interpolate(triangle, faces, fragments)
    origins, directions = cameras.rays(height, width)
    seen = 0
    for b, row, column in itertools.product(range(2), range(height), range(width)):
        u, v, distance = crossing(origins[b, row, column], directions[b, row, column], triangle)
        inside = min(u, v, 1 - u - v)
        if abs(inside) < 2e-3:  # snapping may decide
            continue
        assert (fragments.face[b, row, column] == 0) == (inside > 0)
        if inside > 0:
            seen += 1
            torch.testing.assert_close(fragments.barycentric[b, row, column], torch.stack([u, v]))
            hit = origins[b, row, column] + distance * directions[b, row, column]
            torch.testing.assert_close(points[b, row, column], hit)
            clip = clip_from(hit[None], cameras[b : b + 1])[0, 0]
            torch.testing.assert_close(fragments.depth[b, row, column], clip[2] / clip[3])
    assert seen > 100


@BACKENDS
def test_the_nearest_surface_wins_and_ties_go_to_the_lower_index(ops):
    square = torch.tensor([[-1.0, -1.0], [3.0, -1.0], [-1.0, 3.0]])
    depths = torch.tensor([0.5, -0.25, 1.5, -0.25, -1.5])  # the third is beyond the far plane, the last before the near
    clip = torch.cat([square.repeat(5, 1), depths.repeat_interleave(3)[:, None], torch.ones(15, 1)], dim=1)[None]
    fragments = ops.rasterize(clip, torch.arange(15).view(5, 3), 3, 5)
    assert (fragments.face == 1).all()
    assert (fragments.depth == -0.25).all()


@BACKENDS
def test_a_floor_that_runs_behind_the_camera_reaches_the_horizon(ops):
    cameras = Cameras(*torch.tensor([[0.3], [0.2], [2.0], [1.2]], dtype=torch.float64))
    far = 400.0
    floor = torch.tensor([[-far, -0.5, -far], [far, -0.5, -far], [far, -0.5, far], [-far, -0.5, far]])
    clip = clip_from(floor.double(), cameras)
    faces, size = torch.tensor([[0, 1, 2], [0, 2, 3]]), 64
    assert (clip[..., 3] < 0).any()
    covered = ops.rasterize(clip, faces, size, size).face[0] >= 0
    origins, directions = cameras.rays(size, size)
    distance = (-0.5 - origins[0, ..., 1]) / directions[0, ..., 1]
    depth = distance * (directions[0] @ -cameras.rotation[0, :, 2])
    expected = (distance > 0) & (depth > 0.1) & (depth < 100.0)
    assert torch.equal(covered, expected)
    assert 0.2 < covered.double().mean() < 0.9


@BACKENDS
def test_unusable_triangles_draw_nothing(ops):
    line = [[0, 0, 0, 1], [0.5, 0.5, 0, 1], [1, 1, 0, 1]]
    broken = [[math.nan, 0, 0, 1], [math.inf, 1, 0, 1]]
    outside = [[5, 5, 0, 1], [6, 5, 0, 1], [5, 6, 0, 1]]
    behind = [[0, 0, 0, 0], [-1, 0, 0, -1], [0, -1, 0, -1], [1, 1, 0, -1]]
    clip = torch.tensor([[*line, *broken, *outside, *behind]], dtype=torch.float32)
    faces = torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 3], [0, 2, 4], [5, 6, 7], [8, 8, 8], [9, 10, 11]])
    fragments = ops.rasterize(clip, faces, 8, 8)
    assert (fragments.face == -1).all()
    assert (fragments.depth == 1).all()
    assert (fragments.barycentric == 0).all()
    nothing = ops.rasterize(clip, faces[:0], 8, 8)
    assert (nothing.face == -1).all()


@BACKENDS
def test_faces_between_missing_vertices_are_refused(ops):
    with pytest.raises(IndexError):
        ops.rasterize(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]), 4, 4)


def test_any_number_of_threads_draws_the_same_bytes():
    vertices = functional.normalize(torch.randn(400, 3, generator=seeded(3)), dim=-1)
    faces = torch.randint(0, 400, (800, 3), generator=seeded(4))
    clip = clip_from(vertices, orbit(3))
    before = torch.get_num_threads()
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        attribute = vertices.clone().requires_grad_()
        fragments = cpu_ops.rasterize(clip, faces, 50, 70)
        values = cpu_ops.interpolate(attribute, faces, fragments)
        values.square().sum().backward()
        drawn.append([fragments.face, fragments.depth, fragments.barycentric, values, attribute.grad])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@BACKENDS
@pytest.mark.parametrize("shape", [(7, 3), (2, 7, 3)], ids=["shared", "per view"])
def test_interpolation_has_exact_gradients(ops, shape):
    clip, faces = soup(seeded(5), torch.float64, vertices=7, triangles=12)
    fragments = torch_ops.rasterize(clip, faces, 5, 4)
    assert 0.1 < (fragments.face >= 0).double().mean() < 1
    attribute = torch.randn(shape, generator=seeded(6), dtype=torch.float64, requires_grad=True)
    barycentric = fragments.barycentric.clone().requires_grad_()

    def values(attribute, barycentric):
        return ops.interpolate(attribute, faces, ops.Fragments(fragments.face, barycentric, fragments.depth))

    assert torch.autograd.gradcheck(values, (attribute, barycentric))


def shifted(clip, across, down, height, width):
    """What lies so many pixels to the right and down is moved to the pixel centres."""
    x, y, z, w = clip.unbind(-1)
    return torch.stack([x - 2 * across / width * w, y + 2 * down / height * w, z, w], dim=-1)


@BACKENDS
def test_derivatives_are_those_of_differences(ops):
    """Of an attribute with vertices of its own, on triangles of which many reach behind the camera."""
    height, width, step = 40, 31, 1e-4
    clip, faces = soup(seeded(7), torch.float64)
    attribute = torch.randn(150, 3, generator=seeded(8), dtype=torch.float64)
    own = torch.randperm(150, generator=seeded(9)).view(50, 3)
    fragments = ops.rasterize(clip, faces, height, width)
    found = ops.screen_derivatives(attribute, own, clip, faces, fragments)
    differences, same = [], fragments.face >= 0
    for direction in ((step, 0), (0, step)):
        ends = []
        for sign in (1, -1):
            moved = shifted(clip, *(sign * each for each in direction), height, width)
            there = torch_ops.rasterize(moved, faces, height, width)
            weights = torch.cat([there.barycentric, 1 - there.barycentric.sum(-1, keepdim=True)], dim=-1)
            same &= (there.face == fragments.face) & (weights > 1e-6).all(-1)  # and snapping moved nothing
            ends.append(torch_ops.interpolate(attribute, own, there))
        differences.append((ends[0] - ends[1]) / (2 * step))
    assert same.double().mean() > 0.8
    torch.testing.assert_close(found[same], torch.stack(differences, dim=-1)[same], rtol=1e-5, atol=1e-5)
    assert (found[fragments.face < 0] == 0).all()


@BACKENDS
def test_derivatives_of_the_picture_itself_are_one(ops):
    """In front of the camera, at any depth and tilt, where its coordinates in pixels are no plain interpolation."""
    height, width = 9, 14
    clip = flat([[-9.0, -3.0], [40.0, -2.0], [3.0, 30.0]], height, width)
    across = torch.cat([clip[0, :, :1] * width / 2, -clip[0, :, 1:2] * height / 2], dim=-1)
    faces = torch.tensor([[0, 1, 2]])
    found = ops.screen_derivatives(across, faces, clip, faces, ops.rasterize(clip, faces, height, width))
    torch.testing.assert_close(found, torch.eye(2, dtype=torch.float64).expand_as(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_find_the_same_derivatives(dtype):
    clip, faces = soup(seeded(10), dtype)
    attribute = torch.randn(60, 2, generator=seeded(11), dtype=dtype)
    fragments = torch_ops.rasterize(clip, faces, 17, 33)
    expected, found = (ops.screen_derivatives(attribute, faces, clip, faces, fragments) for ops in (torch_ops, cpu_ops))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@BACKENDS
def test_a_face_seen_edge_on_has_no_derivatives(ops):
    clip = torch.tensor([[[-1.0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1]]])
    faces, face = torch.tensor([[0, 1, 2]]), torch.zeros(1, 4, 4, dtype=torch.int32)
    fragments = ops.Fragments(face, torch.full((1, 4, 4, 2), 1 / 3), torch.zeros(1, 4, 4))
    found = ops.screen_derivatives(torch.rand(3, 2, generator=seeded(12)), faces, clip, faces, fragments)
    assert (found == 0).all()
