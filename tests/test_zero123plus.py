"""Zero123++ as a prior: against its network written out, and its way of drawing by hand.

Tiny networks of the real classes, random weights, float32 on the CPU: what differs is rounding.
"""

import copy
import json
import math
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import tiny_rigged
import torch
from PIL import Image

from threed.distill.anneal import Anneal
from threed.distill.conditions import reference_picture
from threed.distill.embedded import Reference
from threed.distill.hub import checkpoint, shown, zero123plus
from threed.distill.prior import Pictures, Prior, guide
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.renderers.camera import orbit
from threed.viewpoint import Viewpoint

CAMERA = Viewpoint(-30.0, 12.0).camera


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


def picture(side=40):
    """What is shown: colours times alpha, and alpha, of one in which nothing is like anything else."""
    alpha = torch.rand(1, 1, side, side, generator=seeded(1))
    return reference_picture(torch.rand(1, 3, side, side, generator=seeded(2)) * alpha, alpha)


def on_grey(grey):
    """The same in 8 bits before this grey."""
    seen = picture()
    colours = (seen[0, :3] + seen[0, 3:]) / 2 + (1 - seen[0, 3:]) * grey
    return Image.fromarray((colours.movedim(0, -1) * 255).round().byte().numpy())


def looks(kinds=("albedo",)):
    rig = zero123plus.SECOND.cameras(float(CAMERA.azimuth), float(CAMERA.elevation))
    return Pictures(rig, kinds, torch.full((3,), 0.5))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The components of a checkpoint, the prior of the same files, and that shown a picture."""
    folder = tmp_path_factory.mktemp("original") / "zero123plus-v1.2"
    parts = tiny_rigged.zero123plus(folder)
    prior = shown.load(checkpoint.found(f"sd:{folder}"), "cpu", torch.float32)
    words = replace(prior.base.reader, folder=folder.parent / "read")
    prior = replace(prior, base=replace(prior.base, reader=words))
    return parts, prior, prior.shown(Reference(picture(), CAMERA))


class ByHand:
    """What the network is told, and what it says, without any of the prior's code."""

    def __init__(self, parts):
        self.parts, self.twin = parts, tiny_rigged.Twin(parts["unet"].state_dict())
        self.kept = (1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)).cumprod(0)  # a linear schedule

    @cached_property
    @torch.no_grad()
    def contexts(self):
        """With the picture, and without."""
        ids = self.parts["tokenizer"]("", padding="max_length", max_length=77, return_tensors="pt").input_ids
        silent = self.parts["text_encoder"](ids).last_hidden_state
        values = self.parts["feature_extractor_clip"](on_grey(127 / 255), return_tensors="pt").pixel_values
        said = self.parts["vision_encoder"](values).image_embeds
        return silent + self.parts["ramp"] * said, silent

    @cached_property
    @torch.no_grad()
    def latents(self):
        values = self.parts["feature_extractor_vae"](on_grey(127 / 255), return_tensors="pt").pixel_values
        return [self.parts["vae"].encode(each).latent_dist.mode() for each in (values, torch.zeros_like(values))]

    @torch.no_grad()
    def velocity(self, tile, k, null):
        """The other picture goes through first, as noisy; every self-attention then has its tokens, too."""
        kept, noise = {}, normal(4, 12, 12, seed=round(1000 * k))
        noised = self.kept[k].sqrt() * self.latents[null] + (1 - self.kept[k]).sqrt() * noise
        context, timestep = self.contexts[null], torch.tensor([float(k)])

        def keep(name, tokens):
            kept[name] = tokens
            return tokens

        def join(name, tokens):
            return torch.cat([tokens, kept[name]], dim=1)

        self.twin(noised.float(), timestep, context, keep)
        return self.twin(tile, timestep, context, join)

    def guided(self, tile, k, scale):
        null = self.velocity(tile, k, True)
        return null + scale * (self.velocity(tile, k, False) - null)


@pytest.fixture(scope="module")
def hand(both):
    return ByHand(both[0])


def test_it_is_a_prior(both):
    _, unseen, prior = both
    assert isinstance(prior, Prior)
    assert (prior.image_size, prior.name, prior.rig, prior.background) == (16, "Zero123++ 1.2", zero123plus.SECOND, 0.5)
    assert prior.base.predicts == "velocity"
    with pytest.raises(ValueError, match="show it one first"):
        unseen.conditions("", "", looks())


