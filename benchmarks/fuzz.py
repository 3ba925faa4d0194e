"""Broken files before every reader, for as long as one likes: no crash, no hang, no memory blow-up, no other error.

    python benchmarks/fuzz.py                    # ten minutes, over all readers in turn
    python benchmarks/fuzz.py --minutes 60 --seed 7 --readers glb obj

Whole files of every kind are written, and changed: bits, bytes and runs of them, lengths and offsets, cut off, doubled;
in text and in a GLB's JSON also numbers, names, paths that climb out, and nesting. A reader may take the result or
refuse it by the error that it documents. Each has a process of its own that is watched: what ends it, keeps it for
longer than PATIENCE seconds or lets it grow by more than ROOM bytes is found, and what it was given is kept in --keep.
The same seed makes the same files. Exit code 1 where anything was found. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from threed import photograph, rows
from threed.checkpoint import Torn
from threed.checkpoint import load as load_checkpoint
from threed.checkpoint import save as save_checkpoint
from threed.cli import main as threed
from threed.distill.folder import UnreadablePrior
from threed.distill.hub.checkpoint import header
from threed.errors import Mistake
from threed.exporters import draco, glb, gltf, obj, ply, stl, usdz
from threed.exporters.collider import hull
from threed.renderers.mesh import Asset, Material, Mesh

PATIENCE, ROOM = 20, 1 << 30
UNIT = 2.0 if sys.platform == "darwin" else 1024.0  # of ru_maxrss there, bytes: macOS counts them one by one
NUMBERS = (
    "-1",
    "0",
    "1",
    "255",
    "65535",
    "4294967295",
    "2147483648",
    "9223372036854775808",
    "1e308",
    "-1e-320",
    "1e999",
)
WORDS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "C:\\x",
    "data:;base64,AAAA",
)
WORDS += ("", "NaN", "Infinity", "null", "true", "[" * 5000, '{"a":' * 3000, "\u202e", "A" * 70_000)
BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80")
Refused = tuple[type[Exception], ...]
Reader = tuple[Callable[[Path], object], Refused, str]


def checked(path: Path) -> None:
    """`threed check` reads the mesh and looks for all that it looks for; it says itself what it cannot read."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if (code := threed(["check", str(path)])) not in (0, 1, 2):
            raise AssertionError(f"exit code {code}")


READERS: dict[str, Reader] = {
    **{kind: (checked, (), f"it.{kind}") for kind in ("glb", "gltf", "obj", "ply", "stl", "usdz")},
    "draco": (checked, (), "it_draco.glb"),
    **{kind: (photograph.read, (Mistake,), f"it.{kind}") for kind in ("png", "jpg", "webp", "gif", "tiff", "bmp")},
    **{kind: (rows.read, (Mistake,), f"rows.{kind}") for kind in ("csv", "jsonl")},
    "safetensors": (header, (UnreadablePrior,), "weights.safetensors"),
    "checkpoint": (load_checkpoint, (Torn,), "checkpoint.safetensors"),
}


def whole(folder: Path) -> None:
    """A good file for every reader, and what stands beside it."""
    torch.manual_seed(0)
    mesh = hull(torch.randn(24, 3).numpy())
    uvs, picture = torch.rand(12, 2), torch.rand(8, 8, 3)
    faces = torch.randint(12, (len(mesh.faces), 3))
    material = Material(picture, roughness_metallic=torch.rand(8, 8, 2))
    asset = Asset("it", Mesh(mesh.vertices, mesh.faces), uvs, faces, material)
    files = {"it.glb": glb.encode(asset, {"it-convcolonly": mesh}), "it_draco.glb": draco.encode(asset)}
    for encoder, name in ((gltf, "it.gltf"), (obj, "it.obj"), (ply, "it.ply"), (stl, "it.stl"), (usdz, "it.usdz")):
        files |= encoder.encode_files(asset, name)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    image = Image.new("RGBA", (24, 16), "beige")
    image.paste((120, 60, 20, 255), (6, 4, 18, 12))
    for kind in ("png", "webp", "gif", "tiff"):
        image.save(folder / f"it.{kind}")
    for kind in ("jpg", "bmp"):
        image.convert("RGB").save(folder / f"it.{kind}")
    (folder / "rows.csv").write_text('prompt,seed,steps,height\n"a barrel, big",3,20,1.5\na crate,,,\n')
    (folder / "rows.jsonl").write_text('{"prompt": "a barrel", "seed": 3, "format": ["glb"]}\n{"prompt": "a crate"}\n')
    (folder / "weights.safetensors").write_bytes(save({"a.weight": torch.rand(4, 3), "b": torch.rand(2)}))
    save_checkpoint(folder / "checkpoint.safetensors", {"step": 3, "state": [torch.rand(3), {"rate": 0.1}]})


