"""What tells checkpoints apart: what their text encoders say, if they have any, and how their networks are asked.

A family goes by the class of diffusers' pipeline that `model_index.json` names; fine-tunes have their ancestor's.
Whatever a network predicts is its scheduler's business, see `text_to_image`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from threed.distill.hub import cross_domain, mvdream, reference_attention
from threed.distill.prior import Pictures

Words = dict[str, Tensor]  # what text encoders say: by what it is for, one row a prompt
DISTILLED = 3.5  # guidance that networks were taught to give by themselves are told of this one


@dataclass(frozen=True)
class Foreign:
    """A network of a class that diffusers does not have, and what this program makes of it."""

    name: str  # of that class
    # By its config.json, a network of diffusers' without weights, and what the file calls each of them.
    blank: Callable[[Mapping[str, Any]], tuple[Any, dict[str, str]]]


@dataclass(frozen=True)
class Family:
    about: str  # for people
    network: Literal["unet", "transformer"]  # diffusers' name of the component that denoises
    encode: Callable[[Any, str, torch.device], Words]  # by a pipeline with nothing but text encoders
    ask: Callable[[Any, Tensor, Tensor, Words, int], Tensor]  # the network, of z_t at its timestep, for `side` pixels
    guidance: float = 100.0  # scale of score distillation
    half: torch.dtype = torch.float16  # what it was trained or published in
    latent: bool = True  # whether there is an autoencoder
    views: Callable[[Pictures], Words] | None = None  # what is told of a group that is denoised jointly, beside texts
    foreign: Foreign | None = None
    shown: bool = False  # whether it is told a picture in the place of words, see `novel_view`
    beside: tuple[str, ...] = ()  # components that read it
    inverts: bool = True  # whether its text encoders let a gradient through, to a word that is learned
    edits: bool = False  # whether its prompts say what to change in a picture that it is shown
    rigged: tuple[str, ...] = ()  # the kinds that it draws together, of those whose cameras are always the same
    # Pictures that it was taught to denoise together, and the rows and columns of them that make one for the network.
    group: tuple[int, int, int] = (1, 1, 1)
    pixels: int | None = None  # a side of a picture, where its configuration may have those of its ancestor
    attends: Callable[[], Any] | None = None  # diffusers' attention processor, where it is not that of its class

    @property
    def apart(self) -> bool:
        """Whether its pipeline is of a class that diffusers does not have."""
        return self.foreign is not None or self.shown


def _sd_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    return {"context": pipeline.encode_prompt([prompt], device, 1, False)[0]}


def _pix2pix_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    return {"context": pipeline._encode_prompt([prompt], device, 1, False)}  # the only one that it has


def _sdxl_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    context, _, pooled, _ = pipeline.encode_prompt([prompt], device=device, do_classifier_free_guidance=False)
    silent = not prompt and pipeline.config.force_zeros_for_empty_prompt
    return {"context": context * (not silent), "pooled": pooled * (not silent)}


def _sd3_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    said = pipeline.encode_prompt([prompt], None, None, device=device, do_classifier_free_guidance=False)
    return {"context": said[0], "pooled": said[2]}


def _flux_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    context, pooled, _ = pipeline.encode_prompt([prompt], device=device)
    return {"context": context, "pooled": pooled}


def _if_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    return {"context": pipeline.encode_prompt([prompt], do_classifier_free_guidance=False, device=device)[0]}


def _ask_unet(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: Words, side: int
) -> Float[Tensor, "P C h w"]:
    """A network that predicts its variance too has twice the channels; the first half is what counts here."""
    del side
    output = network(z_t, timestep, encoder_hidden_states=words["context"], return_dict=False)[0]
    return output[:, : z_t.shape[1]]


def _ask_sdxl(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: Words, side: int
) -> Float[Tensor, "P C h w"]:
    """It is told that nothing was cropped: size, corner, size (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""
    sizes = z_t.new_tensor([side, side, 0, 0, side, side]).expand(len(z_t), 6)
    told = {"text_embeds": words["pooled"], "time_ids": sizes}
    context = words["context"]
    return network(z_t, timestep, encoder_hidden_states=context, added_cond_kwargs=told, return_dict=False)[0]


def _ask_sd3(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: Words, side: int
) -> Float[Tensor, "P C h w"]:
    del side
    return network(
        hidden_states=z_t,
        timestep=timestep,
        encoder_hidden_states=words["context"],
        pooled_projections=words["pooled"],
        return_dict=False,
    )[0]


def _ask_flux(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: Words, side: int
) -> Float[Tensor, "P C h w"]:
    """Latents go two by two, each patch with its row and column; texts have place (0, 0)."""
    del side
    patches = pixel_unshuffle(z_t, 2)
    height, width = patches.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).to(z_t)
    output = network(
        hidden_states=patches.flatten(2).mT,
        timestep=timestep / 1000,
        guidance=timestep.new_full(timestep.shape, DISTILLED) if network.config.guidance_embeds else None,
        pooled_projections=words["pooled"],
        encoder_hidden_states=words["context"],
        txt_ids=z_t.new_zeros(words["context"].shape[1], 3),
        img_ids=places,
        return_dict=False,
    )[0]
    return pixel_shuffle(output.mT.reshape(patches.shape), 2)


