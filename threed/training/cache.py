"""What is worked out once of every asset of a collection and then kept on disk: pictures, volumes.

A folder of arrays with a row for each asset that can be used. `index.json` is what they depend on: the settings, and
the assets' names and digests, so that a copied folder is known again. `assets.jsonl` has a record for each asset that
was worked out, or skipped, and why; it is only written once the rows are. A cache of anything else is replaced, and one
that was interrupted is continued and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from numpy.lib.format import open_memmap
from torch import Tensor

from threed import disk
from threed.errors import Failure, Mistake
from threed.log import Log, encode, records
from threed.machine import cores
from threed.renderers.mesh import Asset
from threed.renderers.read import read
from threed.training.collection import Item

FEWEST = 16  # usable assets that a training set needs
ASSETS_A_WORKER = 64  # at least, or starting a process costs more than it saves
BATCH = 32  # assets after which everything is brought to the disk


@runtime_checkable
class Content(Protocol):
    """What is kept of every asset: a frozen dataclass, whose fields are the settings that the arrays depend on."""

    stage: ClassVar[str]  # what the log calls the work

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name, type and shape of what is kept of one asset."""

    def rows(self, path: Path, place: int) -> tuple[np.ndarray, ...]:
        """That, in the same order, of the asset in this place of the collection; ValueError says why there is none."""


@dataclass(frozen=True)
class Rows:
    """The arrays of a cache, mapped from the disk."""

    captions: tuple[tuple[str, ...], ...]  # of every asset at least one
    arrays: dict[str, Tensor]  # a row an asset
    skipped: dict[str, str]  # the names of assets that cannot be used, and why


def build(
    items: Iterable[Item], folder: Path, log: Log, content: Content, workers: int | None = None, fewest: int = FEWEST
) -> Rows:
    """Work out what is missing in `folder`, and open it; as many `workers` as the machine has cores.

    Raises Mistake for fewer than `fewest` usable assets, a folder that another process works in, or too full a disk,
    and Failure when a worker dies.
    """
    captions, paths = defaultdict[str, list[str]](list), dict[str, Path]()
    for item in items:
        captions[item.name].append(item.caption)
        paths[item.name] = item.path
    folder.mkdir(parents=True, exist_ok=True)
    lock = disk.lock(folder / "lock")
    if lock is None:
        raise Mistake(f"another process is at work in {str(folder)!r}; wait for it or choose another folder")
    with lock:
        if not _same(folder, paths, content):
            _create(folder, paths, content)
        done = list(records(folder / "assets.jsonl"))
        if len(done) < len(paths):
            worthwhile = 1 + (len(paths) - len(done)) // ASSETS_A_WORKER
            _fill(paths, folder, log, content, done, workers or min(cores(), worthwhile))
        return _opened(captions, folder, content, fewest)


def rows_in_common(names: Iterable[str], *skipped: Mapping[str, str]) -> Int[Tensor, "A K"]:
    """Of K caches built of assets of these names, each less what it skipped: the rows of what all of them have."""
    names = tuple(names)
    places = [{name: row for row, name in enumerate(n for n in names if n not in left_out)} for left_out in skipped]
    both = [[rows[name] for rows in places] for name in names if all(name in rows for rows in places)]
    return torch.tensor(both, dtype=torch.long).reshape(-1, len(skipped))


def sound(path: Path, most_triangles: int) -> Asset:
    """The asset in a file; raises ValueError for files that are broken, empty or too large."""
    asset = read(path)
    if (count := len(asset.mesh.faces)) > most_triangles:
        raise ValueError(f"{str(path)!r} has {count} triangles, more than {most_triangles}; simplify it first")
    return asset


def _same(folder: Path, paths: Mapping[str, Path], content: Content) -> bool:
    """Whether the folder's arrays belong to these assets, as they are now, and to these settings."""
    path = folder / "index.json"
    arrays = all((folder / f"{name}.npy").exists() for name in content.arrays())
    return arrays and path.exists() and path.read_bytes() == _index(paths, content)


