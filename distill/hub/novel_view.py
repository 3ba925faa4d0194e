"""Zero-1-to-3 and Stable-Zero123 as priors: told one picture of an object, they know what other cameras see of it.

A network of Stable Diffusion's kind (Liu et al. 2023, arXiv 2303.11328) is told the picture twice: its latents stand
beside z_t, the mean of the posterior and not scaled; and one token of context is a linear map of what CLIP says of it
and of four numbers of the camera. The null condition is zeros for both. Pictures are of 256 pixels, on white.

The numbers of a camera, in radians, beside that of the picture (polar angles fall from straight above):

    polar - polar of the picture,  sin and cos of the azimuth - azimuth of the picture,  and then
    Zero-1-to-3     distance - distance of the picture, where an object's longest side is 1
    Stable-Zero123  polar of the picture

Which of the two a checkpoint is, its files do not tell, its name does: see `is_stable`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from threed.distill.conditions import before
from threed.distill.embedded import Reference
from threed.distill.folder import readable
from threed.distill.hub import components, fit, text_to_image
from threed.distill.hub.around import Around
from threed.distill.hub.checkpoint import OWN, Checkpoint, header, weight_files
from threed.distill.hub.families import Words
from threed.distill.prior import Conditions, Pictures, Prompt, from_pixels
from threed.renderers.camera import Cameras

DISTANCE = 1.85  # the middle of those that were trained, 1.5 to 2.2
LAYERS = {"clip_camera_projection": "proj", "cc_projection": "projection"}  # a linear one, by its component
CAMERA = 4  # numbers


@dataclass(frozen=True)
class Seen:
    """What was read of the reference picture, and the camera that saw it."""

    embedding: Float[Tensor, "1 E"]
    latents: Float[Tensor, "1 C h w"]  # not scaled
    camera: Cameras  # one


@dataclass(frozen=True)
class NovelView(Around):
    """Such a checkpoint as a prior; make one with `load`, and show it a picture before it is asked for conditions."""

    weight: Float[Tensor, "K N"]  # of the linear map, from what CLIP says and the camera
    bias: Float[Tensor, "K"]
    stable: bool
    seen: Seen | None = field(default=None, repr=False)
    kinds: tuple[str, ...] = field(default=("albedo", "shaded"), init=False)

    @property
    def name(self) -> str:
        return "Stable-Zero123" if self.stable else "Zero-1-to-3"

    @torch.no_grad()
    def shown(self, reference: Reference) -> NovelView:
        """The same, told of this picture; CLIP is in memory only while it reads. Raises UnreadablePrior."""
        assert self.base.autoencoder
        picture = in_front_of(1.0, reference).to(self.weight.device)
        network, processor = components.image_encoder(self.base.reader.checkpoint, self.weight.device)
        with readable(self.base.reader.checkpoint.folder):
            embedding = network(pixel_values(processor, picture).to(self.weight.device)).image_embeds
        latents = self.base.autoencoder.unscaled(self.encode(picture))
        return replace(self, seen=Seen(embedding, latents, reference.camera.to(self.weight.device)))

    @torch.no_grad()
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Words are not heard. Raises ValueError before a picture was shown."""
        del prompt, negative
        if (seen := self.seen) is None:
            raise ValueError("this prior draws what a picture shows, from other sides; show it one first, see `shown`")
        camera = camera_features(pictures.cameras, seen.camera, self.stable).repeat(len(pictures.kinds), 1)
        both = torch.cat([seen.embedding.expand(len(camera), -1), camera.to(seen.embedding)], dim=1)
        context = linear(both, self.weight, self.bias)[:, None]
        reference = seen.latents.expand(len(camera), -1, -1, -1)
        told: Words = {"context": context.to(self.network.dtype), "reference": reference.to(self.network.dtype)}
        return Conditions(told, {name: torch.zeros_like(each) for name, each in told.items()})


def camera_features(cameras: Cameras, seen: Cameras, stable: bool) -> Float[Tensor, "P 4"]:
    """The numbers that these cameras are told by, beside the one that saw the picture."""
    fall, turn = seen.elevation - cameras.elevation, cameras.azimuth - seen.azimuth
    last = (math.pi / 2 - seen.elevation).expand_as(fall) if stable else farther(cameras, seen)
    return torch.stack([fall, turn.sin(), turn.cos(), last], dim=1)


def farther(cameras: Cameras, seen: Cameras) -> Float[Tensor, "P"]:
    """By how much more distance one lens makes the object as much smaller, from where it was trained on average.

    All of its pictures had one field of view, 49 degrees; what ours frame at the origin counts, at any.
    """
    framed, was = (each.distance * (each.fov_y / 2).tan() for each in (cameras, seen))
    return DISTANCE * (framed / was - 1)


def in_front_of(shade: float, reference: Reference) -> Float[Tensor, "1 H W 3"]:
    """A reference picture as it looks before this grey, display sRGB in [0, 1]."""
    background = torch.full((1, 3), shade).to(reference.picture)
    return from_pixels(before(background, reference.picture)).clamp(0, 1)


def pixel_values(processor: Any, picture: Float[Tensor, "1 H W 3"]) -> Float[Tensor, "1 3 S S"]:
    """A display sRGB picture in [0, 1] as CLIP takes it, by transformers' processor of pictures of 8 bits."""
    image = Image.fromarray((picture[0] * 255).round().byte().cpu().numpy())
    values: Tensor = processor(images=image, return_tensors="pt").pixel_values
    return values


def is_stable(folder: Path) -> bool:
    """Whether the innermost folder with "zero" in its name has "stable" in it, too, as the hub's ids have."""
    named = [part.lower() for part in folder.absolute().parts if "zero" in part.lower()]
    return bool(named) and "stable" in named[-1]


def check(checkpoint: Checkpoint) -> None:
    """That the components of such a checkpoint fit one another, by their headers. Raises UnreadablePrior."""
    folder, part = checkpoint.folder, _projection(checkpoint)

    def told(part: str) -> Any:
        return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))

    def shape(part: str, name: str) -> list[int] | None:
        return {k: v for path in weight_files(checkpoint, part) for k, v in header(path).items()}.get(name)

    with readable(folder):
        unet, clip = told("unet"), told("image_encoder")
        said, context = clip["projection_dim"], unet["cross_attention_dim"]
        wanted = {
            "in_channels of the unet": (unet["in_channels"], 2 * told("vae")["latent_channels"]),
            f"weight of the {part}": (shape(part, f"{LAYERS[part]}.weight"), [context, said + CAMERA]),
            f"bias of the {part}": (shape(part, f"{LAYERS[part]}.bias"), [context]),
            "size of the image_encoder": (
                shape("image_encoder", "visual_projection.weight"),
                [said, clip["hidden_size"]],
            ),
        }
    fit.agreed(checkpoint, wanted)


def load(checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> NovelView:
    """Raises UnreadablePrior when a file is at fault."""
    base, part = text_to_image.load(checkpoint, device, dtype), _projection(checkpoint)
    with readable(checkpoint.folder / part):
        found = {k: v.float().to(device) for path in weight_files(checkpoint, part) for k, v in load_file(path).items()}
    weight, bias = (found[f"{LAYERS[part]}.{name}"] for name in ("weight", "bias"))
    return NovelView(base, weight, bias, is_stable(checkpoint.folder))


def _projection(checkpoint: Checkpoint) -> str:
    return next(part for part in checkpoint.family.beside if part in OWN)
