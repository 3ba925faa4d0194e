"""Triangles to pixels: the readable reference.

Clip space is OpenGL's (see `camera`); row 0 of a picture is its top and pixel centres lie at +0.5.
Vertices are snapped to 1/256 pixel and edges tested in exact integers with the top-left rule, so that adjacent
triangles leave no gap and share no pixel. Back faces are drawn; equal depths go to the lower face index.
Barycentrics (u, v) weigh the first two corners of a triangle and are perspective-correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

SUBPIXEL = 256  # vertex positions are multiples of 1/256 pixel
LARGEST = 2**21  # pixels from the corner of the picture; edge functions of such points fit 64 bits


@dataclass(frozen=True)
class Fragments:
    """The nearest surface at every pixel centre."""

    face: Int32[Tensor, "B H W"]  # -1 where there is none
    barycentric: Float[Tensor, "B H W 2"]  # 0 where there is none
    depth: Float[Tensor, "B H W"]  # z/w in [-1, 1]; 1 where there is none


@torch.no_grad()
def rasterize(clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], height: int, width: int) -> Fragments:
    """The nearest triangle at every pixel, by testing every pixel against every triangle."""
    views = [_rasterize(view, faces, height, width) for view in clip]
    return Fragments(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def interpolate(
    attribute: Float[Tensor, "V C"] | Float[Tensor, "B V C"], faces: Int[Tensor, "F 3"], fragments: Fragments
) -> Float[Tensor, "B H W C"]:
    """Vertex attributes at the pixels, 0 where there is no surface; differentiable to them and the barycentrics."""
    covered = fragments.face >= 0
    attribute = attribute.expand(len(covered), -1, -1)
    view = torch.arange(len(covered), device=faces.device)[:, None, None, None].expand(*covered.shape, 3)
    corners = attribute[view, faces[fragments.face.clamp(min=0).long()]]
    weights = torch.cat([fragments.barycentric, 1 - fragments.barycentric.sum(-1, keepdim=True)], dim=-1)
    return ((weights * covered[..., None])[..., None] * corners).sum(-2)


@torch.no_grad()
def screen_derivatives(
    attribute: Float[Tensor, "A C"],
    attribute_faces: Int[Tensor, "F 3"],
    clip: Float[Tensor, "B V 4"],
    faces: Int[Tensor, "F 3"],
    fragments: Fragments,
) -> Float[Tensor, "B H W C 2"]:
    """How an interpolated attribute changes by a pixel to the right and down, exactly; 0 where there is no surface.

    The attribute may have its own vertices, as texture coordinates have along seams. Without a gradient.
    """
    covered = fragments.face >= 0
    view, row, column = covered.nonzero().unbind(1)
    face = fragments.face[covered].long()
    height, width = covered.shape[1:]
    corners = _centred(clip.double()[view[:, None], faces[face]], row, column, height, width)[..., [0, 1, 3]]
    # The weight of a corner is a quotient of functions that are linear in the place: slopes by x and y, value here.
    part = corners.roll(-1, 1).cross(corners.roll(-2, 1), dim=-1)
    whole = part.sum(1, keepdim=True)
    slopes = (part * whole[..., 2:] - whole * part[..., 2:])[..., :2] / whole[..., 2:].square()
    slopes = torch.where(whole[..., 2:] == 0, 0, slopes) * slopes.new_tensor([2 / width, -2 / height])
    found = attribute.new_zeros(*covered.shape, attribute.shape[1], 2)
    found[covered] = (attribute[attribute_faces[face]].mT.double() @ slopes).to(attribute)
    return found


def screen_triangles(
    clip: Float[Tensor, "V 4"], faces: Int[Tensor, "F 3"], height: int, width: int
) -> tuple[Int[Tensor, "P 2"], Int[Tensor, "T 3"], Int[Tensor, "T"]]:
    """Points in 1/256 pixel (x right, y down), triangles between them, and the face each is a piece of.

    Triangles with a corner behind the camera or far off the picture are clipped; those that are not finite are dropped.
    """
    size = clip.new_tensor([width, height])
    guard = 2 * LARGEST / size - 1
    tame = ((clip[:, :2].abs() <= guard * clip[:, 3:]) & (clip[:, 3:] > 0)).all(1)
    whole = tame[faces].all(1)
    owner = torch.arange(len(faces), device=faces.device)
    points, triangles, owners = [clip], [faces], [owner]
    count, partial = len(clip), owner[~whole]
    if len(partial):
        triangles, owners = [faces[whole]], [owner[whole]]
    for face in partial[_near_picture(clip[faces[partial]])].tolist():
        piece = _clipped(clip[faces[face]].cpu().numpy(), guard.tolist())
        if len(piece) >= 3 and (piece[:, 3] > 0).all():
            fan = torch.tensor([[count, count + i, count + i + 1] for i in range(1, len(piece) - 1)])
            points.append(torch.from_numpy(piece).to(clip))
            triangles.append(fan.to(faces))
            owners.append(owner.new_full((len(fan),), face))
            count += len(piece)
    every = torch.cat(points)
    pixels = (every[:, :2] / every[:, 3:] * clip.new_tensor([1, -1]) + 1) / 2 * size
    return (pixels * SUBPIXEL + 0.5).floor().long(), torch.cat(triangles), torch.cat(owners)


def _near_picture(corners: Float[Tensor, "F 3 4"]) -> Tensor:
    """Whether the corners are finite and not all on the outer side of one frustum plane."""
    xyz, w = corners[..., :3], corners[..., 3:]
    return ~((xyz > w).all(1) | (xyz < -w).all(1)).any(-1) & corners.isfinite().all(-1).all(-1)


def _clipped(polygon: np.ndarray, guard: list[float]) -> np.ndarray:
    """The part of a polygon [N 4] where |x| and |y| are at most guard * w (Sutherland and Hodgman 1974)."""
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        distance = guard[axis] * polygon[:, 3] - sign * polygon[:, axis]
        kept = []
        for i in range(len(polygon)):
            if (distance[i] >= 0) != (distance[i - 1] >= 0):
                # Always from the inner end to the outer one, so that neighbours cut a shared edge at the same point.
                inner, outer = (i, i - 1) if distance[i] >= 0 else (i - 1, i)
                share = distance[inner] / (distance[inner] - distance[outer])
                kept.append(polygon[inner] + share * (polygon[outer] - polygon[inner]))
            if distance[i] >= 0:
                kept.append(polygon[i])
        polygon = np.reshape(kept, (-1, 4))
    return polygon


def _rasterize(clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """One view: face [H W], barycentric [H W 2], depth [H W]."""
    exact = clip.double()
    owner, row, column = _covered(*screen_triangles(exact, faces, height, width), height, width)
    barycentric, depth = (x.to(clip) for x in _homogeneous(exact[faces[owner]], row, column, height, width))
    seen = depth.abs() <= 1
    owner, barycentric, depth = owner[seen], barycentric[seen], depth[seen]
    pixel = (row * width + column)[seen]
    nearest = depth.new_ones(height * width).scatter_reduce(0, pixel, depth, "amin")
    first = depth == nearest[pixel]
    face = owner.new_full((height * width,), len(faces)).scatter_reduce(0, pixel[first], owner[first], "amin")
    first = first & (owner == face[pixel])
    uv = depth.new_zeros(height * width, 2)
    uv[pixel[first]] = barycentric[first]
    face = torch.where(face == len(faces), -1, face).int()
    return face.view(height, width), uv.view(height, width, 2), nearest.view(height, width)


def _covered(
    points: Tensor, triangles: Tensor, owner: Tensor, height: int, width: int
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Face, row and column of every pixel centre in every triangle."""
    row = torch.arange(height, device=points.device).repeat_interleave(width)
    column = torch.arange(width, device=points.device).repeat(height)
    at = torch.stack([column, row], dim=-1) * SUBPIXEL + SUBPIXEL // 2
    found = []
    step = max(1, 2**22 // (height * width))
    for start in range(0, len(triangles), step):
        a, b, c = points[triangles[start : start + step]].unbind(1)
        turn = _edge(a, b, c).sign()[:, None]
        inside = turn != 0
        for p, q in ((a, b), (b, c), (c, a)):
            dx, dy = ((q - p) * turn).unbind(-1)
            top_left = (dy < 0) | ((dy == 0) & (dx > 0))
            inside = inside & (_edge(p[:, None], q[:, None], at) * turn >= torch.where(top_left, 0, 1)[:, None])
        triangle, pixel = inside.nonzero().unbind(1)
        found.append(torch.stack([owner[start + triangle], row[pixel], column[pixel]]))
    face, row, column = torch.cat(found, dim=1) if found else owner.new_zeros(3, 0)
    return face, row, column


def _edge(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Twice the signed area of a triangle, positive for clockwise corners in a picture whose y runs down."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _homogeneous(
    corners: Float[Tensor, "N 3 4"], row: Tensor, column: Tensor, height: int, width: int
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N"]]:
    """Barycentrics and z/w at pixel centres (Olano and Greer 1997): no division by w, so any corner may lie behind.

    A centre that snapping alone put inside is moved to the triangle's border.
    """
    x, y, *_ = _centred(corners, row, column, height, width).unbind(-1)
    areas = x.roll(-1, 1) * y.roll(-2, 1) - y.roll(-1, 1) * x.roll(-2, 1)
    weights = (areas * areas.sum(1, keepdim=True).sign()).clamp(min=0)
    total = weights.sum(1, keepdim=True)
    weights = torch.where(total > 0, weights / total, 1 / 3)  # a face seen exactly edge-on
    z, w = (weights[..., None] * corners[..., 2:]).sum(1).unbind(-1)
    return weights[:, :2], z / w


def _centred(
    corners: Float[Tensor, "N 3 4"], row: Tensor, column: Tensor, height: int, width: int
) -> Float[Tensor, "N 3 4"]:
    """The corners as seen with a pixel centre at the origin of the picture."""
    fx, fy = (2 * column.to(corners) + 1) / width - 1, 1 - (2 * row.to(corners) + 1) / height
    x, y, z, w = corners.unbind(-1)
    return torch.stack([x - fx[:, None] * w, y - fy[:, None] * w, z, w], dim=-1)
