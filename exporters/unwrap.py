"""A texture atlas: charts cut, flattened and packed by xatlas.

UVs follow glTF: u right, v down, in [0, 1] over the whole texture. In texels the centre of the upper left one is at
(0.5, 0.5). Every corner of a triangle has its own index into the UVs, so positions stay welded across seams.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
import xatlas
from jaxtyping import Float, Int
from torch import Tensor

from threed.renderers.mesh import Mesh
from threed.renderers.ops import ops

MOST_FACES = 60_000  # xatlas 0.0.11 takes minutes for more, and ended the process on spheres of 81,920
LARGE = 10_000  # triangles, beyond which charts are grown to SMALL_COST
# How far a chart may be from flat and round. Whenever one grows by a triangle, xatlas looks at all of it again, so that
# large meshes pay for its own 2.0 with the square of their triangles, and get a layout that is hardly better.
SMALL_COST = 0.75
ROOM = 0.05  # of the texture, that a layout has to fill to be of use
OVERLAP = 0.05  # of what it fills, that it may fill twice
MOST_WORK = 2**28  # texels to look at for overlaps
_LATEST: deque[xatlas.Atlas] = deque(maxlen=2)


def unwrap(mesh: Mesh, texture_size: int, gutter: int = 4) -> tuple[Float[Tensor, "T 2"], Int[Tensor, "F 3"]]:
    """UVs and their indices corner by corner; charts keep `gutter` texels apart on a square of `texture_size` texels.

    Raises ValueError when the charts do not fit, and for more than MOST_FACES triangles.
    """
    if len(mesh.faces) > MOST_FACES:
        raise ValueError(f"cannot unwrap {len(mesh.faces)} triangles; simplify to at most {MOST_FACES} first")
    flat, uv_faces = _charts(mesh)
    share = 0.7  # of the square, about the most that the packer fills
    while share > 1e-3:
        scale = texture_size * np.sqrt(share / _area(flat, uv_faces))
        packed, indices, extent = _packed(flat, uv_faces, scale, gutter)
        if extent <= texture_size:
            uvs = torch.from_numpy(packed / texture_size).to(mesh.vertices)
            return uvs.clamp(0, 1), torch.from_numpy(indices).to(mesh.faces)
        share *= min((texture_size / extent) ** 2, 0.98)
    raise ValueError(f"the charts do not fit {texture_size} texels with a gutter of {gutter}; use a larger texture")


def has_room(uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"], texture_size: int) -> bool:
    """Whether a layout that came with a mesh can hold a new texture: it is not a palette's, and nothing overlaps."""
    area = _area(uvs.detach().cpu().double().numpy(), uv_faces.cpu().numpy())
    return area > ROOM and overlap(uvs, uv_faces, texture_size) < OVERLAP


def overlap(uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"], texture_size: int) -> float:
    """How much more area the triangles of a layout have than they cover, as a share of what they cover.

    0 where it covers nothing; parts outside [0, 1] count as lying on top of the rest. A layout larger than the texture
    is taken to cover all of it, and one of very many needles is looked at more coarsely.
    """
    area = _area(uvs.detach().cpu().double().numpy(), uv_faces.cpu().numpy())
    if area > 1 + OVERLAP:
        return area - 1
    boxes = uvs[uv_faces].amax(1) - uvs[uv_faces].amin(1)
    work = float(boxes.clamp(max=1).prod(dim=-1).sum())  # textures that the rasterizer walks through
    texture_size = min(texture_size, max(64, int((MOST_WORK / max(work, 1e-9)) ** 0.5)))
    clip = torch.nn.functional.pad(uvs.detach() * 2 - 1, (0, 2)) + uvs.new_tensor([0, 0, 0, 1])
    fragments = ops(uvs.device).rasterize(clip[None], uv_faces, texture_size, texture_size)
    covered = (fragments.face >= 0).float().mean().item()
    return area / covered - 1 if covered else 0.0


def _charts(mesh: Mesh) -> tuple[Float[np.ndarray, "T 2"], Int[np.ndarray, "F 3"]]:
    vertices = mesh.vertices.detach().cpu().numpy()
    # xatlas leaves out triangles below 1e-7 square units, so make the units small.
    size = np.ptp(vertices, axis=0).max()
    atlas = _atlas()
    atlas.add_mesh((vertices * (100 / size)).astype(np.float32), mesh.faces.cpu().numpy().astype(np.uint32))
    options = xatlas.ChartOptions()
    if len(mesh.faces) > LARGE:
        options.max_cost = SMALL_COST
    atlas.generate(chart_options=options)
    _, indices, uvs = atlas.get_mesh(0)
    return uvs * [atlas.width, atlas.height], indices.astype(np.int64)  # xatlas divides each axis by its own extent


def _packed(
    flat: Float[np.ndarray, "T 2"], uv_faces: Int[np.ndarray, "F 3"], scale: float, gutter: int
) -> tuple[Float[np.ndarray, "S 2"], Int[np.ndarray, "F 3"], int]:
    """The same charts at `scale` texels per unit, in texels, and the side of the square they need."""
    atlas = _atlas()
    atlas.add_uv_mesh(flat.astype(np.float32), uv_faces.astype(np.uint32))
    options = xatlas.PackOptions()
    options.padding = gutter
    options.texels_per_unit = scale
    atlas.generate(pack_options=options)
    _, indices, uvs = atlas.get_mesh(0)
    return uvs * [atlas.width, atlas.height], indices.astype(np.int64), max(atlas.width, atlas.height)


def _atlas() -> xatlas.Atlas:
    """A new one, which is thrown away two others later, when its threads have long been asleep.

    At once would be too early: xatlas 0.0.11 does not hold its lock when it tells its threads to end, so one that is
    just falling asleep is not woken, and waited for without an end.
    """
    atlas = xatlas.Atlas()
    _LATEST.append(atlas)
    return atlas


def _area(uvs: Float[np.ndarray, "T 2"], uv_faces: Int[np.ndarray, "F 3"]) -> float:
    a, b, c = np.moveaxis(uvs[uv_faces], 1, 0)
    return float(np.abs(np.linalg.det(np.stack([b - a, c - a], axis=-1))).sum() / 2)
