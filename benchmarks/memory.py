"""Memory by recipe and prior.

    python benchmarks/memory.py

Counts what the recipes take under text-to-image checkpoints, whose networks are built from their published
configurations without numbers, with and without thrift, and what a scene takes for a pixel of a step. Nothing in it is
measured on a GPU. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import kept

from threed.distill.hub.checkpoint import Checkpoint
from threed.memory import Live, footprint, frugal, need, sides
from threed.nerf import NeRF, NeRFConfig
from threed.recipes import RECIPES
from threed.renderers.camera import orbit
from threed.run import Thrift
from threed.sdf import SDF, SDFConfig
from threed.single_view import single_view
from threed.solid import Solid, SolidConfig
from threed.tets import TetScene
from threed.train import seeded

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "force_upcast": True,
}
XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
V2 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SIXTEEN = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
# By name: the pipeline, its network, and the configurations that differ from the defaults of their classes.
PUBLISHED: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "SD 1.5": (
        "StableDiffusionPipeline", "unet", "UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}, VAE
    ),
    "SD 2.1": ("StableDiffusionPipeline", "unet", "UNet2DConditionModel", V2, VAE),
    "SDXL": ("StableDiffusionXLPipeline", "unet", "UNet2DConditionModel", XL, VAE),
    "SD 3 medium": ("StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel", SD3, SIXTEEN),
    "Flux": (
        "FluxPipeline", "transformer", "FluxTransformer2DModel", {"guidance_embeds": True},
        SIXTEEN | {"sample_size": 1024},
    ),
}  # fmt: skip
COUNTED = ("dreamfusion", "magic3d", "fantasia3d", "prolificdreamer", "repaint")
SIZE, VIEWS = 64, 4  # of the pictures of which a scene's pixels are counted


def written(folder: Path, name: str) -> Checkpoint:
    """A checkpoint that has configurations alone."""
    pipeline, part, kind, network, autoencoder = PUBLISHED[name]
    index = {"_class_name": pipeline, part: ["diffusers", kind], "vae": ["diffusers", "AutoencoderKL"]}
    for path, told in (("model_index.json", index), (f"{part}/config.json", network), ("vae/config.json", autoencoder)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(told))
    return Checkpoint(folder)


def counted(name: str) -> dict[str, Any]:
    """Gigabytes by recipe, as it is, with thrift, and at three quarters and half of the picture's side with it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = written(Path(folder), name)
        own, _ = sides(checkpoint)
        cuda = torch.device("cuda")
        whole = footprint(checkpoint, cuda, own, False, True)
        ways = {"as it is": (Thrift(0), whole)}
        for title, side in (("thrifty", own), ("3/4", own * 3 // 4), ("1/2", own // 2)):
            ways[title] = Thrift(0, True, side), footprint(checkpoint, cuda, side, True, True)
        recipes = {
            recipe: {
                title: round(need(frugal(single_view(RECIPES[recipe]), thrift), prior) / 1e9, 1)
                for title, (thrift, prior) in ways.items()
            }
            for recipe in COUNTED
        }
    return {"side": own, "weights": round(whole.weights / 1e9, 2), "bytes": vars(whole), "recipes": recipes}


def pixel(made: Callable[[bool], Any], deferred: bool) -> float:
    """Bytes for each pixel of a step's pictures, at most, until its gradient is known."""
    scene = made(deferred)
    for size in (8, SIZE):
        with Live(scene.parameters()) as live:
            render = scene.render(orbit(VIEWS), size, seeded(0))
            torch.cat([render.albedo, render.normal], dim=-1).square().sum().backward()
    return live.peak / (VIEWS * SIZE**2)


def solid(deferred: bool) -> Solid:
    config = SolidConfig(deferred=deferred)
    return Solid(config, TetScene.from_ellipsoid((config.start_radius,) * 3, config.tets))


SCENES: dict[str, Callable[[bool], Any]] = {
    "nerf": lambda deferred: NeRF(NeRFConfig(deferred=deferred), seeded(0)),
    "sdf": lambda deferred: SDF(SDFConfig(deferred=deferred), seeded(0)),
    "solid": solid,
}


def main() -> None:
    priors = {name: counted(name) for name in PUBLISHED}
    for name, found in priors.items():
        table = Table("GB", *found["recipes"][COUNTED[0]], title=f"{name}, {found['side']} px, counted")
        for recipe, ways in found["recipes"].items():
            table.add_row(recipe, *map(str, ways.values()))
        Console().print(table)
    pixels = {name: {str(d): round(pixel(made, d)) for d in (False, True)} for name, made in SCENES.items()}
    Console().print("bytes for a pixel, at once and deferred:", pixels)
    kept("memory", {"priors": priors, "pixels": pixels})


if __name__ == "__main__":
    main()
