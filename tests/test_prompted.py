"""The table of losses is fair at any moment: what some of them lack counts for none of them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from prompted import FLAGS, summary

from threed.distill.losses import LOSSES
from threed.recipes import RECIPES


def run(prompt, seed, loss, **figures):
    told = {"iou": 0.5, "psnr": 15.0, "core_seconds": 9.0, "failed": False}
    return {"prompt": prompt, "seed": seed, "loss": loss, **told, **figures}


def runs(prompt, seed, **figures):
    return [run(prompt, seed, loss, **figures) for loss in FLAGS]


def test_every_loss_has_its_row_and_runs_as_it_is_called():
    assert set(LOSSES) | {"mvdream"} == set(FLAGS)
    for name, flags in FLAGS.items():
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        assert given.get("--loss", name) == name
        loss = RECIPES[given["--recipe"]].stages[0].loss
        assert name in {given.get("--loss"), loss.name, given["--recipe"]}


def test_a_prompt_counts_once_all_losses_have_it():
    rows = runs("a barrel", 0) + runs("a crate", 0, iou=0.7)[:-1]
    found = summary(rows)
    assert found["prompts"] == 1
    assert {row["iou"] for row in found["losses"].values()} == {0.5}
    found = summary([*rows, run("a crate", 0, list(FLAGS)[-1], iou=0.9)])
    assert found["prompts"] == 2
    assert {row["iou"] for row in found["losses"].values()} == {0.6, 0.7}


def test_diversity_is_of_second_seeds_and_failures_are_counted():
    rows = runs("a barrel", 0) + runs("a barrel", 1, diversity=0.2)
    assert {row["diversity"] for row in summary(rows)["losses"].values()} == {0.2}
    del rows[-1]
    assert {row["diversity"] for row in summary(rows)["losses"].values()} == {None}
    rows = [run("a barrel", 0, loss, iou=0.0 if loss == "csd" else 0.5, failed=loss == "csd") for loss in FLAGS]
    assert [name for name, row in summary(rows)["losses"].items() if row["failed"]] == ["csd"]


def test_nothing_yet_is_no_table():
    found = summary([])
    assert (found["prompts"], found["prompts_of_diversity"]) == (0, 0)
    assert found["losses"]["sds"]["iou"] is None
