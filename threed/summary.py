"""What became of a list of assets: summary.csv, index.html and contact.png in the library's folder.

All three are made of what the run folders hold, so that they are right after any number of interruptions.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

from threed import disk
from threed.pictures import png

SIDE, COLUMNS, MOST = 160, 8, 400  # pixels of a picture on the contact sheet, how many a row, how many in all
FIRST = (8, 8, 264, 264)  # of preview.png: the front
SHOWN = ("name", "subject", "recipe", "seed", "state", "triangles", "seconds", "tries", "reason")
STYLE = """body{font:15px system-ui,sans-serif;margin:2em;background:#f7f7f5;color:#222}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:1em}
figure{margin:0;padding:.6em;background:#fff;border-radius:8px}figure img{width:100%}figcaption small{color:#666}
.failed{outline:2px solid #c33}.waiting{opacity:.5}"""


@dataclass(frozen=True)
class Line:
    """A row of the list and what became of it."""

    name: str
    subject: str  # the prompt, or the picture's file
    recipe: str
    seed: int
    state: Literal["finished", "failed", "waiting"]
    triangles: int | None = None
    seconds: float | None = None  # of all its stages
    tries: int = 0  # in this call
    reason: str = ""  # why it failed


def figures(folder: Path) -> dict[str, Any]:
    """Triangles and seconds as a finished run's report has them; nothing where it cannot be read."""
    try:
        report = json.loads((folder / "report.json").read_bytes())
        return {"triangles": int(report["triangles"]), "seconds": round(sum(report["seconds"].values()), 1)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def write(library: Path, lines: Sequence[Line], pictures: bool = True) -> None:
    """Replace the files, each as a whole; without `pictures` only summary.csv. Raises OSError."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(SHOWN)
    writer.writerows([["" if (value := getattr(line, name)) is None else value for name in SHOWN] for line in lines])
    disk.write(library / "summary.csv", stream.getvalue().encode())
    if pictures:
        disk.write(library / "index.html", page(library.resolve().name, lines).encode())
        disk.write(library / "contact.png", png(contact(library, lines)))


def page(title: str, lines: Sequence[Line]) -> str:
    """One page without scripts; its pictures are those of the run folders beside it."""
    states = ", ".join(f"{count} {state}" for state, count in counted(lines).items())
    figures = "\n".join(map(_figure, lines))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f'<h1>{html.escape(title)}</h1><p>{states}. <a href="summary.csv">summary.csv</a>; '
        f"to turn them around: <code>threed view</code> and this folder.</p>\n<main>\n{figures}\n</main></html>\n"
    )


def counted(lines: Sequence[Line]) -> Mapping[str, int]:
    """How many lines there are of each state that there is."""
    states = [line.state for line in lines]
    return {state: states.count(state) for state in ("finished", "failed", "waiting") if state in states}


def contact(library: Path, lines: Sequence[Line]) -> Image.Image:
    """The front of every finished asset with its name; a blank for what is none."""
    lines = lines[:MOST]
    columns, high = max(1, min(COLUMNS, len(lines))), SIDE + 20
    paper = Image.new("RGB", (columns * SIDE, -(-len(lines) // columns) * high or 1), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(11)
    for index, line in enumerate(lines):
        row, column = divmod(index, columns)
        try:
            with Image.open(library / line.name / "preview.png", formats=("PNG",)) as preview:
                paper.paste(preview.convert("RGB").crop(FIRST).resize((SIDE, SIDE)), (column * SIDE, row * high))
        except (OSError, ValueError, SyntaxError):
            pen.text((column * SIDE + SIDE // 2, row * high + SIDE // 2), line.state, "grey", font, anchor="mm")
        pen.text((column * SIDE + SIDE // 2, row * high + SIDE + 10), line.name[:26], "black", font, anchor="mm")
    return paper


def _figure(line: Line) -> str:
    at, name, subject = quote(line.name), html.escape(line.name), html.escape(line.subject)
    done = line.state == "finished"
    shown = (
        f'<a href="{at}/asset.glb"><img loading="lazy" src="{at}/turntable.webp" alt="{subject}"></a>' if done else ""
    )
    told = f"{line.triangles or 0:,} triangles, {line.seconds or 0:g} s" if done else html.escape(line.reason)
    return (
        f'<figure class="{line.state}">{shown}<figcaption><b>{subject}</b><br><small>{name}: {line.state}, '
        f"{html.escape(line.recipe)}, seed {line.seed}. {told}</small></figcaption></figure>"
    )
