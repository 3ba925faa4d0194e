"""The judge: its loss against loops, what it is shown, what it learns from boxes, and its files."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import trimesh

from threed.distill import embedded
from threed.distill.text import Text
from threed.errors import Mistake
from threed.exporters import glb
from threed.log import Log
from threed.renderers.mesh import Asset, Material, Mesh
from threed.training import judge as judges
from threed.training.collection import Item
from threed.training.judge import (
    HOTTEST,
    Judge,
    JudgeConfig,
    JudgeLoss,
    Towers,
    accuracy,
    alike,
    contrastive,
    fresh,
    load,
    split,
    train,
    write,
)
from threed.training.loop import Schedule
from threed.training.recolour import UNCHANGED, Recolouring
from threed.training.views_batch import Chances
from threed.training.views_cache import Shots, build

NAMES = ("red", "green", "blue", "white")
COLOURS = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.2, 0.8), (0.9, 0.9, 0.9))
PLAIN = Chances(varied=0.0, recoloured=0.0, white=1.0)
SCHEDULE = Schedule(steps=30, batch=24, rate=4e-3, warmup=4, ema=0.8, precision="float32")
CONFIG = JudgeConfig(size=16, width=8)
TO_RED = Recolouring((0.5, 0.5, 0.5), (0.8, 0.1, 0.1))


@pytest.fixture(scope="module")
def read():
    return embedded.text_reader()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Sixteen boxes of four colours; four share each caption."""
    folder = tmp_path_factory.mktemp("boxes")
    items = []
    for index in range(16):
        shape = trimesh.creation.box((1, 0.3 + 0.1 * index, 0.7))
        mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
        picture = torch.tensor(COLOURS[index % 4]).expand(4, 4, 3)
        path = folder / f"{index:02d}.glb"
        glb.write(Asset("box", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(picture)), path)
        items.append(Item(name=path.name, caption=f"a {NAMES[index % 4]} box", path=path))
    return build(items, folder / "cache", Log(folder), Shots(views=8, size=16, supersample=2, colours=8), workers=1)


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    return train(cache, Log(tmp_path_factory.mktemp("judge")), SCHEDULE, width=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The loss


def by_loops(similarity, same):
    """Every picture finds its text, every text its picture, among those that are not the same."""
    total, count = 0.0, len(similarity)
    for matrix in (similarity, similarity.T):
        for i in range(count):
            others = [matrix[i, j].item() for j in range(count) if j == i or not same[i, j]]
            total -= matrix[i, i].item() - math.log(sum(math.exp(x) for x in others))
    return total / (2 * count)


def test_the_loss_is_the_one_in_loops():
    similarity = torch.randn(7, 7, generator=seeded(), dtype=torch.float64)
    same = torch.rand(7, 7, generator=seeded(1)) < 0.3
    same = same | same.T | torch.eye(7, dtype=torch.bool)
    assert contrastive(similarity, same).item() == pytest.approx(by_loops(similarity, same), rel=1e-12)
    none = torch.eye(7, dtype=torch.bool)
    labels = torch.arange(7)
    plain = (torch.nn.functional.cross_entropy(x, labels) for x in (similarity, similarity.T))
    assert contrastive(similarity, none).item() == pytest.approx(sum(plain).item() / 2, rel=1e-12)


def test_what_is_the_same_is_no_counterexample():
    """Nothing pulls at its similarity; where all are the same there is nothing to lose."""
    similarity = torch.randn(4, 4, generator=seeded()).requires_grad_()
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    contrastive(similarity, same).backward()
    assert similarity.grad[0, 1] == similarity.grad[1, 0] == 0
    assert (similarity.grad[~same] > 0).all()
    assert (similarity.grad.diag() < 0).all()
    assert contrastive(similarity, torch.ones(4, 4, dtype=torch.bool)).item() == 0


def test_whose_caption_fits_whose_picture(cache):
    two = dataclasses.replace(cache, captions=(("a box", "a red box"), ("a red box",), ("a crate",), ("a red crate",)))
    told = [("a box", UNCHANGED), ("a red box", UNCHANGED), ("a red crate", TO_RED), ("a red crate", UNCHANGED)]
    expected = np.eye(4, dtype=bool)
    expected[0, 1] = expected[1, 0] = True  # the first is called a red box, too
    expected[2, 3] = expected[3, 2] = True  # a crate painted red is a red crate
    assert (alike(two, np.arange(4), told) == expected).all()
    # In another colour, an asset's own words for it are no longer true.
    told = [("a green box", TO_RED), ("a red box", UNCHANGED)]
    assert (alike(two, np.arange(2), told) == np.eye(2, dtype=bool)).all()


# What it is shown


def test_pictures_are_the_caches_and_captions_theirs(cache, read):
    loss = JudgeLoss(cache, read, (0, 5), PLAIN)
    images, said, same = loss.drawn(16, seeded())
    assert sorted(said) == sorted(f"a {NAMES[i % 4]} box" for i in range(16))  # every asset once
    assert (same.numpy() == [[a == b for a in said] for b in said]).all()
    alpha = cache.alpha[:, :, None] / 255
    albedo = (cache.albedo / 255 + 1 - alpha)[:, [0, 5]].flatten(0, 1)
    unlit = torch.cdist(images.flatten(1), albedo.flatten(1)).amin(1) < 1e-4
    assert 2 < unlit.sum() < 14  # of the others, the light is random
    for image, caption in zip(images, said, strict=True):
        (inside,) = (image.amin(0) < 0.99).nonzero(as_tuple=True)[:1]
        assert len(inside) > 0
        tint = image.flatten(1)[:, image.flatten(1).amin(0) < 0.99].mean(1)
        if caption != "a white box":
            assert NAMES[int(tint.argmax())] in caption
    again = loss.drawn(16, seeded())
    assert torch.equal(again[0], images)
    assert again[1] == said


def test_backgrounds_words_and_colours_vary(cache, read):
    images, said, _ = JudgeLoss(cache, read, (0,), Chances(varied=1.0, recoloured=1.0, white=0.0)).drawn(64, seeded())
    corners = images[:, :, 0, 0]
    assert len(corners.unique(dim=0)) == 64
    own = {f"a {name} box" for name in NAMES}
    assert len({*said} - own) > 20
    assert any("purple" in caption or "yellow" in caption or "teal" in caption for caption in said)


def test_views_that_are_held_out_are_never_drawn(cache, read):
    shown, left = split(cache)
    assert (shown, left) == ((0, 1, 2, 4, 5, 6), (3, 7))
    alpha = cache.alpha.clone()
    alpha[:, left] = 0
    empty = dataclasses.replace(cache, alpha=alpha, albedo=torch.where(alpha[:, :, None] > 0, cache.albedo, 0))
    seen, _, _ = JudgeLoss(empty, read, shown, PLAIN).drawn(400, seeded())
    assert (seen < 0.99).flatten(1).any(1).all()
    unseen, _, _ = JudgeLoss(empty, read, left, PLAIN).drawn(16, seeded())
    assert (unseen == 1).all()


# What it learns


def test_it_learns_colours_and_knows_them_from_other_sides(cache, trained):
    _, left = split(cache)
    assert accuracy(trained, cache, left, among=4) == 1
    untrained = Judge(fresh(CONFIG, trained.read, 1).eval(), trained.read)
    assert accuracy(untrained, cache, left, among=4) < 1


def test_a_score_is_the_cosine_of_unit_vectors(trained):
    images, captions = torch.rand(judges.ASK + 3, 16, 16, 3, generator=seeded()), ["a red box", "a blue box"]
    features = trained.features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(images)))
    score = trained.score(images, captions)
    assert score.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(score[-1:], trained.score(images[-1:], captions), rtol=1e-4, atol=1e-5)
    texts = trained.towers.texts(trained.read(captions).mean)
    torch.testing.assert_close(score, features @ texts.T)


