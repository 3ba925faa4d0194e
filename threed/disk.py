"""Files that survive kill -9, a power cut and a full disk.

A file appears whole or not at all, a record is appended whole or not at all, and a lock ends with its process.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

from threed.exporters.files import partial_name, write

__all__ = ["append", "lock", "partial_name", "write"]


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