def _index(paths: Mapping[str, Path], content: Content) -> bytes:
    assets = [[name, _digest(path)] for name, path in paths.items()]
    return json.dumps({"settings": asdict(content), "assets": assets}, indent=0).encode()  # type: ignore[call-overload]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _create(folder: Path, paths: Mapping[str, Path], content: Content) -> None:
    """Empty arrays for all assets. Raises Mistake when the disk cannot hold them."""
    for name in ("index.json", "assets.jsonl", *(f"{name}.npy" for name in content.arrays())):
        (folder / name).unlink(missing_ok=True)
    arrays = {name: (kind, (len(paths), *shape)) for name, (kind, shape) in content.arrays().items()}
    needed = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in arrays.values())
    free = shutil.disk_usage(folder).free
    if needed > free:  # asked beforehand, because writing into a map of a full disk ends the process
        gigabytes = f"{needed / 2**30:.1f} GiB for {len(paths)} assets, {free / 2**30:.1f} are free"
        raise Mistake(f"{str(folder)!r} needs {gigabytes}; make room or choose another folder")
    for name, (kind, shape) in arrays.items():
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
    disk.write(folder / "index.json", _index(paths, content))


def _fill(
    paths: Mapping[str, Path], folder: Path, log: Log, content: Content, done: list[dict[str, Any]], workers: int
) -> None:
    """Fill the arrays from where the records end; only usable assets take a row."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in content.arrays()}
    disk.write(folder / "assets.jsonl", b"".join(map(encode, done)))  # without what was torn
    used, pending = sum(record["skipped"] is None for record in done), []
    with log.stage(content.stage, len(paths), len(done)) as log:
        for number, (name, found) in enumerate(_found(paths, content, len(done), workers), start=len(done) + 1):
            reason = found if isinstance(found, str) else None
            if isinstance(found, str):
                log.note(f"skipped: {found}")
            else:
                for array, rows in zip(arrays.values(), found, strict=True):
                    array[used] = rows
                used += 1
            pending.append({"name": name, "skipped": reason})
            if len(pending) == BATCH or number == len(paths):
                for array in arrays.values():
                    array.flush()
                disk.append(folder / "assets.jsonl", b"".join(map(encode, pending)))
                pending = []
            log(number, {})


def _found(
    paths: Mapping[str, Path], content: Content, first: int, workers: int
) -> Iterator[tuple[str, tuple[np.ndarray, ...] | str]]:
    """Every asset from place `first` on, in order, with its rows or the reason why there are none."""
    names, places = list(paths)[first:], range(first, len(paths))
    job = partial(rows_or_reason, content)
    if workers == 1:
        yield from zip(names, map(job, [paths[name] for name in names], places), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads half dead
    pool = ProcessPoolExecutor(workers, context, initializer=begin_worker)
    try:
        yield from zip(names, pool.map(job, [paths[name] for name in names], places), strict=True)
    except BrokenProcessPool as error:
        raise Failure(
            "a process ended while it read an asset, for lack of memory perhaps; close other programs and start again: "
            "it goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """One thread for the work, and another that ends it with its parent: after kill -9 it would wait for ever."""
    torch.set_num_threads(1)
    threading.Thread(target=follow, daemon=True).start()


def follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def rows_or_reason(content: Content, path: Path, place: int) -> tuple[np.ndarray, ...] | str:
    """What `content.rows` returns, or why it cannot."""
    try:
        return content.rows(path, place)
    except ValueError as error:
        return str(error)


def _opened(captions: Mapping[str, list[str]], folder: Path, content: Content, fewest: int) -> Rows:
    """The finished cache. Raises Mistake when too little of it can be used."""
    skipped = {record["name"]: record["skipped"] for record in records(folder / "assets.jsonl")}
    used = [tuple(captions[name]) for name, reason in skipped.items() if reason is None]
    skipped = {name: reason for name, reason in skipped.items() if reason is not None}
    if len(used) < fewest:
        first = f", the first because {next(iter(skipped.values()))}" if skipped else ""
        raise Mistake(f"{len(used)} of {len(captions)} assets can be used{first}; training needs at least {fewest}")
    # Mapped, copy on write: only what is looked at is read, and nothing is ever written.
    arrays = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in content.arrays()}
    return Rows(tuple(used), {name: array[: len(used)] for name, array in arrays.items()}, skipped)
