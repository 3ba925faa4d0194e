"""The whole way to an asset under a prior that knows the truth: what is lost is lost by the way, not by the prior.

    python benchmarks/truth.py [--recipe dreamfusion] [--solids barrel box torus chair] [--std 0.1]
    python benchmarks/truth.py --every --solids barrel torus    # every recipe that an oracle can lead

The view oracle is centred on pictures of a solid whose every face is known; the recipe stays as it is. Volume and asset
are compared with the true solid in its own place and size over sixteen views that no step was drawn from: PSNR of the
albedo on white, and the IoU of the silhouettes. So is the exported GLB, which stands on the ground and is brought back
to radius 1 by its extremes ("glb"). Recipes that begin with a mesh begin with the solid in grey; those that draw views
first, draw them over nothing. Writes
benchmarks/results/truth.{json,png}; of every recipe truth-recipes.json, after every run, out of which a later call goes
on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from oracle import oracle
from rich.console import Console
from rich.table import Table

from threed.distill.sample import FIRST
from threed.exporters import export
from threed.machine import set_threads
from threed.paint import PaintedConfig
from threed.pictures import agreement, portraits, sheet
from threed.pipeline import shaped, solidify, text_to_3d
from threed.recipe import Recipe, Stage
from threed.recipes import RECIPES
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import normalised, read
from threed.run import Request, Run
from threed.solid import SolidConfig

RESULTS = Path(__file__).parent / "results"
SIZE = 128  # pixels a side of the compared pictures
FIGURES = ("psnr", "iou", "volume_psnr", "volume_iou", "glb_psnr", "glb_iou", "seconds")
EVERY = RESULTS / "truth-recipes.json"


def led(recipe: Recipe) -> bool:
    """Whether an oracle can lead it, which wants colours."""
    return bool(recipe.stages) and recipe.name != "resculpt"


FROM_NOTHING = [r.name for r in RECIPES.values() if led(r) and (r.start == "sphere" or r.drawn)]
LED = FROM_NOTHING + [recipe.name for recipe in RECIPES.values() if led(recipe) and recipe.start == "mesh"]


def finished(stage: Stage) -> bool:
    """Whether it draws its pictures under a lamp, see `threed.paint`."""
    return isinstance(stage.scene, SolidConfig | PaintedConfig) and stage.scene.paint.finish


def coloured(name: str, parts: Sequence[tuple[trimesh.Trimesh, np.ndarray]], palette: Sequence[str]) -> Asset:
    """Solids, each with the palette's index of every face, as one asset of radius 1: one texel a colour."""
    counts = np.cumsum([0] + [len(solid.vertices) for solid, _ in parts])
    vertices = np.concatenate([solid.vertices for solid, _ in parts])
    faces = np.concatenate([solid.faces + count for (solid, _), count in zip(parts, counts, strict=False)])
    colours = torch.tensor([[int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)] for colour in palette])
    middle = (torch.arange(len(palette)) + 0.5) / len(palette)
    index = torch.from_numpy(np.concatenate([index for _, index in parts]).astype(np.int64))
    mesh = normalised(Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces.astype(np.int64))))
    uvs = torch.stack([middle, torch.full_like(middle, 0.5)], dim=-1)
    return Asset(name, mesh, uvs, index[:, None].repeat(1, 3), Material(colours[None]))


def barrel() -> Asset:
    """A lathe with a belly, two hoops, and lids of another wood."""
    height = np.linspace(-0.6, 0.6, 37)
    outline = np.stack([0.45 - 0.11 * (height / 0.6) ** 2, height], axis=1)
    outline = np.concatenate([[[0.0, -0.6]], outline, [[0.0, 0.6]]])
    solid = trimesh.creation.revolve(outline, sections=64)
    solid.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    up = solid.triangles_center[:, 1]
    ring = np.floor((up + 0.6) / 1.2 * 36)  # rings of faces, from the bottom
    hoop, lid = np.isin(ring, [5, 6, 7, 8, 27, 28, 29, 30]), np.abs(up) > 0.5999
    return coloured("barrel", [(solid, np.where(lid, 2, hoop))], ["8a5a2b", "3a3a40", "c89b5c"])


def box() -> Asset:
    """Front and back of one colour, the four other sides of another."""
    solid = trimesh.creation.box(extents=(1.0, 1.2, 0.8))
    front = np.abs(solid.face_normals[:, 2]) > 0.5
    return coloured("box", [(solid, front)], ["c83232", "2850b4"])


def torus() -> Asset:
    """Standing upright, in eight sectors of two colours; seen from the front it has a hole."""
    solid = trimesh.creation.torus(major_radius=0.7, minor_radius=0.27, major_sections=96, minor_sections=32)
    x, y, _ = solid.triangles_center.T
    sector = np.floor(np.arctan2(y, x) / (np.pi / 4)) % 2
    return coloured("torus", [(solid, sector)], ["e0a020", "207060"])


