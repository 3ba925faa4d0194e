"""Environment maps: linear radiance from all sides as an equirectangular picture, filtered for every roughness.

Row 0 looks up (+Y). The middle column looks along +X, and columns go on toward +Z, as three.js has it. Filtering is
linear in the texels and differentiable to them, so an environment can be learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from threed.renderers.brdf import distribution
from threed.renderers.light import Harmonics, Points, display, harmonics
from threed.renderers.ops import ops

ROUGHNESSES = tuple(k / 8 for k in range(9))  # of the levels
FEWEST, MOST = 8, 128  # rows; the filter's memory grows with their cube
POLE = 1e-8  # the least squared distance from the axis at which a longitude exists


@dataclass(frozen=True)
class Environment:
    levels: Float[Tensor, "L Hp Wp 3"]  # one for each of ROUGHNESSES, with a border of one texel that wraps around
    harmonics: Harmonics

    @classmethod
    def from_texels(cls, texels: Float[Tensor, "H W 3"]) -> Environment:
        """Filter a picture of linear radiance; raises ValueError for sizes that cannot be filtered."""
        height, width = texels.shape[:2]
        if not FEWEST <= height <= MOST or width % 2 or not FEWEST <= width <= 2 * MOST:
            raise ValueError(
                f"an environment map of {height} rows and {width} columns cannot be filtered; "
                f"resize it to {MOST // 2} rows and {MOST} columns"
            )
        levels = torch.cat([texels[None], _filtered(texels)])
        weighted = harmonics(directions(height, width).to(texels)) * solid_angles(height, width).to(texels)[:, None]
        return cls(_bordered(levels), Harmonics(torch.einsum("hwk,hwc->kc", weighted, texels)))

    def irradiance(self, normal: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
        return self.harmonics.irradiance(normal)

    def reflected(self, direction: Float[Tensor, "*P 3"], roughness: Float[Tensor, "*P 1"]) -> Float[Tensor, "*P 3"]:
        """Bilinear in the picture, linear in roughness."""
        levels, height, width = self.levels.shape[:3]
        level = roughness.clamp(0, 1) * (levels - 1)
        lower = level.detach().floor().clamp(max=levels - 2)
        x, y = (uv_from_direction(direction) * direction.new_tensor([width - 2, height - 2]) + 1).split(1, dim=-1)
        size = direction.new_tensor([width, levels * height])
        below, above = (
            ops(direction.device).texture(self.levels.flatten(0, 1), torch.cat([x, y + each * height], dim=-1) / size)
            for each in (lower, lower + 1)
        )
        return torch.lerp(below, above, (level - lower).expand_as(below))

    def shade(self, points: Points) -> Float[Tensor, "*P 3"]:
        return display(points, self)


def uv_from_direction(direction: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 2"]:
    """Picture coordinates in [0, 1], u right and v down; the longitude of the poles is 0."""
    x, y, z = direction.unbind(-1)
    squared = x**2 + z**2
    pole = squared < POLE
    u = torch.atan2(z, torch.where(pole, 1.0, x)) / (2 * math.pi) + 0.5
    v = torch.atan2(squared.clamp(min=POLE).sqrt(), y) / math.pi
    return torch.stack([u, v], dim=-1)


def directions(height: int, width: int) -> Float[Tensor, "H W 3"]:
    """Where the texel centres of an environment map look, float64."""
    polar = _centres(height) * math.pi
    azimuth = (_centres(width) - 0.5) * (2 * math.pi)
    x, z = (polar.sin()[:, None] * each for each in (azimuth.cos(), azimuth.sin()))
    return torch.stack([x, polar.cos()[:, None].expand_as(x), z], dim=-1)


def solid_angles(height: int, width: int) -> Float[Tensor, "H 1"]:
    """Steradians for which a texel of each row stands, float64: Fejér's first rule (1933).

    Sums over the sphere are exact for polynomials of a degree below the number of rows and of columns.
    """
    k = torch.arange(1, height // 2 + 1, dtype=torch.float64)
    waves = (2 * math.pi * k * _centres(height)[:, None]).cos() / (4 * k**2 - 1)
    return (1 - 2 * waves.sum(1, keepdim=True)) * (4 * math.pi / (height * width))


def _filtered(texels: Float[Tensor, "H W 3"]) -> Float[Tensor, "L H W 3"]:
    """The picture as surfaces of all ROUGHNESSES but the first mirror it: along rows a convolution, hence by FFT."""
    height, width = texels.shape[:2]
    spectrum = torch.view_as_real(torch.fft.rfft(texels, dim=1)).movedim(1, 0).flatten(2)
    found = _lobes(height, width).to(texels) @ spectrum
    found = torch.view_as_complex(found.unflatten(-1, (3, 2)).contiguous())
    return torch.fft.irfft(found, n=width, dim=0).unflatten(1, (-1, height)).movedim(0, 2)


@lru_cache(maxsize=2)
def _lobes(height: int, width: int) -> Float[Tensor, "K LH H"]:
    """The share of texels of one row in those of another, for each roughness and each frequency along the rows.

    Karis' weights are those of `light.lobe_bands`. Shares sum to one, so an even light stays as it is.
    """
    seen = directions(height, width)
    cosine = torch.einsum("ic,jwc->ijw", seen[:, 0], seen)  # from column 0 to all: even, so the spectrum is real
    weight = cosine.clamp(min=0) * solid_angles(height, width)
    lobes = []
    for roughness in ROUGHNESSES[1:]:
        lobe = weight * distribution((1 - cosine) / 2, cosine.new_tensor(roughness**2))
        lobes.append(torch.fft.rfft(lobe / lobe.sum((1, 2), keepdim=True)).real.float())
    return torch.cat(lobes).movedim(-1, 0).contiguous()


def _bordered(levels: Float[Tensor, "L H W 3"]) -> Float[Tensor, "L Hp Wp 3"]:
    """With one more texel on all sides: around the circle, and over the poles to the opposite longitude."""
    half = levels.shape[2] // 2
    tall = torch.cat([levels[:, :1].roll(half, 2), levels, levels[:, -1:].roll(half, 2)], dim=1)
    return torch.cat([tall[:, :, -1:], tall, tall[:, :, :1]], dim=2)


def _centres(count: int) -> Float[Tensor, "N"]:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count
