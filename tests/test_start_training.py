"""Training the start: its basis against a singular value decomposition, its versions, its loss, and a tiny one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from threed.distill import start as inference
from threed.distill.consensus import medoid
from threed.distill.start import COLOUR_WEIGHT, StartConfig, cut, sample, volume_of
from threed.distill.text import Text
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.training.recolour import name_of
from threed.training.start import StartLoss, Versions, continued, fresh, prepare, write

SHAPE = {"resolution": 8, "patch": 4, "width": 64, "layers": 2, "text_tokens": 2, "text_features": 8, "shift": 2.0}
CONFIG = StartConfig(components=256, **SHAPE)
FEW = StartConfig(components=24, **SHAPE)
CAPTIONS = (["a red ball"], ["a wooden box"], ["a red box", "a red crate"])


def volume(kind: str, colour: tuple[float, float, float], aside: float = 0.5) -> Voxels:
    axis = torch.arange(8) - 3.5
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1) - torch.tensor([aside, 0.0, 0.0])
    reach = points.norm(dim=-1) if kind == "ball" else points.abs().amax(-1)
    return Voxels((reach - 2.3).clamp(-TRUNCATION, TRUNCATION), torch.tensor(colour).expand(8, 8, 8, 3))


def volumes() -> list[Voxels]:
    red, brown = (0.78, 0.16, 0.16), (0.48, 0.29, 0.15)
    return [volume("ball", red), volume("box", brown), volume("box", red)]


def encode(prompts) -> Text:
    """Every text by numbers of its own."""
    rows = [np.random.default_rng(list(prompt.encode()) or [0]).standard_normal((3, 8)) for prompt in prompts]
    numbers = torch.from_numpy(np.stack(rows)).float()
    return Text(numbers[:, :2], numbers[:, 2])


@pytest.fixture(scope="module")
def versions() -> Versions:
    return prepare(fresh(CONFIG, volumes(), 0), volumes(), CAPTIONS, encode, seed=0)


def test_the_basis_is_that_of_the_principal_components():
    start = fresh(FEW, volumes(), 0)
    torch.testing.assert_close(start.basis @ start.basis.T, torch.eye(24), atol=1e-5, rtol=0)
    whole = torch.stack([volume_of(v) for v in volumes()])
    cubes = cut(torch.cat([whole, whole.flip(2)]), 4).flatten(0, 1)
    weight = torch.tensor([1.0, *[COLOUR_WEIGHT] * 3]).repeat_interleave(64)
    centred = (cubes - cubes.mean(0)) * weight
    energy = torch.linalg.svdvals(centred.double()).square()
    torch.testing.assert_close((centred @ start.basis.T).double().square().sum(), energy[:24].sum(), rtol=1e-5, atol=0)
    tokens = start.encode(torch.cat([whole, whole.flip(2)]))
    assert tokens.std() == pytest.approx(1.0, abs=0.02)
    spread = tokens.flatten(0, 1).std(0) * start.scale  # each component was divided by the root of its own
    torch.testing.assert_close(start.scale, (spread * spread.mean()).sqrt(), rtol=0.02, atol=1e-4)


def test_versions_are_the_asset_and_other_colours(versions):
    start = fresh(CONFIG, volumes(), 0)
    assert versions.tokens.shape == (3, 4, 8, 256)
    for asset, voxels in enumerate(volumes()):
        assert versions.caption[asset][0] in CAPTIONS[asset]
        own = volume_of(voxels)[None]
        torch.testing.assert_close(versions.tokens[asset, 0].float(), start.encode(own)[0], atol=2e-2, rtol=0)
    repainted = [
        (versions.caption[asset][other], start.decode(versions.tokens[asset, other, None].float())[0])
        for asset in range(3)
        for other in range(1, 4)
    ]
    assert len({caption for caption, _ in repainted}) > 4
    for caption, found in repainted:
        shade = (found[1:, 4, 4, 4].clamp(-1, 1) + 1) / 2
        assert name_of(shade) in caption.split() or caption in {
            "a red ball",
            "a red box",
            "a red crate",
            "a wooden box",
        }


def test_a_drawn_sample_belongs_to_its_text(versions):
    """Looked up in the table of texts, every row of a batch is a wording of the asset whose tokens it has."""
    clean, text = StartLoss(versions, untold=0.25).drawn(400, torch.Generator().manual_seed(0))
    untold = 0
    for tokens, mean in zip(clean, text.mean, strict=True):
        if torch.equal(mean, versions.nothing.mean[0]):
            untold += 1
            continue
        (row,) = (versions.texts.mean == mean).all(1).nonzero()[0]
        wordings = (versions.wording == row).any(-1)
        same = (versions.tokens.float() == tokens).all(-1).all(-1)
        assert (wordings & same).any()
    assert 70 < untold < 130


def test_the_loss_of_knowing_nothing_and_of_knowing_all(versions):
    loss = StartLoss(versions)

    class Network(torch.nn.Module):
        def alpha_sigma(self, t):
            return torch.ones_like(t), torch.zeros_like(t)

        def forward(self, z_t, t, text, summary, picture=None):
            return self.answer * z_t

    network = Network()
    network.answer = 1.0  # without noise, what it sees is clean
    assert loss(network, 64, torch.Generator().manual_seed(0)) == 0
    network.answer = 0.0
    clean, _ = loss.drawn(64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(network, 64, torch.Generator().manual_seed(0)), clean.square().mean())


def test_a_tiny_start_learns_what_its_texts_mean():
    """Two assets, two texts: each text alone brings its own asset back, in its own colour."""
    two = [volume("ball", (0.78, 0.16, 0.16), aside=0.0), volume("box", (0.2, 0.3, 0.8), aside=0.0)]
    start = fresh(FEW, two, 0)
    loss = StartLoss(prepare(start, two, [["a red ball"], ["a blue box"]], encode, seed=0, others=0, wordings=1))
    optimizer, generator = torch.optim.AdamW(start.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
    for _ in range(400):
        optimizer.zero_grad()
        loss(start, 16, generator).backward()
        optimizer.step()
        rate.step()
    for voxels, caption in zip(two, ["a red ball", "a blue box"], strict=True):
        found = sample(start, encode([caption]), encode([""]), 3, torch.Generator().manual_seed(1), scale=1.5)
        best = found[medoid(found)]
        truth = volume_of(voxels)
        both, either = (best[0] < 0) & (truth[0] < 0), (best[0] < 0) | (truth[0] < 0)
        assert both.sum() / either.sum() > 0.9
        torch.testing.assert_close(best[1:, 4, 4, 4], truth[1:, 4, 4, 4], atol=0.15, rtol=0)


def test_a_continued_start_learns_to_see_and_forgets_nothing(tmp_path):
    start = fresh(CONFIG, volumes(), 0)
    write(tmp_path, start, [])
    seeing = continued(tmp_path, replace(CONFIG, picture=32), 0)
    loaded = inference.load(tmp_path).state_dict()
    state = seeing.state_dict()
    assert all(torch.equal(state[name], value) for name, value in loaded.items())
    assert {name.split(".")[0] for name in set(state) - set(loaded)} == {"read_picture"}
    assert all(parameter.requires_grad for parameter in seeing.parameters())


def test_what_is_written_is_what_is_loaded(tmp_path):
    start = fresh(CONFIG, volumes(), 0)
    write(tmp_path, start, ["barrel", "a", "barrel"])
    assert (tmp_path / "start" / "words.txt").read_text() == "a\nbarrel\n"
    loaded = inference.load(tmp_path)
    assert loaded.config == CONFIG
    for name, value in start.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.bfloat16().float())
