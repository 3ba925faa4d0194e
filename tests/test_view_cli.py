"""What a user types after `threed view`, and `--view` beside a run: messages, exit codes, and who ends when."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from tiny_assets import box

from threed import view_cli
from threed.cli import main
from threed.exporters import glb
from threed.run import Request, Run
from threed.viewer import browser
from threed.viewer.site import Site

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(browser, "open_page", lambda address: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no mesh")
    glb.write(box(), tmp_path / "chair.glb")
    run = tmp_path / "outputs" / "barrel"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    glb.write(box(), run / "asset.glb")
    return tmp_path


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[Site]:
    """Ctrl-C as soon as a site serves; the sites that did."""
    sites: list[Site] = []

    def serve_forever(site: Site) -> None:
        sites.append(site)
        raise KeyboardInterrupt

    monkeypatch.setattr(Site, "serve_forever", serve_forever)
    return sites


MAKE = 'make something first, for example: threed text "a wooden barrel"'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], f"there is no 'nowhere' to look at; check the path, or {MAKE}"),
        (["empty"], f"there is no run and no mesh in 'empty'; {MAKE}"),
        (
            ["notes.txt"],
            "'notes.txt' is neither a run folder nor a mesh; use one of .glb, .gltf, .obj, .ply, .stl, .usdz",
        ),
        (["chair.glb", "--port", "0"], "--port is 0; it must lie between 1 and 65535"),
        (["chair.glb", "--port", "70000"], "--port is 70000; it must lie between 1 and 65535"),
    ],
)
def test_mistakes_name_the_remedy(
    here: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert main(["view", *arguments]) == 2
    assert capsys.readouterr().err == f"threed: {message}\n"


def test_a_taken_port_is_named(here: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["view", "chair.glb", "--port", str(port)]) == 2
    assert re.fullmatch(
        rf"threed: cannot serve at port {port} \(.+\); leave --port out to use a free one\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "root", "at"),
    [
        ([], "outputs", ""),
        (["outputs/barrel"], "outputs/barrel", ""),
        (["outputs/barrel/asset.glb"], "outputs/barrel", ""),  # which is the run's
        (["chair.glb"], ".", "chair.glb"),
    ],
)
def test_ctrl_c_ends_it_quietly(
    here: Path,
    capsys: pytest.CaptureFixture,
    interrupted: list[Site],
    arguments: list[str],
    root: str,
    at: str,
) -> None:
    assert main(["view", *arguments]) == 0
    (site,) = interrupted
    assert (site.root, site.at) == ((here / root).resolve(), at)
    captured = capsys.readouterr()
    address = site.address
    hint = "; no browser was found here, open the address in one"
    assert captured.out == f"{arguments[0] if arguments else 'outputs'} is at {address} (Ctrl-C ends it){hint}\n"
    assert captured.err == ""
    with socket.socket() as free:  # nobody listens any more
        assert free.connect_ex(("127.0.0.1", site.server_port)) != 0


def test_no_browser_is_opened_when_none_is_wanted(
    here: Path, monkeypatch: pytest.MonkeyPatch, interrupted: list[Site], capsys: pytest.CaptureFixture
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(browser, "open_page", lambda address: opened.append(address) or True)
    assert main(["view", "chair.glb", "--no-browser"]) == 0
    assert opened == []
    assert "browser" not in capsys.readouterr().out
    assert main(["view", "chair.glb"]) == 0
    assert opened == [interrupted[1].address]


def test_without_a_screen_no_browser_takes_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not browser.open_page("http://127.0.0.1:1/")
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert browser.open_page("http://127.0.0.1:1/")
    assert opened == ["http://127.0.0.1:1/"]


def test_it_opens_before_pytorch_would_be_loaded(here: Path) -> None:
    """A page of a GLB needs none of the libraries that meshes are made with."""
    code = (
        "import sys; from threed import cli; from threed.viewer.site import Site\n"
        "Site.serve_forever = lambda self: self.told(self.at)\n"
        "cli.main(['view', 'outputs', '--no-browser']); cli.main(['view', 'outputs/barrel', '--no-browser'])\n"
        "print([name for name in ('torch', 'numpy', 'numba', 'trimesh', 'PIL') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=True)
    assert found.stdout.endswith("[]\n")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """The pipeline, replaced by one that writes a small asset."""

    def text_to_3d(request: Request, run: Run) -> None:
        with run.log.stage("export"):
            glb.write(box(), run.path("asset.glb"))
        run.write("report.json", b"{}")

    module = types.ModuleType("threed.pipeline")
    module.text_to_3d = text_to_3d
    monkeypatch.setitem(sys.modules, "threed.pipeline", module)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)


@pytest.mark.parametrize("view", [True, False])
def test_text_edit_and_image_open_the_page_of_their_run(
    made: None, here: Path, monkeypatch: pytest.MonkeyPatch, view: bool
) -> None:
    wanted: list[bool] = []
    shown: list[str] = []

    @contextmanager
    def companion(asked: bool) -> Iterator[Callable[[Run], None]]:
        wanted.append(asked)
        yield lambda run: shown.append(run.folder.name)

    monkeypatch.setattr("threed.viewer.companion.companion", companion)
    pictured = types.ModuleType("threed.pictured")
    pictured.picture_to_3d = lambda request, picture, mask, how, run: run.write("report.json", b"{}")
    monkeypatch.setitem(sys.modules, "threed.pictured", pictured)
    picture = Image.new("RGBA", (80, 80))
    picture.paste("brown", (20, 20, 60, 60))
    picture.save("stool.png")
    flag = ["--view"] if view else []
    assert main(["text", "a wooden barrel", *flag]) == 0
    assert main(["edit", "chair.glb", "a purple chair", *flag]) == 0
    assert main(["image", "stool.png", *flag]) == 0
    assert wanted == [view] * 3
    assert shown == ["a-wooden-barrel-0", "a-purple-chair-0", "stool-0"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/nowhere/python", "No such file or directory"),
        ("{false}", "it said nothing"),
        ("{raises}", "OSError: no port"),
    ],
)
def test_a_viewer_that_fails_stops_no_run(
    made: None, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, program: str, why: str
) -> None:
    script = here / "program"
    script.write_text(
        "#!/bin/sh\n" + ("echo Traceback; echo 'OSError: no port'; " if "raises" in program else "") + "exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", program.format(false=script, raises=script))
    assert main(["text", "a wooden barrel", "--view", "--format", "glb"]) == 0
    assert (here / "outputs" / "a-wooden-barrel-0" / "asset.glb").exists()
    wait(lambda: not any("_tell" in thread.name for thread in threading.enumerate()))
    assert f"the page cannot be shown ({why}); the run goes on" in capsys.readouterr().err.replace("\n", " ")


def test_the_page_stays_after_the_run_and_ends_with_it(here: Path) -> None:
    """A process of its own shows the run, then its asset; it ends with Ctrl-C, and when its run is killed."""
    run = here / "outputs" / "barrel"
    code = (
        "import signal, sys; from pathlib import Path; from types import SimpleNamespace\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which shells switch off in the background
        "from rich.console import Console; from threed.viewer.companion import companion\n"
        "run = SimpleNamespace(folder=Path(sys.argv[1]), log=SimpleNamespace(console=Console(stderr=True)))\n"
        "with companion(True) as show: show(run)\n"
        "print('done')"
    )
    for end, code_ in ((signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin", "PYTHONPATH": str(ROOT)},
        )
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line.strip())
            if sum("http://" in line or "stays" in line for line in lines) == 2:
                break
        address = next(re.search(r"http://\S+", line)[0] for line in lines if "http://" in line)
        told = json.loads(urllib.request.urlopen(address + "told.json").read())
        assert (told["name"], told["state"]) == ("barrel", "working")
        process.send_signal(end)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == code_
        assert out == ("done\n" if code_ == 0 else "")
        port = int(address.rstrip("/").rpartition(":")[2])
        wait(lambda port=port: socket.socket().connect_ex(("127.0.0.1", port)) != 0)


def wait(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_help_teaches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["view", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for words in ("threed view outputs/a-wooden-barrel-0", "--port", "--no-browser", "Ctrl-C ends it"):
        assert words in text
    assert view_cli.HELP.splitlines()[0] in text
