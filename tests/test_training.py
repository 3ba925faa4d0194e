"""The whole training on toys: what comes out, what is refused, and that stopping changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_prior
import torch
import trimesh
from rich.console import Console

from threed import checkpoint, disk
from threed.distill import angles, exemplars, lift, ranker
from threed.distill import start as starts
from threed.distill import upsampler as upsamplers
from threed.distill.angles import AnglesConfig
from threed.distill.embedded import Embedded
from threed.distill.folder import verify
from threed.distill.lift import LiftConfig
from threed.distill.ranker import RankerConfig
from threed.distill.start import StartConfig
from threed.distill.upsampler import UpsamplerConfig
from threed.errors import Failure, Mistake
from threed.exporters import glb
from threed.log import records
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.voxels import Voxels
from threed.training import cache as assets_cache
from threed.training import card, parts, publish
from threed.training import train as training
from threed.training.loop import Schedule
from threed.training.parts import Data
from threed.training.recolour import name_of
from threed.training.settings import PARTS, PRESETS, Settings, lasting
from threed.training.train import Figures, train
from threed.training.views import SIZES, Size
from threed.training.views_cache import Shots

COUNT, HELD_OUT, BROKEN = 18, "box00.glb", "box03.glb"  # SHA-256 chose the first
COLOURS = {
    "red": (0.78, 0.16, 0.16),
    "blue": (0.18, 0.38, 0.79),
    "green": (0.25, 0.6, 0.23),
    "wooden": (0.48, 0.29, 0.15),
}
STEPS = 3


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small work is fastest so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toys(folder: Path) -> Path:
    """Eighteen boxes of four colours, one of them broken, and their captions."""
    folder.mkdir()
    lines = []
    for index in range(COUNT):
        name, (colour, rgb) = f"box{index:02d}.glb", list(COLOURS.items())[index % len(COLOURS)]
        shape = trimesh.creation.box((1, 0.4 + 0.05 * index, 0.7))
        mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
        picture = torch.tensor(rgb).expand(4, 4, 3)
        asset = Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture))
        glb.write(asset, folder / name)
        lines.append({"path": name, "caption": f"a {colour} box", "licence": "CC0-1.0", "creator": "N. `Body`"})
    (folder / BROKEN).write_bytes(b"glTF but not really")
    lines.append({"path": "none.glb", "caption": "a box that is not there"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def toy_prior(folder: Path) -> Path:
    """A tiny prior of 16-pixel pictures in the layout of a real one."""

    tiny_prior.write(folder, {"block_out_channels": (16, 16), "norm_num_groups": 8}, steps=100)
    return folder


def toy_settings(source: Path) -> Settings:
    return Settings(
        start=lasting(Schedule(1, batch=8, rate=2e-3, final=0.02, optimizer="muon", precision="float32"), STEPS),
        upsampler=lasting(Schedule(1, batch=8, rate=1e-3, precision="float32"), STEPS),
        views=lasting(Schedule(1, batch=8, rate=1e-3, precision="float32"), STEPS),
        angles=lasting(Schedule(1, batch=8, rate=1e-3, precision="float32"), STEPS),
        lift=lasting(Schedule(1, batch=8, rate=1e-3, optimizer="muon", precision="float32"), STEPS),
        ranker=lasting(Schedule(1, batch=8, rate=1e-3, precision="float32"), STEPS),
        upsampling=UpsamplerConfig(width=8),
        viewing=AnglesConfig(width=8),
        lifting=LiftConfig(resolution=16, flat=(8, 8, 16), told=8, solid=(8, 16)),
        ranking=RankerConfig(size=16, width=8, hidden=8),
        # Not 8: the upsampler would halve it to 2, and of 2^3 voxels some CPUs make gradients that are no numbers.
        config=StartConfig(resolution=16, patch=8, components=16, width=64, layers=1),
        size="toy",
        shots=Shots(views=4, supersample=1, colours=8),
        source=source,
        workers=1,
        checkpoint_every=0.0,
        sheet_every=1e9,
    )


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys(tmp_path_factory.mktemp("toys") / "boxes")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SIZES, "toy", Size((16, 16, 16), 1))
        patched.setattr(parts, "VOLUME_PROMPTS", 2)
        patched.setattr(parts, "VIEWS_PROMPTS", 1)
        patched.setattr(parts, "VIEWS_STEPS", 1)
        patched.setattr(training, "EVALUATION", 2)
        yield toy_settings(toy_prior(tmp_path_factory.mktemp("source")))


def trained(assets: Path, output: Path, settings: Settings, **options: Any) -> dict[str, Figures]:
    return train(assets, assets / "captions.jsonl", output, settings, **options)


@pytest.fixture(scope="module")
def finished(
    assets: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Figures]]:
    """A folder that was trained without an interruption, and its figures."""
    output = tmp_path_factory.mktemp("out") / "prior"
    return output, trained(assets, output, settings)


def product(folder: Path) -> dict[str, bytes]:
    """Every file of a prior's folder but those of work and cache."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {f.as_posix(): (folder / f).read_bytes() for f in files if f.parts[0] not in ("work", "cache")}


