"""ControlNets and T2I-Adapters of depth and of normals: the scene's own shape steers a Stable Diffusion checkpoint.

A ControlNet is a copy of the encoder of the UNet that it was trained beside. It sees a map of what is to be drawn, and
what it makes of it is added to the UNet's skip connections, times a strength (Zhang et al. 2023, arXiv 2302.05543,
section 3.2), under every condition alike. A T2I-Adapter is a small network that sees nothing but the map; what it makes
of that is added within the UNet's encoder, once a level (Mou et al. 2023, arXiv 2302.08453). Here the map is drawn of
the scene as it is, see `distill.control`, so a prior that knows no cameras knows where the surface lies, and from which
side it is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.control import MAPS, ControlKind
from threed.distill.embedded import complete, quiet
from threed.distill.folder import UnreadablePrior, readable
from threed.distill.hub import download
from threed.distill.hub.checkpoint import ID, Checkpoint, header, weight_files
from threed.distill.hub.steered import showing
from threed.distill.hub.text_to_image import TextToImage, sized
from threed.distill.prior import Conditions, Pictures

CONFIG = "config.json"
STEERABLE = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
ALIKE = ("cross_attention_dim", "in_channels", "block_out_channels", "layers_per_block")  # of it and of its UNet


@dataclass(frozen=True)
class ControlNet:
    """One, or a T2I-Adapter, as what a checkpoint is shown; make one with `load`."""

    network: Any
    kind: ControlKind
    strength: float = 1.0

    def conditions(self, prior: TextToImage, pictures: Pictures, told: Conditions) -> Conditions:
        """Raises ValueError for pictures that do not say what they are of."""
        if pictures.scene is None:
            raise ValueError("a ControlNet needs a scene to look at; give the pictures one")
        drawn = MAPS[self.kind](pictures.scene(prior.image_size), pictures.cameras)
        return showing(told, sized(drawn.movedim(-1, 1), prior.image_size).repeat(len(pictures.kinds), 1, 1, 1))

    def seeing(self, network: Any, shown: Float[Tensor, "P 3 S S"]) -> Led:
        return Led(network, self, shown)

    def added(self, shown: Float[Tensor, "P 3 S S"], z_t: Tensor, timestep: Tensor, told: dict[str, Any]) -> Added:
        """What it makes of the map, by what diffusers' UNets call that."""
        return KINDS[type(self.network).__name__](self, shown.to(z_t.dtype), z_t, timestep, told)


@dataclass(frozen=True)
class Led:
    """A UNet with a ControlNet beside it, called as the UNet is."""

    network: Any
    control: ControlNet
    shown: Float[Tensor, "P 3 S S"]

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def __call__(self, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], **told: Any) -> Any:
        return self.network(z_t, timestep, **told, **self.control.added(self.shown, z_t, timestep, told))


def _beside(
    control: ControlNet, shown: Float[Tensor, "P 3 S S"], z_t: Tensor, timestep: Tensor, told: dict[str, Any]
) -> Added:
    down, middle = control.network(z_t, timestep, **told, controlnet_cond=shown, conditioning_scale=control.strength)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _within(
    control: ControlNet, shown: Float[Tensor, "P 3 S S"], z_t: Tensor, timestep: Tensor, told: dict[str, Any]
) -> Added:
    del z_t, timestep, told
    found = control.network(shown[:, : control.network.config.in_channels])  # one channel, where all are the same
    return {"down_intrablock_additional_residuals": [control.strength * each for each in found]}


Added = dict[str, Any]
KINDS: dict[str, Callable[[ControlNet, Tensor, Tensor, Tensor, dict[str, Any]], Added]] = {  # by diffusers' class
    "ControlNetModel": _beside,
    "T2IAdapter": _within,
}


def named(text: str) -> tuple[ControlKind, str]:
    """What "depth:NAME", "normal:NAME" or a name that says it means. Raises UnreadablePrior for one that does not."""
    said = next((kind for kind in MAPS if text.startswith(f"{kind}:")), None)
    if said:
        return said, text.removeprefix(f"{said}:")
    kinds = [kind for kind in MAPS if kind in Path(text).name.lower()]
    if len(kinds) != 1:
        raise UnreadablePrior(f"{text!r} does not say what it is steered by; write depth:{text} or normal:{text}")
    return kinds[0], text


def hub_id(name: str) -> str | None:
    """The id of the hub that this name is, if it is no path."""
    return name if ID.fullmatch(name) and not Path(name).exists() else None


