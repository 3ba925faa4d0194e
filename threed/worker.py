"""One row after the other in one process: by the code of the single commands, the networks read once.

    python -m threed.worker      # jobs are JSON lines on standard input, outcomes the same on standard output

When standard input ends the process ends at once, whatever it is doing: a run folder takes that as it takes kill -9,
and no worker outlives its batch.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from threed.errors import Crowded, Failure, Mistake
from threed.kept import keeping


@dataclass(frozen=True)
class Job:
    """One row and where it goes."""

    name: str
    folder: str
    line: int
    cells: dict[str, str]
    home: str
    overwrite: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    done: bool
    reason: str = ""  # why not
    may_pass: bool = False  # whether another try may end otherwise

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def work(job: Job) -> Outcome:
    """Make the asset in its folder; never raises for what goes wrong with it.

    A mistake or a volume without a surface would be the same again. What else is raised may be the machine's: a full
    disk, too little memory.
    """
    folder = Path(job.folder)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            make(job, folder)
    except (Mistake, Failure) as error:
        return Outcome(False, str(error), may_pass=isinstance(error, Crowded))
    except Exception as error:
        from threed import disk

        with suppress(OSError):
            disk.append(folder / "log.txt", traceback.format_exc().encode())
        return Outcome(False, f"{type(error).__name__}: {error}", may_pass=True)
    return Outcome(True)


def make(job: Job, folder: Path) -> None:
    """As `threed text` or `threed image` would. Raises whatever they raise."""
    from threed import image_cli, text_cli
    from threed.rows import Row

    asked = Row(job.line, job.cells, job.home).asked(folder, job.overwrite)
    if isinstance(asked, text_cli.Text):
        text_cli.main(asked)
    else:
        image_cli.main(asked)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the batch decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    jobs: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    with keeping():
        while True:
            print(work(jobs.get()).to_json(), file=answers, flush=True)


def _listen(jobs: SimpleQueue[Job]) -> None:
    for line in sys.stdin:
        jobs.put(Job(**json.loads(line)))
    os._exit(0)


if __name__ == "__main__":
    main()
