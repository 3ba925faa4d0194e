"""The folder that a training writes: the finished prior, beside `work/` and `cache/`, which may be deleted then.

`SHA256SUMS` is replaced before the files it lists, so that a folder that is only half there is refused by its readers
until the same command is run again. It leaves out the model card, which is its owner's to change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from threed import disk
from threed.errors import Mistake

CARD, SUMS = "README.md", "SHA256SUMS"
PIECES = (
    "LICENSE",
    "NOTICE",
    "unet",
    "text_encoder",
    "tokenizer",
    "scheduler",
    "start",
    "upsampler",
    "angles",
    "lift",
    "ranker",
    "prior.json",
)
LOCK = "work/lock"  # by which a folder is known as this program's


def check(output: Path) -> None:
    """Raises Mistake for an output that is no folder, or that holds something else."""
    if (output.exists() or output.is_symlink()) and not output.is_dir():
        raise Mistake(f"{str(output)!r} is not a folder; choose another --output")
    if (output / LOCK).exists():
        return
    if found := sorted(path.name for path in output.iterdir()) if output.exists() else []:
        what = "a prior that was not trained here" if "prior.json" in found else f"something else ({found[0]})"
        raise Mistake(f"{str(output)!r} holds {what}; choose a new folder as --output")


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """The folder for this process alone. Raises Mistake when it cannot be written or another process is at work."""
    try:
        (output / LOCK).parent.mkdir(parents=True, exist_ok=True)
        lock = disk.lock(output / LOCK)
    except OSError as error:
        raise Mistake(
            f"cannot write into {str(output)!r} ({error.strerror or error}); choose another --output"
        ) from error
    if lock is None:
        raise Mistake(f"another process is at work in {str(output)!r}; wait for it or choose another --output")
    with lock:
        yield


def contents(folder: Path) -> dict[str, Path]:
    """A prior's own files, by their names in its folder; `prior.json` comes last."""
    found = [folder / piece for piece in PIECES]
    files = [path for piece in found for path in ([piece] if piece.is_file() else sorted(piece.rglob("*")))]
    return {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}


def publish(output: Path, files: Mapping[str, Path], card: str) -> bool:
    """Make `output` a prior of these files; False where it is one already. Raises OSError."""
    new = {name: path.read_bytes() for name, path in files.items()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(new.items())).encode()
    there = contents(output)
    same = there.keys() == new.keys() and all(path.read_bytes() == new[name] for name, path in there.items())
    if same and (output / CARD).exists() and (output / SUMS).exists() and (output / SUMS).read_bytes() == sums:
        return False
    disk.write(output / SUMS, sums)
    for name in there.keys() - new.keys():
        there[name].unlink()
    for name, content in new.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        disk.write(output / name, content)
    disk.write(output / CARD, card.encode())
    return True
