"""What stands in a folder, as the page is told it: one run or mesh, or all that are below it.

Paths are relative to the folder that is shown, with forward slashes; addresses are quoted and carry the file's age, so
that a browser asks anew for what has changed. Files are not trusted: only plain ones of known kinds inside the folder
count, hidden ones and links that lead out of it do not, and JSON that cannot be read is a problem to tell of.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from threed.renderers.names import plain_word
from threed.viewer.progress import number, progress
from threed.viewer.words import facts

MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".usdz")  # those of renderers.read
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
SERVED = (*MESHES, *PICTURES, ".bin", ".mtl", ".json", ".jsonl", ".txt", ".zip")
MOST_JSON = 4 * 2**20  # bytes
DEEPEST, MOST = 4, 2000  # folders below the one that is shown; runs and meshes in a gallery
MOST_FOLDERS = 10_000  # that are looked into
SILENCE = 120.0  # seconds without a sign after which a run without a report counts as stopped
BEGINNING = 5.0  # the same where locks tell, so that one that is just being made counts as at work
LEVEL = re.compile(r"^(?P<name>.+?)[_-]?lod(?P<level>\d+)$", re.IGNORECASE)
COLLIDER = re.compile(r"^(?P<name>.+?)[_-](collision|collider|convcolonly|colonly)$", re.IGNORECASE)
DRACO = b'"KHR_draco_mesh_compression"'
COMPRESSED = re.compile(r"^(?P<name>.+)_draco\.glb$", re.IGNORECASE)

State = Literal["finished", "working", "stopped", "mesh"]


def is_run(folder: Path) -> bool:
    return (folder / "recipe.json").is_file()


def located(root: Path, at: str) -> Path | None:
    """The file or folder of this relative path; None where there is none that may be shown."""
    parts = PurePosixPath(at).parts
    # A colon names a drive or a hidden stream on Windows, and a backslash is a separator there.
    if any(part.startswith(".") or "\\" in part or ":" in part or "\0" in part for part in parts) or at.startswith("/"):
        return None
    try:
        path = root.joinpath(*parts).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    if not path.is_relative_to(root.resolve()):
        return None
    return path if path.is_dir() or (path.is_file() and path.suffix.lower() in SERVED) else None


def gallery(root: Path) -> dict[str, Any]:
    """All runs and meshes in the folder and in those below it, the newest first."""
    paths = sorted(_walk(root), key=_made, reverse=True)
    entries = [entry(root, path) for path in paths[:MOST]]
    return {"kind": "gallery", "title": root.resolve().name, "entries": entries, "left_out": len(paths[MOST:])}


def entry(root: Path, path: Path) -> dict[str, Any]:
    """A run or a mesh in a line or two."""
    at = path.relative_to(root).as_posix() if path != root else ""
    if path.is_file():
        told = {"name": path.name, "state": "mesh", "made": _made(path), "folder": path.parent.name}
        return {"at": at, **told}
    request, report, state = _json(path, "recipe.json")[0], _json(path, "report.json")[0], state_of(path)
    told = _request(request) | {"at": at, "name": path.name, "state": state, "made": _made(path)}
    told["seconds"] = _total(report)
    for what, name in {"preview": "preview.png", "turntable": "turntable.webp", "live": "progress.png"}.items():
        told[what] = address(root, path / name)
    if state == "working":
        told["share"] = _share(progress(located(path, "metrics.jsonl"), request.get("recipe"))["stages"])
    return told


def asset(root: Path, path: Path) -> dict[str, Any]:
    """All that the page shows of one run or mesh."""
    folder = path if path.is_dir() else path.parent
    files = _files(folder)
    meshes = [each for each in files if each.suffix.lower() in MESHES]
    main = path if path.is_file() else _main(meshes)
    told = {"kind": "asset", **entry(root, path), "problems": [], "mesh": mesh_address(root, main) if main else None}
    if path.is_dir():
        told |= _account(root, path)
    levels = _levels(main, meshes)
    told["level"] = next((level for level, each in levels.items() if each == main), 0)
    told["levels"] = [{"level": level, "mesh": mesh_address(root, levels[level])} for level in sorted(levels)]
    told["colliders"] = [mesh_address(root, each) for each in meshes if main and _is_collider(each, main)]
    told["downloads"] = [
        {"name": each.name, "address": address(root, each), "bytes": each.stat().st_size}
        for each in files
        if _offered(each, path, main)
    ]
    return told


def _account(root: Path, run: Path) -> dict[str, Any]:
    """What a run's own files tell of it."""
    (request, broken), (report, unreadable) = _json(run, "recipe.json"), _json(run, "report.json")
    return {
        "problems": [problem for problem in (broken, unreadable) if problem],
        "progress": progress(located(run, "metrics.jsonl"), request.get("recipe")),
        "silent_for": round(_silence(run), 1),
        "facts": facts(report),
        "input": address(root, run / "input.png"),
        "notes": _notes(located(run, "log.txt")),
    }


