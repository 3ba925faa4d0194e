"""Machine code on a CUDA device: loaded and launched through the driver, on PyTorch's device and stream."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from threed.renderers.cuda_ops.compiler import Unavailable, compiled, nvrtc

BLOCK = 256  # threads


class Program:
    """The kernels of one source, on one device."""

    def __init__(self, source: str, options: Sequence[str], device: torch.device) -> None:
        self._device = device
        image = compiled(source, architecture(device), options)
        self._module, self._functions = ctypes.c_void_p(), dict[str, ctypes.c_void_p]()
        with _context(device):
            _call("cuModuleLoadData", ctypes.byref(self._module), image)

    def launch(self, kernel: str, count: int, rows: int, parameters: ctypes.Array[ctypes.c_void_p]) -> None:
        """Start `count` threads in each of `rows` rows; PyTorch's stream waits for them, nobody else does."""
        with _context(self._device):
            if kernel not in self._functions:
                function = ctypes.c_void_p()
                _call("cuModuleGetFunction", ctypes.byref(function), self._module, kernel.encode())
                self._functions[kernel] = function
            grid, block = (-(-count // BLOCK), rows, 1), (BLOCK, 1, 1)
            stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
            _call("cuLaunchKernel", self._functions[kernel], *grid, *block, 0, stream, parameters, None)


def obstacle(device: torch.device) -> str | None:
    """Why kernels cannot run on a device, with the remedy; None if one could be compiled and loaded."""
    try:
        Program('extern "C" __global__ void nothing() {}', (), device)
    except RuntimeError as reason:  # Unavailable, or whatever the compiler or the driver complains of
        return str(reason)
    return None


def architecture(device: torch.device) -> str:
    """What to compile for. Raises Unavailable."""
    if not torch.cuda.is_available():
        raise Unavailable("PyTorch finds no CUDA device; see https://pytorch.org/get-started for a wheel with CUDA")
    major, minor = torch.cuda.get_device_capability(device)
    check_driver(version(), nvrtc().version)
    return nvrtc().architecture(10 * major + minor)


def check_driver(driver: tuple[int, int] | None, compiler: tuple[int, int]) -> None:
    """Raises Unavailable for a driver that is older than the machine code: any of the same major version runs it."""
    if driver is None:
        raise Unavailable("there is no NVIDIA driver; install it, or use --device cpu")
    if driver[0] < compiler[0]:
        raise Unavailable(
            f"the driver is for CUDA {driver[0]}.{driver[1]} and kernels are compiled for CUDA "
            f"{compiler[0]}.{compiler[1]}; update the driver, or install a PyTorch for CUDA {driver[0]}"
        )


def version() -> tuple[int, int] | None:
    """The CUDA version of the installed driver; None if there is none."""
    number = ctypes.c_int()
    try:
        _call("cuDriverGetVersion", ctypes.byref(number))
    except Unavailable:
        return None
    return number.value // 1000, number.value % 1000 // 10


@cache
def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise Unavailable(f"there is no {name}, NVIDIA's driver; install it, or use --device cpu") from error


def _call(name: str, *arguments: object) -> None:
    if code := getattr(_driver(), name)(*arguments):
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'error').decode()} ({code})")


@contextmanager
def _context(device: torch.device) -> Iterator[None]:
    """PyTorch's own context of the device, made current for this thread."""
    _call("cuCtxPushCurrent_v2", _primary(device))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@cache
def _primary(device: torch.device) -> ctypes.c_void_p:
    _call("cuInit", 0)
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(handle), _index(device))
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    return context


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
