"""Charts against a brute-force raster: inside the square, apart, never twice on a texel, evenly dense."""

import os

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from threed.exporters import unwrap as module
from threed.exporters.unwrap import LARGE, MOST_FACES, unwrap
from threed.renderers.mesh import Mesh

SIZE = 256


def bumpy(detail=3, scale=1.0):
    shape = trimesh.creation.icosphere(detail)
    x, y, z = shape.vertices.T
    radius = 1 + 0.25 * np.sin(4 * x + 1) * np.cos(5 * y) * np.sin(3 * z + 2)
    vertices = torch.tensor(shape.vertices * radius[:, None] * scale, dtype=torch.float32)
    return Mesh(vertices, torch.tensor(np.array(shape.faces)))


def torus():
    shape = trimesh.creation.torus(1.0, 0.4, major_sections=48, minor_sections=24)
    return Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(np.array(shape.faces)))


SHAPES = {"bumpy": bumpy(), "torus": torus(), "tiny": bumpy(2, 1e-4), "huge": bumpy(2, 1e4)}


def charts(uv_faces):
    """The chart of each triangle: triangles that share a UV."""
    a, b = np.concatenate([uv_faces[:, [0, 1]], uv_faces[:, [1, 2]]]).T
    links = coo_array((np.ones(len(a)), (a, b)), shape=(uv_faces.max() + 1,) * 2)
    return connected_components(links, directed=False)[1][uv_faces[:, 0]]


def touched(triangles, size):
    """For each triangle [F 3 2] in texels, the texels [row, column] whose centre is strictly inside."""
    for corners in triangles:
        low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
        edges = np.roll(corners, -1, axis=0) - corners
        sides = [e[0] * (y + 0.5 - c[1]) - e[1] * (x + 0.5 - c[0]) for e, c in zip(edges, corners, strict=True)]
        inside = (np.array(sides) > 1e-4).all(0) | (np.array(sides) < -1e-4).all(0)
        assert low.min() >= 0
        assert high.max() <= size
        yield y[inside], x[inside]


@pytest.fixture(scope="module", params=[*SHAPES, "large"])
def layout(request):
    """`large` takes the way of large meshes with a small one."""
    mesh = SHAPES.get(request.param, SHAPES["bumpy"])
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "large":
            patch.setattr(module, "LARGE", 0)
        return mesh, *unwrap(mesh, SIZE)


def test_uvs_lie_in_the_square_one_for_each_corner(layout):
    mesh, uvs, uv_faces = layout
    assert uvs.dtype == torch.float32
    assert uv_faces.dtype == torch.int64
    assert uv_faces.shape == mesh.faces.shape
    assert uvs.min() >= 0
    assert uvs.max() <= 1
    assert uv_faces.unique().tolist() == list(range(len(uvs)))


def test_a_uv_belongs_to_one_position(layout):
    mesh, uvs, uv_faces = layout
    pairs = torch.stack([uv_faces.reshape(-1), mesh.faces.reshape(-1)]).unique(dim=1)
    assert pairs.shape[1] == len(uvs)


def test_no_texel_is_covered_twice_and_charts_keep_their_gutter(layout):
    _, uvs, uv_faces = layout
    triangles, chart = (uvs.double() * SIZE)[uv_faces].numpy(), charts(uv_faces.numpy())
    owner = np.full((SIZE, SIZE), -1)
    for piece, (rows, columns) in zip(chart, touched(triangles, SIZE), strict=True):
        assert (owner[rows, columns] == -1).all()
        owner[rows, columns] = piece
    for piece in range(chart.max() + 1):
        others = (owner >= 0) & (owner != piece)
        if (owner == piece).any() and others.any():
            # Texels whose centres are d apart have d - 1 free ones between them.
            assert distance_transform_edt(~others)[owner == piece].min() - 1 >= 4


def test_texels_are_spread_evenly(layout):
    """The same number of texels to a metre everywhere."""
    mesh, uvs, uv_faces = layout
    flat = torch.nn.functional.pad(uvs.double() * SIZE, (0, 1))[uv_faces]
    texels, metres = (
        (c[:, 1] - c[:, 0]).cross(c[:, 2] - c[:, 0], dim=-1).norm(dim=-1) for c in (flat, mesh.corners.double())
    )
    assert (texels > 0).all()
    density = (texels / metres).sqrt()
    low, middle, high = density.quantile(density.new_tensor([0.02, 0.5, 0.98]))
    assert high / middle < 1.5
    assert low / middle > 1 / 1.5
    assert texels.sum() / 2 > 0.3 * SIZE**2


def test_few_charts_of_few_triangles(layout):
    """A confetti of charts wastes gutters and shows its seams."""
    mesh, _, uv_faces = layout
    assert charts(uv_faces.numpy()).max() + 1 <= len(mesh.faces) / 25


def test_a_wider_gutter_is_kept_too():
    uvs, uv_faces = unwrap(bumpy(), SIZE, gutter=9)
    chart, texels = charts(uv_faces.numpy()), (uvs.double() * SIZE).numpy()
    owner = np.zeros(len(uvs), int)
    owner[uv_faces.numpy()] = chart[:, None]
    between = np.linalg.norm(texels[:, None] - texels, axis=-1)[owner[:, None] != owner]
    assert between.min() >= 9


def test_the_same_mesh_gives_the_same_layout():
    first, second = unwrap(bumpy(), SIZE), unwrap(bumpy(), SIZE)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_large_meshes_get_charts_of_their_own(monkeypatch):
    """Counted in triangles, from one more than LARGE on."""
    mesh, layouts = torus(), []
    for large in (MOST_FACES, len(mesh.faces), len(mesh.faces) - 1):
        monkeypatch.setattr(module, "LARGE", large)
        layouts.append(unwrap(mesh, SIZE)[1])
    assert torch.equal(layouts[0], layouts[1])
    assert not torch.equal(layouts[1], layouts[2])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to hold it to one core")
def test_the_threads_of_xatlas_do_not_show():
    """Two bodies are two tasks; held to one core, its threads take turns at what they did beside each other."""
    ball = bumpy(4)
    pair = Mesh(torch.cat([ball.vertices, ball.vertices + 3]), torch.cat([ball.faces, ball.faces + len(ball.vertices)]))
    assert len(pair.faces) > LARGE
    cores = os.sched_getaffinity(0)
    many = unwrap(pair, 2 * SIZE)
    try:
        os.sched_setaffinity(0, {min(cores)})
        one = unwrap(pair, 2 * SIZE)
    finally:
        os.sched_setaffinity(0, cores)
    assert torch.equal(many[0], one[0])
    assert torch.equal(many[1], one[1])


def test_a_texture_too_small_is_refused():
    with pytest.raises(ValueError, match="do not fit 8 texels with a gutter of 4; use a larger texture"):
        unwrap(bumpy(), 8)


def test_more_triangles_than_xatlas_survives_are_refused():
    faces = torch.zeros(MOST_FACES + 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="cannot unwrap 60001 triangles; simplify to at most 60000 first"):
        unwrap(Mesh(torch.zeros(1, 3), faces), 64)
