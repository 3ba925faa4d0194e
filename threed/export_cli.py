"""The command line of `threed export RUN_OR_MESH`: the files that one engine wants, and a report of what was done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from threed.errors import Mistake, unknown
from threed.flags import HEIGHT, TEXTURE, check_ranges, make_folder, said

if TYPE_CHECKING:
    from threed.exporters.package import Package, Wanted
    from threed.renderers.mesh import Asset, Mesh

FACES = (4, 2_000_000)
LONGEST = 255  # bytes of a file's name, on all systems
HELP = """Make of an asset what an engine wants: mended, within its budget, on the ground, with what belongs to it.

WHAT is the run folder of an earlier command, or a mesh: GLB, glTF, OBJ, PLY, STL, USDZ. The suffix of --output chooses
the format: .glb, .gltf (with .bin and PNGs), .obj (with .mtl and PNGs), .ply, .stl, .usdz. Faces that are double, have
no area or face inward are always mended; NAME_report.json beside the output says what was done and what check finds
then.

Presets, as exporters/presets.py has them:
  web      50,000 triangles
  godot    50,000, three levels of detail, a hull in a node NAME_00-convcolonly, which Godot makes a collision shape
  unity    50,000, three levels of detail
  unreal   50,000, three levels of detail, a hull called UCX_NAME_00
  roblox   20,000, watertight, textures of 1024, the origin in its middle
  print    watertight, its overlapping parts made one; OBJ, PLY and STL in millimetres with +Z up

Colliders that a file has of its own are kept, under the names that the preset's engine looks for; --collider makes new
ones. Levels of detail are files NAME_lod1 ... with textures of their own, half as large each time.

For example:
  threed export outputs/a-wooden-barrel-0 --preset godot --output game/barrel.glb
  threed export chair.obj --preset roblox --output chair.glb
  threed export statue.stl --faces 5000 --normal-map --output statue.glb    # keeps its detail in a normal map
  threed export outputs/a-grey-rock-0 --preset print --height 0.08 --output rock.stl
