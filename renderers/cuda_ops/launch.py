"""How kernels are called from Python: the parameters that their source declares say what may be passed.

A const pointer takes any tensor of its type, copied if it is not contiguous; other pointers are written to and take
contiguous ones. `real` is the floating type of the first tensor that is passed for it; None is a null pointer.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from threed.renderers.cuda_ops import driver

# Products and sums are rounded one by one, so that every device decides alike what is inside, in front or occupied.
OPTIONS = ("--std=c++17", "--fmad=false")
TYPES: dict[str, tuple[torch.dtype, Any]] = {
    "bool": (torch.bool, None),
    "signed char": (torch.int8, None),
    "int": (torch.int32, ctypes.c_int32),
    "long long": (torch.int64, ctypes.c_int64),
    "unsigned long long": (torch.int64, None),  # PyTorch has few operations for unsigned numbers
    "float": (torch.float32, ctypes.c_float),
    "double": (torch.float64, ctypes.c_double),
}
NAMES = {torch.float32: "float", torch.float64: "double"}


@runtime_checkable
class Program(Protocol):
    """The compiled kernels of one source on one device."""

    def launch(self, kernel: str, count: int, rows: int, parameters: ctypes.Array[ctypes.c_void_p]) -> None: ...


LOADERS: dict[str, Callable[[str, Sequence[str], torch.device], Program]] = {"cuda": driver.Program}


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str  # as in the source, without const and *
    pointer: bool
    constant: bool


def launch(file: str, kernel: str, count: int, *arguments: Tensor | float | None, rows: int = 1, **macros: int) -> None:
    """Run a kernel of a source for `count` threads in each of `rows` rows; nothing if there are none.

    Raises TypeError and ValueError for arguments that are not what the kernel declares.
    """
    parameters = kernels(file)[kernel][1:]
    if len(parameters) != len(arguments):
        raise TypeError(f"{kernel} takes {len(parameters)} arguments, not {len(arguments)}")
    typed = zip(parameters, arguments, strict=True)
    real = next((a.dtype for p, a in typed if p.type == "real" and isinstance(a, Tensor)), torch.float32)
    if real not in NAMES:
        raise TypeError(f"{kernel} computes in float32 and float64, not {real}")
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if len({tensor.device for tensor in tensors}) != 1:
        raise ValueError(f"{kernel} of tensors on {', '.join(sorted({str(tensor.device) for tensor in tensors}))}")
    if not 0 <= rows < 2**16 or not 0 <= count < 2**39:
        raise ValueError(f"{kernel} for {rows} times {count} threads is more than a launch has")
    if count == 0 or rows == 0:
        return
    prepared = [prepare(*each, NAMES[real]) for each in zip(parameters, arguments, strict=True)]
    values = [ctypes.c_int64(count), *(value for value, _ in prepared)]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    program(file, NAMES[real], tuple(macros.items()), tensors[0].device).launch(kernel, count, rows, pointers)


def prepare(parameter: Parameter, argument: Tensor | float | None, real: str) -> tuple[ctypes._SimpleCData, object]:
    """The value to pass, and what must live until it is used."""
    kind = real if parameter.type == "real" else parameter.type
    dtype, scalar = TYPES[kind]
    if not parameter.pointer:
        if isinstance(argument, Tensor) or argument is None or scalar is None:
            raise TypeError(f"{parameter.name} is a number, not {type(argument).__name__}")
        value = scalar(argument)
        if isinstance(argument, int) and isinstance(value.value, int) and value.value != argument:
            raise OverflowError(f"{parameter.name} is {argument}, more than {kind} holds")
        return value, None
    if argument is None:
        return ctypes.c_void_p(), None
    if not isinstance(argument, Tensor) or argument.dtype != dtype:
        raise TypeError(f"{parameter.name} is a tensor of {dtype}, not {getattr(argument, 'dtype', argument)}")
    tensor = argument.detach()
    if not tensor.is_contiguous():
        if not parameter.constant:
            raise ValueError(f"{parameter.name} is written to, but not contiguous")
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return ctypes.c_void_p(tensor.data_ptr()), tensor


@cache
def program(file: str, real: str, macros: tuple[tuple[str, int], ...], device: torch.device) -> Program:
    """A source, compiled for a device once in the life of a process."""
    defined = [f"-D{name}={value}" for name, value in (("real", real), *macros)]
    return LOADERS[device.type](source(file), (*OPTIONS, *defined), device)


@cache
def source(file: str) -> str:
    folder = Path(__file__).parent
    return "".join((folder / name).read_text(encoding="utf-8") for name in ("prelude.cuh", f"{file}.cu"))


@cache
def kernels(file: str) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of a source and what they take."""
    found = re.findall(r"^KERNEL (\w+)\(([^)]*)\)", source(file), re.MULTILINE)
    return {name: tuple(map(_parameter, declared.split(","))) for name, declared in found}


def _parameter(declared: str) -> Parameter:
    match = re.fullmatch(r"(const )?([a-z ]+?)(\*?) (\w+)", " ".join(declared.split()))
    if match is None or match[2] not in {*TYPES, "real"}:
        raise ValueError(f"a kernel's parameter {declared!r}")
    return Parameter(match[4], match[2], bool(match[3]), bool(match[1]))
