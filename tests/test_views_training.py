"""The views prior in training: what it is shown, by hand; what it is told, as in use; what is written, as trained."""

import dataclasses
import io
import json
import math
import threading

import numpy as np
import pytest
import tiny_prior
import torch
import trimesh
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from threed.distill.conditions import Seen, network_input, view_features
from threed.distill.embedded import Condition, Embedded, Given, Reference
from threed.distill.folder import verify
from threed.distill.prior import Pictures
from threed.errors import Mistake
from threed.exporters import glb
from threed.log import Log
from threed.renderers.camera import Cameras
from threed.renderers.light import headlight
from threed.renderers.mesh import Asset, Material, Mesh
from threed.training import views_batch
from threed.training.collection import Item
from threed.training.recolour import UNCHANGED, Recolouring
from threed.training.views import SIZES, Size, ViewsLoss, continued, fresh, host, sheet, weight, write
from threed.training.views_batch import Chances, Plan, drawn, lamps, lit, look, parted, photographed, plan, recoloured
from threed.training.views_cache import Shots, build

SMALL = Size((32, 32, 32), 1)
NAMES = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny prior of 16-pixel pictures in the layout of a real one, without geometry."""

    folder = tmp_path_factory.mktemp("start")
    tiny_prior.write(folder)
    return folder


@pytest.fixture(scope="module")
def prior(start):
    return Embedded.load(start, dtype=torch.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Sixteen boxes of four colours."""
    folder = tmp_path_factory.mktemp("boxes")
    items = []
    colours = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.2, 0.8), (0.9, 0.9, 0.9))
    for index in range(16):
        shape = trimesh.creation.box((1, 0.3 + 0.1 * index, 0.7))
        mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
        picture = torch.tensor(colours[index % 4]).expand(4, 4, 3)
        path = folder / f"{index:02d}.glb"
        glb.write(Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture)), path)
        items.append(Item(name=path.name, caption=f"a {NAMES[index % 4]} box", path=path))
    return build(items, folder / "cache", Log(folder), Shots(views=8, size=16, supersample=2, colours=8))


@pytest.fixture(scope="module")
def trained(prior):
    """A network of its own, with geometry."""
    return fresh(prior, SMALL, seed=0)


def random(seed=0):
    return np.random.default_rng(seed)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(**changes):
    """Chances under which nothing is left to chance: no rewording, no dropping."""
    certain = {"varied": 0.0, "recoloured": 0.0, "no_text": (0.0, 0.0), "no_azimuth": (0.0, 0.0)}
    return Chances(**{**certain, **changes})


def by_hand(**changes):
    """A group of two kinds of the third asset, from the front and the back."""
    one_group = {
        "runs": ((1, 4),),
        "group": np.zeros(4, np.int64),
        "view": np.array([0, 4, 0, 4]),
        "kind": np.array([0, 0, 2, 2]),
        "given": np.zeros(4, bool),
        "asset": np.array([2]),
        "captions": ("a blue box",),
        "recolourings": (UNCHANGED,),
        "reference": np.array([-1]),
        "azimuth": np.array([True]),
        "geometry": np.array([False]),
        "background": np.array([[0.2, 0.4, 0.9]], np.float32),
        "t": np.array([0.3], np.float32),
    }
    return Plan(**{**one_group, **changes})


# What the network is told


def test_view_features_by_hand():
    """The vector of the contract, number by number, with a reference and without, with the azimuth and without."""
    angles = torch.tensor([[0.7, -0.2, 3.0], [2.5, 0.4, 3.2]])
    cameras = Cameras(*angles.unbind(1), torch.full((2,), math.radians(40)))
    seen = Seen(torch.tensor([0.3, 9.0]), torch.tensor([0.1, 9.0]), torch.tensor([1.0, 0.0]))
    kind, background = torch.tensor([[0.0, 1, 0], [0, 0, 1]]), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.25]])
    found = view_features(cameras, kind, background, torch.tensor([0.0, 1.0]), seen)

    def harm(angle):
        return [f(k * angle) for f in (math.sin, math.cos) for k in (1, 2, 3, 4)]

    def tilt(e):
        return [math.sin(e), math.cos(e), math.sin(2 * e), math.cos(2 * e)]

    first = [0, *[0] * 8, *tilt(-0.2), 1, *harm(0.7 - 0.3), math.sin(0.1), math.cos(0.1), 0, 1, 0, -0.3, 1, 0, -1, 1]
    second = [1, *harm(2.5), *tilt(0.4), *[0] * 11, 0, 0, 1, 0.3, -1, -1, -0.5, 1]
    torch.testing.assert_close(found, torch.tensor([first, second]), rtol=1e-5, atol=1e-5)