def state_of(folder: Path) -> State:
    """The report is written last; without one, a run is at work as long as its lock is held, or it gives signs of life.

    The lock is not tried: a run that began at that moment would find it taken.
    """
    if (folder / "report.json").is_file():
        return "finished"
    held = _held(folder / "checkpoints" / "lock")
    patience = SILENCE if held is None else BEGINNING
    return "working" if held or _silence(folder) < patience else "stopped"


def address(root: Path, path: Path, under: str = "files") -> str | None:
    """Where the browser finds a file; None where there is none, or where it must not be shown."""
    try:
        at = path.relative_to(root).as_posix()
    except ValueError:
        return None
    found = located(root, at)
    return f"/{under}/{quote(at)}?v={found.stat().st_mtime_ns}" if found and found.is_file() else None


def mesh_address(root: Path, path: Path) -> str | None:
    """The same of a mesh: three.js reads plain GLB and glTF itself, and other files as the GLB that is made of them."""
    plain = path.suffix.lower() in {".glb", ".gltf"} and not _is_compressed(root, path)
    return address(root, path, "files" if plain else "glb")


def _is_compressed(root: Path, path: Path) -> bool:
    """Whether a GLB or glTF speaks of Draco, for which the page has no decoder."""
    try:
        found = located(root, path.relative_to(root).as_posix())
        if found is None:
            return False
        with found.open("rb") as file:
            head = file.read(20)
            length = int.from_bytes(head[12:16], "little") if head[:4] == b"glTF" else MOST_JSON
            return DRACO in head + file.read(min(length, MOST_JSON))
    except (OSError, ValueError):
        return False


def _walk(root: Path) -> Iterator[Path]:
    """Runs, and meshes that belong to none and are no level, collider or compressed copy of another."""
    for name, folders, files in islice(os.walk(root), MOST_FOLDERS):
        folder = Path(name)
        if is_run(folder):
            folders.clear()
            yield folder
            continue
        deep = len(folder.relative_to(root).parts)
        folders[:] = [] if deep == DEEPEST else [each for each in sorted(folders) if not each.startswith(".")]
        names: dict[str, Path] = {}
        copies = {each for each in files if (of := COMPRESSED.match(each)) and f"{of['name']}.glb" in files}
        for path in (folder / each for each in sorted({*files} - copies) if Path(each).suffix.lower() in MESHES):
            if not COLLIDER.match(path.stem) and located(root, path.relative_to(root).as_posix()):
                names.setdefault(_own_name(LEVEL, path), path)
        yield from names.values()


def _files(folder: Path) -> list[Path]:
    """Plain files of kinds that may be shown, the GLB first."""
    found = [each for each in folder.iterdir() if located(folder, each.name) and each.is_file()]
    order = {suffix: place for place, suffix in enumerate(SERVED)}
    return sorted(found, key=lambda each: (order[each.suffix.lower()], each.name))


def _main(meshes: list[Path]) -> Path | None:
    """The mesh that a run folder is about."""
    named = [mesh for mesh in meshes if mesh.stem == "asset"]
    plain = [mesh for mesh in meshes if not LEVEL.match(mesh.stem) and not COLLIDER.match(mesh.stem)]
    return next(iter(named or plain or meshes), None)


