"""How good the shipped prior is by itself, and any other beside it: samples, turns, colours and the start.

    python benchmarks/prior.py ASSETS                     # the shipped prior, about half an hour on two cores
    python benchmarks/prior.py ASSETS --prior MY_PRIOR    # and another beside it
    python benchmarks/prior.py ASSETS --prompts 10        # a tenth of it all, to see that it works

ASSETS is the folder of the training set, with its manifest.jsonl. This is `threed prior evaluate` of it, whose judge is
trained first, on ASSETS less the twentieth that is held out, where --judge has none yet. The figures go to
benchmarks/results/prior.json, or to the file that --output names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from threed.cli import main as threed

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of the training set")
    parser.add_argument("--prior", action="append", default=[], help="another prior's folder")
    parser.add_argument("--judge", default="outputs/judge", help="the judge's folder")
    parser.add_argument("--output", default=str(RESULTS / "prior.json"), help="where the figures go")
    parser.add_argument("--prompts", default="100", help="how many captions are asked for")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    command = ["prior", "evaluate", str(asked.assets), "--captions", str(asked.assets / "manifest.jsonl")]
    command += ["--prior", "embedded", *asked.prior, "--judge", asked.judge, "--output", asked.output]
    return threed([*command, "--seed", str(asked.seed), "--prompts", asked.prompts])


if __name__ == "__main__":
    sys.exit(main())
