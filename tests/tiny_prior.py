"""A prior's folder in the shipped layout whose network is small enough for tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from threed.distill.folder import SHIPPED


def write(folder: Path, network: dict[str, Any] | None = None, **conventions: Any) -> None:
    """Random weights, pictures of 16 pixels; `network` and `conventions` overrule what config and prior.json say."""
    for name in ("text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(SHIPPED / name, folder / name)
    shutil.copyfile(SHIPPED / "NOTICE", folder / "NOTICE")
    told = json.loads((SHIPPED / "prior.json").read_text()) | {"image_size": 16} | conventions
    (folder / "prior.json").write_text(json.dumps(told))
    torch.manual_seed(0)
    config = UNet2DConditionModel.load_config(SHIPPED / "unet") | {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "sample_size": 4,
    }
    UNet2DConditionModel.from_config(config | (network or {})).save_pretrained(folder / "unet")
