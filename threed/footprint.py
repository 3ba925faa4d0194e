"""What a checkpoint takes for a picture, counted with its networks as their configurations say, without numbers.

A step is gone through on PyTorch's "meta" device, where tensors have shapes alone, and the bytes that would live at
once are counted: attention as a fused kernel does it, which keeps no matrix, for heads of up to 256 features, wider
ones with the matrix. Pictures that are denoised together are counted together, and shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threed.distill.adapter import ATTENTION
from threed.distill.hub.checkpoint import Checkpoint, blank
from threed.distill.hub.text_to_image import Autoencoder, precision
from threed.live import Live, attending

RANK = 4  # of an adapter
TOKENS = {"unet": 77, "transformer": 512}  # of a prompt
SHOWN = 400  # bytes for each pixel of what a checkpoint is shown, at most; benchmarks/memory.py counts them


@dataclass(frozen=True)
class Footprint:
    """Bytes that a checkpoint takes for a picture."""

    weights: float
    kept: float  # from when the picture is encoded until its gradient is known
    encoding: float  # at most, while it is encoded and while its gradient is worked out
    denoising: float  # at most, beside what is kept
    learning: float = 0.0  # the same, where an adapter of the network learns
    drawing: float = 0.0  # at most, while it is denoised and decoded, and no gradient is asked for
    texts: float = 0.0  # of text encoders, which have gone when the weights come
    images: float = 0.0  # of the network that reads a picture, beside the weights
    rigged: int = 0  # pictures that are drawn from cameras of its own


@cache
def footprint(
    checkpoint: Checkpoint,
    device: torch.device,
    side: int,
    checkpointed: bool,
    learns: bool = False,
    control: Path | None = None,
) -> Footprint:
    """In the precision in which networks compute on this device; `control` is a ControlNet's folder."""
    family, dtype = checkpoint.family, precision(checkpoint.family, device)
    network, autoencoder, beside = _networks(checkpoint, device, dtype, control)
    for each in (network, autoencoder):
        if checkpointed and each is not None:
            each.enable_gradient_checkpointing()
    known = [p for each in (network, autoencoder, beside) if each is not None for p in each.parameters()]
    pictures, rows, columns = family.group
    shape = pictures // (rows * columns), rows * side, columns * side  # of what goes through the networks
    with attending(device):
        coding = (
            Coding.of(autoencoder, known, shape) if autoencoder else Coding((network.config.in_channels, *shape[1:]))
        )
        z_t = torch.empty(shape[0], *coding.latent, dtype=dtype, device="meta")
        words = _words(network, z_t, TOKENS[family.network], (rows, columns))

        def asked(network: Any) -> Tensor:
            sees = _seeing(network, beside, family.edits, z_t, side)
            answer: Tensor = family.ask(sees, z_t, torch.empty(len(z_t), device="meta"), words, side)
            return answer

        there = [*known, z_t, *words.values()]
        denoising, learning = _most(there, lambda: asked(network)), 0
        if learns:
            taught = _adapted(network)
            with Live([*there, *taught.parameters()]) as live:
                asked(taught).sum().backward()
            learning = live.peak
    telling = pictures * SHOWN * side**2 * (family.edits or beside is not None) + coding.looking * family.edits
    return Footprint(
        weights=sum(each.nbytes for each in known),
        kept=coding.kept / pictures,
        encoding=coding.encoding / pictures,
        denoising=max(denoising, telling) / pictures,
        learning=learns * max(learning, telling) / pictures,
        drawing=max(denoising, coding.decoding) / pictures,
        texts=sum(_numbers(checkpoint, part) for part in checkpoint.texts) * dtype.itemsize,
        images=sum(_numbers(checkpoint, part) for part in family.beside) * torch.float32.itemsize,
        rigged=pictures if family.rigged else 0,
    )


@dataclass(frozen=True)
class Coding:
    """Bytes that the autoencoder takes for a group of pictures; none where there is none."""

    latent: tuple[int, ...]  # the shape of what it makes of a picture
    kept: int = 0
    encoding: int = 0
    looking: int = 0  # at most, while they are encoded and no gradient is asked for
    decoding: int = 0  # at most, the same

    @staticmethod
    def of(network: Any, known: list[Tensor], shape: tuple[int, int, int]) -> Coding:
        """Of so many pictures, so high and wide."""
        coder, (count, *size) = Autoencoder.of(network), shape
        pictures = torch.empty(count, 3, *size, device="meta", requires_grad=True)
        with Live([*known, pictures]) as live:
            latents = coder.encode(pictures)
            kept = live.bytes
            latents.sum().backward()
        looking = _most([*known, pictures], lambda: coder.encode(pictures))
        decoding = _most([*known, latents], lambda: coder.decode(latents))
        return Coding(tuple(latents.shape[1:]), kept, live.peak, looking, decoding)


