"""A run folder survives whatever happens to it, and nobody's files are lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from threed import disk
from threed.errors import Mistake
from threed.recipes import RECIPES
from threed.run import CHECKPOINTS_KEPT, FILES, Request, Run, difference, settings, slug

RECIPE = RECIPES["dreamfusion"]
REQUEST = Request("a wooden barrel", RECIPE)
STEPS = 7
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.truncate"}  # what Python says before it touches a file


def pretend(run: Run, steps: int = STEPS, pause: float = 0.0) -> None:
    """A small pipeline with everything that can be interrupted: steps, checkpoints, pictures, a last stage."""
    weights = torch.nn.Parameter(torch.zeros(16))
    adam, start = torch.optim.Adam([weights], lr=0.1), 0
    if state := run.latest():
        weights.data = state["weights"]
        adam.load_state_dict(state["adam"])
        start = state["step"]
    with run.log.stage("coarse", steps, start) as log:
        for step in range(start, steps):
            if step % 3 == 0:
                run.checkpoint({"weights": weights.data, "adam": adam.state_dict(), "step": step})
            target = torch.randn(16, generator=torch.Generator().manual_seed(step))
            loss = (weights - target).square().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            log(step + 1, {"loss": loss.item()}, pictures=1)
            log.picture(lambda: b"png")
            time.sleep(pause)
    run.checkpoint({"weights": weights.data, "adam": adam.state_dict(), "step": steps})
    with run.log.stage("finish"):
        run.write("asset.glb", weights.detach().numpy().tobytes())
        run.write("report.json", b"{}")


def outcome(folder: Path) -> tuple:
    """Everything a finished run leaves, less the clock."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        del record["seconds"]
    last = max((folder / "checkpoints").glob("*.safetensors")).read_bytes()
    return metrics, last, *((folder / name).read_bytes() for name in ("asset.glb", "report.json", "recipe.json"))


