"""Triangles to pixels with numba: every thread owns bands of rows, so no two write the same pixel.

Triangles are listed by band first. What is surely behind the nearest so far is passed over; the rest is worked out.

Snapping, the edge rule, depth ties and barycentrics are those of `torch_ops.raster`, whose faces these equal exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from threed.renderers.cpu_ops.launch import kernel, launch
from threed.renderers.torch_ops.raster import LARGEST, SUBPIXEL, Fragments, screen_triangles

BAND = 16  # rows


@torch.no_grad()
def rasterize(clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], height: int, width: int) -> Fragments:
    """The nearest triangle at every pixel."""
    face = torch.empty(len(clip), height, width, dtype=torch.int32)
    barycentric, depth = clip.new_empty(*face.shape, 2), clip.new_empty(face.shape)
    corners = faces.long()
    for b, view in enumerate(clip):
        screen = _screen(view, corners, height, width)
        launch(_rasterize, *screen, view, corners, face[b], barycentric[b], depth[b])
    return Fragments(face, barycentric, depth)


def interpolate(
    attribute: Float[Tensor, "V C"] | Float[Tensor, "B V C"], faces: Int[Tensor, "F 3"], fragments: Fragments
) -> Float[Tensor, "B H W C"]:
    """Vertex attributes at the pixels, 0 where there is no surface; differentiable to them and the barycentrics."""
    attribute = attribute.expand(len(fragments.face), -1, -1)
    return _Interpolate.apply(attribute, fragments.barycentric, fragments.face, faces.long())


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
    out = attribute.new_zeros(*fragments.face.shape, attribute.shape[1], 2)
    launch(_screen_derivatives, attribute, attribute_faces.long(), clip, faces.long(), fragments.face, out)
    return out


def _screen(view: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `screen_triangles` finds, at once where no face needs to be clipped."""
    points, partial = torch.empty(len(view), 2, dtype=torch.int64), torch.empty(1, dtype=torch.int64)
    launch(_snap, view, faces, height, width, points, partial)
    if partial > 0:
        return screen_triangles(view.double(), faces, height, width)
    return points, faces, torch.from_numpy(np.arange(len(faces)))


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attribute: Tensor, barycentric: Tensor, face: Tensor, faces: Tensor) -> Tensor:
        out = attribute.new_empty(*face.shape, attribute.shape[-1])
        launch(_interpolate, attribute, barycentric, face, faces, out)
        ctx.save_for_backward(attribute, barycentric, face, faces)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attribute, barycentric, *drawn = ctx.saved_tensors
        to_attribute = torch.zeros_like(attribute, memory_format=torch.contiguous_format)
        to_barycentric = torch.zeros_like(barycentric, memory_format=torch.contiguous_format)
        launch(_interpolate_backward, attribute, barycentric, *drawn, gradient, to_attribute, to_barycentric)
        return to_attribute, to_barycentric, None, None


