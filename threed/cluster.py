"""Workers on a Ray cluster (https://docs.ray.io, Apache-2.0): an actor each, replaced when it or its machine dies.

All machines have this version of the program, and see the library under the same path, on storage that they share: an
actor writes its run folder itself.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from threed import __version__
from threed.errors import Mistake
from threed.worker import Job, Outcome

PATIENCE = 5.0  # seconds until a port that does not answer is given up
SETTING_UP = 60.0  # seconds until actors that tell nothing are given up
INSTALL = 'pip install "threed-assets[ray]"'


class Maker:
    """What lives in a process of the cluster: it works as `threed.worker` does."""

    def __init__(self) -> None:
        from threed.kept import keeping

        self._keeping = keeping()  # until the process ends
        self._keeping.__enter__()

    def sees(self, library: str, token: str) -> str:
        """What keeps it from working, in words; nothing if it can."""
        if not (Path(library) / token).is_file():
            return f"{socket.gethostname()} does not see {library!r}; put --output on storage that all machines share"
        return ""

    def version(self) -> str:
        from threed import __version__

        return __version__

    def make(self, job: str) -> str:
        from threed.worker import work

        return work(Job(**json.loads(job))).to_json()


class Cluster:
    """Up to `count` actors of so many threads each, as many as the cluster has room for."""

    def __init__(self, address: str, count: int, threads: int, library: Path, maker: type = Maker) -> None:
        """Raises Mistake where there is no Ray, no cluster, no room in it, or no shared library."""
        self._ray = ray = connected(address)
        try:
            room = int(ray.cluster_resources().get("CPU", 0)) // threads
            if room < 1:
                raise Mistake(f"the Ray cluster at {address!r} has no room for {threads} threads; use fewer --threads")
            environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
            # Tries are counted in one place, and that is not Ray.
            self._hire = ray.remote(
                num_cpus=threads, max_restarts=0, max_task_retries=0, runtime_env={"env_vars": environment}
            )(maker).remote
            self.count = min(count, room)
            self._idle: list[Any] = [self._hire() for _ in range(self.count)]
            self._at_work: dict[Any, tuple[Any, Job]] = {}
            self._look_around(library)
        except BaseException:
            ray.shutdown()
            raise

    def free(self) -> int:
        return self.count - len(self._at_work)

    def give(self, job: Job) -> None:
        actor = self._idle.pop() if self._idle else self._hire()
        self._at_work[actor.make.remote(job.to_json())] = actor, job

    def results(self, patience: float) -> list[tuple[Job, Outcome]]:
        ended, _ = self._ray.wait(list(self._at_work), num_returns=1, timeout=patience)
        return [self._ended(each) for each in ended]

    def close(self) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._at_work.values())]:
            self._ray.kill(actor)
        self._ray.shutdown()

    def _ended(self, answer: Any) -> tuple[Job, Outcome]:
        actor, job = self._at_work.pop(answer)
        try:
            outcome = Outcome(**json.loads(self._ray.get(answer)))
        except self._ray.exceptions.RayError as error:
            outcome = Outcome(False, f"its worker died ({type(error).__name__})", may_pass=True)
        if outcome.may_pass:  # the next try begins in a process that knows nothing of it
            self._ray.kill(actor)
        else:
            self._idle.append(actor)
        return job, outcome

    def _look_around(self, library: Path) -> None:
        """Raises Mistake where an actor has another version, or does not see the library."""
        token = f".seen-{os.getpid()}"
        (library / token).touch()
        try:
            versions = self._ray.get([actor.version.remote() for actor in self._idle], timeout=SETTING_UP)
            problems = self._ray.get(
                [actor.sees.remote(str(library.absolute()), token) for actor in self._idle], timeout=SETTING_UP
            )
        except self._ray.exceptions.RayError as error:
            raise Mistake(
                f"the Ray cluster's workers cannot begin ({str(error).splitlines()[-1]}); install threed-assets "
                f"{__version__} on every machine"
            ) from error
        finally:
            (library / token).unlink()
        if others := set(versions) - {__version__}:
            raise Mistake(
                f"a machine of the cluster has threed {min(others)}, and this one {__version__}; use one version"
            )
        if problem := next((problem for problem in problems if problem), None):
            raise Mistake(problem)


def connected(address: str) -> Any:
    """The module `ray`, connected. Raises Mistake within seconds where there is nothing to connect to."""
    check(address)
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (Exception, SystemExit) as error:
        raise Mistake(
            f"cannot join a Ray cluster at {address!r} ({error}); start one with ray start --head, and give this "
            "machine the token of one that wants it (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH)"
        ) from error
    return ray


def check(address: str) -> None:
    """That Ray is installed, and that something listens where a cluster is said to be. Raises Mistake.

    Ray itself would look for a cluster for more than a minute, and then end the process.
    """
    if find_spec("ray") is None:
        raise Mistake(f"--ray needs Ray, which is not installed; {INSTALL}")
    if address not in {"auto", "local"}:
        answering(address)


def answering(address: str) -> None:
    """Raises Mistake for what is no HOST:PORT, or where nothing listens."""
    found = re.fullmatch(r"\[?(?P<host>[\w.:-]+?)\]?:(?P<port>\d{1,5})", address)
    if not found or not 0 < int(found["port"]) < 65536:
        raise Mistake(f"--ray is {address!r}; write HOST:PORT, for example 10.0.0.1:6379, or auto, or local")
    try:
        socket.create_connection((found["host"], int(found["port"])), PATIENCE).close()
    except OSError as error:
        raise Mistake(
            f"there is no Ray cluster at {address!r} ({error.strerror or error}); start one with: ray start --head"
        ) from error
