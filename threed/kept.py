"""Networks that a process reads once and makes many assets with: inside `keeping()`, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P, T = ParamSpec("P"), TypeVar("T")
_stores: list[dict[str, tuple[Any, Any]]] = []  # of the process; none while nothing is kept


@contextmanager
def keeping() -> Iterator[None]:
    """What `kept` functions return in here they return again, as long as they are asked for the same."""
    _stores.append({})
    try:
        yield
    finally:
        _stores.pop()


def kept(load: Callable[P, T]) -> Callable[P, T]:
    """The same function, whose last answer is kept: for what reads a folder and gives something that nobody changes.

    The first argument is the folder; where one of its files is another one than before, all is read anew.
    """

    def loaded(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _stores:
            return load(*args, **kwargs)
        store, name = _stores[-1], f"{load.__module__}.{load.__qualname__}"
        key = args, sorted(kwargs.items()), _stamps(Path(str(args[0])))
        if name not in store or store[name][0] != key:
            store.pop(name, None)  # before the next one needs the room
            store[name] = key, load(*args, **kwargs)
        found: T = store[name][1]
        return found

    return loaded


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Every file below, its size and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
