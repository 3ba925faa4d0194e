"""Many jobs over several workers, whoever these are: what fails for a reason that may pass is tried again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from threed.crew import Workers
from threed.worker import Job, Outcome

PATIENCE = 1.0  # seconds between looks at the workers


def carry_out(
    jobs: Sequence[Job], workers: Workers, retries: int, tell: Callable[[Job, Outcome, int, bool], None]
) -> dict[str, Outcome]:
    """The outcome of every job by its name; names are unique.

    `tell` hears of each try's outcome, of how many tries it took so far, and whether there will be another; these wait
    for their turn behind all others. Whatever is raised, Ctrl-C included, ends the workers.
    """
    waiting, tries, outcomes, at_work = deque(jobs), Counter[str](), dict[str, Outcome](), 0
    try:
        while waiting or at_work:
            while waiting and workers.free() > 0:
                workers.give(waiting.popleft())
                at_work += 1
            for job, outcome in workers.results(PATIENCE):
                at_work -= 1
                tries[job.name] += 1
                if again := outcome.may_pass and tries[job.name] <= retries:
                    waiting.append(job)
                else:
                    outcomes[job.name] = outcome
                tell(job, outcome, tries[job.name], again)
    finally:
        workers.close()
    return outcomes
