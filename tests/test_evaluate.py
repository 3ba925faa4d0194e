"""Evaluating a prior: what is asked, what a perfect and a hopeless prior score, and the whole on toy assets."""

import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
import tiny_assets
import tiny_prior
import torch
from rich.console import Console
from tiny_assets import COLOURS, NAMES, THINGS, box

from threed.distill.embedded import Embedded
from threed.distill.start import Start, StartConfig, volume_of
from threed.distill.text import Text
from threed.distill.upsampler import Upsampler, UpsamplerConfig
from threed.errors import Mistake
from threed.log import Log
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.read import read
from threed.renderers.voxels import voxelise
from threed.run import settings
from threed.training import evaluate as evaluation
from threed.training import measures, recolour, start_figures, trials, views_figures
from threed.training import start as start_training
from threed.training.captions import colour_names, colour_words, paraphrases
from threed.training.collection import Item, gather
from threed.training.evaluate import ROWS, evaluate, readable, rounded, show
from threed.training.judge import Judge, JudgeConfig, Towers
from threed.training.start_figures import starts
from threed.training.trials import Sizes, Trial
from threed.training.upsampler import fresh
from threed.training.views_figures import recolouring, reference, rendered, turned, views

SIZES = Sizes(captions=4, views=4, steps=1, fits=1, fit_steps=4, references=2, cameras=4, recolourings=4, candidates=2)
RESOLUTION = 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chosen(trial, items):
    return trials.chosen(items, trial.sizes, trial.seed, lambda words: readable(trial.prior, words), trial.log)


def painted(trial, items, known=()):
    return trials.painted(items, trial.sizes, trial.seed, lambda words: readable(trial.prior, words), trial.log, known)


# The whole


