"""Volume rendering (Max 1995): a field of density and colour becomes pictures.

Density is per metre. Every picture is multiplied by alpha: it stands on black.

Deferred, the gradient is worked out piece by piece: rays are rendered without one, and once the gradient of the
pictures is known, rendered again, some of them at a time (Zhang et al. 2022, ARF, arXiv 2206.06360).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from threed.renderers.camera import Cameras
from threed.renderers.mesh import Mesh
from threed.renderers.occupancy import Occupancy
from threed.renderers.ops import Packed, ops
from threed.renderers.topology import Edges

HIDDEN = 1e-3  # transmittance below which a sample can no longer be seen
PIECE = 1 << 16  # samples of the rays that are rendered together, where that is deferred
# Runs a function without keeping what its gradient needs, and again when that is asked for.
again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Sample:
    """A field at N points."""

    density: Float[Tensor, "N"]  # per metre
    albedo: Float[Tensor, "N 3"]  # display sRGB in [0, 1]
    normal: Float[Tensor, "N 3"]  # unit, in the world, out of the dense side
    latents: Float[Tensor, "N C"] | None = None  # what the albedo is of, where a prior's latents are optimised


@runtime_checkable
class Field(Protocol):
    """What can be volume rendered."""

    def __call__(self, x: Float[Tensor, "N 3"]) -> Sample: ...

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]: ...


@dataclass(frozen=True)
class Rays:
    """What the R rays of a volume's pictures met: what regularizers ask about, beyond what can be seen."""

    directions: Float[Tensor, "R 3"]  # unit, away from the camera
    packed: Packed
    weights: Float[Tensor, "N"]  # the share of each sample in its pixel
    normal: Float[Tensor, "N 3"]  # unit, in the world


@dataclass(frozen=True)
class Render:
    """B pictures, channels last, multiplied by alpha."""

    rgb: Float[Tensor, "B H W 3"]  # display sRGB
    albedo: Float[Tensor, "B H W 3"]  # display sRGB
    alpha: Float[Tensor, "B H W 1"]
    depth: Float[Tensor, "B H W 1"]  # metres along the ray
    normal: Float[Tensor, "B H W 3"]  # camera space, each component in [-1, 1]
    rays: Rays | None = None  # of a volume
    slope: Float[Tensor, "N 3"] | None = None  # of a signed distance, at points all over it
    mesh: Mesh | None = None  # the surface, where it is optimised, and its edges
    edges: Edges | None = None
    latents: Float[Tensor, "B H W C"] | None = None  # of a scene that is made of them
    sketch: Float[Tensor, ""] | None = None  # how far a volume is from the mesh that it is held to

    def over(self, background: Float[Tensor, "*#B 3"]) -> Float[Tensor, "B H W 3"]:
        """`rgb` in front of a colour, one for all or one for each picture."""
        return self.rgb + (1 - self.alpha) * background.reshape(-1, 1, 1, 3)


def render(
    field: Field,
    cameras: Cameras,
    height: int,
    width: int,
    occupancy: Occupancy,
    step: float,
    generator: torch.Generator | None = None,
    deferred: bool = False,
) -> Render:
    """Pictures of the field's albedo, normals and depth; the generator, if any, jitters the samples of each ray.

    `deferred` they are the same, in less memory and more time, and so is their gradient.
    """
    origins, directions = (each.reshape(-1, 3) for each in cameras.rays(height, width))
    jitter = None if generator is None else torch.rand(len(origins), generator=generator).to(origins)
    primitives = ops(origins.device)
    packed = primitives.march(origins, directions, occupancy.occupied, occupancy.bound, step, jitter)
    if deferred:
        pieces = [_seen(field, primitives, origins[rays], directions[rays], part) for rays, part in _pieces(packed)]
        shown = [again(_shaded, field, primitives, *piece) for piece in pieces]
        accumulated, alpha, depth, weights, normals = (torch.cat(each) for each in zip(*shown, strict=True))
        packed = _joined([piece[1] for piece in pieces])
    else:
        x, packed = _seen(field, primitives, origins, directions, packed)
        accumulated, alpha, depth, weights, normals = _shaded(field, primitives, x, packed)
    accumulated = accumulated.reshape(len(cameras), height, width, -1)
    albedo, normal, latents = accumulated.tensor_split([3, 6], dim=-1)
    normal = torch.einsum("bij,bhwi->bhwj", cameras.rotation, normal)
    alpha, depth = (each.reshape(len(cameras), height, width, 1) for each in (alpha, depth))
    rays = Rays(directions, packed, weights, normals)
    return Render(albedo, albedo, alpha, depth, normal, rays, latents=latents if latents.shape[-1] else None)


def _shaded(
    field: Field, primitives: ModuleType, x: Float[Tensor, "N 3"], packed: Packed
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "N"], Float[Tensor, "N 3"]]:
    """What is seen along rays, side by side (albedo, normal, any latents), alpha and depth; weights and normals."""
    sample = field(x)
    more = [] if sample.latents is None else [sample.latents]
    values = torch.cat([sample.albedo, sample.normal, *more], dim=-1)
    return *primitives.composite(sample.density, values, packed), sample.normal


def _pieces(packed: Packed) -> Iterator[tuple[slice, Packed]]:
    """Rays, one after the other, with about as many samples as a piece has."""
    rays = len(packed.starts) - 1
    ends = torch.arange(PIECE, int(packed.starts[-1]) + PIECE, PIECE, device=packed.starts.device)
    cuts = torch.searchsorted(packed.starts, ends).clamp(max=rays).tolist()
    for first, last in pairwise(sorted({0, *cuts, rays})):
        starts = packed.starts[first : last + 1]
        own = slice(int(starts[0]), int(starts[-1]))
        yield slice(first, last), Packed(starts - starts[0], packed.ray[own] - first, packed.near[own], packed.far[own])


def _joined(pieces: list[Packed]) -> Packed:
    """The samples of all their rays."""
    rays, samples, parts = 0, 0, []
    for piece in pieces:
        parts.append((piece.starts[:-1] + samples, piece.ray + rays, piece.near, piece.far))
        rays, samples = rays + len(piece.starts) - 1, samples + len(piece.ray)
    starts, *others = (torch.cat(each) for each in zip(*parts, strict=True))
    return Packed(torch.cat([starts, starts.new_tensor([samples])]), *others)


def _points(origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], packed: Packed) -> Float[Tensor, "N 3"]:
    """The middle of every sample's piece of its ray, in the world."""
    start, along = (each.index_select(0, packed.ray) for each in (origins, directions))
    return torch.addcmul(start, along, packed.middle[:, None])


@torch.no_grad()
def _seen(
    field: Field,
    primitives: ModuleType,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    packed: Packed,
) -> tuple[Float[Tensor, "N 3"], Packed]:
    """The samples that enough light reaches; the rest would cost the field's gradient and change nothing to be seen."""
    x = _points(origins, directions, packed)
    light = primitives.transmittance(field.density(x), packed)
    (kept,) = (light >= HIDDEN).nonzero(as_tuple=True)
    return x.index_select(0, kept), packed.select(kept)