@kernel(parallel=True)
def _snap(clip, faces, height, width, points, partial):
    """Vertices in 1/256 pixel, and how many faces have one that is behind the camera, far off or missing."""
    across, up = 2 * LARGEST / width - 1, 2 * LARGEST / height - 1
    count, tame = len(clip), np.empty(len(clip), np.bool_)
    for i in prange(count):
        x, y, _, w = _corner(clip, i)
        tame[i] = w > 0 and abs(x) <= across * w and abs(y) <= up * w
        if tame[i]:
            points[i, 0] = np.int64(np.floor((x / w + 1) / 2 * width * SUBPIXEL + 0.5))
            points[i, 1] = np.int64(np.floor((-y / w + 1) / 2 * height * SUBPIXEL + 0.5))
    found = 0
    for f in prange(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        here = min(i, j, k) >= 0 and max(i, j, k) < count
        if not here or not (tame[i] and tame[j] and tame[k]):
            found += 1
    partial[0] = found


@kernel(parallel=True)
def _rasterize(points, triangles, owner, clip, faces, face, barycentric, depth):
    height, width = face.shape
    count, bands = len(triangles), (height + BAND - 1) // BAND
    first, last = np.empty(count, np.int32), np.empty(count, np.int32)  # bands that a triangle may reach into
    for t in prange(count):
        first[t], last[t] = _bands(points, triangles, t, height, width)
    start, listed = _listed(first, last, bands)
    for band in prange(bands):
        own = listed[start[band] : start[band + 1]]
        _fill(points, triangles, own, owner, band, clip, faces, face, barycentric, depth)


@kernel()
def _bands(points, triangles, t, height, width):
    """The first and the last band of rows in which a triangle may cover a pixel's centre; none if it covers none."""
    i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    ax, ay, bx, by, cx, cy = points[i, 0], points[i, 1], points[j, 0], points[j, 1], points[k, 0], points[k, 1]
    left, right = max(_first_centre(min(ax, bx, cx)), 0), min(_last_centre(max(ax, bx, cx)), width - 1)
    top, bottom = max(_first_centre(min(ay, by, cy)), 0), min(_last_centre(max(ay, by, cy)), height - 1)
    if left > right or top > bottom or (bx - ax) * (cy - ay) == (by - ay) * (cx - ax):
        return 0, -1
    return top // BAND, bottom // BAND


@kernel()
def _listed(first, last, bands):
    """The triangles of every band, band after band, in order within each, and where each band starts."""
    start = np.zeros(bands + 1, np.int64)
    for t in range(len(first)):
        for band in range(first[t], last[t] + 1):
            start[band + 1] += 1
    start = np.cumsum(start)
    listed, end = np.empty(start[bands], np.int32), start.copy()
    for t in range(len(first)):
        for band in range(first[t], last[t] + 1):
            listed[end[band]] = t
            end[band] += 1
    return start, listed


@kernel()
def _first_centre(position):
    """The first pixel whose centre is not before a position in 1/256 pixel."""
    return (position + SUBPIXEL // 2 - 1) // SUBPIXEL


@kernel()
def _last_centre(position):
    return (position - SUBPIXEL // 2) // SUBPIXEL


@kernel()
def _fill(points, triangles, listed, owners, band, clip, faces, face, barycentric, depth):
    """Draw the listed triangles, pieces of the faces that own them, into a band of rows."""
    height, width = face.shape
    for row in range(band * BAND, min(band * BAND + BAND, height)):
        face[row], barycentric[row], depth[row] = -1, 0, 1
    for t in listed:
        owner = owners[t]
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = points[i, 0], points[i, 1], points[j, 0], points[j, 1], points[k, 0], points[k, 1]
        left, right = max(_first_centre(min(ax, bx, cx)), 0), min(_last_centre(max(ax, bx, cx)), width - 1)
        top, bottom = _first_centre(min(ay, by, cy)), _last_centre(max(ay, by, cy))
        top, bottom = max(top, band * BAND), min(bottom, band * BAND + BAND - 1, height - 1)
        if (bx - ax) * (cy - ay) < (by - ay) * (cx - ax):
            bx, by, cx, cy = cx, cy, bx, by
        x, y = left * SUBPIXEL + SUBPIXEL // 2, top * SUBPIXEL + SUBPIXEL // 2
        ab, bc, ca = _edge(ax, ay, bx, by, x, y), _edge(bx, by, cx, cy, x, y), _edge(cx, cy, ax, ay, x, y)
        a, b, c = (_corner(clip, faces[owner, 0]), _corner(clip, faces[owner, 1]), _corner(clip, faces[owner, 2]))
        closest = depth.dtype.type(_closest(a, b, c))
        for row in range(top, bottom + 1):
            begin, end = _within(ab, by - ay, 0, right - left)
            begin, end = _within(bc, cy - by, begin, end)
            begin, end = _within(ca, ay - cy, begin, end)
            ab, bc, ca = ab + (bx - ax), bc + (cx - bx), ca + (ax - cx)
            fy = 1 - (2 * row + 1) / height
            for column in range(left + begin, left + end + 1):
                nearest = depth[row, column]
                if closest > nearest:
                    continue
                u, v, z = _homogeneous(a, b, c, (2 * column + 1) / width - 1, fy)
                z = depth.dtype.type(z)
                before = z < nearest or (z == nearest and (face[row, column] < 0 or owner < face[row, column]))
                if z >= -1 and z <= 1 and before:
                    face[row, column], depth[row, column] = owner, z
                    barycentric[row, column, 0], barycentric[row, column, 1] = u, v


@kernel()
def _edge(ax, ay, bx, by, x, y):
    """Not negative inside an edge of a triangle that turns clockwise on the screen, by the top-left rule.

    In pixels times 1/256 pixel, rounded down: a step of a pixel then changes it by whole numbers.
    """
    dx, dy = bx - ax, by - ay
    top_left = dy < 0 or (dy == 0 and dx > 0)
    return (dx * (y - ay) - dy * (x - ax) - (0 if top_left else 1)) // SUBPIXEL


@kernel()
def _within(value, step, begin, end):
    """Columns from begin to end inside an edge, whose function is `value` at column 0 and falls by `step` a column."""
    # Exact: integers below 2^53 whose quotient lies in the picture are too few for it to be rounded up to a column.
    columns = np.int64(np.floor(value / max(abs(step), 1)))
    if step > 0:
        end = min(end, columns)
    elif step < 0:
        begin = max(begin, -columns)
    elif value < 0:
        end = -1
    return begin, end


@kernel()
def _closest(a, b, c):
    """No fragment of a triangle has a lower z/w, a mean of its corners', than this, whatever rounding does."""
    if a[3] <= 0 or b[3] <= 0 or c[3] <= 0:
        return -np.inf
    p, q, r = a[2] / a[3], b[2] / b[3], c[2] / c[3]
    return min(p, q, r) - 1e-14 * max(abs(p), abs(q), abs(r))


@kernel()
def _corner(clip, i):
    return np.float64(clip[i, 0]), np.float64(clip[i, 1]), np.float64(clip[i, 2]), np.float64(clip[i, 3])


@kernel()
def _homogeneous(a, b, c, fx, fy):
    """Barycentrics of the first two corners and z/w (Olano and Greer 1997)."""
    ax, ay, bx, by = a[0] - fx * a[3], a[1] - fy * a[3], b[0] - fx * b[3], b[1] - fy * b[3]
    cx, cy = c[0] - fx * c[3], c[1] - fy * c[3]
    u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
    sign = np.sign(u + v + w)
    u, v, w = max(u * sign, 0.0), max(v * sign, 0.0), max(w * sign, 0.0)
    total = u + v + w
    if total > 0:
        u, v, w = u / total, v / total, w / total
    else:  # a face seen exactly edge-on
        u = v = w = 1 / 3
    return u, v, (u * a[2] + v * b[2] + w * c[2]) / (u * a[3] + v * b[3] + w * c[3])


@kernel(parallel=True)
def _interpolate(attribute, barycentric, face, faces, out):
    views, height, width = face.shape
    for row in prange(views * height):
        b, y = row // height, row % height
        for x in range(width):
            f = face[b, y, x]
            if f < 0:
                out[b, y, x] = 0
                continue
            u, v = barycentric[b, y, x]
            for c in range(out.shape[3]):
                p, q, r = attribute[b, faces[f, 0], c], attribute[b, faces[f, 1], c], attribute[b, faces[f, 2], c]
                out[b, y, x, c] = u * p + v * q + (1 - u - v) * r


@kernel(parallel=True)
def _interpolate_backward(attribute, barycentric, face, faces, gradient, to_attribute, to_barycentric):
    views, height, width = face.shape
    for b in prange(views):  # pixels share vertices, views do not
        for y in range(height):
            for x in range(width):
                f = face[b, y, x]
                if f < 0:
                    continue
                u, v = barycentric[b, y, x]
                i, j, k = faces[f]
                for c in range(gradient.shape[3]):
                    g = gradient[b, y, x, c]
                    to_attribute[b, i, c] += g * u
                    to_attribute[b, j, c] += g * v
                    to_attribute[b, k, c] += g * (1 - u - v)
                    to_barycentric[b, y, x, 0] += g * (attribute[b, i, c] - attribute[b, k, c])
                    to_barycentric[b, y, x, 1] += g * (attribute[b, j, c] - attribute[b, k, c])


@kernel(parallel=True)
def _screen_derivatives(attribute, attribute_faces, clip, faces, face, out):
    views, height, width = face.shape
    for row in prange(views * height):
        b, y = row // height, row % height
        view, fy = clip[b], 1 - (2 * y + 1) / height
        for x in range(width):
            f = face[b, y, x]
            if f < 0:
                continue
            fx = (2 * x + 1) / width - 1
            p, q, r = _corner(view, faces[f, 0]), _corner(view, faces[f, 1]), _corner(view, faces[f, 2])
            parts = _linear(q, r, fx, fy), _linear(r, p, fx, fy), _linear(p, q, fx, fy)
            across = parts[0][0] + parts[1][0] + parts[2][0]
            up = parts[0][1] + parts[1][1] + parts[2][1]
            whole = parts[0][2] + parts[1][2] + parts[2][2]
            if whole == 0:  # seen exactly edge-on
                continue
            for k in range(3):
                part = parts[k]
                by_x = (part[0] * whole - across * part[2]) / (whole * whole) * 2 / width
                by_y = (part[1] * whole - up * part[2]) / (whole * whole) * -2 / height
                for c in range(out.shape[3]):
                    out[b, y, x, c, 0] += attribute[attribute_faces[f, k], c] * by_x
                    out[b, y, x, c, 1] += attribute[attribute_faces[f, k], c] * by_y


@kernel()
def _linear(a, b, fx, fy):
    """The weight of the corner opposite an edge, not yet divided by their sum: slopes by x and y, value at (fx, fy)."""
    ax, ay, bx, by = a[0] - fx * a[3], a[1] - fy * a[3], b[0] - fx * b[3], b[1] - fy * b[3]
    return ay * b[3] - a[3] * by, a[3] * bx - ax * b[3], ax * by - ay * bx
