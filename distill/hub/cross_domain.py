"""Wonder3D's network: views of two domains, normals and colours, denoised together (arXiv 2310.15008, section 4).

It is Stable Diffusion's with three changes. Self-attention goes over the tokens of all views of a domain. Behind it
comes another one, with a norm of its own, over the two pictures of a view. And ten numbers of every picture go through
two layers and are added to the embedding of the timestep. So it is diffusers' UNet2DConditionModel, whose class labels
are these, with the joint attention of the embedded prior and blocks that have that layer. Checkpoints name a class of
their own, UNetMV2DConditionModel, for which weights have the very names that they have here. Code that comes with them
is not run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threed.distill.embedded import JointAttention

CLASS = "UNetMV2DConditionModel"
VIEWS, DOMAINS = 6, 2
LABELS = 10  # numbers
WANTED = {  # of a config.json: what is as it was published, and no other that its code knows
    "num_views": VIEWS,
    "projection_class_embeddings_input_dim": LABELS,
    "multiview_attention": True,
    "cd_attention_mid": True,
    "cd_attention_last": False,
    "sparse_mv_attention": False,
    "mvcd_attention": False,
}


class CrossDomainBlock(nn.Module):
    """diffusers' block of a transformer, out of its own layers, with one more."""

    def __init__(self, block: Any) -> None:
        from diffusers.models.attention_processor import Attention

        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        width, heads = block.attn1.query_dim, block.attn1.heads
        self.norm_joint_mid = nn.LayerNorm(width)
        self.attn_joint_mid = Attention(width, heads=heads, dim_head=block.attn1.inner_dim // heads)
        self.norm2, self.attn2, self.norm3, self.ff = block.norm2, block.attn2, block.norm3, block.ff

    def forward(
        self,
        hidden_states: Float[Tensor, "P N C"],
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Float[Tensor, "P tokens features"] | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Float[Tensor, "P N C"]:
        """Called as diffusers' own is; `cross_attention_kwargs` says how many views see one another."""
        del attention_mask, encoder_attention_mask, timestep, class_labels  # this network has none, or none in here
        x = hidden_states
        x = x + self.attn1(self.norm1(x), **(cross_attention_kwargs or {}))
        pairs = self.norm_joint_mid(x).unflatten(0, (DOMAINS, -1)).transpose(0, 1)
        seen = self.attn_joint_mid(pairs.flatten(0, 1), joint=DOMAINS)
        x = x + seen.unflatten(0, (-1, DOMAINS)).transpose(0, 1).flatten(0, 1)
        x = x + self.attn2(self.norm2(x), encoder_hidden_states=encoder_hidden_states)
        return x + self.ff(self.norm3(x))


def ask(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: dict[str, Tensor], side: int
) -> Float[Tensor, "P C h w"]:
    """What the network predicts of all views of one domain, then of the other; `words` has a row for each.

    What it is told of the views themselves is by domain.
    """
    del side
    return network(
        torch.cat([z_t, words["reference"]], dim=1),
        timestep,
        encoder_hidden_states=words["context"],
        class_labels=words["camera"].flatten(0, 1),
        cross_attention_kwargs={"joint": len(z_t) // DOMAINS},
        return_dict=False,
    )[0]


def blank(told: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """The network that a config.json says, without weights, and what the file calls each of them: the same.

    Raises ValueError for another architecture, and KeyError or TypeError for what is no such configuration.
    """
    from diffusers import UNet2DConditionModel

    if wrong := next((name for name, value in WANTED.items() if told.get(name, False) != value), None):
        raise ValueError(f"its {wrong} is {told.get(wrong)}, and Wonder3D's is {WANTED[wrong]}")
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    settings = {name: value for name, value in told.items() if name in known} | {
        "mid_block_type": told["mid_block_type"].replace("MV2D", "2D"),
        **{
            kind: [each.replace("MV2D", "2D") for each in told[kind]] for kind in ("down_block_types", "up_block_types")
        },
    }
    with torch.device("meta"):
        network: Any = UNet2DConditionModel(**settings)
        for transformer in [each for each in network.modules() if hasattr(each, "transformer_blocks")]:
            transformer.transformer_blocks = nn.ModuleList(map(CrossDomainBlock, transformer.transformer_blocks))
    network.set_attn_processor(JointAttention())
    return network, {name: name for name in network.state_dict()}
