"""Evaluating a prior: every figure against its closed form or a twin in loops, then the whole on toy assets."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import tiny_prior
import torch
import trimesh
from rich.console import Console
from scipy.linalg import sqrtm

from threed.distill.conditions import Text
from threed.distill.embedded import Embedded
from threed.distill.start import Start, StartConfig, volume_of
from threed.errors import Mistake
from threed.exporters import glb
from threed.log import Log
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.voxels import voxelise
from threed.run import settings
from threed.training import evaluate as evaluation
from threed.training import measures, recolour
from threed.training import start as start_training
from threed.training.captions import colour_names, colour_words, paraphrases
from threed.training.collection import Item, gather
from threed.training.evaluate import (
    ROWS,
    Sizes,
    Trial,
    chosen,
    evaluate,
    painted,
    recolouring,
    reference,
    rendered,
    rounded,
    show,
    starts,
    turned,
    views,
)
from threed.training.judge import Judge, JudgeConfig, Towers

NAMES = ("red", "green", "blue", "yellow")
THINGS = ("box", "crate", "barrel", "chest")
COLOURS = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.2, 0.8), (0.9, 0.8, 0.2))
SIZES = Sizes(captions=4, views=4, steps=1, fits=1, fit_steps=4, references=2, cameras=4, recolourings=4, candidates=2)
RESOLUTION = 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Telling captions


def test_precision_is_the_share_of_rows_whose_best_is_their_own():
    similarity = torch.randn(200, 10, generator=seeded())
    relevant = torch.rand(200, 10, generator=seeded(1)) < 0.2
    right = [relevant[i, int(similarity[i].argmax())].item() for i in range(200)]
    assert measures.r_precision(similarity, relevant) == pytest.approx(np.mean(right), abs=1e-7)
    own = torch.eye(10, dtype=torch.bool)
    assert measures.r_precision(own.float(), own) == 1
    assert measures.r_precision(-own.float(), own) == 0


def test_a_tie_is_a_miss_and_so_is_a_picture_without_a_caption():
    own = torch.eye(3, dtype=torch.bool)
    assert measures.r_precision(torch.zeros(3, 3), own) == 0
    own[0, 0] = False
    assert measures.r_precision(torch.eye(3), own) == pytest.approx(2 / 3)


# Distances of features


def exactly(mean, root, count=64):
    """Samples with exactly this mean and the covariance root @ root.T."""
    x = torch.randn(count, len(mean), generator=seeded(), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T).reshape(len(mean), -1))).T
    return mean + white @ root.T


def test_the_frechet_distance_of_gaussians_in_closed_form():
    """On a line it is (m - n)^2 + (s - r)^2; where covariances commute, the sum of that over their axes."""
    double = torch.float64
    shapes = ([0.3], [[2.0]]), ([-1.0], [[0.5]])
    line = [exactly(*(torch.tensor(x, dtype=double) for x in shape)) for shape in shapes]
    assert measures.frechet_distance(*line) == pytest.approx(1.3**2 + 1.5**2, rel=1e-9)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=seeded(), dtype=torch.float64))
    a, b = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([3.0, 0.5, 3, 1, 0.1]).double()
    shift = torch.randn(5, generator=seeded(2), dtype=torch.float64)
    found = measures.frechet_distance(exactly(0 * shift, turn * a), exactly(shift, turn * b))
    assert found == pytest.approx(((a - b).square().sum() + shift.square().sum()).item(), rel=1e-9)


def test_the_frechet_distance_of_any_features_by_the_matrix_root():
    a = torch.randn(50, 6, generator=seeded(), dtype=torch.float64) @ torch.randn(6, 6, generator=seeded(1)).double()
    b = torch.randn(40, 6, generator=seeded(2), dtype=torch.float64) + 0.5
    found = measures.frechet_distance(a, b)
    (m, n), (c, d) = ([x.numpy().mean(0) for x in (a, b)], [np.cov(x.numpy().T) for x in (a, b)])
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert found == pytest.approx(expected, rel=1e-9)
    assert measures.frechet_distance(b, a) == pytest.approx(found, rel=1e-9)
    assert measures.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    few = torch.randn(3, 8, generator=seeded())  # fewer than features: the covariance has no full rank
    assert measures.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="1 and 3 pictures have no covariance; use at least 2 of each"):
        measures.frechet_distance(few[:1], few)


# Pictures


def ssim_by_loops(x, y):
    """One channel of one picture: the formula at every pixel whose window lies inside."""
    radius = 5
    window = np.array([[math.exp(-(i**2 + j**2) / (2 * 1.5**2)) for i in range(-5, 6)] for j in range(-5, 6)])
    window /= window.sum()
    found = []
    for row in range(radius, len(x) - radius):
        for column in range(radius, len(x) - radius):
            place = slice(row - radius, row + radius + 1), slice(column - radius, column + radius + 1)
            a, b = x[place], y[place]
            m, n = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a**2).sum() - m**2, (window * b**2).sum() - n**2
            both = (window * a * b).sum() - m * n
            c1, c2 = 0.01**2, 0.03**2
            found.append((2 * m * n + c1) * (2 * both + c2) / ((m**2 + n**2 + c1) * (var_a + var_b + c2)))
    return np.mean(found)


def test_ssim_is_wangs():
    a, b = (torch.rand(2, 16, 16, 3, generator=seeded(seed)) for seed in (0, 1))
    expected = np.mean([ssim_by_loops(a[i, ..., c].numpy(), b[i, ..., c].numpy()) for i in range(2) for c in range(3)])
    assert measures.ssim(a, b) == pytest.approx(expected, abs=1e-5)
    assert measures.ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_psnr_is_that_of_the_mean_squared_error():
    a = torch.rand(2, 8, 8, 3, generator=seeded()) / 2
    assert measures.psnr(a, a + 0.1) == pytest.approx(20, abs=1e-3)
    half = a.clone()
    half[0] += 0.1
    assert measures.psnr(a, half) == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)
    assert measures.psnr(a, a) == math.inf


def box(extents=(1.0, 1.0, 1.0), colour=(0.8, 0.1, 0.1)):
    shape = trimesh.creation.box(extents)
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    mesh = mesh.with_vertices(mesh.vertices / mesh.vertices.norm(dim=1).max())
    picture = torch.tensor(colour).expand(4, 4, 3)
    return Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture))


def test_normals_show_where_the_object_is_even_a_white_one():
    pictures = rendered(box(colour=(1.0, 1.0, 1.0)), orbit(4), 64)
    alpha = surface.render(box(), orbit(4), 64, 64, 3).alpha
    mask = measures.mask_of_normals(pictures[2])
    assert (mask[alpha == 1] == 1).all()
    assert (mask[alpha == 0] == 0).all()
    assert set(mask.unique().tolist()) == {0, 1}


def test_one_solid_explains_true_views_better_than_those_of_several():
    cameras = orbit(4)
    looks = [rendered(box(*look), cameras, 24)[0] for look in (((1, 1, 1),), ((0.3, 1, 0.3), COLOURS[2]))]
    mixed = torch.stack([looks[view % 2][view] for view in range(4)])
    found, nerf = measures.consistency(looks[0], cameras, seeded(), steps=45)
    worse, _ = measures.consistency(mixed, cameras, seeded(), steps=45)
    assert found > worse + 4
    with torch.no_grad():
        shown = nerf.render(cameras, 24).over(torch.ones(3))
    assert measures.psnr(shown, looks[0]) == found
    assert measures.consistency(looks[0], cameras, seeded(), steps=3)[0] < found


# Volumes


def test_volumes_against_counting():
    a, b = (torch.rand(5, 6, 7, generator=seeded(seed)) < 0.4 for seed in (0, 1))
    both = sum(x and y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    either = sum(x or y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    cube = [torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 2)) for x in (a, b)]
    assert measures.volume_iou(*cube) == pytest.approx(both / either)
    assert measures.volume_iou(cube[0], cube[0]) == 1
    assert measures.volume_iou(cube[0], torch.zeros_like(cube[0])) == 0
    assert measures.volume_iou(*[torch.zeros_like(cube[0])] * 2) == 1


def test_colours_are_compared_in_oklab():
    black, white = torch.zeros(4, 3), torch.ones(4, 3)
    assert measures.colour_error(black, white) == pytest.approx(1, abs=1e-4)
    assert measures.colour_error(white, white) == 0
    assert math.isnan(measures.colour_error(black[:0], white[:0]))


def test_a_volume_is_whole_when_nearly_all_of_it_hangs_together():
    volume = torch.zeros(8, 8, 8, dtype=torch.bool)
    assert not measures.is_whole(volume)
    volume[:3, :3, :2] = True  # 18 voxels
    assert measures.is_whole(volume)
    volume[3, 3, 2] = True  # touches a corner
    assert measures.is_whole(volume)
    volume[6, 6, 6] = volume[6, 6, 7] = True  # 2 of 21
    assert measures.is_whole(volume)
    volume[7, 7, 5] = True  # 3 of 22
    assert volume.sum() == 22
    assert not measures.is_whole(volume)


def turned_by(name, degrees, light=1.0):
    """The colour of a name, its hue turned."""
    lab = recolour.oklab_from_srgb(torch.tensor(recolour.colour_of(name)))
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return recolour.srgb_from_oklab(torch.cat([lab[:1] * light, 0.6 * light * turn @ lab[1:]]))


@pytest.mark.parametrize("name", sorted(recolour.NAMED))
def test_a_colour_shows_its_name_and_no_other_hue(name):
    assert measures.shows(torch.tensor(recolour.colour_of(name)), name)
    if name in ("white", "grey", "black"):
        assert [other for other in recolour.NAMED if measures.shows(torch.tensor(recolour.colour_of(other)), name)] == [
            name
        ]
        return
    for light in (0.8, 1.0):
        assert measures.shows(turned_by(name, 27, light), name)
        assert measures.shows(turned_by(name, -27, light), name)
        assert not measures.shows(turned_by(name, 33, light), name)
        assert not measures.shows(turned_by(name, -33, light), name)
        assert not measures.shows(turned_by(name, 180, light), name)
    assert not measures.shows(torch.full((3,), 0.5), name)  # grey has no hue


def test_a_mean_is_of_numbers():
    assert measures.mean([1.0, math.nan, 2.0]) == 1.5
    assert math.isnan(measures.mean([math.nan]))


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
    folder, lines = tmp_path_factory.mktemp("assets"), []
    for index in range(5):
        thing = index % 4
        glb.write(box((1, 0.5 + 0.2 * index, 0.7), COLOURS[thing]), folder / f"{index}.glb")
        lines.append(json.dumps({"path": f"{index}.glb", "caption": f"a small {NAMES[thing]} {THINGS[thing]}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def items(folder):
    return gather(folder, folder / "captions.jsonl").items


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    """A tiny untrained prior of 16-pixel pictures, with a tiny untrained start."""

    folder = tmp_path_factory.mktemp("prior")
    tiny_prior.write(folder)
    torch.manual_seed(1)
    start = Start(StartConfig(resolution=RESOLUTION, patch=8, components=16, width=64, layers=1))
    start.basis.copy_(torch.linalg.qr(torch.randn(2048, 16))[0].T)
    start.mean[:512] = -0.1
    torch.nn.init.normal_(start.write.weight, std=0.05)
    start_training.write(folder, start)
    return folder


@pytest.fixture(scope="module")
def judge():
    return Judge(Eyes(JudgeConfig(size=16)), by_colour)


@pytest.fixture
def trial(prior_folder, judge, tmp_path):
    return Trial(Embedded.load(prior_folder, dtype=torch.float32), judge, SIZES, 0, Log(tmp_path), torch.device("cpu"))


def test_every_figure_is_there_and_the_same_every_time(prior_folder, folder, judge, tmp_path):
    asked = prior_folder, folder, folder / "captions.jsonl", judge
    found, again = (evaluate(*asked, Log(tmp_path / name), SIZES) for name in "ab" if not (tmp_path / name).mkdir())
    flat, twin = settings(found), settings(again)
    for name in ROWS:
        assert isinstance(flat[name], float), name
        if "seconds" not in name:
            assert twin[name] == flat[name], name
    assert found["views"]["r_precision"]["renders"] == 1
    assert found["views"]["feature_distance"]["samples"] > found["views"]["feature_distance"]["other_views"]
    assert found["views"]["consistency_psnr"]["renders"] > found["views"]["consistency_psnr"]["samples"]
    assert found["start"]["assets"]["broken"] == 0
    assert found["views"]["paraphrases"] == 4
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    stages = [json.loads(line)["stage"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {*stages} == {"views", "solids", "reference", "recolouring", "voxels", "start"}


def test_a_prior_that_draws_the_truth_is_perfect(trial, items, monkeypatch):
    prompts = chosen(trial, items)
    truths = {words: p.asset for p in prompts for words in (p.caption, p.paraphrase)}
    monkeypatch.setattr(evaluation, "drawn", lambda trial, words, _: rendered(truths[words], orbit(4), 16))
    found = views(trial, prompts)
    assert set(found["r_precision"].values()) == {1.0}
    assert found["feature_distance"]["samples"] == pytest.approx(0, abs=1e-9)
    assert found["feature_distance"]["other_views"] > 1e-6
    assert found["consistency_psnr"]["samples"] == found["consistency_psnr"]["renders"]
    # One that draws its neighbour is never right.
    wrong = {words: prompts[i - 1].asset for i, p in enumerate(prompts) for words in (p.caption, p.paraphrase)}
    monkeypatch.setattr(evaluation, "drawn", lambda trial, words, _: rendered(wrong[words], orbit(4), 16))
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
    solids = evaluation.solids(trial, prompts, RESOLUTION)
    assert sorted(map(len, solids)) == [1, 1, 1, 2]
    with pytest.raises(Mistake, match="1 captions have an asset that can be drawn; an evaluation needs at least 2"):
        chosen(trial, [items[0], Item(broken, "a heap", "broken.glb")])


# From one picture


def by_hand(truth, guess):
    """PSNR of all views together, SSIM and IoU as means over views, in loops."""
    error = np.mean(
        [(x - y) ** 2 for x, y in zip(guess[0].flatten().tolist(), truth[0].flatten().tolist(), strict=True)]
    )
    every = [(v, c) for v in range(len(truth[0])) for c in range(3)]
    ssim = np.mean([ssim_by_loops(guess[0][v, ..., c].numpy(), truth[0][v, ..., c].numpy()) for v, c in every])
    ious = []
    for v in range(len(truth[0])):
        a, b = (x[1][v].flatten() > 0.5 for x in (guess, truth))
        ious.append(int((a & b).sum()) / int((a | b).sum()))
    return -10 * math.log10(error), ssim, np.mean(ious)


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

    monkeypatch.setattr(evaluation, "turned", perfect)
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

    monkeypatch.setattr(evaluation.sample, "ddim", ddim)
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
    monkeypatch.setattr(evaluation, "drawn", lambda trial, words, _: rendered(asked[words].repainted, orbit(4), 16))
    found = recolouring(trial, paintings)
    assert found["samples"] == found["renders"] == {"coloured": 1, "still_the_thing": 1, "both": 1}
    # In its old colour a thing is not what was asked for; and something empty is nothing.
    monkeypatch.setattr(evaluation, "drawn", lambda trial, words, _: rendered(asked[words].asset, orbit(4), 16))
    found = recolouring(trial, paintings)["samples"]
    assert (found["coloured"], found["both"]) == (0, 0)
    assert evaluation.obeyed(torch.ones(3, 4, 16, 16, 3), "white") is False
    assert recolouring(trial, ())["prompts"] == 0


def by_things(captions, paintings):
    """Knows things by the colour in which they were asked for."""
    colours = {p.caption.split()[-1]: NAMES.index(p.name) for p in paintings}
    mean = torch.nn.functional.one_hot(torch.tensor([colours[c.split()[-1]] for c in captions]), 4).float()
    return Text(mean[:, None], mean)


# The start


def test_a_start_that_makes_the_truth_is_perfect(trial, items, prior_folder, monkeypatch):
    prompts, made = chosen(trial, items), []
    network = evaluation.start.load(prior_folder)

    def truth(start, text, nothing, count, generator, **_):
        prompt = prompts[len(made) % 4]
        made.append(prompt)
        # The last asset of a caption: the best of them counts.
        return volume_of(voxelise(evaluation.read(prompt.paths[-1]), RESOLUTION)).expand(count, -1, -1, -1, -1)

    monkeypatch.setattr(evaluation.start, "sample", truth)
    found = starts(trial, network, prompts)
    for part in ("captions", "paraphrases"):
        figures = dict(found[part])
        assert figures.pop("colour_error") == pytest.approx(0, abs=1e-5)
        assert figures == {"iou": 1, "r_precision": 1, "empty": 0, "broken": 0}
    assert found["assets"] == {"broken": 0}
    assert found["resolution"] == RESOLUTION
    assert found["seconds"] > 0


def test_empty_volumes_are_counted_and_never_right(trial, items, prior_folder, monkeypatch):
    network = evaluation.start.load(prior_folder)
    nothing = torch.ones(2, 4, RESOLUTION, RESOLUTION, RESOLUTION)
    monkeypatch.setattr(evaluation.start, "sample", lambda *_, **__: nothing)
    found = starts(trial, network, chosen(trial, items))["captions"]
    assert math.isnan(found.pop("colour_error"))
    assert math.isnan(found.pop("broken"))
    assert found == {"iou": 0, "r_precision": 0, "empty": 1}
    pieces = nothing.clone()
    pieces[:, 0, 2:4, 2:4, 2:4] = pieces[:, 0, 9:11, 9:11, 9:11] = -1
    monkeypatch.setattr(evaluation.start, "sample", lambda *_, **__: pieces)
    found = starts(trial, network, chosen(trial, items))["captions"]
    assert (found["empty"], found["broken"]) == (0, 1)


# What is said


def test_the_table_has_a_row_for_every_figure_and_a_column_for_every_prior():
    flat = {name: 0.25 + i for i, name in enumerate(ROWS)}
    tree = {"prior": "mine"}
    for name, value in flat.items():
        at = tree
        for part in name.split(".")[:-1]:
            at = at.setdefault(part, {})
        at[name.split(".")[-1]] = value
    console = Console(file=io.StringIO(), width=120)
    console.print(show(tree, {"prior": "yours", "start": None, "views": {"r_precision": {"captions": None}}}))
    lines = console.file.getvalue().splitlines()
    assert "mine" in lines[1]
    assert "yours" in lines[1]
    rows = lines[3:-1]
    assert len(rows) == len(ROWS)
    for row, (name, words) in zip(rows, ROWS.items(), strict=True):
        assert words.strip() in row
        assert f"{flat[name] * (1000 if 'distance' in name else 1):.3f}" in row


def test_figures_are_rounded_to_what_json_knows():
    tree = {"a": {"b": 0.123456, "c": math.nan, "d": math.inf}, "e": 3, "f": "x", "g": None}
    assert rounded(tree) == {"a": {"b": 0.1235, "c": None, "d": None}, "e": 3, "f": "x", "g": None}


def test_what_cannot_be_measured_is_refused(prior_folder, folder, judge, tmp_path):
    with pytest.raises(Mistake, match="an evaluation cannot have references 1; use at least 2"):
        Sizes(references=1)
    with pytest.raises(Mistake, match="an evaluation cannot have steps 0; use at least 1"):
        Sizes(steps=0)
    with pytest.raises(Mistake, match="cameras is 6; use a multiple of 4, so that groups stand a quarter turn apart"):
        Sizes(cameras=6)
    large = Judge(Eyes(JudgeConfig(size=64)), by_colour)
    with pytest.raises(Mistake, match="the judge looks at 64 pixels a side and the prior draws 16; train a judge"):
        evaluate(prior_folder, folder, folder / "captions.jsonl", large, Log(tmp_path))