def checkpoints(output: Path, part: str) -> Any:
    """The last state of a part's training."""
    return checkpoint.load(sorted((output / "work" / part / "checkpoints").glob("*.safetensors"))[-1])


# What comes out


def test_the_folder_is_a_whole_prior(finished):
    output, _ = finished
    verify(output)
    sums = [line.split(maxsplit=1) for line in (output / "SHA256SUMS").read_text().splitlines()]
    files = product(output)
    assert {name: digest for digest, name in sums} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name not in ("SHA256SUMS", "README.md")
    }
    weights = {
        f"{part}/{name}"
        for part in ("start", "upsampler", "angles", "lift", "ranker")
        for name in ("config.json", "model.safetensors")
    }
    assert {"prior.json", "text_encoder/NOTICE", "lift/exemplars.safetensors"} | weights <= set(files)
    assert b"exemplars.safetensors" in files["README.md"]  # whoever passes the folder on is told
    told = json.loads(files["prior.json"])
    assert (told["steps"], told["distance"], told["geometry"]) == (STEPS, [3.0, 3.2], True)


def test_the_folder_loads_and_holds_the_averages(finished, settings):
    output, _ = finished
    prior, start = Embedded.load(output, dtype=torch.float32), starts.load(output)
    assert start.config == replace(settings.config, text_tokens=16, text_features=128, picture=16)
    for name, value in checkpoints(output, "start")["average"].items():
        assert torch.equal(start.state_dict()[name], value.bfloat16().float()), name
    for name, value in checkpoints(output, "upsampler")["average"].items():
        assert torch.equal(upsamplers.load(output).state_dict()[name], value.bfloat16().float()), name
    for name, value in checkpoints(output, "angles")["average"].items():
        assert torch.equal(angles.load(output).state_dict()[name], value.bfloat16().float()), name
    for name, value in checkpoints(output, "lift")["average"].items():
        assert torch.equal(lift.load(output).state_dict()[name], value.bfloat16().float()), name
    assert len(exemplars.load(output)) == COUNT - 2
    for name, value in checkpoints(output, "ranker")["average"].items():
        assert torch.equal(ranker.load(output).state_dict()[name], value.bfloat16().float()), name
    for name, value in checkpoints(output, "views")["average"].items():
        assert torch.equal(prior.unet.state_dict()[name], value.half().float()), name


def test_figures_are_of_what_was_used(finished):
    output, figures = finished
    assert list(figures) == list(PARTS)
    for part, f in figures.items():
        state = checkpoints(output, part)
        loaded = {
            "start": starts.load,
            "upsampler": upsamplers.load,
            "angles": angles.load,
            "lift": lift.load,
            "ranker": ranker.load,
            "views": lambda folder: Embedded.load(folder).unet,
        }
        parameters = loaded[part](output)
        assert f.parameters == sum(p.numel() for p in parameters.parameters())
        assert (f.steps, f.batch, f.assets, f.assets_held_out) == (STEPS, 8, COUNT - 2, 1)
        assert state["step"] == STEPS
        assert 0 < f.loss < 10
        assert 0 < f.loss_held_out < 10
        assert f.loss != f.loss_held_out


