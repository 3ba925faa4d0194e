"""The command line of lists: `threed batch LIST`, every row of which is a `threed text` or a `threed image`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from threed.errors import Mistake
from threed.flags import check_ranges, make_folder, said

if TYPE_CHECKING:
    from threed.crew import Workers
    from threed.rows import Row
    from threed.run import Request
    from threed.summary import Line
    from threed.worker import Job, Outcome

WORKERS, RETRIES = (1, 256), (0, 10)
LISTED = 20  # rows at most that are complained of in one go
SUMMARY_EVERY = 10.0  # seconds, of summary.csv; the pictures come at the end
HELP = """Make every asset of a list.

LIST is a CSV file whose header names the columns: prompt, image (a picture instead, or with a prompt of its own),
name (of the run folder) and any flag of `threed text` or `threed image`: seed, recipe, faces, texture_size, ... An
empty cell leaves the default. Or it is a .txt file with a prompt a line, or .jsonl, an object a line. Pictures are
looked for beside the list. All rows are checked before any work.

Every row becomes a run folder in the library, with the same files that the single command makes. A row that fails is
noted and the others go on; after Ctrl-C, kill -9 or a power cut the same command goes on where it was stopped, and
makes nothing twice. summary.csv has a line for every row, index.html and contact.png show them; exit code 0 if all are
finished, 1 if some failed.

For example:
  threed batch prompts.csv --output library
  threed batch prompts.txt --output library --workers 4 --set recipe=refined faces=2000
  threed batch prompts.csv --output library --ray 10.0.0.1:6379    # a Ray cluster; pip install "threed-assets[ray]"
  threed view library                                              # look at all of it

A list:
  prompt,name,seed,recipe,faces
  a wooden barrel,barrel,0,,2000
  "a small house, red roof",house,3,refined,