class Eyes(Towers):
    """A judge that cannot err on flat colours: the nearest of four, and the texts that name it."""

    def pictures(self, images):
        rgb = images.movedim(1, -1)
        inside = (rgb.amin(-1) < 0.9).float()[..., None]
        mean = (rgb * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        # By hue, so that light and shade do not matter.
        lab = recolour.oklab_from_srgb(mean)[:, 1:]
        hues = recolour.oklab_from_srgb(torch.tensor(COLOURS))[:, 1:]
        return torch.nn.functional.normalize(lab, dim=1) @ torch.nn.functional.normalize(hues, dim=1).T

    def texts(self, mean):
        return mean


def by_colour(captions):
    mean = torch.tensor([[float(name in caption) for name in NAMES] for caption in captions])
    return Text(mean[:, None], mean)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five assets under four captions, each of a colour of its own."""
    return tiny_assets.write(tmp_path_factory.mktemp("assets"), 5).parent


@pytest.fixture(scope="module")
def items(folder):
    return gather(folder, folder / "captions.jsonl").items


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    """A tiny untrained prior of 16-pixel pictures, with a tiny untrained start."""

    folder = tmp_path_factory.mktemp("prior")
    tiny_prior.write(folder)
    torch.manual_seed(1)
    start = Start(StartConfig(resolution=RESOLUTION, patch=8, components=16, width=64, layers=1, picture=16))
    start.basis.copy_(torch.linalg.qr(torch.randn(2048, 16))[0].T)
    start.mean[:512] = -0.1
    torch.nn.init.normal_(start.write.weight, std=0.05)
    start_training.write(folder, start, THINGS)
    return folder


@pytest.fixture(scope="module")
def judge():
    return Judge(Eyes(JudgeConfig(size=16)), by_colour)


@pytest.fixture
def trial(prior_folder, judge, tmp_path):
    return Trial(Embedded.load(prior_folder, dtype=torch.float32), judge, SIZES, 0, Log(tmp_path), torch.device("cpu"))


def test_every_figure_is_there_and_the_same_every_time(trial, items, prior_folder, tmp_path):
    volumes, prompts, paintings = start_figures.start.load(prior_folder), chosen(trial, items), painted(trial, items)
    upsampler = fresh(UpsamplerConfig(width=8), 0)
    found, again = (evaluate(trial, volumes, prompts, paintings, upsampler) for _ in range(2))
    flat, twin = settings(found), settings(again)
    for name in ROWS:
        assert isinstance(flat[name], float | int), name
        if "seconds" not in name:
            assert twin[name] == flat[name], name
    assert [flat[name] for name in ("prompts", "reference.assets", "recolouring.prompts")] == [4, 2, 4]
    assert found["views"]["r_precision"]["renders"] == 1
    assert found["views"]["feature_distance"]["samples"] > found["views"]["feature_distance"]["other_views"]
    assert found["views"]["consistency_psnr"]["renders"] > found["views"]["consistency_psnr"]["samples"]
    assert found["start"]["assets"]["broken"] == 0
    assert found["views"]["paraphrases"] == 4
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    stages = [json.loads(line)["stage"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {*stages} == {"views", "solids", "reference", "recolouring", "voxels", "start", "start from pictures"}


def test_priors_are_asked_the_same_and_no_colour_that_is_known(prior_folder, items, judge, tmp_path, monkeypatch):
    """Even one that reads less than the other."""
    tiny_prior.write(tmp_path / "short", text_tokens=8)
    asked, console = [], Console(quiet=True)
    monkeypatch.setattr(evaluation, "judged", lambda folder, size, learn, _: (judge, {"said": (folder, size, learn)}))
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments: asked.append(arguments) or {"number": len(asked)})
    names = (str(prior_folder), str(tmp_path / "short"))
    found = evaluation.compare(names, items, tmp_path, None, console, SIZES, 3)
    assert [table["prior"] for table in found["priors"]] == [prior_folder.name, "short"]
    assert [table["number"] for table in found["priors"]] == [1, 2]
    assert found["judge"] == {"said": (tmp_path, 16, None)}
    (trial, volumes, prompts, paintings, finer), (other, none, *same) = asked
    assert same == [prompts, paintings, None]
    assert finer is None
    assert volumes.config.resolution == RESOLUTION
    assert none is None
    assert (trial.sizes, trial.seed, trial.judge) == (SIZES, 3, judge)
    assert len(prompts) == len(paintings) == 4
    assert all(readable(other.prior, words) for p in prompts for words in (p.caption, p.paraphrase) if words)
    alone = evaluation.compare(names[:1], items, tmp_path, None, console, SIZES, 3)
    assert len(alone["priors"]) == 1
    assert not all(readable(other.prior, p.paraphrase) for p in asked[-1][2])
    everything = [p.said(name) for p in paintings for name in recolour.NAMES]
    evaluation.compare(names, items, tmp_path, None, console, SIZES, 3, everything)
    assert asked[-1][3] == ()


def test_a_prior_that_draws_the_truth_is_perfect(trial, items, monkeypatch):
    prompts = chosen(trial, items)
    truths = {words: p.asset for p in prompts for words in (p.caption, p.paraphrase)}
    monkeypatch.setattr(views_figures, "drawn", lambda trial, words, _: rendered(truths[words], orbit(4), 16))
    found = views(trial, prompts)
    assert set(found["r_precision"].values()) == {1.0}
    assert found["feature_distance"]["samples"] == pytest.approx(0, abs=1e-9)
    assert found["feature_distance"]["other_views"] > 1e-6
    assert found["consistency_psnr"]["samples"] == found["consistency_psnr"]["renders"]
    # One that draws its neighbour is never right.
    wrong = {words: prompts[i - 1].asset for i, p in enumerate(prompts) for words in (p.caption, p.paraphrase)}
    monkeypatch.setattr(views_figures, "drawn", lambda trial, words, _: rendered(wrong[words], orbit(4), 16))
    assert views(trial, prompts)["r_precision"] == {"captions": 0, "paraphrases": 0, "renders": 1}


def test_prompts_are_captions_with_their_assets_and_other_words(trial, items, folder):
    prompts = chosen(trial, items)
    assert sorted(p.caption for p in prompts) == sorted(f"a small {n} {t}" for n, t in zip(NAMES, THINGS, strict=True))
    for prompt in prompts:
        assert prompt.paraphrase in paraphrases(prompt.caption)
        assert prompt.asset.mesh.vertices.norm(dim=1).max() == pytest.approx(1)
    (twice,) = (prompt for prompt in prompts if len(prompt.paths) == 2)
    assert twice.caption == "a small red box"
    assert twice.paths == (folder / "0.glb", folder / "4.glb")
    assert len(chosen(dataclasses.replace(trial, sizes=dataclasses.replace(SIZES, captions=2)), items)) == 2
    others = [chosen(dataclasses.replace(trial, seed=seed), items) for seed in range(4)]
    assert len({tuple(prompt.caption for prompt in other) for other in others}) > 1
    # What shares its asset with another caption, or is too long to be read, is left out.
    more = [*items, Item(folder / "0.glb", "a thing", "0.glb"), Item(folder / "9.glb", "a box " * 7, "9.glb")]
    assert len(chosen(trial, more)) == 4


def test_files_that_cannot_be_read_are_told_of_and_left_out(trial, items, tmp_path):
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"nothing")
    both = [Item(broken, "a small red box", "broken.glb"), Item(broken, "a heap", "broken.glb"), *items]
    prompts = chosen(trial, both)
    assert len(prompts) == 4
    assert "broken.glb" in (tmp_path / "log.txt").read_text()
    solids = start_figures.solids(trial, prompts, RESOLUTION)
    assert sorted(map(len, solids)) == [1, 1, 1, 2]
    with pytest.raises(Mistake, match=r"1 of 2 captions are short enough, .*; an evaluation needs at least 2"):
        chosen(trial, [items[0], Item(broken, "a heap", "broken.glb")])


# From one picture


def by_hand(truth, guess):
    """PSNR of all views together and IoU as a mean over views, in loops."""
    error = np.mean(
        [(x - y) ** 2 for x, y in zip(guess[0].flatten().tolist(), truth[0].flatten().tolist(), strict=True)]
    )
    ious = []
    for v in range(len(truth[0])):
        a, b = (x[1][v].flatten() > 0.5 for x in (guess, truth))
        ious.append(int((a & b).sum()) / int((a | b).sum()))
    return -10 * math.log10(error), measures.ssim(guess[0], truth[0]), np.mean(ious)


def test_the_baselines_are_those_of_loops(trial, items, monkeypatch):
    """And a prior that shows what is there is beyond them."""
    trial = dataclasses.replace(trial, sizes=dataclasses.replace(SIZES, references=3))
    prompts, cameras = chosen(trial, items)[:3], orbit(4)
    renders = [surface.render(prompt.asset, cameras, 16, 16, 3) for prompt in prompts]
    truths = [(render.rgb + 1 - render.alpha, render.alpha) for render in renders]
    references, turns = [], []

    def perfect(trial, seen, camera, cameras, generator):
        references.append((seen.rgb + 1 - seen.alpha, seen.alpha))
        turns.append((camera.azimuth.item(), camera.elevation.item()))
        number = len(references) - 1
        return truths[number][0] + 0.01, rendered(prompts[number].asset, cameras, 16)[2]

    monkeypatch.setattr(views_figures, "turned", perfect)
    found = reference(trial, prompts)
    assert all(0 <= azimuth <= math.pi / 4 for azimuth, _ in turns)
    assert len({azimuth for azimuth, _ in turns}) == 3
    assert [elevation for _, elevation in turns] == pytest.approx([math.radians(15)] * 3)
    expected = {"repeated": [], "mean": []}
    for number, truth in enumerate(truths):
        again = [x.expand_as(y) for x, y in zip(references[number], truth, strict=True)]
        others = [truths[k] for k in range(3) if k != number]
        mean = [sum(o[j][v] for o in others for v in range(4)) / 8 for j in (0, 1)]
        expected["repeated"].append(by_hand(truth, again))
        expected["mean"].append(by_hand(truth, [x.expand_as(y) for x, y in zip(mean, truth, strict=True)]))
    for name, rows in expected.items():
        for figure, value in zip(("psnr", "ssim", "iou"), np.mean(rows, axis=0), strict=True):
            assert found[figure][name] == pytest.approx(value, rel=1e-4), (figure, name)
    assert found["psnr"]["prior"] == pytest.approx(40, abs=1e-3)
    assert found["ssim"]["prior"] > 0.99
    assert found["iou"]["prior"] > 0.9
    assert found["assets"] == 3


def test_the_network_is_told_what_was_seen_from_where(trial, monkeypatch):
    """And what it draws for a camera is found at that camera's place."""
    cameras, camera = orbit(8), dataclasses.replace(orbit(1), azimuth=torch.tensor([0.4]))
    seen = surface.render(box(), camera, 16, 16)
    told = []

    def ddim(prior, conditions, shape, steps, scale, rescale, generator):
        condition = conditions.positive
        told.append(condition)
        assert (shape, steps, scale, condition.joint) == ((8, 3, 16, 16), 1, 1.0, 8)
        kind = condition.labels[:, 24:27].argmax(1)
        turn = torch.atan2(condition.labels[:, 14], condition.labels[:, 18])  # sin and cos of azimuth - 0.4
        return torch.stack([turn / 4, kind / 4, 0 * turn], dim=1)[:, :, None, None].expand(shape)

    monkeypatch.setattr(views_figures.sample, "ddim", ddim)
    shaded, normal = turned(trial, seen, camera, cameras, seeded())
    expected = torch.tensor([math.remainder(a - 0.4, 2 * math.pi) for a in cameras.azimuth.tolist()])
    for pictures, kind in ((shaded, 1), (normal, 2)):
        torch.testing.assert_close(4 * (2 * pictures[:, 3, 5, 0] - 1), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(4 * (2 * pictures[:, 3, 5, 1] - 1), torch.full((8,), float(kind)))
    for condition in told:
        labels = condition.labels
        assert not labels[:, :9].any()  # where the front is, it does not know
        assert (labels[:, 13] == 1).all()
        torch.testing.assert_close(
            labels[:, 22:24], torch.tensor([[math.sin(math.radians(15)), math.cos(math.radians(15))]]).expand(8, -1)
        )
        assert (labels[:, 28:32] == 1).all()  # white
        torch.testing.assert_close(labels[:, 32:], trial.text([""]).mean.expand(8, -1))
        for picture in condition.reference:
            assert torch.equal(picture[3], seen.alpha[0, ..., 0])
            torch.testing.assert_close((picture[:3] + picture[3]) / 2, seen.rgb[0].movedim(-1, 0))
    # Every group stands a quarter turn apart.
    for condition in told:
        turns = torch.atan2(condition.labels[:4, 14], condition.labels[:4, 18])
        torch.testing.assert_close((turns.diff() % (2 * math.pi)), torch.full((3,), math.pi / 2), rtol=1e-4, atol=1e-4)


# New colours


def test_colours_are_new_and_every_thing_comes_once(trial, items):
    known = [f"a small purple {thing}" for thing in THINGS]
    paintings = painted(trial, items, known)
    captions = {item.caption for item in items}
    assert len(paintings) == 4
    assert len({p.caption.split()[-1] for p in paintings}) == 4
    for painting in paintings:
        asked = painting.said(painting.name)
        own = next(name for name in NAMES if name in painting.caption)
        assert asked == painting.caption.replace(own, painting.name)
        assert asked not in captions | {*known}
        assert painting.name != own
        assert own == painting.old
        assert recolour.name_of(painting.paint) == own
    everything = [p.said(name) for p in paintings for name in recolour.NAMES]
    assert painted(trial, items, everything) == ()
    said = ["a box with a lid", "the box", "a red and green box", "a red man", "boxes"]
    none = [dataclasses.replace(items[0], caption=caption) for caption in said]
    assert painted(trial, none) == ()
    assert colour_names(colour_words("a red and green box")[0]) == ("red",)


def test_a_prior_that_paints_what_is_asked_is_perfect(trial, items, monkeypatch):
    paintings = tuple(dataclasses.replace(p, name=NAMES[(NAMES.index(p.old) + 1) % 4]) for p in painted(trial, items))
    asked = {p.said(p.name): p for p in paintings}
    things = Judge(Eyes(JudgeConfig(size=16)), lambda captions: by_things(captions, paintings))
    trial = dataclasses.replace(trial, judge=things)
    monkeypatch.setattr(views_figures, "drawn", lambda trial, words, _: rendered(asked[words].repainted, orbit(4), 16))
    found = recolouring(trial, paintings)
    assert found["samples"] == found["renders"] == {"coloured": 1, "still_the_thing": 1, "both": 1}
    # In its old colour a thing is not what was asked for; and something empty is nothing.
    monkeypatch.setattr(views_figures, "drawn", lambda trial, words, _: rendered(asked[words].asset, orbit(4), 16))
    found = recolouring(trial, paintings)["samples"]
    assert (found["coloured"], found["both"]) == (0, 0)
    assert views_figures.obeyed(torch.ones(3, 4, 16, 16, 3), "white") is False
    assert recolouring(trial, ())["prompts"] == 0


def by_things(captions, paintings):
    """Knows things by the colour in which they were asked for."""
    colours = {p.caption.split()[-1]: NAMES.index(p.name) for p in paintings}
    mean = torch.nn.functional.one_hot(torch.tensor([colours[c.split()[-1]] for c in captions]), 4).float()
    return Text(mean[:, None], mean)


# The start


def test_a_start_that_makes_the_truth_is_perfect(trial, items, prior_folder, monkeypatch):
    prompts, made = chosen(trial, items), []
    network = start_figures.start.load(prior_folder)

    def truth(start, text, nothing, count, generator, picture=None):
        prompt = prompts[len(made) % 4]
        made.append(prompt)
        # The last asset of a caption: the best of them counts. Of a picture there is only the one that it shows.
        asset = read(prompt.paths[-1]) if picture is None else prompt.asset
        return volume_of(voxelise(asset, RESOLUTION)).expand(count, -1, -1, -1, -1)

    monkeypatch.setattr(start_figures.start, "sample", truth)
    found = starts(trial, network, prompts)
    for part in ("captions", "paraphrases", "pictures"):
        figures = dict(found[part])
        assert figures.pop("colour_error") == pytest.approx(0, abs=1e-5)
        assert figures.pop("iou") == pytest.approx(1, abs=1e-3)  # what is nearly symmetric is made quite so
        assert figures == {"r_precision": 1, "empty": 0, "broken": 0}
    assert found["assets"] == {"broken": 0}
    assert found["resolution"] == RESOLUTION
    assert found["seconds"] > 0


def test_an_upsampler_that_makes_the_truth_beats_interpolation(trial, items, prior_folder, monkeypatch):
    prompts = chosen(trial, items)
    assets = [read(prompt.paths[-1]) for prompt in prompts]
    coarse, fine = ([volume_of(voxelise(each, side)) for each in assets] for side in (RESOLUTION, 2 * RESOLUTION))
    asked = iter(fine)
    network = fresh(UpsamplerConfig(width=8), 0)
    monkeypatch.setattr(Upsampler, "forward", lambda *_: next(asked)[None])
    found = start_figures.upsampled(trial, dict(enumerate(coarse)), prompts, network)
    assert found["iou"] == 1
    assert 0.5 < found["interpolated_iou"] < 1


def test_empty_volumes_are_counted_and_never_right(trial, items, prior_folder, monkeypatch):
    network = start_figures.start.load(prior_folder)
    nothing = torch.ones(2, 4, RESOLUTION, RESOLUTION, RESOLUTION)
    monkeypatch.setattr(start_figures.start, "sample", lambda *_, **__: nothing)
    found = starts(trial, network, chosen(trial, items))["captions"]
    assert math.isnan(found.pop("colour_error"))
    assert math.isnan(found.pop("broken"))
    assert found == {"iou": 0, "r_precision": 0, "empty": 1}
    pieces = nothing.clone()
    pieces[:, 0, 2:4, 2:4, 2:4] = pieces[:, 0, 9:11, 9:11, 9:11] = -1
    monkeypatch.setattr(start_figures.start, "sample", lambda *_, **__: pieces)
    found = starts(trial, network, chosen(trial, items))["captions"]
    assert (found["empty"], found["broken"]) == (0, 1)


# What is said


def test_the_table_has_a_row_for_every_figure_and_a_column_for_every_prior():
    counts = ("prompts", "reference.assets", "recolouring.prompts")
    flat = {name: i + (0 if name in counts else 0.25) for i, name in enumerate(ROWS)}
    tree = {"prior": "[mine]"}
    for name, value in flat.items():
        at = tree
        for part in name.split(".")[:-1]:
            at = at.setdefault(part, {})
        at[name.split(".")[-1]] = value
    console = Console(file=io.StringIO(), width=120)
    console.print(show(tree, {"prior": "yours", "start": None, "views": {"r_precision": {"captions": None}}}))
    lines = console.file.getvalue().splitlines()
    assert "[mine]" in lines[1]
    assert "yours" in lines[1]
    rows = lines[3:-1]
    assert len(rows) == len(ROWS)
    for row, (name, words) in zip(rows, ROWS.items(), strict=True):
        assert words.strip() in row
        figure = str(flat[name]) if name in counts else f"{flat[name] * (1000 if 'distance' in name else 1):.3f}"
        assert re.search(rf"\W{figure} ", row)


def test_figures_are_rounded_to_what_json_knows():
    tree = {"a": {"b": 0.123456, "c": math.nan, "d": math.inf}, "e": 3, "f": "x", "g": None}
    assert rounded(tree) == {"a": {"b": 0.1235, "c": None, "d": None}, "e": 3, "f": "x", "g": None}


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(Mistake, match="an evaluation cannot have references 1; use at least 2"):
        Sizes(references=1)
    with pytest.raises(Mistake, match="an evaluation cannot have steps 0; use at least 1"):
        Sizes(steps=0)
    with pytest.raises(Mistake, match="cameras is 6; use a multiple of 4, so that groups stand a quarter turn apart"):
        Sizes(cameras=6)
