"""What a run tells while it works: on the screen, in metrics.jsonl, in log.txt and in progress.png.

metrics.jsonl: one JSON object a step, `stage`, `step` (1 after the first), `seconds` and every loss. `seconds` is the
time its stage has taken so far, earlier sessions of the same run included; the file is the only memory of that.
Steps that are taken again, because the run was resumed or went back, replace the ones that stood there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from threed import disk

PLAIN_LINE_EVERY = 10.0  # seconds, where there is no terminal to draw a bar on
PICTURE_EVERY = 3.0  # seconds


class Log:
    """The log of one run folder; without a console nothing reaches the screen."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder = folder
        self.console = console or Console(quiet=True)
        self._stage = self._record = ""
        self._step = self._pictures = 0
        self._began = self._earlier = 0.0  # when this session of the stage began; seconds of the sessions before
        self._line_due = self._picture_due = -math.inf

    @contextmanager
    def stage(self, name: str, steps: int = 1, start: int = 0) -> Iterator[Log]:
        """One stage of the run, `start` of its steps already done; a stage that logs no step is one step as a whole."""
        self._stage, self._step, self._pictures = name, start, 0
        self._earlier = rewind(self.folder / "metrics.jsonl", name, start)
        self._began, self._line_due = time.monotonic(), time.monotonic() + PLAIN_LINE_EVERY
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task(name, total=steps, completed=start, numbers="")
        if self.console.is_terminal:
            self._bar.start()
        try:
            yield self
            if self._step == start < steps:
                self(steps, {})
        finally:
            if self.console.is_terminal:
                self._bar.stop()
        self._write(f"{name}: {self._step} of {steps} steps, {self._earlier + time.monotonic() - self._began:.1f} s")

    def __call__(self, step: int, losses: Mapping[str, SupportsFloat], pictures: int = 0) -> None:
        """Step number `step` is done and the prior saw so many pictures in it."""
        if step <= self._step:
            rewind(self.folder / "metrics.jsonl", self._stage, step - 1)
        self._step, self._pictures = step, self._pictures + pictures
        seconds = time.monotonic() - self._began
        numbers = {name: float(loss) for name, loss in losses.items()}
        record: dict[str, Any] = {"stage": self._stage, "step": step, "seconds": round(self._earlier + seconds, 3)}
        # JSON knows neither NaN nor infinity.
        record |= {name: float(f"{x:.6g}") if math.isfinite(x) else None for name, x in numbers.items()}
        disk.append(self.folder / "metrics.jsonl", encode(record))
        shown = [f"{name} {x:.4g}" for name, x in numbers.items()]
        if self._pictures:
            shown.append(f"{self._pictures / max(seconds, 1e-9):.1f} images/s")
        self._bar.update(self._task, completed=step, numbers="  ".join(shown))
        self._plain_line()

    def note(self, text: str) -> None:
        """Something worth knowing, for the screen and for log.txt."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)
        self._write(text)

    def picture(self, draw: Callable[[], bytes]) -> None:
        """Refresh progress.png with the PNG that `draw` returns; asks for one every few seconds at most."""
        if time.monotonic() >= self._picture_due:
            disk.write(self.folder / "progress.png", draw())
            self._picture_due = time.monotonic() + PICTURE_EVERY

    def seconds(self) -> dict[str, float]:
        """What every stage took so far, in the order in which they were first told of."""
        return {record["stage"]: record["seconds"] for record in records(self.folder / "metrics.jsonl")}

    def _plain_line(self) -> None:
        if self.console.is_terminal or time.monotonic() < self._line_due:
            return
        self._line_due = time.monotonic() + PLAIN_LINE_EVERY
        task = self._bar.tasks[self._task]
        left = "-:--" if task.time_remaining is None else "{}:{:02}".format(*divmod(int(task.time_remaining), 60))
        line = f"{self._stage}  {task.completed:.0f}/{task.total:.0f}  {task.fields['numbers']}  {left} left"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _write(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        disk.append(self.folder / "log.txt", f"{stamp}  {text}\n".encode())


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl; one that was torn while it was written ends the file."""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            return
        yield json.loads(line)


def encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def rewind(path: Path, stage: str, step: int) -> float:
    """Forget what `stage` did after `step`; returns the seconds it had taken by then. Other stages keep theirs."""
    kept = [record for record in records(path) if record["stage"] != stage or record["step"] <= step]
    whole = b"".join(map(encode, kept))
    if path.exists() and path.read_bytes() != whole:
        disk.write(path, whole)
    return max((record["seconds"] for record in kept if record["stage"] == stage), default=0.0)