def test_network_input_by_hand():
    z, reference, geometry = (torch.rand(2, channels, 8, 8) for channels in (3, 4, 4))
    found = network_input(z, reference, geometry, 4, takes_geometry=True)
    torch.testing.assert_close(found, torch.cat([pixel_unshuffle(x, 4) for x in (z, reference, geometry)], dim=1))
    nothing = torch.zeros(2, 64, 2, 2)
    found = network_input(z, None, None, 4, takes_geometry=True)
    torch.testing.assert_close(found, torch.cat([pixel_unshuffle(z, 4), nothing, nothing], dim=1))
    found = network_input(z, None, None, 4, takes_geometry=False)
    torch.testing.assert_close(found, torch.cat([pixel_unshuffle(z, 4), nothing], dim=1))
    with pytest.raises(ValueError, match='without geometry; leave it out, or use a prior with "geometry": true'):
        network_input(z, None, geometry, 4, takes_geometry=False)


def test_prompts_are_encoded_each_by_itself(prior):
    prompts = ["a Wooden barrel", "", "a small green pine tree " * 9]
    together = prior.reader(prompts)
    for row, prompt in enumerate(prompts):
        alone = prior.reader([prompt])
        torch.testing.assert_close(together.tokens[row], alone.tokens[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.mean[row], alone.mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.mean[1], together.tokens[1, :2].mean(0))
    torch.testing.assert_close(together.mean[2], together.tokens[2].mean(0))  # what is too long is cut off
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.reader(prompts).tokens, together.tokens)


def test_threads_may_encode_at_once(prior):
    failed = []

    def ask(words):
        try:
            for _ in range(20):
                dataclasses.replace(prior.reader, limit=words + 1)(["barrel " * words])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(words,)) for words in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# What is chosen


def test_group_sizes_have_their_shares():
    pictures = {1: 0, 4: 0, 8: 0}
    for seed in range(400):
        runs = parted(24, Chances(), random(seed))
        assert sum(groups * size for groups, size in runs) == 24
        for groups, size in runs:
            pictures[size] += groups * size
    shares = [pictures[size] / (400 * 24) for size in (1, 4, 8)]
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.03)
    assert parted(320, Chances(), random()) == ((64, 1), (40, 4), (12, 8))
    assert parted(3, Chances(), random()) == ((3, 1),)


def test_groups_are_what_was_agreed(cache):
    planned = plan(cache, 4000, Chances(), random(), {})
    sizes = np.repeat([v for _, v in planned.runs], [n for n, _ in planned.runs])
    assert len(planned.asset) == len(sizes) == planned.group[-1] + 1
    assert len(planned.given) == len(planned.group) == 4000 + planned.given.sum()
    for group, size in enumerate(sizes):
        mine = planned.group == group
        if planned.reference[group] >= 0:  # it is the last of its group
            assert list(np.flatnonzero(planned.given[mine])) == [size - 1]
            last = np.flatnonzero(mine)[-1]
            assert planned.view[last] == planned.reference[group]
            assert planned.kind[last] == 1
            mine[last], size = False, size - 1
        assert not planned.given[mine].any()
        view, kind = planned.view[mine], planned.kind[mine]
        assert len(view) == size
        assert ((view - view[0]) % 8 == np.arange(size) % 4 * 2).all()  # of eight views, every second: a quarter turn
        assert (kind[:4] == kind[0]).all()
        if size == 8:
            assert kind[0] in (0, 1)
            assert (kind[4:] == 2).all()
        if planned.geometry[group]:
            assert size < 8
            assert kind[0] != 2
    assert set(planned.kind) == {0, 1, 2}
    assert set(planned.asset) == set(range(16))
    assert set(planned.view) == set(range(8))


