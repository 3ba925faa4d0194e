"""Known solids from pictures of them: silhouettes and normals of 16 views, and nothing else.

    python benchmarks/inverse.py [--solids barrel box torus chair] [--steps 120]

The surface starts as what the silhouettes leave of the cube (the visual hull) on a tetrahedral grid, and moves, whole
sides first, until its own silhouettes and normals are those of the pictures: marching tetrahedra, rasterizer and
antialias, and back.
Chamfer is the mean distance from either surface to the other, in per cent of the true one's diagonal; normals are
compared between nearest points. The hull's own figures stand beside them. Writes benchmarks/results/inverse.{json,png}.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor, nn
from torch.nn import functional
from truth import SOLIDS

from threed.machine import set_threads
from threed.mesh_regularizers import laplacian
from threed.paint import scattered
from threed.pictures import portraits, sheet
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.nearest import tree
from threed.renderers.surface import CLAY
from threed.tetrahedra import march
from threed.tets import Level, TetConfig, TetScene, sampled
from threed.train import seeded
from threed.training.measures import chamfer

RESULTS = Path(__file__).parent / "results"
POINTS = 200_000  # of each surface: two such samples of one surface are 0.1 % of its diagonal apart
FIGURES = ("chamfer_percent", "normal_degrees", "bodies", "holes", "seconds", "core_seconds")


@dataclass(frozen=True)
class Settings:
    views: int = 16
    at_once: int = 4  # views a step
    size: int = 160  # pixels a side
    steps: int = 120
    grid: TetConfig = field(
        default_factory=lambda: TetConfig(resolution=56, margin=0.12, distance_rate=0.06, deformation_rate=0.03)
    )
    lattices: tuple[int, ...] = (8, 16, 32)  # cells a side, of what is added to the distance
    normals: float = 1.0  # weight beside the silhouettes
    smooth: float = 30.0  # of the Laplacian, in square cells


def ring(views: int) -> Cameras:
    """Around the solid, alternately from below, from the side, and from high above."""
    around = orbit(views)
    elevation = torch.tensor([-25.0, 10.0, 55.0, 25.0]).repeat(-(-views // 4))[:views]
    return replace(around, elevation=elevation * (math.pi / 180))


def hull(alpha: Float[Tensor, "C H W 1"], cameras: Cameras) -> Level:
    """How far a point lies outside the outline that it misses most, in metres; negative where all pictures cover it."""
    away = torch.stack([outside(picture[..., 0].numpy() > 0.5) for picture in alpha])
    pixel = 2 * (cameras.fov_y / 2).tan() / alpha.shape[1]  # metres, a metre away

    def level(points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        clip = functional.pad(points, (0, 1), value=1.0) @ cameras.clip_from_world().mT
        where = clip[..., :2] / clip[..., 3:] * clip.new_tensor([1.0, -1.0])
        found = functional.grid_sample(away[:, None], where[:, None], padding_mode="border", align_corners=False)
        return (found[:, 0, 0] * clip[..., 3] * pixel[:, None]).amax(0)

    return level


def outside(covered: Bool[np.ndarray, "H W"]) -> Float[Tensor, "H W"]:
    """Pixels from the outline, negative inside; without the steps of the raster."""
    steps = np.where(covered, 0.5 - distance_transform_edt(covered), distance_transform_edt(~covered) - 0.5)
    return torch.from_numpy(gaussian_filter(steps, 1.0)).float()


def smoothed(level: Level, cells: int = 72) -> Level:
    """The same, blurred by a cell of a lattice: silhouettes of pixels leave frayed ridges, full of little holes."""
    axis = torch.linspace(-1, 1, cells + 1)
    values = sampled(level, torch.cartesian_prod(axis, axis, axis)).reshape((cells + 1,) * 3)
    blurred = torch.from_numpy(gaussian_filter(values.numpy(), 1.0)).permute(2, 1, 0)[None, None]

    def smooth(points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        return functional.grid_sample(blurred, points[None, None, None], align_corners=True)[0, 0, 0, 0]

    return smooth


class Layered(nn.Module):
    """A surface whose distance is a sum over lattices, from coarse to fine.

    Normals say how a side lies and only its border says where: on one fine grid, what the border knows wanders inward
    a cell at a time, and a seat stays two per cent too thick.
    """

    def __init__(self, level: Level, settings: Settings) -> None:
        super().__init__()
        self.scene = TetScene.from_level(level, settings.grid)
        with torch.no_grad():  # as deep as it is, and not only a cell, because layers may take off more
            self.scene.sdf.copy_(level(self.scene.grid.vertices) / settings.grid.cell)
        self.layers = nn.ParameterList(torch.zeros(1, 1, *(side + 1,) * 3) for side in settings.lattices)

    def mesh(self) -> Mesh:
        scene, where = self.scene, self.scene.grid.vertices[None, None, None] / self.scene.config.bound
        distance = scene.distance
        for layer in self.layers:
            added = functional.grid_sample(layer, where, align_corners=True)[0, 0, 0, 0]
            distance = distance + torch.where(scene.grid.border, 0, added * scene.config.cell)
        return march(scene.grid, distance, scene.positions)

    def param_groups(self) -> list[dict[str, Any]]:
        layers = {"params": list(self.layers), "lr": self.scene.config.distance_rate}
        return [*self.scene.param_groups(), layers]


def fitted(truth: Asset, settings: Settings) -> tuple[Mesh, Mesh, dict[str, float]]:
    """The hull, what became of it, and the seconds that took, by the clock and of all cores; pictures not counted."""
    cameras = ring(settings.views)
    aim = surface.render(truth, cameras, settings.size, settings.size, supersample=3)
    began, worked = time.perf_counter(), time.process_time()
    surfaces = Layered(smoothed(hull(aim.alpha, cameras)), settings)
    with torch.no_grad():
        first = surfaces.mesh()
    optimizer = torch.optim.Adam(surfaces.param_groups(), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(settings.steps):
        left = 1 - step / settings.steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * max(left, 0.1)
        some = (torch.arange(settings.at_once) * (settings.views // settings.at_once) + step) % settings.views
        shown = surface.render(surfaces.mesh(), cameras[some], settings.size, settings.size, supersample=1)
        silhouette = (shown.alpha - aim.alpha[some]).square().mean()
        facing = (shown.normal - aim.normal[some]).square().sum(-1).mean()
        assert shown.mesh
        even = laplacian(shown.mesh, shown.edges) / settings.grid.cell**2
        loss = silhouette + settings.normals * facing + settings.smooth * left * 1e-4 * even
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        took = {"seconds": time.perf_counter() - began, "core_seconds": time.process_time() - worked}
        return first, surfaces.mesh(), took


def outer(asset: Asset) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points and normals of what can be touched from outside: parts of a solid may reach into one another."""
    points, normals, _ = scattered(asset, POINTS, seeded(0))
    if bodies(asset.mesh) == 1:
        return points, normals
    touched = ~inside(asset.mesh, points + 1e-3 * normals)
    return points[touched], normals[touched]


