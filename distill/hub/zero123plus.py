"""Zero123++ as a prior: six views around an object that a picture shows, drawn as one tile (arXiv 2310.15110).

A network of Stable Diffusion 2 predicts the velocity of the tile's latents, three rows of two views. It is told the
picture twice: as `reference_attention` has it, and by what CLIP says of it, which is added to every token of the empty
text, times the token's number on a ramp in model_index.json. The null condition is the empty text alone, and a picture
of the background.

Pictures stand before grey, which is 0 to the autoencoder, with contrast 0.8 times as weak as usual; its latents are
shifted and scaled once more:

    z = 0.75 (0.18215 E(0.625 x) - 0.22),  x the picture in [-1, 1].

Those of the reference are plain E(0.625 x). Cameras are always the same six, beside the azimuth of the picture and at
elevations of their own. They differ between 1.1 and 1.2, which the files do not tell, but the name: see `rig_of`. So do
InstantMesh's weights of 1.2 (Xu et al. 2024, arXiv 2404.07191), whose pictures stand before white.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
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
from threed.distill.hub.text_to_image import sized
from threed.distill.prior import Conditions, Pictures, Prediction, Prompt, from_pixels, pixels
from threed.distill.rig import Rig
from threed.renderers.camera import Cameras

ROWS, COLUMNS = 3, 2
VIEWS = ROWS * COLUMNS
CONTRAST = 0.5 / 0.8
SHIFT, SCALE = 0.22, 0.75  # of the latents, after the autoencoder's own scale
GREY, WHITE = 0.5, 1.0
AROUND = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
FIRST = Rig(AROUND, (30.0, -20.0) * 3, fov=math.degrees(2 * math.atan(16 / 35)))  # Zero-1-to-3's lens, says its author
SECOND = Rig(AROUND, (20.0, -10.0) * 3, fov=30.0)


@dataclass(frozen=True)
class Seen:
    """What was read of the reference picture and of plain background, and the camera that saw it."""

    embedding: Float[Tensor, "1 K"]
    latents: Float[Tensor, "1 C h w"]  # neither shifted nor scaled
    background: Float[Tensor, "1 C h w"]
    camera: Cameras  # one


@dataclass(frozen=True)
class Zero123Plus(Around):
    """Such a checkpoint as a prior; make one with `load`, and show it a picture before it is asked for conditions."""

    ramp: Float[Tensor, "tokens 1"]
    rig: Rig
    background: float = GREY
    seen: Seen | None = field(default=None, repr=False)
    kinds: tuple[str, ...] = field(default=("albedo", "shaded"), init=False)

    @property
    def name(self) -> str:
        return f"Zero123++ {'1.1' if self.rig == FIRST else '1.2'}"

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        """As tiles; as many as make none one by one. Raises ValueError for pictures that are not square."""
        assert self.base.autoencoder
        if image.shape[1] != image.shape[2]:
            raise ValueError(f"pictures are {image.shape[2]} x {image.shape[1]}; render square ones")
        picture = CONTRAST * sized(pixels(image), self.image_size)
        if len(picture) % VIEWS:
            return self.base.autoencoder.encode(picture)
        return untiled(self.base.autoencoder.encode(tiled(picture)))

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        """Raises ValueError for no full tile."""
        assert self.base.autoencoder
        return from_pixels(untiled(self.base.autoencoder.decode(tiled(latents))) / CONTRAST)

    @torch.no_grad()
    def shown(self, reference: Reference) -> Zero123Plus:
        """The same, told of this picture; CLIP is in memory only while it reads. Raises UnreadablePrior."""
        assert self.base.autoencoder
        checkpoint, device = self.base.reader.checkpoint, self.ramp.device
        picture = in_front_of(math.floor(255 * self.background) / 255, reference)  # 127 is grey there
        network, processor = components.image_encoder(checkpoint, device, "vision_encoder", "feature_extractor_clip")
        with readable(checkpoint.folder):
            embedding = network(pixel_values(processor, picture).to(device)).image_embeds
        faint = pixel_values(components.image_processor(checkpoint, "feature_extractor_vae"), picture).to(device)
        latents, nothing = (self.base.autoencoder.mode(each) for each in (faint, torch.zeros_like(faint)))
        return replace(self, seen=Seen(embedding, latents, nothing, reference.camera.to(device)))

    @torch.no_grad()
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Words are not heard. Raises ValueError before a picture was shown, and for cameras other than the rig's."""
        del prompt, negative
        if (seen := self.seen) is None:
            raise ValueError("this prior draws what a picture shows, from other sides; show it one first, see `shown`")
        self.rig.check(pictures.cameras, seen.camera)
        tiles = len(pictures.kinds)
        silent = self.base.reader([""])["context"].to(seen.embedding)
        told = silent + seen.embedding[:, None] * self.ramp

        def words(context: Tensor, latents: Tensor) -> Words:
            return {
                "context": context.expand(tiles, -1, -1).to(self.network.dtype),
                "reference": latents.expand(tiles, -1, -1, -1),
            }

        return Conditions(words(told, seen.latents), words(silent, seen.background))

    def answer(
        self, network: Any, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words
    ) -> Prediction:
        """What this network or a changed one believes; differentiable. The views of a tile have one time.

        Raises ValueError for no full tile.
        """
        tiles, t = tiled(z_t), t[::VIEWS]
        noised = self.noised(condition["reference"].to(z_t), t)
        found = self.base.answer(network, tiles, t, condition | {"reference": noised})
        return Prediction(untiled(found.noise), untiled(found.clean))

    def noised(self, latents: Float[Tensor, "G C h w"], t: Float[Tensor, "G"]) -> Float[Tensor, "G C h w"]:
        """With noise that is fresh at every time, and the same whenever that comes again, under all conditions."""
        alpha, sigma = (each[:, None, None, None] for each in self.alpha_sigma(t))
        generator = torch.Generator().manual_seed(round(1e6 * float(t[0])))
        noise = torch.randn(latents.shape[1:], generator=generator).to(latents)
        return alpha * latents + sigma * noise


