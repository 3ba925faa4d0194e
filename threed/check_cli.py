"""The command line of `threed check FILE...`: what is wrong with mesh files, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from threed.errors import Mistake, unknown
from threed.flags import said

if TYPE_CHECKING:
    from threed.exporters.findings import Finding
    from threed.exporters.presets import Preset
    from threed.renderers.document import Document

COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
HELP = """Judge mesh files before a game meets them: GLB, glTF, OBJ, PLY, STL, USDZ, or a run folder.

One line says what is in a file, and one what was found for each finding: an error (engines refuse the file or show it
wrongly), a warning (some do, or work with it will go wrong), a note (it may be meant), each with its remedy. With
--preset, what that engine does not take is an error, and OBJ, PLY and STL are taken to be in its unit and its axes.

Exit code: 0 for notes and less, 1 for warnings, 2 for errors, among them files that cannot be read.

For example:
  threed check outputs/a-wooden-barrel-0
  threed check *.glb --preset roblox
  threed check chair.obj --json | jq .[].findings
"""


@dataclass(frozen=True)
class Check:
    """What `threed check` was asked for, as it was typed."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], said("Meshes, or run folders.", "none", metavar="FILE...")]
    preset: Annotated[
        str | None, said("Judge for web, godot, unity, unreal, roblox or print.", "what all of them want")
    ] = None
    json: Annotated[bool, said("Write one JSON list to stdout instead of text.", "off")] = False


def main(asked: Check) -> int:
    """Check all files; returns the exit code. Raises Mistake for a wrong call."""
    if not asked.files:
        raise Mistake("there is no file to check; name at least one, for example: threed check chair.glb")
    from threed.exporters.findings import worst

    preset = preset_of(asked.preset)
    results = [judged(mesh_of(path), preset) for path in asked.files]
    if asked.json:
        print(json.dumps([as_json(*each) for each in results], indent=2, allow_nan=False))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for path, figures, findings in results:
            show(console, path, figures, findings)
    return max(worst(findings) for _, _, findings in results)


def preset_of(name: str | None) -> Preset | None:
    """Raises Mistake for a name that is in no table."""
    from threed.exporters.presets import PRESETS

    if name is not None and name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name] if name else None


def mesh_of(path: Path) -> Path:
    """The asset, of a run folder."""
    return path / "asset.glb" if path.is_dir() else path


def judged(path: Path, preset: Preset | None) -> tuple[Path, dict[str, Any], list[Finding]]:
    """A file's figures, and what was found; a file that cannot be read has one finding."""
    from threed.exporters.findings import Finding, check
    from threed.exporters.package import righted
    from threed.renderers.read import opened

    try:
        document = opened(path)
    except ValueError as error:
        message, _, remedy = str(error).rpartition("; ")
        return path, {}, [Finding("error", "unreadable", message, remedy)]
    if preset:
        document = righted(document, path.suffix.lower(), preset)
    return path, figures(document), check(document, preset)


def figures(document: Document) -> dict[str, Any]:
    """What is in a file, as plain numbers: metres, texels, bytes."""
    import numpy as np

    from threed.exporters.findings import is_usable, pictures

    seen = [each for each in document.primitives if not each.is_collider]
    usable = [each for each in seen if is_usable(each)]
    used = [each.vertices[np.unique(each.faces)] for each in usable]
    low, high = (np.concatenate(used).min(0), np.concatenate(used).max(0)) if used else (np.zeros(3), np.zeros(3))
    return {
        "triangles": sum(len(each.faces) for each in seen),
        "vertices": sum(len(each.vertices) for each in seen),
        "meshes": len(seen),
        "materials": len({id(each.skin) for each in seen}),
        "colliders": len(document.primitives) - len(seen),
        "textures": sorted({picture.size for each in seen for picture in pictures(each)}),
        "size": (high - low).tolist(),
        "bytes": document.bytes,
    }


def show(console: Console, path: Path, about: dict[str, Any], findings: list[Finding]) -> None:
    """A line of figures, a line for each finding, and the verdict."""
    console.print(Text.assemble((str(path), "bold"), f"  {summary(about)}" if about else ""))
    for each in findings:
        label = Text(f"  {each.severity:<8}", COLOURS[each.severity])
        console.print(label + Text(f"{each.message} ({each.remedy})"))
    counts = {severity: sum(each.severity == severity for each in findings) for severity in COLOURS}
    told = [counted(n, severity) for severity, n in counts.items() if n]
    console.print("  " + (", ".join(told) or "nothing to find fault with"))


def counted(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def summary(about: dict[str, Any]) -> str:
    """The figures in a few words."""
    size = " x ".join(f"{x:.3g}" for x in about["size"])
    textures = ", ".join(f"{w} x {h}" for w, h in about["textures"]) or "no textures"
    counts = [counted(about["triangles"], "triangle"), counted(about["meshes"], "mesh", "meshes")]
    counts += [counted(about["colliders"], "collider")] if about["colliders"] else []
    counts += [counted(about["materials"], "material"), textures]
    return f"{', '.join(counts)}, {size} m, {about['bytes'] / 1000:,.0f} kB"


def as_json(path: Path, about: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    return {"file": str(path), "figures": about, "findings": [asdict(each) for each in findings]}
