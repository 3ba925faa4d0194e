"""ControlNets: maps against closed forms, guided predictions against diffusers' own pipelines, and who is heard.

Tiny networks of the real classes, random weights, float32 on the CPU: what differs is rounding.
"""

import math
from dataclasses import replace
from functools import partial

import diffusers
import pytest
import tiny_checkpoints
import torch
import trimesh

from threed.distill.anneal import Anneal
from threed.distill.control import depth_map, normal_map
from threed.distill.folder import UnreadablePrior
from threed.distill.hub import checkpoint, controlnet, text_to_image
from threed.distill.hub.steered import Steered
from threed.distill.prior import Pictures, guide, prediction_from
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.distill.worded import Worded
from threed.particles import Particles
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Mesh
from threed.renderers.volume import Rays, Render
from threed.train import encoded, observed

SIZE = 64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


def camera(elevation=0.0, azimuth=0.0, distance=3.0):
    return Cameras(*(torch.tensor([value]) for value in (azimuth, elevation, distance, math.radians(40))))


def sheet(z):
    """A square that faces +Z, or leans: its height is a function of y."""
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    vertices = torch.cat([corners, z(corners[:, 1:])], dim=1)
    return Mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def ball():
    made = trimesh.creation.icosphere(subdivisions=4, radius=0.8)
    return Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))