def changed(content: bytes, name: str, dice: random.Random) -> bytes:
    """One to eight changes; of a GLB, half of the time in its JSON, with lengths that fit, of a USDZ in its scene."""
    if name.endswith(".glb") and dice.random() < 0.5:
        length = struct.unpack_from("<I", content, 12)[0]
        text = changed_text(content[20 : 20 + length], dice)
        text += b" " * (-len(text) % 4)
        rest = content[20 + length :]
        return b"glTF" + struct.pack("<III4s", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest
    if name.endswith(".usdz") and dice.random() < 0.8:  # an archive that is whole, as its sums would tell
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            scene, *others = ((each.filename, archive.read(each)) for each in archive.infolist())
        return usdz.archived({scene[0]: changed(scene[1], scene[0], dice), **dict(others)})
    textual = name.endswith((".gltf", ".obj", ".csv", ".jsonl", ".usda"))
    for _ in range(dice.randint(1, 8)):
        content = changed_text(content, dice) if textual and dice.random() < 0.7 else changed_bytes(content, dice)
    return content


def changed_bytes(content: bytes, dice: random.Random) -> bytes:
    if not content:
        return dice.randbytes(8)
    at = dice.randrange(len(content)) if dice.random() < 0.5 else dice.randrange(min(len(content), 200))
    end = min(len(content), at + dice.choice((1, 2, 4, 16, 256)))
    match dice.randrange(6):
        case 0:
            return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
        case 1:
            value = dice.choice(BYTES)
            return content[:at] + value + content[at + len(value) :]
        case 2:
            return content[:at]
        case 3:
            return content[:at] + content[end:]
        case 4:
            return content[:end] + content[at:]
        case _:
            return content[:at] + dice.randbytes(end - at) + content[end:]


def changed_text(content: bytes, dice: random.Random) -> bytes:
    """A number or a word is another one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?|[A-Za-z_./]+", content))
    if not found:
        return changed_bytes(content, dice)
    match = dice.choice(found)
    value = dice.choice(NUMBERS if match.group()[:1].isdigit() or dice.random() < 0.2 else WORDS)
    return content[: match.start()] + value.encode() + content[match.end() :]


def case(reader: str, seed: int, number: int, folder: Path) -> tuple[str, bytes]:
    name = READERS[reader][2]
    return name, changed((folder / name).read_bytes(), name, random.Random(f"{seed} {reader} {number}"))


def child(reader: str, seed: int, first: int, seconds: float) -> None:
    """Cases from `first` on, each told before it is read, its end after it: a line, so that who watches knows."""
    read, refused, _ = READERS[reader]
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole(folder)
        good = {path.name: path.read_bytes() for path in folder.iterdir()}
        read(folder / READERS[reader][2])  # the good one, so that everything is imported
        number, most = first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
        while time.monotonic() < end:
            name, content = case(reader, seed, number, folder)
            print(json.dumps({"begun": number}), flush=True)
            (folder / name).write_bytes(content)
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            said = "taken"
            try:
                read(folder / name)
            except refused:
                said = "refused"
            except Exception:
                said = traceback.format_exc(limit=-3)
            faulthandler.cancel_dump_traceback_later()
            (folder / name).write_bytes(good[name])
            before, most = most, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
            grown = most - before > ROOM
            print(json.dumps({"ended": f"grew by {(most - before) / 1e9:.1f} GB" if grown else said}), flush=True)
            number += 1


def watched(reader: str, seed: int, first: int, seconds: float) -> tuple[int, Counter[str], list[tuple[int, str]]]:
    """The next case, how many ended how, and what was found."""
    command = [sys.executable, __file__, "--child", reader, str(seed), str(first), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    number, ended, found = first, Counter[str](), list[tuple[int, str]]()
    for line in map(json.loads, done.stdout.splitlines()):
        if "begun" in line:
            number = line["begun"]
        elif line["ended"] in ("taken", "refused"):
            ended[line["ended"]] += 1
        else:
            found.append((number, line["ended"]))
    if done.returncode:
        found.append((number, f"the process ended with {done.returncode}: {done.stderr[-2000:]}"))
    return number + 1, ended, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--keep", type=Path, default=Path("outputs/fuzz"), help="where files go that found something")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        reader, *numbers = asked.child
        child(reader, int(numbers[0]), int(numbers[1]), float(numbers[2]))
        return 0
    share = 60 * asked.minutes / len(asked.readers)
    table, failed = (
        Table("reader", "taken", "refused", "found", title=f"{asked.minutes:g} minutes, seed {asked.seed}"),
        0,
    )
    for reader in asked.readers:
        ended, found, number, end = Counter[str](), list[tuple[int, str]](), 0, time.monotonic() + share
        while (left := end - time.monotonic()) > 1:
            number, more, new = watched(reader, asked.seed, number, left)
            ended, found = ended + more, found + new
        failed += len(found)
        for index, why in found:
            kept(reader, asked.seed, index, why, asked.keep)
        table.add_row(reader, str(ended["taken"]), str(ended["refused"]), str(len(found)))
    Console().print(table)
    return 1 if failed else 0


def kept(reader: str, seed: int, number: int, why: str, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        whole(Path(place))
        name, content = case(reader, seed, number, Path(place))
    (keep / f"{reader}-{seed}-{number}{Path(name).suffix}").write_bytes(content)
    (keep / f"{reader}-{seed}-{number}.why.txt").write_text(why)


if __name__ == "__main__":
    sys.exit(main())
