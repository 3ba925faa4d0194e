"""Workers on this machine: processes that share its cores out, and are replaced when they die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import IO, Protocol, runtime_checkable

from threed.worker import Job, Outcome

COMMAND = (sys.executable, "-m", "threed.worker")


@runtime_checkable
class Workers(Protocol):
    """Where jobs are done, each by one worker at a time. `threed.crew` and `threed.cluster` have one each."""

    def free(self) -> int:
        """How many more jobs can begin now."""

    def give(self, job: Job) -> None:
        """Begin a job; one must be free."""

    def results(self, patience: float) -> list[tuple[Job, Outcome]]:
        """What has ended since; waits for the first so many seconds."""

    def close(self) -> None:
        """End all at once, whatever they are doing."""


def threads_each(workers: int, cores: int) -> int:
    """Threads of PyTorch and of numba, which take turns, for each of so many workers: never more than cores in all."""
    return max(1, cores // workers)


@dataclass(eq=False)
class _Member:
    process: subprocess.Popen[str]
    said: IO[bytes]  # what went to its standard error
    job: Job | None = None


class Crew:
    """Processes that are started when there is work for them."""

    def __init__(self, count: int, threads: int, command: Sequence[str] = COMMAND) -> None:
        self.count, self.threads, self.command = count, threads, command
        self._members: list[_Member] = []
        self._heard: Queue[tuple[_Member, str]] = Queue()  # an empty line is the end

    def free(self) -> int:
        return self.count - sum(member.job is not None for member in self._members)

    def give(self, job: Job) -> None:
        member = next((each for each in self._members if each.job is None), None) or self._hired()
        member.job = job
        assert member.process.stdin
        with suppress(OSError):  # it died idle; its end is heard, and the job comes back with it
            member.process.stdin.write(job.to_json() + "\n")
            member.process.stdin.flush()

    def results(self, patience: float) -> list[tuple[Job, Outcome]]:
        found: list[tuple[Job, Outcome]] = []
        try:
            heard = [self._heard.get(timeout=patience)]
            while not self._heard.empty():
                heard.append(self._heard.get())
        except Empty:
            return []
        for member, line in heard:
            if member not in self._members:
                continue
            job, outcome = member.job, Outcome(**json.loads(line)) if line else self._lost(member)
            member.job = None
            if job:
                found.append((job, outcome))
            if outcome.may_pass:  # whatever it was, the next try begins in a process that knows nothing of it
                self._dismiss(member)
        return found

    def close(self) -> None:
        for member in list(self._members):
            self._dismiss(member)

    def _hired(self) -> _Member:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
        said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with its member)
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=said, text=True, encoding="utf-8", env=os.environ | threads
        )
        member = _Member(process, said)
        self._members.append(member)
        threading.Thread(target=self._hear, args=(member,), daemon=True).start()
        return member

    def _hear(self, member: _Member) -> None:
        assert member.process.stdout
        for line in member.process.stdout:
            if line.endswith("\n"):  # or it died amid it
                self._heard.put((member, line))
        self._heard.put((member, ""))

    def _lost(self, member: _Member) -> Outcome:
        code = member.process.wait()
        member.said.seek(0)
        words = member.said.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return Outcome(False, f"its worker died (exit code {code}) {words[-1] if words else ''}".strip(), may_pass=True)

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        member.process.kill()
        member.process.wait()
        assert member.process.stdin
        with suppress(OSError):
            member.process.stdin.close()
        member.said.close()
