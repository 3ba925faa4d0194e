"""MVDream: views of one object, told their cameras, denoised jointly (Shi et al. 2023, arXiv 2308.16512, section 3.1).

Its network is that of Stable Diffusion with two changes: self-attention goes over the tokens of all views of a group,
and a camera, 16 numbers, goes through two layers and is added to the embedding of the timestep. So it is diffusers'
UNet2DConditionModel, whose class labels are cameras, with the joint attention of the embedded prior. Checkpoints on the
hub name a class of their own, MultiViewUNetModel, for which configuration and weights have the names of the first code
for latent diffusion; `blank` says what is what. Code that comes with them is not run.

A camera is the matrix from an OpenGL camera to Blender's world (+Z up), row by row, the position at distance 1. Objects
face +X there: (x, y, z) of this project is (z, x, y).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.embedded import JointAttention
from threed.distill.prior import Pictures
from threed.renderers.camera import Cameras

CLASS = "MultiViewUNetModel"
CAMERA = 16  # numbers
RESNET = {  # by diffusers' name, what the file calls a part of a resnet
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OTHERS = {  # and what is in no block that goes down or up
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
IN_A_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def views(pictures: Pictures) -> dict[str, Tensor]:
    """The cameras of these pictures, which see one another by kind."""
    return {"camera": camera_matrix(pictures.cameras).expand(len(pictures.kinds), -1, -1)}


def camera_matrix(cameras: Cameras) -> Float[Tensor, "C 16"]:
    """What the network is told of each camera."""
    axes = cameras.rotation[:, [2, 0, 1]]
    position = axes[:, :, 2:]  # at distance 1 it is the backward axis, as cameras look at the origin
    last = axes.new_tensor([0, 0, 0, 1]).expand(len(cameras), 1, 4)
    return torch.cat([torch.cat([axes, position], dim=2), last], dim=1).flatten(1)


def ask(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: dict[str, Tensor], side: int
) -> Float[Tensor, "P C h w"]:
    """What the network predicts of groups of views; `words` has a text for each, and cameras by group."""
    del side
    camera = words["camera"].to(z_t)
    return network(
        z_t,
        timestep,
        encoder_hidden_states=words["context"],
        class_labels=camera.flatten(0, 1),
        cross_attention_kwargs={"joint": camera.shape[1]},
        return_dict=False,
    )[0]


def blank(told: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """The network that a config.json says, without weights, and what the file calls each of them.

    Raises ValueError for another architecture, and KeyError or TypeError for what is no such configuration.
    """
    from diffusers import UNet2DConditionModel

    if told.get("ip_dim"):
        raise ValueError("it is ImageDream, which wants a picture beside the text, and is not supported yet")
    if told["camera_dim"] != CAMERA:
        raise ValueError(f"its cameras have {told['camera_dim']} numbers, and MVDream's have {CAMERA}")
    with torch.device("meta"):
        network: Any = UNet2DConditionModel(**settings(told))
    network.set_attn_processor(JointAttention())
    return network, stored_names(network.state_dict(), told["num_res_blocks"])


def settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of diffusers' UNet2DConditionModel."""
    widths = [told["model_channels"] * each for each in told["channel_mult"]]
    attends = [2**k in told["attention_resolutions"] for k in range(len(widths))]
    head = told.get("num_head_channels", -1)
    heads = [told["num_heads"] if head == -1 else width // head for width in widths]
    return {
        "sample_size": told["image_size"],
        "in_channels": told["in_channels"],
        "out_channels": told["out_channels"],
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        "layers_per_block": told["num_res_blocks"],
        "attention_head_dim": tuple(heads),  # their number, for all that it is called
        "cross_attention_dim": told["context_dim"],
        "transformer_layers_per_block": told.get("transformer_depth", 1),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CAMERA,
    }


def stored_names(names: Iterable[str], layers: int) -> dict[str, str]:
    """What the file calls the weights of diffusers' network, which has so many resnets a block on its way down."""
    names = list(names)
    attends = {name.split(".")[1] for name in names if name.startswith("up_blocks.") and ".attentions." in name}

    def stored(name: str) -> str:
        for ours, theirs in OTHERS.items():
            if name.startswith(f"{ours}."):
                return f"{theirs}.{_part(name.removeprefix(f'{ours}.'))}"
        way, block, what, place, part = IN_A_BLOCK.fullmatch(name).groups()  # type: ignore[union-attr]
        first = int(block) * (layers + 1)
        match what:
            case "resnets" | "attentions":
                number = first + int(place) + (way == "down")  # conv_in is the first of those that go down
                where = f"{number}.{int(what == 'attentions')}"
            case "downsamplers":
                where, part = f"{first + layers + 1}.0", part.replace("conv", "op")
            case _:
                where = f"{first + layers}.{1 + (block in attends)}"
        return f"{'input' if way == 'down' else 'output'}_blocks.{where}.{_part(part)}"

    return {name: stored(name) for name in names}


def _part(name: str) -> str:
    """Of a resnet, or of anything else, whose names are the same."""
    part, _, kind = name.rpartition(".")
    return f"{RESNET[part]}.{kind}" if part in RESNET else name
