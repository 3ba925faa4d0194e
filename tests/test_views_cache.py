"""The cache of views: its pixels against the renderer and against boxes by hand, its files against interruption."""

import dataclasses
import json
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from threed import disk
from threed.errors import Failure, Mistake
from threed.exporters import glb
from threed.log import Log, records
from threed.renderers import surface
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import normalised, read
from threed.renderers.volume import Render
from threed.training import cache as assets_cache
from threed.training import views_cache
from threed.training.cache import FEWEST
from threed.training.collection import Item
from threed.training.views_cache import Shots, build, photograph, surface_colours

SHOTS = Shots(views=4, size=16, supersample=2, colours=8)
COLOURS = np.random.default_rng(0).integers(40, 216, (FEWEST, 3))


def box(extents=(1.0, 1.0, 1.0), colour=(200, 100, 50)):
    shape = trimesh.creation.box(extents)
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    picture = (torch.tensor(np.array(colour)).float() / 255).expand(4, 4, 3)
    return Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture))


def items_in(folder):
    return [Item(name=p.name, caption=f"a box {p.stem}", path=p) for p in sorted(folder.glob("*.glb"))]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Sixteen boxes, each of its own shape and colour."""
    folder = tmp_path_factory.mktemp("boxes")
    for index, colour in enumerate(COLOURS):
        glb.write(box((1, 0.3 + 0.1 * index, 0.8), colour), folder / f"{index:02d}.glb")
    return folder


@pytest.fixture
def copy(boxes, tmp_path):
    return shutil.copytree(boxes, tmp_path / "boxes")


@pytest.fixture(scope="module")
def cache(boxes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return build(items_in(boxes), folder, Log(folder), SHOTS)


def contents(folder):
    return {name: (folder / f"{name}.npy").read_bytes() for name in SHOTS.arrays()}


def test_rows_are_what_the_renderer_sees(cache, boxes):
    for place, item in enumerate(items_in(boxes)):
        asset = read(item.path)
        asset = dataclasses.replace(asset, mesh=normalised(asset.mesh))
        cameras = SHOTS.cameras(place)
        render = surface.render(asset, cameras, 16, 16, supersample=2)
        for kept, seen in (
            (cache.albedo, render.albedo),
            (cache.normal, (render.normal + render.alpha) / 2),
            (cache.alpha[:, :, None], render.alpha),
        ):
            torch.testing.assert_close(kept[place] / 255, seen.movedim(-1, 1), rtol=0, atol=0.5001 / 255)
        expected = torch.stack([cameras.azimuth, cameras.elevation, cameras.distance, cameras.fov_y], dim=1)
        assert torch.equal(cache.cameras[place], expected)
    assert cache.captions == tuple((f"a box {index:02d}",) for index in range(FEWEST))
    assert cache.skipped == {}


def test_a_box_has_its_colour_and_the_normals_of_its_sides(cache):
    """Inside the outline: the colour of the file, and normals that the camera's rotation takes to a world axis."""
    for place, colour in enumerate(COLOURS):
        rotation = SHOTS.cameras(place).rotation
        for view in range(4):
            inside = cache.alpha[place, view] == 255
            assert inside.sum() > 10
            assert torch.equal(
                cache.albedo[place, view][:, inside], torch.tensor(colour)[:, None].expand(3, inside.sum())
            )
            normal = 2 * (cache.normal[place, view][:, inside] / 255) - 1
            one_side = (normal.norm(dim=0) - 1).abs() < 0.01  # on an edge two sides are averaged
            assert one_side.float().mean() > 0.5
            world = (rotation[view] @ normal[:, one_side]).abs()
            torch.testing.assert_close(world.amax(0), torch.ones_like(world[0]), rtol=0, atol=0.02)
    assert (cache.colours == torch.tensor(COLOURS)[:, None]).all()


def test_cameras_stand_in_their_own_parts_of_the_circle():
    shots = Shots(views=24)
    cameras = shots.cameras(3)
    place = cameras.azimuth / (2 * math.pi / 24) - torch.arange(24)
    assert 0 <= place.min() < 0.2 < 0.8 < place.max() <= 1
    degrees = torch.rad2deg(cameras.elevation)
    assert -15 <= degrees.min() < 0 < 30 < degrees.max() <= 45
    assert 3.0 <= cameras.distance.min() < 3.05 < 3.15 < cameras.distance.max() <= 3.2
    torch.testing.assert_close(cameras.fov_y, torch.full((24,), math.radians(40)))
    assert torch.equal(cameras.azimuth, shots.cameras(3).azimuth)
    assert not torch.equal(cameras.azimuth, shots.cameras(4).azimuth)
    assert not torch.equal(cameras.azimuth, Shots(views=24, seed=1).cameras(3).azimuth)


