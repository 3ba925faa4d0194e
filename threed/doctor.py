"""`threed doctor`: what this machine offers to a run, one line a fact, each with its remedy.

OK is fine, NOTE is worth knowing (a run works), FAIL stops a run.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from threed import __version__

if TYPE_CHECKING:
    import torch

TESTED = {
    "torch": "2.13.0",
    "numba": "0.68.1",
    "numpy": "2.4.6",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "safetensors": "0.8.0",
    "scipy": "1.17.1",
    "scikit-image": "0.26.0",
    "trimesh": "5.2.0",
    "xatlas": "0.0.11",
    "fast-simplification": "0.2.0",
    "pillow": "13.0.0",
}  # constraints.txt has them all
DISK = 200e6  # bytes of a run folder and of compiled kernels, with room to spare
COLOURS = {"OK": "green", "NOTE": "yellow", "FAIL": "red"}


@dataclass(frozen=True)
class Finding:
    state: Literal["OK", "NOTE", "FAIL"]
    what: str
    found: str
    remedy: str = ""


def main() -> int:
    """Print what was found; 1 if anything stops a run, 0 otherwise."""
    findings = [finding for check in CHECKS for finding in examine(check)]
    table = Table("", "what", "found", "remedy", title=f"threed {__version__}")
    for f in findings:
        table.add_row(f"[{COLOURS[f.state]}]{f.state}", f.what, escape(f.found), escape(f.remedy))
    Console().print(table)
    return int(any(finding.state == "FAIL" for finding in findings))


def examine(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The check's findings; an exception is one too, because a doctor must not fall ill."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("FAIL", check.__name__, f"{type(error).__name__}: {error}", "install threed anew")


def system() -> Iterator[Finding]:
    yield Finding("OK", "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    new_enough = sys.version_info >= (3, 11)
    remedy = "" if new_enough else "use Python 3.11 or newer"
    yield Finding("OK" if new_enough else "FAIL", "Python", platform.python_version(), remedy)


def packages() -> Iterator[Finding]:
    """Every package that a run imports, beside the version it was tested with."""
    for name, tested in TESTED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("FAIL", name, "not installed", f"pip install {name}=={tested}")
            continue
        same = found.partition("+")[0] == tested
        remedy = "" if same else f"tested with {tested}; if a run fails: pip install -c constraints.txt -e ."
        yield Finding("OK" if same else "NOTE", name, found, remedy)


def processor() -> Iterator[Finding]:
    import torch

    from threed.distill.embedded import compute_dtype
    from threed.machine import cores, set_threads

    threads, physical = set_threads(), cores()
    remedy = "" if threads == physical else "unset OMP_NUM_THREADS to use one thread a core"
    yield Finding("OK" if not remedy else "NOTE", "threads", f"{threads} on {physical} cores", remedy)
    fast = compute_dtype(torch.device("cpu")) == torch.bfloat16
    yield Finding("OK", "bfloat16", "native" if fast else "not native: the prior computes in float32, more slowly")


def graphics() -> Iterator[Finding]:
    """The GPU, and whether CUDA kernels can be compiled for it."""
    import torch

    from threed.errors import Mistake
    from threed.machine import check_gpu
    from threed.renderers.cuda_ops import compiler, driver

    if not torch.cuda.is_available():
        remedy = unseen()
        yield Finding("NOTE" if remedy else "OK", "CUDA", "none; the CPU does it all", remedy)
        return
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties().total_memory
    found = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {memory / 1e9:.1f} GB"
    try:
        check_gpu()
    except Mistake as mistake:
        yield Finding("NOTE", "CUDA", found, str(mistake))
        return
    yield Finding("OK", "CUDA", found)
    reason = driver.obstacle(torch.device("cuda", torch.cuda.current_device()))
    if reason is None:
        yield Finding("OK", "NVRTC", "{}.{}".format(*compiler.nvrtc().version))
    else:
        what, _, remedy = reason.rpartition("; ")
        yield Finding("NOTE", "NVRTC", f"{what}: slow primitives", remedy)


def unseen() -> str:
    """Why PyTorch sees no CUDA device though there is a driver, and what helps; nothing where that is not known."""
    import torch

    from threed.renderers.cuda_ops import driver

    installed, wanted = driver.version(), torch.version.cuda
    if installed is None:
        return ""
    if wanted is None:
        return "there is a driver; see https://pytorch.org/get-started for a PyTorch with CUDA"
    if installed[0] < int(wanted.split(".")[0]):
        return f"the driver is for CUDA {installed[0]}.{installed[1]} and this PyTorch for {wanted}; update the driver"
    return ""


def backends() -> Iterator[Finding]:
    """Which libraries of others are there; none of them is imported."""
    from threed.renderers.external import LIBRARIES, installed

    for name in LIBRARIES:
        found = f"installed; --backend {name} turns it on" if installed(name) else "not installed, not needed"
        yield Finding("OK", name, found)


def memory() -> Iterator[Finding]:
    from threed.machine import MEMORY, total_memory

    total = total_memory()
    if total is None:
        yield Finding("NOTE", "memory", "this system does not tell", f"a run takes up to {MEMORY / 1e9:.0f} GB")
        return
    enough = total >= MEMORY
    remedy = "" if enough else f"a run takes up to {MEMORY / 1e9:.0f} GB: close other programs"
    yield Finding("OK" if enough else "NOTE", "memory", f"{total / 1e9:.1f} GB", remedy)


def output() -> Iterator[Finding]:
    from threed import disk

    here = Path.cwd()
    probe = here / ".threed-doctor"
    try:
        disk.write(probe, b"threed")
        probe.unlink()
    except OSError as error:
        yield Finding("FAIL", "output", f"{here}: {error.strerror}", "go to a folder of your own, or give --output")
        return
    free = shutil.disk_usage(here).free
    enough = free >= DISK
    remedy = "" if enough else f"free {DISK / 1e6:.0f} MB, or give --output on another disk"
    yield Finding("OK" if enough else "FAIL", "output", f"{here}, {free / 1e9:.1f} GB free", remedy)


def kernels() -> Iterator[Finding]:
    """Compiles the hash grid's kernels, or finds them in the cache, and compares them with the reference."""
    import torch

    remedy = "install the tested {}: pip install -c constraints.txt -e ."
    yield compared("numba kernels", torch.device("cpu"), remedy.format("numba"))
    if torch.cuda.is_available():
        yield compared("CUDA kernels", torch.device("cuda"), "use --device cpu, and report it")


def compared(what: str, device: torch.device, remedy: str) -> Finding:
    import torch

    from threed.renderers import torch_ops
    from threed.renderers.ops import HashGrid, ops

    grid, generator = HashGrid(levels=2), torch.Generator().manual_seed(0)
    points = torch.rand(64, 3, generator=generator)
    table = torch.rand(grid.size, grid.features, generator=generator)
    fast = ops(device).hash_encode(points.to(device), table.to(device), grid).cpu()
    if torch.allclose(fast, torch_ops.hash_encode(points, table, grid), atol=1e-4):
        return Finding("OK", what, "compiled, equal to the reference")
    return Finding("FAIL", what, "differ from the reference", remedy)


def weights() -> Iterator[Finding]:
    from threed.distill.folder import verify

    try:
        verify()
    except ValueError as error:
        message, _, remedy = str(error).rpartition("; ")
        yield Finding("FAIL", "embedded prior", message, remedy)
        return
    yield Finding("OK", "embedded prior", "complete, checksums agree")


CHECKS = (system, packages, processor, graphics, backends, memory, output, kernels, weights)
