"""How a numba kernel is compiled and run: cached on disk, and on exactly as many threads as PyTorch uses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import torch
from torch import Tensor

config: Any = numba.config  # filled at import, out of a type checker's sight
# numba's OpenMP threads would wait busily and change the thread count of PyTorch, whose OpenMP is the same.
config.THREADING_LAYER = "workqueue"
_running = threading.Lock()  # numba's workqueue threads end the process when two Python threads launch at once


def kernel(parallel: bool = False, fastmath: bool = False) -> Callable[[Callable], Callable]:
    """Compile a function without Python objects; its machine code is kept where numba finds a writable folder."""

    def compiled(function: Callable) -> Callable:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "parallel": parallel, "fastmath": fastmath}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return numba.njit(**options)(function)

    return compiled


def launch(function: Callable, *arguments: Tensor | float | None) -> None:
    """Run a parallel kernel; it sees tensors as C-contiguous arrays, so what it writes must be contiguous already."""
    arrays = [a.detach().contiguous().numpy() if isinstance(a, Tensor) else a for a in arguments]
    with _running:
        numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))
        function(*arrays)
