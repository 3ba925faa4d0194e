"""Known solids from pictures of them: silhouettes and normals of 16 views, and nothing else.

    python benchmarks/inverse.py [--solids barrel box torus chair] [--steps 120]

The surface starts as what the silhouettes leave of the cube (the visual hull) on a tetrahedral grid, and moves until
its own silhouettes and normals are those of the pictures: marching tetrahedra, rasterizer and antialias, and back.
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

import torch
from jaxtyping import Bool, Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional
from truth import SOLIDS

from threed.machine import set_threads
from threed.mesh_regularizers import laplacian
from threed.paint import scattered
from threed.pictures import portraits, sheet
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset, Mesh
from threed.tets import Level, TetConfig, TetScene
from threed.train import seeded

RESULTS = Path(__file__).parent / "results"
POINTS = 5000  # of each surface that is measured
FIGURES = ("chamfer_percent", "normal_degrees", "holes", "seconds")


@dataclass(frozen=True)
class Settings:
    views: int = 16
    at_once: int = 4  # views a step
    size: int = 160  # pixels a side
    steps: int = 120
    grid: TetConfig = field(
        default_factory=lambda: TetConfig(resolution=56, margin=0.12, distance_rate=0.02, deformation_rate=0.03)
    )
    normals: float = 0.3  # weight beside the silhouettes
    smooth: float = 30.0  # of the Laplacian, in square cells


def ring(views: int) -> Cameras:
    """Around the solid, alternately from below, from the side, and from high above."""
    around = orbit(views)
    elevation = torch.tensor([-25.0, 10.0, 55.0, 25.0]).repeat(-(-views // 4))[:views]
    return replace(around, elevation=elevation * (math.pi / 180))


def hull(alpha: Float[Tensor, "C H W 1"], cameras: Cameras) -> Level:
    """Negative where every silhouette covers a point."""

    def level(points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        clip = functional.pad(points, (0, 1), value=1.0) @ cameras.clip_from_world().mT
        where = clip[..., :2] / clip[..., 3:] * clip.new_tensor([1.0, -1.0])
        cover = functional.grid_sample(alpha.movedim(-1, 1), where[:, None], align_corners=False)
        return 0.5 - cover[:, 0, 0].amin(0)

    return level


def fitted(truth: Asset, settings: Settings) -> tuple[Mesh, Mesh, float]:
    """The hull, what became of it, and how many seconds that took, pictures of the truth not counted."""
    cameras = ring(settings.views)
    aim = surface.render(truth, cameras, settings.size, settings.size, supersample=3)
    began = time.perf_counter()
    scene = TetScene.from_level(hull(aim.alpha, cameras), settings.grid)
    first = scene.mesh()
    first = first.with_vertices(first.vertices.detach())
    optimizer = torch.optim.Adam(scene.param_groups(), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(settings.steps):
        left = 1 - step / settings.steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * max(left, 0.1)
        some = (torch.arange(settings.at_once) * (settings.views // settings.at_once) + step) % settings.views
        shown = surface.render(scene.mesh(), cameras[some], settings.size, settings.size, supersample=1)
        silhouette = (shown.alpha - aim.alpha[some]).square().mean()
        facing = (shown.normal - aim.normal[some]).square().sum(-1).mean()
        assert shown.mesh
        even = laplacian(shown.mesh, shown.edges) / settings.grid.cell**2
        loss = silhouette + settings.normals * facing + settings.smooth * left * 1e-4 * even
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return first, scene.mesh(), time.perf_counter() - began


def outer(asset: Asset) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points and normals of what can be touched from outside: parts of a solid may reach into one another."""
    points, normals, _ = scattered(asset, POINTS, seeded(0))
    touched = ~inside(asset.mesh, points + 1e-3 * normals)
    return points[touched], normals[touched]


def inside(mesh: Mesh, points: Float[Tensor, "N 3"]) -> Bool[Tensor, "N"]:
    """By the winding number (van Oosterom and Strackee 1983)."""
    found = []
    for some in points.split(500):
        a, b, c = (mesh.corners - some[:, None, None]).unbind(2)
        la, lb, lc = (x.norm(dim=-1) for x in (a, b, c))
        volume = (a * b.cross(c, dim=-1)).sum(-1)
        weight = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        found.append(torch.atan2(volume, weight).sum(-1) / (2 * math.pi))
    return torch.cat(found) > 0.5


def compared(made: Mesh, truth: tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], diagonal: float) -> dict[str, float]:
    """Chamfer in per cent of the diagonal, degrees between normals, and how many holes (handles) the surface has."""
    flat = replace(SOLIDS["box"](), mesh=made, uv_faces=torch.zeros_like(made.faces))
    points, normals, _ = scattered(flat, POINTS, seeded(1))
    true_points, true_normals = truth
    away, nearest = KDTree(true_points.numpy()).query(points.numpy())
    back, _ = KDTree(points.numpy()).query(true_points.numpy())
    turn = (normals * true_normals[torch.from_numpy(nearest)]).sum(-1).clamp(-1, 1).acos()
    edges = len(made.faces) * 3 // 2
    return {
        "chamfer_percent": 100 * (away.mean() + back.mean()) / 2 / diagonal,
        "normal_degrees": math.degrees(turn.mean()),
        "holes": 1 - (len(made.vertices) - edges + len(made.faces)) // 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solids", choices=sorted(SOLIDS), nargs="+", default=list(SOLIDS))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    asked = parser.parse_args()
    settings, threads, rows, views = Settings(steps=asked.steps), set_threads(), list[dict[str, Any]](), []
    for name in track(asked.solids, "inverse rendering"):
        truth = SOLIDS[name]()
        first, made, seconds = fitted(truth, settings)
        diagonal = float((truth.mesh.vertices.amax(0) - truth.mesh.vertices.amin(0)).norm())
        found, hulls = (compared(mesh, outer(truth), diagonal) for mesh in (made, first))
        rows.append({"solid": name, **found, "seconds": seconds, "hull": hulls, "triangles": len(made.faces)})
        views += [portraits(each, orbit(8)[0:2], 192, smooth=False) for each in (truth.mesh, first, made)]
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
