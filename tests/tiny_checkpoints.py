"""Checkpoints in diffusers' layout, of its real classes, whose networks are small enough for tests: random weights."""

import json
from pathlib import Path

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz,.0123456789"
NAMES = ("sd", "sd-v", "xl", "sd3", "flux", "if")


def tokenizer(folder: Path, length: int = 77, last: bool = False) -> CLIPTokenizer:
    """A byte-pair tokenizer that knows letters alone, its markers before them, or last, as the real one has them."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    words = [*words[2:], *words[:2]] if last else words
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    found = CLIPTokenizer.from_pretrained(folder, pad_token="<|endoftext|>", model_max_length=length)
    assert len(found("ab").input_ids) == 4
    return found


def t5_tokenizer() -> PreTrainedTokenizerFast:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=77)


def clip(projected: bool = False, width: int = 16) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width: int = 32) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=60, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()


def vae(latents: int = 4, **settings) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    ).eval()


def unet(channels: int = 4, context: int = 16, **settings) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "in_channels": channels,
            "out_channels": channels,
            "sample_size": 8,
            "block_out_channels": (16, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "cross_attention_dim": context,
            **settings,
        }
    ).eval()


def controlnet(unet: diffusers.UNet2DConditionModel, channels=(8, 8), **settings) -> diffusers.ControlNetModel:
    """Beside this UNet; what it adds is not zero, as it is before any training."""
    found = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels, **settings).eval()
    for name, weight in found.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.3)
    return found


def scheduler(kind: str = "DDIMScheduler", **settings):
    told = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return getattr(diffusers, kind)(**(told | settings))


def sd(folder: Path, **schedule) -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(folder),
        unet=unet(),
        scheduler=scheduler(clip_sample=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl(folder: Path) -> diffusers.StableDiffusionXLPipeline:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=tokenizer(folder),
        tokenizer_2=tokenizer(folder),
        unet=unet(
            context=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * 6 + 16,
        ),
        scheduler=scheduler("EulerDiscreteScheduler"),
        add_watermarker=False,
    )


def pix2pix(folder: Path) -> diffusers.StableDiffusionInstructPix2PixPipeline:
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(folder),
        unet=unet(in_channels=8),
        scheduler=scheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd3(folder: Path) -> diffusers.StableDiffusion3Pipeline:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            out_channels=4,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip(projected=True),
        tokenizer=tokenizer(folder),
        text_encoder_2=clip(projected=True),
        tokenizer_2=tokenizer(folder),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def flux(folder: Path) -> diffusers.FluxPipeline:
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.36, shift_factor=0.12),
        text_encoder=clip(),
        tokenizer=tokenizer(folder),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def deepfloyd(folder: Path) -> diffusers.IFPipeline:
    del folder
    return diffusers.IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet(
            channels=3,
            context=16,
            out_channels=6,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        ),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


MAKERS = {
    "sd": sd,
    "sd-v": lambda folder: sd(folder, prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "xl": xl,
    "pix2pix": pix2pix,
    "sd3": sd3,
    "flux": flux,
    "if": deepfloyd,
}


def write(folder: Path, name: str):
    """The pipeline of this name, saved into the folder as safetensors."""
    torch.manual_seed(0)
    pipeline = MAKERS[name](folder / "words")
    pipeline.save_pretrained(folder / "checkpoint", safe_serialization=True)
    return pipeline


# The layout of single files, that of the first Stable Diffusion: a part of diffusers' name, and what stands there.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
VAE = {
    "down_blocks.": "down.",
    "up_blocks.0": "up.1",
    "up_blocks.1": "up.0",
    "resnets.": "block.",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.block.0": "mid.block_1",
    "mid_block.block.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def single(pipeline: diffusers.StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """All weights of `sd` as a single file has them."""
    found = {_unet_name(name): value for name, value in pipeline.unet.state_dict().items()}
    for name, value in pipeline.vae.state_dict().items():
        pointwise = "attentions" in name and value.ndim == 2  # a convolution of one pixel there
        for ours, theirs in VAE.items():
            name = name.replace(ours, theirs)
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if pointwise else value
    for name, value in pipeline.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return {name: value.contiguous() for name, value in found.items()}


def _unet_name(name: str) -> str:
    block = next(ours for ours in UNET if name.startswith(f"{ours}."))
    rest = name.removeprefix(f"{block}.")
    if "resnets" in block:
        part, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[part]}.{kind}"
    return f"model.diffusion_model.{UNET[block]}.{rest}"
