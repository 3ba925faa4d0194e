"""The page in a real browser: what is drawn beside our own renderer, what each control changes, and whom it asks.

It takes a Chromium, whose software WebGL draws; without one these tests are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import torch
import trimesh
from chromium import Tab
from PIL import Image

from threed.exporters import glb
from threed.exporters.unwrap import unwrap
from threed.pictures import colour_psnr, preview
from threed.recipes import RECIPES
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import normalised
from threed.run import Request, Run
from threed.viewer.site import Site

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium here")
MARGIN = 64  # as in page/model.js
SIZE = (1000, 480)
HOSTILE = "<img src=x onerror=alert(1)> & a barrel"
BLUE, ROUGHNESS, METALLIC = 0.3, 64 / 255, 191 / 255


def asset(sections: int = 24) -> Asset:
    """A cone beside a box, colours that follow its UVs, and plain maps of the other kinds."""
    cone = trimesh.creation.cone(0.5, 1.4, sections=sections)
    cone.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    block = trimesh.creation.box((0.5, 0.4, 0.9))
    block.apply_translation([0.8, 0.2, 0.3])
    both = trimesh.util.concatenate([cone, block])
    mesh = Mesh(torch.tensor(np.array(both.vertices)).float(), torch.tensor(np.array(both.faces)))
    uvs, uv_faces = unwrap(mesh, 128)
    along = torch.linspace(0, 1, 128)
    colour = torch.stack([*torch.meshgrid(along, along, indexing="ij"), torch.full((128, 128), BLUE)], dim=-1)
    shine = torch.tensor([ROUGHNESS, METALLIC]).expand(128, 128, 2)
    flat = torch.tensor([0.0, 0.0, 1.0]).expand(128, 128, 3)
    return Asset("things", mesh, uvs, uv_faces, Material(colour, roughness_metallic=shine, normal=flat))


def changed(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A GLB with another JSON chunk."""
    length = struct.unpack_from("<I", content, 12)[0]
    tree = json.loads(content[20 : 20 + length])
    change(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = content[20 + length :]
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest


def completed(tree: dict[str, Any]) -> None:
    """Occlusion, and the mesh a second time, half as large again, as the collider that Godot takes it for."""
    material = tree["materials"][0]
    material["occlusionTexture"] = material["pbrMetallicRoughness"]["metallicRoughnessTexture"]
    tree["nodes"].append({"name": "things-convcolonly", "mesh": 0, "scale": [1.5, 1.5, 1.5]})
    tree["scenes"][0]["nodes"].append(1)


def put(folder: Path, prompt: str, seed: int, recipe: str = "instant") -> Path:
    """A finished run, and a level of detail beside its asset."""
    made = asset()
    with Run.create(folder, Request(prompt, RECIPES[recipe], seed=seed)) as run:
        run.write("asset.glb", changed(glb.encode(made), completed))
        glb.write(asset(sections=5), folder / "asset_lod1.glb")
        stream = io.BytesIO()
        preview(made, size=64).save(stream, "PNG")
        run.write("preview.png", stream.getvalue())
        report = {"watertight": True, "seconds": {"start": 61.0}, "peak_memory_bytes": 1.5e9}
        run.write("report.json", json.dumps(report).encode())
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    put(root / "one", HOSTILE, 0)
    put(root / "two", "a wooden chair", 3)
    put(root / "three", "a green pine tree", 12, "refined")
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with chromium.browser() as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Iterator[Tab]:
    """After every test: no word of complaint, and nobody asked but the site and the page's own memory."""
    browser.size(*SIZE)
    browser.requests.clear()
    browser.errors.clear()
    yield browser
    browser.run("stop()")
    assert browser.errors == []
    away = [each for each in browser.requests if not each.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))]
    assert away == []


@contextmanager
def site(shown: Path) -> Iterator[Site]:
    with Site(shown, shown) as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def opened(tab: Tab, outputs: Path) -> Iterator[Tab]:
    """The page of one asset, its model drawn in front of white."""
    with site(outputs / "one") as found:
        tab.open(found.address)
        tab.until("document.querySelector('.stage')?.dataset.ready")
        choose(tab, ".background select", "white")
        yield tab
        tab.open("about:blank")


