"""A small MVDream checkpoint in the layout of the hub, random weights, and what its network computes, written out.

The twin goes by the names in the file alone, so it knows nothing of diffusers.
"""

import json
import math
from pathlib import Path

import tiny_checkpoints
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from threed.distill.hub import mvdream

CONFIG = {  # as `unet/config.json` has it; three levels, attention in two of them
    "_class_name": "MultiViewUNetModel",
    "_diffusers_version": "0.25.0",
    "attention_resolutions": [2, 1],
    "camera_dim": 16,
    "channel_mult": [1, 1, 2],
    "context_dim": 16,
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "num_head_channels": 16,
    "num_res_blocks": 1,
    "out_channels": 4,
    "transformer_depth": 1,
}


def weights(config=CONFIG, seed=0):
    """Random ones, by the names of the file, such that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    network, names = mvdream.blank(config)
    found = {}
    for ours, value in network.state_dict().items():
        fan = math.prod(value.shape[1:]) if value.ndim > 1 else 1
        noise = torch.randn(value.shape, generator=generator) / math.sqrt(fan)
        found[names[ours]] = noise if value.ndim > 1 else 0.1 * noise + float("norm" in ours and "weight" in ours)
    return found


def write(folder: Path, **schedule) -> Path:
    """The checkpoint, in `folder`/checkpoint."""
    torch.manual_seed(0)
    tiny_checkpoints.sd(folder / "words", **schedule).save_pretrained(folder / "checkpoint")
    found = folder / "checkpoint"
    index = json.loads((found / "model_index.json").read_text())
    changed = {"_class_name": "MVDreamPipeline", "unet": ["mv_unet", "MultiViewUNetModel"]}
    (found / "model_index.json").write_text(json.dumps(index | changed | {"image_encoder": [None, None]}))
    (found / "unet" / "config.json").write_text(json.dumps(CONFIG))
    (found / "unet" / "mv_unet.py").write_text("raise SystemExit('code of a stranger was run')\n")
    save_file(weights(), found / "unet" / "diffusion_pytorch_model.safetensors")
    return found


class Twin:
    """The network, by what its file is called; `read` keeps the names of the weights that it used."""

    def __init__(self, stored, config=CONFIG):
        self.stored, self.config, self.read = stored, config, set()

    def __call__(self, z_t, timestep, context, camera):
        """Of one group: all its views see one another."""
        half = self.config["model_channels"] // 2
        angles = timestep[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        time = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedding = self.perceptron("time_embed", time) + self.perceptron("camera_embed", camera)
        h, kept = z_t, []
        for number in range(self.count("input_blocks")):
            h = self.block(f"input_blocks.{number}", h, embedding, context)
            kept.append(h)
        h = self.block("middle_block", h, embedding, context)
        for number in range(self.count("output_blocks")):
            h = self.block(f"output_blocks.{number}", torch.cat([h, kept.pop()], dim=1), embedding, context)
        assert not kept
        return self.conv("out.2", F.silu(self.group_norm("out.0", h, 1e-5)))

    def has(self, prefix):
        return any(name.startswith(f"{prefix}.") for name in self.stored)

    def count(self, prefix):
        return next(number for number in range(100) if not self.has(f"{prefix}.{number}"))

    def take(self, name):
        self.read.add(name)
        return self.stored[name]

    def pair(self, prefix):
        bias = f"{prefix}.bias"
        return self.take(f"{prefix}.weight"), self.take(bias) if bias in self.stored else None

    def linear(self, prefix, x):
        return F.linear(x, *self.pair(prefix))

    def conv(self, prefix, x, stride=1):
        weight, bias = self.pair(prefix)
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def group_norm(self, prefix, x, eps):
        return F.group_norm(x, 32, *self.pair(prefix), eps)

    def layer_norm(self, prefix, x):
        return F.layer_norm(x, x.shape[-1:], *self.pair(prefix))

    def perceptron(self, prefix, x):
        return self.linear(f"{prefix}.2", F.silu(self.linear(f"{prefix}.0", x)))

    def block(self, prefix, x, embedding, context):
        for part in (f"{prefix}.{number}" for number in range(self.count(prefix))):
            if self.has(f"{part}.in_layers"):
                x = self.resnet(part, x, embedding)
            elif self.has(f"{part}.transformer_blocks"):
                x = self.transformer(part, x, context)
            elif self.has(f"{part}.op"):
                x = self.conv(f"{part}.op", x, stride=2)
            elif self.has(f"{part}.conv"):
                x = self.conv(f"{part}.conv", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
            else:
                x = self.conv(part, x)
        return x

    def resnet(self, prefix, x, embedding):
        h = self.conv(f"{prefix}.in_layers.2", F.silu(self.group_norm(f"{prefix}.in_layers.0", x, 1e-5)))
        h = h + self.linear(f"{prefix}.emb_layers.1", F.silu(embedding))[:, :, None, None]
        h = self.conv(f"{prefix}.out_layers.3", F.silu(self.group_norm(f"{prefix}.out_layers.0", h, 1e-5)))
        return h + (self.conv(f"{prefix}.skip_connection", x) if self.has(f"{prefix}.skip_connection") else x)

    def transformer(self, prefix, x, context):
        views, _, height, width = x.shape
        tokens = self.group_norm(f"{prefix}.norm", x, 1e-6).flatten(2).mT
        tokens = self.linear(f"{prefix}.proj_in", tokens)
        inner = f"{prefix}.transformer_blocks.0"
        normed = self.layer_norm(f"{inner}.norm1", tokens).flatten(0, 1)[None]  # the tokens of all views at once
        tokens = tokens + self.attention(f"{inner}.attn1", normed, normed)[0].unflatten(0, (views, -1))
        tokens = tokens + self.attention(f"{inner}.attn2", self.layer_norm(f"{inner}.norm2", tokens), context)
        wide, gate = self.linear(f"{inner}.ff.net.0.proj", self.layer_norm(f"{inner}.norm3", tokens)).chunk(2, dim=-1)
        tokens = tokens + self.linear(f"{inner}.ff.net.2", wide * F.gelu(gate))
        return x + self.linear(f"{prefix}.proj_out", tokens).mT.unflatten(2, (height, width))

    def attention(self, prefix, x, others):
        size = self.config["num_head_channels"]
        query, key, value = (
            self.linear(f"{prefix}.{name}", each) for name, each in (("to_q", x), ("to_k", others), ("to_v", others))
        )
        heads = []
        for first in range(0, query.shape[-1], size):
            q, k, v = (each[..., first : first + size] for each in (query, key, value))
            heads.append((q @ k.mT / math.sqrt(size)).softmax(dim=-1) @ v)
        return self.linear(f"{prefix}.to_out.0", torch.cat(heads, dim=-1))