def test_work_is_told_while_it_goes_on(finished):
    output, _ = finished
    for part, cache in (
        ("start", "volumes"),
        ("upsampler", "fine"),
        ("views", "views"),
        ("angles", "views"),
        ("lift", "volumes"),
        ("ranker", "volumes"),
    ):
        work = output / "work" / part
        assert (work / "samples.png").read_bytes().startswith(b"\x89PNG")
        steps = [record["step"] for record in records(work / "metrics.jsonl") if record["stage"] == "train"]
        assert steps == list(range(1, STEPS + 1))
        assert f"skipped: '{output.parent}" not in (log := (output / "cache" / cache / "train" / "log.txt").read_text())
        assert re.search(f"skipped: '.*{BROKEN}' cannot be parsed", log)
        names = [json.loads(line)["name"] for line in (output / "cache" / cache / "held-out/assets.jsonl").open()]
        assert names == [HELD_OUT]
    assert not list((output / "work").glob("*/prepared*"))  # which are large, and of no use any more


def test_the_card_says_what_was_done(finished):
    output, figures = finished
    text = (output / "README.md").read_text()
    assert '17 meshes with 4 different captions, such as "a blue box"' in text
    assert "1 more were held out" in text
    assert "Licences, as the captions file names them: CC0-1.0 (18)." in text
    assert "Creators, as the captions file names them: N. Body (18)." in text
    for part, f in figures.items():
        row = f"| {part} | {f.parameters / 1e6:.1f} M | 3 | 8 | 16 | 1 | {f.loss:.4g} | {f.loss_held_out:.4g} |"
        assert row in text
    assert "taken over" not in text


# Stopping, and going on


class Stopped(BaseException):
    """What no code of the program expects."""


def test_stopped_anywhere_it_ends_in_the_same_bytes(assets, settings, finished, tmp_path, monkeypatch):
    """Again and again after every 53rd file that was written or added to."""
    count = 0

    def counted(function):
        def call(*arguments):
            nonlocal count
            count += 1
            if count % 53 == 0:
                raise Stopped
            return function(*arguments)

        return call

    monkeypatch.setattr(assets_cache, "BATCH", 4)
    monkeypatch.setattr(disk, "write", counted(disk.write))
    monkeypatch.setattr(disk, "append", counted(disk.append))
    stops = set()
    while True:
        try:
            figures = trained(assets, tmp_path / "prior", settings)
            break
        except Stopped:
            stops.add(tuple(sorted(path.name for path in (tmp_path / "prior" / "work").iterdir())))
            assert count < 2000
    assert count > 4 * 53
    assert len(stops) >= 2  # in both parts
    assert figures == finished[1]
    assert product(tmp_path / "prior") == product(finished[0])


def killed(assets: Path, source: Path, output: Path, cache: Path) -> None:
    """In a process of its own: train, and fall dead in the midst of it."""
    SIZES["toy"] = Size((16, 16, 16), 1)
    written = disk.write

    def write(path: Path, content: bytes) -> None:
        if path.name == "000001.safetensors":  # the second checkpoint
            os.kill(os.getpid(), signal.SIGKILL)
        written(path, content)

    disk.write = write
    trained(assets, output, replace(toy_settings(source), parts=("start",)), cache=cache)


def test_killed_it_ends_in_the_same_bytes(assets, settings, finished, tmp_path):
    output, cache = tmp_path / "prior", finished[0] / "cache"
    script = "import sys, pathlib, test_training as t; t.killed(*map(pathlib.Path, sys.argv[1:]))"
    command = [sys.executable, "-c", script, assets, settings.source, output, cache]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert checkpoints(output, "start")["step"] == 1
    figures = trained(assets, output, replace(settings, parts=("start",)), cache=cache)
    assert figures["start"] == finished[1]["start"]
    assert product(output / "start") == product(finished[0] / "start")


def test_what_is_finished_is_left_alone(assets, settings, finished, tmp_path, monkeypatch):
    output = shutil.copytree(finished[0], tmp_path / "prior")
    (output / "README.md").write_text("mine")
    before = product(output)
    monkeypatch.setattr(training, "TRAINEES", {})
    assert trained(assets, output, settings) == finished[1]
    assert product(output) == before


def test_a_folder_that_is_half_written_is_refused_and_mended(assets, settings, finished, tmp_path):
    output = shutil.copytree(finished[0], tmp_path / "prior")
    (output / "start" / "model.safetensors").unlink()
    (output / "unet" / ".config.json.partial").write_bytes(b"{")
    (output / "LICENSE").write_text("of another prior")
    with pytest.raises(ValueError, match=r"cannot use .*start/model\.safetensors"):
        verify(output)
    trained(assets, output, settings)
    assert product(output) == product(finished[0])