def choose(tab: Tab, select: str, value: str) -> None:
    tab.run(
        f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('change')); }})(document.querySelector('{select}'))"
    )


def show(tab: Tab, group: str, value: str) -> np.ndarray:
    """The picture after one of a row of choices."""
    tab.click(f"input[name={group}][value='{value}'] + span")
    return square(tab)


def square(tab: Tab) -> np.ndarray:
    """The part of the picture in which the field of view is that of `orbit`, and no control lies over it."""
    picture = tab.pixels(".view")
    side = min(picture.shape[1], picture.shape[0] - 2 * MARGIN)
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side]


def test_it_is_drawn_as_our_own_renderer_draws_it(opened: Tab) -> None:
    opened.click("[data-what=light]")
    made = asset()
    turns = {"front": 0, "side": 1, "back": 2}
    ours = surface.render(
        replace(made, mesh=normalised(made.mesh)), orbit(4)[:3], *square(opened).shape[:2], supersample=4
    )
    drawn = []
    for view in turns:
        opened.click(f"[data-view={view}]")
        opened.run("new Promise(done => setTimeout(done, 100))")
        drawn.append(square(opened))
    page = torch.from_numpy(np.stack(drawn))
    alpha = (1 - page[..., 2:]) / (1 - BLUE)  # the blue of white is 1, that of the model is the same everywhere
    overlap = torch.minimum(ours.alpha, alpha).sum() / torch.maximum(ours.alpha, alpha).sum()  # edges count by share
    assert overlap > 0.99
    assert colour_psnr(ours, replace(ours, albedo=page - 1 + alpha, alpha=alpha)) > 40


def test_maps_show_the_bytes_of_the_file(opened: Tab) -> None:
    """Roughness and metal are plain greys, a flat normal map is (128, 128, 255), wherever the model is."""
    names = opened.run("[...document.querySelectorAll('input[name=map]')].map(e => e.value)")
    assert names == ["colour", "normal", "roughness", "metalness", "occlusion", "directions", "clay"]
    for name, value, behind in (
        ("roughness", [ROUGHNESS] * 3, "white"),
        ("metalness", [METALLIC] * 3, "white"),
        ("normal", [128 / 255, 128 / 255, 1], "white"),
        ("occlusion", [1, 1, 1], "black"),
    ):
        choose(opened, ".background select", behind)
        picture = show(opened, "map", name)
        model = (np.abs(picture - (behind == "white")) > 0.02).any(-1)
        close = (np.abs(picture - value) < 1.5 / 255).all(-1)
        assert model.mean() > 0.05
        assert close[model].mean() > 0.9  # all but the outline


def test_every_control_changes_the_picture_and_back(opened: Tab) -> None:
    before = square(opened)
    seen = [before]
    for name in ("light", "wireframe", "collider"):
        opened.click(f"[data-what={name}]")
        assert opened.run(f"document.querySelector('[data-what={name}]').ariaPressed") == str(name != "light").lower()
        seen.append(square(opened))
        opened.click(f"[data-what={name}]")
        assert np.abs(square(opened) - before).max() < 2 / 255, name
    seen += [show(opened, "map", name) for name in ("clay", "directions")]
    assert np.abs(show(opened, "map", "colour") - before).max() < 2 / 255
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert (np.abs(one - other).max(-1) > 0.05).mean() > 0.004


def test_levels_of_detail_take_each_others_place(opened: Tab) -> None:
    triangles = "[...document.querySelectorAll('.facts div')].find(e => e.innerText.startsWith('Triangles')).innerText"
    before = square(opened), opened.run(triangles)
    opened.click("input[name=level][value='1'] + span")
    opened.until("document.querySelector('.stage').dataset.ready.includes('lod1')")
    after = square(opened), opened.run(triangles)
    assert before[1] != after[1]
    assert (np.abs(before[0] - after[0]).max(-1) > 0.05).mean() > 0.004
    assert opened.run("document.querySelector('[data-what=collider]').hidden")


