"""What the machine offers to this process: cores, memory, a GPU. Threads are set here; a training shares them out."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from threed.errors import Crowded, Mistake

MEMORY = 2e9  # bytes a run may take


def cores() -> int:
    """Physical cores this process may use: its CPU set, hyper-threads counted once, within a container's quota."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    siblings = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(siblings), _quota()))


def set_threads() -> int:
    """One thread a core, for PyTorch and for the numba kernels, which follow it; OMP_NUM_THREADS overrules.

    Numbers too small for a normalised float32 become zero in all threads that are made from here on: gradients hold
    many, and with them a CPU is up to eight times slower.
    """
    torch.set_flush_denormal(True)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())
    return torch.get_num_threads()


def peak_memory() -> int | None:
    """The most bytes this process has held in memory so far; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in kilobytes


def total_memory() -> int | None:
    """Bytes of memory this process may use, a container's limit included; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def gpu_memory() -> int:
    """Bytes of memory of the CUDA device."""
    return int(torch.cuda.get_device_properties().total_memory)


def check_gpu() -> None:
    """Raises Mistake where no CUDA device is there, or PyTorch has no machine code for it, or its memory is small."""
    if not torch.cuda.is_available():
        raise Mistake("PyTorch finds no CUDA device on this machine; use --device cpu")
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    able = [int(digits) for each in torch.cuda.get_arch_list() if (digits := re.sub(r"\D", "", each))]
    if able and 10 * major + minor < min(able):
        raise Mistake(
            f"{name} has compute capability {major}.{minor} and this PyTorch needs {min(able) / 10}; use --device cpu, "
            "or a PyTorch for an older CUDA"
        )
    if (total := gpu_memory()) < MEMORY:
        raise Mistake(f"{name} has {total / 1e9:.1f} GB and a run takes up to {MEMORY / 1e9:.0f} GB; use --device cpu")


@contextmanager
def memory_of(device: str, remedy: str) -> Iterator[None]:
    """A GPU's memory that is full in here becomes a Crowded with this remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Crowded(f"the memory of {device!r} is full; {remedy}") from error


def _siblings(cpu: int) -> str:
    """The hyper-threads that share this CPU's core."""
    return _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _quota() -> int:
    """Whole cores that a container's time quota leaves busy (cgroup 2, cpu.max: microseconds of every period)."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return math.ceil(int(quota) / int(period)) if quota.isdigit() else sys.maxsize


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
