"""threed: a sentence or a picture becomes a game-ready 3D asset."""

from pathlib import Path

__version__ = "0.1.0"

# Installed, `threed.renderers` lies inside this package. In a bare checkout the folders stand beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))
