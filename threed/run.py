"""A run and its folder: what was asked for, what came out, and what is needed to go on after an interruption.

A folder belongs to one request, saved as recipe.json before anything else, and to one process at a time. It holds the
files named in `FILES` and `checkpoints/`; nothing else in it is ever written or removed.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from threed import __version__, checkpoint, disk
from threed.distill.control import ControlKind
from threed.errors import Mistake
from threed.log import Log
from threed.recipe import Recipe

FILES = (
    "recipe.json",
    "asset.glb",
    "asset.gltf",
    "asset.bin",
    "asset.obj",
    "asset.mtl",
    "asset.png",
    "asset.ply",
    "asset.stl",
    "asset.usdz",
    "preview.png",
    "turntable.webp",
    "report.json",
    "metrics.jsonl",
    "log.txt",
    "progress.png",
    "input.png",
    "mask.png",
    "learned.safetensors",
    "views.png",
    "views.safetensors",
)
CHECKPOINTS_KEPT = 2  # so that a torn one has a predecessor
SLUG_LENGTH = 40  # characters; at most 160 bytes of the 255 that file systems allow


@dataclass(frozen=True)
class Source:
    """The picture that an asset is made of, and what was said about it."""

    name: str  # of the file, as `slug` has it
    digest: str  # SHA-256 of the file, in hexadecimal
    mask: str | None = None  # that of the mask's file
    remove_background: bool = True
    elevation: float | None = None  # degrees, of its camera; None where it is estimated
    fov: float = 40.0  # degrees


@dataclass(frozen=True)
class Control:
    """A ControlNet that steers a checkpoint of others by the shape of the scene."""

    kind: ControlKind
    name: str  # a folder, or an id of the hub
    strength: float = 1.0


@dataclass(frozen=True)
class Thrift:
    """What keeps a run within so many gigabytes, beside the settings of its scenes."""

    gigabytes: float
    checkpointed: bool = False  # the prior's networks compute again what their gradient needs, block by block
    side: int | None = None  # pixels of the pictures that the prior sees; None: its own

    def __str__(self) -> str:
        done = ["gradients deferred and checkpointed"] if self.checkpointed else []
        done += [f"the prior sees {self.side} pixels a side"] if self.side else []
        return f"for {self.gigabytes:g} GB: {', '.join(done) or 'nothing has to change'}"


@dataclass(frozen=True)
class Request:
    """Everything a run depends on, fully resolved: equal requests give equal bytes on the same machine."""

    prompt: str
    recipe: Recipe
    negative: str = ""
    seed: int = 0
    prior: str = "embedded"  # or a folder, or sd: and a checkpoint of others
    lora: str | None = None  # a file that is added to that
    control: Control | None = None
    device: str = "cpu"
    backends: tuple[str, ...] = ()  # libraries of others, see renderers.external
    thrift: Thrift | None = None  # how its prior is used, where memory is short
    compiled: bool = False  # whether the prior's network is made a program, see distill.hub.text_to_image
    formats: tuple[str, ...] = ("glb", "obj")
    picture: Source | None = None
    version: str = __version__

    @property
    def name(self) -> str:
        """What the asset is called."""
        return self.picture.name if self.picture else slug(self.prompt)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Run:
    """An open run folder; a context manager, because the folder is locked until it is closed."""

    folder: Path
    log: Log
    _lock: BinaryIO = field(repr=False)

    @staticmethod
    def create(
        folder: Path, request: Request, resume: bool = False, overwrite: bool = False, console: Console | None = None
    ) -> Run:
        """Open `folder` for `request`: a new run, the `resume`d one, or one that `overwrite`s what stood there.

        Resuming what never began is beginning it, so that a command with `--resume` may be repeated until it is done.
        Raises Mistake, having written nothing, when the folder is taken, unusable, or belongs to another request.
        """
        check(folder, request, resume, overwrite)
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            lock = disk.lock(folder / "checkpoints" / "lock")
        except OSError as error:
            reason = error.strerror or error
            raise Mistake(f"cannot write into {str(folder)!r} ({reason}); choose another --output") from error
        if lock is None:
            raise Mistake(f"another process is at work in {str(folder)!r}; wait for it or choose another --output")
        try:
            check(folder, request, resume, overwrite)  # again: another process may have come first
            run = Run(folder, Log(folder, console), lock)
            if overwrite:
                _remove(folder)
            fresh = not (folder / "recipe.json").exists()
            run.write("recipe.json", request.to_json().encode())
            if resume and fresh:
                run.log.note(f"there is nothing to resume in {folder}: starting from the beginning")
        except BaseException:
            lock.close()
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def finished(self, request: Request) -> bool:
        """Whether all that was asked for is there."""
        return finished(self.folder, request)

    def path(self, name: str) -> Path:
        """Where the file of this name belongs; raises ValueError for names that are not in `FILES`."""
        if name not in FILES:
            raise ValueError(f"a run folder has no file {name!r}; name one of {', '.join(FILES)}, or add it to FILES")
        return self.folder / name

    def write(self, name: str, content: bytes) -> None:
        """Replace one of the run's files as a whole. Raises OSError."""
        disk.write(self.path(name), content)

    def checkpoint(self, state: Any) -> None:
        """Save a nested state of tensors and plain values, durably, and drop all but the last two. Raises OSError."""
        earlier = _checkpoints(self.folder)
        number = int(earlier[-1].stem) + 1 if earlier else 0
        checkpoint.save(self.folder / "checkpoints" / f"{number:06d}.safetensors", state)
        for path in earlier[: len(earlier) + 1 - CHECKPOINTS_KEPT]:
            path.unlink()

    def latest(self) -> Any | None:
        """The last state that was saved whole, or None at the beginning."""
        for path in reversed(_checkpoints(self.folder)):
            try:
                return checkpoint.load(path)
            except checkpoint.Torn as error:
                self.log.note(f"{error}; going back to the one before")
                path.unlink()
        return None


