"""How a prior is trained, as plain values: `PRESETS` has them for each kind of device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from threed.distill.angles import AnglesConfig
from threed.distill.folder import SHIPPED
from threed.distill.lift import LiftConfig
from threed.distill.ranker import RankerConfig
from threed.distill.start import StartConfig
from threed.distill.upsampler import UpsamplerConfig
from threed.training.loop import Schedule
from threed.training.views_cache import Shots

PARTS = (
    "start",
    "upsampler",
    "views",
    "angles",
    "lift",
    "ranker",
)  # what a prior consists of, in the order in which they are trained
SHARES = {
    "start": 0.25,
    "upsampler": 0.1,
    "views": 0.3,
    "angles": 0.1,
    "lift": 0.25,
    "ranker": 0.1,
}  # of the minutes that all parts have together
WARMUP = 200  # steps, or a fifth of all
GENTLE = 0.5  # share of the learning rate that weights are trained on with


@dataclass(frozen=True)
class Settings:
    """All that a training depends on beside its assets; the machine's own choices are made when it begins."""

    start: Schedule
    upsampler: Schedule
    views: Schedule
    angles: Schedule
    lift: Schedule
    ranker: Schedule
    config: StartConfig = field(default_factory=StartConfig)  # of a fresh start
    upsampling: UpsamplerConfig = field(default_factory=UpsamplerConfig)  # of a fresh upsampler
    viewing: AnglesConfig = field(default_factory=AnglesConfig)  # of fresh angles; the size is that of the views
    lifting: LiftConfig = field(default_factory=LiftConfig)  # of a fresh lift; the size is that of the views
    ranking: RankerConfig = field(default_factory=RankerConfig)  # of a fresh ranker
    size: str = "small"  # of a fresh views prior, in `views.SIZES`
    shots: Shots = field(default_factory=Shots)  # size and field of view are the source's
    parts: tuple[str, ...] = PARTS
    device: str = "cpu"
    source: Path = SHIPPED  # the prior whose text encoder is used
    continued: bool = False  # whether its weights are trained on, too
    minutes: float | None = None  # of training, all parts together; decides how many steps there are
    workers: int | None = None  # threads on a CPU, processes of a cache; as many as there are cores
    checkpoint_every: float = 300.0  # seconds
    sheet_every: float = 300.0

    def schedule(self, part: str) -> Schedule:
        return {
            "start": self.start,
            "upsampler": self.upsampler,
            "views": self.views,
            "angles": self.angles,
            "lift": self.lift,
            "ranker": self.ranker,
        }[part]

    def seconds(self, part: str) -> float | None:
        """What the part has of the minutes."""
        share = SHARES[part] / sum(SHARES[each] for each in self.parts)
        return None if self.minutes is None else 60 * self.minutes * share


def has(source: Path, part: str) -> bool:
    """Whether this part can be gone on with: every prior has views, and the others a folder of their name."""
    return part == "views" or (source / part).is_dir()


def lasting(schedule: Schedule, steps: int) -> Schedule:
    """The same with so many steps."""
    return replace(schedule, steps=steps, warmup=min(WARMUP, steps // 5))


PRESETS = {
    "cpu": Settings(  # 2,700 assets in about an hour on two cores
        start=lasting(Schedule(1, batch=64, rate=2e-3, final=0.02, optimizer="muon"), 2_000),
        upsampler=lasting(Schedule(1, batch=16, rate=1e-3, final=0.02), 2_500),
        views=lasting(Schedule(1, batch=32, rate=5e-4, final=0.02), 4_500),
        angles=lasting(Schedule(1, batch=128, rate=2e-3, final=0.02, weight_decay=0.05), 2_000),
        lift=lasting(
            Schedule(1, batch=16, rate=1.5e-3, final=0.02, weight_decay=0.02, ema=0.995, optimizer="muon"), 2_500
        ),
        ranker=lasting(Schedule(1, batch=32, rate=2e-3, final=0.02, weight_decay=0.02), 3_000),
    ),
    "cuda": Settings(
        start=lasting(Schedule(1, batch=256, rate=2e-3, final=0.02, optimizer="muon"), 20_000),
        upsampler=lasting(Schedule(1, batch=64, rate=1e-3, final=0.02), 10_000),
        # Of 320 pictures the groups are always the same, and a compiled network is compiled once.
        views=lasting(Schedule(1, batch=320, rate=6e-4, final=0.02), 40_000),
        angles=lasting(Schedule(1, batch=512, rate=2e-3, final=0.02, weight_decay=0.05), 10_000),
        lift=lasting(Schedule(1, batch=64, rate=1.5e-3, final=0.02, weight_decay=0.02, optimizer="muon"), 20_000),
        ranker=lasting(Schedule(1, batch=64, rate=2e-3, final=0.02, weight_decay=0.02), 20_000),
        config=StartConfig(width=512, layers=12),
        size="medium",
        device="cuda",
    ),
}
