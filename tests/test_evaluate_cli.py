"""What a user types after `threed prior evaluate`, and what the program answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_assets
import tiny_prior

from threed.cli import main
from threed.distill.folder import UnreadablePrior
from threed.training import evaluate as evaluation
from threed.training import judge as judges
from threed.training import trials
from threed.training.collection import gather
from threed.training.judging import lessons
from threed.training.loop import Schedule
from threed.training.trials import Sizes, scaled

FEW = Sizes(captions=3, views=4, steps=1, fits=1, fit_steps=2, references=2, cameras=4, recolourings=2, candidates=1)
SHORT = Schedule(steps=20, batch=24, rate=4e-3, warmup=4, ema=0.8, precision="float32")
PRECISION = {"views that it was trained on": {"share": 0.75, "among": 12}, "other assets": None}
CAPTIONED = "few --captions few/captions.jsonl"
FOUND = {
    "threads": 1,
    "judge": {"trained_on": {"assets": 16, "captions": 12, "digest": "x"}, "r_precision": PRECISION},
    "priors": [{"prior": "embedded", "prompts": 12, "views": {"r_precision": {"captions": 0.5}}, "start": None}],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`assets`, enough for a judge, and `few`, which are not."""
    folder = tmp_path_factory.mktemp("folders")
    tiny_assets.write(folder / "assets", 16)
    tiny_assets.write(folder / "few", 3)
    return folder


