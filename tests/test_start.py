"""The start: its tokens, its schedule, its sampler against networks that know the answer, and what begins from it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from threed.distill import start
from threed.distill.folder import UnreadablePrior
from threed.distill.start import (
    COLOUR_WEIGHT,
    Start,
    StartConfig,
    cut,
    joined,
    sample,
    volume_of,
    voxels_of,
)
from threed.distill.text import Text
from threed.renderers.voxels import TRUNCATION, Voxels

TINY = StartConfig(resolution=8, patch=4, components=256, width=64, layers=1, text_tokens=3, text_features=5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(config: StartConfig = TINY) -> Start:
    """A network whose basis is a random rotation; every weight counts."""
    torch.manual_seed(0)
    network = Start(config)
    values = 4 * config.patch**3
    rotation, _ = torch.linalg.qr(torch.randn(values, values, generator=seeded(1), dtype=torch.float64))
    network.basis.copy_(rotation[: config.components].float())
    network.mean.copy_(torch.randn(values, generator=seeded(2)))
    network.scale.fill_(0.7)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


def told(seed: int, count: int = 1) -> Text:
    config = TINY
    return Text(
        torch.randn(count, config.text_tokens, config.text_features, generator=seeded(seed)),
        torch.randn(count, config.text_features, generator=seeded(seed + 1)),
    )


def volumes(count: int) -> torch.Tensor:
    return torch.rand(count, 4, 8, 8, 8, generator=seeded(7)) * 2 - 1


def test_cubes_are_cut_in_order_and_joined_again():
    whole = torch.arange(2 * 4 * 8**3).reshape(2, 4, 8, 8, 8).float()
    cubes = cut(whole, 4)
    assert cubes.shape == (2, 8, 256)
    assert torch.equal(joined(cubes, 4), whole)
    for number, (x, y, z) in enumerate([(x, y, z) for x in (0, 4) for y in (0, 4) for z in (0, 4)]):
        assert torch.equal(cubes[1, number], whole[1, :, x : x + 4, y : y + 4, z : z + 4].reshape(-1))


def test_a_full_basis_keeps_everything():
    torch.testing.assert_close(tiny().decode(tiny().encode(volumes(3))), volumes(3), atol=1e-4, rtol=0)


def test_fewer_components_are_the_nearest_point():
    """What is lost is orthogonal to all that is kept, colours weighing less."""
    network = tiny(StartConfig(**(vars(TINY) | {"components": 20})))
    weight = torch.tensor([1.0, *[COLOUR_WEIGHT] * 3]).repeat_interleave(64)
    lost = (cut(volumes(3) - network.decode(network.encode(volumes(3))), 4) * weight) @ network.basis.T
    torch.testing.assert_close(lost, torch.zeros_like(lost), atol=1e-5, rtol=0)
    assert network.encode(volumes(3)).shape == (3, 8, 20)


def test_schedule_is_the_cosine_with_more_noise():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for shift in (1.0, 4.0):
        alpha, sigma = Start(StartConfig(**(vars(TINY) | {"shift": shift}))).alpha_sigma(t)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
        torch.testing.assert_close(sigma / alpha, shift * torch.tan(math.pi / 2 * t))


def test_network_sees_volume_text_and_time():
    """Every input changes every token; a group's members do not see one another."""
    network, z = tiny(), torch.randn(2, 8, 256, generator=seeded(3))
    t, text = torch.tensor([0.3, 0.6]), told(4, 2)
    said = network(z, t, text.tokens, text.mean)
    assert said.shape == z.shape
    torch.testing.assert_close(network(z[1:], t[1:], text.tokens[1:], text.mean[1:]), said[1:])
    for other in (
        network(z + torch.eye(8)[0][:, None], t, text.tokens, text.mean),
        network(z, t + 0.1, text.tokens, text.mean),
        network(z, t, text.tokens + 1, text.mean),
        network(z, t, text.tokens, text.mean + 1),
    ):
        assert ((other - said).abs().amax(-1) > 1e-4).all()


def test_a_picture_is_seen_and_changes_nothing_where_there_is_none():
    """Every corner of the picture reaches every token; a start that can see answers without one as if it could not."""
    seeing = tiny(StartConfig(**(vars(TINY) | {"picture": 32})))
    blind = tiny()
    blind.load_state_dict({name: value for name, value in seeing.state_dict().items() if "picture" not in name})
    z, t, text = torch.randn(2, 8, 256, generator=seeded(3)), torch.tensor([0.3, 0.6]), told(4, 2)
    assert torch.equal(seeing(z, t, text.tokens, text.mean), blind(z, t, text.tokens, text.mean))
    picture = torch.rand(2, 4, 32, 32, generator=seeded(5))
    said = seeing(z, t, text.tokens, text.mean, picture)
    assert said.shape == z.shape
    for row in (0, -1):
        for column in (0, -1):
            other = picture.clone()
            other[:, :, row, column] += 3
            assert ((seeing(z, t, text.tokens, text.mean, other) - said).abs().amax(-1) > 1e-6).all()


