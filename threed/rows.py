"""A list of assets to make: CSV with a header, plain text with a prompt a line, or JSON lines.

A row is one `threed text`, or one `threed image` where it names a picture; its columns are their flags, and `name`, the
run folder's. Cells are kept as they were typed: an empty one is none. The list is not trusted: its size is bounded, and
names cannot lead out of the library.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from threed.errors import Mistake, unknown
from threed.image_cli import Picture
from threed.run import SLUG_LENGTH, slug
from threed.text_cli import Text

MOST_BYTES, MOST_ROWS = 16 * 2**20, 10_000
SUFFIXES = (".csv", ".txt", ".jsonl")
OWN = {"output", "view", "resume", "overwrite"}  # what the batch itself says of every run
FLAGS: dict[type, dict[str, Any]] = {
    kind: {each.name: typing.get_type_hints(kind)[each.name] for each in fields(kind) if each.name not in OWN}
    for kind in (Text, Picture)
}
COLUMNS = sorted({"image", "name"} | set(FLAGS[Text]) | set(FLAGS[Picture]) - {"picture"})
TRUTH = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
NAME = re.compile(r"\w[\w.-]{0,98}\w|\w")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, to Windows


@dataclass(frozen=True)
class Row:
    line: int  # of the file, from 1
    cells: dict[str, str]  # those that say something, by column
    home: str = "."  # the list's folder, from which files are looked for

    @property
    def kind(self) -> type[Text] | type[Picture]:
        return Picture if "image" in self.cells else Text

    @property
    def subject(self) -> str:
        """What it is about, in the user's words."""
        return self.cells.get("prompt") or self.cells.get("image", "")

    @property
    def name(self) -> str:
        """Of its run folder: as the single commands name theirs, with a digest where the prompt had to be cut."""
        if "name" in self.cells:
            return self.cells["name"]
        image = self.cells.get("image")
        subject = Path(image).stem if image else self.cells.get("prompt", "")
        short = slug(subject)
        if len(short) >= SLUG_LENGTH - 1:
            short += "-" + hashlib.sha256(subject.encode()).hexdigest()[:8]
        return f"{short}-{self.cells.get('seed', 0)}"

    def asked(self, folder: Path, overwrite: bool = False) -> Text | Picture:
        """The single command that makes it in this folder, or goes on there. Raises Mistake."""
        given: dict[str, Any] = {}
        for column, cell in self.cells.items():
            flag = "picture" if column == "image" else column
            if flag == "name":
                continue
            if flag not in FLAGS[self.kind]:
                other = "one with a picture" if self.kind is Text else "one without a picture"
                raise Mistake(f"{column} is {cell!r}, and only {other} has that; leave it empty")
            given[flag] = converted(column, cell, FLAGS[self.kind][flag])
        for flag in ("picture", "mask", "lora"):  # files beside the list
            if flag in given:
                given[flag] = Path(self.home) / given[flag]
        for flag in ("start", "prior", "control"):  # and what may be one
            if flag in given:
                given[flag] = beside(self.home, given[flag])
        if self.kind is Text and "prompt" not in given:
            raise Mistake("there is neither a prompt nor an image; give it one of them")
        return self.kind(**given, output=folder, resume=not overwrite, overwrite=overwrite)


def beside(home: str, name: str) -> str:
    """A name as it is seen from the list's folder, where it is there; what stands before its colon stays."""
    said, path = re.fullmatch(r"((?:sd|depth|normal):)?(.*)", name, re.DOTALL).groups("")  # type: ignore[union-attr]
    there = Path(home) / path
    return f"{said}{there}" if path and there.exists() else name


