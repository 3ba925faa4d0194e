"""What every asset of a collection looks like from around, rendered once and kept on disk.

Arrays of bytes, a row an asset: `albedo.npy` (V 3 H W), `normal.npy` (V 3 H W), `alpha.npy` (V H W), all multiplied by
alpha, so that any plain background can be put behind them; a camera-space normal n is kept as (n + 1) / 2.
`colours.npy` (S 3) has the albedo of points spread evenly over the surface, `cameras.npy` (V 4) float32: azimuth,
elevation, distance, field of view. Objects are centred on their bounding box, their farthest vertex at radius 1.
No shaded pictures: whoever wants them lights albedo by normal, differently every time.

`index.json` is what the pictures depend on: settings and the assets' names, sizes and times of change. `assets.jsonl`
has a record for each asset that was rendered, or skipped, and why; it is only written once the pixels are.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.lib.format import open_memmap
from torch import Tensor

from threed import disk
from threed.errors import Failure, Mistake
from threed.log import Log, encode, records
from threed.machine import cores
from threed.renderers import surface
from threed.renderers.camera import Cameras
from threed.renderers.mesh import Asset
from threed.renderers.ops import ops
from threed.renderers.read import normalised, read
from threed.training.collection import Item

FEWEST = 16  # usable assets that a training set needs
AT_ONCE = 4  # views, after which the time is looked at
ASSETS_A_WORKER = 64  # at least, or starting a process costs more than it saves
BATCH = 32  # assets after which everything is brought to the disk


@dataclass(frozen=True)
class Shots:
    """Which pictures are taken of an asset; changing any of it renders everything anew."""

    views: int = 24  # at equal steps of azimuth, jittered within; a multiple of 4, for groups a quarter turn apart
    size: int = 64  # pixels a side
    elevation: tuple[float, float] = (-15.0, 45.0)  # degrees, drawn uniformly
    distance: tuple[float, float] = (3.0, 3.2)  # metres, drawn uniformly
    fov_y: float = 40.0  # degrees
    supersample: int = 3  # samples along a side of a pixel
    colours: int = 64  # points of the surface whose albedo is kept
    most_triangles: int = 500_000
    most_seconds: float = 60.0  # for one asset
    seed: int = 0

    def cameras(self, place: int) -> Cameras:
        """Those of the asset in this place of the collection."""
        random = np.random.default_rng((self.seed, place))
        azimuth = (np.arange(self.views) + random.random(self.views)) * (2 * math.pi / self.views)
        elevation = np.radians(random.uniform(*self.elevation, self.views))
        distance = random.uniform(*self.distance, self.views)
        fov_y = np.full(self.views, math.radians(self.fov_y))
        return Cameras(*(torch.from_numpy(a.astype(np.float32)) for a in (azimuth, elevation, distance, fov_y)))

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name, type and shape of what is kept of one asset."""
        return {
            "albedo": ("uint8", (self.views, 3, self.size, self.size)),
            "normal": ("uint8", (self.views, 3, self.size, self.size)),
            "alpha": ("uint8", (self.views, self.size, self.size)),
            "colours": ("uint8", (self.colours, 3)),
            "cameras": ("float32", (self.views, 4)),
        }


@dataclass(frozen=True)
class Cache:
    """The pictures of A assets."""

    captions: tuple[tuple[str, ...], ...]  # of every asset at least one
    albedo: UInt8[Tensor, "A V 3 H W"]
    normal: UInt8[Tensor, "A V 3 H W"]
    alpha: UInt8[Tensor, "A V H W"]
    colours: UInt8[Tensor, "A S 3"]  # display sRGB
    cameras: Float[Tensor, "A V 4"]  # azimuth, elevation (radians), distance (metres), fov_y (radians)
    skipped: dict[str, str]  # the names of assets that cannot be used, and why

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> Cache:
        """The same, its pictures in this device's memory."""
        moved = {name: getattr(self, name).to(device) for name in ("albedo", "normal", "alpha")}
        return replace(self, **moved)


