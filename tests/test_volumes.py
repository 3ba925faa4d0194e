"""The cache of voxels: its numbers against the voxels themselves; what `cache` does for all is in test_views_cache."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from threed.distill.start import volume_of
from threed.errors import Mistake
from threed.exporters import glb
from threed.log import Log, records
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import read
from threed.renderers.voxels import TRUNCATION, Voxels, voxelise
from threed.training import cache, volumes
from threed.training.cache import FEWEST
from threed.training.collection import Item
from threed.training.volumes import Lattice, Volumes, build, solid

LATTICE = Lattice(resolution=8)
COLOURS = np.random.default_rng(0).integers(40, 216, (FEWEST, 3))


def box(extents: tuple[float, float, float], colour: np.ndarray) -> Asset:
    shape = trimesh.creation.box(extents)
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    picture = (torch.tensor(colour).float() / 255).expand(4, 4, 3)
    return Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture))


def items_in(folder: Path) -> list[Item]:
    return [Item(path, f"a box {path.stem}", path.name) for path in sorted(folder.glob("*.glb"))]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen boxes, each of its own shape and colour, and two files that cannot be used."""
    folder = tmp_path_factory.mktemp("boxes")
    for index, colour in enumerate(COLOURS):
        glb.write(box((1, 0.3 + 0.1 * index, 0.8), colour), folder / f"{index:02d}.glb")
    (folder / "02-broken.glb").write_bytes(b"glTF but not really")
    glb.write(box((1e-30, 0, 0), COLOURS[0]), folder / "05-point.glb")
    return folder


@pytest.fixture(scope="module")
def cached(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Volumes, Path]:
    folder = tmp_path_factory.mktemp("cache")
    return build(items_in(boxes), folder, Log(folder), LATTICE), folder


def test_rows_are_the_voxels_in_eight_bits(cached, boxes):
    found, _ = cached
    usable = [item for item in items_in(boxes) if item.name not in found.skipped]
    assert len(found) == len(usable) == FEWEST
    for item, colour, kept in zip(usable, COLOURS, found, strict=True):
        voxels = voxelise(read(item.path), LATTICE.resolution)
        torch.testing.assert_close(kept.distance, voxels.distance, rtol=0, atol=0.5001 * TRUNCATION / 127)
        assert kept.distance.abs().max() <= TRUNCATION
        assert torch.equal(kept.colour, torch.tensor(colour).float().expand(8, 8, 8, 3) / 255)
        assert kept.mesh().is_watertight
    assert found.captions == tuple((item.caption,) for item in usable)


def test_volumes_are_a_sequence(cached):
    found, _ = cached
    assert isinstance(found[3], Voxels)
    for part in (slice(1, 9, 3), slice(None), slice(-2, None)):
        expected = list(range(FEWEST))[part]
        assert [float(v.colour[0, 0, 0, 0] * 255) for v in found[part]] == pytest.approx(COLOURS[expected, 0])
    with pytest.raises(IndexError):
        found[FEWEST]


def test_what_cannot_be_used_is_skipped_and_named(cached):
    found, folder = cached
    assert list(found.skipped) == ["02-broken.glb", "05-point.glb"]
    assert "02-broken.glb' cannot be parsed" in found.skipped["02-broken.glb"]
    assert "05-point.glb' cannot be " in found.skipped["05-point.glb"]
    told = [(record["stage"], record["step"]) for record in records(folder / "metrics.jsonl")]
    assert told == [("voxels", step) for step in range(1, FEWEST + 3)]
    assert json.loads((folder / "index.json").read_bytes())["settings"]["resolution"] == 8


def test_reasons_name_the_file_and_the_remedy(boxes, monkeypatch):
    path = boxes / "00.glb"
    with pytest.raises(ValueError, match=r"00\.glb' has 12 triangles, more than 11; simplify it first"):
        solid(path, Lattice(8, most_triangles=11))
    thin = Voxels(torch.full((8, 8, 8), 0.1), torch.zeros(8, 8, 8, 3))
    monkeypatch.setattr(volumes, "voxelise", lambda *_: thin)
    with pytest.raises(ValueError, match=r"00\.glb' is too thin for voxels; make it thicker, or export it again"):
        solid(path, LATTICE)
    monkeypatch.setattr(volumes, "voxelise", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"00\.glb' cannot be cut into voxels \(division by zero\); export it again"):
        solid(path, LATTICE)


def test_a_finished_cache_is_opened_and_another_lattice_begun_anew(cached, boxes, tmp_path, monkeypatch):
    found, folder = cached
    monkeypatch.setattr(volumes, "solid", lambda *_: 1 / 0)
    again = build(items_in(boxes), folder, Log(folder), LATTICE)
    assert torch.equal(again.distance, found.distance)
    assert again.skipped == found.skipped
    with pytest.raises(ZeroDivisionError):
        build(items_in(boxes), folder, Log(tmp_path), Lattice(resolution=9))


def test_how_few_are_enough_is_asked_for(boxes, tmp_path):
    one = items_in(boxes)[:1]
    with pytest.raises(Mistake, match="1 of 1 assets can be used; training needs at least 16"):
        build(one, tmp_path, Log(tmp_path), LATTICE)
    assert len(build(one, tmp_path, Log(tmp_path), LATTICE, fewest=0)) == 1


def test_a_worker_ends_with_its_parent(monkeypatch):
    """Which is known to have ended as soon as it can be joined."""
    ended: list[int] = []
    monkeypatch.setattr(cache.os, "_exit", ended.append)
    monkeypatch.setattr(cache.multiprocessing, "parent_process", lambda: SimpleNamespace(join=lambda: None))
    cache.follow()
    assert ended == [1]
    monkeypatch.setattr(cache.multiprocessing, "parent_process", lambda: None)
    cache.follow()
    assert ended == [1]


def test_many_at_once_are_what_the_codec_sees_of_each(cached):
    found, _ = cached
    rows = torch.tensor([3, 0, 3])
    torch.testing.assert_close(found.tensor(rows), torch.stack([volume_of(found[row]) for row in rows.tolist()]))