def test_training_is_the_same_every_time(cache, tmp_path):
    short = dataclasses.replace(SCHEDULE, steps=3, warmup=1)
    once, again = (train(cache, Log(tmp_path / name), short, width=8).towers.state_dict() for name in ("a", "b"))
    for name, value in once.items():
        assert torch.equal(again[name], value), name
    assert not torch.equal(once["see.weight"], fresh(CONFIG, embedded.text_reader(), 0).see.weight)


def test_the_temperature_has_a_limit(read):
    towers = fresh(CONFIG, read, 0)
    assert towers.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        towers.temperature.fill_(50.0)
    assert towers.scale.item() == pytest.approx(HOTTEST)


def test_precision_is_that_of_loops_and_chance_is_chance(cache):
    """A judge that knows nothing but the place of a caption in the alphabet is right once in every set."""

    class Fixed(Towers):
        def pictures(self, images):
            return torch.ones(len(images), 1)

        def texts(self, mean):
            return mean[:, :1]

    def read(captions):
        order = {caption: rank for rank, caption in enumerate(sorted(captions))}
        mean = torch.tensor([[float(order[caption])] for caption in captions])
        return Text(mean[:, None], mean)

    fixed = Judge(Fixed(CONFIG), read)
    assert accuracy(fixed, cache, [0], among=4) == 0.25
    every = dataclasses.replace(cache, captions=tuple((f"box {i}",) for i in range(16)))
    assert accuracy(fixed, every, [0], among=8) == 1 / 8
    assert accuracy(fixed, every, [0], among=16) == 1 / 16
    both = dataclasses.replace(cache, captions=(("a box", "a case"),) * 16)
    assert accuracy(fixed, both, [0], among=2) == 1
    with pytest.raises(ValueError, match="there are 4 captions; ask for the precision among at most that many"):
        accuracy(fixed, cache, [0], among=5)


