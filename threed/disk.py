"""Files that survive kill -9, a power cut and a full disk.

A file appears whole or not at all, a record is appended whole or not at all, and a lock ends with its process.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room on the disk, in the user's quota, below the file size limit


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, on the disk itself before this returns. Raises OSError and leaves no half file."""
    # A fixed name: what a killed process left behind is overwritten by the next one instead of piling up.
    partial = path.with_name(partial_name(path.name))
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":  # which cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name is the folder's data
        finally:
            os.close(folder)


def partial_name(name: str) -> str:
    """What a file is called while it is being written."""
    return f".{name}.partial"


def append(path: Path, record: bytes) -> None:
    """Add one record at the end. Raises OSError and leaves the file as it was."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(record)
    except BaseException:
        if path.exists():
            os.truncate(path, before)
        raise


def lock(path: Path) -> BinaryIO | None:
    """The opened and locked file, or None when another process holds it; closing it, or dying, gives it back."""
    file = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}:
            return None
        raise
    return file
