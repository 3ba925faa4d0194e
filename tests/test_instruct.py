"""InstructPix2Pix as a prior, against diffusers' own pipeline: two scales of guidance, beside the original's picture.

Tiny networks of the real classes, random weights, float32 on the CPU: what differs is rounding.
"""

import math
from dataclasses import replace

import pytest
import tiny_checkpoints
import torch
from tiny_assets import box

from threed.distill.anneal import Anneal
from threed.distill.hub import checkpoint, text_to_image
from threed.distill.hub.instruct import Original
from threed.distill.hub.steered import Steered
from threed.distill.prior import Conditions, Pictures, guide, prediction_from
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.renderers import surface
from threed.renderers.camera import orbit

TEXT, PICTURE = 7.5, 1.5  # the scales of the paper


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def close(found, wanted, atol=2e-4):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline, and the prior of the same files beside a red box."""
    folder = tmp_path_factory.mktemp("checkpoints")
    pipeline = tiny_checkpoints.write(folder, "pix2pix")
    pipeline.set_progress_bar_config(disable=True)
    prior = text_to_image.load(checkpoint.found(f"sd:{folder / 'checkpoint'}"), "cpu", torch.float32)
    prior = replace(prior, reader=replace(prior.reader, folder=folder / "words"))
    return pipeline, Steered(prior, Original.of(box(), "cpu"))


def pictures(count=1, kinds=("albedo",)):
    return Pictures(orbit(count, elevation=math.radians(25)), kinds, torch.tensor([0.2, 0.7, 0.9]))


def drawn(told, size=16):
    """The original as these cameras see it."""
    return told.of(surface.render(box(), told.cameras, size, size, 2))


@pytest.mark.parametrize("negative", ["", "bad"])
def test_a_guided_step_is_the_pipelines(made, negative):
    """One step of diffusers' own pipeline from the same noise, beside the same picture, is our guided prediction."""
    pipeline, prior = made
    noise, told, asked = normal(1, 4, 8, 8, seed=2), pictures(), []
    hook = pipeline.unet.register_forward_hook(lambda _, args, out: asked.append((*args, out[0])))
    try:
        pipeline(
            "make it golden",
            image=drawn(told).movedim(-1, 1),
            negative_prompt=negative or None,
            guidance_scale=TEXT,
            image_guidance_scale=PICTURE,
            latents=noise,
            num_inference_steps=2,
            output_type="latent",
        )
    finally:
        hook.remove()
    z_t, timestep, output = asked[0]
    positive, picture, bare = output.chunk(3)
    z_t, t = z_t[:1, :4], torch.tensor([float(timestep) / 1000])
    found = guide(prior, z_t, t, prior.conditions("make it golden", negative, told), TEXT)
    guided = bare + TEXT * (positive - picture) + PICTURE * (picture - bare)
    own = prediction_from(prior.base.predicts, guided, z_t, *prior.alpha_sigma(t))
    close(found.noise, own.noise)
    for other in (picture, bare, bare + TEXT * (positive - bare)):  # no guidance, no picture, one scale
        assert (guided - other).abs().max() > 0.01


def test_every_view_is_shown_the_originals_mode(made):
    pipeline, prior = made
    told = pictures(3, ("albedo", "normal"))
    conditions = prior.conditions("make it golden", "", told)
    mode = pipeline.vae.encode(2 * drawn(told).movedim(-1, 1) - 1).latent_dist.mode()
    close(conditions.positive["shown"], mode)
    close(conditions.null["shown"], mode)
    words, scale = conditions.bare
    assert scale == PICTURE
    assert not words["shown"].any()
    assert torch.equal(words["context"], conditions.null["context"])
    assert len({tuple(view.flatten().tolist()) for view in mode}) == 6
    assert pipeline.vae.config.scaling_factor != 1


def test_a_step_of_score_distillation_is_the_one_by_hand(made):
    pipeline, prior = made
    t, told, latents = 0.4, pictures(2), normal(2, 4, 8, 8).requires_grad_()
    loss = SDS(scale=TEXT, t_min=Anneal(t), t_max=Anneal(t))
    shown = Shown(latents, prior.conditions("make it golden", "", told), torch.zeros(2, 16, 16, 3))
    (value,) = loss(prior, None, shown, 0.0, seeded(3)).values()
    (found,) = torch.autograd.grad(value, latents)

    generator = seeded(3)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    kept = pipeline.scheduler.alphas_cumprod[400].double()
    alpha, sigma = kept.sqrt().item(), (1 - kept).sqrt().item()
    with torch.no_grad():
        mode = pipeline.vae.encode(2 * drawn(told).movedim(-1, 1) - 1).latent_dist.mode()
        z_t = alpha * latents + sigma * noise

        def ask(context, beside):
            both = torch.cat([z_t, beside], dim=1)
            return pipeline.unet(both, 400, encoder_hidden_states=context.repeat(2, 1, 1)).sample

        context, null = (pipeline._encode_prompt(prompt, "cpu", 1, False) for prompt in ("make it golden", ""))
        picture, bare = ask(null, mode), ask(null, torch.zeros_like(mode))
        noise_hat = bare + TEXT * (ask(context, mode) - picture) + PICTURE * (picture - bare)
    close(found, sigma**2 * (noise_hat - noise) / 2)


def test_an_adapter_is_shown_the_original_too(made):
    _, prior = made
    adapter, told = prior.adapter(rank=2, rate=1e-2, seed=0), prior.conditions("make it golden", "", pictures(2))
    z_t, t = normal(2, 4, 8, 8), torch.tensor([0.5, 0.5])
    close(adapter.denoise(z_t, t, told.positive).clean, prior.denoise(z_t, t, told.positive).clean)
    lesson(adapter, z_t, told.positive, seeded()).backward()
    assert any(weight.grad.any() for weight in adapter.weights.values())


class Says:
    """A denoiser that believes what it is told."""

    def alpha_sigma(self, t):
        return torch.sqrt(1 - t), torch.sqrt(t)

    def denoise(self, z_t, t, condition):
        clean = torch.full_like(z_t, condition)
        return prediction_from("clean", clean, z_t, *self.alpha_sigma(t))


def test_two_scales_in_numbers():
    """bare 1, null 2, positive 4: 1 + s_I 1 + s_T 2, whatever the noise; of no scale, the picture's remains."""
    z_t, t = normal(1, 4, 2, 2), torch.tensor([0.5])
    told = Conditions(4.0, 2.0, bare=(1.0, 1.5))
    for scale, wanted in ((7.5, 1 + 1.5 + 15), (1.0, 1 + 1.5 + 2), (0.0, 1 + 1.5)):
        close(guide(Says(), z_t, t, told, scale).clean, torch.full_like(z_t, wanted))
    close(guide(Says(), z_t, t, replace(told, bare=(1.0, 1.0)), 7.5).clean, torch.full_like(z_t, 2 + 15))
