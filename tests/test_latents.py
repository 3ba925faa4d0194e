"""Scenes of latents under a prior whose autoencoder is known: an orthogonal map of whole patches, there and back."""

from dataclasses import dataclass, replace

import pytest
import torch
from known_prior import normal, seeded
from test_pipeline import NERF, RECIPE, REQUEST, box, likeness, made, modelled
from test_stages import GRID, seen
from torch.nn import functional
from truth import SOLIDS

from threed.distill.gaussian import ViewOracle
from threed.distill.hifa import HiFA
from threed.distill.prior import Pictures, from_pixels, pixels
from threed.exporters import export
from threed.latents import Latents
from threed.nerf import NeRF, NeRFConfig
from threed.paint import Paint, PaintConfig, PaintedConfig
from threed.pictures import agreement
from threed.pipeline import begun
from threed.renderers.camera import orbit
from threed.solid import SolidConfig
from threed.train import encoded

CHANNELS = 4
MIX = torch.linalg.qr(normal(CHANNELS, CHANNELS, seed=5)).Q[:3].float()  # three orthonormal rows


@dataclass(frozen=True)
class Compressing(ViewOracle):
    """Latents are the means of 2 x 2 pixels, their three channels spread over four."""

    def encode(self, image):
        return torch.einsum("pchw,cd->pdhw", functional.avg_pool2d(pixels(image), 2), MIX.to(image))

    def decode(self, latents):
        return from_pixels(
            torch.einsum("pdhw,cd->pchw", latents, MIX.to(latents)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        )


def compressing():
    """Knows the box at twice the resolution of the latents."""
    known = box()
    return Compressing(known.picture, known.std, 2 * known.image_size)


LATENT = replace(RECIPE.stages[0], name="latent", scene=replace(NERF, latents=True), kinds=("albedo",))
REFINE = replace(RECIPE.stages[0], name="refine", scene=replace(NERF, shape_rate=0.03, resolution=64), steps=6)


def test_the_map_of_a_linear_autoencoder_is_found_exactly():
    found = Latents.of(compressing())
    assert (found.channels, found.side) == (CHANNELS, 32)
    torch.testing.assert_close(found.weight, MIX.T / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.bias, torch.full((3,), 0.5), rtol=0, atol=1e-5)


def test_latents_that_are_pixels_are_known_as_they_are():
    found = Latents.of(box())
    torch.testing.assert_close(found.weight, torch.eye(3) / 2, rtol=0, atol=1e-5)
    assert (found(torch.tensor([[-9.0, 0.0, 9.0]])) - torch.tensor([[0.0, 0.5, 1.0]])).abs().max() < 1e-5


def latent_scenes():
    latents = Latents.of(compressing())
    nerf = NeRF(replace(NERF, latents=True), seeded(0), latents)
    with torch.no_grad():
        nerf.colour.copy_(0.05 * normal(*nerf.colour.shape).float())
    paint = Paint(PaintConfig(GRID, latents=True), 1.0, latents)
    with torch.no_grad():
        paint.colour.copy_(0.1 * normal(*paint.colour.shape).float())
    cameras = orbit(2)
    return {
        "volume": nerf.render(cameras),
        "surface": paint.drawn(SOLIDS["box"]().mesh, cameras, 32, 2),
    }, latents


@pytest.mark.parametrize("kind", ["volume", "surface"])
def test_what_is_rendered_as_latents_looks_like_what_is_rendered_as_colours(kind):
    """Compositing and averaging are linear, and so is the map: both ways to the picture agree where none is cut off."""
    renders, latents = latent_scenes()
    render = renders[kind]
    assert render.latents.shape == (2, 32, 32, CHANNELS)
    decoded = render.latents @ latents.weight + render.alpha * latents.bias
    assert ((decoded > 0) & (decoded < render.alpha)).double().mean() > 0.1
    torch.testing.assert_close(decoded, render.albedo, rtol=0, atol=1e-4)


def test_a_scene_of_latents_is_shown_as_its_encoded_pictures_would_be():
    """In front of any background; with the exact gradient, and without an encoder in it."""
    prior, (renders, _) = compressing(), latent_scenes()
    pictures = Pictures(orbit(2), ("albedo",), torch.tensor([0.9, 0.2, 0.4]))
    found, image = encoded(prior, pictures, renders["volume"])
    plain = renders["volume"].albedo + (1 - renders["volume"].alpha) * pictures.background
    whole = plain.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(image, whole, rtol=0, atol=1e-4)
    through = torch.einsum("pchw,cd->pdhw", pixels(plain), MIX)
    kept = MIX.T @ MIX  # what lies in the fourth direction is nothing that an encoder would say
    torch.testing.assert_close(torch.einsum("pdhw,de->pehw", found, kept), through, rtol=0, atol=1e-4)


def test_other_kinds_are_enlarged_and_encoded():
    """Enlarging and taking means of 2 x 2 pixels is next to nothing, but at edges."""
    prior, render = box(), latent_scenes()[0]["volume"]
    pictures = Pictures(orbit(2), ("normal", "albedo"), torch.ones(3))
    found, image = encoded(compressing(), pictures, render)
    normal, albedo = found.split(2)
    assert image.shape == (4, 64, 64, 3)
    assert torch.equal(albedo, encoded(compressing(), replace(pictures, kinds=("albedo",)), render)[0])
    exact = torch.einsum("pchw,cd->pdhw", prior.encode(replace(pictures, kinds=("normal",)).of(render)), MIX)
    assert (normal - exact).abs().mean() < 0.03


def test_distilled_as_latents_and_then_as_colours_it_becomes_the_object(tmp_path):
    recipe = replace(RECIPE, stages=(LATENT, REFINE))
    psnr, iou = likeness(modelled(tmp_path, compressing(), replace(REQUEST, recipe=recipe)), SOLIDS["box"]())
    assert iou > 0.9
    assert psnr > 17
    assert "are its pixels" not in (tmp_path / "log.txt").read_text()


def test_a_loss_that_looks_at_images_sees_decoded_latents(tmp_path):
    """HiFA's, whose image is twice as large as its latents."""
    loss = HiFA(scale=1.0, weight="clean", steps=2)
    recipe = replace(RECIPE, stages=(replace(LATENT, loss=loss, steps=2),))
    made(tmp_path, compressing(), replace(REQUEST, recipe=recipe))
    assert '"hifa_image"' in (tmp_path / "metrics.jsonl").read_text()


def test_a_mesh_is_painted_in_latents(tmp_path):
    """White it begins; two colours it becomes; where it stands stays."""
    source = tmp_path / "white.glb"
    solid = SOLIDS["box"]()
    export(replace(solid, material=replace(solid.material, base_color=torch.full((8, 8, 3), 0.9))), source)
    scene = PaintedConfig(PaintConfig(GRID, rate=0.1, latents=True))
    stage = replace(LATENT, name="paint", scene=scene, steps=30)
    recipe = replace(RECIPE, start=str(source), stages=(stage,))
    asset = made(tmp_path / "run", compressing(), replace(REQUEST, recipe=recipe))
    psnr, iou = agreement(seen(asset), seen(solid))
    assert iou > 0.98
    assert psnr > 22


def test_the_log_says_where_latents_are_pixels(tmp_path):
    recipe = replace(RECIPE, stages=(replace(LATENT, steps=1),))
    made(tmp_path, box(), replace(REQUEST, recipe=recipe))
    assert (
        "the latents of the prior 'embedded' are its pixels; so are the scene's" in (tmp_path / "log.txt").read_text()
    )


def test_scenes_of_latents_need_to_know_of_which():
    for scene in (lambda: NeRF(NeRFConfig(latents=True), seeded(0)), lambda: Paint(PaintConfig(latents=True), 1.0)):
        with pytest.raises(ValueError, match="latents is True, and those of a prior were not given; make it fit"):
            scene()
    with pytest.raises(ValueError, match="latents is False, and those of a prior were given"):
        NeRF(NeRFConfig(), seeded(0), Latents.of(box()))
    with pytest.raises(ValueError, match="latents is True"):
        begun(SolidConfig(paint=PaintConfig(latents=True)), None, REQUEST)


def test_a_volume_goes_on_in_colours_with_the_very_shape_it_had():
    nerf = NeRF(replace(NERF, latents=True), seeded(0), Latents.of(compressing()))
    with torch.no_grad():
        nerf.shape.copy_(normal(*nerf.shape.shape).float())
        nerf.colour.copy_(0.3 * normal(*nerf.colour.shape).float())
    on = begun(replace(NERF, colour_rate=0.5), nerf, REQUEST)
    assert torch.equal(on.shape, nerf.shape)
    cameras = orbit(3)
    assert agreement(on.render(cameras, 32), nerf.render(cameras, 32))[0] > 25
    with pytest.raises(ValueError, match=r"cannot go on as .*; change resolution, samples, .* alone"):
        nerf.continued(replace(NERF, peak=3.0), seeded(0))


def test_a_volume_of_colours_goes_on_as_it_is_with_more_pixels():
    nerf = NeRF(NERF, seeded(0))
    with torch.no_grad():
        nerf.colour.copy_(normal(*nerf.colour.shape).float())
    on = begun(replace(NERF, resolution=2 * NERF.resolution), nerf, REQUEST)
    x = 0.5 * normal(50, 3).float()
    assert torch.equal(on(x).density, nerf(x).density)
    assert torch.equal(on(x).albedo, nerf(x).albedo)
    assert on.render(orbit(1)).rgb.shape[1] == 2 * NERF.resolution
