"""A device that is none: its tensors live in the CPU's memory, yet mix with those of the CPU no better than a GPU's do.

What would fail on a GPU for want of a copy fails here: operations on tensors of two devices, `numpy()`, random numbers
out of a generator of another device. Kernels of `cuda_ops` run as in `cuda_on_cpu`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import cuda_on_cpu
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from threed.renderers import ops
from threed.renderers.cuda_ops import launch

NAME = "lazy"  # a device that PyTorch knows, without any memory or operations
COPIES = ("_to_copy", "copy_")
INDEXED = ("index", "index_put", "index_put_")  # whose indices may be the CPU's


class There(Tensor):
    """A tensor of the device, and the numbers in it."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=NAME,
        )
        made.numbers = numbers
        return made

    def __getitem__(self, index: Any) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(
            tuple(torch.tensor(each) if isinstance(each, list | tuple) else each for each in parts)
        )

    def new_tensor(self, *of: Any, **how: Any) -> Tensor:
        return There(self.numbers.new_tensor(*of, **how))

    def tolist(self) -> Any:
        return self.numbers.tolist()  # a GPU is waited for

    def __repr__(self) -> str:
        return f"There({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return dispatched(function, arguments, named or {})


def dispatched(function: Any, arguments: Any, named: dict[str, Any]) -> Any:
    """What an operation gives: on the device if one of its tensors is, or if that is asked for."""
    flat, _ = tree_flatten((arguments, named))
    name = function.overloadpacket.__name__
    there = any(isinstance(each, There) for each in flat)
    met = (arguments[0], *arguments[2:]) if name in INDEXED and isinstance(arguments[0], There) else flat
    strangers = [each for each in met if isinstance(each, Tensor) and not isinstance(each, There) and each.dim()]
    wanted = named.get("device")
    wanted = None if wanted is None else torch.device(wanted).type
    if there and strangers and name not in COPIES:
        raise RuntimeError(f"{function} of tensors on two devices")
    if (there or wanted == NAME) and named.get("generator") is not None:
        raise RuntimeError(f"{function} out of a generator of the CPU")
    named = dict(named)
    if wanted == NAME:
        named["device"] = "cpu"
    result = function(*tree_map(numbers, arguments), **tree_map(numbers, named))
    if wanted == NAME or (there and wanted is None):
        result = tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, result)
    if function._schema.is_mutable and flat and isinstance(flat[0], Tensor) and not isinstance(result, tuple | list):
        return arguments[0]
    return result


def numbers(each: Any) -> Any:
    return each.numbers if isinstance(each, There) else each


class Factories(TorchDispatchMode):
    """Tensors that are made there."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return dispatched(function, arguments, named or {})


@contextlib.contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device's name, while it is there."""
    prepare = launch.prepare
    monkeypatch.setattr(launch, "prepare", lambda p, a, real: prepare(p, numbers(a), real))
    monkeypatch.setitem(launch.LOADERS, NAME, cuda_on_cpu.Program)
    chosen = ops.backend
    monkeypatch.setattr(ops, "backend", lambda device: "cuda_ops" if device.type == NAME else chosen(device))
    lower = torch.autocast  # which PyTorch does not have for every device
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, *of, **how: lower("cpu", enabled=False) if kind == NAME else lower(kind, *of, **how),
    )
    made = torch.tensor  # which no mode sees
    monkeypatch.setattr(torch, "tensor", lambda *of, device=None, **how: made(*of, **how).to(device or "cpu"))
    with Factories():
        yield NAME