def build(
    items: Iterable[Item], folder: Path, log: Log, shots: Shots | None = None, workers: int | None = None
) -> Cache:
    """Render what is missing in `folder`, and open it; as many `workers` as the machine has cores.

    A cache of other assets or settings is replaced; an interrupted one is continued and ends with the same bytes.
    Raises Mistake for views that are no multiple of 4, fewer than 16 usable assets, a folder that another process
    renders into, or too full a disk, and Failure when a process dies while it renders.
    """
    shots, captions, paths = shots or Shots(), defaultdict[str, list[str]](list), {}
    for item in items:
        captions[item.name].append(item.caption)
        paths[item.name] = item.path
    if shots.views % 4:
        raise Mistake(f"views is {shots.views}; use a multiple of 4, so that groups stand a quarter turn apart")
    folder.mkdir(parents=True, exist_ok=True)
    lock = disk.lock(folder / "lock")
    if lock is None:
        raise Mistake(f"another process renders into {str(folder)!r}; wait for it or choose another folder")
    with lock:
        if not _same(folder, paths, shots):
            _create(folder, paths, shots)
        done = list(records(folder / "assets.jsonl"))
        if len(done) < len(paths):
            worthwhile = 1 + (len(paths) - len(done)) // ASSETS_A_WORKER
            _render(paths, folder, log, shots, done, workers or min(cores(), worthwhile))
        return _opened(captions, folder, shots)


def _same(folder: Path, paths: Mapping[str, Path], shots: Shots) -> bool:
    """Whether the folder's arrays belong to these assets, as they are now, and to these settings."""
    path = folder / "index.json"
    arrays = all((folder / f"{name}.npy").exists() for name in shots.arrays())
    return arrays and path.exists() and path.read_bytes() == _index(paths, shots)


def _index(paths: Mapping[str, Path], shots: Shots) -> bytes:
    found = {name: path.stat() for name, path in paths.items()}
    assets = [[name, status.st_size, status.st_mtime_ns] for name, status in found.items()]
    return json.dumps({"shots": asdict(shots), "assets": assets}, indent=0).encode()


def _create(folder: Path, paths: Mapping[str, Path], shots: Shots) -> None:
    """Empty arrays for all assets. Raises Mistake when the disk cannot hold them."""
    for name in ("index.json", "assets.jsonl", *(f"{name}.npy" for name in shots.arrays())):
        (folder / name).unlink(missing_ok=True)
    arrays = {name: (kind, (len(paths), *shape)) for name, (kind, shape) in shots.arrays().items()}
    needed = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in arrays.values())
    free = shutil.disk_usage(folder).free
    if needed > free:  # asked beforehand, because writing into a map of a full disk ends the process
        gigabytes = f"{needed / 2**30:.1f} GiB for the pictures of {len(paths)} assets"
        raise Mistake(f"{str(folder)!r} needs {gigabytes}, {free / 2**30:.1f} are free; choose another folder")
    for name, (kind, shape) in arrays.items():
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
    disk.write(folder / "index.json", _index(paths, shots))


