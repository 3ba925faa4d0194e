"""How close picture-to-3D comes to assets that no training has seen, and what it costs.

    python benchmarks/pictures.py ASSETS                         # every recipe of `threed image`, and two without
    python benchmarks/pictures.py ASSETS --methods lrm extruded  # some of them
    python benchmarks/pictures.py PHOTOGRAPHS --photographs      # a sheet of what becomes of the pictures in a folder

ASSETS is the folder of the training set, with its manifest.jsonl; the assets are of the twentieth of it that trainings
hold out. Each is shown once: from between its front and its right, 15 degrees up, shaded, cut out. The exported GLB is
read back. Truth and result are centred on their bounding boxes, the farthest point at radius 1, and are not turned:
`threed image` answers with the quarter nearest to the camera as the front, which of these pictures is the asset's own.
Methods without a prior (`unaided`) are told the camera and stand in the asset's frame as well. So that it can be seen
how much is lost by a wrong guess of the camera alone, one more column has the volume IoU of the result turned about the
vertical until the camera that the report tells of stands where the true one stood.

Over 16 views: PSNR and SSIM of the albedo on white, IoU of the silhouettes, and how far apart the features are that the
shipped start's picture encoder has of them, one minus their cosine. Of the surfaces that can be seen from outside:
Chamfer, the mean distance from either to the other in per cent of the truth's diagonal, and the F-score, for which a
point is right within 1 % of it. Of the voxels that `renderers.voxels` makes of both: volume IoU. Runs that are already
there are not made again. Figures go to results/, sheets of pictures to docs/pictures/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import unaided
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from unaided import Reference

from threed.cutout import Cutout, masked
from threed.distill import start
from threed.distill.conditions import reference_picture
from threed.distill.folder import SHIPPED
from threed.errors import Mistake
from threed.exporters import export
from threed.machine import set_threads
from threed.paint import scattered
from threed.photograph import Photograph
from threed.pictured import shown
from threed.pictures import agreement, png, portraits, psnr, sheet
from threed.recipes import RECIPES
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset
from threed.renderers.read import normalised, read
from threed.renderers.volume import Render
from threed.renderers.voxels import Voxels, voxelise
from threed.run import slug
from threed.train import seeded
from threed.training import measures
from threed.training.collection import Item, gather, held_out
from threed.training.trials import seen_once

UNAIDED: dict[str, Callable[[Reference], Asset]] = {"extruded": unaided.extruded, "fitted": unaided.fitted}
RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
REFERENCE, SIZE, SHEET = 512, 128, 128  # pixels a side: of what is shown, compared, and looked at
VIEWS, VOXELS = 16, 32
POINTS = 40_000  # of each surface: two such samples of one surface are 0.2 % of its diagonal apart
BURIED = 1.5  # voxels: what lies so deep inside is no surface that can be seen
NEAR = 0.01  # of the diagonal
FIGURES = (
    "volume_iou",
    "turned_iou",
    "chamfer_percent",
    "f_score",
    "psnr",
    "ssim",
    "feature_distance",
    "silhouette_iou",
    "seconds",
)
COMPANIONS = ("_depth", "_normal")  # of photographs in a folder, which are none


@dataclass(frozen=True)
class Solidity:
    """An asset as it is compared."""

    asset: Asset  # at radius 1
    render: Render
    voxels: Voxels
    points: Float[Tensor, "N 3"]
    features: Float[Tensor, "V F"]

    @staticmethod
    def of(asset: Asset, encoder: start.PictureEncoder) -> Solidity:
        """Raises ValueError for what is too thin or too broken to be compared."""
        asset = replace(asset, mesh=normalised(asset.mesh))
        voxels = voxelise(asset, VOXELS)
        if not voxels.occupied.any():
            raise ValueError("it is too thin for voxels")
        points, _, _ = scattered(asset, POINTS, seeded(0))
        low, high = asset.mesh.vertices.amin(0), asset.mesh.vertices.amax(0)
        deep, _ = voxels.at((points - (low + high) / 2) / (high - low).max())
        render = surface.render(asset, orbit(VIEWS), SIZE, SIZE)
        return Solidity(asset, render, voxels, points[deep > -BURIED], features(render, encoder))

    @property
    def on_white(self) -> Float[Tensor, "V H W 3"]:
        return self.render.albedo + 1 - self.render.alpha

    @property
    def diagonal(self) -> float:
        return float((self.asset.mesh.vertices.amax(0) - self.asset.mesh.vertices.amin(0)).norm())


@torch.no_grad()
def features(render: Render, encoder: start.PictureEncoder) -> Float[Tensor, "V F"]:
    """What the encoder says of shaded pictures beyond what it says of an empty one."""
    side = start.shape(SHIPPED).picture
    small = [functional.adaptive_avg_pool2d(each.movedim(-1, 1), side) for each in (render.rgb, render.alpha)]
    told = encoder(reference_picture(*small)) - encoder(torch.zeros(1, 4, side, side))
    return told.flatten(1)


@dataclass(frozen=True)
class Trial:
    """An asset, and the picture of it that the methods are shown."""

    item: Item
    truth: Solidity
    reference: Reference

    @property
    def name(self) -> str:
        return slug(self.item.name.rpartition(".")[0].replace("/", " "))

    @property
    def azimuth(self) -> float:
        """Of the camera, in degrees."""
        return round(math.degrees(self.reference.camera.azimuth), 1)

    @property
    def picture(self) -> Image.Image:
        return shown(Cutout(self.reference.rgb, self.reference.alpha))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = [recipe.name for recipe in RECIPES.values() if recipe.wants == "picture"]
    parser.add_argument("folder", type=Path, help="of the training set, or of photographs")
    parser.add_argument("--photographs", action="store_true", help="make a sheet of the pictures in the folder")
    parser.add_argument("--methods", nargs="+", choices=[*recipes, *UNAIDED], default=[*recipes, *UNAIDED])
    parser.add_argument("--assets", type=int, default=24, help="how many are compared")
    parser.add_argument("--runs", type=Path, default=Path("outputs/pictures"), help="where the run folders go")
    asked = parser.parse_args()
    set_threads()
    RESULTS.mkdir(exist_ok=True)
    if asked.photographs:
        for recipe in (method for method in asked.methods if method in recipes):
            photographs(asked.folder, recipe, asked.runs / recipe)
        return
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in asked.methods}
    views: dict[str, list[Tensor]] = {method: [] for method in asked.methods}
    encoder = start.load(SHIPPED).read_picture
    for trial in trials(asked.folder, asked.assets, encoder):
        for method in asked.methods:
            folder = asked.runs / method / trial.name
            make(method, trial, folder)
            made = read(folder / "asset.glb")
            rows[method].append({"asset": trial.item.name} | compared(made, folder, trial, encoder))
            views[method].append(strip(trial.picture, made, trial.reference.camera))
            print(method, rows[method][-1], file=sys.stderr)
    for method, found in rows.items():
        figures = {"assets": len(found), **summary(found), "rows": found}
        (RESULTS / f"pictures-{method}.json").write_text(json.dumps(figures, indent=2) + "\n")
        sheet(torch.cat(views[method]), columns=12).save(PICTURES / f"held-out-{method}.webp", quality=80)
    show({method: summary(found) for method, found in rows.items()})


def trials(folder: Path, count: int, encoder: start.PictureEncoder) -> Iterator[Trial]:
    """The first `count` assets held out, in the order of their names' hashes, of which a picture shows one whole."""
    _, items = held_out(gather(folder, folder / "manifest.jsonl").items)
    named = {item.name: item for item in items}
    for name in sorted(named, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if not count:
            return
        try:
            truth = Solidity.of(read(named[name].path), encoder)
            camera, seen = seen_once(truth.asset, REFERENCE, seeded(*name.encode()))
            trial = Trial(named[name], truth, Reference(camera, seen.rgb[0], seen.alpha[0]))
            masked(Photograph(torch.zeros(REFERENCE, REFERENCE, 3), seen.alpha[0], ""), None, True)
        except (ValueError, Mistake) as error:
            print(f"skipped: {name}: {error}", file=sys.stderr)
            continue
        yield trial
        count -= 1


def make(method: str, trial: Trial, folder: Path) -> None:
    """A run folder with an asset and a report, where there is none yet."""
    if (folder / "report.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    if method not in UNAIDED:
        picture = folder.parent / f"{trial.name}.png"
        picture.write_bytes(png(trial.picture))
        run(picture, method, folder).check_returncode()
        return
    folder.mkdir(exist_ok=True)
    began = time.perf_counter()
    export(UNAIDED[method](trial.reference), folder / "asset.glb")
    report = {"seconds": {method: round(time.perf_counter() - began, 2)}}
    (folder / "report.json").write_text(json.dumps(report) + "\n")


def run(picture: Path, recipe: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`threed image`, at once where it has been run before."""
    command = [sys.executable, "-m", "threed", "image", str(picture), "--recipe", recipe, "--output", str(folder)]
    return subprocess.run([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def compared(made: Asset, folder: Path, trial: Trial, encoder: start.PictureEncoder) -> dict[str, Any]:
    """FIGURES, and what a recipe reports of the picture that it was shown."""
    truth, mine = trial.truth, Solidity.of(made, encoder)
    away, back = measures.distances(mine.points, truth.points)
    similarity, silhouette = agreement(mine.render, truth.render)
    report = json.loads((folder / "report.json").read_text())
    told = {f"reference_{name}": value for name, value in report.get("picture", {}).items()}
    seen_from = told.get("reference_azimuth_degrees", trial.azimuth)
    again = voxelise(turned(mine.asset, math.radians(trial.azimuth - seen_from)), VOXELS)
    found = {
        "volume_iou": measures.volume_iou(mine.voxels.occupied, truth.voxels.occupied),
        "turned_iou": measures.volume_iou(again.occupied, truth.voxels.occupied),
        "chamfer_percent": 100 * measures.chamfer(away, back) / truth.diagonal,
        "f_score": measures.f_score(away, back, NEAR * truth.diagonal),
        "psnr": similarity,
        "ssim": measures.ssim(mine.on_white, truth.on_white),
        "feature_distance": 1 - functional.cosine_similarity(mine.features, truth.features, dim=1).mean().item(),
        "silhouette_iou": silhouette,
        "seconds": sum(report["seconds"].values()),
    }
    return {name: round(value, 4) for name, value in found.items()} | {"true_azimuth_degrees": trial.azimuth} | told


def turned(asset: Asset, angle: float) -> Asset:
    """About the vertical, by an angle that grows as azimuths do."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    return replace(asset, mesh=asset.mesh.with_vertices(asset.mesh.vertices @ turn))


def strip(picture: Image.Image, made: Asset, camera: Cameras) -> Float[Tensor, "6 S S 3"]:
    """The picture, the asset from where it was taken, from its right, its back and its left, and from above."""
    turns = torch.tensor([0.0, 90, 180, 270, 30]) * (math.pi / 180)
    raised = torch.cat([camera.elevation.expand(4), torch.tensor([math.radians(60)])])
    around = replace(orbit(len(turns)), azimuth=camera.azimuth + turns, elevation=raised)
    return torch.cat([given(picture), portraits(made, around, SHEET)])


def given(picture: Image.Image) -> Float[Tensor, "1 S S 3"]:
    """In the middle of a white square."""
    square = Image.new("RGBA", (max(picture.size),) * 2, "white")
    corner = (square.width - picture.width) // 2, (square.height - picture.height) // 2
    square.alpha_composite(picture.convert("RGBA"), corner)
    small = square.convert("RGB").resize((SHEET, SHEET), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32)[None] / 255)


def photographs(folder: Path, recipe: str, runs: Path) -> None:
    """A row for every picture, also where nothing comes of it, and what the reports say of the reference views."""
    rows, views = list[dict[str, Any]](), []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or path.stem.endswith(COMPANIONS):
            continue
        ended = run(path, recipe, runs / path.stem)
        with Image.open(path) as file:
            picture = file.convert("RGBA")
        if ended.returncode:
            rows.append({"picture": path.name, "failed": ended.stderr.strip().splitlines()[-1]})
            views.append(torch.cat([given(picture), torch.ones(5, SHEET, SHEET, 3)]))
            continue
        made = read(runs / path.stem / "asset.glb")
        told = json.loads((runs / path.stem / "report.json").read_text())["picture"]
        azimuth, elevation = (math.radians(told[f"{angle}_degrees"]) for angle in ("azimuth", "elevation"))
        camera = replace(orbit(1, elevation), azimuth=torch.tensor([azimuth]))
        rows.append({"picture": path.name, **told, "back_like_mirrored_front_db": round(mirrored(made, camera), 2)})
        views.append(strip(picture, made, camera))
    (RESULTS / f"photographs-{recipe}.json").write_text(json.dumps(rows, indent=2) + "\n")
    sheet(torch.cat(views), columns=6).save(PICTURES / f"photographs-{recipe}.webp", quality=80)
    print(json.dumps(rows, indent=1))


def mirrored(made: Asset, camera: Cameras) -> float:
    """PSNR between what is seen from behind, mirrored, and from the front; high where the back is the front again."""
    both = replace(camera[torch.tensor([0, 0])], azimuth=camera.azimuth + torch.tensor([0.0, math.pi]))
    level = replace(both, elevation=torch.zeros(2))
    seen = surface.render(replace(made, mesh=normalised(made.mesh)), level, SIZE, SIZE)
    front, back = seen.albedo + 1 - seen.alpha
    return psnr(front, back.flip(1))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {f"mean_{name}": round(statistics.mean(row[name] for row in rows), 3) for name in FIGURES}


def show(found: dict[str, dict[str, float]]) -> None:
    table = Table("", *FIGURES)
    for method, figures in found.items():
        table.add_row(method, *(str(figures[f"mean_{name}"]) for name in FIGURES))
    Console().print(table)


if __name__ == "__main__":
    main()