def test_colours_are_spread_by_area():
    """A 2 x 1 x 1 box, red on its two ends (area 2 of 10): one point of ten is red, give or take the last in a part."""
    asset = box((2, 1, 1))
    ends = asset.mesh.face_normals[:, 0].abs() > 0.5
    picture = torch.zeros(2, 2, 3)
    picture[:, 0] = torch.tensor([1.0, 0, 0])
    uvs = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    uv_faces = torch.where(ends, 0, 1)[:, None].expand(-1, 3).contiguous()
    asset = Asset("box", asset.mesh, uvs, uv_faces, Material(picture))
    colours = surface_colours(asset, 1000, np.random.default_rng(0))
    assert colours.shape == (1000, 3)
    assert abs(colours[:, 0].sum() - 200) <= 4  # the ends are at most four runs of triangles
    assert colours[:, 1:].max() == 0


def test_what_cannot_be_used_is_skipped_and_named(copy, tmp_path):
    (copy / "02-broken.glb").write_bytes(b"glTF but not really")
    (copy / "03-empty.glb").write_bytes(b"")
    shape = trimesh.creation.icosphere(3)
    round_thing = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    glb.write(
        dataclasses.replace(box(), mesh=round_thing, uv_faces=torch.zeros_like(round_thing.faces)), copy / "04-huge.glb"
    )
    flat = box()
    line = flat.mesh.with_vertices(flat.mesh.vertices * torch.tensor([1.0, 0, 0]))
    glb.write(dataclasses.replace(flat, mesh=line), copy / "05-line.glb")
    items = items_in(copy)
    found = build(items, tmp_path / "cache", Log(tmp_path), dataclasses.replace(SHOTS, most_triangles=1000))
    assert list(found.skipped) == ["02-broken.glb", "03-empty.glb", "04-huge.glb", "05-line.glb"]
    broken, empty, huge, line = found.skipped.values()
    assert "02-broken.glb' cannot be parsed" in broken
    assert "03-empty.glb'" in empty
    assert "04-huge.glb' has 1280 triangles, more than 1000; simplify it first" in huge
    assert "05-line.glb' cannot be " in line
    notes = (tmp_path / "log.txt").read_text()
    assert all(f"skipped: {reason}" in notes for reason in found.skipped.values())
    # The others move up, with their captions and their colours.
    assert [caption for (caption,) in found.captions] == [i.caption for i in items if i.name not in found.skipped]
    assert (found.colours == torch.tensor(COLOURS)[:, None]).all()


def test_an_asset_that_takes_too_long_is_given_up(boxes):
    path = boxes / "00.glb"
    with pytest.raises(ValueError, match=r"00\.glb' takes more than 0 s to draw; simplify it first"):
        photograph(path, 0, dataclasses.replace(SHOTS, most_seconds=0.0))


def test_an_asset_that_nobody_sees_is_given_up(boxes, monkeypatch):
    path, nothing = boxes / "00.glb", torch.zeros(4, 16, 16, 3)
    empty = Render(nothing, nothing, nothing[..., :1], nothing[..., :1], nothing)
    monkeypatch.setattr(surface, "render", lambda *_: empty)
    with pytest.raises(ValueError, match=r"00\.glb' cannot be seen; export it again with its full geometry"):
        photograph(path, 0, SHOTS)


def test_several_captions_share_one_row(boxes, tmp_path):
    items = items_in(boxes)
    items.insert(1, dataclasses.replace(items[0], caption="a crate"))
    found = build(items, tmp_path, Log(tmp_path), SHOTS)
    assert len(found) == FEWEST
    assert found.captions[:2] == (("a box 00", "a crate"), ("a box 01",))


def test_too_few_assets_are_refused(copy, tmp_path):
    (copy / "00.glb").write_bytes(b"nothing")
    with pytest.raises(Mistake, match=r"15 of 16 assets can be used, the first because .*; training needs at least 16"):
        build(items_in(copy), tmp_path / "cache", Log(tmp_path), SHOTS)
    with pytest.raises(Mistake, match="0 of 0 assets can be used; training needs at least 16"):
        build([], tmp_path / "none", Log(tmp_path), SHOTS)