def finished(folder: Path, request: Request) -> bool:
    """Whether all that was asked for is in a folder of this request; the report is written last."""
    return all((folder / name).exists() for name in ("report.json", *(f"asset.{each}" for each in request.formats)))


def slug(prompt: str) -> str:
    """A prompt as a file name that every system takes; letters of all scripts stay."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower().replace("_", " "))
    short = "-".join(words)[:SLUG_LENGTH].strip("-")
    return short or "prompt-" + hashlib.sha256(prompt.encode()).hexdigest()[:8]


def settings(tree: Any, name: str = "") -> dict[str, Any]:
    """A nested request as one level of dotted names; of a list of tables, each goes by its number, from 0."""
    if isinstance(tree, list) and any(isinstance(each, dict) for each in tree):
        tree = {str(number): each for number, each in enumerate(tree)}
    if not isinstance(tree, dict):
        return {name: tree}
    return {k: v for key, value in tree.items() for k, v in settings(value, f"{name}.{key}" if name else key).items()}


def difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The recipe's name, or else the first setting by name, in which two requests differ, and both its values.

    A value is None where there is none.
    """
    before, after = settings(old), settings(new)
    for name in sorted(before.keys() | after.keys(), key=lambda name: (name != "recipe.name", name)):
        if before.get(name) != after.get(name):
            return name, before.get(name), after.get(name)
    return None


def check(folder: Path, request: Request, resume: bool, overwrite: bool) -> None:
    """Raises Mistake when the folder is none, holds a run that nobody spoke of, or the run of another request."""
    where = repr(str(folder))
    if resume and overwrite:
        raise Mistake("--resume and --overwrite contradict each other; give one of them")
    # A dangling link is no folder either, and mkdir would fail on it.
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise Mistake(f"{where} is not a folder; choose another --output")
    found = [path.name for path in _written(folder)]
    if not found or overwrite:
        return
    try:
        changed = difference(json.loads((folder / "recipe.json").read_bytes()), json.loads(request.to_json()))
    except (OSError, ValueError) as error:
        raise Mistake(
            f"{where} already holds a run ({found[0]}) without a readable recipe.json to resume from; replace it with "
            "--overwrite, or choose another --output"
        ) from error
    if changed:
        name, before, after = changed
        raise Mistake(
            f"{where} holds another run: {name} was {before!r} and is {after!r} now; choose another --output, replace "
            "it with --overwrite, or use the old value"
        )
    if not resume:
        raise Mistake(
            f"{where} already holds this run ({found[0]}); continue it with --resume, replace it with --overwrite, "
            "or choose another --output"
        )


def _written(folder: Path) -> list[Path]:
    """The program's own files that are there."""
    return [path for path in (folder / name for name in FILES) if path.is_file()] + _checkpoints(folder)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("[0-9]*.safetensors"))


def _remove(folder: Path) -> None:
    """The program's own files, and those of them that a killed process left half written."""
    for path in _written(folder):
        path.unlink()
    for path in (folder, folder / "checkpoints"):
        for name in (*FILES, "[0-9]*.safetensors"):
            for partial in path.glob(disk.partial_name(name)):
                partial.unlink()
