"""What a user types after `threed prior`, and what the program answers."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from threed import drawing
from threed.cli import main
from threed.distill.folder import SHIPPED, UnreadablePrior
from threed.distill.start import Start, StartConfig
from threed.errors import Failure
from threed.renderers.camera import orbit
from threed.renderers.voxels import Voxels
from threed.start import VoxelField
from threed.training import start as start_training
from threed.training import train as training
from threed.training.settings import GENTLE, PRESETS
from threed.training.train import Figures

TRAIN = ["prior", "train", "assets", "--output", "mine"]
SAMPLE = ["prior", "sample", "a red chair"]
FIGURES = {"start": Figures(1, 2, 3, 4, 5, 0.25, 0.5), "views": Figures(1, 2, 3, 4, 0, 0.75, None)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """The training, replaced by one that only remembers what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def train(*arguments: Any) -> dict[str, Figures]:
        calls.append(arguments)
        return FIGURES

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return calls


# train


def test_the_defaults_are_the_presets(asked, capsys):
    assert main(TRAIN) == 0
    ((folder, captions, output, settings, console, cache),) = asked
    assert (folder, captions, output, cache) == (Path("assets"), None, Path("mine"), None)
    assert settings == PRESETS["cpu"]
    assert isinstance(console, Console)
    assert capsys.readouterr().out == (
        "start: 2 steps, loss 0.25, 0.5 of assets held out\n"
        "views: 2 steps, loss 0.75\n"
        "mine is a prior; look at it: threed prior sample PROMPT --prior mine\n"
    )


def test_every_flag_reaches_the_training(asked, monkeypatch):
    flags = "--captions c.jsonl --parts views --views-size large --steps 50 --batch 7 --seed 3 --cache kept"
    assert main([*TRAIN, *flags.split()]) == 0
    ((_, captions, _, settings, _, cache),) = asked
    assert (captions, cache) == (Path("c.jsonl"), Path("kept"))
    assert (settings.parts, settings.size, settings.minutes, settings.continued) == (("views",), "large", None, False)
    assert settings.views == replace(PRESETS["cpu"].views, steps=50, warmup=10, batch=7, seed=3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    every = ["views", "start", "upsampler", "angles", "lift", "ranker"]
    assert main([*TRAIN, "--parts", *every, "--minutes", "2.5", "--device", "cuda"]) == 0
    assert asked[1][3] == replace(PRESETS["cuda"], minutes=2.5)


def test_what_is_gone_on_with_is_trained_gently(asked, tmp_path):
    """And what the prior does not have yet is not."""
    (tmp_path / "old" / "start").mkdir(parents=True)
    assert main([*TRAIN, "--from", "old"]) == 0
    settings, preset = asked[0][3], PRESETS["cpu"]
    assert (settings.source, settings.continued) == (Path("old"), True)
    assert settings.start == replace(preset.start, rate=preset.start.rate * GENTLE)
    assert settings.upsampler == preset.upsampler
    assert settings.views == replace(preset.views, rate=preset.views.rate * GENTLE)
    assert main([*TRAIN, "--from", "embedded"]) == 0
    assert asked[1][3].source == SHIPPED


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--parts", "--parts names nothing; give at least one, for example: --parts start views"),
        (
            "--parts view",
            "unknown part 'view'; did you mean 'views'\\? known: angles, lift, ranker, start, upsampler, views",
        ),
        ("--steps 0", "--steps is 0; it must lie between 1 and 10000000"),
        ("--minutes 0", "--minutes is 0.0; it must lie between 0.1 and 100000"),
        ("--minutes nan", "--minutes is nan; it must lie between 0.1 and 100000"),
        ("--batch 0", "--batch is 0; it must lie between 1 and 65536"),
        ("--seed -1", "--seed is -1; it must lie between 0 and .*"),
        ("--steps 9 --minutes 9", "--steps and --minutes contradict each other; give one of them"),
        (
            "--from . --views-size tiny",
            "--from and --views-size contradict each other: a prior keeps its size; give .*",
        ),
        ("--from gone", "unknown prior 'gone'; it is neither embedded nor a folder; check --from"),
        ("--views-size hugh", "unknown views size 'hugh'; known: large, medium, small, tiny"),
        ("--device gpu", "unknown device 'gpu'; .*known: cpu, cuda"),
        ("--device cuda", "PyTorch finds no device 'cuda' on this machine; use one of: cpu"),
    ],
)
def test_a_mistake_costs_one_line_and_no_work(asked, capsys, monkeypatch, tmp_path, flags, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*TRAIN, *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"threed: {message}\n", err)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_assets_are_looked_for_before_any_work(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    assert main(TRAIN) == 2
    assert capsys.readouterr().err == "threed: there is no folder 'assets'; check the path\n"
    assert list(tmp_path.iterdir()) == []


def failing(error: BaseException) -> Callable[..., None]:
    def train(*_: object) -> None:
        raise error

    return train


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped; continue with: threed prior train assets --output mine"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.safetensors"),
            1,
            r"the disk is full \(.*'a.safetensors'\); free 2000 MB and continue with: "
            "threed prior train assets --output mine",
        ),
        (Failure("step 9: the loss is not finite"), 1, "step 9: the loss is not finite"),
    ],
)
def test_what_stops_a_training_says_how_to_go_on(asked, capsys, monkeypatch, error, code, message):
    monkeypatch.setattr(training, "train", failing(error))
    assert main(TRAIN) == code
    assert re.fullmatch(f"threed: {message}\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["prior", "train", "assets"], ["prior", "sample"], ["prior", "evaluate"]])
def test_bad_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "threed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flags", "examples"),
    [
        ([], "", ["threed prior train assets --output my_prior "]),
        (
            ["prior"],
            "",
            [
                "Train a prior on a folder of meshes with captions.",
                "Draw what a prior makes of a sentence",
                "Measure what a prior draws by itself",
            ],
        ),
        (
            ["prior", "train"],
            "captions output parts views-size from steps minutes batch seed device cache",
            [
                '{"path": "barrel.glb", "caption": "a wooden barrel"}\n',
                "threed prior train assets --captions assets/captions.jsonl --output my_prior\n",
                'threed prior sample "a wooden barrel" --prior my_prior\n',
            ],
        ),
        (
            ["prior", "sample"],
            "prior views seed output",
            ['threed prior sample "a red chair" --prior my_prior --views 8\n'],
        ),
        (
            ["prior", "evaluate"],
            "captions prior judge judge-assets judge-captions prompts seed output",
            ["threed prior evaluate held_out --prior my_prior\n"],
        ),
    ],
)
def test_help_teaches(capsys, monkeypatch, command, flags, examples):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert [flag for flag in flags.split() if f"--{flag} " not in told] == []
    assert [example for example in examples if example not in told] == []