def found(name: str) -> Path:
    """The folder of a ControlNet: on this machine, an id of the hub in its cache. Raises UnreadablePrior."""
    if known := hub_id(name):
        return download.cached(known, CONFIG)
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        raise UnreadablePrior(
            f"there is no ControlNet {name!r}; give a folder as diffusers saves one, with its {CONFIG}, or an id of "
            "the hub, see: threed prior list"
        )
    return folder.resolve()


def fetched(name: str, tell: Callable[[str], None]) -> Path:
    """The folder in the cache of an id, downloaded where anything lacks. Raises UnreadablePrior."""
    try:
        folder = download.cached(name, CONFIG)
        check_files(folder)
        return folder
    except UnreadablePrior:
        return download.downloaded(name, tell, needed)


def needed(files: Iterable[str]) -> list[str]:
    """Which of a repository's files are used. Raises UnreadablePrior for pickles alone."""
    weights = download.chosen([each for each in files if "/" not in each], "ControlNet")
    return [CONFIG, *weights]


def verify(folder: Path, base: Checkpoint) -> None:
    """That it is whole, and of a network like that of the checkpoint. Raises UnreadablePrior."""
    if base.kind not in STEERABLE:
        raise UnreadablePrior(
            f"{base.folder} is {base.family.about}, and --control steers Stable Diffusion 1, 2 and XL; leave it out"
        )
    check_files(folder)
    ours, theirs = (_config(path) for path in (folder, base.folder / base.family.network))
    for name, (own, wanted) in _alike(ours, theirs, base.kind == "StableDiffusionXLPipeline").items():
        if own != wanted:
            raise UnreadablePrior(
                f"the ControlNet {folder} is for another base than {base.folder}: its {name} is {own} and "
                f"should be {wanted}; use one that was trained for it"
            )


def _alike(ours: dict[str, Any], theirs: dict[str, Any], large: bool) -> dict[str, tuple[Any, Any]]:
    """By name, what two configurations say that has to be the same, of it and of its UNet."""
    if ours["_class_name"] != "T2IAdapter":
        return {name: (ours[name], theirs[name]) for name in ALIKE if name in ours and name in theirs}
    kind, widths, wanted = ours.get("adapter_type"), ours.get("channels", []), theirs.get("block_out_channels", [])
    small = kind if kind == "light_adapter" else "full_adapter"
    levels = min(len(widths), len(wanted))  # that of XL sees the middle, too, and a light one leaves it out
    return {
        "adapter_type": (kind, "full_adapter_xl" if large else small),
        "channels": (widths[:levels], wanted[:levels]),
    }


def check_files(folder: Path) -> None:
    """That its files are there, whole, safetensors, and a ControlNet's. Raises UnreadablePrior."""
    if (kind := _config(folder).get("_class_name")) not in KINDS:
        raise UnreadablePrior(f"{folder} is a {kind}, and --control wants a {' or a '.join(KINDS)}; use another folder")
    stored = {name: shape for path in _weights(folder) for name, shape in header(path).items()}
    for name, shape in _shapes(folder).items():
        if stored.get(name) != shape:
            raise UnreadablePrior(
                f"the ControlNet {folder} is not what its {CONFIG} says: {name!r} is {stored.get(name)} and should be "
                f"{shape}; copy the folder again"
            )


def load(folder: Path, kind: ControlKind, strength: float, prior: TextToImage) -> ControlNet:
    """For this prior, beside its network and as precise. Raises UnreadablePrior when a file is at fault."""
    import diffusers

    told = {"use_safetensors": True, "local_files_only": True, "torch_dtype": prior.network.dtype}
    with readable(folder), quiet():
        variant = Checkpoint(folder.parent).variant(folder.name)
        made = getattr(diffusers, _config(folder)["_class_name"])
        network, report = made.from_pretrained(folder, variant=variant, output_loading_info=True, **told)
        complete(report)
    return ControlNet(network.to(prior.network.device).eval().requires_grad_(False), kind, strength)


def _weights(folder: Path) -> list[Path]:
    """Its files lie as those of one part of a checkpoint, which is the folder around it."""
    return weight_files(Checkpoint(folder.parent), folder.name)


def _shapes(folder: Path) -> dict[str, list[int]]:
    """What its configuration says that its weights are. Raises UnreadablePrior."""
    return {name: list(value.shape) for name, value in blank(folder).state_dict().items()}


def blank(folder: Path) -> Any:
    """The network that a folder's configuration says, without weights. Raises UnreadablePrior."""
    import diffusers

    config = _config(folder)
    with readable(folder), quiet(), torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config).eval()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadablePrior(f"cannot read {path}: {error}; copy the folder again") from error
    if not isinstance(told, dict):
        raise UnreadablePrior(f"cannot read {path}: it is no table; copy the folder again")
    return told
