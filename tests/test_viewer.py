"""What the page is told of a folder, and what its site answers to whom: no browser, real requests."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_assets import box

from threed.exporters import draco, export, glb, usdz
from threed.log import Log
from threed.overpaint import Overpaint
from threed.recipes import RECIPES
from threed.renderers import read
from threed.run import Request, Run
from threed.viewer import folders
from threed.viewer.progress import MOST_POINTS, expected, progress, records
from threed.viewer.site import PAGE, Site
from threed.viewer.words import duration, facts, percent

ROOT = Path(__file__).resolve().parent.parent
REPORT = {
    "triangles": 12,
    "vertices": 8,
    "watertight": True,
    "volume": 0.374,
    "area": 2.7,
    "bounds": [[-0.3, 0, -0.25], [0.3, 1, 0.25]],
    "texture_size": [512, 1024],
    "charts": 49,
    "texel_use": 0.555,
    "agreement_with_volume": {"psnr_db": 47.81, "silhouette_iou": 0.9993, "colour_psnr_db": None, "views": 16},
    "seconds": {"start": 4.0, "mesh": 70.5, "export": 0.01},
    "peak_memory_bytes": 1_378_312_192,
}
Reply = tuple[int, dict[str, str], bytes]


def run(folder: Path, prompt: str = "a wooden barrel", recipe: str = "instant", finished: bool = True) -> Path:
    """A run folder, as the program writes it."""
    with Run.create(folder, Request(prompt, RECIPES[recipe], seed=3)) as made:
        with made.log.stage("start"):
            pass
        if finished:
            glb.write(box(), made.path("asset.glb"))
            made.write("preview.png", b"png")
            made.write("report.json", json.dumps(REPORT).encode())
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs, a mesh with a level of detail, and things that are nobody's business."""
    root = tmp_path / "outputs"
    run(root / "a-wooden-barrel-3")
    run(root / "deep" / "er" / "chair", "a chair", "dreamfusion", finished=False)
    for name in (
        "rock.glb",
        "rock_draco.glb",
        "rock_lod1.glb",
        "rock_lod1_draco.glb",
        "rock_lod2.glb",
        "rock_collision.glb",
        ".hidden.glb",
    ):
        glb.write(box(), root / name)
    (root / ".secret").mkdir()
    for name in (".secret/key.txt", "notes.html", "a-wooden-barrel-3/.env", "a-wooden-barrel-3/id_rsa"):
        (root / name).write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    (root / "away").symlink_to(tmp_path)
    return root


@pytest.fixture
def site(outputs: Path) -> Iterator[Site]:
    yield from served(Site(outputs, outputs))


def served(site: Site) -> Iterator[Site]:
    with site:
        threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield site
        site.shutdown()


def ask(site: Site, path: str, method: str = "GET", **headers: str) -> Reply:
    """The path goes out as it is, dots and all."""
    connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{site.server_port}"} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def told(site: Site, at: str | None = None) -> dict:
    status, _, content = ask(site, "/told.json" + (f"?at={at}" if at is not None else ""))
    assert status == 200, content
    return json.loads(content)


def test_a_gallery_lists_runs_and_meshes_and_nothing_else(site: Site) -> None:
    found = told(site)
    assert (found["kind"], found["title"], found["left_out"]) == ("gallery", "outputs", 0)
    entries = {entry["at"]: entry for entry in found["entries"]}
    assert set(entries) == {"a-wooden-barrel-3", "deep/er/chair", "rock.glb"}
    barrel, chair, rock = entries["a-wooden-barrel-3"], entries["deep/er/chair"], entries["rock.glb"]
    assert {name: barrel[name] for name in ("prompt", "recipe", "seed", "seconds", "state")} == {
        "prompt": "a wooden barrel",
        "recipe": "instant",
        "seed": "3",
        "seconds": 74.5,
        "state": "finished",
    }
    assert ask(site, barrel["preview"])[2] == b"png"
    assert barrel["turntable"] is None
    # One of the steps of a dreamfusion is done.
    steps = sum(expected(json.loads(Request("", RECIPES["dreamfusion"]).to_json())["recipe"]).values())
    assert (chair["state"], chair["share"], chair["seconds"]) == ("working", pytest.approx(1 / steps), None)
    assert (rock["state"], rock["name"]) == ("mesh", "rock.glb")


