"""The command line: `threed text`, `image`, `edit`, `batch`, `export`, `check`, `view`, `prior ...`, `doctor`.

Everything a user can get wrong is checked before any work, the cheap things before PyTorch is imported. Exit codes:
0 done, 1 the run cannot go on (a full disk), 2 a mistake in what was asked for, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from threed import (
    __version__,
    batch_cli,
    check_cli,
    commands,
    edit_cli,
    export_cli,
    image_cli,
    prior_cli,
    text_cli,
    view_cli,
)
from threed.commands import Command, Group
from threed.errors import FULL, Failure, Mistake

ROOM = {"text": 50, "batch": 500, "prior": 2000}  # MB that a run, or a training between two checkpoints, writes at most
ABOUT = """A sentence or a picture becomes a game-ready 3D asset, on any machine. For example:

  threed text "a wooden barrel"
  threed image chair.png                                     # or out of a picture
  threed edit outputs/a-wooden-barrel-0 "a purple barrel"    # change it
  threed batch prompts.csv --output library                  # all of a list
  threed export outputs/a-wooden-barrel-0 --preset godot --output barrel.glb    # LODs, colliders, budgets
  threed check barrel.glb                                    # judge any mesh file
  threed view                                                # look at all that was made
  threed prior train assets --output my_prior                # learn from your own assets

threed COMMAND --help explains a command, threed --version says which version this is.
"""
DOCTOR_HELP = "Say what this machine offers and what is missing; exit code 1 if a run would fail."


@dataclass(frozen=True)
class Doctor:
    """`threed doctor` takes no flags."""


def examine(_: Doctor) -> int:
    """`threed doctor`: look at everything; 1 if anything stops a run."""
    from threed import doctor

    return doctor.main()


COMMANDS = Group(
    ABOUT,
    {
        "text": Command(text_cli.Text, text_cli.HELP, text_cli.main),
        "image": Command(image_cli.Picture, image_cli.HELP, image_cli.main),
        "edit": Command(edit_cli.Edit, edit_cli.HELP, edit_cli.main),
        "batch": Command(batch_cli.Batch, batch_cli.HELP, batch_cli.main),
        "export": Command(export_cli.Export, export_cli.HELP, export_cli.main),
        "check": Command(check_cli.Check, check_cli.HELP, check_cli.main),
        "view": Command(view_cli.View, view_cli.HELP, view_cli.main),
        "prior": prior_cli.COMMANDS,
        "doctor": Command(Doctor, DOCTOR_HELP, examine),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        Console().print(f"threed {__version__}", highlight=False)
        return 0
    try:
        return commands.run("threed", COMMANDS, arguments)
    except Mistake as mistake:
        return complain(str(mistake), 2)
    except Failure as failure:
        return complain(str(failure), 1)
    except BrokenPipeError:  # `threed ... | head` has read enough; Python must not flush into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return complain(f"the file system takes no name as long as {error.filename!r}; give a shorter one", 2)
        if error.errno not in FULL:
            raise
        room = ROOM.get(arguments[0], ROOM["text"])
        return complain(f"the disk is full ({error}); free {room} MB and continue with: {again(arguments)}", 1)
    except KeyboardInterrupt:
        return complain(f"stopped; continue with: {again(arguments)}", 130)


def again(arguments: Sequence[str]) -> str:
    """The command that goes on where this one was stopped."""
    if arguments[:1] not in (["text"], ["image"], ["edit"]):
        return shlex.join(["threed", *arguments])
    return shlex.join(["threed", *(a for a in arguments if a not in {"--resume", "--overwrite"}), "--resume"])


def complain(message: str, code: int) -> int:
    """One line on stderr."""
    sys.stderr.write(f"threed: {message}\n")
    return code
