"""Light on a surface: from an environment (see `environment`), from spherical harmonics, or from a lamp at the viewer.

Radiance is linear sRGB without a unit: a white surface under an even light of radiance 1 shows as white. `shade` gives
display sRGB. Lights are infinitely far away and nothing casts a shadow. Directions are unit vectors in the world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.renderers.brdf import directional_albedo, look_up, reflectances
from threed.renderers.colour import linear_from_srgb, srgb_from_linear

AMBIENT = 0.45  # of the headlight: the light that reaches every side
TOWARD_LIGHT = (-0.3, 0.5, 1.0)  # camera space: its lamp stands above the viewer's left shoulder
BAND = (0, 1, 1, 1, 2, 2, 2, 2, 2)  # of each spherical harmonic
CLAMPED_COSINE = (math.pi, 2 * math.pi / 3, math.pi / 4)  # of each band (Ramamoorthi and Hanrahan 2001)
NODES = 33  # roughnesses in the table of `lobe_bands`


@dataclass(frozen=True)
class Points:
    """What of a surface is to be shaded."""

    normal: Float[Tensor, "*P 3"]  # on the viewer's side
    view: Float[Tensor, "*P 3"]  # toward the viewer
    base_color: Float[Tensor, "*P 3"]  # display sRGB in [0, 1], as in `mesh.Material`
    roughness: Float[Tensor, "*P 1"]  # glTF's, in [0, 1]
    metallic: Float[Tensor, "*P 1"]  # in [0, 1]


@runtime_checkable
class Light(Protocol):
    """What makes a picture of points."""

    def shade(self, points: Points) -> Float[Tensor, "*P 3"]:
        """Display sRGB in [0, 1]; brighter than white is white."""
        ...


@runtime_checkable
class Surroundings(Protocol):
    """Light from all sides, as the split sum asks for it."""

    def irradiance(self, normal: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
        """Radiance times cosine over the hemisphere: pi under an even light of radiance 1."""
        ...

    def reflected(self, direction: Float[Tensor, "*P 3"], roughness: Float[Tensor, "*P 1"]) -> Float[Tensor, "*P 3"]:
        """Mean radiance around a direction, weighted as a facing surface of this roughness mirrors it."""
        ...


def radiance(points: Points, light: Surroundings) -> Float[Tensor, "*P 3"]:
    """Linear radiance toward the viewer by the split sum (Karis 2013, "Real Shading in Unreal Engine 4").

    What is not mirrored enters the surface, so that no more light leaves than arrives and a white dielectric under an
    even light is exactly white; `brdf.evaluate` dims the diffuse part by angle instead, and gains light by it. The
    rougher a lobe, the nearer to the normal it is looked up (as Lagarde and de Rousiers 2014 propose), because nothing
    comes from below the surface; white metal seen aslant was off by a third without that, and is by a tenth with it.
    """
    diffuse, f0 = reflectances(linear_from_srgb(points.base_color), points.metallic)
    facing = (points.normal * points.view).sum(-1, keepdim=True)
    scale, bias = directional_albedo(facing, points.roughness)
    mirrored = f0 * scale + bias
    direction = torch.lerp(2 * facing * points.normal - points.view, points.normal, points.roughness**2)
    scattered = (1 - mirrored) * diffuse * light.irradiance(points.normal) / math.pi
    return scattered + mirrored * light.reflected(functional.normalize(direction, dim=-1), points.roughness)


def display(points: Points, light: Surroundings) -> Float[Tensor, "*P 3"]:
    """`radiance` as display sRGB in [0, 1]."""
    return srgb_from_linear(radiance(points, light)).clamp(0, 1)


def headlight(normal: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 1"]:
    """The share of light that camera-space unit normals send back: ambient + (1 - ambient) max(0, n . l)."""
    toward = functional.normalize(normal.new_tensor(TOWARD_LIGHT), dim=0)
    return AMBIENT + (1 - AMBIENT) * (normal @ toward).clamp(min=0)[..., None]


@dataclass(frozen=True)
class Headlight:
    """The lamp of surface renders: it multiplies display sRGB and knows no gloss, as the priors have learned."""

    rotation: Float[Tensor, "3 3"]  # world from camera, see `camera.Cameras`

    def shade(self, points: Points) -> Float[Tensor, "*P 3"]:
        return points.base_color * headlight(points.normal @ self.rotation)


@dataclass(frozen=True)
class Harmonics:
    """Radiance as a sum of the spherical harmonics of orders 0 to 2.

    Where such a sum is negative, no light is meant.
    """

    coefficients: Float[Tensor, "9 3"]

    def irradiance(self, normal: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
        """Exact for such radiance (Ramamoorthi and Hanrahan 2001)."""
        return self._sum(normal, normal.new_tensor(CLAMPED_COSINE))

    def reflected(self, direction: Float[Tensor, "*P 3"], roughness: Float[Tensor, "*P 1"]) -> Float[Tensor, "*P 3"]:
        return self._sum(direction, look_up(lobe_bands()[None], roughness, torch.zeros_like(roughness)))

    def shade(self, points: Points) -> Float[Tensor, "*P 3"]:
        return display(points, self)

    def _sum(self, direction: Float[Tensor, "*P 3"], bands: Float[Tensor, "*#P 3"]) -> Float[Tensor, "*P 3"]:
        return ((harmonics(direction) * bands[..., BAND]) @ self.coefficients).clamp(min=0)


def furnace(radiance: Float[Tensor, "3"]) -> Harmonics:
    """The same radiance from everywhere: a surface that loses no light cannot be told from it."""
    others = radiance.new_zeros(len(BAND) - 1, 3)
    return Harmonics(torch.cat([radiance[None] * math.sqrt(4 * math.pi), others]))


def studio(azimuth: Float[Tensor, ""]) -> Harmonics:
    """A lamp above the left shoulder of a viewer at this azimuth, radians, as far as three bands can tell it.

    As bright as the headlight: white that faces the lamp squarely is white, what it does not reach keeps AMBIENT.
    """
    x, y, z = azimuth.new_tensor(TOWARD_LIGHT)
    cosine, sine = azimuth.cos(), azimuth.sin()
    toward = functional.normalize(torch.stack([x * cosine + z * sine, y, z * cosine - x * sine]), dim=0)
    # A surface that faces the lamp gets sum(bands * (2 l + 1) / 4 pi) of it: the harmonics' addition theorem.
    facing = sum(band * (2 * order + 1) / (4 * math.pi) for order, band in enumerate(CLAMPED_COSINE))
    lamp = (1 - AMBIENT) * math.pi / facing * harmonics(toward)
    return Harmonics(furnace(azimuth.new_full((3,), AMBIENT)).coefficients + lamp[:, None])


def harmonics(direction: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 9"]:
    """The real spherical harmonics of orders 0 to 2, orthonormal, as Ramamoorthi and Hanrahan 2001 sort them."""
    x, y, z = direction.unbind(-1)
    first = [torch.ones_like(x) / math.sqrt(3), y, z, x]
    second = [2 * x * y, 2 * y * z, (3 * z * z - 1) / math.sqrt(3), 2 * x * z, x * x - y * y]
    scaled = [*first, *(math.sqrt(5) / 2 * each for each in second)]
    return torch.stack(scaled, dim=-1) * math.sqrt(3 / (4 * math.pi))


@cache
def lobe_bands() -> Float[Tensor, "R 3"]:
    """What `reflected` leaves of the bands 0, 1 and 2, at even steps of roughness.

    Karis weighs the light at an angle of cosine t from the mirrored direction by GGX's density of half vectors times t
    (normal, view and mirrored direction are one). The quadrature takes equal shares of that density up to t = 0.
    """
    node, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(64))
    alpha = torch.linspace(0, 1, NODES, dtype=torch.float64)[:, None] ** 2
    share = (node + 1) / 2 / (1 + alpha**2)
    t = 2 * (1 - share) / (1 + (alpha**2 - 1) * share) - 1
    legendre = torch.stack([torch.ones_like(t), t, (3 * t**2 - 1) / 2], dim=-1)
    total = ((weight * t)[..., None] * legendre).sum(1)
    return total / total[:, :1]
