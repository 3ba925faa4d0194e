"""What a prior draws by itself, without an asset: one picture for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from threed import pictures
from threed.distill import sample
from threed.distill.embedded import Embedded
from threed.distill.folder import located
from threed.renderers.camera import Cameras, orbit
from threed.start import VoxelField, imagined
from threed.train import seeded

STEPS = 25  # of every picture
PATIENCE = 2.0  # seconds without a progress bar


def sheet(prompt: str, name: str, views: int, seed: int, console: Console | None = None) -> bytes:
    """A PNG of a prompt, all around: albedo, shaded, normals, and the volume where the prior `name` has a start.

    Raises UnreadablePrior when a file of the prior is at fault.
    """
    folder, cameras = located(name), orbit(views)
    prior = Embedded.load(folder)
    with patience(prior.unet, 4 * STEPS, console):  # two groups, each of them with the prompt and without
        rows = [sample.pictures(prior, prompt, cameras, seeded(seed), STEPS).float()]
    if (folder / "start").is_dir():
        rows.append(volume(prompt, folder, cameras, seed, prior.image_size))
    enlarged = torch.cat(rows).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return pictures.png(pictures.sheet(enlarged, views, gap=4))


def volume(prompt: str, folder: Path, cameras: Cameras, seed: int, size: int) -> Float[Tensor, "C S S 3"]:
    """The start's idea of a prompt on white, which stays white where it has none."""
    voxels = imagined(prompt, seed, folder)
    if not voxels.occupied.any():
        return torch.ones(len(cameras), size, size, 3)
    return VoxelField(voxels).render(cameras, size).over(torch.ones(3))


@contextmanager
def patience(network: nn.Module, calls: int, console: Console | None) -> Iterator[None]:
    """A progress bar over the calls of a network, if they take long and there is a terminal."""
    began, bar = time.monotonic(), Progress(console=console or Console(quiet=True), transient=True)
    task = bar.add_task("drawing", total=calls)

    def advance(*_: object) -> None:
        bar.advance(task)
        if bar.console.is_terminal and time.monotonic() - began > PATIENCE:
            bar.start()

    hook = network.register_forward_hook(advance)
    try:
        yield
    finally:
        hook.remove()
        bar.stop()
