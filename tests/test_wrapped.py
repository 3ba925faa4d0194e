"""The embedded prior as a checkpoint of others: told in their way, it leads to the asset that it leads to by itself.

Its network stands behind the class for text-to-image checkpoints, with a table of a thousand timesteps, an autoencoder
that does nothing, and what it is told as "words" and "views". What differs is rounding.
"""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_pipeline import made

from threed.distill.anneal import Anneal
from threed.distill.embedded import Condition, Embedded, camera_features, predict
from threed.distill.folder import SHIPPED
from threed.distill.hub.checkpoint import Checkpoint
from threed.distill.hub.families import Family
from threed.distill.hub.schedule import Discrete
from threed.distill.hub.text_to_image import Autoencoder, TextToImage
from threed.distill.hub.words import Reader
from threed.distill.prior import Pictures, guide
from threed.distill.sds import SDS
from threed.nerf import NeRFConfig
from threed.pictures import agreement
from threed.recipe import AssetSettings, Recipe, Stage
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.ops import HashGrid
from threed.run import Request
from threed.views import Views

T = 1000
PROMPT, NEGATIVE = "a wooden barrel", "blurry"


class Nothing:
    """An autoencoder of diffusers' form whose latents are the picture."""

    dtype = torch.float32

    def encode(self, picture):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: picture))

    def decode(self, latents, return_dict):
        assert not return_dict
        return (latents,)


def said(prior, *prompts):
    """A reader of a checkpoint without text encoders, which has heard these prompts and no others."""
    texts = {prompt: prior.reader([prompt]) for prompt in prompts}
    words = {prompt: {"context": text.tokens, "mean": text.mean} for prompt, text in texts.items()}
    return Reader(Checkpoint(SHIPPED), torch.device("cpu"), torch.float32, said=words)


def ask(conventions, network, z_t, timestep, words, side):
    assert side == conventions.image_size
    labels = torch.cat([words["view"], words["mean"]], dim=1)
    return predict(network, conventions, z_t, timestep / T, Condition(words["context"], labels, len(z_t)))


@pytest.fixture(scope="module")
def embedded():
    return Embedded.load()


@pytest.fixture(scope="module")
def wrapped(embedded):
    angle = (torch.arange(T, dtype=torch.float64) / T + 0.008) / 1.008 * (math.pi / 2)
    family = Family(
        "the embedded prior",
        "unet",
        encode=lambda pipeline, prompt, device: {},
        ask=partial(ask, embedded.conventions),
        views=lambda pictures: {"view": camera_features(pictures, embedded.kinds)},
    )
    return TextToImage(
        family,
        embedded.network,
        Autoencoder(Nothing(), 0.0, 1.0),
        Discrete.of(angle.cos().square()),
        "clean",
        embedded.image_size,
        said(embedded, PROMPT, NEGATIVE, ""),
    )


def test_it_believes_the_same(embedded, wrapped):
    pictures = Pictures(orbit(2), ("albedo", "normal"), torch.tensor([0.2, 0.9, 0.4]))
    image = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9]).expand(4)
    both = []
    for prior in (embedded, wrapped):
        told = prior.conditions(PROMPT, NEGATIVE, pictures)
        both.append(guide(prior, prior.encode(image), t, told, scale=3.0, rescale=0.5).clean)
    torch.testing.assert_close(both[0], both[1], atol=1e-4, rtol=0)
    silent = wrapped.conditions("", "", pictures).positive
    assert (wrapped.denoise(wrapped.encode(image), t, silent).clean - both[1]).abs().max() > 0.1  # words are heard


def test_it_ends_at_the_same_asset(embedded, wrapped, tmp_path):
    scene = NeRFConfig(
        shape_rate=0.09, colour_rate=0.03, grid=HashGrid(levels=3, coarsest=6, finest=24), samples=32, occupancy=24
    )
    falling = SDS(scale=2.0, t_min=Anneal(0.9, 0.5), t_max=Anneal(0.9, 0.5), weight="clean")
    recipe = Recipe(
        name="tiny",
        about="for tests",
        stages=(Stage("coarse", scene, 8, Views(count=2), ("albedo", "normal"), falling),),
        asset=AssetSettings(faces=600, texture_size=64, grid=40, smoothing=5),
    )
    request = Request(PROMPT, recipe, seed=1)
    one, other = (made(tmp_path / name, prior, request) for name, prior in (("own", embedded), ("other", wrapped)))
    psnr, iou = agreement(*(surface.render(asset, orbit(8), 96, 96) for asset in (one, other)))
    assert psnr > 40  # one step alone ends 25 dB away
    assert iou > 0.995  # and at 0.93