@pytest.fixture
def place(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("assets", "few"):
        (tmp_path / name).symlink_to(folders / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    return tmp_path


@pytest.fixture
def asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The work, replaced by one that only remembers what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def compare(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return FOUND

    monkeypatch.setattr(evaluation, "compare", compare)
    return calls


def evaluate(flags: str) -> int:
    return main(["prior", "evaluate", *flags.split()])


def test_the_defaults_judge_the_embedded_prior(asked, capsys, place):
    captions = Path("assets/captions.jsonl")
    assert evaluate("assets --captions assets/captions.jsonl") == 0
    ((priors, items, judge, learn, console, sizes, seed, _),) = asked
    assert (priors, judge, sizes, seed) == (("embedded",), Path("outputs/judge-assets"), Sizes(), 0)
    assert items == gather(Path("assets"), captions).items
    assert learn == lessons(items)
    assert console.stderr
    out = capsys.readouterr().out
    assert re.search(r"Captions, told apart by R-precision\W+12\W", out)
    assert re.search(r"R-precision of joint views, captions ↑\W+0.500\W", out)
    assert out.endswith(
        "the judge has learned 12 captions of 16 assets; its own R-precision:\n"
        "  0.750 among 12 captions, views that it was trained on\n"
        "prior-evaluation.json  0 kB\n"
    )
    assert json.loads((place / "prior-evaluation.json").read_text()) == FOUND


def test_every_flag_reaches_the_work(asked, place):
    tiny_prior.write(place / "mine")
    flags = "--prior embedded mine --prompts 10 --seed 5 --output deep/in/it.json"
    learn = "--judge-assets assets --judge-captions assets/captions.jsonl"
    assert evaluate(f"{CAPTIONED} {flags} {learn}") == 0
    assert evaluate(f"{CAPTIONED} {learn} --judge my/judge") == 0
    (priors, items, judge, learn, _, sizes, seed, known), other = asked
    assert (priors, judge, sizes, seed) == (("embedded", "mine"), Path("outputs/judge-assets"), scaled(10), 5)
    assert items == gather(Path("few"), Path("few/captions.jsonl")).items
    assert learn.train == gather(Path("assets"), Path("assets/captions.jsonl")).items
    assert other[2:4] == (Path("my/judge"), learn)
    assert {*known} == {item.caption for item in learn.train}
    assert json.loads((place / "deep" / "in" / "it.json").read_text()) == FOUND


def test_a_judge_that_is_named_is_taken_as_it_is(asked, place):
    (place / "judge").mkdir()
    (place / "judge" / "judge.json").touch()
    assert evaluate(f"{CAPTIONED} --judge judge") == 0
    assert asked[0][2:4] == (Path("judge"), None)
    assert evaluate(f"{CAPTIONED} --judge judge --judge-assets assets --judge-captions assets/captions.jsonl") == 0
    assert asked[1][3].assets == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("gone", "there is no folder 'gone'; check the path"),
        ("assets --captions gone.jsonl", "cannot read 'gone.jsonl' \\(No such file or directory\\); check --captions"),
        ("assets --captions file", "no caption in 'file' belongs to a mesh in 'assets'; .*"),
        ("assets", "the file name '0.glb' does not say what the mesh shows; rename it or write --captions"),
        (CAPTIONED, "a judge cannot learn from 3 assets under 3 captions; it needs at least 16 .* --judge-assets"),
        ("assets --seed -1", "--seed is -1; it must lie between 0 and .*"),
        ("assets --prior", "--prior names nothing; give at least one, for example: --prior embedded my_prior"),
        (
            "assets --prior embeded",
            "unknown prior 'embeded'; it is neither embedded nor a folder with a prior.json; see: threed prior list",
        ),
        (
            "assets --prior embedded empty",
            "unknown prior 'empty'; it is neither embedded nor a folder with a prior.json; .*",
        ),
        ("assets --output empty", "'empty' is a folder; name a file in it, for example --output empty/figures.json"),
        ("assets --output figures.txt", "--output is 'figures.txt'; its name must end with .json"),
        (
            "assets --output file/a.json",
            "cannot write 'file/a.json' \\('.*file' is not a folder\\); .* --output",
        ),
        (f"{CAPTIONED} --judge file", "'file' is not a folder; choose another --judge"),
        (f"{CAPTIONED} --judge assets", "'assets' holds something else \\(0.glb\\); choose a new folder as --judge"),
        (f"{CAPTIONED} --judge-assets assets", "the file name '0.glb' does not say what the mesh shows; .*"),
        (f"{CAPTIONED} --judge-assets gone", "there is no folder 'gone'; check the path"),
        (f"{CAPTIONED} --judge-captions file", "--judge-captions has no folder .*; give --judge-assets, too"),
    ],
)
def test_a_mistake_costs_one_line_and_no_work(asked, capsys, place, flags, message):
    (place / "file").touch()
    (place / "empty").mkdir()
    assert evaluate(flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"threed: {message}\n", err)
    assert asked == []
    assert {path.name for path in place.iterdir()} == {"assets", "few", "file", "empty"}


def test_a_folder_that_is_read_only_is_a_mistake(asked, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert evaluate("assets --output a.json") == 2
    assert re.search(r"cannot write 'a.json' \('.*' is read-only\); choose another --output", capsys.readouterr().err)


def test_weights_that_break_while_they_are_read_are_a_mistake(asked, capsys, monkeypatch):
    def broken(*_: object) -> None:
        raise UnreadablePrior("cannot use start/config.json: it is torn; copy the prior's folder again")

    monkeypatch.setattr(evaluation, "compare", broken)
    assert evaluate("assets --captions assets/captions.jsonl") == 2
    assert "threed: cannot use start/config.json: it is torn" in capsys.readouterr().err


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Few questions, and a judge that learns in a second; how often one was trained."""
    train, trained = judges.train, list[int]()

    def quickly(cache: Any, log: Any, _: Schedule) -> Any:
        trained.append(len(cache))
        return train(cache, log, SHORT, width=8)

    monkeypatch.setattr(judges, "train", quickly)
    monkeypatch.setattr(trials, "scaled", lambda captions: FEW)
    return trained


def test_from_assets_to_a_table(place, capsys, short):
    """With a prior that was never trained; the second time the judge is there, and the figures are the same."""
    tiny_prior.write(place / "mine")
    command = "assets --captions assets/captions.jsonl --prior mine --prompts 3 --judge judge"
    assert evaluate(command) == 0
    assert evaluate(f"{command} --output again.json") == 0
    assert short == [16]
    out, err = capsys.readouterr()
    found, again = (json.loads((place / name).read_text()) for name in ("prior-evaluation.json", "again.json"))
    ((table,), (twin,)) = found["priors"], again["priors"]
    assert table.pop("seconds") > 0
    del twin["seconds"]
    assert (found["judge"], table) == (again["judge"], twin)
    assert (table["prior"], table["prompts"], table["start"], table["sizes"]["captions"]) == ("mine", 3, None, 3)
    assert table["views"]["r_precision"]["renders"] == 1
    assert re.search(r"Captions, told apart by R-precision\W+3\W", out)
    assert re.search(r"Reference to view, SSIM ↑\W+0\.\d{3}\W", out)
    assert "1.000 among 4 captions, other views of the same assets\n" in out
    assert "skipped" not in err


def test_what_cannot_be_compared_is_known_before_a_judge_is_trained(place, capsys, short):
    tiny_prior.write(place / "mine")
    learn = "--judge-assets assets --judge-captions assets/captions.jsonl"
    assert evaluate(f"{CAPTIONED} --prior embedded mine {learn}") == 2
    assert "the priors draw pictures of 16 and 64 pixels; compare those of one size" in capsys.readouterr().err
    (place / "one.jsonl").write_text('{"path": "0.glb", "caption": "a box"}')
    assert evaluate(f"few --captions one.jsonl --prior mine {learn}") == 2
    assert "1 of 1 captions are short enough, with an asset of their own" in capsys.readouterr().err
    assert short == []
