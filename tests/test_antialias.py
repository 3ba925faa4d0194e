"""Differentiable silhouettes: closed forms, finite differences of supersampled pictures, parity of the backends."""

import math

import pytest
import torch
import trimesh
from cuda_on_cpu import CUDA
from torch.nn import functional

from threed.renderers import cpu_ops, torch_ops
from threed.renderers.camera import Cameras
from threed.renderers.torch_ops import Fragments

BACKENDS = pytest.mark.parametrize("ops", [pytest.param(torch_ops, id="torch"), pytest.param(cpu_ops, id="cpu"), CUDA])
SUPERSAMPLE = 12  # a side, for pictures that are differentiated numerically
CAMERA = Cameras(*torch.tensor([[0.4], [0.3], [3.5], [0.9]], dtype=torch.float64))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def flat(points, height, width, depth=0.0):
    """Clip positions [1 V 4] of points in pixels, x right and y down, with any w."""
    points = torch.as_tensor(points, dtype=torch.float64)
    x, y = 2 * points[:, 0] / width - 1, 1 - 2 * points[:, 1] / height
    w = 0.5 + torch.rand(len(points), 1, generator=seeded(0), dtype=torch.float64)
    depth = torch.as_tensor(depth, dtype=torch.float64).expand(len(points))
    return (torch.stack([x, y, depth, torch.ones_like(x)], dim=-1) * w)[None]


def clip_from(vertices, camera=CAMERA):
    return functional.pad(vertices, (0, 1), value=1.0) @ camera.clip_from_world(1.0).mT


def solid(mesh):
    return torch.tensor(mesh.vertices), torch.tensor(mesh.faces)


def soup(generator, dtype, views=2, vertices=60, triangles=40):
    """Random triangles, many of them crossing each other and the plane of the camera."""
    clip = torch.randn(views, vertices, 4, generator=generator, dtype=dtype)
    clip[..., 3] = torch.rand(views, vertices, generator=generator, dtype=dtype) * 2 - 0.3
    return clip, torch.randint(0, vertices, (triangles, 3), generator=generator)


def specks(generator, dtype, size, views=2, number=30):
    """Squares smaller than a pixel around the centres of pixels."""
    columns, rows = (torch.randint(0, n, (views, number, 1), generator=generator) + 0.5 for n in size[::-1])
    reach = 0.1 + 0.25 * torch.rand(views, number, 4, 2, generator=generator)
    corners = torch.stack([columns, rows], dim=-1) + reach * torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    depths = torch.rand(views, number * 4, generator=generator)
    clip = torch.cat([flat(each, *size, depth) for each, depth in zip(corners.flatten(1, 2), depths, strict=True)])
    first = 4 * torch.arange(number)[:, None, None]
    return clip.to(dtype), (first + torch.tensor([[0, 1, 2], [0, 2, 3]])).view(-1, 3)


def drawn(ops, clip, faces, colours, height, width):
    """An antialiased picture with a colour for the background and one for each face."""
    fragments = cpu_ops.rasterize(clip.detach(), faces, height, width)
    return ops.antialias(colours[fragments.face.long() + 1], clip, fragments, ops.edges(faces))


def compare(vertices_of, faces, colours, size, parameters=(0.0,), step=0.02, camera=CAMERA):
    """The gradients of a smoothly weighted picture by the parameters, and what central differences say they are."""
    weight = torch.randn(1, 3, 5, 5, generator=seeded(1), dtype=torch.float64)
    weight = 1 + functional.interpolate(weight, (size, size), mode="bicubic")[0].movedim(0, -1)
    at = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)

    def gradient(ops):
        picture = drawn(ops, clip_from(vertices_of(at), camera), faces, colours, size, size)[0]
        return torch.autograd.grad((weight * picture).sum(), at)[0]

    def supersampled(parameters):
        clip = clip_from(vertices_of(parameters), camera)
        face = cpu_ops.rasterize(clip, faces, size * SUPERSAMPLE, size * SUPERSAMPLE).face
        samples = colours[face.long() + 1].movedim(-1, 1)
        return (weight * functional.avg_pool2d(samples, SUPERSAMPLE)[0].movedim(0, -1)).sum()

    steps = torch.eye(len(at), dtype=torch.float64) * step
    expected = [(supersampled(at.detach() + d) - supersampled(at.detach() - d)) / (2 * step) for d in steps]
    return gradient(torch_ops), gradient(cpu_ops), torch.stack(expected)


