"""Sketch-Shape: a user's mesh as a soft constraint on a volume (Metzer et al. 2022, arXiv 2211.07600, section 3.4).

With p(x) = 1 - exp(-REACH density(x)), how solid the volume is at x, whether x is inside the mesh, and d(x) metres, how
far from its surface it is,

    loss = mean over x of cross-entropy(p(x), inside(x)) (1 - exp(-d(x)^2 / (2 lenience^2))):

far from the surface the volume is what the mesh is, near it it is free. The paper asks the winding number what is
inside; here it is what cannot be seen from any side, which is the same for closed meshes and minds no open ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threed.renderers.voxels import Voxels
from threed.tets import unsigned_distance

POINTS, SOME = 1 << 15, 1 << 12  # of the cube that are looked at, and of those a step
REACH = 0.2  # metres of density that a point is judged by, as widely used: it is solid from 3.5 a metre on
LEAST = 1e-4  # added to REACH density inside: what is empty there, and should not be, has a finite slope


class Sketch(nn.Module):
    """What a volume is held to, at points of its cube."""

    points: Float[Tensor, "N 3"]  # metres
    inside: Float[Tensor, "N"]  # 1 inside the mesh, 0 outside
    weight: Float[Tensor, "N"]  # 0 at the surface, 1 far from it

    def __init__(self, points: Float[Tensor, "N 3"], inside: Float[Tensor, "N"], weight: Float[Tensor, "N"]) -> None:
        super().__init__()
        for name, value in (("points", points), ("inside", inside), ("weight", weight)):
            self.register_buffer(name, value, persistent=False)

    @staticmethod
    def of(voxels: Voxels, radius: float, bound: float, lenience: float, generator: torch.Generator) -> Sketch:
        """A mesh's voxels, what is at `radius` in their frame being at a metre; `lenience` in metres, above 0."""
        points = (2 * torch.rand(POINTS, 3, generator=generator) - 1) * bound
        mesh = voxels.mesh()
        distance = unsigned_distance(points, mesh.with_vertices(mesh.vertices / radius), 4 * lenience)
        inside = (voxels.at(points * radius)[0] < 0).float()
        return Sketch(points, inside, 1 - (-(distance**2) / (2 * lenience**2)).exp())

    def forward(self, density: Callable[[Tensor], Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
        """How far a volume is from it, by some of the points."""
        some = torch.randint(len(self.points), (SOME,), generator=generator).to(self.points.device)
        return held(density(self.points[some]), self.inside[some], self.weight[some])


def held(density: Float[Tensor, "N"], inside: Float[Tensor, "N"], weight: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """The weighted cross-entropy; of the outside it is REACH density, of the inside -log(1 - exp(-REACH density))."""
    depth = REACH * density
    solid = -(-torch.expm1(-depth - LEAST)).log()
    return (weight * (inside * solid + (1 - inside) * depth)).mean()