def inside(mesh: Mesh, points: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
    """By the winding number (van Oosterom and Strackee 1983)."""
    found = []
    for some in points.split(4096):
        a, b, c = (mesh.corners - some[:, None, None]).unbind(2)
        la, lb, lc = (x.norm(dim=-1) for x in (a, b, c))
        volume = (a * b.cross(c, dim=-1)).sum(-1)
        weight = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        found.append(torch.atan2(volume, weight).sum(-1) / (2 * math.pi))
    return torch.cat(found) > 0.5


def clay(mesh: Mesh) -> Asset:
    """A mesh in one colour."""
    return Asset("clay", mesh, torch.zeros(1, 2), torch.zeros_like(mesh.faces), Material(torch.full((1, 1, 3), CLAY)))


def bodies(mesh: Mesh) -> int:
    return int(trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False).body_count)


def compared(made: Mesh, truth: tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], diagonal: float) -> dict[str, float]:
    """Chamfer in per cent of the diagonal, degrees between normals, and the numbers of bodies and holes (handles)."""
    points, normals, _ = scattered(clay(made), POINTS, seeded(1))
    true_points, true_normals = truth
    away, nearest = tree(true_points.numpy()).query(points.numpy())
    back, _ = tree(points.numpy()).query(true_points.numpy())
    turn = (normals * true_normals[torch.from_numpy(nearest)]).sum(-1).clamp(-1, 1).acos()
    count = bodies(made)
    return {
        "chamfer_percent": 100 * chamfer(away, back) / diagonal,
        "normal_degrees": math.degrees(turn.mean()),
        "bodies": count,
        "holes": count - (len(made.vertices) - len(made.faces) // 2) // 2,  # Euler: V - E + F, where E = 3/2 F
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solids", choices=sorted(SOLIDS), nargs="+", default=list(SOLIDS))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    asked = parser.parse_args()
    settings, threads, rows, views = Settings(steps=asked.steps), set_threads(), list[dict[str, Any]](), []
    for name in track(asked.solids, "inverse rendering"):
        truth = SOLIDS[name]()
        first, made, took = fitted(truth, settings)
        diagonal = float((truth.mesh.vertices.amax(0) - truth.mesh.vertices.amin(0)).norm())
        found, hulls = (compared(mesh, outer(truth), diagonal) for mesh in (made, first))
        rows.append({"solid": name, **found, **took, "hull": hulls, "triangles": len(made.faces)})
        views += [portraits(clay(each), orbit(8)[0:2], 192, smooth=False) for each in (truth.mesh, first, made)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inverse.json").write_text(json.dumps({"threads": threads, "solids": rows}, indent=2) + "\n")
    sheet(torch.cat(views), columns=6).save(RESULTS / "inverse.png")
    table = Table("solid", *(name.replace("_", "\n") for name in FIGURES), "hull's\nchamfer", "hull's\nnormals")
    for row in rows:
        hulls = (row["hull"][name] for name in FIGURES[:2])
        table.add_row(row["solid"], *(f"{value:.2f}" for value in (*(row[name] for name in FIGURES), *hulls)))
    Console().print(table)


if __name__ == "__main__":
    main()
