"""Zero123++ and Wonder3D in the layouts of the hub, whose networks are small enough for tests, and a twin of these.

The twin goes by the names in the file alone: it knows nothing of diffusers; the caller says what attends to what.
"""

import json
import math
from pathlib import Path

import tiny_checkpoints
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from threed.distill.hub import cross_domain

WIDTH, HEADS = 16, 4
WONDER3D = {  # as flamehaze1115/wonder3d-v1.0 has it in unet/config.json
    "_class_name": "UNetMV2DConditionModel",
    "_diffusers_version": "0.19.3",
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cd_attention_last": False,
    "cd_attention_mid": True,
    "center_input_sample": False,
    "class_embed_type": "projection",
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 768,
    "cross_attention_norm": None,
    "cross_domain_attention": False,
    "down_block_types": [*["CrossAttnDownBlockMV2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 8,
    "joint_attention": False,
    "joint_attention_twice": True,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlockMV2DCrossAttn",
    "multiview_attention": True,
    "mvcd_attention": False,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "num_views": 6,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 10,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 32,
    "sparse_mv_attention": False,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlockMV2D"] * 3],
}
LITTLE = WONDER3D | {
    "attention_head_dim": HEADS,
    "block_out_channels": [16, 16],
    "cross_attention_dim": WIDTH,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlockMV2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
    "up_block_types": ["CrossAttnUpBlockMV2D", "UpBlock2D"],
}


def eye() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=WIDTH,
    )
    return CLIPVisionModelWithProjection(config).eval()


def processor(side=32, **settings) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **settings)