def palette(*counts):
    """A random colour for the background and for each of several objects of so many faces."""
    colours = torch.rand(len(counts) + 1, 3, generator=seeded(2), dtype=torch.float64)
    return colours.repeat_interleave(torch.tensor([1, *counts]), dim=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (17, 33)])
@pytest.mark.parametrize("small", [False, True], ids=["soup", "specks"])
def test_backends_agree(dtype, size, small):
    clip, faces = specks(seeded(3), dtype, size) if small else soup(seeded(3), dtype)
    fragments = torch_ops.rasterize(clip, faces, *size)
    colour = torch.rand(2, *size, 3, generator=seeded(4), dtype=dtype)
    weight = torch.randn(2, *size, 3, generator=seeded(5), dtype=dtype)
    results = []
    for ops in (torch_ops, cpu_ops):
        inputs = colour.clone().requires_grad_(), clip.clone().requires_grad_()
        picture = ops.antialias(*inputs, fragments, ops.edges(faces))
        results.append([picture.detach(), *torch.autograd.grad((weight * picture).sum(), inputs)])
    if size == (17, 33):
        assert (results[0][0] != colour).any(-1).sum() > 30
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)
    # Mixtures stay within the range of the picture, whatever crosses them.
    assert (results[0][0] <= colour.amax((1, 2), keepdim=True) + 1e-6).all()
    assert (results[0][0] >= colour.amin((1, 2), keepdim=True) - 1e-6).all()


@BACKENDS
@pytest.mark.parametrize("small", [False, True], ids=["soup", "specks"])
def test_gradients_are_exact(ops, small):
    size = (5, 6)
    generator = seeded(6)
    clip, faces = specks(generator, torch.float64, size, 1, 6) if small else soup(generator, torch.float64, 1, 12, 12)
    fragments = torch_ops.rasterize(clip, faces, *size)
    colour = torch.rand(1, *size, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    table = ops.edges(faces)
    assert (ops.antialias(colour, clip, fragments, table) != colour).any(-1).sum() > 4
    clip = clip.requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: ops.antialias(*inputs, fragments, table), (colour, clip))


