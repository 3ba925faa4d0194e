"""The cameras of priors that draw all of their views together, and none from anywhere else.

Zero123++ (Shi et al. 2023, arXiv 2310.15110) and Wonder3D (Long et al. 2023, arXiv 2310.15008) are told no cameras:
theirs are always the same beside that of the picture. So they are drawn at these, and a scene is fitted to that. Such
a prior says its `rig`, and the `background` before which it draws, display sRGB in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from threed.renderers.camera import Cameras, framing

NEAR = 1e-3  # radians, and of the distance: how far off cameras may stand


@dataclass(frozen=True)
class Rig:
    """The cameras of the views that a prior draws together, in the order in which it draws them."""

    azimuth: tuple[float, ...]  # degrees; beside that of the picture
    elevation: tuple[float, ...]  # degrees; absolute, or beside that of the picture
    fov: float  # degrees; a narrow lens stands in for an orthographic one
    relative: bool = False  # whether elevations are beside the picture's
    # Whether they turn about the picture's own upright axis. Its camera then counts as one at elevation 0, however high
    # it stood, and what is fitted leans towards it by as much.
    level: bool = False

    def __post_init__(self) -> None:
        if len(self.azimuth) != len(self.elevation):
            raise ValueError(f"{len(self.azimuth)} azimuths and {len(self.elevation)} elevations; give one of each")

    def __len__(self) -> int:
        return len(self.azimuth)

    def cameras(self, azimuth: float, elevation: float) -> Cameras:
        """Of a picture that was seen from there, in radians; they frame a ball of radius 1 as `framing` has it."""
        turned = torch.tensor(self.azimuth).deg2rad() + azimuth
        raised = torch.tensor(self.elevation).deg2rad() + (elevation if self.relative and not self.level else 0.0)
        fov = torch.full_like(turned, math.radians(self.fov))
        return Cameras(turned, raised, torch.full_like(turned, framing(math.radians(self.fov))), fov)

    def check(self, cameras: Cameras, seen: Cameras) -> None:
        """Raises ValueError for cameras that are not these, in this order, of a picture that this one camera saw."""
        wanted = self.cameras(float(seen.azimuth), float(seen.elevation)).to(cameras.azimuth.device)
        if len(cameras) != len(self) or not _alike(cameras, wanted):
            raise ValueError(
                f"this prior draws {len(self)} views from its own cameras and no others; ask it for those of its rig"
            )


def _alike(some: Cameras, others: Cameras) -> bool:
    """Up to whole turns."""
    close = [
        torch.sin((some.azimuth - others.azimuth) / 2).abs() * 2 < NEAR,
        (some.elevation - others.elevation).abs() < NEAR,
        (some.distance / others.distance - 1).abs() < NEAR,
        (some.fov_y - others.fov_y).abs() < NEAR,
    ]
    return bool(torch.stack(close).all())
