"""Whether the parts of a checkpoint are what their configurations say, and fit one another: by headers, in a second."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from threed.distill.embedded import PREDICTIONS
from threed.distill.folder import UnreadablePrior
from threed.distill.hub.checkpoint import Checkpoint, blank, header, weight_files

WIDTHS = ("encoder_hid_dim", "joint_attention_dim", "cross_attention_dim", "context_dim")  # of what a network hears


def check(checkpoint: Checkpoint) -> None:
    """Raises UnreadablePrior."""
    family = checkpoint.family
    told = {part: table(checkpoint, part) for part in (*checkpoint.parts, "scheduler")}
    if not checkpoint.weights:
        check_network(checkpoint, family.network)
        if family.latent:
            check_autoencoder(checkpoint)
    agreed(checkpoint, _latents(checkpoint, told) | _texts(checkpoint, told))
    if (kind := told["scheduler"].get("prediction_type", "epsilon")) not in {*PREDICTIONS, "flow_prediction"}:
        raise UnreadablePrior(
            f"the scheduler of {checkpoint.folder} says that its network predicts {kind!r}, which nobody knows; use "
            "another checkpoint"
        )


def table(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """All that the JSON files of a part say. Raises UnreadablePrior for one that is no table."""
    found = dict[str, Any]()
    for path in sorted((checkpoint.folder / part).glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnreadablePrior(f"cannot read {path}: {error}; copy the checkpoint's folder again") from error
        if not isinstance(told, dict):  # which diffusers would take for the name of a checkpoint on the hub
            raise UnreadablePrior(f"cannot read {path}: it is no table; copy the checkpoint's folder again")
        if path.name in ("config.json", "scheduler_config.json"):
            found |= told
    return found


def check_network(checkpoint: Checkpoint, part: str) -> None:
    """That weights have the names and shapes that the configuration says. Raises UnreadablePrior."""
    stored = _stored(checkpoint, part)
    network, names = _built(checkpoint, part)
    wanted = {names.get(key, key): list(value.shape) for key, value in network.state_dict().items()}
    wrong = next((key for key, shape in wanted.items() if stored.get(key) != shape), None)
    if wrong is not None:
        raise UnreadablePrior(
            f"the {part} of {checkpoint.folder} is not what its config.json says: {wrong!r} is {stored.get(wrong)} and "
            f"should be {wanted[wrong]}; the folder mixes two checkpoints, copy it again"
        )
    if checkpoint.family.foreign and (more := stored.keys() - wanted.keys()):
        raise UnreadablePrior(
            f"the {part} of {checkpoint.folder} has {min(more)!r}, which {checkpoint.family.about} has not; use "
            "another checkpoint"
        )


def check_autoencoder(checkpoint: Checkpoint) -> None:
    """That there are weights of all shapes: older files have other names, by which diffusers knows them."""
    network, _ = _built(checkpoint, "vae")
    wanted = Counter(tuple(each.shape) for each in network.parameters())
    if lacking := wanted - Counter(map(tuple, _stored(checkpoint, "vae").values())):
        raise UnreadablePrior(
            f"the vae of {checkpoint.folder} is not what its config.json says: it has {lacking.total()} weights less, "
            f"such as one of {list(min(lacking))}; the folder mixes two checkpoints, copy it again"
        )


def agreed(checkpoint: Checkpoint, fit: dict[str, tuple[Any, Any]]) -> None:
    """That what was found is what is wanted. Raises UnreadablePrior."""
    for what, (found, wanted) in fit.items():
        if found != wanted:
            raise UnreadablePrior(
                f"{checkpoint.folder} cannot be {checkpoint.family.about}: the {what} is {found} and should be "
                f"{wanted}; copy the checkpoint's folder again, or use another, see: threed prior list"
            )


def _latents(checkpoint: Checkpoint, told: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """That the network denoises what the autoencoder makes."""
    family = checkpoint.family
    channels, latents = told[family.network].get("in_channels"), told.get("vae", {}).get("latent_channels")
    if family.network != "unet" or family.shown or channels is None or latents is None:  # transformers take patches
        return {}
    return {"in_channels of the unet": (channels, (1 + family.edits) * latents)}


def _texts(checkpoint: Checkpoint, told: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """That the network hears what the text encoders say: T5 where there is one, or else all CLIPs side by side."""
    network = checkpoint.family.network
    readers = [told[part] for part in checkpoint.texts if part.startswith("text_encoder")]
    t5, clip = ([each[name] for each in readers if name in each] for name in ("d_model", "hidden_size"))
    said = t5[0] if t5 else sum(clip) if network == "unet" else None
    heard = next((told[network][name] for name in WIDTHS if told[network].get(name)), None)
    return {"width of what its text encoders say": (said, heard)} if said and isinstance(heard, int) else {}


def _stored(checkpoint: Checkpoint, part: str) -> dict[str, list[int]]:
    return {name: shape for path in weight_files(checkpoint, part) for name, shape in header(path).items()}


def _built(checkpoint: Checkpoint, part: str) -> tuple[Any, dict[str, str]]:
    """The network that the configuration says, without weights. Raises UnreadablePrior."""
    try:
        return blank(checkpoint, part)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UnreadablePrior(
            f"cannot build the {part} of {checkpoint.folder}: {error}; copy the checkpoint's folder again"
        ) from error
