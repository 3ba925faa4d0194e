"""The views prior in training: its network, its loss, and the folder that it becomes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from threed import disk
from threed.distill import sample
from threed.distill.conditions import CAMERA_FEATURES, GEOMETRY_CHANNELS, REFERENCE_CHANNELS
from threed.distill.embedded import PREDICTIONS, Conventions, Embedded, compute_dtype, predict, prepared
from threed.distill.folder import SHIPPED
from threed.distill.prior import cosine, prediction_from
from threed.errors import Mistake
from threed.pictures import png
from threed.pictures import sheet as paper
from threed.renderers.camera import orbit
from threed.training.views_batch import KINDS, Chances, Paint, Painted, drawn, plan
from threed.training.views_cache import Cache


@dataclass(frozen=True)
class Size:
    """How large a network is."""

    width: tuple[int, int, int]  # channels at 16 x 16, 8 x 8 and 4 x 4; multiples of 16
    layers: int  # residual blocks at each of them


SIZES = {
    "tiny": Size((48, 96, 96), 1),  # 4 M parameters
    "small": Size((64, 128, 128), 1),  # 7 M
    "medium": Size((64, 128, 128), 2),  # 11 M
    "large": Size((96, 192, 192), 2),  # 24 M, that of the first prior
}


def fresh(prior: Embedded, size: Size, seed: int, geometry: bool = True) -> Embedded:
    """An untrained network of this size, with the conventions and the text encoder of `prior`, on that one's device."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    conventions = replace(
        prior.conventions,
        prediction="clean",
        kinds=KINDS,
        geometry=geometry,
        joint_reference=True,
        compressed=False,
    )
    text_features = prior.reader.features
    with torch.random.fork_rng(devices=[]):  # diffusers knows no generators
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=conventions.image_size // conventions.patch,
            in_channels=input_channels(conventions),
            out_channels=3 * conventions.patch**2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=size.width,
            layers_per_block=size.layers,
            norm_num_groups=16,
            attention_head_dim=4,  # which is what diffusers calls the number of heads
            cross_attention_dim=text_features,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=CAMERA_FEATURES + text_features,
            resnet_time_scale_shift="scale_shift",
        )
    unet = prepared(unet).to(prior.reader.device)
    return replace(prior, conventions=conventions, unet=unet, texts={})


def continued(prior: Embedded, geometry: bool = True) -> Embedded:
    """A copy of a prior to train on, in float32; inputs that it did not have yet begin with weights of zero.

    Raises ValueError for a prior of other kinds of picture than those that are trained.
    """
    if prior.kinds != KINDS:
        raise ValueError(f"this prior knows {', '.join(prior.kinds)}; continue one of {', '.join(KINDS)}")
    geometry = geometry or prior.conventions.geometry
    conventions = replace(prior.conventions, geometry=geometry, joint_reference=True, compressed=False)
    channels = input_channels(conventions)
    state = {name: value.float().clone() for name, value in prior.unet.state_dict().items()}
    more = channels - state["conv_in.weight"].shape[1]
    state["conv_in.weight"] = functional.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, more))
    with torch.device("meta"):
        unet = type(prior.unet).from_config(dict(prior.unet.config) | {"in_channels": channels})
    unet.load_state_dict(state, assign=True)
    unet.register_to_config(_name_or_path="")  # or the source's path on this machine would be published
    return replace(prior, conventions=conventions, unet=prepared(unet), texts={})


def input_channels(conventions: Conventions) -> int:
    geometry = GEOMETRY_CHANNELS if conventions.geometry else 0
    return (3 + REFERENCE_CHANNELS + geometry) * conventions.patch**2


