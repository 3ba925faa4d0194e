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
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from threed.distill.folder import readable
from threed.distill.hub import components
from threed.distill.hub.checkpoint import Checkpoint
from threed.distill.hub.families import Words
from threed.distill.word import Word, beginning, changing, heard, names


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
    word: Word | None = None  # that the encoders know beside their own, see `distill.word`

    def __call__(self, prompts: Sequence[str]) -> Words:
        """One row a prompt. Raises UnreadablePrior for encoders at fault, and ValueError for too long a prompt.

        As long as the word is learned, its prompts are read every time, differentiably, and the encoders stay.
        """
        self.read(prompts)
        own = filter(self._changing, dict.fromkeys(prompts))
        said = self.said | {prompt: self._read(self._staying, prompt) for prompt in own}
        rows = [said[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> None:
        """All that are new, at once, so that the text encoders are loaded once."""
        own = [prompt for prompt in prompts if self._changing(prompt)]
        for prompt in own:  # which is read when it is needed
            check_length(self._staying, prompt)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in {*self.said, *own}]
        self.said.update({prompt: words for prompt in new if (words := self._kept(prompt))})
        if not (missing := [prompt for prompt in new if prompt not in self.said]):
            return
        pipeline = self._encoders()
        for prompt in missing:
            check_length(pipeline, prompt)
            self.said[prompt] = self._read(pipeline, prompt)
            self._keep(prompt)

    def beginning(self, prompt: str, count: int) -> Word:
        """A word of so many vectors that means what the prompt does."""
        return {
            part: beginning(encoder.get_input_embeddings().weight, ids_of(tokenizer, prompt), count)
            for part, encoder, tokenizer in readers(self._encoders())
        }

    def knowing(self, word: Word) -> Reader:
        """The same, for prompts with this word in them."""
        return replace(self, word=word, said=dict(self.said))

    def _encoders(self) -> Any:
        pipeline = components.text_encoders(self.checkpoint, self.device, self.dtype)
        if self.word is not None:
            for part, encoder, tokenizer in readers(pipeline):
                teach(encoder, tokenizer, self.word[part])
        return pipeline

    @cached_property
    def _staying(self) -> Any:
        return self._encoders()

    def _changing(self, prompt: str) -> bool:
        return changing(prompt, (self.word or {}).values())

    def _read(self, pipeline: Any, prompt: str) -> Words:
        with readable(self.checkpoint.folder), components.quiet():
            words = self.checkpoint.family.encode(pipeline, prompt, self.device)
        return {name: each.to(self.dtype).contiguous() for name, each in words.items()}

    def _path(self, prompt: str) -> Path:
        """Another file of an encoder, another precision, another prompt, another word in it: another name."""
        found = [(path.resolve(), path.stat()) for path in self._files() if path.is_file()]
        files = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]
        told: list[Any] = [prompt, str(self.dtype), self.device.type, self.checkpoint.kind, files]
        if self.word is not None and names(1)[0] in prompt:
            told.append({part: vectors.tolist() for part, vectors in self.word.items()})
        return self.folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()}.safetensors"

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


class Taught(nn.Module):
    """A table of tokens, and the word beside it."""

    def __init__(self, table: nn.Module, word: Tensor, first: int) -> None:
        super().__init__()
        self.table, self.first = table, first
        self.word = [word]  # no parameter of the encoder

    def forward(self, ids: Tensor) -> Tensor:
        return heard(ids, self.table, self.word[0], self.first)


def teach(encoder: Any, tokenizer: Any, word: Tensor) -> None:
    """The word to one text encoder and its tokenizer, in memory."""
    tokenizer.add_tokens(names(len(word)))
    first = tokenizer.convert_tokens_to_ids(names(1)[0])
    if "clip" in encoder.config.model_type:
        # By a convention of old, the pooled output is that of the highest id, which now is the word's.
        getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id
    encoder.set_input_embeddings(Taught(encoder.get_input_embeddings(), word, first))


def readers(pipeline: Any) -> list[tuple[str, Any, Any]]:
    """Every text encoder by its name, and its tokenizer."""
    found = [(part, each) for part, each in pipeline.components.items() if part.startswith("text_encoder") and each]
    return [(part, each, getattr(pipeline, part.replace("text_encoder", "tokenizer"))) for part, each in found]


def ids_of(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens, without the markers at its ends."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False).input_ids
    return ids


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