def test_only_what_is_wanted_is_shown_the_picture():
    """Guidance leads away from what the network says without text and without picture."""

    class Counts(Start):
        def forward(self, z_t, t, text, summary, picture=None):
            seen.append(picture is not None)
            return torch.full_like(z_t, 3.0 if picture is not None else 1.0)

    seen, network = [], tiny(StartConfig(**(vars(TINY) | {"picture": 32})))
    network.__class__ = Counts
    found = sample(network, told(4), told(9), 2, seeded(), steps=3, scale=1.5, picture=torch.zeros(4, 32, 32))
    assert seen == [True, False] * 3
    torch.testing.assert_close(found, network.decode(torch.full((2, 8, 256), 4.0)))


def test_a_picture_that_is_not_understood_is_refused():
    for config, picture, said in (
        (TINY, torch.zeros(4, 32, 32), "trained without pictures"),
        (StartConfig(**(vars(TINY) | {"picture": 32})), torch.zeros(4, 16, 16), r"\(4, 16, 16\); .* 4 x 32 x 32"),
    ):
        with pytest.raises(ValueError, match=said):
            sample(tiny(config), told(4), told(9), 1, seeded(), steps=1, picture=picture)


class Knows(Start):
    """Answers with what the text's first number says, whatever it sees."""

    def forward(self, z_t, t, text, summary, picture=None):
        return summary[:, :1, None].expand(z_t.shape)


def test_sampling_a_known_answer_with_guidance():
    """Where the clean volume is certain, DDIM ends in it; guidance adds `null + scale * (positive - null)`."""
    network = tiny()
    network.__class__ = Knows
    text, nothing = told(4), told(9)
    for scale in (1.0, 2.5):
        clean = nothing.mean[0, 0] + scale * (text.mean[0, 0] - nothing.mean[0, 0])
        found = sample(network, text, nothing, 2, seeded(), steps=4, scale=scale)
        torch.testing.assert_close(found, network.decode(clean.expand(2, 8, 256)), atol=1e-4, rtol=0)


class Believes(Start):
    """The posterior mean where every number of a clean token is normal, with mean 2 and deviation 0.5."""

    def forward(self, z_t, t, text, summary, picture=None):
        alpha, sigma = (a[:, None, None] for a in self.alpha_sigma(t))
        return 2 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (z_t - alpha * 2)


def test_samples_follow_a_gaussian_prior():
    """Mean and deviation of samples under a network that knows a Gaussian; DDIM's own error falls with its steps."""
    network = tiny()
    network.__class__ = Believes
    with torch.autocast("cpu", enabled=False):
        tokens = network.encode(sample(network, told(4), told(9), 16, seeded(), steps=400, scale=1.0))
    assert tokens.mean() == pytest.approx(2.0, abs=0.02)
    assert tokens.std() == pytest.approx(0.5, rel=0.05)


def test_same_seed_same_volumes():
    drawn = [sample(tiny(), told(4), told(9), 2, seeded(seed), steps=3) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_voxels_there_and_back():
    voxels = Voxels((torch.rand(8, 8, 8) * 2 - 1) * TRUNCATION, torch.rand(8, 8, 8, 3))
    again = voxels_of(volume_of(voxels))
    torch.testing.assert_close(again.distance, voxels.distance)
    torch.testing.assert_close(again.colour, voxels.colour)
    cut_off = voxels_of(torch.full((4, 8, 8, 8), 3.0))
    assert torch.equal(cut_off.distance, torch.full((8, 8, 8), TRUNCATION))
    assert torch.equal(cut_off.colour, torch.ones(8, 8, 8, 3))


def test_a_folder_without_a_sound_start_is_named(tmp_path):
    with pytest.raises(UnreadablePrior, match=r"config\.json.*copy the prior's folder again"):
        start.load(tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text(json.dumps(vars(TINY)))
    with pytest.raises(UnreadablePrior, match=r"model\.safetensors"):
        start.load(tmp_path)
    save_file({"place": torch.zeros(2)}, tmp_path / "start" / "model.safetensors")
    with pytest.raises(UnreadablePrior, match=r"model\.safetensors"):
        start.load(tmp_path)
    save_file(dict(tiny().state_dict()), tmp_path / "start" / "model.safetensors")
    loaded = start.load(tmp_path)
    assert loaded.config == TINY
    for name, value in load_file(tmp_path / "start" / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_compressed_weights_are_the_product_of_numbers_and_scales(tmp_path):
    state = dict(tiny().state_dict())
    numbers = torch.randint(-127, 128, state["place"].shape, generator=seeded(3), dtype=torch.int8)
    scale = torch.rand(len(numbers), generator=seeded(4))
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text(json.dumps(vars(TINY)))
    stored = state | {"place": numbers, "place.scale": scale, "scale": (state["scale"] * 0.7).bfloat16()}
    save_file(stored, tmp_path / "start" / "model.safetensors")
    loaded = start.load(tmp_path)
    assert torch.equal(loaded.place, numbers * scale[:, None])
    assert torch.equal(loaded.scale, stored["scale"].float())


def test_words_that_a_start_was_never_told(tmp_path):
    (tmp_path / "start").mkdir()
    assert start.untaught("a purple dragon", tmp_path) == []  # what it was told is not known
    (tmp_path / "start" / "words.txt").write_text("a\npurple\nt-shaped\nsign\n")
    assert start.untaught("A purple t-shaped sign, a Dragon's 2nd dragon", tmp_path) == ["dragon's", "2nd", "dragon"]
    assert start.untaught("\U0001f409 !", tmp_path) == ["\U0001f409 !"]
    (tmp_path / "start" / "words.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UnreadablePrior, match=r"words\.txt"):
        start.untaught("a dragon", tmp_path)
