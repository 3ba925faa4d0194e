"""How good the shipped prior is by itself, and any other beside it: samples, turns, colours and the start.

    python benchmarks/prior.py ASSETS                     # the shipped prior, about half an hour on two cores
    python benchmarks/prior.py ASSETS --prior MY_PRIOR    # and another beside it
    python benchmarks/prior.py ASSETS --quick             # a tenth of it all, to see that it works

ASSETS is the folder of the training set, with its manifest.jsonl. The judge is read from --judge; where there is none
yet, it is trained on ASSETS first, less the twentieth that is held out, on eight views each (about ten minutes), and
how often it is right about real renders is written beside the priors' figures. Writes benchmarks/results/prior.json,
or the file that --output names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from threed import disk
from threed.log import Log
from threed.machine import set_threads
from threed.training import judge as judges
from threed.training.collection import Item, gather, held_out
from threed.training.evaluate import Sizes, evaluate, show
from threed.training.judge import Judge
from threed.training.views_cache import Shots, build

RESULTS = Path(__file__).parent / "results"
QUICK = Sizes(captions=10, steps=8, fits=2, fit_steps=60, references=3, cameras=4, recolourings=5, candidates=3)
SHOTS = Shots(views=8)  # of every asset, for the judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of the training set")
    parser.add_argument("--prior", type=Path, action="append", default=[], help="another prior's folder")
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge"), help="the judge's folder")
    parser.add_argument("--output", type=Path, default=RESULTS / "prior.json", help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="look at a tenth of everything")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    threads, console, captions = set_threads(), Console(), asked.assets / "manifest.jsonl"
    judge, about = judged(asked.judge, gather(asked.assets, captions).items, console)
    tables = []
    for prior in (None, *asked.prior):
        folder = asked.judge / "evaluations" / ("shipped" if prior is None else prior.name)
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(folder, console)
        sizes = QUICK if asked.quick else Sizes()
        tables.append(evaluate(prior, asked.assets, captions, judge, log, sizes, asked.seed))
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    figures = json.dumps({"threads": threads, "judge": about, "priors": tables}, indent=2, allow_nan=False)
    disk.write(asked.output, (figures + "\n").encode())
    console.print(show(*tables), about)


def judged(folder: Path, items: Sequence[Item], console: Console) -> tuple[Judge, dict[str, Any]]:
    """The judge in this folder, trained first where there is none, and what its judge.json says."""
    if not (folder / "judge.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        log, (shown, held) = Log(folder, console), held_out(items)
        cache = build(shown, folder / "cache", log, SHOTS)
        others = build(held, folder / "cache-held-out", log, SHOTS)
        judge = judges.train(cache, log)
        seen, left = judges.split(cache)
        about = {
            "r_precision_of_100": {
                "views that it was trained on": judges.accuracy(judge, cache, seen),
                "other views of the same assets": judges.accuracy(judge, cache, left),
                "other assets": judges.accuracy(judge, others, range(SHOTS.views)),
            }
        }
        judges.write(folder, judge, about)
    return judges.load(folder), json.loads((folder / "judge.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
