"""Prompts as numbers, by text encoders that are in memory only while they read.

What they said is kept: in memory, and as safetensors in `folder`, named by a hash of the prompt and of the encoders'
files. So a run that goes on, and every run with a prompt that was read before, loads no text encoder at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from threed.distill.folder import readable
from threed.distill.hub import components
from threed.distill.hub.checkpoint import Checkpoint
from threed.distill.hub.families import Words


def cache_folder() -> Path:
    """Where this program keeps what it can make again: THREED_CACHE, or the system's folder for that."""
    if chosen := os.environ.get("THREED_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "threed"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "threed"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "threed"


@dataclass(frozen=True)
class Reader:
    """Reads prompts for a checkpoint."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    folder: Path = field(default_factory=lambda: cache_folder() / "prompts")
    said: dict[str, Words] = field(default_factory=dict, repr=False)

    def __call__(self, prompts: Sequence[str]) -> Words:
        """One row a prompt. Raises UnreadablePrior for encoders at fault, and ValueError for too long a prompt."""
        self.read(prompts)
        rows = [self.said[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> None:
        """All that are new, at once, so that the text encoders are loaded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.said]
        self.said.update({prompt: words for prompt in new if (words := self._kept(prompt))})
        if not (missing := [prompt for prompt in new if prompt not in self.said]):
            return
        family, pipeline = self.checkpoint.family, components.text_encoders(self.checkpoint, self.device, self.dtype)
        for prompt in missing:
            check_length(pipeline, prompt)
            with readable(self.checkpoint.folder), components.quiet():
                words = family.encode(pipeline, prompt, self.device)
            self.said[prompt] = {name: each.to(self.dtype).contiguous() for name, each in words.items()}
            self._keep(prompt)

    def _path(self, prompt: str) -> Path:
        """Another file of an encoder, another precision, another prompt: another name."""
        found = [(path.resolve(), path.stat()) for path in self._files() if path.is_file()]
        files = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]
        told = json.dumps([prompt, str(self.dtype), self.device.type, self.checkpoint.kind, files])
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()}.safetensors"

    def _files(self) -> list[Path]:
        inside = [path for part in self.checkpoint.texts for path in (self.checkpoint.folder / part).glob("*")]
        return sorted(inside) + [each for each in (self.checkpoint.weights, self.checkpoint.lora) if each]

    def _kept(self, prompt: str) -> Words | None:
        path = self._path(prompt)
        try:
            return {name: each.to(self.device) for name, each in load_file(path).items()} if path.is_file() else None
        except (OSError, SafetensorError):
            return None  # half a file, of a computer that was switched off: the encoders say it again

    def _keep(self, prompt: str) -> None:
        """As a whole or not at all; where there is no room, the encoders say it again next time."""
        path = self._path(prompt)
        partial = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError, SafetensorError):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: each.cpu() for name, each in self.said[prompt].items()}, partial)
            os.replace(partial, path)


def check_length(pipeline: Any, prompt: str) -> None:
    """Raises ValueError for a prompt of which the reader that takes the most would not hear all."""
    counts = [
        (len(tokenizer(prompt).input_ids), tokenizer.model_max_length)
        for name, tokenizer in pipeline.components.items()
        if name.startswith("tokenizer") and tokenizer is not None
    ]
    if all(count > limit for count, limit in counts):
        count, limit = max(counts, key=lambda each: each[1])
        raise ValueError(f"the prompt {prompt!r} takes {count} tokens; shorten it to at most {limit}")
