"""How close text-to-3D comes to the assets that the embedded prior was trained on, and what it costs.

    python benchmarks/assets.py ASSETS                         # the twenty prompts of the README, the default recipe
    python benchmarks/assets.py ASSETS --recipe dreamfusion    # another recipe, about twenty minutes
    python benchmarks/assets.py ASSETS --prompts tuning        # others, on which most of the tuning was done

ASSETS is the folder of the training set, with its manifest.jsonl. Every prompt is a caption of it. The exported GLB is
read back, brought to the training set's place and size, and compared over 16 views with every asset of that caption;
the best one by IoU counts. Runs that are already there are not made again. Figures go to results/,
the sheet of pictures to docs/pictures/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from threed.pictures import agreement, portraits, sheet
from threed.recipes import RECIPES
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.read import normalised, read
from threed.renderers.volume import Render
from threed.run import slug
from threed.text_cli import Text

# Captions that at least three solid training assets share, of all kinds; chosen before the first was run.
TWENTY = (
    "a wooden barrel",
    "a green pine tree",
    "a wooden crate",
    "a grey rock",
    "an orange pumpkin",
    "a tree stump",
    "a wooden treasure chest",
    "a golden chalice",
    "a red tomato",
    "a cardboard box",
    "a wooden table",
    "a wooden chair",
    "a green leafy tree",
    "a metal knight helmet",
    "a small medieval house with a red tiled roof",
    "a stone column",
    "a green desert cactus",
    "a brown wooden chest of drawers",
    "a red heart",
    "a cooking pot",
)
TUNING = (
    "a green bush",
    "a brown wooden nightstand",
    "a teal pine tree",
    "a white potion bottle with a cork",
    "a simple wooden hut",
    "a wooden coffin",
    "a wooden bench",
    "a large brown rock with a grassy top",
)
RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
SIZE = 128  # pixels a side of the compared pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of the training set")
    choices = [recipe.name for recipe in RECIPES.values() if recipe.wants == "text" and recipe.start != "mesh"]
    parser.add_argument("--recipe", choices=choices, default=Text.recipe)
    parser.add_argument("--prompts", choices=["twenty", "tuning"], default="twenty")
    parser.add_argument("--runs", type=Path, default=Path("outputs/benchmark"), help="where the run folders go")
    parser.add_argument("flags", nargs="*", help="further flags of `threed text`, after --")
    asked = parser.parse_args()
    captions = captioned(asked.assets)
    rows, runs = [], asked.runs / asked.recipe
    for prompt in {"twenty": TWENTY, "tuning": TUNING}[asked.prompts]:
        folder = runs / slug(prompt)
        flags = ["--recipe", asked.recipe, "--output", str(folder), "--resume", *asked.flags]
        subprocess.run([sys.executable, "-m", "threed", "text", prompt, *flags], check=True, stdout=subprocess.DEVNULL)
        rows.append(compare(prompt, folder, captions[prompt]))
    RESULTS.mkdir(exist_ok=True)
    figures = json.dumps(summary(rows) | {"prompts": rows}, indent=2)
    name = f"{asked.prompts}-{asked.recipe}"
    (RESULTS / f"assets-{name}.json").write_text(figures + "\n")
    picture(runs, [row["prompt"] for row in rows]).save(PICTURES / f"{name}.webp", quality=85)
    show(rows)


def captioned(assets: Path) -> dict[str, list[Path]]:
    """The files of every caption."""
    files: dict[str, list[Path]] = {}
    for line in (assets / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        files.setdefault(entry["caption"], []).append(assets / entry["path"])
    return files


def compare(prompt: str, folder: Path, truths: list[Path]) -> dict[str, Any]:
    """Figures of one run: against the best of its caption's assets, and from its own report."""
    made = drawn(folder / "asset.glb")
    psnr, iou = max((agreement(made, drawn(path)) for path in truths), key=lambda pair: pair[1])
    report = json.loads((folder / "report.json").read_text())
    return {
        "prompt": prompt,
        "iou": round(iou, 3),
        "psnr": round(psnr, 2),
        "triangles": report["triangles"],
        "watertight": report["watertight"],
        "render_vs_mesh_psnr": report["agreement_with_volume"]["psnr_db"],
        "render_vs_mesh_iou": report["agreement_with_volume"]["silhouette_iou"],
        "seconds": round(sum(report["seconds"].values()), 1),
        "peak_memory_gb": round((report["peak_memory_bytes"] or 0) / 1e9, 2),
    }


def drawn(path: Path) -> Render:
    """An asset at the training set's place and size, from 16 sides."""
    asset = read(path)
    return surface.render(replace(asset, mesh=normalised(asset.mesh)), orbit(16), SIZE, SIZE)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"mean_{name}": round(statistics.mean(row[name] for row in rows), 3)
        for name in ("iou", "psnr", "render_vs_mesh_psnr", "render_vs_mesh_iou", "seconds", "peak_memory_gb")
    }


def picture(runs: Path, prompts: list[str]) -> Image.Image:
    """All assets, front and side, four a row."""
    views = [portraits(read(runs / slug(prompt) / "asset.glb"), orbit(8)[0:2], 192) for prompt in prompts]
    return sheet(torch.cat(views), columns=8)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table, summary(rows))


if __name__ == "__main__":
    main()
