"""Several scenes that are fitted together, as samples of what the prior thinks likely: VSD's particles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from threed.errors import Mistake
from threed.machine import total_memory
from threed.nerf import NeRFConfig
from threed.paint import PaintedConfig
from threed.renderers.camera import Cameras
from threed.renderers.volume import Render
from threed.sdf import SDFConfig
from threed.solid import SolidConfig

COPIES = 4  # of every parameter while it is fitted: itself, its gradient, and Adam's two averages
SHARE = 0.6  # of the memory that particles may take


def least(scene: NeRFConfig | SDFConfig | SolidConfig | PaintedConfig) -> int:
    """How many numbers a scene has at least, before any work: those of its hash grids."""
    match scene:
        case NeRFConfig() | SDFConfig():
            return 4 * scene.grid.size  # a density or a distance, and a colour
        case SolidConfig() | PaintedConfig():
            return (8 if scene.paint.finish else 3) * scene.paint.grid.size


class Particles(nn.Module):
    """A scene that shows, and so changes, one of its scenes a step; without a generator the first."""

    steps: Tensor

    def __init__(self, scenes: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scenes = nn.ModuleList(scenes)
        self.register_buffer("steps", torch.zeros(len(scenes), dtype=torch.long))  # that each has had
        self.shown = 0

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        self.shown = 0
        if generator is not None:
            self.shown = int(torch.randint(len(self.scenes), (1,), generator=generator))
        return self._scene.render(cameras, size, generator)

    def param_groups(self) -> list[dict[str, Any]]:
        return [group for scene in list[Any](self.scenes) for group in scene.param_groups()]

    def after_step(self, step: int, generator: torch.Generator) -> None:
        del step  # each counts its own
        self._scene.after_step(int(self.steps[self.shown]), generator)
        self.steps[self.shown] += 1

    @property
    def _scene(self) -> Any:
        scenes: Any = self.scenes
        return scenes[self.shown]


def check_room(values: int, particles: int) -> None:
    """Raises Mistake for more scenes of so many numbers than the memory holds."""
    memory = total_memory()
    most = int(SHARE * memory / (4 * COPIES * values)) if memory else particles
    if particles > most:
        raise Mistake(f"{particles} particles of {values / 1e6:.1f} million numbers do not fit; use at most {most}")
