"""Pictures onto surfaces: what colour the points of a mesh have, according to pictures of it from all around.

A picture speaks of a point that lies inside its frame and its object, that nothing hides, and whose surface faces the
camera: the more squarely, the more its word counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.renderers import surface
from threed.renderers.camera import Cameras
from threed.renderers.mesh import Mesh

DEPTH_SIZE = 512  # pixels a side of the depth maps that tell what is hidden
BIAS = 1.5  # widths of such a pixel, by which a point may lie behind what was seen
GRAZING, SQUARE = 0.2, 0.5  # cosines between normal and view: below the one nothing is believed, above the other all
SHARPNESS = 4  # power of the cosine in the mean over pictures; the higher, the less they blur one another


@dataclass(frozen=True)
class Projection:
    """C pictures of a mesh, cut out, ready to be asked about its points."""

    cameras: Cameras
    pictures: Float[Tensor, "C H W 3"]  # display sRGB in [0, 1] times alpha
    alpha: Float[Tensor, "C H W 1"]
    depth: Float[Tensor, "C D D 1"]  # metres from the camera to what is nearest, infinite where nothing is

    @staticmethod
    @torch.no_grad()
    def of(
        mesh: Mesh, cameras: Cameras, pictures: Float[Tensor, "C H W 3"], alpha: Float[Tensor, "C H W 1"]
    ) -> Projection:
        """Pictures of this mesh, in which alpha times the colour and alpha are given."""
        seen = surface.render(mesh, cameras, DEPTH_SIZE, DEPTH_SIZE, supersample=1)
        return Projection(cameras, pictures, alpha, torch.where(seen.alpha > 0, seen.depth, torch.inf))

    @torch.no_grad()
    def __call__(
        self, points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 1"]]:
        """Display sRGB of points of the surface with these unit normals, and how far to believe it, 0 to 1."""
        colour, total, belief = (
            torch.zeros_like(points),
            points.new_zeros(len(points), 1),
            points.new_zeros(len(points), 1),
        )
        for view in range(len(self.cameras)):
            seen, trust = self._one(view, points, normals)
            weight = trust[:, :1]
            colour += weight * seen
            total += weight
            belief = torch.maximum(belief, trust[:, 1:])
        return colour / total.clamp(min=1e-12), belief

    def _one(
        self, view: int, points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 2"]]:
        """What one picture says, with what weight among others and how believably."""
        camera = self.cameras[view : view + 1]
        toward = camera.position - points
        distance = toward.norm(dim=-1, keepdim=True)
        facing = (normals * toward).sum(-1, keepdim=True) / distance
        clip = functional.pad(points, (0, 1), value=1.0) @ camera.clip_from_world()[0].mT
        where = clip[:, :2] / clip[:, 3:].clamp(min=1e-6) * clip.new_tensor([1.0, -1.0])  # row 0 on top
        inside = (where.abs() < 1).all(-1, keepdim=True) & (clip[:, 3:] > 0)
        rgb, alpha = _sampled(torch.cat([self.pictures[view], self.alpha[view]], dim=-1), where).split([3, 1], dim=-1)
        depth = _sampled(self.depth[view], where, mode="nearest")
        pixel = 2 * distance * torch.tan(camera.fov_y / 2) / self.depth.shape[1]
        visible = inside & (distance <= depth + BIAS * pixel / facing.clamp(min=GRAZING))
        # Towards the outline a picture mixes the object with what is behind it.
        sound = visible * (2 * alpha - 1).clamp(min=0) * ((facing - GRAZING) / (SQUARE - GRAZING)).clamp(0, 1)
        return rgb / alpha.clamp(min=1e-3), torch.cat([sound * facing.clamp(min=0) ** SHARPNESS, sound], dim=-1)


def _sampled(
    picture: Float[Tensor, "H W K"], where: Float[Tensor, "N 2"], mode: str = "bilinear"
) -> Float[Tensor, "N K"]:
    """Values at places in [-1, 1]^2, (-1, -1) the upper left corner; beyond the border those at the border."""
    found = functional.grid_sample(
        picture.movedim(-1, 0)[None], where[None, None], mode=mode, padding_mode="border", align_corners=False
    )
    return found[0, :, 0].mT
