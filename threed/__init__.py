"""threed: a sentence or a picture becomes a game-ready 3D asset."""

import os
from pathlib import Path

__version__ = "0.1.0"

# PyTorch's idle threads would otherwise spin on the cores that the numba kernels work on. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Installed, `threed.renderers` lies inside this package. In a bare checkout the folders stand beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))
