"""Reference attention: a network of Stable Diffusion's kind that looks at another picture while it denoises.

The other picture goes through the same network first, at the same time t, as noisy. In every self-attention its tokens
are kept, and those of what is denoised then attend to their own and to these (Shi et al. 2023, arXiv 2310.15110,
section 2.2). No weights belong to that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.embedded import in_heads


@dataclass(frozen=True)
class Kept:
    """The tokens of the other picture, by the layer of attention that saw them; `reading` once all are there."""

    reading: bool = False
    tokens: dict[Any, Float[Tensor, "G M C"]] = field(default_factory=dict)


class ReferenceAttention:
    """diffusers' attention processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "G N C"],
        encoder_hidden_states: Float[Tensor, "G tokens features"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Float[Tensor, "G N C"]:
        del attention_mask, temb  # this network has neither
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is None and kept and kept.reading:
            context = torch.cat([hidden_states, kept.tokens[attn]], dim=1)
        elif encoder_hidden_states is None and kept:
            kept.tokens[attn] = hidden_states
        mixed = in_heads(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads)
        return attn.to_out[0](mixed)


def ask(
    network: Any, z_t: Float[Tensor, "G C h w"], timestep: Float[Tensor, "G"], words: dict[str, Tensor], side: int
) -> Float[Tensor, "G C h w"]:
    """What the network predicts; `words` has the other picture as noisy as z_t is, of any size, and a text for both."""
    del side
    kept = Kept()

    def told(z: Tensor, kept: Kept) -> Float[Tensor, "G C h w"]:
        looks = {"kept": kept}
        return network(
            z, timestep, encoder_hidden_states=words["context"], cross_attention_kwargs=looks, return_dict=False
        )[0]

    told(words["reference"].to(z_t), kept)
    return told(z_t, Kept(True, kept.tokens))
