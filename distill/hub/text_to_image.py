"""Any text-to-image checkpoint of diffusers as a prior: Stable Diffusion 1, 2, XL and 3, Flux, DeepFloyd IF.

z_t, its time and what was read of the prompts go to the checkpoint's network as its own pipeline would send them; what
comes back, noise, velocity or flow, becomes a `Prediction`. Latents are those of its autoencoder, shifted and scaled as
its configuration says, and the mean of its posterior: nothing in `encode` is random. Pictures of any size are enlarged
to the checkpoint's own.

Such a prior is told no cameras, so name views in words, see `distill.worded`, and denoises every picture of a group by
itself. MVDream is told cameras and denoises the views of a group together, see `mvdream`. Normals are pictures to all
of them, as Fantasia3D shows them (Chen et al. 2023, arXiv 2303.13873, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from threed.distill.embedded import PREDICTIONS, compute_dtype
from threed.distill.folder import readable
from threed.distill.hub import components
from threed.distill.hub.checkpoint import Checkpoint, verify
from threed.distill.hub.families import Family, Words
from threed.distill.hub.schedule import Discrete, Straight, schedule_of
from threed.distill.hub.words import Reader
from threed.distill.prior import (
    Conditions,
    Kind,
    Pictures,
    Prediction,
    Prompt,
    from_pixels,
    pixels,
    prediction_from,
)
from threed.distill.word import Word

if TYPE_CHECKING:
    from threed.distill.adapter import LoRA


@dataclass(frozen=True)
class TextToImage:
    """A checkpoint as a prior; make one with `load`."""

    family: Family
    network: Any
    autoencoder: Autoencoder | None  # without one, latents are pixels
    schedule: Discrete | Straight
    predicts: Kind
    image_size: int
    reader: Reader
    kinds: tuple[str, ...] = field(default=("albedo", "shaded", "normal"), init=False)

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.schedule.alpha_sigma(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        """Raises ValueError for pictures that are not square."""
        height, width = image.shape[1:3]
        if height != width:
            raise ValueError(f"pictures are {width} x {height}; render square ones")
        picture = sized(pixels(image), self.image_size)
        return self.autoencoder.encode(picture) if self.autoencoder else picture

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        return from_pixels(self.autoencoder.decode(latents) if self.autoencoder else latents)

    def read(self, prompts: Sequence[str]) -> None:
        """Read these and what every group is told, so that the text encoders are loaded once."""
        self.reader.read([*prompts, ""])

    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Raises ValueError for too long a prompt, and for more or fewer prompts than pictures."""
        count = len(pictures)
        if not isinstance(prompt, str) and len(prompt) != count:
            raise ValueError(f"there are {len(prompt)} prompts for {count} pictures; give one, or one for each")

        views = self.family.views(pictures) if self.family.views else {}

        def told(prompt: Prompt) -> Words:
            return self.reader([prompt] * count if isinstance(prompt, str) else prompt) | views

        return Conditions(told(prompt), told(""), told(negative) if negative.strip() else None)

    @torch.no_grad()
    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words) -> Prediction:
        return self.answer(self.network, z_t, t, condition)

    def answer(
        self, network: Any, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words
    ) -> Prediction:
        """What this network or a changed one believes; differentiable."""
        timestep = self.schedule.timestep(t)
        output = self.family.ask(network, z_t.to(network.dtype), timestep, condition, self.image_size)
        return prediction_from(self.predicts, output.to(z_t.dtype), z_t, *self.alpha_sigma(t))

    def adapter(self, rank: int, rate: float, seed: int) -> LoRA:
        """One that says what this prior says until it is trained; see `distill.vsd`."""
        from threed.distill.adapter import LoRA

        return LoRA(self, rank, rate, seed)

    def beginning(self, prompt: str, count: int) -> Word:
        return self.reader.beginning(prompt, count)

    def knowing(self, word: Word) -> TextToImage:
        return replace(self, reader=self.reader.knowing(word))

    def thinking(self, network: Any) -> TextToImage:
        return replace(self, network=network)


