"""A prior's folder: where the shipped one is, whether its files are whole, and its compressed weights.

A compressed folder holds large weights as int8, symmetric, one scale per output channel: `name` and `name.scale`.
`SHA256SUMS`, where a folder has it (the shipped one does), is checked before anything is read.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

SHIPPED = Path(__file__).parent / "weights"


def located(name: str) -> Path:
    """The folder of the prior that a request names: "embedded", or a folder.

    A checkpoint of others (`hub.checkpoint`) has neither a start nor a list of words; the shipped ones stand in.
    """
    from threed.distill.hub.checkpoint import is_checkpoint

    return SHIPPED if name == "embedded" or is_checkpoint(name) else Path(name)


class UnreadablePrior(ValueError):
    """A prior's file is missing, altered or corrupt."""


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while reading `path` becomes one error that names it and the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        shipped = path.is_relative_to(SHIPPED)
        remedy = "reinstall the package" if shipped else "copy the prior's folder again"
        raise UnreadablePrior(f"cannot use {path}: {error}; {remedy}") from error


def verify(folder: Path | str | None = None) -> None:
    """Compare a prior's files with its SHA256SUMS; raises UnreadablePrior naming the first that differs."""
    folder = SHIPPED if folder is None else Path(folder)
    sums = folder / "SHA256SUMS"
    if folder != SHIPPED and folder.is_dir() and not sums.exists():
        return
    with readable(sums):
        expected = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines()]
    for digest, name in expected:
        with readable(folder / name):
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError("its checksum differs from SHA256SUMS")


def restore(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights from their compressed form: int8 times the scale of its output channel, float32."""
    scales = {name.removesuffix(".scale"): scale for name, scale in stored.items() if name.endswith(".scale")}
    return {
        name: value.float() * scales[name].view(-1, *[1] * (value.ndim - 1)) if name in scales else value.float()
        for name, value in stored.items()
        if not name.endswith(".scale")
    }
