"""Numbers that follow the progress of an optimisation, from 0 at its start to 1 at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Anneal:
    """From `start` to `end` while progress goes from 0 to `until`, then `end`; without an `end`, always `start`.

    The way is `(progress / until) ** power`: 1 is linear, 0.5 HiFA's square root (Zhu et al. 2023, arXiv 2305.18766,
    eq. 10). Raises ValueError for numbers that describe no schedule.
    """

    start: float
    end: float | None = None
    until: float = 1.0  # in (0, 1]
    power: float = 1.0  # > 0

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; give a finite number")
        if not 0 < self.until <= 1:
            raise ValueError(f"until is {self.until}; give a progress in (0, 1]")
        if not 0 < self.power < math.inf:
            raise ValueError(f"power is {self.power}; give a positive number, such as 1 (linear) or 0.5 (square root)")

    def __call__(self, progress: float) -> float:
        """The value at `progress` in [0, 1]; raises ValueError outside."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}; give a number in [0, 1]")
        if self.end is None:
            return self.start
        way = min(progress / self.until, 1.0) ** self.power
        return self.start * (1 - way) + self.end * way