def in_a_fork(folder: Path, killed_at: int | None) -> tuple[bool, int]:
    """Run `pretend` in a child killed (-9) before its n-th change to the folder; was it, and how many there were."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        changes = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal changes
            if event == "open" and not set(str(arguments[1])) & set("wa"):
                return
            if event in CHANGES and str(folder) in str(arguments[0]):
                if changes == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                changes += 1

        try:
            torch.set_num_threads(1)
            os.fsync = lambda _: None  # a killed process loses no page that the system holds; this saves the wait
            sys.addaudithook(count)
            with Run.create(folder, REQUEST, resume=True) as run:
                pretend(run)
            os.write(writer, str(changes).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return os.WIFSIGNALED(status), int(said or 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_every_single_change_and_resumed_the_bytes_are_equal(tmp_path: Path) -> None:
    with Run.create(tmp_path / "whole", REQUEST) as run:
        pretend(run)  # here first, so that no child has to import what PyTorch imports at the first step
    expected = outcome(tmp_path / "whole")
    killed, changes = in_a_fork(tmp_path / "counted", None)
    assert not killed
    assert changes > 30
    for n in range(changes):
        folder = tmp_path / str(n)
        assert in_a_fork(folder, n)[0]
        in_a_fork(folder, n // 2)  # and once more on the way back, unless that is shorter
        assert not in_a_fork(folder, None)[0]
        assert outcome(folder) == expected
        left = {path.name for path in folder.iterdir()} | {path.name for path in (folder / "checkpoints").iterdir()}
        assert not [name for name in left if name.endswith(".partial")]


def test_a_killed_process_gives_its_folder_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_run import *\n"
        "with Run.create(Path(sys.argv[1]), REQUEST) as run: pretend(run, steps=10_000, pause=0.01)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(folder), str(Path(__file__).parent)])
    try:
        metrics = folder / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 8):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(Mistake, match=r"another process is at work in .*; wait for it or choose another --output"):
            Run.create(folder, REQUEST, resume=True)
    finally:
        child.kill()
        child.wait()
    with Run.create(folder, REQUEST, resume=True) as run:
        state = run.latest()
        assert state["step"] >= 6
        pretend(run, steps=state["step"] + 4)
    with Run.create(tmp_path / "whole", REQUEST) as run:
        pretend(run, steps=state["step"] + 4)
    assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("room", range(4))
def test_a_full_disk_leaves_a_resumable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    with Run.create(tmp_path / "whole", REQUEST) as run:
        pretend(run)
    writes, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 5 * room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), Run.create(tmp_path / "full", REQUEST) as run:
        pretend(run)
    monkeypatch.undo()
    assert not list((tmp_path / "full").rglob(".*.partial"))
    with Run.create(tmp_path / "full", REQUEST, resume=True) as run:
        pretend(run)
    assert outcome(tmp_path / "full") == outcome(tmp_path / "whole")


def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    with Run.create(tmp_path, REQUEST) as run:
        for step in range(5):
            run.checkpoint({"step": step, "x": torch.full((100,), float(step))})
        first, second = sorted((tmp_path / "checkpoints").glob("*.safetensors"))
        assert CHECKPOINTS_KEPT == 2
        second.write_bytes(second.read_bytes()[:-10])
        assert run.latest()["step"] == 3
        assert "is no whole checkpoint" in (tmp_path / "log.txt").read_text()
        first.write_bytes(b"")
        assert run.latest() is None
        run.checkpoint({"step": 9})
        assert run.latest() == {"step": 9}


def test_an_existing_run_is_not_touched(tmp_path: Path) -> None:
    Run.create(tmp_path, REQUEST).__exit__()
    with pytest.raises(
        Mistake, match=r"already holds this run \(recipe.json\); continue it with --resume, replace it with"
    ):
        Run.create(tmp_path, REQUEST)


def test_overwrite_removes_only_what_the_program_wrote(tmp_path: Path) -> None:
    with Run.create(tmp_path, REQUEST) as run:
        pretend(run)
        (tmp_path / "mine.txt").write_text("mine")
        (tmp_path / "checkpoints" / "mine.safetensors").write_text("mine")
        (tmp_path / ".asset.glb.partial").write_text("torn")
    with Run.create(tmp_path, replace(REQUEST, seed=5), overwrite=True) as run:
        assert run.latest() is None
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["checkpoints/lock", "checkpoints/mine.safetensors", "mine.txt", "recipe.json"]
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 5


def test_a_file_that_the_program_might_have_written_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "preview.png").write_text("holiday")
    with pytest.raises(Mistake, match=r"already holds a run \(preview.png\)"):
        Run.create(tmp_path, REQUEST)
    with pytest.raises(Mistake, match=r"without a readable recipe.json to resume from; replace it with --overwrite"):
        Run.create(tmp_path, REQUEST, resume=True)
    assert (tmp_path / "preview.png").read_text() == "holiday"
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_a_folder_with_other_things_in_it_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with Run.create(tmp_path, REQUEST) as run:
        pretend(run)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_resuming_nothing_begins(tmp_path: Path) -> None:
    with Run.create(tmp_path / "new", REQUEST, resume=True) as run:
        assert run.latest() is None
    assert "nothing to resume in" in (tmp_path / "new" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "seed was 0 and is 3 now"),
        ({"prompt": "a chair"}, "prompt was 'a wooden barrel' and is 'a chair' now"),
        ({"formats": ("glb",)}, r"formats was \['glb', 'obj'\] and is \['glb'\] now"),
        ({"version": "0.0.1"}, "version was .* and is '0.0.1' now"),
        (
            {"recipe": replace(RECIPE, stages=(replace(RECIPE.stages[0], steps=7),))},
            "recipe.stages.0.steps was .* and is 7 now",
        ),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    Run.create(tmp_path, REQUEST).__exit__()
    before = (tmp_path / "recipe.json").read_bytes()
    for resume in (True, False):
        with pytest.raises(Mistake, match=f"holds another run: {message}; choose another --output, replace it with"):
            Run.create(tmp_path, replace(REQUEST, **change), resume=resume)
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_the_first_difference_is_by_name() -> None:
    assert difference({"b": {"c": 1}, "a": 1}, {"b": {"c": 2}, "a": 1}) == ("b.c", 1, 2)
    assert difference({"a": 1, "b": 1}, {"a": 2, "b": 2}) == ("a", 1, 2)
    assert difference({"a": 1}, {"a": 1, "new": 0}) == ("new", None, 0)
    assert difference({"a": [1]}, {"a": [1]}) is None
    recipes = ({"a": 1, "recipe": {"about": name, "name": name}} for name in ("instant", "refined"))
    assert difference(*recipes) == ("recipe.name", "instant", "refined")


def test_recipe_json_is_readable_sorted_and_complete(tmp_path: Path) -> None:
    text = replace(REQUEST, prompt="木の樽").to_json()
    assert "木の樽" in text
    assert text.splitlines()[1].startswith('  "backends": []')
    names = list(settings(json.loads(text)))
    assert names == sorted(names, key=lambda name: name.split("."))
    assert {"prompt", "negative", "seed", "prior", "recipe.asset.height", "recipe.stages.0.loss.scale"} <= set(names)


@pytest.mark.parametrize("both", [True, False])
def test_resume_and_overwrite_contradict_each_other(tmp_path: Path, both: bool) -> None:
    if both:
        (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(Mistake, match="--resume and --overwrite contradict each other; give one of them"):
        Run.create(tmp_path, REQUEST, resume=True, overwrite=True)


def test_output_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Mistake, match=r"file' is not a folder; choose another --output"):
        Run.create(tmp_path / "file", REQUEST, overwrite=True)
    with pytest.raises(Mistake, match=r"cannot write into '.*inside' \(Not a directory\); choose another --output"):
        Run.create(tmp_path / "file" / "inside", REQUEST)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(Mistake, match=r"dangling' is not a folder"):
        Run.create(tmp_path / "dangling", REQUEST)


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(disk, "lock", refuse)
    with pytest.raises(Mistake, match=r"cannot write into .* \(Permission denied\); choose another --output"):
        Run.create(tmp_path, REQUEST)


def test_a_run_writes_its_own_files_alone(tmp_path: Path) -> None:
    with Run.create(tmp_path, REQUEST) as run:
        for name in ("../evil", "/etc/passwd", "checkpoints/lock", "", "ASSET.GLB"):
            with pytest.raises(ValueError, match="a run folder has no file"):
                run.write(name, b"")
        assert {run.path(name).parent for name in FILES} == {tmp_path}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a wooden barrel", "a-wooden-barrel"),
        ("  A  Red_Car!! ", "a-red-car"),
        ("../../etc/passwd", "etc-passwd"),
        ("木の樽", "木の樽"),
        ("ﬁsh", "fish"),
        ("a\0b\nc/d\\e:f", "a-b-c-d-e-f"),
    ],
)
def test_slugs(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@pytest.mark.parametrize("prompt", ["🛢️", "..", "!!!", "x" * 10_000, "樽" * 10_000, "word " * 1000, "con", "-rf"])
def test_a_slug_is_a_file_name_everywhere(tmp_path: Path, prompt: str) -> None:
    name = f"{slug(prompt)}-0"
    assert len(name.encode()) <= 255
    assert name[0] not in "-."
    with Run.create(tmp_path / name, replace(REQUEST, prompt=prompt)) as run:
        run.write("asset.glb", b"")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert slug("🛢️") != slug("🪑")
