"""Commands by their names: what they say of themselves, and what is said of names that are none."""

from dataclasses import dataclass

import pytest

from threed import cli
from threed.commands import WIDEST, Command, Group, filled, run
from threed.errors import Mistake


@dataclass(frozen=True)
class Flags:
    number: int = 3


def commands(done: list) -> Group:
    def five(flags: Flags) -> int:
        return done.append(flags) or 5

    inner = Group(
        "Two words.\n\nMore of them.",
        {name: Command(Flags, f"Do {name}.", done.append) for name in ("nothing", "less")},
    )
    return Group("All.", {"five": Command(Flags, "Return five.\n\nAlways.", five), "inner": inner})


def told(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run("program", commands([]), arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_a_command_is_given_its_flags_and_returns_its_exit_code():
    done = []
    assert run("program", commands(done), ["five", "--number", "4"]) == 5
    assert run("program", commands(done), ["inner", "nothing"]) == 0
    assert done == [Flags(4), Flags(3)]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--help", "five"]])
def test_a_list_has_a_line_a_command(capsys, arguments):
    listed = told(capsys, *arguments)
    assert "Return five." in listed
    assert "Two words." in listed
    assert "Always." not in listed
    assert "More of them." not in listed


def test_helps_name_the_whole_command(capsys):
    assert "usage: program inner [-h] {nothing,less}" in told(capsys, "inner")
    assert "usage: program inner nothing [-h]" in told(capsys, "inner", "nothing", "-h")
    assert "Always." in told(capsys, "five", "--help")


def test_bad_flags_lead_to_the_help_of_their_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("program", commands([]), ["inner", "nothing", "--number", "many"])
    assert stopped.value.code == 2
    assert "program inner nothing --help" in capsys.readouterr().err


def test_a_name_that_is_none():
    with pytest.raises(Mistake, match="unknown command 'fiv'; did you mean 'five'\\? known: five, inner"):
        run("program", commands([]), ["fiv"])
    with pytest.raises(Mistake, match="unknown command '--number'; known: less, nothing"):
        run("program", commands([]), ["inner", "--number", "3"])


ABOUT = """Make it.

A long sentence that goes on from one line of the source to the next,
(with a bracket at its beginning) and --flags.

Kinds, as a table has them:
  one           Zero-1-to-3 is not to be broken at its hyphens
  twenty-seven  short
After the list.

  program make it --in "one line that is to be copied"    # whatever the width
"""


def test_paragraphs_are_filled_and_lists_hang(monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    assert filled(ABOUT) == (
        "Make it.\n"
        "\n"
        "A long sentence that goes on from one line\n"
        "of the source to the next, (with a bracket\n"
        "at its beginning) and --flags.\n"
        "\n"
        "Kinds, as a table has them:\n"
        "  one           Zero-1-to-3 is not to be\n"
        "                broken at its hyphens\n"
        "  twenty-seven  short\n"
        "After the list.\n"
        "\n"
        '  program make it --in "one line that is to be copied"    # whatever the width'
    )


@pytest.mark.parametrize("columns", [60, 300])
def test_helps_are_printed_line_by_line(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, command in cli.COMMANDS.commands.items():
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        assert f"\n\n{filled(command.about)}\n\n" in capsys.readouterr().out
        prose = [line for line in filled(command.about).splitlines() if not line.startswith(" ")]
        assert max(map(len, prose)) <= min(columns, WIDEST)