def zero123plus(folder: Path):
    """A checkpoint of Zero123++, random weights; returns its components by name, and the ramp."""
    torch.manual_seed(0)
    ramp = [k / 77 for k in range(77)]
    parts = {
        "vae": tiny_checkpoints.vae(),
        "unet": tiny_checkpoints.unet(),
        "text_encoder": tiny_checkpoints.clip(),
        "tokenizer": tiny_checkpoints.tokenizer(folder / "tokenizer"),
        "scheduler": tiny_checkpoints.scheduler(
            "EulerAncestralDiscreteScheduler",
            beta_schedule="linear",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        ),
        "vision_encoder": eye(),
        "feature_extractor_clip": processor(),
        "feature_extractor_vae": processor(24, image_mean=[0.5] * 3, image_std=[0.8] * 3),
    }
    index = {
        "_class_name": "Zero123PlusPipeline",
        "feature_extractor_clip": ["transformers", "CLIPImageProcessor"],
        "feature_extractor_vae": ["transformers", "CLIPImageProcessor"],
        "ramping_coefficients": ramp,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "vision_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    return written(folder, parts, index) | {"ramp": torch.tensor(ramp)[:, None]}


def wonder3d(folder: Path):
    """A checkpoint of Wonder3D, random weights; returns its components by name, of its network the weights."""
    torch.manual_seed(0)
    network, _ = cross_domain.blank(LITTLE)
    weights = {}
    for name, value in network.state_dict().items():
        fan = math.prod(value.shape[1:]) if value.ndim > 1 else 100
        weights[name] = torch.randn(value.shape) / math.sqrt(fan) + float("norm" in name and name.endswith("weight"))
    parts = {
        "vae": tiny_checkpoints.vae(),
        "scheduler": tiny_checkpoints.scheduler(clip_sample=False),
        "image_encoder": eye(),
        "feature_extractor": processor(),
    }
    index = {
        "_class_name": "MVDiffusionImagePipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": True,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["mvdiffusion.models.unet_mv2d_condition", "UNetMV2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    written(folder, parts, index)
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(LITTLE))
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return parts | {"unet": weights}


def written(folder, parts, index):
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts


class Twin:
    """A small UNet2DConditionModel; `read` keeps the names of the weights that it used."""

    def __init__(self, stored):
        self.stored, self.read = stored, set()

    def __call__(self, z_t, timestep, context, keys, labels=None):
        """`keys` says, by the name of a self-attention and its tokens, what each picture's tokens attend to."""
        self.keys = keys
        half = self.stored["time_embedding.linear_1.weight"].shape[1] // 2
        angles = timestep[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        embedding = self.perceptron("time_embedding", torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            embedding = embedding + self.perceptron("class_embedding", labels)
        h = self.conv("conv_in", z_t)
        kept = [h]
        for block in self.numbered("down_blocks"):
            for number, resnet in enumerate(self.numbered(f"{block}.resnets")):
                h = self.resnet(resnet, h, embedding)
                h = self.transformer(f"{block}.attentions.{number}", h, context)
                kept.append(h)
            if self.has(f"{block}.downsamplers"):
                h = self.conv(f"{block}.downsamplers.0.conv", h, stride=2)
                kept.append(h)
        h = self.resnet("mid_block.resnets.0", h, embedding)
        h = self.transformer("mid_block.attentions.0", h, context)
        h = self.resnet("mid_block.resnets.1", h, embedding)
        for block in self.numbered("up_blocks"):
            for number, resnet in enumerate(self.numbered(f"{block}.resnets")):
                h = self.resnet(resnet, torch.cat([h, kept.pop()], dim=1), embedding)
                h = self.transformer(f"{block}.attentions.{number}", h, context)
            if self.has(f"{block}.upsamplers"):
                larger = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                h = self.conv(f"{block}.upsamplers.0.conv", larger)
        assert not kept
        return self.conv("conv_out", F.silu(self.group_norm("conv_norm_out", h, 1e-5)))

    def has(self, prefix):
        return any(name.startswith(f"{prefix}.") for name in self.stored)

    def numbered(self, prefix):
        return [f"{prefix}.{number}" for number in range(9) if self.has(f"{prefix}.{number}")]

    def pair(self, prefix):
        names = [f"{prefix}.{kind}" for kind in ("weight", "bias")]
        self.read |= {name for name in names if name in self.stored}
        return self.stored[names[0]], self.stored.get(names[1])

    def linear(self, prefix, x):
        return F.linear(x, *self.pair(prefix))

    def conv(self, prefix, x, stride=1):
        weight, bias = self.pair(prefix)
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def group_norm(self, prefix, x, eps):
        return F.group_norm(x, 4, *self.pair(prefix), eps)

    def layer_norm(self, prefix, x):
        return F.layer_norm(x, x.shape[-1:], *self.pair(prefix))

    def perceptron(self, prefix, x):
        return self.linear(f"{prefix}.linear_2", F.silu(self.linear(f"{prefix}.linear_1", x)))

    def resnet(self, prefix, x, embedding):
        h = self.conv(f"{prefix}.conv1", F.silu(self.group_norm(f"{prefix}.norm1", x, 1e-5)))
        h = h + self.linear(f"{prefix}.time_emb_proj", F.silu(embedding))[:, :, None, None]
        h = self.conv(f"{prefix}.conv2", F.silu(self.group_norm(f"{prefix}.norm2", h, 1e-5)))
        return h + (self.conv(f"{prefix}.conv_shortcut", x) if self.has(f"{prefix}.conv_shortcut") else x)

    def transformer(self, prefix, x, context):
        if not self.has(prefix):
            return x
        height, width = x.shape[2:]
        tokens = self.conv(f"{prefix}.proj_in", self.group_norm(f"{prefix}.norm", x, 1e-6)).flatten(2).mT
        inner = f"{prefix}.transformer_blocks.0"
        for norm, layer in (("norm1", "attn1"), ("norm_joint_mid", "attn_joint_mid")):
            if self.has(f"{inner}.{layer}"):
                normed, name = self.layer_norm(f"{inner}.{norm}", tokens), f"{inner}.{layer}"
                tokens = tokens + self.attention(name, normed, self.keys(name, normed))
        tokens = tokens + self.attention(f"{inner}.attn2", self.layer_norm(f"{inner}.norm2", tokens), context)
        wide, gate = self.linear(f"{inner}.ff.net.0.proj", self.layer_norm(f"{inner}.norm3", tokens)).chunk(2, dim=-1)
        tokens = tokens + self.linear(f"{inner}.ff.net.2", wide * F.gelu(gate))
        return x + self.conv(f"{prefix}.proj_out", tokens.mT.unflatten(2, (height, width)))

    def attention(self, prefix, x, others):
        query, key, value = (
            self.linear(f"{prefix}.{name}", each) for name, each in (("to_q", x), ("to_k", others), ("to_v", others))
        )
        size, heads = query.shape[-1] // HEADS, []
        for first in range(0, query.shape[-1], size):
            q, k, v = (each[..., first : first + size] for each in (query, key, value))
            heads.append((q @ k.mT / math.sqrt(size)).softmax(dim=-1) @ v)
        return self.linear(f"{prefix}.to_out.0", torch.cat(heads, dim=-1))