def test_preparations_are_made_once(assets, settings, finished, tmp_path, monkeypatch):
    """A start that is stopped in its training goes on without them, and makes them again if they are torn."""
    cache, kept = finished[0] / "cache", tmp_path / "prior" / "work" / "start" / "prepared.safetensors"

    def stopping(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(training, "optimise", stopping)
    with pytest.raises(Stopped):
        trained(assets, tmp_path / "prior", settings, cache=cache)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"?")
    with pytest.raises(Stopped):
        trained(assets, tmp_path / "prior", settings, cache=cache)
    assert kept.read_bytes() == whole
    monkeypatch.setattr(parts.start_training, "fresh", lambda *_: 1 / 0)
    with pytest.raises(Stopped):
        trained(assets, tmp_path / "prior", settings, cache=cache)


def test_few_colours_are_moved_and_all_are_painted():
    """As if every voxel were; what lies between two steps of eight bits is rounded."""
    random = torch.Generator().manual_seed(0)
    palette = torch.randint(0, 256, (5, 3), generator=random).float() / 255
    colour = palette[torch.randint(0, 5, (8, 8, 8), generator=random)]
    few, place = parts.start_training.swatches(colour)
    assert sorted(map(tuple, few.tolist())) == sorted(map(tuple, palette.tolist()))
    assert torch.equal(few[place], colour)
    wooden = torch.tensor(COLOURS["wooden"])
    voxels = Voxels(torch.full((8, 8, 8), 0.5), wooden.expand(8, 8, 8, 3))
    looks = list(parts.start_training.repainted(voxels, ["a wooden box"], 4, np.random.default_rng(0)))
    assert len({caption for caption, _ in looks}) > 1
    for caption, look in looks:
        assert look.colour.shape == voxels.colour.shape
        expected = name_of(wooden) if caption == "a wooden box" else caption.split()[1]
        assert name_of(look.colour[0, 0, 0]) == expected
        assert torch.equal(look.colour, look.colour[:1, :1, :1].expand_as(look.colour))


def test_a_volume_is_drawn_as_a_mesh():
    """A red ball, round and red in the middle of a white picture; nothing is white."""
    axis = torch.arange(16) - 7.5
    reach = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).norm(dim=-1)
    red = torch.tensor(COLOURS["red"]).expand(16, 16, 16, 3)
    picture = parts.start_training.drawn(Voxels((reach - 6).clamp(-3, 3), red), 32)
    assert torch.equal(picture[0, 0], torch.ones(3))
    shade = picture[16, 16] / red[0, 0, 0]
    torch.testing.assert_close(shade, shade[:1].expand(3), rtol=1e-3, atol=0)
    covered = (picture < 1).all(-1)
    across = int(covered.sum(0).max())
    assert int(covered.sum()) == pytest.approx(torch.pi * (across / 2) ** 2, rel=0.05)
    assert torch.equal(parts.start_training.drawn(Voxels((reach + 1).clamp(-3, 3), red), 32), torch.ones(32, 32, 3))


# Parts


def test_parts_may_be_trained_one_after_the_other(assets, settings, finished, tmp_path):
    """First with the views of the source, which has no upsampler; in the end it is the same prior."""
    output, cache, source = tmp_path / "prior", finished[0] / "cache", settings.source
    figures = trained(assets, output, replace(settings, parts=("start",)), cache=cache)
    assert list(figures) == ["start"]
    files = product(output)
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "prior.json"):
        assert files[name] == (source / name).read_bytes()
    assert files["start/model.safetensors"] == (finished[0] / "start" / "model.safetensors").read_bytes()
    assert re.search(
        r"Not trained here but taken over from `.*`, as far as it has it: upsampler, views, angles, lift, ranker\.",
        files["README.md"].decode(),
    )
    verify(output)
    assert trained(assets, output, replace(settings, parts=PARTS[1:]), cache=cache) == finished[1]
    assert product(output) == product(finished[0])
    assert not (output / "cache").exists()