def test_chances_are_kept(cache):
    """Each within four standard deviations."""
    planned = plan(cache, 20000, everything(no_text=(0.1, 0.5), no_azimuth=(0.1, 0.6)), random(), {})
    seen, silent = planned.reference >= 0, np.array([caption == "" for caption in planned.captions])

    def near(events, expected):
        return abs(events.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(events))

    assert near(seen, 0.5)
    assert near(silent[seen], 0.5)
    assert near(silent[~seen], 0.1)
    assert near(~planned.azimuth[seen], 0.6)
    assert near(~planned.azimuth[~seen], 0.1)
    assert near((planned.background == 1).all(axis=1), 0.5)
    first = np.searchsorted(planned.group, np.arange(len(seen)))
    sizes = np.bincount(planned.group[~planned.given])
    coloured = (planned.kind[first] != 2) & (sizes != 8)
    assert near(planned.geometry[coloured], 0.4)
    assert near(planned.kind[first][sizes == 1] == 1, 1 / 3)
    assert near(planned.kind[first][sizes == 8] == 1, 1 / 2)
    # Times: one in every part of (0, 1), in no order.
    t = np.sort(planned.t)
    assert (np.floor(t.astype(float) * len(t) + 1e-2) - np.arange(len(t)) <= 1).all()
    assert abs(np.corrcoef(planned.t, np.arange(len(t)))[0, 1]) < 0.05


def test_captions_are_reworded_and_recoloured_with_their_assets(cache):
    plain = plan(cache, 64, everything(), random(), {})
    assert list(plain.captions) == [f"a {NAMES[asset % 4]} box" for asset in plain.asset]
    assert set(plain.recolourings) == {UNCHANGED}
    paints = {}
    painted = plan(cache, 400, everything(recoloured=1.0), random(), paints)
    moved = [i for i, recolouring in enumerate(painted.recolourings) if recolouring != UNCHANGED]
    assert len(moved) > 0.8 * len(painted.asset)
    assert all(painted.captions[i] != f"a {NAMES[painted.asset[i] % 4]} box" for i in moved)
    assert plan(cache, 400, everything(recoloured=1.0), random(), paints).captions == painted.captions
    assert plan(cache, 400, everything(recoloured=1.0), random(), {}).captions == painted.captions
    varied = plan(cache, 400, everything(varied=1.0), random(), {})
    assert len(set(varied.captions)) > 4


# What is drawn


def test_pictures_stand_on_their_background(cache, prior):
    planned = by_hand()
    batch = drawn(cache, prior, planned, seeded())
    background = torch.tensor(planned.background[0])[:, None, None]
    for row, (view, name) in enumerate([(0, "albedo"), (4, "albedo"), (0, "normal"), (4, "normal")]):
        alpha = cache.alpha[2, view] / 255
        kept = getattr(cache, name)[2, view] / 255
        if name == "normal":  # the mean of two sides is made unit, as `Pictures.of` does for renders
            kept = (functional.normalize(2 * kept - alpha, dim=0, eps=1e-4) + 1) / 2 * alpha
        expected = 2 * (kept + (1 - alpha) * background) - 1
        torch.testing.assert_close(batch.clean[row], expected, rtol=0, atol=1e-5)
    assert torch.equal(batch.t, torch.full((4,), 0.3))


def test_the_network_is_told_what_it_is_told_in_use(cache, prior):
    """Camera, kind, background and text, as `conditions` has them for the same pictures."""
    planned = by_hand()
    batch = drawn(cache, prior, planned, seeded())
    cameras = Cameras(*cache.cameras[2, [0, 4]].unbind(1))
    pictures = Pictures(cameras, ("albedo", "normal"), torch.tensor(planned.background[0]))
    expected = prior.conditions("a blue box", "", pictures).positive
    torch.testing.assert_close(batch.condition.labels, expected.labels)
    torch.testing.assert_close(batch.condition.context, expected.context)
    assert not batch.condition.reference.any()
    assert batch.condition.geometry is None
    assert batch.condition.joint == ((1, 4),)
    hidden = drawn(cache, prior, by_hand(azimuth=np.array([False])), seeded()).condition.labels
    assert not hidden[:, :9].any()
    assert torch.equal(hidden[:, 9:], batch.condition.labels[:, 9:])


