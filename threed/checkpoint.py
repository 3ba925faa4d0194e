"""Checkpoints: a nested state in one safetensors file, checked when it is read.

A state is a tree of dicts, lists and tuples whose leaves are tensors, numbers, strings, booleans and None: what
`state_dict()` of modules and optimizers return. The tensors lie in the file as safetensors, on the CPU; the tree,
with a name in place of every tensor, and a SHA-256 of it all lie in the file's header. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode
from torch import Tensor

from threed import disk

HEADER = "checkpoint"


class Torn(ValueError):
    """A checkpoint that is not what was written."""


def save(path: Path, state: Any) -> None:
    """Replace `path` as a whole. Raises OSError, and TypeError for a leaf that is no plain value."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(flatten(state, tensors))
    # One entry alone: safetensors orders several by chance, and the same state shall give the same bytes.
    header = json.dumps({"tree": tree, "sha256": digest(tree, tensors)})
    disk.write(path, encode(tensors, {HEADER: header}))


def load(path: Path) -> Any:
    """The state that `save` was given. Raises Torn when a byte differs, OSError when the file cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        intact = digest(header["tree"], tensors) == header["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Torn(f"{path} is no whole checkpoint: {error}") from error
    if not intact:
        raise Torn(f"{path} is no whole checkpoint: its checksum differs")
    return unflatten(json.loads(header["tree"]), tensors)


def flatten(state: Any, tensors: dict[str, Tensor]) -> Any:
    """`state` as JSON can hold it; its tensors move into `tensors`. Containers are tagged, so that they come back."""
    match state:
        case Tensor():
            name = f"{len(tensors):05d}"
            tensors[name] = state.detach().cpu().contiguous().clone()
            return {"tensor": name}
        case dict():
            return {"dict": [[flatten(key, tensors), flatten(value, tensors)] for key, value in state.items()]}
        case tuple():
            return {"tuple": [flatten(value, tensors) for value in state]}
        case list():
            return {"list": [flatten(value, tensors) for value in state]}
        case None | bool() | int() | float() | str():
            return state
    raise TypeError(f"cannot save a {type(state).__name__} ({state!r}); use tensors, numbers, strings, dicts and lists")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`."""
    match tree:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": items}:
            return {unflatten(key, tensors): unflatten(value, tensors) for key, value in items}
        case {"tuple": values}:
            return tuple(unflatten(value, tensors) for value in values)
        case {"list": values}:
            return [unflatten(value, tensors) for value in values]
    return tree


def digest(tree: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the tree and the bytes of every tensor; dtypes and shapes included."""
    total = hashlib.sha256(tree.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