def tiled(views: Float[Tensor, "P C h w"]) -> Float[Tensor, "G C H W"]:
    """Six views each in three rows of two, the first on the top left. Raises ValueError for no multiple of six."""
    if len(views) % VIEWS:
        raise ValueError(f"{len(views)} pictures make no tile; this prior draws {VIEWS} together")
    apart = views.unflatten(0, (-1, ROWS, COLUMNS))
    return apart.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def untiled(tiles: Float[Tensor, "G C H W"]) -> Float[Tensor, "P C h w"]:
    """The views that these are the tiles of."""
    apart = tiles.unflatten(3, (COLUMNS, -1)).unflatten(2, (ROWS, -1))
    return apart.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def rig_of(folder: Path) -> Rig:
    """That of 1.1 where the innermost folder with "zero" in its name has "1.1" in it, too; that of 1.2 elsewhere."""
    named = [part for part in folder.absolute().parts if "zero" in part.lower()]
    return FIRST if named and "1.1" in named[-1] else SECOND


def check(checkpoint: Checkpoint) -> None:
    """That the components of such a checkpoint fit one another, by their headers. Raises UnreadablePrior."""
    folder = checkpoint.folder

    def told(part: str) -> Any:
        return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))

    with readable(folder):
        unet, ramp = told("unet"), checkpoint.index.get("ramping_coefficients")
        agreed(
            checkpoint,
            {
                "in_channels of the unet": (unet["in_channels"], told("vae")["latent_channels"]),
                "projection_dim of the vision_encoder": (
                    told("vision_encoder")["projection_dim"],
                    unet["cross_attention_dim"],
                ),
                "number of ramping_coefficients": (
                    len(ramp) if isinstance(ramp, list) and all(isinstance(each, float | int) for each in ramp) else 0,
                    told("text_encoder")["max_position_embeddings"],
                ),
            },
        )


def load(checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Zero123Plus:
    """Raises UnreadablePrior when a file is at fault."""
    base = text_to_image.load(checkpoint, device, dtype, told=("",))
    assert base.autoencoder
    plain = base.autoencoder
    autoencoder = replace(plain, shift=plain.shift + SHIFT / plain.scale, scale=SCALE * plain.scale)
    base = replace(base, autoencoder=autoencoder)
    ramp = torch.tensor(checkpoint.index["ramping_coefficients"], dtype=torch.float32, device=device)[:, None]
    whitened = "instantmesh" in str(checkpoint.folder.absolute()).lower()
    return Zero123Plus(base, ramp, rig_of(checkpoint.folder), WHITE if whitened else GREY)