"""


@dataclass(frozen=True)
class Batch:
    """What `threed batch` was asked for, as it was typed."""

    rows: Annotated[tyro.conf.Positional[Path], said("A .csv, .txt or .jsonl file.", metavar="LIST")]
    output: Annotated[Path, said("The library: a folder of run folders.")] = Path("library")
    set: Annotated[tuple[str, ...], said("COLUMN=VALUE for rows that do not say so themselves.", "nothing")] = ()
    workers: Annotated[
        int | None,
        said(
            "Rows that are made at a time; they share the cores out.",
            "one a core, and 2 GB of memory; with --ray, as many as fit",
        ),
    ] = None
    threads: Annotated[int | None, said("Of every worker.", "the cores over the workers; with --ray, one")] = None
    retries: Annotated[
        int, said(f"More tries where a worker died or the machine was at fault, {RETRIES[0]} to {RETRIES[1]}.")
    ] = 1
    ray: Annotated[str | None, said("Where a Ray cluster is: HOST:PORT, auto, or local to start one here.", "none")] = (
        None
    )
    overwrite: Annotated[bool, said("Replace runs of another recipe in the rows' folders.", "off")] = False


def main(asked: Batch) -> int:
    """`threed batch`: check all rows, make those that are not there, tell of all; returns the exit code.

    Raises Mistake.
    """
    check_ranges(asked, {"workers": WORKERS, "threads": WORKERS, "retries": RETRIES})

    from threed import cluster, rows

    found = rows.read(asked.rows, everywhere(asked.set))
    requests = checked(found, asked)
    if asked.ray is not None:
        cluster.check(asked.ray)
    make_folder(asked.output, "--output")
    with alone(asked.output):
        return made(found, requests, asked)


def everywhere(pairs: Sequence[str]) -> dict[str, str]:
    """Raises Mistake for what is no COLUMN=VALUE."""
    for pair in pairs:
        if "=" not in pair:
            raise Mistake(f"--set has {pair!r}; write COLUMN=VALUE, for example: --set recipe=refined")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def checked(rows: Sequence[Row], asked: Batch) -> dict[str, Request]:
    """What every row asks for, by its name. Raises one Mistake with a line for every row that cannot be made."""
    from threed import image_cli, text_cli
    from threed.kept import keeping
    from threed.rows import misnamed
    from threed.run import check

    wrong, requests = misnamed(list(rows)), dict[str, "Request"]()
    with keeping():
        for row in rows:
            if row.line in wrong:
                continue
            folder = asked.output / row.name
            try:
                typed = row.asked(folder)
                request = text_cli.checked(typed) if isinstance(typed, text_cli.Text) else image_cli.checked(typed)[0]
                check(folder, request, resume=not asked.overwrite, overwrite=asked.overwrite)
                requests[row.name] = request
            except Mistake as mistake:
                wrong[row.line] = str(mistake)
    if wrong:
        listed = [f"  line {line}: {wrong[line]}" for line in sorted(wrong)[:LISTED]]
        more = [f"  and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        what = "1 row" if len(wrong) == 1 else f"{len(wrong)} rows"
        raise Mistake(
            "\n".join([f"{what} of {str(asked.rows)!r} cannot be made, and nothing was begun:", *listed, *more])
        )
    return requests


@contextmanager
def alone(library: Path) -> Iterator[None]:
    """Raises Mistake where another batch is at work in the library."""
    from threed import disk

    try:
        lock = disk.lock(library / ".batch.lock")
    except OSError as error:
        raise Mistake(f"cannot write into {str(library)!r} ({error.strerror}); choose another --output") from error
    if lock is None:
        raise Mistake(f"another batch is at work in {str(library)!r}; wait for it or choose another --output")
    with lock:
        yield


def made(rows: Sequence[Row], requests: dict[str, Request], asked: Batch) -> int:
    """Make what is missing and write the summary, whatever happens. Raises Mistake where there are no workers."""
    from threed import summary
    from threed.batch import carry_out

    jobs = [job for row in rows if (job := job_of(row, requests[row.name], asked))]
    watch = Watch(rows, requests, asked.output, len(jobs), Console(stderr=True))
    if there := len(rows) - len(jobs):
        watch.say(f"{there} of {len(rows)} are there already")
    try:
        if jobs:
            carry_out(jobs, workers_for(asked, len(jobs)), asked.retries, watch)
    finally:
        summary.write(asked.output, watch.lines())
    lines = watch.lines()
    states = ", ".join(f"{count} {state}" for state, count in summary.counted(lines).items())
    Console().print(f"{asked.output / 'index.html'}  {states}", highlight=False, markup=False, soft_wrap=True)
    return int(any(line.state != "finished" for line in lines))


def job_of(row: Row, request: Request, asked: Batch) -> Job | None:
    """What is to be done for a row; None where it is done."""
    from threed.run import finished
    from threed.worker import Job

    folder = asked.output / row.name
    other = holds_another(folder, request)  # and to be overwritten, or `checked` had said so
    if not other and (folder / "recipe.json").is_file() and finished(folder, request):
        return None
    return Job(row.name, str(folder.absolute()), row.line, row.cells, str(Path(row.home).absolute()), other)


def holds_another(folder: Path, request: Request) -> bool:
    """Whether the run in a folder is not one of this request."""
    from threed.run import check

    try:
        check(folder, request, resume=True, overwrite=False)
    except Mistake:
        return True
    return False


def workers_for(asked: Batch, jobs: int) -> Workers:
    """No more than there are jobs. Raises Mistake."""
    from threed.machine import MEMORY, cores, total_memory

    if asked.ray is not None:
        from threed.cluster import Cluster

        return Cluster(asked.ray, min(asked.workers or jobs, jobs), asked.threads or 1, asked.output)

    from threed.crew import Crew, threads_each

    told = os.environ.get("OMP_NUM_THREADS", "")
    there = int(told) if told.isdigit() and int(told) > 0 else cores()
    memory = total_memory()
    room = int(memory // MEMORY) if memory else there
    count = min(asked.workers or max(1, min(there, room)), jobs)
    return Crew(count, asked.threads or threads_each(count, there))


class Watch:
    """Tells of every outcome with the time that is left, and keeps what the summary needs."""

    def __init__(
        self, rows: Sequence[Row], requests: dict[str, Request], library: Path, jobs: int, console: Console
    ) -> None:
        self.rows, self.requests, self.library, self.jobs, self.console = rows, requests, library, jobs, console
        self.outcomes: dict[str, tuple[Outcome, int]] = {}
        self._began = self._written = time.monotonic()
        self._final: set[str] = set()

    def __call__(self, job: Job, outcome: Outcome, tries: int, again: bool) -> None:
        from threed import summary

        now = time.monotonic()
        self.outcomes[job.name] = outcome, tries
        if again:
            self.say(f"{job.name} will be tried again: {outcome.reason}")
            return
        self._final.add(job.name)
        ended = len(self._final)
        left = round((now - self._began) / ended * (self.jobs - ended))
        word = "finished" if outcome.done else f"failed: {outcome.reason}"
        self.say(f"{ended} of {self.jobs}  {job.name} {word}  {left // 60}:{left % 60:02} left")
        if now - self._written > SUMMARY_EVERY:
            summary.write(self.library, self.lines(), pictures=False)
            self._written = now

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def lines(self) -> list[Line]:
        """All rows as they stand."""
        return [self._line(row) for row in self.rows]

    def _line(self, row: Row) -> Line:
        from threed.run import finished
        from threed.summary import Line, figures

        request, folder = self.requests[row.name], self.library / row.name
        outcome, tries = self.outcomes.get(row.name, (None, 0))
        told = (row.name, row.subject, request.recipe.name, request.seed)
        if not holds_another(folder, request) and finished(folder, request):
            return Line(*told, "finished", **figures(folder), tries=tries)
        if outcome and not outcome.done:
            return Line(*told, "failed", tries=tries, reason=outcome.reason)
        return Line(*told, "waiting")
