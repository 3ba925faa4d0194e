"""Where the time of a whole run goes: the prior's forward pass, the rest of each step, and the stages around them.

    python benchmarks/step.py ["a wooden barrel"]

Runs the default recipe in a temporary folder, in this process, and writes benchmarks/results/step.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from threed.distill.embedded import Embedded
from threed.distill.prior import Prediction
from threed.machine import set_threads
from threed.pipeline import text_to_3d
from threed.recipes import RECIPES
from threed.run import Request, Run


class Timed:
    """A prior that counts the seconds of its own forward pass."""

    def __init__(self, prior: Embedded) -> None:
        self.prior, self.seconds, self.pictures = prior, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def denoise(self, z_t: torch.Tensor, t: torch.Tensor, condition: Any) -> Prediction:
        began = time.perf_counter()
        prediction = self.prior.denoise(z_t, t, condition)
        self.seconds += time.perf_counter() - began
        self.pictures += len(z_t)
        return prediction


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "a wooden barrel"
    set_threads()
    request = Request(prompt, RECIPES["dreamfusion"])
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder), request) as run:
        began = time.perf_counter()
        prior = Timed(Embedded.load())
        loading = time.perf_counter() - began
        text_to_3d(request, run, prior)
        total = time.perf_counter() - began
        stages = {"load": loading} | {name: s for name, s in run.log.seconds().items() if name != "load"}
    figures = {
        "prompt": prompt,
        "threads": torch.get_num_threads(),
        "seconds": round(total, 1),
        "stages": {name: round(seconds, 1) for name, seconds in stages.items()},
        "prior_seconds": round(prior.seconds, 1),
        "prior_ms_per_picture": round(1000 * prior.seconds / prior.pictures, 2),
        "prior_share_of_fit": round(prior.seconds / stages["coarse"], 3),
        "prior_share_of_run": round(prior.seconds / total, 3),
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "step.json").write_text(json.dumps(figures, indent=2) + "\n")
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