def test_uvs_show_the_texture_and_the_outlines_of_its_charts(opened: Tab) -> None:
    opened.click("[data-what=layout]")
    text = opened.run("document.querySelector('.layout p').innerText")
    charts = len(trimesh.graph.connected_components(edges(asset().uv_faces), nodes=np.arange(len(asset().uvs))))
    assert text == f"Colour · 128 × 128 · {charts} charts"
    address = opened.run("document.querySelector('.layout canvas').toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    picture = np.asarray(picture, np.float32) / 255
    along = np.linspace(0, 1, 1024)
    plain = np.stack([*np.meshgrid(along, along, indexing="ij"), np.full((1024, 1024), BLUE)], axis=-1)
    white = (picture > 0.9).all(-1)
    assert 0.002 < white.mean() < 0.2  # outlines
    assert np.median(np.abs(picture - plain)) < 0.02  # the texture, the right way up
    outline = (asset().uvs[asset().uv_faces].amin((0, 1)) * 1024).numpy()
    assert (np.argwhere(white).min(0)[::-1] - outline < 4).all()
    show(opened, "map", "roughness")
    assert opened.run("document.querySelector('.layout p').innerText").startswith("Roughness · ")


def edges(faces: torch.Tensor) -> np.ndarray:
    return torch.cat([faces[:, [0, 1]], faces[:, [1, 2]]]).numpy()


def test_mouse_and_keyboard_turn_it(opened: Tab) -> None:
    before = square(opened)
    for kind, x in (("mousePressed", 300), ("mouseMoved", 340), ("mouseMoved", 400), ("mouseReleased", 400)):
        opened.call("Input.dispatchMouseEvent", type=kind, x=x, y=300, button="left", buttons=1, clickCount=1)
    opened.run("new Promise(done => setTimeout(done, 500))")
    dragged = square(opened)
    assert (np.abs(dragged - before).max(-1) > 0.05).mean() > 0.02
    opened.run("document.querySelector('canvas.model').focus()")
    opened.press("0")
    again = square(opened)
    opened.press("ArrowLeft")
    opened.press("+")
    assert (np.abs(square(opened) - again).max(-1) > 0.05).mean() > 0.02
    opened.press("w")
    assert opened.run("document.querySelector('[data-what=wireframe]').ariaPressed") == "true"


def test_a_finger_turns_it(opened: Tab) -> None:
    before = square(opened)
    for kind, place in (("touchStart", [300]), ("touchMove", [340]), ("touchMove", [400]), ("touchEnd", [])):
        opened.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": 300} for x in place])
    opened.run("new Promise(done => setTimeout(done, 300))")
    assert (np.abs(square(opened) - before).max(-1) > 0.05).mean() > 0.02


def test_figures_and_files_are_there(opened: Tab) -> None:
    text = opened.run("document.querySelector('.panel').innerText")
    assert text.startswith(HOSTILE)
    for line in ("instant · seed 0 · 1 min 1 s", "Surface\nclosed", "Memory\n1.5 GB", "asset.glb", "asset_lod1.glb"):
        assert line in text.replace("\n\n", "\n")
    for name in ("asset.glb", "report.json"):
        assert opened.run(f"fetch(document.querySelector('a[download=\"{name}\"]').href).then(r => r.ok)")


def test_search_filters_as_one_types(tab: Tab, outputs: Path) -> None:
    with site(outputs) as found:
        tab.open(found.address)
        tab.until("document.querySelectorAll('.card').length == 3")
        names = "[...document.querySelectorAll('.card h2')].map(e => e.textContent).sort()"
        assert tab.run(names) == [HOSTILE, "a green pine tree", "a wooden chair"]
        tab.press("/")
        for words, left in (
            ("chair", ["a wooden chair"]),
            ("refined", ["a green pine tree"]),
            ("SEED 3", ["a wooden chair"]),
        ):
            tab.run("document.querySelector('#search').select()")
            tab.type(words)
            assert tab.run(names) == left
        tab.run("document.querySelector('#search').select()")
        tab.type("xyz")
        assert "Nothing of 3 is called “xyz”." in tab.run("document.body.innerText")
        tab.run("document.querySelector('#search').select()")
        tab.type("pine")
        tab.click(".card a")
        tab.until("document.querySelector('.stage')?.dataset.ready")
        assert tab.run("document.querySelector('h1').textContent") == "a green pine tree"
        tab.click(".back")
        tab.until("document.querySelectorAll('.card').length == 3")
        tab.open("about:blank")


def test_a_run_at_work_updates_by_itself_until_its_asset_appears(tab: Tab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run.create(folder, Request("a clay pot", RECIPES["dreamfusion"])) as run, site(folder) as found:
        tab.open(found.address)
        tab.until("document.body.innerText.includes('The first picture comes soon')")
        with run.log.stage("coarse", 150) as log:
            for colour in ("red", "blue"):
                stream = io.BytesIO()
                Image.new("RGB", (96, 48), colour).save(stream, "PNG")
                log._picture_due = 0.0
                log.picture(stream.getvalue)
                for step in range(1, 4):
                    log(step + (3 if colour == "blue" else 0), {"sds": 1.0 / step})
                tab.until(f"document.body.innerText.includes('{6 if colour == 'blue' else 3} of 150')")
                tab.until(
                    "document.querySelector('img.live')?.complete && document.querySelector('img.live').naturalWidth"
                )
                middle = np.median(tab.pixels("img.live").reshape(-1, 3), axis=0)
                assert middle.argmax() == {"red": 0, "blue": 2}[colour]
        text = tab.run("document.body.innerText")
        assert "About " in text
        assert "coarse · sds" in text
        assert tab.run("document.querySelectorAll('.plot path').length") == 2
        run.write("asset.glb", glb.encode(asset()))
        run.write("report.json", b"{")  # broken
        tab.until("document.querySelector('.stage')?.dataset.ready")
        assert "report.json is broken" in tab.run("document.body.innerText")
        (folder / "report.json").unlink()  # as --overwrite does
        tab.until("document.querySelector('img.live') && !document.querySelector('canvas')")
        tab.open("about:blank")


MESHOPT = "EXT_meshopt_compression"


def test_a_file_that_cannot_be_shown_is_told_of(tab: Tab, tmp_path: Path) -> None:
    """What is no mesh, one in a compression that the page does not read, and one that the site cannot convert."""
    (tmp_path / "bad.glb").write_bytes(b"glTF, or so it says")
    (tmp_path / "bad.usdz").write_bytes(b"an archive, or so it says")

    def compress(tree):
        for view in tree["bufferViews"]:
            view["extensions"] = {MESHOPT: {"buffer": 0, "byteLength": 4, "byteStride": 4, "count": 1}}
        tree |= {"extensionsUsed": [MESHOPT], "extensionsRequired": [MESHOPT]}

    compressed = changed(glb.encode(asset()), compress)
    (tmp_path / "small.glb").write_bytes(compressed)
    reasons = {
        "bad.glb": "",
        "small.glb": "it is compressed; open the plain GLB beside it.",
        "bad.usdz": f"{str(tmp_path / 'bad.usdz')!r} cannot be parsed",
    }
    with site(tmp_path) as found:
        for name, why in reasons.items():
            tab.open("about:blank")
            tab.open(f"{found.address}#/{name}")
            tab.until("document.querySelector('.stage [role=alert]')")
            assert f"The model cannot be shown: {why}" in tab.run("document.querySelector('.stage').innerText")
        tab.open("about:blank")
    assert all("422" in each for each in tab.errors)  # the browser's own word for the last
    tab.errors.clear()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_everything_has_a_name(tab: Tab, outputs: Path, dark: bool) -> None:
    tab.size(360, 740, dark=dark)
    with site(outputs) as found:
        for place, there in (("", ".card"), ("#/one", ".stage[data-ready]")):
            tab.open("about:blank")
            tab.open(found.address + place)
            tab.until(f"document.querySelector('{there}')")
            assert tab.run("document.documentElement.scrollWidth") <= 360
            nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
            kinds = {"button", "link", "searchbox", "textbox", "combobox", "radio", "ColorWell", "image", "progressbar"}
            found_ = [node for node in nodes if node.get("role", {}).get("value") in kinds and not node.get("ignored")]
            assert len(found_) > 4
            assert [node for node in found_ if not node.get("name", {}).get("value")] == []
            assert tab.run(Path(__file__).with_name("contrast.js").read_text("utf-8")) == []
        tab.open("about:blank")