def converted(column: str, cell: str, kind: Any) -> Any:
    """A cell as the flag's type. Raises Mistake."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(cell.replace(",", " ").split())
    if kind is bool:
        if cell.lower() not in TRUTH:
            raise Mistake(f"{column} is {cell!r}; write yes or no")
        return TRUTH[cell.lower()]
    try:
        return kind(cell)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise Mistake(f"{column} is {cell!r}; write {what}") from error


def read(path: Path, everywhere: dict[str, str] | None = None) -> list[Row]:
    """All rows; cells that are empty hold `everywhere`. Raises Mistake for a file that is no such list."""
    where = repr(str(path))
    if path.suffix.lower() not in SUFFIXES:
        raise Mistake(f"{where} is no list of assets; use one of {', '.join(SUFFIXES)}")
    lines = {".csv": _csv, ".txt": _txt, ".jsonl": _jsonl}[path.suffix.lower()]
    try:
        found = list(lines(_decoded(path, where)))
    except (csv.Error, ValueError) as error:
        raise error if isinstance(error, Mistake) else Mistake(f"{where} cannot be read: {error}") from error
    everywhere = {_column(name): value for name, value in (everywhere or {}).items()}
    # A picture that every row lacks is no default, and a seed of the row's own is.
    rows = [Row(line, everywhere | {k: v for k, v in cells.items() if v}, str(path.parent)) for line, cells in found]
    if not rows:
        raise Mistake(f"{where} has no rows; write at least one, for example: prompt,seed / a wooden barrel,0")
    if len(rows) > MOST_ROWS:
        raise Mistake(f"{where} has {len(rows):,} rows of at most {MOST_ROWS:,}; divide it")
    return rows


def misnamed(rows: list[Row]) -> dict[int, str]:
    """By line, what is wrong with the names of run folders; they may not differ by case alone."""
    first: dict[str, int] = {}
    wrong = {}
    for row in rows:
        if not NAME.fullmatch(row.name) or RESERVED.fullmatch(row.name):
            wrong[row.line] = (
                f"name is {row.name!r}; use letters, digits, '-', '_' and '.', at most 100, as a file name"
            )
        elif (line := first.setdefault(row.name.lower(), row.line)) != row.line:
            wrong[row.line] = f"name is {row.name!r}, as in line {line}; give it another name, or another seed"
    return wrong


def _decoded(path: Path, where: str) -> str:
    """UTF-8, with a byte-order mark or without, or UTF-16 with one. Raises Mistake."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise Mistake(f"there is no file {where}; check the path") from error
    except OSError as error:
        raise Mistake(f"{where} cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > MOST_BYTES:
        raise Mistake(f"{where} is larger than {MOST_BYTES >> 20} MiB; divide it")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Mistake(f"{where} is not in UTF-8 (line {line}); save it again as CSV UTF-8") from error
    if "\0" in text:
        raise Mistake(f"{where} holds zero bytes and is no text; save it again as CSV UTF-8")
    return text


def _csv(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Separated by commas, semicolons or tabs, whichever the header has most of. Raises Mistake, csv.Error."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Mistake(f"line {line} cannot be read ({error}); close its quotes, and double those within") from error
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not columns:
            columns = [_column(cell) for cell in cells]
            if len(set(columns)) < len(columns):
                twice = next(each for each in columns if columns.count(each) > 1)
                raise Mistake(f"column {twice!r} is there twice; remove one of them")
        elif len(cells) > len(columns) and any(cells[len(columns) :]):
            raise Mistake(
                f"line {line} has {len(cells)} cells, and the header {len(columns)}; put a prompt that holds a comma "
                "between double quotes"
            )
        else:
            yield line, dict(zip(columns, cells, strict=False))


def _txt(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    yield from ((number, {"prompt": line.strip()}) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _jsonl(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Raises Mistake."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Mistake(f"line {number} is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise Mistake(f'line {number} is no JSON object; write, for example: {{"prompt": "a wooden barrel"}}')
        yield number, {_column(name): _cell(value) for name, value in found.items() if value is not None}


def _cell(value: Any) -> str:
    """A JSON value as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def _column(name: str) -> str:
    """As `COLUMNS` has it. Raises Mistake."""
    plain = name.strip().lower().lstrip("-").replace("-", "_").replace(" ", "_")
    plain = "image" if plain == "picture" else plain
    if plain not in COLUMNS:
        raise unknown("column", name, COLUMNS)
    return plain
