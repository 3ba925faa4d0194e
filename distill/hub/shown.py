"""Checkpoints that are told a picture in the place of words: which of their modules one belongs to."""

from __future__ import annotations

from types import ModuleType

import torch

from threed.distill.folder import UnreadablePrior
from threed.distill.hub import novel_view, wonder3d, zero123plus
from threed.distill.hub.checkpoint import Checkpoint
from threed.distill.hub.novel_view import NovelView
from threed.distill.hub.wonder3d import Wonder3D
from threed.distill.hub.zero123plus import Zero123Plus

Informed = NovelView | Zero123Plus | Wonder3D
RIGS = {"Zero123PlusPipeline": zero123plus, "MVDiffusionImagePipeline": wonder3d}  # by the class of their pipeline


def check(checkpoint: Checkpoint) -> None:
    """That it is a folder alone, whose components fit one another, by their headers. Raises UnreadablePrior."""
    if alone := checkpoint.weights or checkpoint.lora:
        raise UnreadablePrior(f"{alone} cannot be used with {checkpoint.family.about}; give a folder, and no --lora")
    _module(checkpoint).check(checkpoint)


def load(checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Informed:
    """As a prior, which has to be `shown` a picture. Raises UnreadablePrior when a file is at fault."""
    found: Informed = _module(checkpoint).load(checkpoint, device, dtype)
    return found


def _module(checkpoint: Checkpoint) -> ModuleType:
    return RIGS.get(checkpoint.kind, novel_view)