def test_a_prior_is_gone_on_from(assets, settings, finished, tmp_path):
    """All parts begin with its weights: after steps of no length they are still the same."""
    still = {"rate": 1e-30, "weight_decay": 0.0}
    settings = replace(
        settings,
        start=replace(settings.start, **still),
        upsampler=replace(settings.upsampler, **still),
        views=replace(settings.views, **still),
        angles=replace(settings.angles, **still),
        lift=replace(settings.lift, **still),
        ranker=replace(settings.ranker, **still),
        config=StartConfig(width=128),  # which counts for fresh ones alone
        source=finished[0],
        continued=True,
    )
    trained(assets, tmp_path / "prior", settings, cache=finished[0] / "cache")
    before, after = product(finished[0]), product(tmp_path / "prior")
    assert json.loads(after["prior.json"])["steps"] == 2 * STEPS
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"README.md", "SHA256SUMS", "prior.json", "unet/config.json"}
    assert json.loads(after["unet/config.json"]) == json.loads(before["unet/config.json"]) | {"_name_or_path": ""}


def test_a_source_without_a_start_gets_a_fresh_one(assets, settings, finished, tmp_path):
    figures = trained(
        assets, tmp_path / "prior", replace(settings, continued=True, parts=("start",)), cache=finished[0] / "cache"
    )
    assert figures["start"] == finished[1]["start"]


def test_an_upsampler_needs_a_start(assets, settings, tmp_path):
    message = "'.*' has no start, and an upsampler is trained on what a start makes; add start to --parts, or choose .*"
    with pytest.raises(Mistake, match=message):
        trained(assets, tmp_path / "prior", replace(settings, parts=("upsampler",)))
    assert not (tmp_path / "prior").exists()


def test_minutes_become_steps_once(assets, settings, finished, tmp_path, monkeypatch):
    """Steps of a tenth of a second, six seconds a part: 60 steps, and as many when it is asked again."""
    clock = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock) / 10)
    settings = replace(settings, minutes=0.1, parts=("start",), checkpoint_every=1e9)
    console = Console(file=(tmp_path / "told").open("w"))
    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluated", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(assets, tmp_path / "prior", settings, console=console, cache=finished[0] / "cache")
    monkeypatch.setattr(training, "seconds_a_step", lambda *_: 1 / 0)
    figures = trained(assets, tmp_path / "prior", settings, cache=finished[0] / "cache")
    assert (
        figures["start"].steps
        == json.loads((tmp_path / "prior/work/start/settings.json").read_text())["choices"]["steps"]
    )
    assert not (tmp_path / "prior" / "work" / "start" / "trial").exists()


# What is refused, before any work


