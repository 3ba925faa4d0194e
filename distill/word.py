"""A word of one's own: new rows beside a text encoder's table of tokens, whose own weights stay as they are.

Gal et al. 2022, textual inversion (arXiv 2208.01618). A word has one vector or several, each a token with a name that
no prompt has by chance; text encoders and what reads their tokens into ids are never changed but in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Word = dict[str, Float[Tensor, "K F"]]  # its vectors, by the text encoder that hears them
ALONE = "text_encoder"  # the encoder of priors that have a single one


def names(count: int) -> list[str]:
    """How a word of so many vectors is written."""
    return [f"<pictured{k}>" for k in range(count)]


def spoken(prompt: str, count: int) -> str:
    """A prompt with the word before it."""
    return " ".join([*names(count), *prompt.split()])


def heard(
    ids: Int[Tensor, "N T"],
    table: Callable[[Int[Tensor, "N T"]], Float[Tensor, "N T F"]],
    word: Float[Tensor, "K F"],
    first: int,
) -> Float[Tensor, "N T F"]:
    """What tokens are embedded as: ids from `first` on by the word, the others by the table."""
    own = ids >= first
    found = table(ids.masked_fill(own, 0))
    return torch.where(own[..., None], word.to(found)[(ids - first).clamp(min=0)], found)


def beginning(table: Float[Tensor, "V F"], ids: list[int], count: int) -> Float[Tensor, "K F"]:
    """A word that means what these words do on average; without any, what all do. In float32 at least."""
    mean = (table[ids] if ids else table).mean(dim=0, dtype=torch.promote_types(table.dtype, torch.float32))
    return mean.expand(count, -1).clone()


def changing(prompt: str, word: Iterable[Tensor]) -> bool:
    """Whether a prompt has the word in it, and the word is still to change: what it says may not be kept."""
    return names(1)[0] in prompt and any(vectors.requires_grad for vectors in word)
