"""Zero-1-to-3 in both layouts of the hub, of the real classes, whose networks are small enough for tests."""

import json
from pathlib import Path

import tiny_checkpoints
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

SAID, CONTEXT = 12, 16
LAYOUTS = {  # by the class of the pipeline: the component of the linear map, whose code it is, its class and its layer
    "Zero123Pipeline": ("clip_camera_projection", "zero123", "CLIPCameraProjection", "proj"),
    "Zero1to3StableDiffusionPipeline": ("cc_projection", "pipeline_zero1to3", "CCProjection", "projection"),
}


def write(folder: Path, kind: str = "Zero123Pipeline", **changed):
    """A checkpoint, random weights; returns its components by name, and weight and bias of the linear map."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=SAID,
    )
    parts = {
        "vae": tiny_checkpoints.vae(),
        "unet": tiny_checkpoints.unet(channels=8, context=CONTEXT, out_channels=4),
        "scheduler": tiny_checkpoints.scheduler(clip_sample=False),
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    } | changed
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    name, library, own, layer = LAYOUTS[kind]
    weights = {f"{layer}.weight": torch.randn(CONTEXT, SAID + 4), f"{layer}.bias": torch.randn(CONTEXT)}
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps({"_class_name": own}))
    save_file(weights, folder / name / "diffusion_pytorch_model.safetensors")
    index = {
        "_class_name": kind,
        name: [library, own],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts | {"weight": weights[f"{layer}.weight"], "bias": weights[f"{layer}.bias"]}