def changed_prior(folder: Path, source: Path, **told: Any) -> Path:
    shutil.copytree(source, folder)
    was = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps(was | told))
    return folder


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "'.*file' is not a folder; choose another --output"),
        ("file/in", r"cannot write into '.*file/in' \(Not a directory\); choose another --output"),
        ("photos", r"'.*photos' holds something else \(cat.jpg\); choose a new folder as --output"),
        ("source", "'.*source' holds a prior that was not trained here; choose a new folder as --output"),
    ],
)
def test_an_output_that_cannot_be_used(assets, settings, tmp_path, output, message):
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    shutil.copytree(settings.source, tmp_path / "source")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(Mistake, match=f"^{message}$"):
        trained(assets, tmp_path / output, settings)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_assets_that_cannot_be_used(assets, settings, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(15):
        shutil.copy(assets / "box01.glb", few / f"box-{number:02d}.glb")
    captions = tmp_path / "captions.jsonl"
    for folder, words, message in (
        (tmp_path / "none", None, "there is no folder '.*none'; check the path"),
        (settings.source, None, "there is no mesh in '.*'; put .* files there"),
        (assets, "{}", "line 1 of '.*captions.jsonl' has no file name .*"),
        (assets, "boxes", "line 1 of '.*captions.jsonl' is not JSON .*"),
        (assets, '{"path": "box01.glb", "caption": ""}', "line 1 of '.*captions.jsonl' has an empty caption; .*"),
        (assets, '{"path": "box01.glb", "caption": "a box"}',
         "'.*boxes' has 1 captioned assets to train on; training needs at least 16"),
        (few, None, "'.*few' has 13 captioned assets to train on and 2 to hold out; training needs at least 16"),
    ):  # fmt: skip
        if words:
            captions.write_text(words)
        with pytest.raises(Mistake, match=f"^{message}$"):
            train(folder, captions if words else None, tmp_path / "prior", settings)
    with pytest.raises(Mistake, match=r"cannot read '.*gone' \(No such file or directory\); check --captions"):
        train(assets, tmp_path / "gone", tmp_path / "prior", settings)
    assert not (tmp_path / "prior").exists()


def test_a_source_that_cannot_be_used(assets, settings, finished, tmp_path):
    cases = {
        r"cannot use .*prior\.json: .*; copy the prior's folder again": changed_prior(
            tmp_path / "a", settings.source, camera_features=3
        ),
        "cannot continue '.*': this prior knows albedo, depth; continue one of albedo, shaded, normal": changed_prior(
            tmp_path / "b", settings.source, kinds=["albedo", "depth"]
        ),
    }
    short = tmp_path / "c"
    shutil.copytree(finished[0], short)
    (short / "SHA256SUMS").unlink()
    told = json.loads((short / "start" / "config.json").read_text()) | {"text_tokens": 8}
    start = starts.Start(StartConfig(**told))
    parts.start_training.write(short, start, [])
    cases[
        "cannot continue '.*': its start reads 8 tokens of 128 numbers, and the prior writes 16 of 128; choose .*"
    ] = short
    broken = tmp_path / "d"
    shutil.copytree(finished[0], broken)
    (broken / "start" / "config.json").write_text("{")
    cases[r"cannot use .*start/config\.json: its checksum differs from SHA256SUMS; copy the prior's folder again"] = (
        broken
    )
    for message, source in cases.items():
        with pytest.raises(Mistake, match=f"^{message}$"):
            trained(assets, tmp_path / "prior", replace(settings, source=source, continued=True))
    assert not (tmp_path / "prior").exists()


def test_another_training_in_the_same_folder(assets, settings, finished, tmp_path):
    output, before = finished[0], product(finished[0])
    start = settings.start
    more = shutil.copytree(assets, tmp_path / "boxes")
    shutil.copy(assets / "box01.glb", more / "box99.glb")
    with (more / "captions.jsonl").open("a") as file:
        file.write('{"path": "box99.glb", "caption": "a box"}\n')
    for folder, other, message in (
        (assets, replace(settings, start=lasting(start, 9)), "schedule.steps of the start was 3 and is 9 now"),
        (assets, replace(settings, start=replace(start, seed=1)), "schedule.seed of the start was 0 and is 1 now"),
        (assets, replace(settings, minutes=1.0), "minutes of the start was None and is 1.0 now"),
        (assets, replace(settings, size="large"), "size of the views was 'toy' and is 'large' now"),
        (assets, replace(settings, config=StartConfig()), "config.components of the start was 16 and is 192 now"),
        (assets, replace(settings, shots=Shots(views=8)), "shots.colours of the views was 8 and is 64 now"),
        (assets, replace(settings, continued=True), "continued of the start was False and is True now"),
        (more, settings, "data.assets of the start was 17 and is 18 now"),
    ):
        message = f"'{output}' holds another training: {message}; use the old value or another --output"
        with pytest.raises(Mistake, match=f"^{re.escape(message)}$"):
            trained(folder, output, other)
    assert product(output) == before


def test_a_settings_file_that_says_nothing(assets, settings, tmp_path):
    work = tmp_path / "prior" / "work" / "start"
    work.mkdir(parents=True)
    (work.parent / "lock").touch()
    for content in ("{", "{}", '{"asked": {}, "choices": {"steps": 1}}'):
        (work / "settings.json").write_text(content)
        with pytest.raises(Mistake, match=r"cannot read '.*settings.json' \(.*\); choose another --output"):
            trained(assets, tmp_path / "prior", settings)


def test_a_folder_belongs_to_one_process(assets, settings, tmp_path):
    output = tmp_path / "prior"
    message = "another process is at work in '.*prior'; wait for it or choose another --output"
    with publish.claimed(output), pytest.raises(Mistake, match=message):
        trained(assets, output, settings)


def test_a_cache_that_cannot_be_written(assets, settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Mistake, match=r"cannot write into '.*file' \(Not a directory\); choose another --cache"):
        trained(assets, tmp_path / "prior", settings, cache=tmp_path / "file")


# What goes wrong later


def test_a_full_gpu_and_weights_that_are_not_finite(assets, settings, finished, tmp_path, monkeypatch):
    cache = finished[0] / "cache"

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(training, "optimise", full)
        with pytest.raises(
            Failure, match="the memory of 'cpu' is full; train with a smaller --batch into another --out"
        ):
            trained(assets, tmp_path / "full", settings, cache=cache)

    def wild(network: torch.nn.Module, *_: object, **__: object) -> torch.nn.Module:
        return network.requires_grad_(False).apply(lambda m: [p.fill_(1e9) for p in m.parameters(recurse=False)])

    monkeypatch.setattr(training, "optimise", wild)
    monkeypatch.setattr(training, "evaluated", lambda *_: 0.0)
    with pytest.raises(Failure, match=r"the weights '.*' are not finite in half precision; train with a lower rate"):
        trained(assets, tmp_path / "wild", replace(settings, parts=("views",)), cache=cache)
    assert not (tmp_path / "wild" / "work" / "views" / "finished.json").exists()


# By itself


def test_the_evaluation_is_the_mean_of_batches_that_no_step_has_drawn(settings, monkeypatch):
    drawn = []

    def loss(network: torch.nn.Module, samples: int, generator: torch.Generator) -> torch.Tensor:
        drawn.append((generator.initial_seed(), samples, torch.is_autocast_enabled("cpu")))
        return torch.tensor(float(len(drawn)))

    monkeypatch.setattr(training, "EVALUATION", 3)
    network = torch.nn.Linear(1, 1)
    assert training.evaluated(network, loss, settings.views) == 2.0
    steps = {
        training.seeded(settings.views.seed, step, worker).initial_seed()
        for step in range(STEPS)
        for worker in range(4)
    }
    assert len({seed for seed, _, _ in drawn} - steps) == 3
    assert {rest for _, *rest in map(list, drawn) for rest in [tuple(rest)]} == {(8, False)}
    training.evaluated(network, loss, replace(settings.views, precision="bfloat16"))
    assert drawn[-1][2]


def test_presets_are_what_was_found_good():
    for preset in PRESETS.values():
        assert (preset.start.optimizer, preset.start.rate, preset.start.final, preset.start.ema) == (
            "muon",
            2e-3,
            0.02,
            0.999,
        )
        assert (preset.views.optimizer, preset.parts) == ("adamw", PARTS)
        assert preset.size in SIZES
    assert PRESETS["cpu"].start.batch == 64
    assert PRESETS["cuda"].views.batch % 160 == 0
    assert [lasting(PRESETS["cpu"].start, steps).warmup for steps in (1, 10, 10**5)] == [0, 2, 200]


def test_minutes_are_shared():
    settings = replace(PRESETS["cpu"], minutes=10)
    assert sum(settings.seconds(part) for part in PARTS) == pytest.approx(600)
    assert replace(settings, parts=("views",)).seconds("views") == 600
    assert PRESETS["cpu"].seconds("views") is None


def test_prompts_come_from_all_over_the_set(assets):
    data = Data.gathered(assets, assets / "captions.jsonl")
    assert data.missing == 1
    assert data.prompts(2) == ["a blue box", "a red box"]
    assert data.prompts(9) == ["a blue box", "a green box", "a red box", "a wooden box"]


def test_a_card_without_licences_or_held_out_assets(assets):
    data = replace(Data.gathered(assets, None), held_out=())
    figures = {"views": Figures(1_500_000, 10, 4, 20, 0, 0.123456, None)}
    text = card.written("my|`folder`", data, None, "an <old> prior", figures)
    assert "Their licences are not stated in the captions file." in text
    assert "on the folder `my folder`" in text
    assert "| views | 1.5 M | 10 | 4 | 20 | 0 | 0.1235 |  |" in text
    assert "taken over from `an old prior`, as far as it has it: start, upsampler, angles, lift, ranker." in text


def test_a_gpu_is_compiled_for_where_that_can_be_done(monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda name: name)
    monkeypatch.setattr(training.shutil, "which", lambda name: name if name == "gcc" else None)
    assert training.compilable()
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    assert not training.compilable()
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    assert not training.compilable()