def test_a_shaded_picture_is_albedo_in_soft_light(cache, prior):
    """Everywhere the share of light lies between ambient and full, and the group's pictures share the lamp."""
    albedo = drawn(cache, prior, by_hand(kind=np.zeros(4, np.int64)), seeded()).clean
    shaded = drawn(cache, prior, by_hand(kind=np.ones(4, np.int64)), seeded()).clean
    assert torch.equal(shaded[:2], shaded[2:])  # the same views of one group
    _, _, alpha = look(cache, np.array([2, 2]), np.array([0, 4]), torch.device("cpu"))
    inside = (alpha == 1).expand(-1, 3, -1, -1)
    share = ((shaded[:2] + 1) / (albedo[:2] + 1))[inside]
    assert 0.29 < share.min() < share.max() <= 1.001
    assert share.std() > 0.01


def test_light_is_the_renderers(cache):
    toward, ambient = lamps(2, 0.0, 0.0, seeded())
    _, normal, _ = look(cache, np.array([0, 5]), np.array([1, 2]), torch.device("cpu"))
    expected = headlight(normal.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(lit(normal, toward, ambient), expected)
    toward, ambient = lamps(1000, 0.35, 0.15, seeded())
    torch.testing.assert_close(toward.norm(dim=1), torch.ones(1000))
    assert 0.3 <= ambient.min() < 0.31 < 0.59 < ambient.max() <= 0.6
    assert 0.05 < toward.std(0).mean() < 0.35


def test_geometry_is_normals_and_mask(cache, trained):
    given = drawn(cache, trained, by_hand(geometry=np.array([True])), seeded()).condition.geometry
    _, normal, alpha = look(cache, np.full(4, 2), np.array([0, 4, 0, 4]), torch.device("cpu"))
    assert torch.equal(given[:, 3:], alpha)
    torch.testing.assert_close(given[:, :3], normal * alpha)
    torch.testing.assert_close(given[:, :3].norm(dim=1)[alpha[:, 0] == 1], torch.ones(int((alpha == 1).sum())))
    assert not drawn(cache, trained, by_hand(), seeded()).condition.geometry.any()


def test_a_reference_is_a_view_of_the_asset_and_told_from_where(cache, prior, monkeypatch):
    monkeypatch.setattr(views_batch, "photographed", lambda picture, _: picture)
    monkeypatch.setattr(views_batch, "MISJUDGED", 0.0)
    batch = drawn(cache, prior, by_hand(reference=np.array([5])), seeded())
    reference = batch.condition.reference
    assert torch.equal(reference[1:], reference[:1].expand(3, -1, -1, -1))  # one for the whole group
    albedo, _, alpha = look(cache, np.array([2]), np.array([5]), torch.device("cpu"))
    assert torch.equal(reference[:1, 3:], alpha)
    rgb = (reference[:1, :3] + alpha) / 2  # [-1, 1] times alpha
    share = (rgb / albedo)[(alpha == 1).expand_as(rgb)]
    assert 0.09 < share.min() < share.max() <= 1.001
    azimuth, elevation = cache.cameras[2, 5, :2]
    turn = cache.cameras[2, [0, 4, 0, 4], 0] - azimuth
    labels = batch.condition.labels
    assert (labels[:, 13] == 1).all()
    torch.testing.assert_close(labels[:, 14], turn.sin())
    torch.testing.assert_close(labels[:, 21], (4 * turn).cos())
    torch.testing.assert_close(labels[:, 22], elevation.sin().expand(4))
    torch.testing.assert_close(labels[:, 23], elevation.cos().expand(4))


def test_a_reference_joins_its_group_as_it_does_in_use(cache, trained, monkeypatch):
    """The last of its group: clean, before the group's background, and told what `conditions` tells of it."""
    monkeypatch.setattr(views_batch, "photographed", lambda picture, _: picture)
    monkeypatch.setattr(views_batch, "MISJUDGED", 0.0)
    planned = by_hand(
        runs=((1, 5),),
        group=np.zeros(5, np.int64),
        view=np.array([0, 4, 0, 4, 5]),
        kind=np.array([0, 0, 2, 2, 1]),
        given=np.arange(5) == 4,
        reference=np.array([5]),
        azimuth=np.array([False]),
        geometry=np.array([True]),
    )
    batch, alone = drawn(cache, trained, planned, seeded()), drawn(cache, trained, by_hand(), seeded())
    torch.testing.assert_close(batch.clean, alone.clean)
    assert len(batch.t) == 4
    cameras = Cameras(*cache.cameras[2, [0, 4, 5]].unbind(1))
    pictures = Pictures(cameras[:2], ("albedo", "normal"), torch.tensor(planned.background[0]))
    reference = Reference(batch.condition.reference[:1], cameras[2:])
    geometry = batch.condition.geometry[:4]
    expected = trained.conditions("a blue box", "", pictures, reference, geometry).positive
    for name in ("context", "labels", "reference", "geometry"):
        torch.testing.assert_close(getattr(batch.condition, name), getattr(expected, name), msg=name)
    assert batch.condition.joint == ((1, expected.joint),)
    torch.testing.assert_close(batch.condition.given.latents, expected.given.latents)
    assert torch.equal(batch.condition.given.order, expected.given.order)
    alpha = reference.picture[0, 3]
    background = torch.tensor(planned.background[0])[:, None]
    outside = expected.given.latents[0][:, alpha == 0]
    torch.testing.assert_close(outside, (2 * background - 1).expand_as(outside))
    torch.testing.assert_close(expected.given.latents[0][:, alpha == 1], reference.picture[0, :3][:, alpha == 1])


def test_an_older_prior_is_told_of_a_reference_and_not_shown_it_as_a_picture(prior):
    """One that knows references by its channels alone: as many pictures as are denoised, no given one."""
    cameras = Cameras(*torch.tensor([[0.4, 2.0, 1.0], [0.1, 0.2, 0.3], [3.1] * 3, [math.radians(40)] * 3]))
    pictures = Pictures(cameras[:2], ("shaded",), torch.ones(3))
    reference = Reference(torch.rand(1, 4, 16, 16), cameras[2:])
    told = prior.conditions("a box", "", pictures, reference).positive
    assert (told.joint, told.given) == (2, None)
    assert torch.equal(told.reference, reference.picture.expand(2, -1, -1, -1))
    assert not told.labels[:, :9].any()  # where the front is, it is not told
    torch.testing.assert_close(told.labels[:, 14], (cameras.azimuth[:2] - 1.0).sin())
    alone = prior.conditions("a box", "", pictures).positive
    assert torch.equal(told.labels[:, 24:], alone.labels[:, 24:])
    assert alone.reference is None


def test_a_group_is_recoloured_as_a_whole_and_alone(cache, prior):
    """Two groups of the blue box: in the second one it is red, in the picture and in the reference."""
    red = Recolouring((0.1, 0.2, 0.8), (0.8, 0.1, 0.1))
    planned = by_hand(
        runs=((2, 1),),
        group=np.array([0, 1]),
        view=np.array([0, 0]),
        kind=np.array([0, 0]),
        given=np.zeros(2, bool),
        asset=np.array([2, 2]),
        captions=("", ""),
        recolourings=(UNCHANGED, red),
        reference=np.array([1, 1]),
        azimuth=np.array([True, True]),
        geometry=np.array([False, False]),
        background=np.ones((2, 3), np.float32),
        t=np.array([0.5, 0.5], np.float32),
    )
    batch = drawn(cache, prior, planned, seeded())
    _, _, alpha = look(cache, np.array([2]), np.array([0]), torch.device("cpu"))
    inside = alpha[0, 0] == 1
    blue, now_red = ((batch.clean[row][:, inside] + 1) / 2 for row in (0, 1))
    torch.testing.assert_close(blue, torch.tensor([0.1, 0.2, 0.8])[:, None].expand_as(blue), rtol=0, atol=3e-3)
    expected = red(torch.tensor([[0.1, 0.2, 0.8]]))[0]
    torch.testing.assert_close(now_red, expected[:, None].expand_as(now_red), rtol=0, atol=3e-3)
    tint = batch.condition.reference[:, :3].sum(dim=(2, 3)) + batch.condition.reference[:, 3:].sum(dim=(2, 3))
    assert tint[0, 2] > tint[0, 0]
    assert tint[1, 0] > tint[1, 2]


def test_recolouring_keeps_alpha_and_others():
    albedo, alpha = torch.full((3, 3, 2, 2), 0.25), torch.full((3, 1, 2, 2), 0.5)
    to_red = Recolouring((0.5, 0.5, 0.5), (0.8, 0.1, 0.1))
    found = recoloured(albedo, alpha, (UNCHANGED, to_red), np.array([0, 1, 1]))
    assert torch.equal(found[0], albedo[0])
    expected = 0.5 * to_red(torch.full((1, 3), 0.5))[0]
    torch.testing.assert_close(found[1:], expected[None, :, None, None].expand(2, 3, 2, 2))
    assert (albedo == 0.25).all()


def test_a_photograph_is_a_picture_that_was_hardly_or_quite_changed(cache):
    albedo, _, alpha = look(cache, np.arange(16), np.zeros(16, np.int64), torch.device("cpu"))
    picture = torch.cat([albedo, alpha], dim=1)
    torch.testing.assert_close(photographed(picture, seeded(), strength=0.0), picture, rtol=0, atol=1e-4)
    found = photographed(picture.repeat(20, 1, 1, 1), seeded())
    rgb, outline = found.split([3, 1], dim=1)
    assert found.isfinite().all()
    assert 0 <= outline.min() <= outline.max() <= 1
    assert (rgb >= 0).all()
    assert (rgb <= outline + 1e-6).all()
    error = (found - picture.repeat(20, 1, 1, 1)).square().mean(dim=(1, 2, 3)).sqrt()
    assert error.min() < 0.02 < 0.1 < error.max()
    assert torch.equal(photographed(picture, seeded()), photographed(picture, seeded()))


def test_a_batch_without_references_needs_none(cache, prior):
    planned = plan(cache, 8, everything(reference=0.0), random(), {})
    assert not drawn(cache, prior, planned, seeded()).condition.reference.any()


# The loss


class Grey(nn.Module):
    """A network that always predicts the same grey."""

    dtype = torch.float32

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, inputs, *_, **__):
        return (self.value.expand(len(inputs), 48, *inputs.shape[2:]),)


