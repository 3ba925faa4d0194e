"""The two ways in which a command ends without an asset, and the words for them.

Every message names the value and the remedy. The command line prints it in one line, without a traceback; anything
else that is raised is a defect of the program and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room on the disk, in the user's quota, below the file size limit


class Mistake(ValueError):
    """What was asked for cannot be done; noticed before any work. Exit code 2."""


class Failure(RuntimeError):
    """What was asked for was fine, yet the run cannot go on. Exit code 1."""


class Crowded(Failure):
    """The memory is full, which may pass."""


def unknown(what: str, value: str, known: Iterable[str]) -> Mistake:
    """A name that is not in a table: says which are, and which of them was probably meant."""
    names = sorted(known)
    nearest = difflib.get_close_matches(value.lower(), names, n=1)
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    return Mistake(f"unknown {what} {value!r}; {guess}known: {', '.join(names)}")