def sides(checkpoint: Checkpoint) -> tuple[int, int]:
    """Pixels a side of the pictures that a checkpoint was taught, and what a number of them must be a multiple of."""
    network, autoencoder = _blank(checkpoint, checkpoint.family.network), _autoencoder(checkpoint)
    halvings = len(network.config.get("down_block_types") or ()) or 2  # a transformer takes patches of two
    if autoencoder is None:
        return network.config.sample_size, 2 ** (halvings - 1)
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    own = network.config.get("sample_size") or autoencoder.config.sample_size // factor
    return min(own * factor, checkpoint.family.pixels or own * factor), factor * 2 ** (halvings - 1)


def _most(known: Iterable[Tensor], work: Callable[[], object]) -> int:
    """Bytes at most, beside what is known, while this is done and no gradient is asked for."""
    with Live(known) as live, torch.no_grad():
        work()
    return live.peak


def _networks(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, control: Path | None
) -> tuple[Any, Any | None, Any | None]:
    """What denoises, the autoencoder, and the ControlNet."""
    from threed.distill.hub import controlnet
    from threed.distill.hub.components import autoencoder_dtype, quiet

    network, autoencoder = _blank(checkpoint, checkpoint.family.network), _autoencoder(checkpoint)
    beside = None if control is None else controlnet.blank(control).requires_grad_(False)
    if attends := checkpoint.family.attends:
        network.set_attn_processor(attends())
    with quiet():
        for each in (network, beside):
            if each is not None:
                each.to(dtype)
        if autoencoder is not None:
            autoencoder.to(autoencoder_dtype(checkpoint, device, dtype))
    return network, autoencoder, beside


def _autoencoder(checkpoint: Checkpoint) -> Any | None:
    return _blank(checkpoint, "vae") if checkpoint.family.latent else None


def _blank(checkpoint: Checkpoint, part: str) -> Any:
    from threed.distill.folder import readable
    from threed.distill.hub.components import quiet

    with readable(checkpoint.folder), quiet():
        return blank(checkpoint, part)[0].eval().requires_grad_(False)


def _numbers(checkpoint: Checkpoint, part: str) -> int:
    """How many a network has that reads; none for what only prepares what it reads."""
    if "encoder" not in part:
        return 0
    return sum(each.numel() for each in _blank(checkpoint, part).parameters())


def _adapted(network: Any) -> Any:
    """The network with what `distill.adapter` adds to it."""
    from peft import LoraConfig, inject_adapter_in_model

    changed = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION), network)
    for name, weight in changed.named_parameters():
        if "lora_" in name and weight.dtype == torch.float16:
            weight.data = weight.data.float()  # as there
    return changed


def _words(network: Any, z_t: Tensor, tokens: int, tile: tuple[int, int]) -> dict[str, Tensor]:
    """As many numbers as a network may be told of every one of these latents, by what any `Family.ask` looks for."""
    told = network.config
    wide = next(told[n] for n in ("encoder_hid_dim", "joint_attention_dim", "cross_attention_dim") if told.get(n))
    labels, pooled = told.get("projection_class_embeddings_input_dim"), told.get("pooled_projection_dim")
    if told.get("addition_time_embed_dim"):  # with six numbers of sizes and corners
        pooled = labels - 6 * told.addition_time_embed_dim
    count, channels, height, width = z_t.shape
    return {
        "context": z_t.new_empty(count, tokens, wide),
        "pooled": z_t.new_empty(count, pooled or 1),
        "reference": z_t.new_empty(count, channels, height // tile[0], width // tile[1]),
        "camera": z_t.new_empty(1, count, labels or 1),
    }


def _seeing(network: Any, control: Any | None, edits: bool, z_t: Tensor, side: int) -> Any:
    """The network, and what it is shown beside the latents."""
    from threed.distill.hub.controlnet import ControlNet
    from threed.distill.hub.instruct import Beside

    if control is not None:
        return ControlNet(control, "depth").seeing(network, z_t.new_empty(len(z_t), 3, side, side, dtype=torch.float32))
    return Beside(network, torch.empty_like(z_t)) if edits else network
