"""Captioned boxes, for tests: four colours, four names of things, every box of a shape of its own."""

import json
from pathlib import Path

import numpy as np
import torch
import trimesh

from threed.exporters import glb
from threed.renderers.mesh import Asset, Material, Mesh

NAMES = ("red", "green", "blue", "yellow")
THINGS = ("box", "crate", "barrel", "chest")
COLOURS = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.2, 0.8), (0.9, 0.8, 0.2))


def box(
    extents: tuple[float, float, float] = (1.0, 1.0, 1.0), colour: tuple[float, float, float] = COLOURS[0]
) -> Asset:
    """A box of one colour, its corners at radius 1."""
    shape = trimesh.creation.box(extents)
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    mesh = mesh.with_vertices(mesh.vertices / mesh.vertices.norm(dim=1).max())
    picture = torch.tensor(colour).expand(4, 4, 3)
    return Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture))


def write(folder: Path, count: int) -> Path:
    """So many boxes under four captions, each of a colour of its own; returns the captions file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        which = index % len(THINGS)
        glb.write(box((1, 0.5 + 0.2 * (index % 7), 0.7), COLOURS[which]), folder / f"{index}.glb")
        lines.append(json.dumps({"path": f"{index}.glb", "caption": f"a small {NAMES[which]} {THINGS[which]}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder / "captions.jsonl"