def test_weight_by_hand():
    t = torch.tensor([0.02, 0.5, 0.98])
    angle = [(float(x) + 0.008) / 1.008 * math.pi / 2 for x in t]
    snr = [1 / math.tan(a) ** 2 for a in angle]
    assert snr[0] > 5 > snr[1] > snr[2]
    torch.testing.assert_close(weight(t, 5.0, 0.5), torch.tensor([5.5, snr[1] + 0.5, snr[2] + 0.5]))


def test_loss_is_the_weighted_error(cache, trained):
    """Of a network that predicts one grey, by hand from the same batch."""
    loss = ViewsLoss(cache, trained, everything())
    planned = plan(cache, 12, loss.chances, host(seeded(3)), {})
    batch = drawn(cache, trained, planned, seeded(3))
    expected = (weight(batch.t, 5.0, 0.5) * (batch.clean - 0.25).square().mean(dim=(1, 2, 3))).mean()
    found = loss(Grey(0.25), 12, seeded(3))
    torch.testing.assert_close(found, expected)
    found.backward()


def test_the_network_sees_noised_pictures_and_the_time(cache, trained):
    """z_t = alpha x + sigma noise at 1000 t: noise of mean 0 and deviation 1, whatever the time."""
    seen = {}

    class Recorder(Grey):
        def forward(self, inputs, timestep, context, class_labels, cross_attention_kwargs, return_dict):
            seen.update(inputs=inputs, timestep=timestep, joint=cross_attention_kwargs["joint"])
            return super().forward(inputs)

    loss = ViewsLoss(cache, trained, everything())
    loss(Recorder(0.0), 40, seeded(3))
    planned = plan(cache, 40, loss.chances, host(seeded(3)), {})
    batch = drawn(cache, trained, planned, seeded(3))
    given = torch.from_numpy(planned.given)
    torch.testing.assert_close(seen["timestep"][~given], 1000 * batch.t)
    assert not seen["timestep"][given].any()
    assert seen["joint"] == batch.condition.joint
    alpha, sigma = (a[:, None, None, None] for a in trained.alpha_sigma(batch.t))
    z_t = pixel_shuffle(seen["inputs"][:, :48], 4)
    assert torch.equal(z_t[given], batch.condition.given.latents)
    noise = (z_t[~given] - alpha * batch.clean) / sigma
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 1) < 0.02
    torch.testing.assert_close(seen["inputs"][:, 48:112], pixel_unshuffle(batch.condition.reference, 4))
    torch.testing.assert_close(seen["inputs"][:, 112:], pixel_unshuffle(batch.condition.geometry, 4))


