"""CUDA C to machine code with NVRTC, which comes with PyTorch's CUDA wheels; nobody needs a toolkit.

What was compiled is kept in the user's cache folder. A file there that is not what was written is compiled anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

LIMIT = 2**26  # bytes; no compiled source comes near


class Unavailable(RuntimeError):
    """Why CUDA kernels cannot run here, with the remedy."""


class Compiler:
    """NVRTC: its version, and the compute capabilities (90 is 9.0) that it compiles for."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        capabilities = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", capabilities)
        self.capabilities = tuple(sorted(capabilities))

    def architecture(self, capability: int) -> str:
        """What to compile for, so that a device of this capability runs it. Raises Unavailable."""
        able = [each for each in self.capabilities if each <= capability]
        if not able:
            raise Unavailable(
                f"compute capability {capability / 10} is too old for NVRTC {self.version[0]}.{self.version[1]}, which "
                f"starts at {self.capabilities[0] / 10}; use a newer GPU, a PyTorch for an older CUDA, or --device cpu"
            )
        # Machine code runs on its own generation alone; for one that is yet to come, the driver translates PTX.
        return f"{'sm' if able[-1] // 10 == capability // 10 else 'compute'}_{able[-1]}"

    def compile(self, source: str, architecture: str, options: Sequence[str]) -> tuple[bytes, str]:
        """Machine code, or PTX for a compute_ architecture, and what the compiler says. Raises RuntimeError."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), None, 0, None, None)
        try:
            given = [each.encode() for each in (f"--gpu-architecture={architecture}", *options)]
            failed = self._library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
            log = self._read(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode()
            if failed:
                raise RuntimeError(f"NVRTC {self.version} does not compile for {architecture}:\n{log}")
            kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
            return self._read(program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}"), log
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, size: str, content: str) -> bytes:
        length = ctypes.c_size_t()
        self._call(size, program, ctypes.byref(length))
        buffer = ctypes.create_string_buffer(length.value)
        self._call(content, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, name)
        if code := function(*arguments):
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {self._library.nvrtcGetErrorString(code).decode()}")


@cache
def nvrtc() -> Compiler:
    """The compiler that belongs to this PyTorch. Raises Unavailable."""
    for path in [*_libraries(), *_NAMES]:
        try:
            return Compiler(_loaded(path))
        except (OSError, AttributeError):  # not there, or too old to be asked
            continue
    wheel = "nvidia-cuda-nvrtc-cu12" if (torch.version.cuda or "").startswith("12.") else "nvidia-cuda-nvrtc"
    raise Unavailable(f"there is no NVRTC, the compiler of CUDA kernels; pip install {wheel}")


_NAMES = (
    ("nvrtc64_130_0.dll", "nvrtc64_120_0.dll")
    if sys.platform == "win32"
    else ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
)


def _libraries() -> list[str]:
    """NVRTC among the installed packages, that of PyTorch's own CUDA first."""
    pattern = "nvrtc64_*_0.dll" if sys.platform == "win32" else "libnvrtc.so.*"
    found = [str(path) for folder in _folders() for path in sorted(folder.rglob(pattern))]
    own = (torch.version.cuda or "").partition(".")[0]
    return sorted(found, key=lambda path: re.findall(r"nvrtc(?:64_|\.so\.)(\d\d)", Path(path).name) != [own])


def _folders() -> Iterator[Path]:
    nvidia = importlib.util.find_spec("nvidia")
    yield from map(Path, (nvidia and nvidia.submodule_search_locations) or ())
    yield Path(torch.__file__).parent / "lib"


def _loaded(path: str) -> ctypes.CDLL:
    if sys.platform == "win32" and os.path.isabs(path):
        os.add_dll_directory(os.path.dirname(path))  # where its built-in headers are
    return ctypes.CDLL(path)


def compiled(source: str, architecture: str, options: Sequence[str]) -> bytes:
    """What NVRTC makes of a source, from the cache folder if it is there."""
    compiler = nvrtc()
    made_of = [source, architecture, *options, *map(str, compiler.version)]
    path = cache_folder() / f"{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()}.bin"
    kept = _read(path)
    if kept is None:
        kept, _ = compiler.compile(source, architecture, options)
        _write(path, kept)
    return kept


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    home = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "threed" / "kernels"


def _read(path: Path) -> bytes | None:
    """What `_write` wrote; None if it is not there, or not that."""
    try:
        with path.open("rb") as file:
            digest, content = file.read(32), file.read(LIMIT)
    except OSError:
        return None
    return content if hashlib.sha256(content).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    """All or nothing; where nothing can be written, the next process compiles again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)
    except OSError:
        return
