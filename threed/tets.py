"""A solid as a signed distance and a bounded deformation on a tetrahedral grid: DMTet without its network (Shen et al.
2021, arXiv 2111.04276, section 3.1).

The cube is [-bound, bound]^3 metres. Distances are in metres, negative inside. A level is any function of the position
that is negative inside: only where it is 0 matters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional

from threed.errors import Mistake
from threed.renderers.mesh import Mesh
from threed.renderers.nearest import tree
from threed.renderers.volume import Field
from threed.tetrahedra import SNAP, TetGrid, march, tile

CHUNK = 1 << 17  # points at once
TRUNCATION = 1.0  # cells: no edge is longer, so that the surface does not change; beyond, it may come soon
NEAREST = 16  # triangles by their centroids, of which the nearest is taken: more than the small ones around a vertex
FAINTEST = 1e-6  # density, per metre

Level = Callable[[Tensor], Tensor]  # "N 3" metres to "N"


@dataclass(frozen=True)
class TetConfig:
    resolution: int = 64  # cells along a side of the cube; two vertices and twelve tetrahedra each
    bound: float = 1.0  # metres, half the side of the cube
    margin: float = 0.1  # metres around the solid in which the surface may move; infinite for the whole cube
    deformation: float = 0.2  # of a cell: how far a vertex moves along each axis, at most
    distance_rate: float = 0.05  # learning rates: cells, and shares of the deformation, a step
    deformation_rate: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.deformation < 1 / 4:
            raise Mistake(f"a deformation of {self.deformation} cells turns tetrahedra inside out; stay below 0.25")
        if self.resolution < 1 or not self.bound > 0 or not self.margin >= 0:
            raise Mistake(f"{self} has no cells; use a resolution and a bound above 0, and a margin that is not below")

    @property
    def cell(self) -> float:
        """The side of a cell, in metres."""
        return 2 * self.bound / self.resolution


class TetScene(nn.Module):
    """A surface that is closed and faces outward, whatever its parameters are.

    Vertices on the grid's border stay outside and in place. No other leaves its place by more than d = `deformation`
    cells along an axis, and so no tetrahedron turns inside out. Let the side of a cell be 1. Four edges of a
    tetrahedron join a corner to a centre: one along each diagonal (+-1/2, +-1/2, +-1/2). So for any normal n there is
    one, e, whose signs are those of n, and |e . n| = |n|_1 / 2. Moving its ends changes e . n by 2 d |n|_1 at most.
    Were the vertices ever in a plane of normal n, e . n would be 0, hence d >= 1/4; below that the tetrahedron's volume
    is never 0 on the way from where it was, and keeps its sign. At the cube's surface, where centres are moved onto
    it, three vertices of such a tetrahedron stay in place and the fourth is 1/2 away from their plane.
    """

    sdf: Float[Tensor, "N"]  # cells
    deformation: Float[Tensor, "N 3"]  # its hyperbolic tangent is the share of what is allowed

    def __init__(self, config: TetConfig, occupied: Bool[Tensor, "R R R"]) -> None:
        """Everything is outside yet."""
        super().__init__()
        self.config = config
        grid = tile(occupied, config.bound)
        for field in fields(TetGrid):
            self.register_buffer(field.name, getattr(grid, field.name), persistent=False)
        self.sdf = nn.Parameter(torch.full_like(grid.vertices[:, 0], TRUNCATION))
        self.deformation = nn.Parameter(torch.zeros_like(grid.vertices))

    @classmethod
    def from_level(cls, level: Level, config: TetConfig) -> TetScene:
        """The solid where `level` is negative, cut off at the cube. What is thinner than a cell may be left out.

        Raises ValueError when nothing is inside, and for values that are not finite.
        """
        scene = cls(config, occupied(level, config))
        value = sampled(level, scene.grid.vertices)
        value = torch.where(scene.grid.border, value.clamp(min=0), value)
        surface = march(scene.grid, value, scene.grid.vertices)
        far = unsigned_distance(scene.grid.vertices, surface, TRUNCATION * config.cell) / config.cell
        far = far.clamp(min=SNAP)  # a distance of 0 would have lost its sign
        with torch.no_grad():
            scene.sdf.copy_(torch.where(value < 0, -far, far))
        return scene

    @classmethod
    def from_field(cls, field: Field, threshold: float, config: TetConfig) -> TetScene:
        """The solid where a volume is denser than `threshold`, per metre: a coarse stage's, an imagined one, or, as
        voxels, a user's mesh. Raises ValueError like `from_level`.
        """

        def level(x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
            # The logarithm is nearly linear across the surface, so that edges are cut where the density is.
            return math.log(threshold) - field.density(x).clamp(min=FAINTEST).log()

        return cls.from_level(level, config)

    @classmethod
    def from_ellipsoid(cls, radii: tuple[float, float, float], config: TetConfig) -> TetScene:
        """The ellipsoid around the origin with these radii along x, y and z, in metres; a sphere where they are equal.

        Raises Mistake when it does not fit into the cube.
        """
        if not all(0 < radius < config.bound for radius in radii):
            raise Mistake(f"radii of {radii} m; use three between 0 and {config.bound}, half the side of the cube")
        return cls.from_level(lambda x: (x / x.new_tensor(radii)).norm(dim=-1) - 1, config)

    def continued(self, config: TetConfig) -> TetScene:
        """The same surface, to be optimised at other rates. Raises ValueError for a configuration of another grid."""
        was = self.config
        if replace(config, distance_rate=was.distance_rate, deformation_rate=was.deformation_rate) != was:
            raise ValueError(f"a surface on the grid of {self.config} cannot go on as {config}; change the rates alone")
        scene = copy.deepcopy(self)
        scene.config = config
        return scene

    @property
    def grid(self) -> TetGrid:
        return TetGrid(*(getattr(self, field.name) for field in fields(TetGrid)))

    @property
    def distance(self) -> Float[Tensor, "N"]:
        """Metres."""
        kept = self.sdf.detach().clamp(min=0)
        return torch.where(self.grid.border, kept, self.sdf) * self.config.cell

    @property
    def positions(self) -> Float[Tensor, "N 3"]:
        """Metres."""
        grid, reach = self.grid, self.config.deformation * self.config.cell
        return grid.vertices + reach * torch.where(grid.border[:, None], 0, self.deformation.tanh())

    def mesh(self) -> Mesh:
        """The closed, outward surface; no faces where nothing is inside."""
        return march(self.grid, self.distance, self.positions)

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.sdf], "lr": self.config.distance_rate},
            {"params": [self.deformation], "lr": self.config.deformation_rate},
        ]


@torch.no_grad()
def sampled(level: Level, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    """Raises ValueError for values that are not finite."""
    values = torch.cat([level(some) for some in points.split(CHUNK)])
    if not values.isfinite().all():
        raise ValueError("the volume to start from is not finite everywhere; use one that is")
    return values


def occupied(level: Level, config: TetConfig) -> Bool[Tensor, "R R R"]:
    """The cells within the margin of one that has a corner or its centre inside. Raises ValueError where none has."""
    # The very places of the grid's vertices; what is on the cube's surface is outside.
    places = (torch.arange(1, 2 * config.resolution) / config.resolution - 1) * config.bound
    at_corners, at_centres = (
        sampled(level, torch.cartesian_prod(axis, axis, axis)).reshape((len(axis),) * 3) < 0
        for axis in (places[1::2], places[::2])
    )
    around = functional.max_pool3d(functional.pad(at_corners.float(), (1,) * 6)[None], 2, stride=1)[0]
    inside = at_centres | around.bool()
    if not inside.any():
        raise ValueError(f"nothing is inside at {config.resolution} cells a side; use more, or a lower threshold")
    cells_away = distance_transform_edt(~inside.numpy())
    return torch.from_numpy(cells_away <= config.margin / config.cell)


@torch.no_grad()
def unsigned_distance(points: Float[Tensor, "N 3"], mesh: Mesh, reach: float) -> Float[Tensor, "N"]:
    """To a mesh of small triangles, up to `reach`."""
    corners = mesh.corners.double()
    middle = corners.mean(1)
    size = float((corners - middle[:, None]).norm(dim=-1).amax())
    _, nearest = tree(middle.numpy()).query(points.numpy(), NEAREST, distance_upper_bound=reach + size)
    nearest = torch.from_numpy(nearest)
    distance = points.new_full((len(points),), reach)
    (near,) = (nearest[:, 0] < len(corners)).nonzero(as_tuple=True)
    for some in near.split(CHUNK // NEAREST):
        # Where there are fewer triangles within reach, the nearest is looked at again.
        candidates = torch.where(nearest[some] < len(corners), nearest[some], nearest[some, :1])
        found = distance_to_triangles(points[some, None].double(), corners[candidates])
        distance[some] = found.amin(1).to(distance).clamp(max=reach)
    return distance


def distance_to_triangles(points: Float[Tensor, "N 1 3"], corners: Float[Tensor, "N K 3 3"]) -> Float[Tensor, "N K"]:
    """From each point to each of its triangles."""
    ahead = corners.roll(-1, dims=2)
    edges, ways = ahead - corners, points[:, :, None] - corners
    along = ((ways * edges).sum(-1) / edges.square().sum(-1)).clamp(0, 1)
    to_edges = (ways - along[..., None] * edges).norm(dim=-1).amin(-1)
    normal = functional.normalize(edges[..., 0, :].cross(edges[..., 1, :], dim=-1), dim=-1)
    # Above the triangle, a point is on the inner side of all three edges.
    above = ((edges.cross(ways, dim=-1) * normal[..., None, :]).sum(-1) >= 0).all(-1)
    return torch.where(above, (ways[..., 0, :] * normal).sum(-1).abs(), to_edges)
