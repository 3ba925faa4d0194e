"""glTF's metallic-roughness material (glTF 2.0, appendix B): Lambert's diffuse below GGX, Smith and Schlick.

Colours are linear. Directions are unit vectors that leave the surface; alpha is roughness squared.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.renderers.ops import ops

DIELECTRIC = 0.04  # what glass and plastic mirror at normal incidence
SMOOTHEST = 0.01  # the least roughness of `evaluate`: a perfect mirror has no finite density
NODES = 48  # of the table of albedos, along each axis
GRAZING = 1e-4  # the least cosine at which the table is asked


def reflectances(
    base_color: Float[Tensor, "*#P 3"], metallic: Float[Tensor, "*#P 1"]
) -> tuple[Float[Tensor, "*P 3"], Float[Tensor, "*P 3"]]:
    """What is scattered below the surface, and what is mirrored at normal incidence (f0)."""
    return base_color * (1 - metallic), DIELECTRIC * (1 - metallic) + base_color * metallic


def schlick(cosine: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    """The share of the way from f0 to 1 that Fresnel's reflectance has gone (Schlick 1994)."""
    return (1 - cosine) ** 5


def distribution(sine_squared: Float[Tensor, "*#P"], alpha: Float[Tensor, "*#P"]) -> Float[Tensor, "*P"]:
    """GGX's density of half vectors per steradian (Walter et al. 2007, Eq. 33), by their angle to the normal.

    A function of the sine, because one less the square of a cosine near one would cancel.
    """
    return alpha**2 / (math.pi * (alpha**2 * (1 - sine_squared) + sine_squared) ** 2)


def visibility(cosine: Float[Tensor, "*#P"], alpha: Float[Tensor, "*#P"]) -> Float[Tensor, "*P"]:
    """Smith's share of unshadowed facets over twice the cosine (Walter et al. 2007, Eq. 34), for cosines >= 0."""
    return 1 / (cosine + (alpha**2 + (1 - alpha**2) * cosine**2).sqrt())


def evaluate(
    normal: Float[Tensor, "*#P 3"],
    view: Float[Tensor, "*#P 3"],
    light: Float[Tensor, "*#P 3"],
    base_color: Float[Tensor, "*#P 3"],
    metallic: Float[Tensor, "*#P 1"],
    roughness: Float[Tensor, "*#P 1"],
) -> Float[Tensor, "*P 3"]:
    """Radiance toward the viewer over irradiance from the light, per steradian (glTF 2.0, appendix B).

    Reciprocal; 0 unless both directions are above the surface. Metals send back at most what they get; dielectrics,
    as glTF defines them, nearly twice as much at grazing angles, because the diffuse part is dimmed by the Fresnel
    term of the half vector alone. `light.radiance` does not inherit that.
    """
    half = functional.normalize(view + light, dim=-1)
    facing, lit = (_dot(normal, toward) for toward in (view, light))
    alpha = roughness.clamp(min=SMOOTHEST) ** 2
    diffuse, f0 = reflectances(base_color, metallic)
    fresnel = f0 + (1 - f0) * schlick(_dot(view, half))
    sine_squared = torch.linalg.cross(*torch.broadcast_tensors(normal, half)).square().sum(-1, keepdim=True)
    facets = distribution(sine_squared, alpha) * visibility(facing.abs(), alpha) * visibility(lit.abs(), alpha)
    return torch.where((facing > 0) & (lit > 0), (1 - fresnel) * diffuse / math.pi + fresnel * facets, 0.0)


def directional_albedo(
    facing: Float[Tensor, "*P 1"], roughness: Float[Tensor, "*P 1"]
) -> tuple[Float[Tensor, "*P 1"], Float[Tensor, "*P 1"]]:
    """`scale` and `bias`: of an even light from all sides, f0 * scale + bias is mirrored to the viewer.

    `facing` is the cosine between normal and view. From a table: within 0.002, and 0.02 where `facing` is below 0.05.
    """
    found = look_up(albedo_table(), facing.clamp(GRAZING, 1).sqrt(), roughness)
    return found[..., :1], found[..., 1:]


@cache
def albedo_table() -> Float[Tensor, "R N 2"]:
    """`directional_albedo` at even steps of roughness and of the square root of the cosine, rows of one roughness."""
    steps = torch.linspace(0, 1, NODES, dtype=torch.float64)
    return torch.stack([_mirrored(steps**2, float(roughness) ** 2) for roughness in steps])


def look_up(table: Float[Tensor, "R N C"], x: Float[Tensor, "*P 1"], y: Float[Tensor, "*P 1"]) -> Float[Tensor, "*P C"]:
    """A table's value, bilinear; x and y in [0, 1] run from its first column and row to its last."""
    size = x.new_tensor([table.shape[1], table.shape[0]])
    uv = (torch.cat([x, y], dim=-1) * (size - 1) + 0.5) / size
    return ops(x.device).texture(table.to(x), uv)


def _mirrored(cosine: Float[Tensor, "N"], alpha: float, polar: int = 64, around: int = 24) -> Float[Tensor, "N 2"]:
    """`scale` and `bias` of the split sum (Karis 2013) by quadrature over the half vectors that the viewer sees.

    Those are taken evenly from a spherical cap (Dupuy and Benyoub 2023), so that Smith's term is the only weight.
    """
    node, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(polar))
    angle = (torch.arange(around, dtype=torch.float64) + 0.5) * (math.pi / around)
    cosine = cosine.clamp(min=1e-6)[:, None, None]
    sine = (1 - cosine**2).sqrt()
    tilt, up = functional.normalize(torch.stack([alpha * sine, cosine]), dim=0)
    z = 1 - (node[:, None] + 1) / 2 * (1 + up)
    ring = (1 - z**2).clamp(min=0).sqrt()
    x, y, z = torch.broadcast_tensors(alpha * (ring * angle.cos() + tilt), alpha * ring * angle.sin(), z + up)
    x, y, z = functional.normalize(torch.stack([x, y, z]), dim=0)
    along = sine * x + cosine * z
    lit = (2 * along * z - cosine).clamp(min=0)
    unshadowed = 2 * lit * visibility(lit, lit.new_tensor(alpha)) * (weight[:, None] / (2 * around))
    share = schlick(along.clamp(max=1))
    return torch.stack([unshadowed * (1 - share), unshadowed * share], dim=-1).sum((1, 2))


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "*P 1"]:
    return (a * b).sum(-1, keepdim=True)