@dataclass(frozen=True)
class ViewsLoss:
    """What `loop.optimise` minimises: the error of the clean picture, weighted by min(snr, most) + least.

    snr = alpha^2 / sigma^2; the weight is that of Min-SNR (Hang et al. 2023, arXiv 2303.09556, section 3.4), which
    would leave out the noisiest times: `least` keeps them in, for that is where distillation begins.
    """

    cache: Cache  # on the network's device
    prior: Embedded  # what `fresh` or `continued` returned; its network is not asked
    chances: Chances = field(default_factory=Chances)
    most: float = 5.0
    least: float = 0.5
    paints: dict[Paint, Painted] = field(default_factory=dict, repr=False)

    def __call__(self, network: nn.Module, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """The mean over `samples` pictures; the same for the same state of the generator."""
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            planned = plan(self.cache, samples, self.chances, host(generator), self.paints)
            batch = drawn(self.cache, self.prior, planned, generator)
            alpha, sigma = (a[:, None, None, None] for a in self.prior.alpha_sigma(batch.t))
            noise = torch.randn(batch.clean.shape, generator=generator, device=generator.device)
            z_t = alpha * batch.clean + sigma * noise
        output = predict(network, self.prior.conventions, z_t, batch.t, batch.condition)
        clean = prediction_from(self.prior.conventions.prediction, output, z_t, *self.prior.alpha_sigma(batch.t)).clean
        error = (clean - batch.clean).square().mean(dim=(1, 2, 3))
        return (weight(batch.t, self.most, self.least) * error).mean()


def weight(t: Float[Tensor, "P"], most: float, least: float) -> Float[Tensor, "P"]:
    alpha, sigma = cosine(t)
    return (alpha / sigma).square().clamp(max=most) + least


def host(generator: torch.Generator) -> np.random.Generator:
    """Random numbers for the host that follow from the generator's state, without waiting for its device."""
    state = hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
    return np.random.default_rng(int.from_bytes(state, "little"))


def sheet(network: nn.Module, prior: Embedded, prompts: Sequence[str], seed: int = 0, steps: int = 20) -> bytes:
    """A PNG of four joint views of every prompt: albedo above, shaded below, normals at the bottom."""
    prior, device = replace(prior, unet=network), next(network.parameters()).device
    pictures = []
    with torch.autocast(device.type, torch.bfloat16, compute_dtype(device) == torch.bfloat16):
        for prompt in prompts:
            generator = torch.Generator(device).manual_seed(seed)
            shown = sample.pictures(prior, prompt, orbit(4).to(device), generator, steps)
            pictures.append(shown.float().unflatten(0, (len(KINDS), 4)))
    rows = torch.cat(pictures, dim=1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return png(paper(rows.flatten(0, 1), columns=rows.shape[1], gap=4))


def write(folder: Path, prior: Embedded, source: Path | None = None, about: Mapping[str, Any] | None = None) -> None:
    """Save a trained prior as a folder that `Embedded.load` reads; its network in half precision.

    source: the folder whose text encoder, tokenizer and scheduler it was trained with; the shipped one without it.
    about: what else `prior.json` shall say. The folder appears as a whole, in place of a prior that was there before.
    Raises Mistake for a folder that holds anything else, ValueError for weights that are not finite.
    """
    source = source or SHIPPED
    if folder.exists() and not (folder / "prior.json").exists():
        raise Mistake(f"{str(folder)!r} exists and is no prior; choose another folder")
    network = {name: value.half().cpu().contiguous() for name, value in prior.unet.state_dict().items()}
    if bad := [name for name, value in network.items() if not value.isfinite().all()]:
        raise ValueError(f"the weights {bad[0]!r} are not finite in half precision; train with a lower rate")
    partial = folder.with_name(disk.partial_name(folder.name))
    shutil.rmtree(partial, ignore_errors=True)
    prior.unet.save_config(partial / "unet")
    (partial / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(save(network, {"format": "pt"}))
    was = json.loads((source / "prior.json").read_text(encoding="utf-8"))
    _write_text_encoder(partial, prior, source, compressed=was.pop("compression", None) is not None)
    names = {kind: name for name, kind in PREDICTIONS.items()}
    is_now = {
        "prediction": names[prior.conventions.prediction],
        "kinds": prior.conventions.kinds,
        "geometry": prior.conventions.geometry,
        "reference": "joint" if prior.conventions.joint_reference else "channels",
    }
    _write_json(partial / "prior.json", was | is_now | dict(about or {}))
    files = {path.relative_to(partial).as_posix(): path for path in partial.rglob("*") if path.is_file()}
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in sorted(files.items())]
    disk.write(partial / "SHA256SUMS", "".join(sums).encode())
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _write_text_encoder(folder: Path, prior: Embedded, source: Path, compressed: bool) -> None:
    """Text encoder, tokenizer and scheduler as they were in `source`, to the last bit of what they compute."""
    for name in ("text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(source / name, folder / name)
    for name in ("LICENSE", "NOTICE"):  # of the text encoder; what the network's licence is, its maker knows
        if (source / name).exists():
            shutil.copyfile(source / name, folder / "text_encoder" / name)
    if compressed:
        weights = {name: value.cpu().contiguous() for name, value in prior.reader.weights.items()}
        (folder / "text_encoder" / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
        config = json.loads((source / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        _write_json(folder / "text_encoder" / "config.json", config | {"dtype": "float32"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
