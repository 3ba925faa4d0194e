"""T3Bench's 300 prompts (He et al. 2023, arXiv 2310.02977) through `threed batch`, and how CLIP sees what came out.

    git clone https://github.com/THU-LYJ-Lab/T3Bench       # its prompts carry no licence, so they are not copied here
    python benchmarks/t3bench/run.py T3Bench/data
    python benchmarks/t3bench/run.py T3Bench/data --first 10 --clip clip-vit-base-patch32
    python benchmarks/t3bench/run.py T3Bench/data --library outputs/refined -- --set recipe=refined --workers 2

The folder of prompts has prompt_single.txt, prompt_surr.txt (an object and what is around it) and prompt_multi.txt
(several), a prompt a line. Each kind becomes a library of its own; what is there already is not made again. With
--clip, a folder of transformers' CLIPModel (safetensors) and its tokenizer, all prompts of a kind are compared with
eight views of every asset:

    clip_score     100 times the cosine of a view and its own prompt, mean over views and assets
    r_precision    percent of the views to which, of all prompts of the kind, their own is nearest (Jain et al. 2021,
                   arXiv 2112.01455); views of assets that are missing count as wrong

PUBLISHED are T3Bench's own averages of its quality (text-image scores of many views) and its alignment (captions that a
language model grades), which take other networks: they stand beside the table, and are not to be compared with it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from sight import Sight

from threed.cli import main as threed
from threed.pictures import portraits
from threed.renderers.camera import orbit
from threed.renderers.read import read
from threed.run import slug
from threed.training.measures import r_precision

KINDS = ("single", "surr", "multi")
PUBLISHED = {
    "ProlificDreamer": 43.3,
    "Magic3D": 32.7,
    "Latent-NeRF": 28.1,
    "Fantasia3D": 24.0,
    "DreamFusion": 21.7,
    "SJC": 18.7,
}  # mean over the kinds
VIEWS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="T3Bench's folder data/")
    parser.add_argument("--library", type=Path, default=Path("outputs/t3bench"), help="where the assets go")
    parser.add_argument("--first", type=int, help="how many prompts of each kind")
    parser.add_argument("--clip", type=Path, help="folder of a CLIP model, to measure with")
    parser.epilog = "Flags of `threed batch` follow after --."
    words, flags = sys.argv[1:], list[str]()
    if "--" in words:
        words, flags = words[: words.index("--")], words[words.index("--") + 1 :]
    asked = parser.parse_args(words)
    missing = [f"prompt_{kind}.txt" for kind in KINDS if not (asked.prompts / f"prompt_{kind}.txt").is_file()]
    if missing:
        parser.error(f"there is no {missing[0]} in {str(asked.prompts)!r}; clone T3Bench, and name its folder data/")
    sight, found = Sight.load(asked.clip) if asked.clip else None, {}
    for kind in KINDS:
        lines = (asked.prompts / f"prompt_{kind}.txt").read_text(encoding="utf-8").splitlines()
        prompts = [line.strip() for line in lines if line.strip()][: asked.first]
        library = asked.library / kind
        code = threed(["batch", str(listed(asked.library / f"{kind}.csv", prompts)), "--output", str(library), *flags])
        if code not in (0, 1):
            return code
        found[kind] = measured(library, prompts, sight)
    (asked.library / "t3bench.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    return 0


def names(prompts: list[str]) -> list[str]:
    """Of the run folders: numbered, since long prompts may begin alike."""
    return [f"{number:03}-{slug(prompt)}" for number, prompt in enumerate(prompts, 1)]


def listed(path: Path, prompts: list[str]) -> Path:
    """The list, as `threed batch` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "name"), *zip(prompts, names(prompts), strict=True)])
    return path


def measured(library: Path, prompts: list[str], sight: Sight | None) -> dict[str, Any]:
    """How many assets there are, and with a model what it sees in them."""
    there = {
        place: path for place, name in enumerate(names(prompts)) if (path := library / name / "asset.glb").exists()
    }
    told: dict[str, Any] = {"prompts": len(prompts), "assets": len(there)}
    if sight is None or not there:
        return told
    views = torch.cat([portraits(read(path), orbit(VIEWS), sight.size) for path in there.values()])
    own = torch.tensor(list(there)).repeat_interleave(VIEWS)
    return told | scores(sight.cosines(views, prompts), own, len(there) / len(prompts))


def scores(cosines: Float[Tensor, "V M"], own: Tensor, share: float) -> dict[str, float]:
    """CLIP-score and R-precision of V views, each with the number of its own prompt; `share` is that of the assets."""
    relevant = own[:, None] == torch.arange(cosines.shape[1])
    return {
        "clip_score": round(100 * cosines[relevant].mean().item(), 2),
        "r_precision": round(100 * r_precision(cosines, relevant) * share, 1),
    }


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("kind", *found[KINDS[0]], title="T3Bench's prompts")
    for kind, row in found.items():
        table.add_row(kind, *map(str, row.values()))
    averages = ", ".join(f"{name} {value}" for name, value in PUBLISHED.items())
    Console().print(table, f"published averages of quality and alignment, by other measures: {averages}")


if __name__ == "__main__":
    sys.exit(main())
