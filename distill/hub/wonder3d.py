"""Wonder3D as a prior: normals and colours of six views around an object that a picture shows (arXiv 2310.15008).

The network is told the picture twice: its latents stand beside z_t, and what CLIP says of it is the one token of
context. The null condition is zeros for both. Pictures are of 256 pixels and orthographic, for which a narrow lens
stands in here. The views turn about the picture's own upright axis, see `Rig.level`. What the network is told of each
are angles, always the same: those of the cameras around one object of its training.

The network knows normals as the picture's camera has them, the first of the six; here each camera has its own, so they
are turned as they go in and out. It was trained before white, black and mid-grey, all pictures of an object before the
same. Here that is grey: 0 to a normal, so that what is behind the object, and how much of it, stays what it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.embedded import Reference
from threed.distill.folder import readable
from threed.distill.hub import components, text_to_image
from threed.distill.hub.around import Around
from threed.distill.hub.checkpoint import Checkpoint
from threed.distill.hub.families import Words
from threed.distill.hub.fit import agreed
from threed.distill.hub.novel_view import in_front_of, pixel_values
from threed.distill.prior import Conditions, Pictures, Prompt
from threed.distill.rig import Rig
from threed.renderers.camera import Cameras

RIG = Rig((0.0, 45.0, 90.0, 180.0, -90.0, -45.0), (0.0,) * 6, fov=5.0, level=True)
KINDS = (("albedo", "normal"), ("shaded", "normal"))  # of a group
GREY = 0.5
# By view, in radians: the polar angle and the azimuth of its camera beside those of the picture's.
ANGLES = ((0.0, 0.0), (-0.2362, 0.8125), (-0.1686, 1.6934), (0.5220, 3.1406), (0.6904, 4.8359), (0.3733, 5.5859))


@dataclass(frozen=True)
class Seen:
    """What was read of the reference picture, and the camera that saw it."""

    embedding: Float[Tensor, "1 K"]
    latents: Float[Tensor, "1 C h w"]
    camera: Cameras  # one


@dataclass(frozen=True)
class Wonder3D(Around):
    """Such a checkpoint as a prior; make one with `load`, and show it a picture before it is asked for conditions."""

    background: float = field(default=GREY, init=False)
    seen: Seen | None = field(default=None, repr=False)
    rig: Rig = field(default=RIG, init=False)
    kinds: tuple[str, ...] = field(default=("albedo", "shaded", "normal"), init=False)

    @property
    def name(self) -> str:
        return "Wonder3D"

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        """Twelve pictures are a group, the last six its normals. Raises ValueError for pictures that are not square."""
        return self.base.encode(turned(image, own_to_front()))

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        return turned(self.base.decode(latents), own_to_front().mT)

    @torch.no_grad()
    def shown(self, reference: Reference) -> Wonder3D:
        """The same, told of this picture; CLIP is in memory only while it reads. Raises UnreadablePrior."""
        checkpoint, device = self.base.reader.checkpoint, self.network.device
        picture = in_front_of(self.background, reference).to(device)
        network, processor = components.image_encoder(checkpoint, device)
        with readable(checkpoint.folder):
            embedding = network(pixel_values(processor, picture).to(device)).image_embeds
        return replace(self, seen=Seen(embedding, self.encode(picture), reference.camera.to(device)))

    @torch.no_grad()
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Words are not heard.

        Raises ValueError before a picture was shown, for cameras other than the rig's, for other kinds than colours
        and then normals, and for another background than grey.
        """
        del prompt, negative
        if (seen := self.seen) is None:
            raise ValueError("this prior draws what a picture shows, from other sides; show it one first, see `shown`")
        self.rig.check(pictures.cameras, seen.camera)
        if pictures.kinds not in KINDS:
            raise ValueError(
                f"this prior draws colours and then normals, and was asked for {', '.join(pictures.kinds)}; ask it for "
                "albedo, normal, or for shaded, normal"
            )
        if not torch.allclose(pictures.background, torch.full_like(pictures.background, GREY), atol=0.01):
            raise ValueError(f"this prior draws before grey, and was asked for {pictures.background.tolist()}; use 0.5")
        told: Words = {
            "context": seen.embedding[:, None].expand(len(pictures), -1, -1).to(self.network.dtype),
            "reference": seen.latents.expand(len(pictures), -1, -1, -1).to(self.network.dtype),
        }
        camera = {"camera": torch.stack([labels(kind) for kind in pictures.kinds]).to(told["context"])}
        return Conditions(told | camera, {name: torch.zeros_like(each) for name, each in told.items()} | camera)


def own_to_front() -> Float[Tensor, "6 3 3"]:
    """What turns normals of each camera of the rig into those of its first."""
    rotation = RIG.cameras(0.0, 0.0).rotation
    return rotation[0].mT @ rotation


def turned(pictures: Float[Tensor, "P H W 3"], turns: Float[Tensor, "6 3 3"]) -> Float[Tensor, "P H W 3"]:
    """A group of twelve, its normals turned; other pictures as they are."""
    if len(pictures) != len(KINDS[0]) * len(RIG):
        return pictures
    colours, normals = pictures.chunk(2)
    return torch.cat([colours, (torch.einsum("cij,chwj->chwi", turns.to(normals), 2 * normals - 1) + 1) / 2])


def labels(kind: str) -> Float[Tensor, "6 10"]:
    """What the network is told of the six pictures of a kind.

    The sines of (elevation of the picture, which is none; the view's angles; whether it shows normals; whether it shows
    colours), then their cosines.
    """
    normals = float(kind == "normal")
    told = torch.tensor([[0.0, *angles, normals, 1 - normals] for angles in ANGLES])
    return torch.cat([told.sin(), told.cos()], dim=1)


def check(checkpoint: Checkpoint) -> None:
    """That the components of such a checkpoint fit one another, by their headers. Raises UnreadablePrior."""
    folder = checkpoint.folder

    def told(part: str) -> Any:
        return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))

    with readable(folder):
        unet = told("unet")
        agreed(
            checkpoint,
            {
                "in_channels of the unet": (unet["in_channels"], 2 * told("vae")["latent_channels"]),
                "projection_dim of the image_encoder": (
                    told("image_encoder")["projection_dim"],
                    unet["cross_attention_dim"],
                ),
            },
        )


def load(checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Wonder3D:
    """Raises UnreadablePrior when a file is at fault."""
    return Wonder3D(text_to_image.load(checkpoint, device, dtype))
