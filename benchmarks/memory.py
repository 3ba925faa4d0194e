"""Memory by recipe and prior.

    python benchmarks/memory.py

Counts what the recipes take under checkpoints of others, whose networks are built from their published
configurations without numbers, with and without thrift, and what a scene takes for a pixel of a step. Nothing in it is
measured on a GPU. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import kept

from threed.distill.hub.checkpoint import Checkpoint
from threed.footprint import footprint, sides
from threed.live import Live
from threed.memory import frugal, need
from threed.multi_view import multi_view
from threed.nerf import NeRF, NeRFConfig
from threed.novel_view import novel_view
from threed.recipe import Recipe
from threed.recipes import RECIPES
from threed.renderers.camera import orbit
from threed.run import Thrift
from threed.sdf import SDF, SDFConfig
from threed.single_view import single_view
from threed.solid import Solid, SolidConfig
from threed.tets import TetScene
from threed.train import seeded
from threed.views_first import views_first

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "force_upcast": True,
}
SIXTEEN = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
V1 = {"sample_size": 64, "cross_attention_dim": 768}
V2 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
BESIDE = V1 | {"in_channels": 8, "out_channels": 4}  # with another picture's latents
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
MVDREAM = {
    "attention_resolutions": [4, 2, 1],
    "camera_dim": 16,
    "channel_mult": [1, 2, 4, 4],
    "context_dim": 1024,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "out_channels": 4,
}
WONDER3D = BESIDE | {
    "sample_size": 32,
    "attention_head_dim": 8,
    "down_block_types": [*["CrossAttnDownBlockMV2D"] * 3, "DownBlock2D"],
    "mid_block_type": "UNetMidBlockMV2DCrossAttn",
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlockMV2D"] * 3],
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 10,
    "num_views": 6,
    "multiview_attention": True,
    "cd_attention_mid": True,
}
T2I = {"channels": (320, 640, 1280, 1280), "num_res_blocks": 2, "downscale_factor": 8, "adapter_type": "full_adapter"}


def clip(width: int, layers: int, heads: int, **others: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads} | others


Part = tuple[str, dict[str, Any]]  # the class of a network, and the configuration that differs from its defaults
LARGE: Part = ("CLIPTextModel", clip(768, 12, 12))
HUGE: Part = ("CLIPTextModel", clip(1024, 23, 16))
GIANT: Part = ("CLIPTextModelWithProjection", clip(1280, 32, 20, projection_dim=1280))
XXL: Part = (
    "T5EncoderModel",
    {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"},
)
EYE: Part = ("CLIPVisionModelWithProjection", clip(1024, 24, 16, patch_size=14, projection_dim=768))
HUGE_EYE: Part = ("CLIPVisionModelWithProjection", clip(1280, 32, 16, patch_size=14, projection_dim=1024))


@dataclass(frozen=True)
class Published:
    """A checkpoint as it was published, and the recipes that are counted under it."""

    pipeline: str
    network: Part
    readers: dict[str, Part]
    autoencoder: dict[str, Any] = field(default_factory=lambda: VAE)
    recipes: tuple[str, ...] = ("dreamfusion", "magic3d", "fantasia3d", "prolificdreamer", "repaint")
    suited: Callable[[Recipe], Recipe] = single_view
    control: Part | None = None

    def written(self, folder: Path) -> tuple[Checkpoint, Path | None]:
        """With configurations alone; and its ControlNet."""
        part = "transformer" if "Transformer" in self.network[0] else "unet"
        parts = {part: self.network, "vae": ("AutoencoderKL", self.autoencoder)}
        index: dict[str, Any] = {name: ["diffusers", kind] for name, (kind, _) in parts.items()}
        index |= {name: ["transformers", kind] for name, (kind, _) in self.readers.items()}
        for name, (_, told) in (parts | self.readers).items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(told))
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": self.pipeline}))
        if self.control is None:
            return Checkpoint(folder), None
        kind, told = self.control
        (folder / "control").mkdir()
        (folder / "control" / "config.json").write_text(json.dumps(told | {"_class_name": kind}))
        return Checkpoint(folder), folder / "control"


STABLE = Published("StableDiffusionPipeline", ("UNet2DConditionModel", V1), {"text_encoder": LARGE})
PUBLISHED = {
    "SD 1.5": STABLE,
    "SD 1.5 with a ControlNet": replace(
        STABLE, recipes=("dreamfusion", "repaint"), control=("ControlNetModel", {"cross_attention_dim": 768})
    ),
    "SD 1.5 with a T2I-Adapter": replace(STABLE, recipes=("dreamfusion", "repaint"), control=("T2IAdapter", T2I)),
    "SD 2.1": replace(STABLE, network=("UNet2DConditionModel", V2), readers={"text_encoder": HUGE}),
    "SDXL": Published(
        "StableDiffusionXLPipeline",
        ("UNet2DConditionModel", XL),
        {"text_encoder": LARGE, "text_encoder_2": GIANT},
    ),
    "SD 3 medium": Published(
        "StableDiffusion3Pipeline",
        ("SD3Transformer2DModel", SD3),
        {"text_encoder": LARGE, "text_encoder_2": GIANT, "text_encoder_3": XXL},
        SIXTEEN,
    ),
    "Flux": Published(
        "FluxPipeline",
        ("FluxTransformer2DModel", {"guidance_embeds": True}),
        {"text_encoder": LARGE, "text_encoder_2": XXL},
        SIXTEEN | {"sample_size": 1024},
    ),
    "InstructPix2Pix": Published(
        "StableDiffusionInstructPix2PixPipeline",
        ("UNet2DConditionModel", BESIDE),
        {"text_encoder": LARGE},
        recipes=("repaint",),
    ),
    "MVDream": Published(
        "MVDreamPipeline",
        ("MultiViewUNetModel", MVDREAM),
        {"text_encoder": HUGE},
        recipes=("mvdream", "magic3d", "prolificdreamer", "instant3d"),
        suited=multi_view,
    ),
    "Zero-1-to-3, Stable-Zero123": Published(
        "Zero123Pipeline",
        ("UNet2DConditionModel", BESIDE | {"sample_size": 32}),
        {"image_encoder": EYE},
        recipes=("zero123", "magic123", "syncdreamer"),
        suited=partial(novel_view, guidance=5.0, fov=40.0),
    ),
    "Zero123++": Published(
        "Zero123PlusPipeline",
        ("UNet2DConditionModel", V2),
        {"text_encoder": HUGE, "vision_encoder": HUGE_EYE},
        recipes=("zero123plus",),
        suited=partial(views_first, scale=4.0),
    ),
    "Wonder3D": Published(
        "MVDiffusionImagePipeline",
        ("UNetMV2DConditionModel", WONDER3D),
        {"image_encoder": EYE},
        recipes=("wonder3d",),
        suited=partial(views_first, scale=1.0, kinds=("albedo", "normal")),
    ),
}
SIZE, VIEWS = 64, 4  # of the pictures of which a scene's pixels are counted


def counted(published: Published) -> dict[str, Any]:
    """Gigabytes by recipe, as it is, with thrift, and at three quarters and half of the picture's side with it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, control = published.written(Path(folder))
        cuda, (own, step) = torch.device("cuda"), sides(checkpoint)
        ways = {"as it is": Thrift(0), "thrifty": Thrift(0, True)}
        ways |= {
            title: Thrift(0, True, side)
            for title, side in (("3/4", own * 3 // 4), ("1/2", own // 2))
            if side % step == 0
        }
        taken = {
            title: footprint(checkpoint, cuda, how.side or own, how.checkpointed, True, control)
            for title, how in ways.items()
        }
    recipes = {
        recipe: {
            title: round(need(frugal(published.suited(RECIPES[recipe]), how), taken[title]) / 1e9, 1)
            for title, how in ways.items()
        }
        for recipe in published.recipes
    }
    whole = taken["as it is"]
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
    priors = {name: counted(published) for name, published in PUBLISHED.items()}
    for name, found in priors.items():
        ways = next(iter(found["recipes"].values()))
        table = Table("GB", *ways, title=f"{name}, {found['side']} px, counted")
        for recipe, ways in found["recipes"].items():
            table.add_row(recipe, *map(str, ways.values()))
        Console().print(table)
    pixels = {name: {str(d): round(pixel(made, d)) for d in (False, True)} for name, made in SCENES.items()}
    Console().print("bytes for a pixel, at once and deferred:", pixels)
    kept("memory", {"priors": priors, "pixels": pixels})


if __name__ == "__main__":
    main()