def test_quick_answers_import_nothing_heavy():
    script = (
        "import sys; from threed.cli import main\n"
        "try: main(['prior', 'train', '--help'])\n"
        "except SystemExit: pass\n"
        "main(['prior', 'train', 'assets', '--output', 'x', '--steps', '0'])\n"
        "main(['prior', 'sample', ''])\n"
        "main(['prior', 'evaluate', 'assets', '--output', '.'])\n"
        "sys.exit(bool({'torch', 'numpy', 'diffusers', 'transformers', 'numba'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# sample


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """The drawing, replaced by one that only remembers what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def sheet(*arguments: Any) -> bytes:
        calls.append(arguments[:4])
        return b"PNG"

    monkeypatch.setattr(drawing, "sheet", sheet)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_sample_is_one_picture(drawn, capsys, tmp_path):
    assert main(["prior", "sample", "  a red\n chair "]) == 0
    assert main([*SAMPLE, "--views", "3", "--seed", "5", "--output", "deep/in/it.PNG"]) == 0
    assert drawn == [("a red chair", "embedded", 4, 0), ("a red chair", "embedded", 3, 5)]
    assert (tmp_path / "a-red-chair-0.png").read_bytes() == (tmp_path / "deep" / "in" / "it.PNG").read_bytes() == b"PNG"
    assert capsys.readouterr().out == "a-red-chair-0.png  0 kB\ndeep/in/it.PNG  0 kB\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], 'the prompt is empty; say what to draw, for example: threed prior sample "a red chair"'),
        (["very " * 30], "the prompt 'very very .*' takes 32 tokens of at most 16; shorten it"),
        (["x", "--views", "0"], "--views is 0; it must lie between 1 and 16"),
        (["x", "--views", "17"], "--views is 17; it must lie between 1 and 16"),
        (["x", "--seed", "-1"], "--seed is -1; it must lie between 0 and .*"),
        (
            ["x", "--prior", "embeded"],
            "unknown prior 'embeded'; it is neither embedded nor a folder with a prior.json; see: threed prior list",
        ),
        (["x", "--prior", "empty"], "unknown prior 'empty'; it is neither embedded nor a folder with a prior.json; .*"),
        (["x", "--output", "sheet.jpg"], "--output is 'sheet.jpg'; its name must end with .png"),
        (["x", "--output", "empty"], "'empty' is a folder; name a file in it, for example --output empty/sheet.png"),
        (
            ["x", "--output", "file/a.png"],
            "cannot write 'file/a.png' \\('.*file' is not a folder\\); choose another .*",
        ),
    ],
)
def test_a_mistake_draws_nothing(drawn, capsys, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert main(["prior", "sample", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"threed: {message}\n", err)
    assert drawn == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_weights_that_break_while_they_are_read_are_a_mistake(drawn, capsys, monkeypatch):
    def broken(*_: object) -> bytes:
        raise UnreadablePrior("cannot use start/config.json: it is torn; copy the prior's folder again")

    monkeypatch.setattr(drawing, "sheet", broken)
    assert main(SAMPLE) == 2
    assert "threed: cannot use start/config.json: it is torn" in capsys.readouterr().err


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_the_sheet_has_a_row_a_kind_and_one_for_the_volume(monkeypatch, tmp_path):
    """From a prior that only remembers what it was asked; its start is of nothing, or a ball."""
    asked: list[tuple[Any, ...]] = []

    class Oracle:
        unet, image_size = Network(), 8

    def pictures(prior: Oracle, prompt: str, cameras: Any, generator: torch.Generator, steps: int) -> torch.Tensor:
        asked.append((prompt, len(cameras), generator.initial_seed(), steps))
        return torch.linspace(0, 1, 9).reshape(9, 1, 1, 1).expand(9, 8, 8, 3)

    monkeypatch.setattr(drawing.Embedded, "load", lambda _: Oracle())
    monkeypatch.setattr(drawing.sample, "pictures", pictures)
    sheets = [Image.open(io.BytesIO(drawing.sheet("a ball", str(tmp_path), 3, 7)))]
    assert sheets[0].size == (3 * 20 + 4, 3 * 20 + 4)
    assert [sheets[0].getpixel((12 + 20 * (k % 3), 12 + 20 * (k // 3)))[0] for k in range(9)] == [
        round(255 * k / 8) for k in range(9)
    ]
    (tmp_path / "start").mkdir()
    axis = torch.arange(16) - 7.5
    reach = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).norm(dim=-1)
    for distance in (reach - 6, reach + 1):
        voxels = Voxels(distance.clamp(-3, 3), torch.tensor([0.2, 0.4, 0.6]).expand(16, 16, 16, 3))
        monkeypatch.setattr(drawing, "imagined", lambda *_, found=voxels: found)
        sheets.append(Image.open(io.BytesIO(drawing.sheet("a ball", str(tmp_path), 3, 7))))
    assert sheets[1].size == sheets[2].size == (3 * 20 + 4, 4 * 20 + 4)
    ball = VoxelField(Voxels((reach - 6).clamp(-3, 3), voxels.colour)).render(orbit(3), 8).over(torch.ones(3))
    expected = (ball[1].clamp(0, 1) * 255).round().byte()
    for row, column in ((0, 0), (4, 4), (2, 5)):
        assert sheets[1].getpixel((25 + 2 * column, 65 + 2 * row)) == tuple(expected[row, column].tolist())
    assert sheets[2].getpixel((32, 72)) == (255, 255, 255)
    assert {seed for _, _, seed, _ in asked} == {drawing.seeded(7).initial_seed()}
    assert {(prompt, views, steps) for prompt, views, _, steps in asked} == {("a ball", 3, drawing.STEPS)}


def test_patience_ends_with_a_bar(monkeypatch):
    network, clock = Network(), iter([0.0, 1.0, 1.5, 2.5, 3.0])
    monkeypatch.setattr(drawing.time, "monotonic", lambda: next(clock))
    started: list[int] = []
    monkeypatch.setattr(drawing.Progress, "start", lambda _: started.append(1))
    with drawing.patience(network, 3, Console(file=io.StringIO(), force_terminal=True)):
        for calls in range(3):
            network(torch.zeros(1))
            assert len(started) == (calls == 2)
    network(torch.zeros(1))
    with drawing.patience(network, 3, None):
        network(torch.zeros(1))
    assert len(started) == 1


def test_a_start_in_the_folder_is_asked(tmp_path):
    """The shipped views beside a start of noise: whatever it is, it is drawn, the same for the same seed."""
    shape = StartConfig(resolution=8, patch=4, components=8, width=64, layers=1)
    torch.manual_seed(0)
    start = Start(shape)
    torch.nn.init.orthogonal_(start.basis)
    torch.nn.init.normal_(start.write.weight)
    for name in ("text_encoder", "tokenizer", "prior.json"):
        (tmp_path / name).symlink_to(SHIPPED / name)
    start_training.write(tmp_path, start, [])
    first, again, other = (drawing.volume("a red chair", tmp_path, orbit(2), seed, 8) for seed in (0, 0, 1))
    assert first.shape == (2, 8, 8, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