@BACKENDS
@pytest.mark.parametrize("transposed", [False, True], ids=["steep", "level"])
@pytest.mark.parametrize("turned", [False, True], ids=["front", "back"])
def test_a_straight_outline_covers_its_area(ops, transposed, turned):
    """A strip between two steep lines covers, row by row, the distance of the lines; so do strips along the rows."""
    size = 24
    corners = torch.tensor([[5.3, -3.0], [9.1, 30.0], [17.2, 28.0], [20.9, -2.0]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    clip = flat(corners.flip(1) if transposed else corners, size, size).requires_grad_()
    colours = torch.tensor([[0.25], [1.0], [1.0]], dtype=torch.float64)
    picture = drawn(ops, clip, faces.flip(1) if turned else faces, colours, size, size)[0, ..., 0]
    lengths = (picture - 0.25).sum(0 if transposed else 1) / 0.75
    centre = torch.arange(size).double() + 0.5
    tops, bottoms = corners[[0, 3]], corners[[1, 2]]
    reach = (centre[:, None] - tops[:, 1]) / (bottoms - tops)[:, 1]  # from the upper corner of a side to the lower one
    left, right = (tops[:, 0] + reach * (bottoms - tops)[:, 0]).unbind(1)
    torch.testing.assert_close(lengths, right - left)

    (gradient,) = torch.autograd.grad(lengths.sum(), clip)
    by_pixel = (-2 if transposed else 2) / size * clip.detach()[0, :, 3] * gradient[0, :, 1 if transposed else 0]
    upper, lower = (1 - reach).sum(0), reach.sum(0)
    torch.testing.assert_close(by_pixel, torch.stack([-upper[0], -lower[0], lower[1], upper[1]]))
    assert (gradient[..., 2] == 0).all()
    # Nor does it matter how large the homogeneous coordinates of a vertex are.
    torch.testing.assert_close((gradient * clip.detach()).sum(-1), torch.zeros(1, 4, dtype=torch.float64))


@BACKENDS
def test_an_edge_of_45_degrees_counts_once(ops):
    points = torch.tensor([[2.25, -6.0], [26.25, 18.0], [29.5, 18.0], [5.5, -6.0]], dtype=torch.float64)
    clip = flat(points, 16, 16)
    clip = clip / clip[..., 3:]  # so that nothing is rounded
    colours = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    picture = drawn(ops, clip, torch.tensor([[0, 1, 2], [0, 2, 3]]), colours, 16, 16)
    torch.testing.assert_close(picture[0, :4].sum((1, 2)), torch.full((4,), 3.25, dtype=torch.float64))


@pytest.mark.parametrize("count", [(7, 12), (36, 36)], ids=["288 triangles", "4896 triangles"])
@pytest.mark.parametrize("size", [48, 128])
def test_the_area_of_a_sphere_grows_as_it_should(count, size):
    vertices, faces = solid(trimesh.creation.uv_sphere(count=count))
    colours = torch.ones(len(faces) + 1, 3, dtype=torch.float64)
    colours[0] = 0
    *found, expected = compare(lambda p: vertices * (1 + p), faces, colours, size)
    for gradient in found:
        torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0)


def pose(vertices, parameters):
    """Turn by a rotation vector, then move, then scale the vertices: seven parameters."""
    x, y, z = parameters[:3]
    none = torch.zeros_like(x)
    turn = torch.stack([none, -z, y, z, none, -x, -y, x, none]).view(3, 3)
    return (vertices @ torch.linalg.matrix_exp(turn).mT + parameters[3:6]) * (1 + parameters[6])


@pytest.mark.parametrize("sections", [(24, 12), (60, 42)], ids=["1152 triangles", "10080 triangles"])
def test_linked_tori_move_as_finite_differences_say(sections):
    """Two tori that hide parts of each other; one of them moves."""
    ring, faces = solid(trimesh.creation.torus(1.0, 0.4, *sections))
    other = ring[:, [0, 2, 1]] + torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    faces = torch.cat([faces, faces + len(ring)])
    *found, expected = compare(
        lambda parameters: torch.cat([pose(ring, parameters), other]) * 0.7,
        faces,
        palette(len(faces) // 2, len(faces) // 2),
        size=128,
        parameters=(0.1, 0.2, 0.3, -0.4, 0.0, 0.0, 0.0),
    )
    for gradient in found:
        assert (gradient - expected).norm() < 0.05 * expected.norm()
        assert torch.cosine_similarity(gradient, expected, dim=0) > 0.998


@BACKENDS
def test_a_hidden_outline_has_no_gradient(ops):
    vertices, faces = solid(trimesh.creation.icosphere(2))
    wall = torch.tensor([[-9.0, -9.0, 2.0], [9.0, -9.0, 2.0], [0.0, 18.0, 2.0]], dtype=torch.float64)
    camera = Cameras(*torch.tensor([[0.0], [0.0], [5.0], [0.9]], dtype=torch.float64))
    clip = clip_from(torch.cat([vertices, wall]), camera).requires_grad_()
    faces = torch.cat([faces, torch.tensor([[0, 1, 2]]) + len(vertices)])
    colours = torch.rand(len(faces) + 1, 3, generator=seeded(9), dtype=torch.float64)
    picture = drawn(ops, clip, faces, colours, 32, 32)
    (gradient,) = torch.autograd.grad(picture.square().sum(), clip)
    assert torch.equal(picture, colours[-1].expand_as(picture))
    assert (gradient == 0).all()


def test_edges_that_run_behind_the_camera_have_exact_gradients():
    """A road from far before the camera to behind it, whose near corners alone move: sideways, up and along it."""
    camera = Cameras(*torch.tensor([[0.0], [0.25], [2.0], [1.2]], dtype=torch.float64))
    road = torch.tensor([[-0.5, -0.5, 6.0], [0.4, -0.5, 6.0], [0.6, -0.5, -9.0], [-0.8, -0.5, -9.0]]).double()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert (clip_from(road, camera)[0, :2, 3] < 0).all()
    *found, expected = compare(
        lambda p: torch.cat([road[:2] + p, road[2:]]),
        faces,
        palette(2),
        size=64,
        step=0.1,
        parameters=(0.0, 0.0, 0.0),
        camera=camera,
    )
    assert expected[:2].abs().min() > 1
    for gradient in found:
        assert (gradient - expected).norm() < 0.03 * expected.norm()


@BACKENDS
def test_what_is_behind_the_camera_has_no_outline(ops):
    """Not even where its mirror image would have one."""
    clip, faces = flat([[2.3, -9.0], [2.6, 20.0], [6.2, -9.0]], 8, 8), torch.tensor([[0, 1, 2]])
    fragments = ops.rasterize(clip, faces, 8, 8)
    colour = torch.rand(1, 8, 8, 3, generator=seeded(17), dtype=torch.float64)
    assert not torch.equal(ops.antialias(colour, clip, fragments, ops.edges(faces)), colour)
    fragments = Fragments(fragments.face, fragments.barycentric, 0.9 * (fragments.face >= 0))  # its sides are mirrored
    assert torch.equal(ops.antialias(colour, -clip, fragments, ops.edges(faces)), colour)


def wall(size):
    """Clip positions and faces of a leaning wall of two triangles a pixel, beyond the border of the picture."""
    lattice = torch.cartesian_prod(torch.arange(-1, size + 2), torch.arange(-1, size + 2)).double()
    points = lattice + torch.rand(lattice.shape, generator=seeded(10), dtype=torch.float64) * 0.4
    clip = flat(points, size, size, 0.5 + 0.01 * lattice.sum(1))
    stride = size + 3
    i, j = (index.reshape(-1, 1) for index in torch.meshgrid(*[torch.arange(stride - 1)] * 2, indexing="ij"))
    corner = i * stride + j
    return clip, (corner + torch.tensor([[0, 1, stride, 1, stride + 1, stride]])).view(-1, 3)


@BACKENDS
def test_a_sheet_thinner_than_a_pixel_counts_where_it_is_seen(ops):
    """It covers its width of a pixel whose centre sees it, and is unknown, not wrong, elsewhere."""
    size, width = 12, 0.3
    behind, faces = wall(size)
    faces = torch.cat([faces, torch.tensor([[0, 1, 2], [0, 2, 3]]) + behind.shape[1]])
    colours = torch.zeros(len(faces) + 1, 1, dtype=torch.float64)
    colours[1:-2] = torch.rand(len(faces) - 2, 1, generator=seeded(11), dtype=torch.float64)  # every face its own
    colours[-2:] = 2
    seen = 0
    for left in torch.linspace(5.01, 5.97, 20).tolist():
        strip = [[left, -2.0], [left, 14.0], [left + width, 14.0], [left + width, -2.0]]
        clip = torch.cat([behind, flat(strip, size, size, -0.2)], dim=1).requires_grad_()
        picture = drawn(ops, clip, faces, colours, size, size)
        (gradient,) = torch.autograd.grad(picture.sum(), clip)
        plain = colours[cpu_ops.rasterize(clip.detach()[:, :-4], faces[:-2], size, size).face.long() + 1]
        assert (gradient[0, :-4] == 0).all()  # a wall without an outline in the picture
        if left < 5.5 < left + width:
            seen += 1
            beside = plain[0, :, [4, 6], 0]
            shares = torch.tensor([5.5 - left, left + width - 5.5], dtype=torch.float64)
            torch.testing.assert_close(picture[0, :, 5, 0], 2 + ((0.5 - shares) * (beside - 2)).sum(1))
            moved = (gradient[0, -4:, 0] * clip.detach()[0, -4:, 3]).view(2, 2).sum(1) * 2 / size  # by pixel, each side
            torch.testing.assert_close(moved, (2 - beside).sum(0) * torch.tensor([-1.0, 1.0], dtype=torch.float64))
        else:
            assert torch.equal(picture, plain)
            assert (gradient == 0).all()
    assert seen > 4


FLOOR = torch.tensor([[-9.0, 0.0, -9.0], [9.0, 0.0, -9.0], [9.0, 0.0, 9.0], [-9.0, 0.0, 9.0]], dtype=torch.float64)
CARD = torch.tensor([[-0.6, -0.7, 0.1], [0.7, -0.6, 0.2], [0.5, 0.8, -0.1], [-0.5, 0.7, -0.2]], dtype=torch.float64)
STANDING = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
ABOVE = Cameras(*torch.tensor([[0.2], [0.5], [2.5], [0.7]], dtype=torch.float64))


def test_a_card_through_a_floor_has_an_outline_above_it_only():
    def wider(parameters):
        return torch.cat([FLOOR, CARD + parameters * CARD * torch.tensor([1.0, 0.0, 0.0])])

    *found, expected = compare(wider, STANDING, palette(2, 2), size=64, camera=ABOVE)
    for gradient in found:
        torch.testing.assert_close(gradient, expected, rtol=0.03, atol=0)


@BACKENDS
def test_the_line_where_surfaces_intersect_is_left_alone(ops):
    clip = clip_from(torch.cat([FLOOR, CARD * 9]), ABOVE).requires_grad_()
    colours = palette(2, 2)
    picture = drawn(ops, clip, STANDING, colours, 16, 16)
    assert torch.equal(picture.detach().flatten(0, 2).unique(dim=0), colours[1::2][colours[1::2, 0].argsort()])
    (gradient,) = torch.autograd.grad(picture.square().sum(), clip)
    assert (gradient == 0).all()


@BACKENDS
@pytest.mark.parametrize("axis", [0, 1])
def test_an_outline_that_leaves_the_picture(ops, axis):
    """Exact between the outermost centres, and without gradient beyond them, where it moves between no two pixels."""
    size = 8
    for place in (-3.0, -0.2, 0.3, 0.5, 0.7, 3.2, 7.4, 7.5, 7.7, 8.2, 12.0):
        points = torch.tensor([[place, -30.0], [place, 40.0], [40.0, 40.0], [40.0, -30.0]]).roll(axis, 1)
        clip = flat(points, size, size).requires_grad_()
        faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
        colours = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
        lengths = drawn(ops, clip, faces, colours, size, size)[0, ..., 0].sum(1 - axis)
        (gradient,) = torch.autograd.grad(lengths.sum(), clip)
        moved = (gradient[0, :2, axis] * clip.detach()[0, :2, 3]).sum() * (2 if axis == 0 else -2) / size
        inside = 0.5 < place <= size - 0.5
        covered = size - place if inside else size * (place < 1)
        torch.testing.assert_close(lengths.detach(), torch.full((size,), covered, dtype=torch.float64))
        torch.testing.assert_close(moved, torch.tensor(-size * float(inside), dtype=torch.float64))


@BACKENDS
def test_face_ids_are_exact(ops):
    """Faces 2**24 and 2**24 + 1, which are one number in float32, are two."""
    clip, faces = soup(seeded(12), torch.float64, views=1, triangles=2)
    fragments = torch_ops.rasterize(clip, faces, 20, 20)
    colour = torch.rand(1, 20, 20, 3, generator=seeded(13), dtype=torch.float64)
    far = Fragments(fragments.face + 2**24 + 1, fragments.barycentric, fragments.depth)
    pictures = [ops.antialias(colour, clip, each, ops.edges(faces)) for each in (fragments, far)]
    assert not torch.equal(pictures[0], colour)
    assert torch.equal(*pictures)


@BACKENDS
def test_what_cannot_be_drawn_changes_nothing(ops):
    broken = [[0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [math.nan, 0, 0, 1], [math.inf, 1, 0, 1], [0, 0, 0, 0]]
    clip = torch.tensor([[*broken, [0, 0, 0, math.inf], [0.5, 0.5, 0, -1]]], requires_grad=True)
    faces = torch.combinations(torch.arange(8), 3)
    faces = torch.cat([faces[(faces > 2).any(1)], torch.tensor([[0, 0, 0], [0, 0, 1]])])
    fragments = ops.rasterize(clip.detach(), torch.tensor([[0, 1, 2]]), 9, 9)
    colour = torch.rand(1, 9, 9, 3, generator=seeded(14))
    picture = ops.antialias(colour, clip, fragments, ops.edges(faces[1:]))
    picture.sum().backward()
    assert picture.isfinite().all()
    assert clip.grad.isfinite().all()
    assert torch.equal(ops.antialias(colour, clip, fragments, ops.edges(faces[:0])), colour)


def test_what_does_not_belong_together_is_refused():
    fragments = cpu_ops.rasterize(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), 4, 4)
    with pytest.raises(IndexError, match="vertex 3 among 3 vertices"):
        cpu_ops.antialias(
            torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4), fragments, cpu_ops.edges(torch.tensor([[0, 1, 3]]))
        )
    with pytest.raises(ValueError, match=r"\(1, 5, 4, 3\)"):
        cpu_ops.antialias(
            torch.zeros(1, 5, 4, 3), torch.zeros(1, 3, 4), fragments, cpu_ops.edges(torch.tensor([[0, 1, 2]]))
        )


def test_any_number_of_threads_mixes_the_same_bytes():
    clip, faces = soup(seeded(15), torch.float32)
    colour = torch.rand(2, 50, 70, 3, generator=seeded(16))
    fragments = cpu_ops.rasterize(clip, faces, 50, 70)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        inputs = colour.clone().requires_grad_(), clip.clone().requires_grad_()
        picture = cpu_ops.antialias(*inputs, fragments, cpu_ops.edges(faces))
        results.append([picture, *torch.autograd.grad(picture.square().sum(), inputs)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
