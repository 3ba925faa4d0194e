"""A folder of meshes becomes captioned items, and a share of them is held out.

An item's name is its path inside the folder, written alike on every machine; order and split depend on names alone.
Caption files are not trusted: they can only pick files that lie in the folder. Meshes are not opened here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from threed.errors import Mistake
from threed.renderers.read import SUFFIXES
from threed.training.captions import MOST_WORDS

MOST_CHARACTERS = 200  # of a caption
MOST_BYTES = 256 * 2**20  # of a captions file


@dataclass(frozen=True)
class Item:
    """One mesh file under one caption; a file with several captions is several items."""

    path: Path
    caption: str  # lower case, single spaces
    name: str  # the path inside the folder, with forward slashes


@dataclass(frozen=True)
class Collection:
    items: tuple[Item, ...]  # by name, then by caption
    missing: int = 0  # captions whose file is not in the folder


def gather(folder: Path, captions: Path | None = None) -> Collection:
    """The meshes (GLB, glTF, OBJ) in `folder` and below that `captions` names, or all of them, named by their files.

    `captions` has a JSON object a line, with "path" (relative to the captions file's folder or to `folder`) and
    "caption"; other keys do not matter. Hidden files are left out. Raises Mistake for a folder without meshes and for
    captions that cannot be used.
    """
    files = _meshes(folder)
    if captions is None:
        return Collection(tuple(Item(path, _from_name(name), name) for name, path in sorted(files.items())))
    bases = [captions.parent.resolve(), folder.resolve()]
    items, missing = set(), 0
    for where, record in _records(captions):
        names = _names(where, record.get("path"), bases)
        caption = _checked(where, record.get("caption"))
        if found := [name for name in names if name in files]:
            items.add(Item(files[found[0]], caption, found[0]))
        else:
            missing += 1
    if not items:
        raise Mistake(
            f"no caption in {str(captions)!r} belongs to a mesh in {str(folder)!r}; "
            "write each path relative to that folder or to the captions file"
        )
    return Collection(tuple(sorted(items, key=lambda item: (item.name, item.caption))), missing)


def held_out(items: Iterable[Item], share: float = 0.05) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The items to train on, and about a `share` of them to look at afterwards; both in the order given.

    A name alone decides, by its SHA-256: whatever else joins or leaves a collection, no item ever changes sides.
    """
    if not 0 <= share < 1:
        raise Mistake(f"a share of {share} cannot be held out; use at least 0 and less than 1")
    items = tuple(items)
    held = {item.name for item in items if _fraction(item.name) < share}
    return tuple(i for i in items if i.name not in held), tuple(i for i in items if i.name in held)


def _fraction(name: str) -> float:
    """A number in [0, 1) that is evenly spread over names."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _meshes(folder: Path) -> dict[str, Path]:
    """Every mesh file in the folder and below, by its name."""
    if not folder.exists():
        raise Mistake(f"there is no folder {str(folder)!r}; check the path")
    if not folder.is_dir():
        raise Mistake(f"{str(folder)!r} is not a folder; give the one that the meshes are in")
    files = {}
    try:
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in inside.parts)  # such as macOS's "._barrel.glb"
            if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
                files[inside.as_posix()] = path
    except OSError as error:
        raise Mistake(f"cannot list {str(folder)!r} ({error.strerror or error}); check its permissions") from error
    if not files:
        raise Mistake(f"there is no mesh in {str(folder)!r}; put {', '.join(SUFFIXES)} files there")
    return files


def _records(captions: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, each with the words for where it stands."""
    try:
        if captions.stat().st_size > MOST_BYTES:
            raise Mistake(f"{str(captions)!r} is larger than {MOST_BYTES >> 20} MiB; leave out what is no caption")
        lines = captions.read_bytes().splitlines()
    except OSError as error:
        raise Mistake(f"cannot read {str(captions)!r} ({error.strerror or error}); check --captions") from error
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of {str(captions)!r}"
        try:
            text = line.decode("utf-8-sig")
            record = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as error:
            raise Mistake(f'{where} is not JSON ({error}); write {{"path": "barrel.glb", "caption": ...}}') from error
        if isinstance(record, dict):
            yield where, record
        elif text.strip():
            raise Mistake(f'{where} is not a JSON object; write {{"path": "barrel.glb", "caption": "a barrel"}}')


def _names(where: str, path: Any, bases: list[Path]) -> list[str]:
    """What a path may be called in the folder `bases[-1]`, seen from each of the `bases`; at least one name."""
    if not isinstance(path, str) or not path:
        raise Mistake(f'{where} has no file name as its "path" but {path!r:.60}; write the mesh file\'s relative path')
    relative = PureWindowsPath(path)  # which knows the separators, drives and roots of every system
    if relative.anchor:
        raise Mistake(f"{where} has the absolute path {path!r:.200}; write it relative to the folder")
    places = [Path(os.path.normpath(base / relative.as_posix())) for base in bases]
    inside = [place.relative_to(bases[-1]).as_posix() for place in places if place.is_relative_to(bases[-1])]
    if not inside:
        raise Mistake(f"{where} has a path that leaves the folder: {path!r:.200}; put the mesh into it")
    return inside


def _checked(where: str, caption: Any) -> str:
    if not isinstance(caption, str):
        raise Mistake(f"{where} has {caption!r:.60} for a caption; write a string")
    said = " ".join(caption.lower().split())
    if not said:
        raise Mistake(f"{where} has an empty caption; write what the mesh shows")
    if not said.isprintable():
        raise Mistake(f"{where} has a caption with unprintable characters, {caption!r:.60}; write plain words")
    if len(said.split()) > MOST_WORDS or len(said) > MOST_CHARACTERS:
        raise Mistake(
            f"{where} has a caption of {len(said.split())} words and {len(said)} characters, {said[:40]!r}...; "
            f"shorten it to at most {MOST_WORDS} words and {MOST_CHARACTERS} characters"
        )
    return said


def _from_name(name: str) -> str:
    """The words of a file's name: "old_wooden-Chest02.glb" is an "old wooden chest"."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", stem)
    words = re.findall(r"[^\W\d_]{2,}", spaced)  # neither numbers nor "a" and "b"
    if not words:
        raise Mistake(f"the file name {name!r} does not say what the mesh shows; rename it or write --captions")
    return _checked(f"the file name {name!r}", " ".join(words))
