"""Cameras on an orbit around the origin, and the conventions of the whole project.

World: glTF's. Right-handed, +Y up, the front of an object faces +Z, metres.
Angles: radians. Azimuth 0 stands on +Z and looks at the front; it grows toward +X. Elevation up is positive.
Camera: +X right, +Y up, looks along -Z, so a camera-space normal (right, up, toward the camera) needs no flip.
Pictures: channels last, row 0 on top; `rgb` and `albedo` are display sRGB in [0, 1].
Clip space: OpenGL's, x right, y up, z/w from -1 (near) to 1 (far).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

FILLED = math.tan(math.asin(1 / 3.1)) / math.tan(math.radians(20))  # of half the frame, by a ball of radius 1


@dataclass(frozen=True)
class Cameras:
    """B perspective cameras that look at the origin."""

    azimuth: Float[Tensor, "B"]  # radians
    elevation: Float[Tensor, "B"]  # radians, within (-pi/2, pi/2)
    distance: Float[Tensor, "B"]  # metres from the origin
    fov_y: Float[Tensor, "B"]  # radians, the vertical field of view

    def __len__(self) -> int:
        return len(self.azimuth)

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        return Cameras(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(*(getattr(self, f.name).to(device) for f in fields(self)))

    @property
    def position(self) -> Float[Tensor, "B 3"]:
        horizontal = self.distance * self.elevation.cos()
        return torch.stack(
            [
                horizontal * self.azimuth.sin(),
                self.distance * self.elevation.sin(),
                horizontal * self.azimuth.cos(),
            ],
            dim=-1,
        )

    @property
    def rotation(self) -> Float[Tensor, "B 3 3"]:
        """World from camera: the columns are the camera's right, up and backward axes in the world."""
        sin_a, cos_a = self.azimuth.sin(), self.azimuth.cos()
        sin_e, cos_e = self.elevation.sin(), self.elevation.cos()
        right = torch.stack([cos_a, torch.zeros_like(cos_a), -sin_a], dim=-1)
        up = torch.stack([-sin_e * sin_a, cos_e, -sin_e * cos_a], dim=-1)
        backward = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], dim=-1)
        return torch.stack([right, up, backward], dim=-1)

    def rays(self, height: int, width: int) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 3"]]:
        """Origins and unit directions through the pixel centres, in the world."""
        like = self.azimuth
        y = 1 - (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2 / height)
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
        tan = (self.fov_y / 2).tan()[:, None, None]
        x, y = torch.broadcast_tensors(x[None, None, :] * tan * (width / height), y[None, :, None] * tan)
        through = torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], dim=-1), dim=-1)
        directions = torch.einsum("bij,bhwj->bhwi", self.rotation, through)
        return self.position[:, None, None].expand_as(directions), directions

    def clip_from_world(self, aspect: float = 1.0, near: float = 0.1, far: float = 100.0) -> Float[Tensor, "B 4 4"]:
        """Projection times view; `aspect` is width over height."""
        camera_from_world = torch.zeros(len(self), 4, 4, dtype=self.azimuth.dtype, device=self.azimuth.device)
        camera_from_world[:, :3, :3] = self.rotation.mT
        camera_from_world[:, :3, 3] = -(self.rotation.mT @ self.position[:, :, None])[:, :, 0]
        camera_from_world[:, 3, 3] = 1
        focal = 1 / (self.fov_y / 2).tan()
        projection = torch.zeros_like(camera_from_world)
        projection[:, 0, 0] = focal / aspect
        projection[:, 1, 1] = focal
        projection[:, 2, 2] = (near + far) / (near - far)
        projection[:, 2, 3] = 2 * near * far / (near - far)
        projection[:, 3, 2] = -1
        return projection @ camera_from_world


def joined(cameras: Sequence[Cameras]) -> Cameras:
    """All of them, one after the other."""
    return Cameras(*(torch.cat([getattr(each, f.name) for each in cameras]) for f in fields(Cameras)))


def framing(fov_y: float) -> float:
    """The distance, in metres, from which a lens of so many radians shows a ball of radius 1 as `orbit` does."""
    return 1 / math.sin(math.atan(FILLED * math.tan(fov_y / 2)))


def orbit(
    count: int, elevation: float = math.radians(15), distance: float = 3.1, fov_y: float = math.radians(40)
) -> Cameras:
    """`count` cameras at equal steps around the object, the first one looking at its front."""
    azimuth = torch.arange(count) * (2 * math.pi / count)
    one = torch.ones_like(azimuth)
    return Cameras(azimuth, elevation * one, distance * one, fov_y * one)