"""


@dataclass(frozen=True)
class Export:
    """What `threed export` was asked for, as it was typed; None where the preset decides."""

    what: Annotated[tyro.conf.Positional[Path], said("A run folder or a mesh.", metavar="WHAT")]
    output: Annotated[Path | None, said("The file; its suffix is the format.", "<what>-<preset>, here")] = None
    preset: Annotated[str, said("For web, godot, unity, unreal, roblox or print.")] = "web"
    faces: Annotated[int | None, said(f"Triangles at most, {FACES[0]} to {FACES[1]}.", "the preset's")] = None
    texture_size: Annotated[
        int | None, said(f"Texels a side, a power of two, {TEXTURE[0]} to {TEXTURE[1]}.", "as they are")
    ] = None
    height: Annotated[float | None, said(f"Metres, {HEIGHT[0]:g} to {HEIGHT[1]:g}.", "as tall as it is")] = None
    lods: Annotated[bool, said("Leave the levels of detail out.", "off")] = True
    collider: Annotated[
        str | None,
        said("none, hull, or parts: up to 16 convex ones that follow the shape.", "its own, or the preset's"),
    ] = None
    watertight: Annotated[bool, said("Close it, whatever it takes.", "where the preset does")] = False
    normal_map: Annotated[bool, said("Bake the shape that simplification takes away.", "off")] = False
    occlusion: Annotated[bool, said("Bake an occlusion map: dark where little light gets in.", "off")] = False
    compress: Annotated[
        str | None, said("draco: beside each GLB a smaller one, NAME_draco.glb, that needs a decoder.", "off")
    ] = None


def main(asked: Export) -> None:
    """`threed export`: check everything, make the files, say where they are. Raises Mistake."""
    from threed.check_cli import mesh_of

    source = mesh_of(asked.what)
    wanted, output = resolve(asked, source)

    from threed.exporters import files
    from threed.exporters.package import packed
    from threed.machine import set_threads

    set_threads()
    asset, own = read(source)
    try:
        package = packed(asset, wanted, own)
    except ValueError as error:
        raise Mistake(f"cannot export {str(source)!r}: {error}") from error
    check_names(package, output, source)
    make_folder(output.parent, "--output", output)
    for name, content in package.files.items():
        files.write(output.with_name(name), content)
    told = report(asked, package, output)
    name = f"{output.stem}_report.json"
    files.write(
        output.with_name(name), json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    )
    summarise(package, told, output, name)


def resolve(asked: Export, source: Path) -> tuple[Wanted, Path]:
    """What is wanted, every name looked up, and where it goes. Raises Mistake before any work."""
    check_ranges(asked, {"faces": FACES, "texture_size": TEXTURE, "height": HEIGHT})
    if asked.texture_size is not None and asked.texture_size.bit_count() != 1:
        raise Mistake(f"--texture-size is {asked.texture_size}; it must be a power of two, for example 1024")

    from threed.check_cli import preset_of
    from threed.exporters import ENCODERS
    from threed.exporters.package import COLLIDERS, COMPRESSED, Wanted

    preset = preset_of(asked.preset)
    assert preset
    if not source.is_file():
        raise Mistake(f"there is no mesh {str(source)!r}; name a run folder that is finished, or a mesh")
    if asked.collider is not None and asked.collider not in COLLIDERS:
        raise unknown("collider", asked.collider, COLLIDERS)
    stem = asked.what.resolve().name if asked.what.is_dir() else asked.what.stem
    output = asked.output or Path(f"{stem}-{preset.name}{preset.suffix}")
    if output.is_dir():
        raise Mistake(f"{str(output)!r} is a folder; name a file in it, for example --output {output / 'asset.glb'}")
    suffix = output.suffix.lower()
    if suffix not in ENCODERS:
        raise Mistake(f"--output is {str(output)!r}; its name must end with one of {', '.join(ENCODERS)}")
    check_length(output)
    if asked.compress is not None:
        check_compression(asked.compress, COMPRESSED, suffix)
    return (
        Wanted(
            preset=preset,
            suffix=suffix,
            name=output.stem,
            height=asked.height,
            triangles=asked.faces,
            texels=asked.texture_size,
            lods=asked.lods,
            collider=asked.collider,
            watertight=asked.watertight or None,
            normal_map=asked.normal_map,
            occlusion=asked.occlusion,
            compress=asked.compress,
        ),
        output.with_suffix(suffix),
    )


def check_compression(name: str, known: Iterable[str], suffix: str) -> None:
    """That there is such a one, that it is of a GLB, and that its package is there. Raises Mistake."""
    if name not in known:
        raise unknown("compression", name, known)
    if suffix != ".glb":
        raise Mistake(
            f"--compress {name} makes a second GLB, and --output ends with {suffix}; use .glb or leave it out"
        )
    if find_spec("DracoPy") is None:
        raise Mistake('--compress draco needs the package DracoPy; pip install "threed-assets[compress]"')


def check_length(output: Path) -> None:
    """That all files that are named after it have names that a disk takes. Raises Mistake."""
    longest = f".{output.stem}_lod9_metallic_roughness.png.partial"
    if (size := len(os.fsencode(longest))) > LONGEST:
        raise Mistake(
            f"the name of --output is {size - LONGEST} bytes too long ({output.name[:30]}...); choose a shorter one"
        )


def read(source: Path) -> tuple[Asset, dict[str, Mesh]]:
    """An asset, and the colliders that the file has for it. Raises Mistake for a file that cannot be read."""
    from threed.renderers import read

    try:
        return read.read(source), read.colliders(source)
    except ValueError as error:
        raise Mistake(str(error)) from error


def check_names(package: Package, output: Path, source: Path) -> None:
    """That nothing would be written over what is being exported. Raises Mistake."""
    for name in package.files:
        if output.with_name(name).resolve() == source.resolve():
            raise Mistake(f"--output would replace {str(source)!r}, which is exported; choose another name or folder")


def report(asked: Export, package: Package, output: Path) -> dict[str, Any]:
    """What was asked for, what was done, and what there is now, as plain values."""
    from threed.check_cli import as_json, judged, preset_of
    from threed.renderers.read import SUFFIXES

    preset = preset_of(asked.preset)
    readable = [output.with_name(name) for name in package.assets if name.endswith(SUFFIXES)]
    if find_spec("pxr") is None:
        readable = [path for path in readable if path.suffix != ".usdz"]
    judgements = [as_json(*judged(path, preset)) for path in readable]
    for each in judgements:
        each["file"] = Path(each["file"]).name
    return {
        "source": str(asked.what),
        "preset": asked.preset,
        "done": package.done,
        "files": {name: len(content) for name, content in package.files.items()},
        "check": judgements,
    }


def summarise(package: Package, told: dict[str, Any], output: Path, name: str) -> None:
    """What was done, what is there, and what is still wrong with it."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in package.done:
        console.print(line)
    for file, content in package.files.items():
        console.print(f"{output.with_name(file)}  {len(content) / 1000:,.0f} kB")
    console.print(str(output.with_name(name)))
    for each in told["check"][0]["findings"] if told["check"] else ():
        if each["severity"] != "note":
            console.print(f"{each['severity']}: {each['message']} ({each['remedy']})")