def test_the_newest_come_first_and_of_too_many_the_oldest_stay_away(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("deep/er/chair/recipe.json", "rock.glb", "a-wooden-barrel-3/recipe.json")):
        os.utime(outputs / name, (1e9 - age, 1e9 - age))
    names = [entry["name"] for entry in folders.gallery(outputs)["entries"]]
    assert names == ["chair", "rock.glb", "a-wooden-barrel-3"]
    monkeypatch.setattr(folders, "MOST", 2)
    found = folders.gallery(outputs)
    assert [entry["name"] for entry in found["entries"]] == names[:2]
    assert found["left_out"] == 1


def test_a_run_is_told_of(site: Site, outputs: Path) -> None:
    found = told(site, "a-wooden-barrel-3")
    assert (found["kind"], found["state"], found["prompt"], found["problems"]) == (
        "asset",
        "finished",
        "a wooden barrel",
        [],
    )
    assert ask(site, found["mesh"])[2] == (outputs / "a-wooden-barrel-3" / "asset.glb").read_bytes()
    assert [file["name"] for file in found["downloads"]] == ["asset.glb", "preview.png", "recipe.json", "report.json"]
    for file in found["downloads"]:
        assert len(ask(site, file["address"])[2]) == file["bytes"]
    assert [stage["name"] for stage in found["progress"]["stages"]] == ["start", "mesh", "export"]
    assert {fact["what"]: fact["value"] for fact in found["facts"]}["Made in"] == "1 min 15 s"
    assert found["notes"][-1].endswith("start: 1 of 1 steps, 0.0 s")


def test_levels_and_colliders_belong_to_their_mesh(site: Site) -> None:
    found = told(site, "rock_lod1.glb")
    assert [level["level"] for level in found["levels"]] == [0, 1, 2]
    assert [re.sub(r"\?v=\d+$", "", level["mesh"]) for level in found["levels"]] == [
        "/files/rock.glb",
        "/files/rock_lod1.glb",
        "/files/rock_lod2.glb",
    ]
    assert (found["level"], len(found["colliders"])) == (1, 1)
    assert [file["name"] for file in found["downloads"]] == [
        "rock.glb",
        "rock_collision.glb",
        "rock_draco.glb",
        "rock_lod1.glb",
        "rock_lod1_draco.glb",
        "rock_lod2.glb",
    ]


