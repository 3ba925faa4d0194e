"""The command line of `threed prior evaluate FOLDER`: how good priors are, in a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from threed.errors import Mistake
from threed.flags import SEED, check_output, check_ranges, said

if TYPE_CHECKING:
    from threed.training.parts import Data

PROMPTS = (2, 1000)
EVALUATE_HELP = """Measure what a prior draws by itself, against a folder of captioned assets.

FOLDER and its captions are as in threed prior train. Take assets that were held out of the prior's training: of others,
the figures say how well it remembers them. A prior is asked for up to --prompts of their captions, for the same in
words that no training uses, for all sides of an object out of one picture, for things in colours that no caption names,
and for volumes of its start. Where there is one, the table also has the score of real renders, or of knowing nothing.

R-precision is how often a picture is found to show its own caption, among as many as the first row says: the fewer, the
easier. A small network, the judge, finds it. It is trained the first time, in about ten minutes on two cores, and kept
in the folder --judge, whose work/ may be deleted then. It learns from renders of FOLDER, or of --judge-assets, such as
those that the prior was trained on: at least 16, and the more, the better. How often it is right about real renders is
told below the table.

All that takes about half an hour a prior on two cores, a tenth of it with --prompts 10. The same command, stopped or
not, gives the same figures.

For example:
  threed prior evaluate held_out --prior my_prior
  threed prior evaluate held_out --prior embedded my_prior              # side by side
  threed prior evaluate held_out --captions held_out/captions.jsonl --prior my_prior --output mine.json
  threed prior evaluate few --prior my_prior --judge-assets assets --judge-captions assets/captions.jsonl
  threed prior evaluate held_out --prior my_prior --prompts 10          # a first impression
"""


@dataclass(frozen=True)
class Evaluate:
    """What `threed prior evaluate` was asked for, as it was typed."""

    folder: Annotated[tyro.conf.Positional[Path], said("The meshes: GLB, glTF, OBJ.", metavar="FOLDER")]
    captions: Annotated[Path | None, said("Which meshes, and what they show.", "all of them, by their names")] = None
    prior: Annotated[tuple[str, ...], said("The diffusion models: embedded (it came with the program) or folders.")] = (
        "embedded",
    )
    judge: Annotated[
        Path | None, said("Where the judge is kept; one that is there is used.", "outputs/judge-<its assets>")
    ] = None
    judge_assets: Annotated[
        Path | None,
        said("Meshes for the judge to learn from, such as those that the prior was trained on.", "FOLDER"),
    ] = None
    judge_captions: Annotated[Path | None, said("What those show.", "by their names")] = None
    prompts: Annotated[
        int, said(f"How many captions are asked for, {PROMPTS[0]} to {PROMPTS[1]}; all else in proportion.")
    ] = 100
    seed: Annotated[int, said("Another seed, other captions and pictures; at least 0.")] = 0
    output: Annotated[Path, said("The figures, JSON.")] = Path("prior-evaluation.json")


def evaluate(asked: Evaluate) -> None:
    """`threed prior evaluate`: check everything, measure, say what came out."""
    check_evaluate(asked)

    from threed import disk
    from threed.distill.folder import UnreadablePrior
    from threed.machine import set_threads
    from threed.prior_cli import check_prior
    from threed.training.collection import gather
    from threed.training.evaluate import compare, show
    from threed.training.trials import scaled

    for name in asked.prior:
        check_prior("", name)
    items = gather(asked.folder, asked.captions).items
    judge, learn = appointed(asked)
    known = {item.caption for item in learn.train} if learn else ()
    set_threads()
    try:
        found = compare(
            asked.prior, items, judge, learn, Console(stderr=True), scaled(asked.prompts), asked.seed, known
        )
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error
    console = Console()
    console.print(show(*found["priors"]))
    for line in verdict(found["judge"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(found, indent=2, allow_nan=False).encode() + b"\n"
    disk.write(asked.output, content)
    console.print(f"{asked.output}  {len(content) / 1000:,.0f} kB", highlight=False, markup=False, soft_wrap=True)


def check_evaluate(asked: Evaluate) -> None:
    """What can be judged without importing anything heavy. Raises Mistake."""
    check_ranges(asked, {"prompts": PROMPTS, "seed": SEED})
    if not asked.prior:
        raise Mistake("--prior names nothing; give at least one, for example: --prior embedded my_prior")
    if asked.judge_captions is not None and asked.judge_assets is None:
        raise Mistake("--judge-captions has no folder that it belongs to; give --judge-assets, too")
    check_output(asked.output, "figures.json")


def appointed(asked: Evaluate) -> tuple[Path, Data | None]:
    """Where the judge is, and what it learns from; None for one that is taken as it is. Raises Mistake."""
    from threed.run import slug
    from threed.training import judging
    from threed.training.collection import gather

    folder, captions = asked.folder, asked.captions
    if asked.judge_assets is not None:
        folder, captions = asked.judge_assets, asked.judge_captions
    judge = asked.judge or Path("outputs") / f"judge-{slug(folder.resolve().name)}"
    judging.check(judge)
    if asked.judge is not None and asked.judge_assets is None and (judge / "judge.json").exists():
        return judge, None
    return judge, judging.lessons(gather(folder, captions).items)


def verdict(about: dict[str, Any]) -> list[str]:
    """How far the judge can be trusted, in words."""
    taught = about["trained_on"]
    lines = [f"the judge has learned {taught['captions']} captions of {taught['assets']} assets; its own R-precision:"]
    for renders, precision in about["r_precision"].items():
        if precision is not None:
            lines.append(f"  {precision['share']:.3f} among {precision['among']} captions, {renders}")
    return lines