def across(size=SIZE):
    """Where pixel centres are, in half sides of the picture: right, and up."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    return axis[None, :].expand(size, size), -axis[:, None].expand(size, size)


def test_depth_of_a_plane_that_faces_the_camera_is_even():
    """Though its distance along the rays is not."""
    render = surface.render(sheet(torch.zeros_like), camera(), SIZE, SIZE, 1)
    shown = depth_map(render, camera())
    close(shown, render.alpha.expand(-1, -1, -1, 3), atol=1e-3)
    assert 0 < render.alpha.mean() < 1


def test_depth_of_a_plane_that_leans_is_linear_in_the_picture():
    """1 / z of a plane is linear in the picture's coordinates: that is what makes it inverse depth."""
    render = surface.render(sheet(lambda y: y), camera(), SIZE, SIZE, 1)  # its upper edge comes nearer
    shown, inside = depth_map(render, camera())[0, ..., 0], render.alpha[0, ..., 0] > 0
    _, up = across()
    # z = 3 - y and y = up tan z: 1 / z = (1 + up tan) / 3
    near = 1 + up * math.tan(math.radians(20))
    low, high = near[inside].min(), near[inside].max()
    close(shown[inside], ((near - low) / (high - low))[inside], atol=1e-3)
    assert not shown[~inside].any()
    assert shown[inside].min() == 0
    assert shown[inside].max() == 1


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 2.0)])
def test_depth_and_normals_of_a_ball(at):
    seen = camera(*at)
    render = surface.render(ball(), seen, SIZE, SIZE, 1, smooth=True)
    right, up = (each * math.tan(math.radians(20)) for each in across())
    squares = right**2 + up**2
    # The nearer root of |(right z, up z, 3 - z)| = 0.8.
    root = 9 - (1 + squares) * (9 - 0.64)
    inside = (render.alpha[0, ..., 0] > 0) & (root > 0.3)  # off its rim
    z = (3 - root.clamp(min=0).sqrt()) / (1 + squares)
    n = torch.stack([right * z, up * z, 3 - z], dim=-1) / 0.8
    wanted = (n * torch.tensor([-1.0, 1.0, 1.0]) + 1) / 2
    found = normal_map(render, seen)[0]
    close(found[inside], wanted[inside], atol=0.01)
    outside = render.alpha[0, ..., 0] == 0
    assert torch.equal(found[outside], torch.tensor([0.5, 0.5, 1.0]).expand_as(found[outside]))
    left = found[SIZE // 2, SIZE // 2 - 15]
    assert left[0] > 0.7  # red is left
    assert found[SIZE // 2 - 15, SIZE // 2][1] > 0.7  # green is up

    shown = depth_map(render, seen)[0, ..., 0]
    near, met = 1 / z[inside], 1 / (render.depth[0, ..., 0] / (1 + squares).sqrt())
    low, high = met[~outside].min(), met[~outside].max()
    close(shown[inside], (near - low) / (high - low), atol=0.01)
    assert shown[SIZE // 2, SIZE // 2] > 0.99
    assert not shown[outside].any()


def test_a_haze_and_nothing_at_all_are_finite():
    thin = Render(*(torch.zeros(1, 4, 4, channels) for channels in (3, 3, 1, 1, 3)))
    assert not depth_map(thin, camera()).any()
    haze = replace(thin, alpha=thin.alpha + 0.1, depth=thin.depth + 0.3)
    assert depth_map(haze, camera()).isfinite().all()
    close(
        normal_map(haze, camera()),
        0.1 * torch.tensor([0.5, 0.5, 0.5]) + 0.9 * torch.tensor([0.5, 0.5, 1.0]) + 0 * haze.normal,
    )


# Steering


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """By name: diffusers' pipeline with a ControlNet, and the prior of the same files."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}
    kinds = {"sd": diffusers.StableDiffusionControlNetPipeline, "xl": diffusers.StableDiffusionXLControlNetPipeline}
    for name, kind in kinds.items():
        base = tiny_checkpoints.write(folder / name, name)
        network = tiny_checkpoints.controlnet(base.unet)
        network.save_pretrained(folder / name / "depth", safe_serialization=True)
        pipeline = kind(**base.components, controlnet=network, **({"add_watermarker": False} if name == "xl" else {}))
        pipeline.set_progress_bar_config(disable=True)
        where = checkpoint.found(f"sd:{folder / name / 'checkpoint'}")
        prior = text_to_image.load(where, "cpu", torch.float32)
        prior = replace(prior, reader=replace(prior.reader, folder=folder / "words"))
        found = controlnet.found(str(folder / name / "depth"))
        controlnet.verify(found, where)
        made[name] = pipeline, prior, partial(controlnet.load, found, prior=prior)
    return made


def pictures(count=1, kinds=("albedo",)):
    cameras = orbit(count)
    return Pictures(cameras, kinds, torch.ones(3), lambda size: surface.render(ball(), cameras, size, size, 1))


def one_guided_step(pipeline, prior, load, kind, strength_called):
    """One step of diffusers' own pipeline from the same noise, with the same map, is our guided prediction."""
    noise, scale, strength, size = normal(1, 4, 8, 8, seed=2), 3.0, 0.7, prior.image_size
    told = pictures()
    drawn = {"depth": depth_map, "normal": normal_map}[kind](told.scene(size), told.cameras).movedim(-1, 1)
    asked = []
    hook = pipeline.unet.register_forward_hook(lambda _, args, out: asked.append((*args, out[0])))
    try:
        pipeline(
            "a barrel",
            image=drawn,
            height=size,
            width=size,
            guidance_scale=scale,
            **{strength_called: strength},
            latents=noise,
            num_inference_steps=2,
            output_type="latent",
        )
    finally:
        hook.remove()
    (z_t, timestep, output) = asked[0]
    null, positive = output.chunk(2)
    z_t, t = z_t[:1], torch.tensor([float(timestep) / 1000])
    steered = Steered(prior, load(kind=kind, strength=strength))
    found = guide(steered, z_t, t, steered.conditions("a barrel", "", told), scale)
    own = prediction_from(prior.predicts, null + scale * (positive - null), z_t, *prior.alpha_sigma(t))
    close(found.noise, own.noise, atol=2e-4)
    alone = guide(prior, z_t, t, prior.conditions("a barrel", "", told), scale)
    assert (found.noise - alone.noise).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sd", "xl"])
@pytest.mark.parametrize("kind", ["depth", "normal"])
def test_a_guided_step_is_the_pipelines(checkpoints, name, kind):
    one_guided_step(*checkpoints[name], kind, "controlnet_conditioning_scale")


@pytest.fixture(scope="module")
def adapted(checkpoints, tmp_path_factory):
    """By name: diffusers' pipeline with a T2I-Adapter, the prior of before, and how it is loaded.

    The tiny networks halve the picture behind their first block, as XL's do.
    """
    folder, made = tmp_path_factory.mktemp("adapters"), {}
    kinds = {"sd": diffusers.StableDiffusionAdapterPipeline, "xl": diffusers.StableDiffusionXLAdapterPipeline}
    network = diffusers.T2IAdapter(3, [16, 16], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
    network.eval().save_pretrained(folder / "depth", safe_serialization=True)
    for name, kind in kinds.items():
        of_control, prior, _ = checkpoints[name]
        parts = {part: each for part, each in of_control.components.items() if part != "controlnet"}
        if name == "sd":
            del parts["image_encoder"]
        pipeline = kind(**parts, adapter=network, **({"requires_safety_checker": False} if name == "sd" else {}))
        pipeline.set_progress_bar_config(disable=True)
        found = controlnet.found(str(folder / "depth"))
        made[name] = pipeline, prior, partial(controlnet.load, found, prior=prior)
    controlnet.verify(found, prior.reader.checkpoint)
    return made


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_a_guided_step_is_that_of_the_pipelines_with_an_adapter(adapted, name):
    one_guided_step(*adapted[name], "depth", "adapter_conditioning_scale")


def test_a_grey_adapter_sees_one_channel_of_the_map(checkpoints):
    _, prior, _ = checkpoints["xl"]
    torch.manual_seed(0)
    network = diffusers.T2IAdapter(1, [16, 16], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
    steered, told = Steered(prior, controlnet.ControlNet(network.eval(), "depth", 0.5)), pictures(2)
    words, z, t = steered.conditions("a barrel", "", told).positive, normal(2, 4, 8, 8), torch.full((2,), 0.5)
    with torch.no_grad():
        features = [0.5 * each for each in network(depth_map(told.scene(16), told.cameras)[..., 0][:, None])]
        conditions = {"text_embeds": words["pooled"], "time_ids": z.new_tensor([16, 16, 0, 0, 16, 16]).expand(2, 6)}
        wanted = prior.network(
            z,
            1000 * t,
            encoder_hidden_states=words["context"],
            added_cond_kwargs=conditions,
            down_intrablock_additional_residuals=features,
        ).sample
        close(steered.denoise(z, t, words).noise, wanted, atol=1e-4)
        steered.denoise(z, t, words)  # what the network took from its list is there again


def test_adapters_for_another_base(checkpoints, tmp_path):
    where = {name: checkpoints[name][1].reader.checkpoint for name in ("sd", "xl")}
    for channels, kind, name, said in (
        ([16, 16], "full_adapter", "xl", "its adapter_type is full_adapter and should be full_adapter_xl"),
        ([16, 16], "full_adapter_xl", "sd", "its adapter_type is full_adapter_xl and should be full_adapter"),
        ([16, 24], "full_adapter", "sd", r"its channels is \[16, 24\] and should be \[16, 16\]"),
    ):
        network = diffusers.T2IAdapter(3, channels, num_res_blocks=1, downscale_factor=4, adapter_type=kind)
        network.save_pretrained(tmp_path / "depth", safe_serialization=True)
        with pytest.raises(UnreadablePrior, match=said):
            controlnet.verify(controlnet.found(str(tmp_path / "depth")), where[name])
    light = diffusers.T2IAdapter(3, [16], num_res_blocks=1, downscale_factor=4, adapter_type="light_adapter")
    light.save_pretrained(tmp_path / "depth", safe_serialization=True)
    controlnet.verify(controlnet.found(str(tmp_path / "depth")), where["sd"])


def test_without_strength_it_is_the_prior_alone(checkpoints):
    _, prior, load = checkpoints["sd"]
    steered, z_t, t = Steered(prior, load(kind="depth", strength=0.0)), normal(2, 4, 8, 8), torch.tensor([0.5, 0.5])
    told = pictures(2)
    ours, theirs = (each.conditions("a barrel", "bad", told) for each in (steered, prior))
    for which in ("positive", "null", "negative"):
        wanted = prior.denoise(z_t, t, getattr(theirs, which)).clean
        close(steered.denoise(z_t, t, getattr(ours, which)).clean, wanted)
    with pytest.raises(ValueError, match="a ControlNet needs a scene to look at"):
        steered.conditions("a barrel", "", replace(told, scene=None))


def test_a_step_is_the_one_by_hand_and_no_gradient_goes_through_the_map(checkpoints):
    """A scene that moves is pulled by its pictures alone: the pull is that under the same map, held fixed."""
    pipeline, prior, load = checkpoints["sd"]
    steered = Steered(prior, load(kind="depth", strength=1.0))
    vertices = ball().vertices.clone().requires_grad_()
    moving, cameras = Mesh(vertices, ball().faces), orbit(1)
    seen = surface.render(moving, cameras, 16, 16, 1)
    told = Pictures(cameras, ("albedo",), torch.ones(3), lambda size: seen)
    t, scale = 0.4, 7.5
    latents, image = encoded(steered, told, seen)
    conditions = steered.conditions("a barrel", "", told)
    assert not conditions.positive["shown"].requires_grad
    loss = SDS(scale=scale, t_min=Anneal(t), t_max=Anneal(t))
    (value,) = loss(steered, None, Shown(latents, conditions, image), 0.0, seeded(3)).values()
    (found,) = torch.autograd.grad(value, vertices, retain_graph=True)

    generator = seeded(3)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    kept = pipeline.scheduler.alphas_cumprod[400].double()
    alpha, sigma = kept.sqrt().item(), (1 - kept).sqrt().item()
    z_t, shown = (alpha * latents + sigma * noise).detach(), depth_map(seen, cameras).movedim(-1, 1)

    def ask(context):
        with torch.no_grad():
            down, middle = pipeline.controlnet(z_t, 400, context, shown, return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return pipeline.unet(z_t, 400, encoder_hidden_states=context, **added).sample

    context, null = pipeline.encode_prompt("a barrel", "cpu", 1, True, "")
    noise_hat = ask(null) + scale * (ask(context) - ask(null))
    (wanted,) = torch.autograd.grad(latents, vertices, sigma**2 * (noise_hat - noise))
    assert wanted.abs().max() > 0.1
    close(found, wanted, atol=1e-3)


def test_views_in_words_and_adapters_are_steered_too(checkpoints):
    _, prior, load = checkpoints["sd"]
    steered, told = Steered(prior, load(kind="normal", strength=1.0)), pictures(2, ("albedo", "normal"))
    conditions = Worded(steered).conditions("a barrel", "bad", told)
    shown = normal_map(told.scene(16), told.cameras).movedim(-1, 1).repeat(2, 1, 1, 1)
    for words in (conditions.positive, conditions.null, conditions.negative, *(each for each, _ in conditions.aside)):
        close(words["shown"], shown)
    adapter = Worded(steered).adapter(rank=2, rate=1e-2, seed=0)
    z_t, t = normal(4, 4, 8, 8), torch.full((4,), 0.5)
    close(adapter.denoise(z_t, t, conditions.positive).clean, steered.denoise(z_t, t, conditions.positive).clean)
    lesson(adapter, z_t, conditions.positive, seeded()).backward()
    assert any(weight.grad.any() for weight in adapter.weights.values())
    assert not any(weight.requires_grad for weight in steered.sight.network.parameters())


class Picture(torch.nn.Module):
    """A scene that is one grey, and remembers of what sizes it was asked to be."""

    def __init__(self, grey):
        super().__init__()
        self.grey, self.sizes = grey, []

    def render(self, cameras, size=None, generator=None):
        self.sizes.append(size)
        shape = len(cameras), size or 8, size or 8
        return Render(*(torch.full((*shape, channels), self.grey) for channels in (3, 3, 1, 1, 3)))


def test_a_surface_is_looked_at_again_and_of_several_the_one_that_was_shown():
    scenes = Particles([Picture(k / 8) for k in range(8)])
    for step in range(6):
        generator = seeded(step)
        again = generator.clone_state()
        render = scenes.render(orbit(1), generator=generator)
        shown = scenes.shown
        fine = observed(scenes, orbit(1), render, again, 16)
        assert fine.alpha.shape == (1, 16, 16, 1)
        assert fine.alpha[0, 0, 0] == render.alpha[0, 0, 0]
        assert scenes.shown == shown
        assert torch.equal(observed(scenes, orbit(1), render, again, 12).alpha, fine.alpha[:, :12, :12])
        assert observed(scenes, orbit(1), render, again, 8) is render
    volume = replace(render, rays=object.__new__(Rays))
    assert observed(scenes, orbit(1), volume, again, 16) is volume
