"""How good the shipped prior is by itself, and any other beside it: samples, turns, colours and the start.

    python benchmarks/prior.py ASSETS                     # the shipped prior, about an hour on two cores
    python benchmarks/prior.py ASSETS --prior MY_PRIOR    # and another beside it
    python benchmarks/prior.py ASSETS --prompts 10        # a tenth of it all, to see that it works

ASSETS is the folder of the training set, with its manifest.jsonl. This is `threed prior evaluate` of what a training on
it learns, and of the twentieth that it holds out; the judge learns from the former, too. The figures of both go to
benchmarks/results/prior.json, or to the file that --output names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from threed.cli import main as threed
from threed.training.collection import Item, gather, held_out

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="folder of the training set")
    parser.add_argument("--prior", action="append", default=[], help="another prior's folder")
    parser.add_argument("--judge", default="outputs/judge", help="the judge's folder")
    parser.add_argument("--output", type=Path, default=RESULTS / "prior.json", help="where the figures go")
    parser.add_argument("--prompts", default="100", help="how many captions are asked for")
    parser.add_argument("--seed", default="0")
    asked = parser.parse_args()
    manifest = asked.assets / "manifest.jsonl"
    judge = ["--judge", asked.judge, "--judge-assets", str(asked.assets), "--judge-captions", str(manifest)]
    flags = ["--prior", "embedded", *asked.prior, "--prompts", asked.prompts, "--seed", asked.seed, *judge]
    found = {}
    with TemporaryDirectory() as folder:
        for name, items in zip(("learned", "held out"), held_out(gather(asked.assets, manifest).items), strict=True):
            captions, output = Path(folder) / "captions.jsonl", Path(folder) / "figures.json"
            captions.write_text(listed(items), encoding="utf-8")
            command = ["prior", "evaluate", str(asked.assets), "--captions", str(captions), "--output", str(output)]
            if code := threed([*command, *flags]):
                return code
            found[name] = json.loads(output.read_text(encoding="utf-8"))
    asked.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def listed(items: Sequence[Item]) -> str:
    """A captions file."""
    return "".join(json.dumps({"path": item.name, "caption": item.caption}) + "\n" for item in items)


if __name__ == "__main__":
    sys.exit(main())
