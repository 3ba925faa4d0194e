"""`cuda_ops` without a GPU: the same sources, compiled by the C++ compiler, and the same Python up to the launch.

Importing it teaches `cuda_ops` to take tensors of the CPU. Sums are rounded as on a GPU, so that only the order in
which threads add to the same number, and the last bits of expm1, differ.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from threed.renderers import cuda_ops
from threed.renderers.cuda_ops import launch

HEADER = Path(__file__).with_suffix(".h")
COMPILER = shutil.which("g++") or shutil.which("clang++")
# A backend for a list of parameters, left out where there is no compiler.
CUDA = pytest.param(cuda_ops, id="cuda", marks=pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"))


class Program:
    """The kernels of one source, as functions of a shared library."""

    def __init__(self, source: str, options: Sequence[str], device: torch.device) -> None:
        del device
        self._library = built(source, tuple(option for option in options if option.startswith("-D")))

    def launch(self, kernel: str, count: int, rows: int, parameters: ctypes.Array[ctypes.c_void_p]) -> None:
        getattr(self._library, f"run_{kernel}")(ctypes.c_longlong(count), rows, parameters)


@cache
def built(source: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """A library with a function for every kernel, which takes what `cuLaunchKernel` does."""
    names = re.findall(r"^KERNEL (\w+)\(", source, re.MULTILINE)
    taken = "long long threads, unsigned rows, void** parameters"
    starts = [f'extern "C" void run_{name}({taken}) {{ run({name}, threads, rows, parameters); }}' for name in names]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        code, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        code.write_text("\n".join([f'#include "{HEADER}"', source, *starts, ""]))
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror", *macros]
        subprocess.run([str(COMPILER), *flags, str(code), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


launch.LOADERS["cpu"] = Program
