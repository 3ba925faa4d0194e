"""A checkpoint's networks in memory: the one that denoises with its autoencoder, or those that read, never both.

Importing diffusers takes seconds, so it waits until here is called; nothing here reaches for the network.
"""

from __future__ import annotations

from typing import Any

import torch

from threed.distill.embedded import complete, quiet
from threed.distill.folder import readable
from threed.distill.hub.checkpoint import Checkpoint, blank, header, weight_files

__all__ = ["denoiser", "image_encoder", "image_processor", "quiet", "text_encoders"]


def denoiser(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers pipeline without text encoders: network, scheduler, and where it has one, the autoencoder.

    A LoRA is fused into the network. Raises UnreadablePrior.
    """
    family = checkpoint.family
    parts = {family.network: dtype} | ({"vae": autoencoder_dtype(checkpoint, device, dtype)} if family.latent else {})
    pipeline = _assembled(checkpoint, parts) if family.apart else _pipeline(checkpoint, parts)
    _fuse(pipeline, checkpoint, ("unet", "transformer", "lora_unet", "lora_transformer"))
    for part, precision in parts.items():
        network = getattr(pipeline, part).to(device).eval().requires_grad_(False)
        if network.dtype != precision:  # a single file has one for all
            network.to(precision)
    return pipeline


def text_encoders(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers pipeline of text encoders and tokenizers alone. Raises UnreadablePrior."""
    parts = dict.fromkeys(checkpoint.texts, dtype)
    pipeline = _assembled(checkpoint, parts) if checkpoint.family.apart else _pipeline(checkpoint, parts)
    _fuse(pipeline, checkpoint, ("text_encoder", "lora_te"))
    for part in checkpoint.texts:
        if part.startswith("text_encoder"):
            getattr(pipeline, part).to(device).eval().requires_grad_(False)
    return pipeline


def image_encoder(
    checkpoint: Checkpoint, device: torch.device, part: str = "image_encoder", processor: str = "feature_extractor"
) -> tuple[Any, Any]:
    """CLIP's network of pictures, in float32, and what brings pictures into its form. Raises UnreadablePrior."""
    with readable(checkpoint.folder), quiet():
        network = _loaded(checkpoint, part, checkpoint.index[part], torch.float32)
    return network.to(device).eval().requires_grad_(False), image_processor(checkpoint, processor)


def image_processor(checkpoint: Checkpoint, part: str) -> Any:
    """What brings pictures into the form that a network wants. Raises UnreadablePrior."""
    import transformers

    with readable(checkpoint.folder), quiet():
        return transformers.CLIPImageProcessor.from_pretrained(checkpoint.folder / part, local_files_only=True)


def autoencoder_dtype(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Its gradient wants more precision than bfloat16 has on a CPU, and some overflow in float16."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with readable(checkpoint.folder / "vae"):
        config = AutoencoderKL.load_config(checkpoint.folder / "vae", local_files_only=True)
    return torch.float32 if device.type == "cpu" or config.get("force_upcast", True) else dtype


def _pipeline(checkpoint: Checkpoint, parts: dict[str, torch.dtype]) -> Any:
    """With these components, in these precisions, and the scheduler."""
    import diffusers

    index = checkpoint.index
    others: dict[str, Any] = {
        name: None
        for name, told in index.items()
        if isinstance(told, list) and name not in parts and name != "scheduler"
    }
    if "requires_safety_checker" in index:
        others["requires_safety_checker"] = False
    folder = checkpoint.folder
    with readable(checkpoint.weights or folder), quiet():
        kind = getattr(diffusers, checkpoint.kind)
        if checkpoint.weights:
            told = {"config": str(folder), "local_files_only": True, "torch_dtype": max(parts.values(), key=str)}
            return kind.from_single_file(str(checkpoint.weights), **told, **others)
        loaded = {
            name: _loaded(checkpoint, name, index[name], dtype)
            for name, dtype in parts.items()
            if not name.startswith("tokenizer")
        }
        try:
            return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **loaded, **others)
        except ImportError as error:  # of what reads tokenizers that stand there in an older form
            raise ValueError(f"a tokenizer needs more: {error}; try: pip install sentencepiece protobuf") from error


def _assembled(checkpoint: Checkpoint, parts: dict[str, torch.dtype]) -> Any:
    """Of a class that diffusers does not have: its code, which comes with the checkpoint, is not run."""
    import diffusers
    import transformers

    index, folder = checkpoint.index, checkpoint.folder
    with readable(folder), quiet():
        kinds = {"scheduler": getattr(diffusers, index["scheduler"][1])}
        if "tokenizer" in parts:
            kinds["tokenizer"] = getattr(transformers, index["tokenizer"][1])
        small = {part: kind.from_pretrained(folder / part, local_files_only=True) for part, kind in kinds.items()}
        networks = {part: _loaded(checkpoint, part, index[part], parts[part]) for part in parts if part not in kinds}
        absent = dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        return diffusers.StableDiffusionPipeline(**(absent | small | networks), requires_safety_checker=False)


def _translated(checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> Any:
    """A network of diffusers', whose weights have other names in their file."""
    from safetensors.torch import load_file

    stored = {key: each for path in weight_files(checkpoint, part) for key, each in load_file(path).items()}
    network, names = blank(checkpoint, part)
    network.load_state_dict({ours: stored[theirs].to(dtype) for ours, theirs in names.items()}, assign=True)
    return network


def _loaded(checkpoint: Checkpoint, part: str, told: list[str], dtype: torch.dtype) -> Any:
    """One network. Raises ValueError where its file lacks a weight, in the place of which there would be noise."""
    import diffusers
    import transformers

    library, name = told
    if checkpoint.family.foreign and part == checkpoint.family.network:
        return _translated(checkpoint, part, dtype)
    ours = library == "diffusers"
    precision = {"torch_dtype" if ours else "dtype": dtype}
    network, report = getattr(diffusers if ours else transformers, name).from_pretrained(
        checkpoint.folder / part,
        variant=checkpoint.variant(part),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **precision,
    )
    complete(report)
    return network


def _fuse(pipeline: Any, checkpoint: Checkpoint, prefixes: tuple[str, ...]) -> None:
    """Add the LoRA's weights of these components to theirs, for good."""
    if checkpoint.lora is None:
        return
    from safetensors.torch import load_file

    if not any(name.startswith(prefixes) for name in header(checkpoint.lora)):
        return
    with readable(checkpoint.lora), quiet():
        state = {name: each for name, each in load_file(checkpoint.lora).items() if name.startswith(prefixes)}
        pipeline.load_lora_weights(state)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