def chair() -> Asset:
    """Four legs, a seat and a back, thin as chairs are."""
    boxes = [((0.9, 0.12, 0.9), (0, 0, 0), 0), ((0.9, 0.9, 0.12), (0, 0.45, -0.39), 1)]
    boxes += [((0.13, 0.8, 0.13), (x, -0.4, z), 2) for x in (-0.38, 0.38) for z in (-0.38, 0.38)]
    parts = [
        (trimesh.creation.box(extents, trimesh.transformations.translation_matrix(centre)), np.full(12, colour))
        for extents, centre, colour in boxes
    ]
    return coloured("chair", parts, ["b07840", "3c6e3c", "5a3a1e"])


SOLIDS: dict[str, Callable[[], Asset]] = {make.__name__: make for make in (barrel, box, torus, chair)}


def measured(truth: Asset, recipe: Recipe, std: float, seed: int = 0) -> tuple[dict[str, Any], Asset]:
    """Figures of one solid, and the asset that came out."""
    with tempfile.TemporaryDirectory() as folder:
        if recipe.start == "mesh":
            start = Path(folder) / "grey.glb"
            export(replace(truth, material=Material(torch.full((4, 4, 3), 0.5))), start)
            recipe = replace(recipe, start=str(start))
        elif recipe.drawn:
            recipe = replace(recipe, start="sphere", drawn=replace(recipe.drawn, first=FIRST))
        request = Request(truth.name, recipe, seed=seed, prior="view oracle", negative=recipe.negative)
        return made(truth, request, std, Path(folder) / "run")


def made(truth: Asset, request: Request, std: float, folder: Path) -> tuple[dict[str, Any], Asset]:
    """Figures of one run."""
    with Run.create(folder, request) as run:
        began = time.perf_counter()
        stages = request.recipe.stages
        prior = oracle(truth, stages[0].scene.resolution, std, any(finished(stage) for stage in stages))
        text_to_3d(request, run, prior)
        seconds = time.perf_counter() - began
        exported = read(run.path("asset.glb"))
        took = run.log.seconds()
        shape = shaped(request, run, prior)  # which the run has finished
    asset = solidify(shape, request)  # once more, because the run's own asset has left its place
    cameras = orbit(16)
    expected = surface.render(truth, cameras, SIZE, SIZE)
    with torch.no_grad():
        optimised = shape.render(cameras, SIZE)
    back = replace(exported, mesh=normalised(exported.mesh))
    renders = [surface.render(asset, cameras, SIZE, SIZE), optimised, surface.render(back, cameras, SIZE, SIZE)]
    values = [value for render in renders for value in agreement(render, expected)]
    figures = dict(zip(FIGURES, (*values, seconds), strict=True))
    row = {"solid": truth.name, **{name: round(value, 3) for name, value in figures.items()}}
    return row | {"triangles": len(asset.mesh.faces), "stages": took}, asset


def every(solids: Sequence[str], std: float) -> None:
    """All recipes on these solids."""
    rows: list[dict[str, Any]] = json.loads(EVERY.read_text())["runs"] if EVERY.exists() else []
    known = {(row["recipe"], row["solid"]) for row in rows}
    for solid in solids:
        for name in LED:
            if (name, solid) not in known:
                row, _ = measured(SOLIDS[solid](), RECIPES[name], std)
                rows.append({"recipe": name, **row})
                EVERY.write_text(json.dumps({"std": std, "runs": rows}, indent=1) + "\n")
    table = Table("recipe", "solid", *FIGURES)
    for row in rows:
        table.add_row(row["recipe"], row["solid"], *(f"{row[name]:.3f}" for name in FIGURES))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=FROM_NOTHING, default="dreamfusion")
    parser.add_argument("--every", action="store_true", help="all of these recipes instead")
    parser.add_argument("--solids", choices=sorted(SOLIDS), nargs="+", default=list(SOLIDS))
    parser.add_argument("--std", type=float, default=0.1, help="how sure the oracle is, in latents")
    asked = parser.parse_args()
    threads, rows, views = set_threads(), [], []
    if asked.every:
        every(asked.solids, asked.std)
        return
    for name in asked.solids:
        truth = SOLIDS[name]()
        row, asset = measured(truth, RECIPES[asked.recipe], asked.std)
        rows.append(row)
        views += [portraits(each, orbit(8)[0:2], 192, smooth=False) for each in (truth, asset)]
    summary = {f"mean_{name}": round(statistics.mean(row[name] for row in rows), 3) for name in FIGURES}
    RESULTS.mkdir(exist_ok=True)
    figures = {"recipe": asked.recipe, "std": asked.std, "threads": threads, **summary, "solids": rows}
    (RESULTS / "truth.json").write_text(json.dumps(figures, indent=2) + "\n")
    sheet(torch.cat(views), columns=4).save(RESULTS / "truth.png")
    table = Table(
        "solid",
        *(name.replace("_", "\n") for name in FIGURES),
        title=f"{asked.recipe} under the view oracle, {threads} threads",
    )
    for row in rows:
        table.add_row(row["solid"], *(f"{row[name]:.3f}" for name in FIGURES))
    Console().print(table, summary)


if __name__ == "__main__":
    main()