# Its files


def test_it_comes_back_as_it_was_written(trained, tmp_path):
    write(tmp_path / "judge", trained, {"accuracy": 0.9})
    told = json.loads((tmp_path / "judge" / "judge.json").read_text())
    assert told == dataclasses.asdict(trained.towers.config) | {"accuracy": 0.9}
    back = load(tmp_path / "judge")
    images, captions = torch.rand(5, 16, 16, 3, generator=seeded()), ["a red box", "a blue box"]
    torch.testing.assert_close(back.score(images, captions), trained.score(images, captions), rtol=0, atol=0.01)
    assert not any(p.requires_grad for p in back.towers.parameters())
    write(tmp_path / "again", back, {"accuracy": 0.9})
    for name in ("judge.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "judge" / name).read_bytes()


def test_a_folder_at_fault_is_named(trained, tmp_path):
    with pytest.raises(Mistake, match=r"cannot use the judge's '.*judge\.json' \(.*\); train it again"):
        load(tmp_path)
    write(tmp_path, trained)
    whole = (tmp_path / "judge.json").read_text()
    (tmp_path / "judge.json").write_text(whole.replace('"width": 8', '"width": 16'))
    with pytest.raises(Mistake, match=r"cannot use the judge's '.*model\.safetensors' \(.*size mismatch"):
        load(tmp_path)
    (tmp_path / "judge.json").write_text('{"size": 16}')
    with pytest.raises(Mistake, match=r"cannot use the judge's '.*judge\.json' \('width'\); train it again"):
        load(tmp_path)
    (tmp_path / "judge.json").write_text(whole)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(Mistake, match=r"cannot use the judge's '.*model\.safetensors'"):
        load(tmp_path)


def test_another_text_encoder_is_noticed(trained, tmp_path):
    towers = fresh(CONFIG, trained.read, 0)
    towers.probe.add_(0.1)
    write(tmp_path, Judge(towers, trained.read))
    with pytest.raises(Mistake, match="was trained with another text encoder; train it again"):
        load(tmp_path)


def test_pictures_of_another_size_are_refused(trained):
    with pytest.raises(ValueError, match="pictures are 32 x 16; this judge looks at 16 x 16 pixels"):
        trained.features(torch.zeros(1, 16, 32, 3))