def test_views_that_make_no_quarter_turns_are_refused(boxes, tmp_path):
    with pytest.raises(Mistake, match="views is 6; use a multiple of 4, so that groups stand a quarter turn apart"):
        build(items_in(boxes), tmp_path, Log(tmp_path), dataclasses.replace(SHOTS, views=6))


def test_a_folder_belongs_to_one_process(boxes, tmp_path):
    with disk.lock(tmp_path / "lock"), pytest.raises(Mistake, match=r"another process is at work in .*; wait for it"):
        build(items_in(boxes), tmp_path, Log(tmp_path), SHOTS)


def test_a_full_disk_is_noticed_before_any_work(boxes, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(Mistake, match=r"needs 0\.0 GiB for 16 assets, 0\.0 are free; make room or choose"):
        build(items_in(boxes), tmp_path, Log(tmp_path), SHOTS)
    assert not (tmp_path / "albedo.npy").exists()


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_cache_ends_in_the_same_bytes(boxes, cache, tmp_path, monkeypatch, torn):
    rendered = []

    def stopping(path, place, shots):
        if len(rendered) == 7:
            raise KeyboardInterrupt
        rendered.append(path.name)
        return photograph(path, place, shots)

    monkeypatch.setattr(assets_cache, "BATCH", 3)
    with monkeypatch.context() as patched:
        patched.setattr(views_cache, "photograph", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(items_in(boxes), tmp_path, Log(tmp_path), SHOTS)
    assert len(list(records(tmp_path / "assets.jsonl"))) == 6
    if torn:
        with (tmp_path / "assets.jsonl").open("ab") as file:
            file.write(b'{"name": "06.g')
    rendered.clear()
    with monkeypatch.context() as patched:
        patched.setattr(views_cache, "photograph", lambda p, *rest: (rendered.append(p.name), photograph(p, *rest))[1])
        found = build(items_in(boxes), tmp_path, Log(tmp_path), SHOTS)
    assert rendered == [f"{index:02d}.glb" for index in range(6, 16)]
    for name in SHOTS.arrays():
        assert torch.equal(getattr(found, name), getattr(cache, name))


def test_a_finished_cache_is_opened_and_a_changed_one_rendered_anew(copy, tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(views_cache, "photograph", lambda p, *rest: (rendered.append(p.name), photograph(p, *rest))[1])

    def again(shots=SHOTS):
        rendered.clear()
        found = build(items_in(copy), tmp_path / "cache", Log(tmp_path), shots)
        return len(rendered), found

    assert again()[0] == 16
    before = contents(tmp_path / "cache")
    assert again()[0] == 0
    glb.write(box((1, 2, 1), (1, 2, 3)), copy / "04.glb")
    count, found = again()
    assert count == 16
    assert found.colours[4, 0].tolist() == [1, 2, 3]
    os.utime(copy / "04.glb", ns=(0, 0))  # as of a copied folder
    assert again()[0] == 0
    assert again(dataclasses.replace(SHOTS, seed=1))[0] == 16
    assert contents(tmp_path / "cache") != before
    (tmp_path / "cache" / "alpha.npy").unlink()
    assert again()[0] == 16


def test_nothing_is_written_into_an_open_cache(boxes, tmp_path):
    found = build(items_in(boxes), tmp_path, Log(tmp_path), SHOTS)
    before = contents(tmp_path)
    found.albedo.zero_()
    assert contents(tmp_path) == before


def test_progress_is_told_asset_by_asset(boxes, tmp_path):
    build(items_in(boxes), tmp_path / "cache", Log(tmp_path), SHOTS)
    told = [(r["stage"], r["step"]) for r in records(tmp_path / "metrics.jsonl")]
    assert told == [("render", step) for step in range(1, 17)]
    assert json.loads((tmp_path / "cache" / "index.json").read_bytes())["settings"]["views"] == 4


def test_processes_render_the_same_bytes(boxes, cache, tmp_path):
    found = build(items_in(boxes), tmp_path, Log(tmp_path), SHOTS, workers=2)
    for name in SHOTS.arrays():
        assert torch.equal(getattr(found, name), getattr(cache, name))


class Poison(type(Path())):
    """A path that ends the process that unpacks it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_dying_process_is_a_failure_with_a_remedy():
    with pytest.raises(Failure, match=r"a process ended while it read an asset.*start again: it goes on where it"):
        list(assets_cache._found({"a": Poison()}, SHOTS, 0, workers=2))
