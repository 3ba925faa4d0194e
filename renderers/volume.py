"""Volume rendering (Max 1995): a field of density and colour becomes pictures.

Density is per metre. Every picture is multiplied by alpha: it stands on black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from threed.renderers.camera import Cameras
from threed.renderers.mesh import Mesh
from threed.renderers.occupancy import Occupancy
from threed.renderers.ops import Packed, ops
from threed.renderers.topology import Edges

HIDDEN = 1e-3  # transmittance below which a sample can no longer be seen


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
) -> Render:
    """Pictures of the field's albedo, normals and depth; the generator, if any, jitters the samples of each ray."""
    origins, directions = (each.reshape(-1, 3) for each in cameras.rays(height, width))
    jitter = None if generator is None else torch.rand(len(origins), generator=generator).to(origins)
    primitives = ops(origins.device)
    packed = primitives.march(origins, directions, occupancy.occupied, occupancy.bound, step, jitter)
    x, packed = _visible(field, _points(origins, directions, packed), packed)
    sample = field(x)
    more = [] if sample.latents is None else [sample.latents]
    values = torch.cat([sample.albedo, sample.normal, *more], dim=-1)
    accumulated, alpha, depth, weights = primitives.composite(sample.density, values, packed)
    accumulated = accumulated.reshape(len(cameras), height, width, -1)
    albedo, normal, latents = accumulated[..., :3], accumulated[..., 3:6], accumulated[..., 6:]
    normal = torch.einsum("bij,bhwi->bhwj", cameras.rotation, normal)
    alpha, depth = (each.reshape(len(cameras), height, width, 1) for each in (alpha, depth))
    rays = Rays(directions, packed, weights, sample.normal)
    return Render(albedo, albedo, alpha, depth, normal, rays, latents=latents if more else None)


def _points(origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], packed: Packed) -> Float[Tensor, "N 3"]:
    """The middle of every sample's piece of its ray, in the world."""
    start, along = (each.index_select(0, packed.ray) for each in (origins, directions))
    return torch.addcmul(start, along, packed.middle[:, None])


@torch.no_grad()
def _visible(field: Field, x: Float[Tensor, "N 3"], packed: Packed) -> tuple[Tensor, Packed]:
    """The samples that enough light reaches; the rest would cost the field's gradient and change nothing to be seen."""
    light = ops(x.device).transmittance(field.density(x), packed)
    (kept,) = (light >= HIDDEN).nonzero(as_tuple=True)
    return x.index_select(0, kept), packed.select(kept)
