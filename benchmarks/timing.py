"""Tasks timed in turn, round after round, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Task = Callable[[], object]


def timed(tasks: Mapping[str, Task], rounds: int) -> dict[str, list[float]]:
    """Seconds of every task, a number a round; a round before the first compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in track(range(rounds + 1), "rounds"):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a launch does not wait for its kernel
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def told(seconds: Mapping[str, list[float]], ours: Callable[[str], str], title: str) -> list[dict[str, Any]]:
    """Print the least and the median time, and the ratio of least times to that of the task which is `ours`."""
    table, rows = Table(title=f"{title}, {torch.get_num_threads()} threads"), []
    for column in ("task", "least ms", "median ms", "least / ours"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, times in seconds.items():
        least, ratio = min(times), min(times) / min(seconds[ours(name)])
        rows.append({"task": name, "least": least, "median": statistics.median(times), "ratio": ratio})
        table.add_row(name, f"{least * 1e3:.2f}", f"{rows[-1]['median'] * 1e3:.2f}", f"{ratio:.2f}")
    Console().print(table)
    return rows


def kept(name: str, summary: Mapping[str, Any]) -> None:
    """Write benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    whole = {"threads": torch.get_num_threads(), **summary}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
