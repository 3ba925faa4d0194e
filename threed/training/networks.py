"""The networks of a prior's parts, from nothing and into files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import nn

from threed import disk

Network = TypeVar("Network", bound=nn.Module)


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """What `make` makes, its weights drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]):  # torch.nn knows no generators
        torch.manual_seed(seed)
        return make()


def write(folder: Path, network: Any) -> None:
    """A network's configuration and its weights, in bfloat16, into a folder of its own. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().cpu().bfloat16().contiguous() for name, value in network.state_dict().items()}
    disk.write(folder / "config.json", (json.dumps(asdict(network.config), indent=1) + "\n").encode())
    disk.write(folder / "model.safetensors", save(kept, {"format": "pt"}))
