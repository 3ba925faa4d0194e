"""How far a run is: its stages, its losses, and the seconds that are left, out of recipe.json and metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

MOST_METRICS = 64 * 2**20  # bytes; of a longer file, what stands at its end
MOST_POINTS = 400  # of a curve, which is about as many as a screen shows

Record = dict[str, Any]


def progress(metrics: Path | None, recipe: Any) -> dict[str, Any]:
    """`stages` in their order, `now` the name of the one at work, `seconds_left` or None, and `curves` of losses."""
    taken = records(metrics) if metrics else []
    done: dict[str, Record] = {record["stage"]: record for record in taken}
    wanted = expected(recipe)
    stages: list[dict[str, Any]] = [
        {
            "name": name,
            "step": done[name]["step"] if name in done else 0,
            "steps": wanted.get(name, 1),
            "seconds": done[name]["seconds"] if name in done else 0.0,
        }
        for name in [*wanted, *(name for name in done if name not in wanted)]
    ]
    now = next((stage["name"] for stage in stages if stage["step"] < stage["steps"]), None)
    return {"stages": stages, "now": now, "seconds_left": seconds_left(stages, taken), "curves": curves(taken)}


def expected(recipe: Any) -> dict[str, int]:
    """The stages that a run of this recipe goes through, and their steps; none where it cannot be told."""
    try:
        pictured = recipe["wants"] == "picture"
        draws = recipe.get("drawn") is not None
        asks = draws or any(stage["loss"] is not None for stage in recipe["stages"]) or recipe["overpaint"]
        found = {"load": 1} if asks else {}
        found |= {"picture": 1, "start": 1} if pictured else {"start": 1}
        found |= {"views": 1} if draws else {}
        for stage in recipe["stages"]:
            found |= {f"begin {stage['name']}": 1, str(stage["name"]): int(stage["steps"])}
        found |= {"mesh": 1, "camera": 1, "projection": 1} if pictured else {"mesh": 1}
        if recipe["overpaint"]:
            found |= {"paint": len(recipe["overpaint"]["elevations"])}
        return found | {"export": 1}
    except (KeyError, TypeError, ValueError):
        return {}


def seconds_left(stages: list[dict[str, Any]], taken: list[Record]) -> float | None:
    """Until the last of the steps, at the pace of the later half of those that were counted; None without any.

    Stages of a single step are left out: how long they take shows when they are done. All are short.
    """
    pace = None
    for stage in stages:
        points = [(r["step"], r["seconds"]) for r in taken if r["stage"] == stage["name"]]
        if len(points) > 1:
            (first, before), (last, after) = points[len(points) // 2 - 1], points[-1]
            pace = (after - before) / max(last - first, 1)
    if pace is None:
        return None
    return sum(pace * (stage["steps"] - stage["step"]) for stage in stages if stage["steps"] > 1)


def curves(taken: list[Record]) -> list[dict[str, Any]]:
    """For every stage with losses its `steps`, and as many `values` of each by name; None where one was not finite."""
    found = []
    for stage in dict.fromkeys(record["stage"] for record in taken):
        own = [record for record in taken if record["stage"] == stage]
        names = list(dict.fromkeys(n for record in own for n in record if n not in {"stage", "step", "seconds"}))
        if names:
            values = {name: [number(record.get(name)) for record in own] for name in names}
            found.append({"stage": stage, "steps": [record["step"] for record in own], "values": values})
    return found


def records(path: Path) -> list[Record]:
    """What metrics.jsonl holds, whole records alone, of every stage about MOST_POINTS at most, the last included."""
    found: list[Record] = []
    # All lines of a stage begin alike; most need not be parsed.
    for _, of_stage in groupby(_lines(path), key=lambda line: line.partition(b'"step"')[0]):
        lines = list(of_stage)
        spacing = max(1, len(lines) // MOST_POINTS)
        for line in [*lines[:-1:spacing], lines[-1]]:
            found += _record(line)
    return found


def number(value: Any) -> float | None:
    """A finite number, or None: JSON's parsers in browsers know neither NaN nor infinity."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if sound else None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MOST_METRICS))
            yield from (line for line in file.read(MOST_METRICS).splitlines(keepends=True) if line.endswith(b"\n"))
    except OSError:
        return


def _record(line: bytes) -> list[Record]:
    """The record of this line; none where it is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return []
    sound = isinstance(record, dict) and isinstance(record.get("stage"), str)
    sound = sound and isinstance(record.get("step"), int) and number(record.get("seconds")) is not None
    return [record] if sound else []