def _own_name(pattern: re.Pattern[str], path: Path) -> str:
    """A mesh's name without what makes it a level, or a collider."""
    found = pattern.match(path.stem)
    return found["name"] if found else path.stem


def _is_collider(path: Path, main: Path) -> bool:
    return bool(COLLIDER.match(path.stem)) and _own_name(COLLIDER, path) == _own_name(LEVEL, main)


def _levels(main: Path | None, meshes: list[Path]) -> dict[int, Path]:
    """The mesh and its levels of detail by their numbers; the one without a number is 0."""
    if main is None:
        return {}
    name, found = _own_name(LEVEL, main), dict[int, Path]()
    for mesh in meshes:
        if mesh.suffix.lower() == main.suffix.lower() and _own_name(LEVEL, mesh) == name:
            level = LEVEL.match(mesh.stem)
            found.setdefault(int(level["level"]) if level else 0, mesh)
    return found


def _offered(file: Path, shown: Path, main: Path | None) -> bool:
    """Of a run everything is offered; beside a mesh, what begins with its name, or as the files that it names do."""
    if shown.is_dir():
        return file.name not in {"progress.png", "metrics.jsonl", "log.txt"}
    if main is None:
        return False
    name = _own_name(LEVEL, main)
    return file.name.startswith((name, plain_word(name)))


def _json(folder: Path, name: str) -> tuple[dict[str, Any], str | None]:
    """What a JSON file in the folder says, and what is wrong with it; nothing where there is none."""
    path = located(folder, name)
    if path is None:
        return {}, None
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON + 1)
    except OSError as error:
        return {}, f"{name} cannot be read ({error.strerror or error})."
    if len(content) > MOST_JSON:
        return {}, f"{name} is larger than {MOST_JSON >> 20} MiB and was not read."
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}, f"{name} is broken; what it would say is missing here."
    if not isinstance(found, dict):
        return {}, f"{name} is not what a run writes; what it would say is missing here."
    return found, None


def _request(request: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, as far as recipe.json tells."""
    recipe, picture, seed = _table(request.get("recipe")), _table(request.get("picture")), request.get("seed")
    return {
        "prompt": _text(request.get("prompt")) or _text(picture.get("name")).replace("-", " "),
        "recipe": _text(recipe.get("name")),
        "about": _text(recipe.get("about")),
        "negative": _text(request.get("negative")),
        "seed": str(seed) if isinstance(seed, int) else "",  # JavaScript's numbers end at 2^53
    }


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value[:2000] if isinstance(value, str) else ""


def _total(report: dict[str, Any]) -> float | None:
    """Seconds of all stages."""
    taken = [number(each) for each in _table(report.get("seconds")).values()]
    return round(sum(each for each in taken if each is not None), 1) if taken else None


def _share(stages: list[dict[str, Any]]) -> float:
    """Of all steps, those that are done."""
    return sum(stage["step"] for stage in stages) / max(1, sum(stage["steps"] for stage in stages))


def _notes(log: Path | None) -> list[str]:
    """The last lines of log.txt."""
    if log is None:
        return []
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            return file.read().decode("utf-8", "replace").splitlines()[-12:]
    except OSError:
        return []


def _made(path: Path) -> float:
    """When a mesh was written, or a run began or went on."""
    return _changed(path / "recipe.json" if path.is_dir() else path)


def _changed(path: Path) -> float:
    """When, in seconds since 1970; 0 where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _held(lock: Path) -> bool | None:
    """Whether a process holds a file's lock; None where the system does not tell, which is everywhere but on Linux."""
    try:
        inode = str(lock.stat().st_ino)
        held = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    except (OSError, ValueError):
        return None
    return any(words[1:2] == ["FLOCK"] and words[5].rpartition(":")[2] == inode for words in held)


def _silence(folder: Path) -> float:
    """Seconds since the run last wrote anything."""
    signs = ("recipe.json", "metrics.jsonl", "log.txt", "progress.png", "checkpoints", "asset.glb", "asset.obj")
    return time.time() - max(_changed(folder / name) for name in signs)
