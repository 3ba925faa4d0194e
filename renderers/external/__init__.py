"""Primitives by libraries of others, for CUDA: turned on by name (`ops.using`), never by themselves.

Each module here has those names of `torch_ops` whose contract its library can keep, states in what the two differ, and
hands what its library cannot do to the project's own primitives. Nothing else imports these libraries, and these
modules do so only once they are turned on.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    module: str  # what is imported
    install: str  # the command that installs it
    notice: str = ""  # what a user has to know of its licence


LIBRARIES = {
    "tinycudann": Library(
        "tinycudann",
        "pip install --no-build-isolation git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
    ),
    "nerfacc": Library("nerfacc", "pip install nerfacc"),
    "nvdiffrast": Library(
        "nvdiffrast.torch",
        "pip install --no-build-isolation git+https://github.com/NVlabs/nvdiffrast",
        "nvdiffrast is turned on. Its licence, NVIDIA's, allows research and evaluation alone, not commercial use: an "
        "asset that is to be sold has to be made without it",
    ),
}


def installed(name: str) -> bool:
    """Whether it is there; it is not imported for that."""
    return importlib.util.find_spec(name) is not None


def obstacle(name: str) -> str | None:
    """Why a library cannot be used, with the remedy; None once it is imported."""
    library = LIBRARIES[name]
    if not installed(name):
        return f"{name} is not installed; try: {library.install}"
    try:
        importlib.import_module(library.module)
    except (ImportError, OSError, RuntimeError) as error:  # made for another PyTorch, another GPU
        return f"{name} does not load ({error}); build it for this PyTorch and this GPU: {library.install}"
    return None