@dataclass(frozen=True)
class Autoencoder:
    """Pictures in [-1, 1] and latents of about unit variance (Rombach et al. 2022, arXiv 2112.10752, section 3.1)."""

    network: Any
    shift: Float[Tensor, "C 1 1"] | float
    scale: Float[Tensor, "C 1 1"] | float

    @staticmethod
    def of(network: Any) -> Autoencoder:
        """Latents are (z - shift) scale; of some checkpoints every channel has its own."""
        config, mean, std = network.config, network.config.get("latents_mean"), network.config.get("latents_std")
        if mean is None or std is None:
            return Autoencoder(network, config.get("shift_factor") or 0.0, config.scaling_factor)
        mean, std = (torch.tensor(each, device=network.device).view(-1, 1, 1) for each in (mean, std))
        return Autoencoder(network, mean, config.scaling_factor / std)

    def encode(self, picture: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P C h w"]:
        return (self.mode(picture) - self.shift) * self.scale

    def mode(self, picture: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P C h w"]:
        """The most likely of the posterior, which is its mean, neither shifted nor scaled."""
        return self.network.encode(picture.to(self.network.dtype)).latent_dist.mode().to(picture.dtype)

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P 3 H W"]:
        z = self.unscaled(latents).to(self.network.dtype)
        return self.network.decode(z, return_dict=False)[0].to(latents.dtype)

    def unscaled(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P C h w"]:
        """As the network itself has them."""
        return latents / self.scale + self.shift


def sized(picture: Float[Tensor, "P C S S"], side: int) -> Float[Tensor, "P C side side"]:
    """The same in so many pixels a side."""
    if picture.shape[-1] == side:
        return picture
    return interpolate(picture, (side, side), mode="bilinear", antialias=picture.shape[-1] > side)


def load(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    told: Sequence[str] = (),
) -> TextToImage:
    """What it will be `told` is read first, so that the text encoders have gone when the other networks come.

    Raises UnreadablePrior when a file is at fault, and ValueError for too long a prompt.
    """
    verify(checkpoint)
    family, device = checkpoint.family, torch.device(device)
    dtype = dtype or precision(family, device)
    reader = Reader(checkpoint, device, dtype)
    if told:
        reader.read([*told, ""])
    pipeline = components.denoiser(checkpoint, device, dtype)
    network, scheduler = getattr(pipeline, family.network).to(memory_format=layout(device, dtype)), pipeline.scheduler
    with readable(checkpoint.folder):
        factor = pipeline.vae_scale_factor if family.latent else 1
        side = network.config.get("sample_size") or pipeline.vae.config.sample_size // factor  # Flux's network has none
        schedule = schedule_of(scheduler, tokens=(side // 2) ** 2, device=device)
        predicts: Kind = "flow" if isinstance(schedule, Straight) else PREDICTIONS[scheduler.config.prediction_type]
    if family.attends:
        network.set_attn_processor(family.attends())
    autoencoder = Autoencoder.of(pipeline.vae) if family.latent else None
    pixels = min(side * factor, family.pixels or side * factor)
    return TextToImage(family, network, autoencoder, schedule, predicts, pixels, reader)


def compiled(prior: TextToImage, backend: str | Callable[..., Any] = "inductor") -> TextToImage:
    """The same: when its network is first asked, and after another size, it becomes a program (torch.compile)."""
    prior.network.compile(backend=backend)
    return prior


def layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Channels last where tensor cores take convolutions so; on CPUs group normalisation is ten times slower then."""
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.channels_last if device.type == "cuda" and half else torch.contiguous_format


def precision(family: Family, device: torch.device) -> torch.dtype:
    """Half on CUDA, as the family was published where the hardware has it; on others what they compute natively."""
    if device.type != "cuda":
        return compute_dtype(device)
    if family.half == torch.bfloat16 and compute_dtype(device) != torch.bfloat16:
        return torch.float16
    return family.half