def test_same_state_same_loss(cache, trained):
    first, second = (ViewsLoss(cache, trained) for _ in range(2))
    generator = seeded(1)
    losses = [loss(trained.unet, 8, generator).item() for loss in (first, first)]
    again = seeded(1)
    assert [second(trained.unet, 8, again).item() for _ in range(2)] == losses
    assert losses[0] != losses[1]


def test_every_weight_is_trained(cache, trained):
    """Also those of the geometry, where it is given; and a few steps lead the loss downwards."""
    network = fresh(trained, SMALL, seed=1).unet
    loss = ViewsLoss(cache, trained, everything(geometry=1.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        value = loss(network, 16, seeded(5))
        optimizer.zero_grad()
        value.backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
        assert network.conv_in.weight.grad[:, 112:].any()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]


def test_runs_of_groups_are_separate_groups(trained):
    """One pass over groups of one, four and eight equals a pass for each size."""
    count = 2 + 4 + 8
    z_t, t = torch.randn(count, 3, 16, 16, generator=seeded()), torch.linspace(0.1, 0.9, count)
    context, labels = (torch.randn(count, *shape, generator=seeded(1)) for shape in ((16, 128), (160,)))
    whole = Condition(context, labels, ((2, 1), (1, 4), (1, 8)))
    together = trained.denoise(z_t, t, whole).clean
    for start, end, joint in ((0, 2, 1), (2, 6, 4), (6, 14, 8)):
        part = Condition(whole.context[start:end], whole.labels[start:end], joint)
        alone = trained.denoise(z_t[start:end], t[start:end], part).clean
        # So small a network norms groups of two numbers, which makes much of what is rounded.
        torch.testing.assert_close(together[start:end], alone, rtol=0, atol=1e-3)


def test_given_pictures_speak_and_are_not_spoken_of(trained):
    """Denoising three pictures beside a given one is what the network says of three among four, one without noise."""
    shapes = (3, 16, 16), (3, 16, 16), (16, 128), (160,)
    z, given, context, labels = (torch.randn(4, *shape, generator=seeded(i)) for i, shape in enumerate(shapes))
    t = torch.tensor([0.2, 0.5, 0.9])
    for place in range(4):
        order = torch.tensor([0, 1, 2])
        order = torch.cat([order[:place], torch.tensor([3]), order[place:]])
        condition = Condition(context, labels, 4, given=Given(given[:1], order))
        found = trained.denoise(z[:3], t, condition).clean
        among, times = (torch.cat([x[:place], y, x[place:]]) for x, y in ((z[:3], given[:1]), (t, torch.zeros(1))))
        plain = trained.denoise(among, times, Condition(context, labels, 4)).clean
        torch.testing.assert_close(found, torch.cat([plain[:place], plain[place + 1 :]]), rtol=0, atol=1e-3)
        other = Condition(context, labels, 4, given=Given(given[1:2], order))
        assert (trained.denoise(z[:3], t, other).clean - found).abs().max() > 0.02


# Networks and folders


@pytest.mark.parametrize(("name", "millions"), [("tiny", 4.2), ("small", 7.3), ("medium", 10.8), ("large", 23.8)])
def test_sizes_have_their_parameters(prior, name, millions):
    unet = fresh(prior, SIZES[name], seed=0).unet
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_fresh_network_depends_on_its_seed_alone(prior):
    state = torch.random.get_rng_state()
    first, same, other = (fresh(prior, SMALL, seed).unet.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def ask(prior, geometry=None, seed=0):
    """A prediction about four pictures of every kind of condition."""
    size = prior.image_size
    shown = {"reference": torch.rand(4, 4, size, size, generator=seeded(1)), "geometry": geometry}
    condition = Condition(torch.ones(4, 16, 128), torch.ones(4, 160), joint=4, **shown)
    z_t = torch.randn(4, 3, size, size, generator=seeded(seed))
    return prior.denoise(z_t, torch.full((4,), 0.5), condition).clean


def test_a_prior_goes_on_where_it_was(prior):
    """New inputs have no say yet; the old prior itself stays as it is."""
    grown = continued(prior)
    assert grown.conventions.geometry
    assert not prior.conventions.geometry
    geometry = torch.rand(4, 4, 16, 16)
    torch.testing.assert_close(ask(grown, geometry), ask(prior), rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in grown.unet.parameters())
    before = prior.unet.conv_out.bias.clone()
    with torch.no_grad():
        grown.unet.conv_out.bias += 1
    assert torch.equal(prior.unet.conv_out.bias, before)
    plain = continued(prior, geometry=False)
    assert plain.unet.config.in_channels == 112
    assert continued(grown, geometry=False).conventions.geometry  # what it has learned is not thrown away


def test_priors_of_other_kinds_are_not_continued(prior):
    other = dataclasses.replace(prior, conventions=dataclasses.replace(prior.conventions, kinds=("albedo", "depth")))
    with pytest.raises(ValueError, match="this prior knows albedo, depth; continue one of albedo, shaded, normal"):
        continued(other)


def test_what_is_written_is_what_was_trained(trained, start, tmp_path):
    """The network in half precision, the text encoder to the bit; and once more from what was written."""
    half = dataclasses.replace(trained, unet=fresh(trained, SMALL, seed=2).unet.requires_grad_(False))
    half.unet.half().float()
    write(tmp_path / "prior", half, start, {"steps": 7})
    verify(tmp_path / "prior")
    loaded = Embedded.load(tmp_path / "prior", dtype=torch.float32)
    geometry = torch.rand(4, 4, 16, 16)
    assert torch.equal(ask(loaded, geometry), ask(half, geometry))
    prompt = "a small green pine tree"
    pictures = Pictures(Cameras(*torch.tensor([[0.1], [0.2], [3.1], [math.radians(40)]])), ("albedo",), torch.ones(3))
    found, expected = (p.conditions(prompt, "", pictures).positive for p in (loaded, half))
    assert torch.equal(found.context, expected.context)
    assert torch.equal(found.labels, expected.labels)
    told = json.loads((tmp_path / "prior" / "prior.json").read_text())
    assert told["geometry"] is True
    assert told["reference"] == "joint"
    assert loaded.conventions == half.conventions
    assert told["steps"] == 7
    assert "compression" not in told
    files = {p.relative_to(tmp_path / "prior").as_posix() for p in (tmp_path / "prior").rglob("*") if p.is_file()}
    listed = {line.split(maxsplit=1)[1] for line in (tmp_path / "prior" / "SHA256SUMS").read_text().splitlines()}
    assert files == listed | {"SHA256SUMS"}
    assert "text_encoder/NOTICE" in files

    write(tmp_path / "again", loaded, tmp_path / "prior")
    names = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "text_encoder/NOTICE")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "prior" / name).read_bytes()


