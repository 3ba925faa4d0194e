"""The judge that a folder keeps: trained there once, on a collection of assets, and read from there ever after.

JUDGE/judge.json, model.safetensors    the judge, what it was trained on, and how often it is right
JUDGE/work                             caches and checkpoints of its training; may be deleted once there is a judge
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from threed.errors import Mistake
from threed.flags import make_folder
from threed.log import Log
from threed.training import judge as judges
from threed.training.cache import FEWEST
from threed.training.collection import Item, held_out
from threed.training.judge import SCHEDULE, Judge
from threed.training.loop import Schedule
from threed.training.parts import Data
from threed.training.views_cache import Cache, Shots, build

VIEWS = 8  # of every asset
AMONG = 100  # captions, where there are as many


def lessons(items: Sequence[Item]) -> Data:
    """What a judge of these assets learns from, less a twentieth if that leaves enough on both sides.

    Raises Mistake for assets, or captions, that are too few to learn from.
    """
    data = Data(*held_out(items))
    if data.assets < FEWEST or len({item.caption for item in data.held_out}) < 2:
        data = Data(tuple(items), ())
    captions = len({item.caption for item in data.train})
    if data.assets < FEWEST or captions < 2:
        raise Mistake(
            f"a judge cannot learn from {data.assets} assets under {captions} captions; it needs at least {FEWEST} "
            "under 2: give it others, such as those that the prior was trained on, with --judge-assets"
        )
    return data


def check(folder: Path) -> None:
    """Raises Mistake for a folder that holds something other than a judge, or the beginning of one."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise Mistake(f"{str(folder)!r} is not a folder; choose another --judge")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and not found & {"judge.json", "work"}:
        raise Mistake(f"{str(folder)!r} holds something else ({min(found)}); choose a new folder as --judge")


def judged(
    folder: Path, size: int, data: Data | None, console: Console, schedule: Schedule = SCHEDULE
) -> tuple[Judge, dict[str, Any]]:
    """The judge in this folder, trained on `data` first where there is none, and what its judge.json says.

    size: of the pictures, pixels a side. data: None where there is one already, whatever it has learned from. Raises
    Mistake for a judge of another size or of other assets, and for a folder that cannot be used.
    """
    if not (folder / "judge.json").exists():
        if data is None:
            raise Mistake(f"there is no judge in {str(folder)!r}; check --judge")
        taught(folder, size, data, console, schedule)
    judge = judges.load(folder)
    about: dict[str, Any] = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    if (own := judge.towers.config.size) != size:
        raise Mistake(
            f"the judge in {str(folder)!r} looks at {own} pixels a side and the prior draws {size}; "
            "choose a new folder as --judge"
        )
    if not {"trained_on", "r_precision"} <= about.keys():
        raise Mistake(f"the judge in {str(folder)!r} does not say what it has learned; choose a new folder as --judge")
    if data is not None and about["trained_on"]["digest"] != data.digest:
        raise Mistake(
            f"the judge in {str(folder)!r} was trained on other assets or captions than these; "
            "choose a new folder as --judge, or name it without --judge-assets to be judged by it all the same"
        )
    return judge, about


def taught(folder: Path, size: int, data: Data, console: Console, schedule: Schedule) -> None:
    """Train a judge and save it. Raises Mistake for a folder that cannot be written, or assets that cannot be used."""
    work = folder / "work" / f"{data.digest}-{size}"
    make_folder(work, "--judge", named=folder)
    log, shots = Log(work, console), Shots(views=VIEWS, size=size)
    cache = build(data.train, work / "cache", log, shots)
    held = build(data.held_out, work / "held-out", log, shots, fewest=0) if data.held_out else None
    judge = judges.train(cache, log, schedule)
    seen, left = judges.split(cache)
    about = {
        "trained_on": {"assets": len(cache), "captions": len(different(cache)), "digest": data.digest},
        "r_precision": {
            "views that it was trained on": precision(judge, cache, seen),
            "other views of the same assets": precision(judge, cache, left),
            "other assets": None if held is None else precision(judge, held, range(VIEWS)),
        },
    }
    judges.write(folder, judge, about)


def precision(judge: Judge, cache: Cache, views: Sequence[int]) -> dict[str, float] | None:
    """How often it is right about real renders, and among how many captions; None where there is nothing to choose."""
    among = min(AMONG, len(different(cache)))
    return {"share": round(judges.accuracy(judge, cache, views, among), 4), "among": among} if among > 1 else None


def different(cache: Cache) -> set[str]:
    """The captions of a cache."""
    return {caption for captions in cache.captions for caption in captions}