@pytest.mark.parametrize(("module", "suffix"), [("DracoPy", ".glb"), ("pxr", ".usdz")])
def test_what_the_page_cannot_decode_is_sent_as_a_plain_glb(module: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    path, hull = tmp_path / f"it{suffix}", {"it-colonly": box().mesh}
    path.write_bytes(draco.encode(box(), hull) if suffix == ".glb" else usdz.encode(box()))
    for site in served(Site(tmp_path, path)):
        mesh = told(site)["mesh"]
        assert mesh.startswith(f"/glb/it{suffix}?v=")
        status, headers, content = ask(site, mesh)
    assert (status, headers["Content-Type"]) == (200, "model/gltf-binary")
    (tmp_path / "plain.glb").write_bytes(content)
    assert folders.mesh_address(tmp_path, tmp_path / "plain.glb").startswith("/files/plain.glb?v=")
    again = read.read(tmp_path / "plain.glb")
    assert again.mesh.is_watertight
    assert float(again.mesh.volume) == pytest.approx(float(box().mesh.volume), rel=1e-3)
    assert {*read.colliders(tmp_path / "plain.glb")} == ({*hull} if suffix == ".glb" else set())


@pytest.mark.parametrize(
    "broken",
    [b"", b"{", b"[1, 2]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"seconds": 3, "bounds": "no"}'],
)
def test_a_broken_report_is_a_line_and_not_the_end(tmp_path: Path, broken: bytes) -> None:
    folder = run(tmp_path / "run")
    (folder / "report.json").write_bytes(broken)
    found = json.loads(json.dumps(folders.asset(folder, folder), allow_nan=False))
    if broken.startswith(b"{") and len(broken) > 1:
        assert (found["problems"], found["facts"], found["seconds"]) == ([], [], None)
    else:
        (problem,) = found["problems"]
        assert problem.startswith("report.json is ")
    assert found["mesh"]
    (folder / "recipe.json").write_bytes(broken)
    found = folders.asset(folder, folder)
    assert found["prompt"] == ""
    assert found["mesh"]


def test_links_in_a_run_lead_nowhere(tmp_path: Path) -> None:
    """A run folder that came from elsewhere may have any name point to any file."""
    folder, secret = run(tmp_path / "run"), tmp_path / "secret"
    secret.write_text('{"prompt": "secret", "stage": "secret", "step": 1, "seconds": 1}\n')
    for name in ("log.txt", "metrics.jsonl", "recipe.json", "report.json", "preview.png", "asset.glb"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    found = folders.asset(folder, folder)
    assert "secret" not in json.dumps(found)
    assert (found["mesh"], found["notes"], found["downloads"], found["problems"]) == (None, [], [], [])


def test_what_is_not_finite_reaches_no_browser(tmp_path: Path) -> None:
    """JSON.parse knows neither NaN nor infinity, and Python writes both."""
    folder = run(tmp_path / "run")
    bad = REPORT | {"volume": math.nan, "seconds": {"start": math.inf, "mesh": 2.0}, "charts": math.inf}
    (folder / "report.json").write_text(json.dumps(bad))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"stage": "fit", "step": 1, "seconds": 1.0, "sds": NaN}\n{"stage": "x", "step": 1, "seconds": NaN}\n'
        )
    found = folders.asset(folder, folder)
    json.dumps(found, allow_nan=False)
    assert found["seconds"] == 2.0
    assert found["progress"]["curves"] == [{"stage": "fit", "steps": [1], "values": {"sds": [None]}}]


def test_a_report_is_told_in_plain_words() -> None:
    found = {fact["what"]: fact["value"] for fact in facts(REPORT)}
    assert found == {
        "Surface": "closed",
        "Size": "0.60 × 1.00 × 0.50 m",
        "Volume": "374 litres",
        "Texture": "1024 × 512",
        "Charts": "49, filling 56 %",
        "Like its volume": "47.8 dB, outline 99.9 %",
        "Made in": "1 min 15 s",
        "Memory": "1.4 GB",
    }
    camera = {"azimuth_degrees": -30.2, "elevation_degrees": 12.0, "psnr_db": 20, "silhouette_iou": 1.0}
    assert {fact["what"]: fact["value"] for fact in facts({"picture": camera})} == {
        "Like its picture": "20.0 dB, outline 100 %",
        "Camera": "30° to the left, 12° up",
    }
    assert facts(None) == facts({}) == facts([1]) == []
    assert [duration(each) for each in (0.04, 9.94, 9.96, 59.6, 61, 3725)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 2 min",
    ]
    assert [percent(each) for each in (0.0, 0.5, 0.99, 0.99999, 1.0)] == ["0 %", "50 %", "99.0 %", "99.9 %", "100 %"]


def test_the_time_that_is_left_is_the_pace_of_late(tmp_path: Path) -> None:
    """The first step compiles; it must not count. The second stage is not begun, and its steps do count."""
    log = tmp_path / "metrics.jsonl"
    steps = [{"stage": "coarse", "step": n, "seconds": 100 + 2.0 * n, "sds": n / 7} for n in range(1, 41)]
    head = [{"stage": name, "step": 1, "seconds": 1.5} for name in ("load", "start", "begin coarse")]
    log.write_text("".join(json.dumps(each) + "\n" for each in head + steps))
    recipe = {
        "wants": "text",
        "overpaint": None,
        "stages": [{"name": "coarse", "steps": 50, "loss": {}}, {"name": "fine", "steps": 30, "loss": {}}],
    }
    found = progress(log, recipe)
    assert found["now"] == "coarse"
    assert found["seconds_left"] == pytest.approx(2.0 * (10 + 30))
    assert [stage["name"] for stage in found["stages"]] == [
        "load",
        "start",
        "begin coarse",
        "coarse",
        "begin fine",
        "fine",
        "mesh",
        "export",
    ]
    (curve,) = found["curves"]
    assert curve["steps"] == list(range(1, 41))
    assert curve["values"] == {"sds": [n / 7 for n in range(1, 41)]}
    assert progress(None, recipe)["seconds_left"] is None
    assert progress(log, None)["now"] is None


def test_the_stages_are_those_of_the_pipeline() -> None:
    """Every stage that the sources open is expected of some recipe, and the other way round."""
    named = set[str]()
    for name in ("pipeline.py", "pictured.py"):
        named |= set(re.findall(r'log\.stage\("(\w+)"', (ROOT / "threed" / name).read_text("utf-8")))
    wanted = set[str]()
    for recipe in (*RECIPES.values(), replace(RECIPES["repaint"], stages=(), overpaint=Overpaint())):
        found = expected(json.loads(Request("", recipe).to_json())["recipe"])
        stages = {stage.name: stage.steps for stage in recipe.stages}
        assert {name: found[name] for name in stages} == stages
        wanted |= set(found) - set(stages) - {f"begin {name}" for name in stages}
    assert wanted == named


def test_long_curves_are_thinned_and_torn_lines_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(tmp_path)
    with log.stage("load"):
        pass
    many = 20 * MOST_POINTS + 7
    rows = [json.dumps({"stage": "fit", "step": step, "seconds": step / 10, "sds": 1.0}) for step in range(1, many + 1)]
    with path.open("a") as file:
        file.write(
            "\n".join([*rows, '{"stage": "mesh", "step": 1, "seconds": 2.0}', "", "no json", "3", '{"stage": 4}'])
        )
        file.write('\n{"stage": "export", "step"')
    found = records(path)
    steps = [record["step"] for record in found if record["stage"] == "fit"]
    assert MOST_POINTS <= len(steps) <= MOST_POINTS + 40
    assert (steps[0], steps[-1]) == (1, many)
    assert [record["stage"] for record in found if record["stage"] != "fit"] == ["load", "mesh"]


@pytest.mark.parametrize("told", [True, False])
def test_a_run_is_at_work_until_it_ends_or_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Where the system tells of locks, at once; elsewhere after a while."""
    if not told:
        monkeypatch.setattr(folders, "_held", lambda lock: None)
    elif not Path("/proc/locks").exists():
        pytest.skip("this system does not tell who holds a lock")
    folder = tmp_path / "run"

    def silent(seconds: float) -> None:
        for each in (*folder.iterdir(), folder):
            os.utime(each, (time.time() - seconds,) * 2)

    with Run.create(folder, Request("a chair", RECIPES["dreamfusion"])):
        assert folders.state_of(folder) == "working"
        silent(2 * folders.SILENCE)
        assert folders.state_of(folder) == ("working" if told else "stopped")
    silent(2 * folders.BEGINNING)
    assert folders.state_of(folder) == ("stopped" if told else "working")
    (folder / "report.json").write_text("{}")
    assert folders.state_of(folder) == "finished"


@pytest.mark.parametrize(
    "path",
    [
        "/files/../outside.txt",
        "/files/a-wooden-barrel-3/../../outside.txt",
        "/files/%2e%2e/outside.txt",
        "/files/..%2foutside.txt",
        "/files/..%5coutside.txt",
        "/files//etc/passwd",
        "/files/%2Fetc%2Fpasswd",
        "/files/C:/Windows/win.ini",
        "/files/rock.glb%00.txt",
        "/files/link.txt",
        "/files/away/outside.txt",
        "/files/.secret/key.txt",
        "/files/.hidden.glb",
        "/files/a-wooden-barrel-3/.env",
        "/files/a-wooden-barrel-3/id_rsa",
        "/files/notes.html",
        "/files/a-wooden-barrel-3",
        "/files/",
        "/files",
        "/files/" + "a" * 5000,
        "/glb/../outside.txt",
        "/glb/link.txt",
        "/page/../site.py",
        "/page/..%2fsite.py",
        "/page/nothing.js",
        "/told.json?at=../",
        "/told.json?at=away",
        "/told.json?at=deep",
        "/told.json?at=a-wooden-barrel-3/preview.png",
        "/told.json?at=.secret",
        "/told.json?at=%00",
        "/told.json?at=/etc",
        "/etc/passwd",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_sent(site: Site, path: str) -> None:
    status, _, content = ask(site, path)
    assert status == 404
    assert set(json.loads(content)) == {"problem"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_other_names_for_this_machine_are_refused(site: Site, host: str) -> None:
    status, _, content = ask(site, "/told.json", Host=host.format(port=site.server_port))
    assert status == 421
    assert json.loads(content) == {"problem": f"open {site.address} instead"}
    assert ask(site, "/told.json", Host=f"LOCALHOST:{site.server_port}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/told.json", "/page/main.js", "/files/rock.glb", "/nothing"])
def test_every_answer_carries_its_guards(site: Site, path: str) -> None:
    _, headers, content = ask(site, path)
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch(r"'self' 'sha256-[\w+/]{43}='", policy["script-src"])
    assert policy["style-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers
    assert int(headers["Content-Length"]) == len(content)
    head = ask(site, path, "HEAD")
    assert (head[2], head[1]["Content-Length"]) == (b"", headers["Content-Length"])


def test_what_the_browser_has_is_not_sent_again(site: Site, outputs: Path) -> None:
    _, headers, content = ask(site, "/files/rock.glb")
    assert headers["Content-Type"] == "model/gltf-binary"
    assert ask(site, "/files/rock.glb", If_None_Match=headers["ETag"])[::2] == (304, b"")
    (outputs / "rock.glb").write_bytes(content + b"more")
    assert ask(site, "/files/rock.glb", If_None_Match=headers["ETag"])[::2] == (200, content + b"more")


def test_nothing_is_written(site: Site, outputs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*")}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(site, "/files/rock.glb", method)[0] == 501
    for path in ("/", "/told.json", "/told.json?at=a-wooden-barrel-3", "/files/rock.glb"):
        ask(site, path)
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*")} == before


def test_what_an_odd_name_names_is_offered_with_it(tmp_path: Path) -> None:
    for name, others in (("a b.obj", ["a_b.png", "a_b.mtl"]), ("c d.gltf", ["c_d.png", "c_d.bin"])):
        export(box(), tmp_path / name)
        for site in served(Site(tmp_path, tmp_path / name)):
            assert [file["name"] for file in told(site)["downloads"]] == [name, *others]


def test_an_obj_becomes_a_glb(tmp_path: Path) -> None:
    export(box(), tmp_path / "crate.obj")
    (tmp_path / "bad.obj").write_text("f 1 2 3\n")
    for site in served(Site(tmp_path, tmp_path / "crate.obj")):
        found = told(site)
        assert (found["at"], found["root"], found["state"]) == ("crate.obj", "crate.obj", "mesh")
        assert [file["name"] for file in found["downloads"]] == ["crate.obj", "crate.png", "crate.mtl"]
        status, _, content = ask(site, found["mesh"])
        assert status == 200
        (tmp_path / "again.glb").write_bytes(content)
        assert len(read.read(tmp_path / "again.glb").mesh.faces) == 12
        status, _, content = ask(site, told(site, "bad.obj")["mesh"])
        assert (status, "problem" in json.loads(content)) == (422, True)


def test_only_this_machine_is_listened_to(site: Site) -> None:
    assert site.server_address[0] == "127.0.0.1"


def test_the_page_is_whole_and_asks_nobody_else() -> None:
    """Each file that a module imports is there, under a free licence, and no address leads away."""
    for path in PAGE.glob("*.*"):
        text = path.read_text("utf-8")
        assert not re.search(r"(?<!xmlns=\")(?<!SVG = \")https?://", text), f"{path.name} names an address"
        for name in re.findall(r'(?:from|import\()\s*"\./([\w.]+)"', text):
            assert (PAGE / name).is_file(), f"{path.name} imports {name}"
        for name in re.findall(r'(?:href|src)="/page/([^"]+)"', text):
            assert (PAGE / name).is_file(), f"{path.name} names {name}"
    assert "MIT" in (PAGE / "three" / "LICENSE").read_text("utf-8")
    assert sum(path.stat().st_size for path in PAGE.rglob("*")) < 2e6
    assert set(folders.MESHES) == set(read.SUFFIXES)