def test_a_tile_has_its_views_row_by_row():
    views = normal(12, 3, 4, 4)
    tiles = zero123plus.tiled(views)
    assert tiles.shape == (2, 3, 12, 8)
    for group in range(2):
        for view in range(6):
            top, left = 4 * (view // 2), 4 * (view % 2)
            assert torch.equal(tiles[group, :, top : top + 4, left : left + 4], views[6 * group + view])
    assert torch.equal(zero123plus.untiled(tiles), views)
    with pytest.raises(ValueError, match="5 pictures make no tile; this prior draws 6 together"):
        zero123plus.tiled(views[:5])


def test_reference_attention_is_the_one_written_out(both, hand):
    """With and without the picture; every weight of the network has its part in it."""
    _, _, prior = both
    told, z, t = prior.conditions("", "", looks()), normal(6, 4, 8, 8), torch.full((6,), 0.4)
    for null, condition in enumerate((told.positive, told.null)):
        wanted = hand.velocity(zero123plus.tiled(z), 400, bool(null))
        found = prior.denoise(z, t, condition)
        alpha, sigma = (each[0] for each in prior.alpha_sigma(t))
        close(zero123plus.tiled(alpha * found.noise - sigma * found.clean), wanted, atol=1e-4)
        close(alpha * found.clean + sigma * found.noise, z, atol=1e-5)
    assert hand.twin.read == set(hand.twin.stored)


def test_what_it_is_told(both, hand):
    """A ramp of what CLIP says on top of the empty text, and latents that are neither shifted nor scaled."""
    _, _, prior = both
    told = prior.conditions("unheard", "unheard", looks())
    for null, words in enumerate((told.positive, told.null)):
        close(words["context"], hand.contexts[null], atol=1e-4)
        close(words["reference"], hand.latents[null], atol=1e-4)
    assert told.negative is None
    assert hand.contexts[0][0, 0].equal(hand.contexts[1][0, 0])  # the ramp begins at 0
    assert (hand.contexts[0] - hand.contexts[1]).abs().max() > 0.1
    twice = prior.conditions("", "", looks(("albedo", "shaded")))
    assert [len(each) for each in twice.positive.values()] == [2, 2]


def test_the_tile_is_denoised_together_and_tiles_apart(both):
    _, _, prior = both
    told = prior.conditions("", "", looks(("albedo", "shaded"))).positive
    z, t = normal(12, 4, 8, 8), torch.full((12,), 0.5)
    other = z.clone()
    other[2] += 0.5
    moved = (prior.denoise(other, t, told).clean - prior.denoise(z, t, told).clean).abs().amax(dim=(1, 2, 3))
    assert (moved[:6] > 1e-4).all()
    assert (moved[6:] < 1e-6).all()
    alone = prior.conditions("", "", looks()).positive
    close(prior.denoise(z, t, told).clean[6:], prior.denoise(z[6:], t[6:], alone).clean)


def test_the_picture_is_noised_afresh_at_every_time(both):
    _, _, prior = both
    latents = torch.zeros(1, 4, 12, 12)
    first, again, later = (prior.noised(latents, torch.tensor([t])) for t in (0.4, 0.4, 0.5))
    sigma, sigma_later = (prior.alpha_sigma(torch.tensor([t]))[1] for t in (0.4, 0.5))
    assert torch.equal(first, again)
    assert (first / sigma - later / sigma_later).abs().mean() > 0.5
    assert (first / sigma).std().item() == pytest.approx(1, abs=0.1)


def test_pictures_are_tiles_of_low_contrast_to_the_autoencoder(both):
    """And their latents are shifted and scaled; with the right gradient. One that is no tile is encoded alone."""
    parts, _, prior = both
    rendered = torch.rand(6, 16, 16, 3, generator=seeded(), requires_grad=True)
    tile = zero123plus.tiled((2 * rendered - 1).movedim(-1, 1)) * 0.5 / 0.8

    def encoded(x):
        return (parts["vae"].encode(x).latent_dist.mode() * 0.18215 - 0.22) * 0.75

    found, wanted = prior.encode(rendered), zero123plus.untiled(encoded(tile))
    close(found, wanted)
    weights = normal(*found.shape)
    ours, theirs = (torch.autograd.grad((weights * each).sum(), rendered)[0] for each in (found, wanted))
    close(ours, theirs)
    close(prior.encode(rendered[:1]), encoded((2 * rendered[:1] - 1).movedim(-1, 1) * 0.5 / 0.8))
    with pytest.raises(ValueError, match="16 x 8; render square ones"):
        prior.encode(rendered[:, :8])


def test_its_way_of_drawing_is_the_one_by_hand(both, hand):
    """Ancestral steps of Euler's, guidance 4, all the way to pictures."""
    parts, _, prior = both
    told, scale = prior.conditions("", "", looks()), 4.0
    draws = []
    for by_prior in (False, True):
        scheduler, generator = copy.deepcopy(parts["scheduler"]), seeded(7)
        scheduler.set_timesteps(4)
        x = zero123plus.tiled(normal(6, 4, 8, 8, seed=3)) * scheduler.init_noise_sigma
        for k in scheduler.timesteps:
            z = scheduler.scale_model_input(x, k)
            if by_prior:
                t = torch.full((6,), k.item() / 1000)
                alpha, sigma = (each[0] for each in prior.alpha_sigma(t))
                believed = guide(prior, zero123plus.untiled(z), t, told, scale)
                velocity = zero123plus.tiled(alpha * believed.noise - sigma * believed.clean)
            else:
                velocity = hand.guided(z, int(k), scale)
            x = scheduler.step(velocity, k, x, generator=generator).prev_sample
        draws.append(x)
    close(draws[1], draws[0], atol=2e-3)
    drawn = parts["vae"].decode((draws[0] / 0.75 + 0.22) / 0.18215).sample / 0.5 * 0.8
    wanted = (zero123plus.untiled(drawn).movedim(1, -1) + 1) / 2
    close(prior.decode(zero123plus.untiled(draws[1])), wanted, atol=5e-3)


def test_a_step_of_score_distillation_is_the_one_by_hand(both, hand):
    """sigma^2 (noise_hat - noise)."""
    _, _, prior = both
    latents = normal(6, 4, 8, 8, seed=4).requires_grad_()
    loss = SDS(scale=4.0, t_min=Anneal(0.4), t_max=Anneal(0.4))
    seen = Shown(latents, prior.conditions("", "", looks()), torch.zeros(6, 16, 16, 3))
    (value,) = loss(prior, None, seen, 0.0, seeded(5)).values()
    (found,) = torch.autograd.grad(value, latents)
    generator = seeded(5)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    alpha, sigma = math.sqrt(hand.kept[400]), math.sqrt(1 - hand.kept[400])
    z = alpha * latents.detach() + sigma * noise
    believed = sigma * z + alpha * zero123plus.untiled(hand.guided(zero123plus.tiled(z), 400, 4.0))
    close(found, sigma**2 * (believed - noise) / 6, atol=1e-4)


def test_an_adapter_begins_as_the_prior_and_learns(both):
    _, _, prior = both
    adapter, told = prior.adapter(rank=2, rate=1e-2, seed=0), prior.conditions("", "", looks()).positive
    z, t = normal(6, 4, 8, 8), torch.full((6,), 0.5)
    close(adapter.denoise(z, t, told).clean, prior.denoise(z, t, told).clean)
    optimizer, losses = torch.optim.Adam(adapter.param_groups()), []
    for _ in range(4):
        losses.append(lesson(adapter, z, told, seeded(1)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_it_draws_from_its_own_cameras_alone(both):
    _, _, prior = both
    for cameras in (orbit(6), orbit(4), zero123plus.FIRST.cameras(float(CAMERA.azimuth), 0.0)):
        with pytest.raises(ValueError, match="draws 6 views from its own cameras and no others"):
            prior.conditions("", "", replace(looks(), cameras=cameras))


@pytest.mark.parametrize(
    ("path", "elevation", "fov"),
    [
        ("hub/models--sudo-ai--zero123plus-v1.2/snapshots/0123", (20.0, -10.0), 30.0),
        ("hub/models--sudo-ai--zero123plus-v1.1/snapshots/0123", (30.0, -20.0), 49.13434264120263),
        ("1.1/zero123plus", (20.0, -10.0), 30.0),
    ],
)
def test_a_name_tells_which_cameras(path, elevation, fov):
    rig = zero123plus.rig_of(Path("/") / path)
    assert rig.azimuth == (30, 90, 150, 210, 270, 330)
    assert rig.elevation == elevation * 3
    assert rig.fov == pytest.approx(fov)
    assert not rig.relative


def test_those_of_instantmesh_stand_before_white(both, tmp_path):
    """By their name, too; what is told of no picture stays grey."""
    parts, prior, _ = both
    shutil.copytree(prior.base.reader.checkpoint.folder, tmp_path / "zero123plus-instantmesh")
    white = shown.load(checkpoint.found(str(tmp_path / "zero123plus-instantmesh")), "cpu", torch.float32)
    assert (white.background, white.rig, prior.background) == (1.0, zero123plus.SECOND, 0.5)
    seen = white.shown(Reference(picture(), CAMERA)).seen
    values = parts["feature_extractor_vae"](on_grey(1.0), return_tensors="pt").pixel_values
    with torch.no_grad():
        close(seen.latents, parts["vae"].encode(values).latent_dist.mode(), atol=1e-4)
        close(seen.background, parts["vae"].encode(torch.zeros_like(values)).latent_dist.mode(), atol=1e-4)


def test_views_are_of_320_pixels(both, tmp_path):
    """Whatever Stable Diffusion's are, which the configuration has kept."""
    shutil.copytree(both[1].base.reader.checkpoint.folder, tmp_path / "zero123plus")
    path = tmp_path / "zero123plus" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 384}))
    assert shown.load(checkpoint.found(str(tmp_path / "zero123plus")), "cpu").image_size == 320
