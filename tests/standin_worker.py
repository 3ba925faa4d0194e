"""The process of `threed.worker` with other work: a row does what its name says, or dies of it."""

import os
import sys
import time
from pathlib import Path

from threed import worker
from threed.errors import Failure
from threed.worker import Job


def make(job: Job, folder: Path) -> None:
    mark, first = Path(job.cells["mark"]), not Path(job.cells["mark"]).exists()
    mark.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['NUMBA_NUM_THREADS']}")
    if job.name == "die-always" or (job.name == "die-once" and first):
        os.write(2, b"it hurts\n")
        os._exit(9)
    if job.name == "wrong":
        raise Failure("as it is")
    if job.name == "sleep":
        mark.write_text(str(os.getpid()))
        time.sleep(60)
    sys.__stdout__.write("libraries print\n")
    os.write(1, b"and so do these\n")


worker.make = make
worker.main()
