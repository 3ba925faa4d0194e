"""Commands by their names: how one is found, how it explains itself, and how it is run.

Helps are written in lines of at most 120 characters. Lines that begin with a space are kept, all others are paragraphs,
which are filled to the width of the terminal.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Union

import tyro

from threed.errors import unknown

CONFIG = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
HELP = ("-h", "--help")
wrap = partial(textwrap.wrap, break_on_hyphens=False, break_long_words=False)
WIDEST = 120  # characters of a line of help


@dataclass(frozen=True)
class Command:
    """A command that does something."""

    flags: Callable[..., Any]  # a dataclass of what it can be told
    about: str  # its help; the first line is what a list of commands says of it
    run: Callable[[Any], int | None]  # given the flags; None is exit code 0


@dataclass(frozen=True)
class Group:
    """Commands behind a common word, or all that there are."""

    about: str
    commands: Mapping[str, Command | Group]


def run(name: str, group: Group, arguments: Sequence[str]) -> int:
    """The exit code of the command that `arguments` begin with; without any, its group explains itself.

    Raises Mistake for a command that is not there, and SystemExit: 0 after help, 2 for flags that tyro cannot read.
    """
    first, *rest = arguments or HELP[:1]
    if first in HELP:
        tyro.cli(overview(group), prog=name, description=filled(group.about), args=HELP[:1])
    match group.commands.get(first):
        case Group() as inner:
            return run(f"{name} {first}", inner, rest)
        case Command(flags, about, carry_out):
            asked = tyro.cli(flags, prog=f"{name} {first}", description=filled(about), args=rest, config=CONFIG)
            return carry_out(asked) or 0
    raise unknown("command", first, group.commands)


def overview(group: Group) -> Any:
    """What tyro makes a list of commands of: a line each."""
    lines = {name: each.about.partition("\n")[0] for name, each in group.commands.items()}
    kinds = [
        Annotated[make_dataclass(name, []), tyro.conf.subcommand(name, description=line)]
        for name, line in lines.items()
    ]
    return Union[tuple(kinds)]  # noqa: UP007 (a union of as many as there are)


class Filled(str):
    """Text that tyro prints as it is; lines of others it joins, for the terminal to break anywhere."""

    def split(self, *_: object) -> list[str]:  # type: ignore[override]
        return [str(self)]


def filled(about: str) -> Filled:
    """A help in lines that the terminal holds, as far as they may be broken."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = []
    for kept, together in groupby(about.rstrip().split("\n"), lambda line: line[:1] in ("", " ")):
        if kept:
            lines += [part for line in together for part in entry(line, width)]
        else:
            lines += wrap(" ".join(together), width)
    return Filled("\n".join(lines))


def entry(line: str, width: int) -> list[str]:
    """An indented line; of a list of names, what is said of each stays beside the names."""
    listed = re.match(r" +[\w-]+ {2,}", line)
    return wrap(line, width, subsequent_indent=" " * listed.end()) if listed else [line]
