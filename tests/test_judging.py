"""The judge in a folder: what it learns from, what is said of it, and which folders it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_assets
from rich.console import Console

from threed.errors import Mistake
from threed.training import judge as judges
from threed.training import judging
from threed.training.collection import Item, gather, held_out
from threed.training.judging import check, judged, lessons
from threed.training.loop import Schedule
from threed.training.parts import Data

SCHEDULE = Schedule(steps=25, batch=24, rate=4e-3, warmup=4, ema=0.8, precision="float32")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty-four boxes to learn from, and six to hold out."""
    captions = tiny_assets.write(tmp_path_factory.mktemp("assets"), 30)
    items = gather(captions.parent, captions).items
    return Data(items[:24], items[24:])


@pytest.fixture(scope="module")
def kept(data, tmp_path_factory):
    """The folder of a judge that was trained on them."""
    folder = tmp_path_factory.mktemp("judges") / "deep" / "judge"
    with pytest.MonkeyPatch.context() as patched:
        train = judges.train
        patched.setattr(judges, "train", lambda cache, log, schedule: train(cache, log, schedule, width=8))
        judged(folder, 16, data, QUIET, SCHEDULE)
    return folder


def named(count: int, caption: str = "a box") -> list[Item]:
    """Items; the first one has another caption."""
    return [Item(Path(f"{i}.glb"), caption if i else "a crate", f"{i}.glb") for i in range(count)]


def test_a_twentieth_is_held_out_where_enough_is_left_on_both_sides():
    many = [Item(item.path, f"a box {i}", item.name) for i, item in enumerate(named(400))]
    data = lessons(many)
    assert (data.train, data.held_out) == held_out(many)
    assert len(data.held_out) > 2
    # One caption alone says nothing, and fewer than sixteen assets teach nothing.
    assert lessons(named(400)).held_out == ()
    name = next(items[-1].name for count in range(17, 99) if len(held_out(items := named(count))[1]) == 1)
    few = [*named(15), *(Item(Path(name), f"a box {i}", name) for i in range(2))]
    assert (lessons(few).assets, lessons(few).held_out) == (16, ())


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (named(15), "a judge cannot learn from 15 assets under 2 captions; it needs at least 16 under 2: give it .*"),
        (named(15) * 2, "a judge cannot learn from 15 assets .*"),
        (named(40, "a crate"), "a judge cannot learn from 40 assets under 1 captions; .* with --judge-assets"),
    ],
)
def test_what_is_too_little_to_learn_from_is_refused(items, message):
    with pytest.raises(Mistake, match=rf"^{message}$"):
        lessons(items)


def test_folders_of_something_else_are_left_alone(tmp_path, kept):
    check(tmp_path / "none")
    check(kept)
    (tmp_path / "work").mkdir()  # the beginning of one
    check(tmp_path)
    (tmp_path / "other").mkdir()
    check(tmp_path / "other")
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(Mistake, match=r"'.*other' holds something else \(notes.txt\); choose a new folder as --judge"):
        check(tmp_path / "other")
    with pytest.raises(Mistake, match=r"'.*notes.txt' is not a folder; choose another --judge"):
        check(tmp_path / "other" / "notes.txt")


def test_a_judge_is_trained_once_and_says_how_good_it_is(kept, data, monkeypatch):
    monkeypatch.setattr(judges, "train", lambda *_: 1 / 0)
    judge, about = judged(kept, 16, data, QUIET)
    assert judge.towers.config == judges.JudgeConfig(size=16, width=8)
    assert about["trained_on"] == {"assets": 24, "captions": 4, "digest": data.digest}
    assert about["size"] == 16
    seen, left, others = about["r_precision"].values()
    assert seen == left == {"share": 1.0, "among": 4}
    assert others == {"share": 1.0, "among": 4}
    again, _ = judged(kept, 16, None, QUIET)  # whatever it has learned
    for name, value in judge.towers.state_dict().items():
        assert value.equal(again.towers.state_dict()[name])


def test_another_judge_is_not_taken_for_the_one_that_was_asked_for(kept, data, tmp_path):
    with pytest.raises(Mistake, match="looks at 16 pixels a side and the prior draws 64; choose a new folder"):
        judged(kept, 64, data, QUIET)
    others = dataclasses.replace(data, train=data.train[1:])
    with pytest.raises(Mistake, match=r"was trained on other assets or captions than these; choose .* --judge-assets"):
        judged(kept, 16, others, QUIET)
    with pytest.raises(Mistake, match=r"there is no judge in '.*none'; check --judge"):
        judged(tmp_path / "none", 16, None, QUIET)
    for name in ("judge.json", "model.safetensors"):
        (tmp_path / name).write_bytes((kept / name).read_bytes())
    told = json.loads((tmp_path / "judge.json").read_text())
    del told["r_precision"]
    (tmp_path / "judge.json").write_text(json.dumps(told))
    with pytest.raises(Mistake, match="does not say what it has learned; choose a new folder as --judge"):
        judged(tmp_path, 16, None, QUIET)


def test_what_cannot_be_written_is_known_before_any_work(data, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(judging, "build", lambda *_: 1 / 0)
    with pytest.raises(Mistake, match=r"cannot write into '.*file/judge' \(Not a directory\); choose another --judge"):
        judged(tmp_path / "file" / "judge", 16, data, QUIET)


def test_trainings_of_other_assets_or_sizes_do_not_go_on_from_one_another(data, tmp_path, monkeypatch):
    begun = []

    def train(cache, log, schedule):
        begun.append(log.folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(judges, "train", train)
    others = dataclasses.replace(data, train=data.train[1:])
    for size, each in ((16, data), (16, data), (32, data), (16, others)):
        with pytest.raises(KeyboardInterrupt):
            judged(tmp_path, size, each, QUIET)
    assert [begun.index(folder) for folder in begun] == [0, 0, 2, 3]
    check(tmp_path)
