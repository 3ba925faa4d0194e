"""Every distillation loss on the same prompts, from nothing: how close, how different from seed to seed, how dear.

    python benchmarks/prompted.py ASSETS                # all twenty prompts of assets.py: half a day of one core
    python benchmarks/prompted.py ASSETS --prompts 3    # the first three

ASSETS is the folder of the training set. Every loss is run by the recipe of its own where there is one, and by
dreamfusion's with `--loss` otherwise, all of them for STEPS steps; the first DIVERSE prompts with two seeds. Figures:

    iou, psnr     against the best of the caption's assets, as benchmarks/assets.py has them; what has no solid in the
                  end counts as an empty picture, and as "failed"
    diversity     1 - IoU of the silhouettes of the two seeds, over 16 views: 0 where both are the same shape
    core seconds  of processors, from the prior's weights to the files

Prompt by prompt all losses are run, and the table is of those prompts alone that all of them have. It is written after
every run, to results/prompted.json, out of which a later call goes on; the picture of the first prompt goes to
docs/pictures/losses.webp.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from assets import PICTURES, RESULTS, TWENTY, captioned, compare, drawn
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from threed.cli import main as threed
from threed.distill.losses import LOSSES
from threed.pictures import agreement, portraits, psnr, sheet
from threed.renderers.camera import orbit
from threed.renderers.read import read
from threed.run import slug

STEPS = 60  # of every loss, to spare time; most recipes have 150
DIVERSE = 3  # prompts that are run with two seeds
OWN = {"sds": "dreamfusion", "sjc": "sjc", "nfsd": "nfsd", "hifa": "hifa", "vsd": "prolificdreamer"}  # recipes
FLAGS = {
    name: ["--recipe", OWN[name]] if name in OWN else ["--recipe", "dreamfusion", "--loss", name] for name in LOSSES
} | {"mvdream": ["--recipe", "mvdream"]}
FOUND = RESULTS / "prompted.json"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of the training set")
    parser.add_argument("--prompts", type=int, choices=range(1, 21), default=20, help="how many of the twenty")
    parser.add_argument("--runs", type=Path, default=Path("outputs/prompted"), help="where the run folders go")
    asked = parser.parse_args()
    captions = captioned(asked.assets)
    rows: list[Row] = json.loads(FOUND.read_text())["runs"] if FOUND.exists() else []
    known = {(row["prompt"], row["seed"], row["loss"]) for row in rows}
    for number, prompt in enumerate(TWENTY[: asked.prompts]):
        for seed in range(2 if number < DIVERSE else 1):
            for name in FLAGS:
                if (prompt, seed, name) in known:
                    continue
                rows.append(made(prompt, seed, name, asked.runs, captions[prompt]))
                FOUND.write_text(json.dumps(summary(rows) | {"runs": rows}, indent=1) + "\n")
        if number == 0:
            picture(prompt, asked.runs).save(PICTURES / "losses.webp", quality=85)
    show(summary(rows))


def folder_of(runs: Path, prompt: str, seed: int, name: str) -> Path:
    return runs / slug(prompt) / f"{name}-{seed}"


def made(prompt: str, seed: int, name: str, runs: Path, truths: list[Path]) -> Row:
    """One run, and its figures."""
    folder, before = folder_of(runs, prompt, seed, name), time.process_time()
    flags = [*FLAGS[name], "--steps", str(STEPS), "--seed", str(seed), "--output", str(folder), "--resume"]
    code = threed(["text", prompt, *flags])
    row = {"prompt": prompt, "seed": seed, "loss": name, "core_seconds": round(time.process_time() - before, 1)}
    if code == 1:  # nothing solid came out
        white = max(psnr(torch.ones(3), each.albedo + 1 - each.alpha) for each in map(drawn, truths))
        return row | {"iou": 0.0, "psnr": round(white, 2), "failed": True}
    if code:
        sys.exit(code)
    told = compare(prompt, folder, truths)
    row |= {"iou": told["iou"], "psnr": told["psnr"], "failed": False}
    first = folder_of(runs, prompt, 0, name) / "asset.glb"
    if seed == 0 or not first.exists():
        return row
    _, same = agreement(drawn(first), drawn(folder / "asset.glb"))
    return row | {"diversity": round(1 - same, 3)}


def summary(rows: list[Row]) -> dict[str, Any]:
    """Means over what all losses have: prompts with the first seed, and pairs of seeds."""
    runs = {seed: whole(rows, seed) for seed in (0, 1)}
    losses: dict[str, Row] = {}
    for name in FLAGS:
        first, second = ([row for row in runs[seed] if row["loss"] == name] for seed in (0, 1))
        losses[name] = {
            **{key: mean(row[key] for row in first) for key in ("iou", "psnr", "core_seconds")},
            "diversity": mean(row["diversity"] for row in second if "diversity" in row),
            "failed": sum(row["failed"] for row in first + second),
        }
    prompts = [len(runs[seed]) // len(FLAGS) for seed in (0, 1)]
    return {"steps": STEPS, "prompts": prompts[0], "prompts_of_diversity": prompts[1], "losses": losses}


def whole(rows: list[Row], seed: int) -> list[Row]:
    """The runs of this seed whose prompt every loss has."""
    had = [row for row in rows if row["seed"] == seed]
    return [row for row in had if {r["loss"] for r in had if r["prompt"] == row["prompt"]} == set(FLAGS)]


def mean(values: Any) -> float | None:
    found = list(values)
    return round(statistics.mean(found), 3) if found else None


def picture(prompt: str, runs: Path, size: int = 160) -> Image.Image:
    """One prompt under every loss: two views of each, its name under them."""
    cells = []
    for name in FLAGS:
        path = folder_of(runs, prompt, 0, name) / "asset.glb"
        views = portraits(read(path), orbit(8)[0:2], size) if path.exists() else torch.ones(2, size, size, 3)
        cells.append(torch.cat([torch.cat(list(views), dim=1), torch.ones(28, 2 * size, 3)]))
    columns, gap = 4, 8
    paper = sheet(torch.stack(cells), columns, gap)
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(18)
    for index, name in enumerate(FLAGS):
        row, column = divmod(index, columns)
        corner = gap + column * (2 * size + gap), gap + row * (size + 28 + gap)
        pen.text((corner[0] + size, corner[1] + size + 14), name, "black", font, anchor="mm")
    return paper


def show(found: dict[str, Any]) -> None:
    columns = ("iou", "psnr", "diversity", "core_seconds", "failed")
    title = f"{found['prompts']} prompts, diversity of {found['prompts_of_diversity']}, {found['steps']} steps"
    table = Table("loss", *columns, title=title)
    for name, row in found["losses"].items():
        table.add_row(name, *(str(row[column]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