def _ask_beside(
    network: Any, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], words: Words, side: int
) -> Float[Tensor, "P C h w"]:
    """Latents of a picture stand beside z_t (Liu et al. 2023, arXiv 2303.11328, section 3.2)."""
    del side
    both = torch.cat([z_t, words["reference"]], dim=1)
    return network(both, timestep, encoder_hidden_states=words["context"], return_dict=False)[0]


def _no_words(pipeline: Any, prompt: str, device: torch.device) -> Words:
    raise ValueError(f"this checkpoint is told a picture, and cannot read {prompt!r}")


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family("Stable Diffusion 1 and 2", "unet", _sd_words, _ask_unet),
    "StableDiffusionXLPipeline": Family("Stable Diffusion XL", "unet", _sdxl_words, _ask_sdxl),
    "StableDiffusionInstructPix2PixPipeline": Family(
        "InstructPix2Pix", "unet", _pix2pix_words, _ask_unet, guidance=7.5, edits=True
    ),
    "StableDiffusion3Pipeline": Family("Stable Diffusion 3", "transformer", _sd3_words, _ask_sd3, half=torch.bfloat16),
    "FluxPipeline": Family("Flux", "transformer", _flux_words, _ask_flux, half=torch.bfloat16),
    "IFPipeline": Family("DeepFloyd IF", "unet", _if_words, _ask_unet, guidance=20.0, latent=False, inverts=False),
    "MVDreamPipeline": Family(
        "MVDream",
        "unet",
        _sd_words,
        mvdream.ask,
        guidance=50.0,
        views=mvdream.views,
        foreign=Foreign(mvdream.CLASS, mvdream.blank),
        group=(4, 1, 1),
    ),
    **{
        kind: Family(
            "Zero-1-to-3 and Stable-Zero123",
            "unet",
            _no_words,
            _ask_beside,
            guidance=5.0,
            shown=True,
            beside=("image_encoder", "feature_extractor", projection),
            pixels=256,
        )
        for kind, projection in (
            ("Zero123Pipeline", "clip_camera_projection"),
            ("Zero1to3StableDiffusionPipeline", "cc_projection"),
        )
    },
    "Zero123PlusPipeline": Family(
        "Zero123++",
        "unet",
        _sd_words,
        reference_attention.ask,
        guidance=4.0,
        shown=True,
        beside=("vision_encoder", "feature_extractor_clip", "feature_extractor_vae"),
        rigged=("albedo",),
        group=(6, 3, 2),
        pixels=320,
        attends=reference_attention.ReferenceAttention,
    ),
    "MVDiffusionImagePipeline": Family(
        "Wonder3D",
        "unet",
        _no_words,
        cross_domain.ask,
        guidance=1.0,
        foreign=Foreign(cross_domain.CLASS, cross_domain.blank),
        shown=True,
        beside=("image_encoder", "feature_extractor"),
        rigged=("albedo", "normal"),
        group=(12, 1, 1),
        pixels=256,
    ),
}
