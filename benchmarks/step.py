"""Where the time of a whole run goes: the prior's forward pass, the rest of each step, and the stages around them.

    python benchmarks/step.py ["a wooden barrel"] [--recipes dreamfusion magic3d]

Runs each recipe in a temporary folder, in this process, and writes benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import kept

from threed.distill.embedded import Embedded
from threed.distill.prior import Prediction
from threed.log import Log
from threed.machine import set_threads
from threed.pipeline import text_to_3d
from threed.recipes import RECIPES
from threed.run import Request, Run


class Timed:
    """A prior that counts the seconds of its own forward pass, by the stage that asks."""

    def __init__(self, prior: Embedded) -> None:
        self.prior, self.stage, self.seconds, self.pictures = prior, "", Counter[str](), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def denoise(self, z_t: torch.Tensor, t: torch.Tensor, condition: Any) -> Prediction:
        began = time.perf_counter()
        prediction = self.prior.denoise(z_t, t, condition)
        self.seconds[self.stage] += time.perf_counter() - began
        self.pictures += len(z_t)
        return prediction


def measured(prompt: str, recipe: str) -> dict[str, Any]:
    """One run, alone in this process."""
    request = Request(prompt, RECIPES[recipe])
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder), request) as run:
        began = time.perf_counter()
        prior = Timed(Embedded.load())
        loading, stage = time.perf_counter() - began, run.log.stage

        @contextmanager
        def noted(name: str, *steps: int) -> Iterator[Log]:
            prior.stage = name
            with stage(name, *steps) as log:
                yield log

        run.log.stage = noted  # type: ignore[method-assign]
        text_to_3d(request, run, prior)
        total = time.perf_counter() - began
        stages = run.log.seconds() | {"load": loading}
    return {
        "prompt": prompt,
        "seconds": round(total, 1),
        "stages": {name: round(seconds, 1) for name, seconds in stages.items()},
        "prior_seconds": {name: round(seconds, 1) for name, seconds in prior.seconds.items()},
        "prior_ms_per_picture": round(1000 * sum(prior.seconds.values()) / prior.pictures, 2),
        "prior_share": {name: round(seconds / stages[name], 3) for name, seconds in prior.seconds.items()},
        "prior_share_of_run": round(sum(prior.seconds.values()) / total, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a wooden barrel")
    choices = [
        recipe.name
        for recipe in RECIPES.values()
        if recipe.stages and recipe.wants == "text" and recipe.start != "mesh"
    ]
    parser.add_argument("--recipes", choices=choices, nargs="+", default=["dreamfusion", "magic3d"])
    asked = parser.parse_args()
    set_threads()
    figures = {recipe: measured(asked.prompt, recipe) for recipe in asked.recipes}
    kept("step", figures)
    table = Table("figure", *figures)
    for name in figures[asked.recipes[0]]:
        table.add_row(name, *(str(figures[recipe][name]) for recipe in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
