"""Renders as the maps that ControlNets were trained to follow (Zhang et al. 2023, arXiv 2302.05543, section 4.1).

depth       inverse depth, as MiDaS estimates it: 1 at the nearest point of the object and 0 at the farthest, linear in
            1 / z between them, z being metres along the camera's axis; the background is 0
normal      camera-space normals in the colours of ControlNet 1.1: red is left, green is up, blue is toward the camera,
            each (n + 1) / 2; the background faces the camera

Channels last, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from threed.renderers.camera import Cameras
from threed.renderers.volume import Render

ControlKind = Literal["depth", "normal"]
FLATTEST = 1e-3  # of the nearest 1 / z: a span below that is rounding, not shape


def depth_map(render: Render, cameras: Cameras) -> Float[Tensor, "B H W 3"]:
    """Inverse depth of every picture's object, the edge of its outline blended with the background."""
    alpha = render.alpha
    _, directions = cameras.rays(*alpha.shape[1:3])
    axis = -cameras.rotation[:, None, None, :, 2]
    z = render.depth * (directions * axis).sum(-1, keepdim=True)  # times alpha
    near = alpha / z.clamp(min=1e-6)
    inside = alpha > 0.5 * alpha.amax(dim=(1, 2, 3), keepdim=True)  # a volume may be thin everywhere
    nearest = near.where(inside, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    farthest = near.where(inside, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    span = (nearest - farthest).maximum(FLATTEST * nearest)
    shown = (1 - (nearest - near) / span).clamp(0, 1) * alpha
    return shown.where(alpha > 0, 0.0).expand(-1, -1, -1, 3)


def normal_map(render: Render, cameras: Cameras) -> Float[Tensor, "B H W 3"]:
    """Normals of every picture; those of the render are right, up, toward the camera."""
    del cameras
    left = normalize(render.normal, dim=-1, eps=1e-4) * render.normal.new_tensor([-1.0, 1.0, 1.0])
    facing = render.normal.new_tensor([0.5, 0.5, 1.0])
    return (left + 1) / 2 * render.alpha + facing * (1 - render.alpha)


MAPS: dict[ControlKind, Callable[[Render, Cameras], Float[Tensor, "B H W 3"]]] = {
    "depth": depth_map,
    "normal": normal_map,
}
