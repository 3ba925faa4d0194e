"""A hundred exports before other programs, and one of 50,000 triangles beside other tools' defaults.

    npm install gltf-validator                    # in any folder
    python benchmarks/exports.py node_modules     # minutes; writes benchmarks/results/exports.json

Shapes, formats, presets, materials and names are mixed as users mix them: closed and torn meshes, sheets, spikes and
palettes; names in scripts of all kinds, in quotes, in emoji, and as long as a disk takes. Every glTF is judged by the
Khronos validator, all of them by threed check, and all are read back. The second table exports one scan-like surface at
50,000 triangles, in one process, beside xatlas's own defaults and trimesh's export of the same mesh; seconds are
those of the process, over its threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import xatlas
from PIL import Image
from rich.console import Console
from rich.table import Table
from timing import kept
from torch import Tensor
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from threed.exporters import glb, gltf, report
from threed.exporters.bake import bake
from threed.exporters.findings import check, worst
from threed.exporters.package import Wanted, packed
from threed.exporters.presets import PRESETS
from threed.exporters.simplify import simplify
from threed.exporters.transfer import Nearest
from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import colliders, opened, read

NAMES = (
    "barrel",
    "椅子",
    "стул 🪑",
    'it\'s "quoted" & <odd>',
    "a%20b#c?d=e",
    "é" * 60,
    "العربية",
    "  spaced  out",
    "-x",
    "CON",
)
VALIDATE = """
const validator = require('gltf-validator'), fs = require('fs'), path = require('path');
(async () => {
  for (const file of process.argv.slice(1)) {
    const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), {
      uri: path.basename(file), writeTimestamp: false,
      externalResourceFunction: uri =>
        Promise.resolve(new Uint8Array(fs.readFileSync(path.join(path.dirname(file), decodeURIComponent(uri))))),
    });
    const {numErrors, numWarnings, messages} = report.issues;
    console.log(JSON.stringify([numErrors, numWarnings, messages.slice(0, 3)]));
  }
})();
"""


def meshed(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))


def shapes() -> dict[str, Mesh]:
    """Sound ones and odd ones."""
    make, random = trimesh.creation, np.random.default_rng(0)
    torn = make.icosphere(3)
    torn.update_faces(random.random(len(torn.faces)) > 0.05)
    inverted = make.torus(1, 0.4)
    inverted.invert()
    crowd = trimesh.util.concatenate([make.box((1, 1, 1)).apply_translation(random.normal(size=3)) for _ in range(8)])
    spiky = make.icosphere(3)
    spiky.vertices *= 1 + 0.6 * random.random((len(spiky.vertices), 1))
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    tiny, huge = make.box((1e-3, 1e-3, 1e-3)), make.icosphere(3, 5000)
    found = {"ball": make.icosphere(4), "box": make.box(), "torn": torn, "inverted": inverted, "crowd": crowd}
    found |= {"spiky": spiky, "sheet": sheet, "tiny": tiny, "huge": huge, "cone": make.cone(1, 2, sections=7)}
    return {name: meshed(shape) for name, shape in found.items()}


def looks(mesh: Mesh, number: int) -> Asset:
    """One of four: a palette, a texture, one with roughness and metal, one with bumps as well."""
    generator = torch.Generator().manual_seed(number)
    if number % 4 == 0:
        return Asset(
            "it", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(torch.full((4, 4, 3), 0.7))
        )
    uvs, uv_faces, size = laid_out(mesh, 128)
    material = Material(bake(mesh, uvs, uv_faces, lambda points, normals: normals / 2 + 0.5, size))
    if number % 4 > 1:
        material = replace(material, roughness_metallic=torch.rand(size, size, 2, generator=generator))
    if number % 4 > 2:
        bumps = torch.rand(size, size, 3, generator=generator) + torch.tensor([-0.5, -0.5, 1.0])
        material = replace(material, normal=torch.nn.functional.normalize(bumps, dim=-1))
    return Asset("it", mesh, uvs, uv_faces, material)


def laid_out(mesh: Mesh, size: int) -> tuple[Tensor, Tensor, int]:
    """On a texture of so many texels a side, or the next that has room."""
    try:
        return *unwrap(mesh, size), size
    except ValueError:
        return laid_out(mesh, 2 * size)


def made(folder: Path) -> Iterator[tuple[Path, str]]:
    """Ten shapes under ten names, each for one of the presets: the main files, and the levels of every seventh.

    One of each ten has an occlusion map.
    """
    presets, number = list(PRESETS.values()), 0
    for shape, mesh in shapes().items():
        for name in NAMES:
            preset = presets[number % len(presets)]
            suffix = ".gltf" if number % 3 == 1 else ".glb"
            wanted = Wanted(preset, suffix, name, triangles=4000, lods=number % 7 == 0, occlusion=number % 10 == 7)
            package = packed(looks(mesh, number), wanted)
            place = folder / f"{number:03d}"
            place.mkdir()
            for file, content in package.files.items():
                (place / file).write_bytes(content)
            for file in package.assets:
                yield place / file, shape
            number += 1


def validated(files: list[Path], modules: Path) -> list[tuple[int, int, list[Any]]]:
    """Errors, warnings and some messages of each file."""
    found: list[tuple[int, int, list[Any]]] = []
    for first in range(0, len(files), 50):
        command = ["node", "-e", VALIDATE, "--", *map(str, files[first : first + 50])]
        done = subprocess.run(command, cwd=modules.parent, capture_output=True, text=True, check=True)
        found += [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    return found


def hundred(modules: Path, console: Console) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = list(made(Path(folder)))
        judged = validated([path for path, _ in files], modules)
        severities = Counter[int](worst(check(opened(path))) for path, _ in files)
        same = sum(keeps(path) for path, _ in files)
        for (path, shape), (errors, warnings, messages) in zip(files, judged, strict=True):
            if errors or warnings:
                console.print(path.name, shape, messages)
    return {
        "exports": 10 * len(NAMES),
        "files": len(files),
        "validator_errors": sum(errors for errors, _, _ in judged),
        "validator_warnings": sum(warnings for _, warnings, _ in judged),
        "threed_check": {"fine": severities[0], "warnings": severities[1], "errors": severities[2]},
        "same_bytes_after_reading": same,
    }


def keeps(path: Path) -> bool:
    """Whether it is written again as it is, with all files that belong to it."""
    encode = {".glb": glb.encode_files, ".gltf": gltf.encode_files}[path.suffix]
    again = encode(read(path), path.name, colliders(path))
    return all(path.with_name(name).read_bytes() == content for name, content in again.items())


def scan(triangles: int) -> Mesh:
    """A lumpy ball, closed, of about so many triangles."""
    ball = trimesh.creation.icosphere(7)
    x, y, z = np.array(ball.vertices).T
    ball.vertices *= (1 + 0.08 * np.sin(9 * x + 1) * np.cos(7 * y) + 0.03 * np.sin(23 * z + 5 * x))[:, None]
    return simplify(meshed(ball), triangles)


def beside() -> dict[str, Any]:
    """50,000 triangles, from 200,000 and a look that is a function of the normal."""
    fine = scan(200_000)
    started = time.process_time()
    mesh = simplify(fine, 50_000)
    seconds = {"simplify": time.process_time() - started}
    started = time.process_time()
    uvs, uv_faces = unwrap(mesh, 1024)
    seconds["unwrap"] = time.process_time() - started
    started = time.process_time()
    texture = bake(mesh, uvs, uv_faces, lambda points, normals: normals / 2 + 0.5, 1024)
    seconds["bake"] = time.process_time() - started
    asset = Asset("scan", mesh, uvs, uv_faces, Material(texture))
    started = time.process_time()
    content = glb.encode(asset)
    seconds["write"] = time.process_time() - started
    started = time.process_time()
    _, indices, flat = xatlas.parametrize(mesh.vertices.numpy(), mesh.faces.numpy())
    plain = time.process_time() - started
    theirs = Asset(
        "scan", mesh, torch.from_numpy(flat.copy()), torch.from_numpy(indices.astype(np.int64)), asset.material
    )
    ours, other = report.measure(asset), report.measure(theirs)
    return {
        "core_seconds": seconds | {"all": sum(seconds.values())},
        "bytes": len(content),
        "charts": ours["charts"],
        "texel_use": ours["texel_use"],
        "normal_error_degrees": normal_error(fine, mesh),
        "over_xatlas_defaults": {
            "core_seconds": seconds["unwrap"] / plain,
            "charts": ours["charts"] / other["charts"],
            "texel_use": ours["texel_use"] / other["texel_use"],
        },
        "over_trimesh": trimesh_ratios(fine, asset, content),
    }


def trimesh_ratios(fine: Mesh, asset: Asset, content: bytes) -> dict[str, float]:
    """The same mesh, simplified and written with trimesh's defaults."""
    source = trimesh.Trimesh(fine.vertices.numpy(), fine.faces.numpy(), process=False)
    started = time.process_time()
    other = source.simplify_quadric_decimation(face_count=50_000)
    theirs = time.process_time() - started
    started = time.process_time()
    simplify(fine, 50_000)
    ours = time.process_time() - started
    corner, indices = glb.split(asset)
    uv = asset.uvs[asset.uv_faces.reshape(-1)][corner].numpy() * [1, -1] + [0, 1]
    pixels = (asset.material.base_color * 255).round().byte().numpy()
    look = TextureVisuals(uv, material=PBRMaterial(baseColorTexture=Image.fromarray(pixels)))
    vertices = asset.mesh.vertices[asset.mesh.faces.reshape(-1)][corner].numpy()
    written = trimesh.Trimesh(vertices, indices.numpy(), visual=look, process=False).export(file_type="glb")
    return {
        "simplify_core_seconds": ours / theirs,
        "bytes": len(content) / len(written),
        "normal_error": normal_error(fine, asset.mesh) / normal_error(fine, meshed(other)),
    }


def normal_error(fine: Mesh, coarse: Mesh) -> float:
    """Mean angle in degrees between the face normals of the fine surface and those of the coarse one next to them."""
    points = fine.corners.mean(1)
    face, _ = Nearest.of(coarse)(points, fine.face_normals)
    cosine = (coarse.face_normals[face] * fine.face_normals).sum(-1).clamp(-1, 1)
    return float(cosine.acos().rad2deg().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", type=Path, help="a node_modules folder with gltf-validator in it")
    asked, console = parser.parse_args(), Console()
    found = {"beside": beside()}
    console.print(found)
    found |= {"hundred": hundred(asked.modules.resolve(), console)}
    table = Table("", "")
    for key, value in {**found["beside"], **found["hundred"]}.items():
        table.add_row(key, json.dumps(value))
    console.print(table)
    kept("exports", found)


if __name__ == "__main__":
    main()
