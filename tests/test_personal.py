"""A prior that learns a picture: gradients, closed forms, what changes and what does not, and run folders."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import tiny_checkpoints
import tiny_prior
import torch
from known_prior import normal, seeded
from torch.nn.functional import embedding

from threed import personal
from threed.distill.adapter import LoRA
from threed.distill.embedded import Embedded
from threed.distill.gaussian import Gaussian
from threed.distill.hub import checkpoint, components, text_to_image
from threed.distill.hub.steered import Steered
from threed.distill.hub.words import Taught, teach
from threed.distill.personal import Differentiable, DreamBooth, Inversion, Learns
from threed.distill.prior import Conditions, Pictures, from_pixels, pixels
from threed.distill.text import TABLE
from threed.distill.vsd import lesson
from threed.distill.word import ALONE, heard, spoken
from threed.errors import Mistake
from threed.footprint import Footprint
from threed.memory import CONTEXT, SLACK, need
from threed.personal import LEARNED, Shown, acquainted, practise
from threed.priors import learning
from threed.recipes import LEARNS, RECIPES
from threed.reference import Target
from threed.renderers.camera import orbit
from threed.run import Request, Run
from threed.single_view import single_view

ONE = Pictures(orbit(1), ("albedo",), torch.ones(3))
SMALL = Learns(
    Inversion(steps=5, rate=0.05, batch=2, vectors=2),
    DreamBooth(steps=4, rate=0.01, rank=2, drawn=1, drawn_steps=2, drawn_scale=1.0),
    framing=(0.95, 1.05),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    tiny_prior.write(folder)
    return Embedded.load(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Tiny checkpoints in float64, by name; what their encoders say is kept in a folder of each."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}
    for name in ("sd", "xl", "sd3", "flux", "if"):
        tiny_checkpoints.write(folder / name, name)
        prior = text_to_image.load(checkpoint.found(f"sd:{folder / name / 'checkpoint'}"), "cpu", torch.float64)
        made[name] = replace(prior, reader=replace(prior.reader, folder=folder / name / "said"))
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(personal, "EXAM", 3)


def precise(prior):
    """The embedded prior in float64."""
    reader = replace(prior.reader, weights={name: each.double() for name, each in prior.reader.weights.items()})
    return replace(prior, unet=copy.deepcopy(prior.unet).double(), reader=reader, texts={})


def target(size=32):
    """A green disc."""
    axis = torch.linspace(-1, 1, size)
    alpha = (axis[:, None] ** 2 + axis**2 < 0.6).float()[..., None]
    return Target(orbit(1), alpha * torch.tensor([0.1, 0.7, 0.2]), alpha)


def request(learns=SMALL, prompt="a ball"):
    return Request(prompt, replace(RECIPES["realfusion"], learns=learns))


# Words


def test_a_word_is_rows_below_the_table():
    table, word, ids = normal(7, 4), normal(2, 4, seed=1), torch.tensor([[3, 7, 8, 0], [8, 6, 7, 7]])
    found = heard(ids, lambda known: embedding(known, table), word, 7)
    assert torch.equal(found, torch.cat([table, word])[ids])


def test_the_embedded_prior_hears_it_as_if_its_table_had_more_rows(tiny):
    word = torch.randn(2, 128, generator=seeded())
    knowing = tiny.reader.knowing(word)
    table = tiny.reader.weights[TABLE]
    assert knowing.tokenizer.token_to_id("<pictured0>") == len(table)
    longer = replace(knowing, word=None, weights=tiny.reader.weights | {TABLE: torch.cat([table, word])})
    prompts = [spoken("A wooden BALL", 2), "a ball"]
    for found, wanted in zip(vars(knowing(prompts)).values(), vars(longer(prompts)).values(), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(knowing(prompts).tokens[1:], tiny.reader(prompts[1:]).tokens)
    assert tiny.reader.tokenizer.token_to_id("<pictured0>") is None


def test_a_word_begins_as_what_the_prompt_means(tiny, families):
    table = tiny.reader.weights[TABLE]
    ids = tiny.reader.tokenizer.encode("wooden ball").ids[1:-1]
    found = tiny.beginning("wooden ball", 3)[ALONE]
    torch.testing.assert_close(found, table[ids].mean(0).expand(3, -1))
    torch.testing.assert_close(tiny.beginning("", 1)[ALONE][0], table.mean(0))
    assert {name: each.shape for name, each in families["xl"].beginning("ab", 1).items()} == {
        "text_encoder": (1, 16),
        "text_encoder_2": (1, 16),
    }


@pytest.mark.parametrize(("name", "tokens"), [("sd", 77), ("xl", 77), ("sd3", 77), ("flux", 0)])
def test_a_word_that_means_a_letter_is_heard_as_that_letter(families, name, tokens):
    """By every CLIP of a checkpoint, what is pooled of it included; T5 puts a space between a word and what follows."""
    prior = families[name]
    knowing = prior.knowing(prior.beginning("a", 1))
    told = knowing.conditions(spoken("ball", 1), "", ONE).positive
    wanted = prior.conditions("a ball", "", ONE).positive
    for part in told:
        found, known = (words[part][:, : tokens if part == "context" else None] for words in (told, wanted))
        torch.testing.assert_close(found, known, rtol=0, atol=1e-12)


def test_what_an_old_clip_pools_is_the_end_of_the_prompt_and_not_the_word(tmp_path):
    """Its configuration says that the end is token 2, and means the highest, which a new token would be."""
    tokenizer, encoder = tiny_checkpoints.tokenizer(tmp_path, last=True), tiny_checkpoints.clip()
    encoder.eos_token_id = 2
    ids = torch.tensor([tokenizer("a ball").input_ids])
    wanted = encoder(ids).pooler_output
    word = encoder.get_input_embeddings().weight[tokenizer("a", add_special_tokens=False).input_ids].detach()
    teach(encoder, tokenizer, word)
    assert isinstance(encoder.get_input_embeddings(), Taught)
    found = encoder(torch.tensor([tokenizer(spoken("ball", 1)).input_ids])).pooler_output
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_encoders_stay_while_a_word_is_learned_and_are_not_asked_twice_after(families, monkeypatch):
    prior, loads, load = families["sd"], [], components.text_encoders
    monkeypatch.setattr(components, "text_encoders", lambda *told: loads.append(1) or load(*told))
    word = {part: each.requires_grad_() for part, each in prior.beginning("ab", 1).items()}
    pupil, prompt = prior.knowing(word), spoken("dog", 1)
    before = len(loads)
    first = pupil.conditions(prompt, "", ONE).positive["context"]
    with torch.no_grad():
        word[ALONE].add_(normal(1, 16))
    second = pupil.conditions(prompt, "", ONE).positive["context"]
    assert first.requires_grad
    assert (first - second).abs().max() > 1e-3
    assert len(loads) - before <= 2  # once to stay, and once to read the empty prompt where that was not kept yet
    other = {ALONE: word[ALONE].detach() + normal(1, 16, seed=1)}
    before = len(loads)
    said = [
        prior.knowing(each).conditions(prompt, "", ONE).positive["context"] for each in (word_of(word), other, other)
    ]
    assert len(loads) - before == 2  # the third is read from its file
    assert torch.equal(said[0], second)
    assert torch.equal(said[1], said[2])
    assert (said[1] - said[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="takes 93 tokens; shorten it to at most 77"):
        pupil.read([spoken("b " * 90, 1)])


def word_of(word):
    return {part: vectors.detach() for part, vectors in word.items()}


# Gradients


@pytest.mark.parametrize("name", ["embedded", "sd", "xl"])
def test_the_gradient_of_a_word_is_that_of_finite_differences(name, tiny, families):
    prior = precise(tiny) if name == "embedded" else families[name]
    word = {part: each.double().requires_grad_() for part, each in prior.beginning("ab", 1).items()}
    pupil = prior.knowing(word)
    latents = prior.encode(torch.rand(1, 16, 16, 3, generator=seeded(), dtype=torch.float64))

    def error():
        told = pupil.conditions(spoken("b", 1), "", ONE).positive
        return lesson(Differentiable(pupil), latents, told, seeded(3))

    slopes = torch.autograd.grad(error(), list(word.values()))
    for vectors, slope in zip(word.values(), slopes, strict=True):
        way, step = normal(*vectors.shape, seed=5), 1e-5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                vectors.add_(sign * step * way)
                ends.append(error().item())
                vectors.sub_(sign * step * way)
        wanted = (ends[0] - ends[1]) / (2 * step)
        assert (slope * way).sum().item() == pytest.approx(wanted, rel=1e-5, abs=1e-12)
        assert abs(wanted) > 1e-9


# Learning


class Blind:
    """What a checkpoint is steered by: nothing."""

    def conditions(self, prior, pictures, told):
        raise AssertionError("there is no scene yet")

    def seeing(self, network, shown):
        raise AssertionError("there is no scene yet")


@dataclass(frozen=True)
class Named(Gaussian):
    """A Gaussian prior whose mean is what the word says."""

    network: None = None
    image_size: int = 8

    def encode(self, image):
        return pixels(image)

    def decode(self, latents):
        return from_pixels(latents)

    def answer(self, network, z_t, t, condition):
        return Gaussian(condition, self.std).denoise(z_t, t, None)

    def conditions(self, prompt, negative, pictures):
        return Conditions(self.mean, None)


def test_under_a_gaussian_prior_the_word_becomes_the_picture(tmp_path):
    """With k = a s^2 / (a^2 s^2 + b^2), clean_hat - x = (1 - k a) (v - x) + k b noise: in the mean least at v = x."""
    word = {ALONE: torch.zeros(3, 8, 8, requires_grad=True)}
    prior = Named(word[ALONE], torch.full((3, 8, 8), 0.5))
    stage = replace(RECIPES["realfusion"].stages[0], white_background=1.0)
    shown = Shown(target(), stage, (1.0, 1.0), "")
    how, asked = Inversion(steps=80, rate=0.05, batch=4), request()
    with Run.create(tmp_path / "run", asked) as run:
        practise("word", word, (shown.lesson(Differentiable(prior), prior),), how, asked, run, {})
    wanted, _ = shown.framed(prior, seeded())
    assert (wanted[0] - wanted.mean()).abs().max() > 0.5
    assert (word[ALONE] - wanted[0]).abs().mean() < 0.06
    assert (word[ALONE] - wanted[0]).abs().max() < 0.25


def test_the_picture_is_framed_as_cameras_see_it(tiny):
    """Twice as far, half as wide; through the lens of the stage, at the distance that frames it as before."""
    stage = replace(RECIPES["realfusion"].stages[0], white_background=0.0)
    seen = replace(target(64), camera=replace(orbit(1), fov_y=torch.tensor([0.3]), distance=torch.tensor([7.0])))
    for share in (1.0, 2.0):
        latents, pictures = Shown(seen, stage, (share, share), "").framed(tiny, seeded(1))
        assert pictures.cameras.distance.item() == pytest.approx(3.1 * share, rel=1e-3)
        assert torch.rad2deg(pictures.cameras.fov_y).item() == pytest.approx(40)
        away = (from_pixels(latents)[0] - pictures.background).abs().sum(-1)
        wide = (away > 0.3 * away.max()).any(0).sum().item()
        assert wide == pytest.approx(16 * 0.77 / share, abs=1.5)


def test_only_the_word_changes_and_the_picture_is_denoised_better(tiny, tmp_path):
    asked = request(replace(SMALL, word=replace(SMALL.word, steps=12, rate=0.2), network=None))
    before = {name: value.clone() for name, value in tiny.unet.state_dict().items()}
    table = tiny.reader.weights[TABLE].clone()
    with Run.create(tmp_path / "run", asked) as run:
        taught, told = acquainted(tiny, target(), asked, run)
    shown = Shown.of(target(), told)
    assert told.prompt == "<pictured0> <pictured1> a ball"
    assert taught.unet is tiny.unet
    assert shown.error(taught) < 0.998 * shown.error(tiny.knowing(tiny.beginning("a ball", 2)))  # noise hears few words
    assert all(torch.equal(value, before[name]) for name, value in tiny.unet.state_dict().items())
    assert torch.equal(tiny.reader.weights[TABLE], table)
    assert "denoises the picture with an error of" in (tmp_path / "run" / "log.txt").read_text()


def test_only_a_copy_of_the_network_changes(tiny, tmp_path):
    asked = request(replace(SMALL, word=None, network=replace(SMALL.network, steps=12, rate=0.1)))
    before = {name: value.clone() for name, value in tiny.unet.state_dict().items()}
    with Run.create(tmp_path / "run", asked) as run:
        taught, told = acquainted(tiny, target(), asked, run)
    shown = Shown.of(target(), told)
    assert shown.error(taught) < 0.998 * shown.error(tiny.knowing(tiny.beginning("a ball", 1)))
    changed = {name for name, value in taught.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".attn" in name and name.endswith("weight") for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in tiny.unet.state_dict().items())
    own = {value.data_ptr() for value in tiny.unet.state_dict().values()}
    assert {name for name, value in taught.unet.state_dict().items() if value.data_ptr() not in own} >= changed
    assert isinstance(taught.adapter(2, 0.01, 0), LoRA)  # as VSD asks for one


def test_a_fused_network_says_what_the_adapter_said(tiny):
    adapter = tiny.adapter(rank=2, rate=0.01, seed=3)
    with torch.no_grad():
        for weight in adapter.weights.values():
            weight.copy_(torch.randn(weight.shape, generator=seeded(5)))
    z_t, t, told = torch.randn(1, 3, 16, 16, generator=seeded()), torch.tensor([0.4]), tiny.conditions("a", "", ONE)
    found = tiny.thinking(adapter.fused()).denoise(z_t, t, told.positive).clean
    torch.testing.assert_close(found, adapter.denoise(z_t, t, told.positive).clean, rtol=0, atol=1e-4)
    assert (found - tiny.denoise(z_t, t, told.positive).clean).abs().max() > 1e-2


# Run folders


def test_same_bytes_again_and_after_every_interruption(tiny, tmp_path, monkeypatch):
    """Stopped twice, it ends as if it had not been; what is damaged is learned again."""
    monkeypatch.setattr(personal, "CHECKPOINT_EVERY", 2)
    asked, taken = request(), []

    def counted(*told):
        taken.append(1)
        if len(taken) == stop:
            raise KeyboardInterrupt
        return lesson(*told)

    monkeypatch.setattr(personal.vsd, "lesson", counted)
    stop = 0
    with Run.create(tmp_path / "whole", asked) as run:
        taught, _ = acquainted(tiny, target(), asked, run)
    whole = (tmp_path / "whole" / LEARNED).read_bytes()
    for stop in (6, 10, 0):  # in the third step of the word, in the second of the network, and then no more
        taken.clear()
        with Run.create(tmp_path / "parts", asked, resume=True) as run:
            try:
                again, _ = acquainted(tiny, target(), asked, run)
            except KeyboardInterrupt:
                assert stop
    assert (tmp_path / "parts" / LEARNED).read_bytes() == whole
    assert all(torch.equal(*pair) for pair in zip(taught.unet.parameters(), again.unet.parameters(), strict=True))
    taken.clear()
    with Run.create(tmp_path / "parts", asked, resume=True) as run:
        acquainted(tiny, target(), asked, run)
        assert not taken
        (tmp_path / "parts" / LEARNED).write_bytes(whole[:-1])
        acquainted(tiny, target(), asked, run)
    assert (tmp_path / "parts" / LEARNED).read_bytes() == whole


@pytest.mark.parametrize("name", ["sd", "if"])
def test_a_checkpoint_learns(families, tmp_path, name):
    """Both, where a gradient reaches the text encoder; the network alone where none does; steered or not."""
    prior = families[name]
    recipe = replace(single_view(RECIPES["realfusion"]), learns=SMALL if name == "sd" else replace(SMALL, word=None))
    asked = Request("a ball", recipe)
    before = {part: value.clone() for part, value in prior.network.state_dict().items()}
    with Run.create(tmp_path / "run", asked) as run:
        taught, told = acquainted(Steered(prior, Blind()) if name == "sd" else prior, target(), asked, run)
    taught = taught.base if name == "sd" else taught
    words = [*recipe.wording.told(told.prompt), told.prompt, "", *recipe.wording.told("a ball")[-2:]]
    assert {*words} <= {*taught.reader.said}
    shown, first = Shown.of(target(), told), prior.knowing(prior.beginning("a ball", recipe.learns.vectors))
    assert shown.error(taught) != shown.error(first)
    assert all(torch.equal(value, before[part]) for part, value in prior.network.state_dict().items())


def test_a_prior_without_words_is_refused(tmp_path):
    asked = request()
    prior = Gaussian(torch.zeros(3, 4, 4), torch.ones(3, 4, 4))
    with Run.create(tmp_path / "run", asked) as run, pytest.raises(ValueError, match="a Gaussian hears no words"):
        acquainted(prior, target(), asked, run)


# What is asked for


def test_realfusion_learns_the_word_under_checkpoints_and_nothing_else_does_unasked():
    for recipe in RECIPES.values():
        assert recipe.learns is None
    assert single_view(RECIPES["realfusion"]).learns == Learns(Inversion())
    assert single_view(RECIPES["zero123"]).learns is None


@pytest.mark.parametrize(("name", "word", "network"), [("word", 1, 0), ("network", 0, 1), ("both", 1, 1)])
def test_what_is_learned_is_what_was_asked_for(name, word, network):
    learns = learning(RECIPES["magic123"], LEARNS, SimpleNamespace(learn=name)).learns
    assert (learns.word, learns.network) == (LEARNS.word if word else None, LEARNS.network if network else None)
    asked = SimpleNamespace(learn="nothing")
    assert learning(replace(RECIPES["magic123"], learns=LEARNS), LEARNS, asked).learns is None


def test_a_text_encoder_without_gradients_learns_no_word():
    recipe = single_view(RECIPES["realfusion"])
    assert learning(recipe, LEARNS, SimpleNamespace(learn=None), "IF").learns is None
    assert learning(recipe, LEARNS, SimpleNamespace(learn="network"), "IF").learns.network
    with pytest.raises(Mistake, match="no gradient goes through the text encoder of IF; use --learn network"):
        learning(recipe, LEARNS, SimpleNamespace(learn="both"), "IF")


def test_what_learning_takes_is_counted():
    """A word: the text encoders and one picture; a network: the group of pictures that it is not to forget."""
    recipe = RECIPES["zero123"]
    recipe = replace(recipe, stages=tuple(replace(s, scene=replace(s.scene, resolution=1)) for s in recipe.stages))
    prior = Footprint(weights=1e9, kept=0, encoding=0, denoising=0, learning=3e9, texts=2e9)
    found = {
        name: need(replace(recipe, learns=learns), prior)
        for name, learns in {"none": None, "word": Learns(Inversion()), "network": Learns(None, DreamBooth())}.items()
    }
    assert found["word"] == pytest.approx(SLACK * (1e9 + 2e9 + 3e9) + CONTEXT)
    assert found["network"] == pytest.approx(SLACK * (1e9 + 8 * 3e9) + CONTEXT)
    assert found["none"] < found["word"]
