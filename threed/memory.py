"""How much memory a run takes, counted before it begins, and settings with which it takes less: `--vram`.

Under a checkpoint of others nearly all of it is the checkpoint's: its weights, and what the gradient through its
autoencoder has to keep. So a step is gone through on PyTorch's "meta" device, where tensors have shapes and no numbers,
and the bytes that would live at once are counted: attention as a fused kernel does it, which keeps no matrix, for heads
of up to 256 features, wider ones with the matrix. That is a count, not a measurement on a GPU: SLACK and CONTEXT stand
for what libraries take for themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from threed.distill.adapter import ATTENTION
from threed.distill.hub.checkpoint import Checkpoint, found, is_checkpoint, weight_files
from threed.distill.hub.text_to_image import Autoencoder, precision
from threed.distill.losses import LEARNING
from threed.errors import Mistake
from threed.recipe import Recipe, Stage
from threed.run import Thrift

CONTEXT = 0.6e9  # bytes: what CUDA holds for itself, or a program without its networks
SLACK = 1.1  # what allocators round up, and libraries use while they compute
PIXEL = 1300  # bytes of a scene for each pixel of a step, at most; benchmarks/memory.py counts them
FUSED = 256  # features of a head up to which attention is fused
COUNTED = tuple(
    f"{name}Pipeline" for name in ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "IF")
)
RANK = 4  # of an adapter
WORDS = {"unet": 77, "transformer": 512}  # tokens of a prompt


@dataclass(frozen=True)
class Footprint:
    """Bytes that a checkpoint takes for a picture."""

    weights: float
    kept: float  # from when the picture is encoded until its gradient is known
    encoding: float  # at most, while it is encoded and while its gradient is worked out
    denoising: float  # at most, beside what is kept
    learning: float = 0.0  # the same, where an adapter of the network learns


def planned(recipe: Recipe, prior: str, lora: str | None, device: str, gigabytes: float) -> tuple[Recipe, Thrift]:
    """The recipe, and how its prior is used, so that both fit; as little as that takes. Raises Mistake where none does.

    First gradients are worked out piece by piece, which changes no number beyond its rounding and takes longer; then
    the prior sees smaller pictures, which are worse. The embedded prior fits into any memory that a run may have.
    """
    if not is_checkpoint(prior):
        return recipe, Thrift(gigabytes)
    checkpoint = found(prior, lora)
    if checkpoint.kind not in COUNTED:
        raise Mistake(f"nobody has counted what {prior!r} takes ({checkpoint.family.about}); leave --vram out")
    own, step = sides(checkpoint)
    smaller = [side for side in (own * 3 // 4, own // 2) if side % step == 0 and checkpoint.family.latent]
    learns, needed = bool(recipe.learns) or any(isinstance(stage.loss, LEARNING) for stage in recipe.stages), []
    texts = sum(path.stat().st_size for path in _texts(checkpoint)) if recipe.learns else 0
    for thrift in (
        Thrift(gigabytes),
        Thrift(gigabytes, checkpointed=True),
        *(Thrift(gigabytes, True, side) for side in smaller),
    ):
        thrifty = frugal(recipe, thrift)
        bytes_ = footprint(checkpoint, torch.device(device), thrift.side or own, thrift.checkpointed, learns)
        needed.append(need(thrifty, bytes_, texts))
        if needed[-1] <= 1e9 * gigabytes:
            return thrifty, thrift
    raise Mistake(
        f"--vram is {gigabytes:g}, and recipe {recipe.name!r} with the prior {prior!r} takes "
        f"{min(needed) / 1e9:.1f} GB at least; use a smaller --prior, see: threed prior list, or another --recipe"
    )


def _texts(checkpoint: Checkpoint) -> list[Path]:
    """The files of its text encoders; a single file has all in it, and so counts too much."""
    parts = [part for part in checkpoint.texts if part.startswith("text_encoder")]
    return [checkpoint.weights] if checkpoint.weights else [p for part in parts for p in weight_files(checkpoint, part)]


def frugal(recipe: Recipe, thrift: Thrift) -> Recipe:
    """The recipe with scenes that spare memory as well."""
    if not thrift.checkpointed:
        return recipe

    def spared(stage: Stage) -> Stage:
        size = min(stage.scene.resolution, thrift.side or stage.scene.resolution)
        return replace(stage, scene=replace(stage.scene, resolution=size, deferred=True))

    return replace(recipe, stages=tuple(map(spared, recipe.stages)))


def need(recipe: Recipe, prior: Footprint, texts: int = 0) -> float:
    """Bytes at most, of any step of the recipe; `texts` of them those of text encoders, where a word is learned."""
    steps = [_step(stage, prior) for stage in recipe.stages]
    if learns := recipe.learns:
        judged = next(stage for stage in recipe.stages if stage.loss)
        drawn = judged.views.count * len(judged.kinds) if learns.network else 1
        steps.append(texts * bool(learns.word) + max(prior.learning * drawn, prior.encoding))
    if how := recipe.drawn:
        steps.append(len(how.rig) * len(how.kinds) * max(prior.denoising, prior.encoding))
    return SLACK * (prior.weights + max(steps, default=0.0)) + CONTEXT


def _step(stage: Stage, prior: Footprint) -> float:
    """Bytes of one step, beside weights: the scene is kept while the prior is asked, then the gradient goes back."""
    pixels = stage.views.count * stage.scene.resolution**2
    scene = float(PIXEL * pixels)
    if stage.loss is None:
        return scene
    asked = prior.learning if isinstance(stage.loss, LEARNING) else prior.denoising
    return scene + stage.views.count * len(stage.kinds) * max(prior.kept + asked, prior.encoding)


def applied(prior: Any, thrift: Thrift | None) -> Any:
    """The prior, used as thriftily as that says."""
    if thrift is None:
        return prior
    if thrift.checkpointed:
        for network in (prior.network, prior.autoencoder.network if prior.autoencoder else None):
            if network is not None:
                network.enable_gradient_checkpointing()
    return replace(prior, image_size=thrift.side or prior.image_size)


def sides(checkpoint: Checkpoint) -> tuple[int, int]:
    """Pixels a side of the pictures that a checkpoint was taught, and what a number of them must be a multiple of."""
    network, autoencoder = _networks(checkpoint)
    halvings = len(network.config.get("down_block_types") or ()) or 2  # a transformer takes patches of two
    if autoencoder is None:
        return network.config.sample_size, 2 ** (halvings - 1)
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    own = network.config.get("sample_size") or autoencoder.config.sample_size // factor
    return own * factor, factor * 2 ** (halvings - 1)


@cache
def footprint(
    checkpoint: Checkpoint, device: torch.device, side: int, checkpointed: bool, learns: bool = False
) -> Footprint:
    """Counted with networks of no numbers, in the precision in which they compute on this device."""
    from threed.distill.hub.components import autoencoder_dtype, quiet

    network, autoencoder = _networks(checkpoint)
    family, dtype = checkpoint.family, precision(checkpoint.family, device)
    with quiet():
        network.to(dtype)
        if autoencoder is not None:
            autoencoder.to(autoencoder_dtype(checkpoint, device, dtype))
        for each in (network, autoencoder):
            if checkpointed and each is not None:
                each.enable_gradient_checkpointing()
    known = [*network.parameters(), *(autoencoder.parameters() if autoencoder is not None else [])]
    kept = encoding = 0
    z_t = torch.empty(1, network.config.in_channels, side, side, dtype=dtype, device="meta")
    if autoencoder is not None:
        picture = torch.empty(1, 3, side, side, device="meta", requires_grad=True)
        with Live([*known, picture]) as live, fused_attention():
            latents = Autoencoder.of(autoencoder).encode(picture)
            kept = live.bytes
            latents.sum().backward()
        encoding, z_t = live.peak, torch.empty_like(latents, dtype=dtype)
    words = _words(network, dtype, WORDS[family.network])
    peaks = []
    for taught in (False, True)[: 1 + learns]:
        asked = _adapted(network) if taught else network
        with Live([*known, *asked.parameters(), z_t, *words.values()]) as live, fused_attention():
            with torch.set_grad_enabled(taught):
                answer = family.ask(asked, z_t, torch.empty(1, device="meta"), words, side)
            if taught:
                answer.sum().backward()
        peaks.append(live.peak)
    return Footprint(sum(each.nbytes for each in known), kept, encoding, *peaks)


def _adapted(network: Any) -> Any:
    """The network with what `distill.adapter` adds to it."""
    from peft import LoraConfig, inject_adapter_in_model

    changed = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION), network)
    for name, weight in changed.named_parameters():
        if "lora_" in name and weight.dtype == torch.float16:
            weight.data = weight.data.float()  # as there
    return changed


def _networks(checkpoint: Checkpoint) -> tuple[Any, Any | None]:
    """What denoises, and the autoencoder, as their configurations say, without numbers."""
    import diffusers

    from threed.distill.folder import readable
    from threed.distill.hub.components import quiet

    made = []
    with readable(checkpoint.folder), quiet(), torch.device("meta"):
        for part in (checkpoint.family.network, *(["vae"] if checkpoint.family.latent else [])):
            kind = getattr(diffusers, checkpoint.index[part][1])
            config = kind.load_config(checkpoint.folder / part, local_files_only=True)
            made.append(kind.from_config(config).eval().requires_grad_(False))
    return made[0], made[1] if made[1:] else None


def _words(network: Any, dtype: torch.dtype, tokens: int) -> dict[str, Tensor]:
    """As many numbers as the network hears of a prompt."""
    told = network.config
    wide = next(told[n] for n in ("encoder_hid_dim", "joint_attention_dim", "cross_attention_dim") if told.get(n))
    pooled = told.get("pooled_projection_dim") or 1
    if told.get("projection_class_embeddings_input_dim"):  # with six numbers of sizes and corners
        pooled = told.projection_class_embeddings_input_dim - 6 * told.addition_time_embed_dim
    return {
        "context": torch.empty(1, tokens, wide, dtype=dtype, device="meta"),
        "pooled": torch.empty(1, pooled, dtype=dtype, device="meta"),
    }


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations make in here and that still live; `peak` is the most at any time.

    It counts what PyTorch's allocator would be asked for, of tensors of any device, "meta" included.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` tensors were there before."""
        super().__init__()
        self.bytes = self.peak = 0
        self._known = {id(storage): storage for storage in (each.untyped_storage() for each in known)}
        self._seen = dict[int, Any]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._seen:
            return

        def gone(_: object) -> None:
            self.bytes -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention of tensors without numbers, as kernels do it that keep no matrix of all tokens by all tokens."""
    real = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
        if query.is_meta and query.shape[-1] <= FUSED:
            return _Attention.apply(query, key, value)
        return real(query, key, value, *others, **named)

    functional.scaled_dot_product_attention = attention  # a mode would not reach what is computed again
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])