def test_a_prior_without_geometry_is_written_as_one(prior, start, tmp_path):
    write(tmp_path / "prior", continued(prior, geometry=False), start)
    loaded = Embedded.load(tmp_path / "prior", dtype=torch.float32)
    assert not loaded.conventions.geometry
    torch.testing.assert_close(ask(loaded), ask(prior), rtol=0, atol=0.02)


def test_a_prior_replaces_a_prior_and_nothing_else(trained, start, tmp_path):
    write(tmp_path / "prior", trained, start, {"steps": 1})
    write(tmp_path / "prior", trained, start, {"steps": 2})
    assert json.loads((tmp_path / "prior" / "prior.json").read_text())["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(Mistake, match="photos' exists and is no prior; choose another folder"):
        write(tmp_path / "photos", trained, start)


def test_weights_that_are_not_finite_are_not_written(trained, start, tmp_path):
    wild = fresh(trained, SMALL, seed=0)
    with torch.no_grad():
        wild.unet.conv_in.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"the weights 'conv_in\.bias' are not finite in half precision; train with a"):
        write(tmp_path / "prior", wild, start)
    assert not list(tmp_path.iterdir())


def test_the_sheet_has_four_views_of_every_prompt(trained):
    network = trained.unet
    first, again = (sheet(network, trained, ("a red box", "a tree"), steps=2) for _ in range(2))
    assert first == again
    assert Image.open(io.BytesIO(first)).size == (8 * (32 + 4) + 4, 3 * (32 + 4) + 4)
    assert sheet(network, trained, ("a red box", "a tree"), seed=1, steps=2) != first