def _render(
    paths: Mapping[str, Path], folder: Path, log: Log, shots: Shots, done: list[dict[str, Any]], workers: int
) -> None:
    """Fill the arrays from where the records end; only usable assets take a row."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in shots.arrays()}
    disk.write(folder / "assets.jsonl", b"".join(map(encode, done)))  # without what was torn
    used, pending = sum(record["skipped"] is None for record in done), []
    with log.stage("render", len(paths), len(done)) as log:
        for number, (name, taken) in enumerate(_taken(paths, shots, len(done), workers), start=len(done) + 1):
            reason = taken if isinstance(taken, str) else None
            if isinstance(taken, str):
                log.note(f"skipped: {taken}")
            else:
                for array, rows in zip(arrays.values(), taken, strict=True):
                    array[used] = rows
                used += 1
            pending.append({"name": name, "skipped": reason})
            if len(pending) == BATCH or number == len(paths):
                for array in arrays.values():
                    array.flush()
                disk.append(folder / "assets.jsonl", b"".join(map(encode, pending)))
                pending = []
            log(number, {}, pictures=shots.views * (reason is None))


def _taken(
    paths: Mapping[str, Path], shots: Shots, first: int, workers: int
) -> Iterator[tuple[str, tuple[np.ndarray, ...] | str]]:
    """Every asset from place `first` on, in order, with its pictures or the reason why there are none."""
    names, places = list(paths)[first:], range(first, len(paths))
    job = partial(photograph_or_reason, shots=shots)
    if workers == 1:
        yield from zip(names, map(job, [paths[name] for name in names], places), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads half dead
    pool = ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from zip(names, pool.map(job, [paths[name] for name in names], places), strict=True)
    except BrokenProcessPool as error:
        raise Failure(
            "a process ended while it rendered, for lack of memory perhaps; close other programs and start again: "
            "it goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def photograph_or_reason(path: Path, place: int, shots: Shots) -> tuple[np.ndarray, ...] | str:
    """What `photograph` returns, or why it cannot."""
    try:
        return photograph(path, place, shots)
    except ValueError as error:
        return str(error)


def photograph(path: Path, place: int, shots: Shots) -> tuple[np.ndarray, ...]:
    """What is kept of one asset, in the order of `Shots.arrays`.

    Raises ValueError for files that are broken, empty, too large or too slow to draw.
    """
    asset = read(path)
    if (count := len(asset.mesh.faces)) > shots.most_triangles:
        raise ValueError(f"{str(path)!r} has {count} triangles, more than {shots.most_triangles}; simplify it first")
    asset = replace(asset, mesh=normalised(asset.mesh))
    cameras, begun, views = shots.cameras(place), time.monotonic(), []
    for index in range(0, len(cameras), AT_ONCE):
        try:
            views.append(
                surface.render(asset, cameras[index : index + AT_ONCE], shots.size, shots.size, shots.supersample)
            )
        except Exception as error:  # one of thousands of files shall not end the work on all others
            raise ValueError(f"{str(path)!r} cannot be drawn ({error}); export it again") from error
        if time.monotonic() - begun > shots.most_seconds:
            raise ValueError(f"{str(path)!r} takes more than {shots.most_seconds:g} s to draw; simplify it first")
    albedo, normal, alpha = (
        torch.cat([getattr(view, name) for view in views]).movedim(-1, 1) for name in ("albedo", "normal", "alpha")
    )
    if not alpha.any():
        raise ValueError(f"{str(path)!r} cannot be seen; export it again with its full geometry")
    colours = surface_colours(asset, shots.colours, np.random.default_rng((shots.seed, place, 1)))
    angles = torch.stack([getattr(cameras, field.name) for field in fields(cameras)], dim=1)
    return _bytes(albedo), _bytes((normal + alpha) / 2), _bytes(alpha[:, 0]), _bytes(colours), angles.numpy()


def surface_colours(asset: Asset, count: int, random: np.random.Generator) -> Float[Tensor, "N 3"]:
    """The albedo at `count` points, spread over the surface by area."""
    a, b, c = asset.mesh.corners.double().unbind(1)
    area = (b - a).cross(c - a, dim=-1).norm(dim=-1).cumsum(0)
    places = (torch.arange(count) + torch.from_numpy(random.random(count))) / count * area[-1]
    face = torch.searchsorted(area, places, right=True).clamp(max=len(area) - 1)
    u, v = torch.from_numpy(random.random((2, count, 1))).float()
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    first, second, third = asset.uvs[asset.uv_faces[face]].unbind(1)
    uv = first + u * (second - first) + v * (third - first)
    return ops(uv.device).texture(asset.material.base_color, uv)


def _bytes(values: Float[Tensor, "*S"]) -> UInt8[np.ndarray, "*S"]:
    return (values.clamp(0, 1) * 255).round().byte().numpy()


def _opened(captions: Mapping[str, Sequence[str]], folder: Path, shots: Shots) -> Cache:
    """The finished cache. Raises Mistake when too little of it can be used."""
    skipped = {record["name"]: record["skipped"] for record in records(folder / "assets.jsonl")}
    used = [tuple(captions[name]) for name, reason in skipped.items() if reason is None]
    skipped = {name: reason for name, reason in skipped.items() if reason is not None}
    if len(used) < FEWEST:
        first = f", the first because {next(iter(skipped.values()))}" if skipped else ""
        raise Mistake(f"{len(used)} of {len(captions)} assets can be used{first}; training needs at least {FEWEST}")
    # Mapped, copy on write: only what is looked at is read, and nothing is ever written.
    rows = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in shots.arrays()}
    return Cache(tuple(used), skipped=skipped, **{name: row[: len(used)] for name, row in rows.items()})
