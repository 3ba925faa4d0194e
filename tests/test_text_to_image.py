"""Text-to-image checkpoints as priors, against diffusers' own schedulers, pipelines and autoencoders.

Tiny networks of the real classes, random weights, float32 on the CPU: what differs is rounding.
"""

import copy
import shutil
from dataclasses import replace

import pytest
import tiny_checkpoints
import torch
from safetensors.torch import save_file

from threed.distill.anneal import Anneal
from threed.distill.folder import UnreadablePrior
from threed.distill.hub import checkpoint, text_to_image
from threed.distill.hub.families import FAMILIES
from threed.distill.hub.schedule import Discrete, Straight
from threed.distill.prior import Pictures, guide, prediction_from
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.renderers.camera import orbit

ONE, TWO = (Pictures(orbit(count), ("albedo",), torch.ones(3)) for count in (1, 2))
DIFFUSION, FLOW = ("sd", "sd-v", "xl", "if"), ("sd3", "flux")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """By name: diffusers' pipeline, and the prior of the same files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name in tiny_checkpoints.NAMES:
        pipeline = tiny_checkpoints.write(folder / name, name)
        pipeline.set_progress_bar_config(disable=True)
        where = checkpoint.found(f"sd:{folder / name / 'checkpoint'}")
        prior = text_to_image.load(where, "cpu", torch.float32)
        made[name] = pipeline, replace(prior, reader=replace(prior.reader, folder=folder / "words"))
    return made


def latents_of(prior, count=2, seed=0):
    side = prior.encode(torch.zeros(1, prior.image_size, prior.image_size, 3)).shape[1:]
    return normal(count, *side, seed=seed)


def test_networks_compute_as_they_were_published_where_the_hardware_does(monkeypatch):
    """Half on CUDA, without bfloat16 where it is emulated; on others, what they compute natively. And their layout."""
    half, brain = (FAMILIES[name] for name in ("StableDiffusionPipeline", "FluxPipeline"))
    cuda, cpu, last, plain = torch.device("cuda"), torch.device("cpu"), torch.channels_last, torch.contiguous_format
    for native in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(text_to_image, "compute_dtype", lambda device, native=native: native)
        assert text_to_image.precision(half, cuda) == torch.float16
        assert text_to_image.precision(brain, cuda) == (torch.bfloat16 if native == torch.bfloat16 else torch.float16)
        assert text_to_image.precision(half, cpu) == text_to_image.precision(brain, cpu) == native
    assert [text_to_image.layout(cuda, each) for each in (torch.float16, torch.float32)] == [last, plain]
    assert text_to_image.layout(cpu, torch.bfloat16) == plain


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("k", [20, 500, 980, 999])
def test_noise_is_added_as_the_scheduler_adds_it(families, name, k):
    pipeline, prior = families[name]
    latents, noise = latents_of(prior), latents_of(prior, seed=1)
    alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(torch.tensor([k / 1000] * 2)))
    own = copy.deepcopy(pipeline.scheduler)
    if name == "xl":  # Euler's latents are those of a schedule that does not preserve variance
        euler = own.add_noise(latents, noise, torch.tensor([own.timesteps[999 - k]] * 2))
        close(alpha * latents + sigma * noise, alpha * euler, atol=1e-4)
    else:
        close(alpha * latents + sigma * noise, own.add_noise(latents, noise, torch.tensor([k, k])), atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_channels_last_is_the_same_network(families, name):
    """What half precision on CUDA gets, here in single precision on a CPU."""
    _, prior = families[name]
    assert text_to_image.layout(torch.device("cpu"), torch.bfloat16) == torch.contiguous_format
    assert text_to_image.layout(torch.device("cuda"), torch.float32) == torch.contiguous_format
    last = text_to_image.layout(torch.device("cuda", 0), torch.float16)
    network = copy.deepcopy(prior.network).to(memory_format=last)
    filters = next(x for x in network.parameters() if x.ndim == 4 and x.shape[1] > 1 and x.shape[2] > 1)
    assert filters.is_contiguous(memory_format=torch.channels_last)
    condition, z, t = prior.conditions("a barrel", "", TWO).positive, latents_of(prior), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        close(prior.answer(network, z, t, condition).noise, prior.denoise(z, t, condition).noise)


def test_a_compiled_network_says_the_same(families):
    """Traced, and run as it is: what inductor makes of that takes a compiler and minutes."""
    _, prior = families["sd"]
    condition, z, t = prior.conditions("a barrel", "", TWO).positive, latents_of(prior), torch.tensor([0.3, 0.7])
    expected = prior.denoise(z, t, condition).noise
    graphs = []

    def traced(graph, inputs):
        graphs.append(graph)
        return graph.forward

    own = text_to_image.compiled(replace(prior, network=copy.deepcopy(prior.network)), traced)
    close(own.denoise(z, t, condition).noise, expected)
    assert graphs
    assert "conv" in graphs[0].code


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.98])
def test_flow_is_shifted_as_the_scheduler_shifts_it(families, name, t):
    pipeline, prior = families[name]
    own = copy.deepcopy(pipeline.scheduler)
    shifts = {"mu": 0.5 + (16 - 256) / (4096 - 256) * (1.15 - 0.5)} if name == "flux" else {}
    own.set_timesteps(sigmas=[t], **shifts)
    latents, noise = latents_of(prior), latents_of(prior, seed=1)
    alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(torch.tensor([t, t])))
    close(prior.schedule.timestep(torch.tensor([t])), own.timesteps, atol=1e-3)
    close(alpha * latents + sigma * noise, own.scale_noise(latents, own.timesteps.expand(2), noise))


def test_between_timesteps_the_angle_is_interpolated_and_stays_finite():
    kept = torch.tensor([0.99, 0.75, 0.25, 0.0])
    schedule = Discrete.of(kept)
    t = torch.tensor([0.0, 0.25, 0.375, 0.75, 0.999])
    alpha, sigma = schedule.alpha_sigma(t)
    close(alpha[[0, 1, 3, 4]] ** 2, kept[[0, 1, 3, 3]], atol=1e-6)
    close(torch.atan2(sigma[2], alpha[2]), torch.deg2rad(torch.tensor(45.0)), atol=1e-6)  # of 30 and 60 degrees
    close(alpha**2 + sigma**2, torch.ones(5), atol=1e-6)
    close(Straight(3.0).sigma(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, 0.75, 1.0]))


@pytest.mark.parametrize("name", tiny_checkpoints.NAMES)
def test_a_guided_step_is_the_pipelines(families, name):
    """One step of diffusers' own pipeline from the same noise, with the same guidance, is our guided prediction."""
    pipeline, prior = families[name]
    noise, scale, size = latents_of(prior, 1, seed=2), 3.0, prior.image_size
    seen = {}

    def keep(pipe, step, timestep, values):
        seen.setdefault("timestep", timestep)
        return values

    told = {"height": size, "width": size, "num_inference_steps": 2, "output_type": "latent"}
    asked = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["latents"]}
    network = getattr(pipeline, prior.family.network)
    outputs = []
    hook = network.register_forward_hook(
        lambda _, args, kwargs, out: outputs.append((args, kwargs, out[0])), with_kwargs=True
    )
    try:
        if name == "if":
            pipeline("a barrel", guidance_scale=scale, generator=seeded(), **{**told, "output_type": "pt"})
        elif name == "flux":
            packed = pipeline._pack_latents(noise, 1, 4, *noise.shape[2:])
            pipeline(
                "a barrel",
                negative_prompt="",
                true_cfg_scale=scale,
                guidance_scale=3.5,
                latents=packed,
                **told,
                **asked,
            )
        else:
            pipeline("a barrel", guidance_scale=scale, latents=noise, **told, **asked)
    finally:
        hook.remove()
    args, kwargs, output = outputs[0]
    z_t = kwargs.get("hidden_states", args[0] if args else None)
    timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
    conditions = prior.conditions("a barrel", "", ONE)
    if name == "flux":
        z_t, answers = (pipeline._unpack_latents(x, size, size, 2) for x in (z_t, output))
        positive, null = answers, pipeline._unpack_latents(outputs[1][2], size, size, 2)
        timestep = 1000 * timestep
    else:
        null, positive = output[:, : noise.shape[1]].chunk(2)
        z_t = z_t[:1]
    t = at(prior, float(timestep.reshape(-1)[0]))
    found = guide(prior, z_t, t, conditions, scale)
    own = prediction_from(prior.predicts, null + scale * (positive - null), z_t, *prior.alpha_sigma(t))
    close(found.clean, own.clean, atol=2e-3 if name == "xl" else 2e-4)
    assert (own.clean - prediction_from(prior.predicts, positive, z_t, *prior.alpha_sigma(t)).clean).abs().max() > 1e-2


def at(prior, timestep):
    """The t of a network's timestep."""
    if isinstance(prior.schedule, Straight):
        sigma, shift = timestep / 1000, prior.schedule.shift
        return torch.tensor([sigma / (shift + (1 - shift) * sigma)])
    return torch.tensor([timestep / 1000])


@pytest.mark.parametrize("name", ["sd", "sd3", "if"])
def test_pictures_are_encoded_as_the_autoencoder_encodes_them(families, name):
    pipeline, prior = families[name]
    picture = torch.rand(2, prior.image_size, prior.image_size, 3, generator=seeded()).requires_grad_()
    latents = prior.encode(picture)
    if name == "if":
        close(latents, (2 * picture - 1).movedim(-1, 1))
    else:
        vae, config = pipeline.vae, pipeline.vae.config
        mean = vae.encode((2 * picture - 1).movedim(-1, 1)).latent_dist.mean
        close(latents, (mean - (config.shift_factor or 0)) * config.scaling_factor)
        own = vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample
        close(prior.decode(latents), (own.movedim(1, -1) + 1) / 2)
    (slope,) = torch.autograd.grad(latents.square().sum(), picture)
    step = 1e-3 * slope / slope.norm()
    with torch.no_grad():
        risen = (
            prior.encode(picture + step).double().square().sum() - prior.encode(picture - step).double().square().sum()
        )
    assert risen / 2e-3 == pytest.approx(slope.norm().item(), rel=0.02)


def test_pictures_of_other_sizes_are_enlarged(families):
    _, prior = families["if"]
    assert prior.encode(torch.rand(2, 4, 4, 3)).shape == (2, 3, 8, 8)
    close(prior.encode(torch.full((1, 32, 32, 3), 0.25)), torch.full((1, 3, 8, 8), -0.5))
    with pytest.raises(ValueError, match="pictures are 4 x 8; render square ones"):
        prior.encode(torch.rand(1, 8, 4, 3))


@pytest.mark.parametrize("name", ["sd", "sd-v", "sd3"])
def test_a_step_of_score_distillation_is_the_one_by_hand(families, name):
    """sigma^2 (noise_hat - noise), noise_hat of diffusers' network with diffusers' embeddings."""
    pipeline, prior = families[name]
    t, scale = 0.4, 7.5
    latents = latents_of(prior, 2).requires_grad_()
    loss = SDS(scale=scale, t_min=Anneal(t), t_max=Anneal(t))
    shown = Shown(latents, prior.conditions("a barrel", "", TWO), torch.zeros(2, 16, 16, 3))
    (value,) = loss(prior, None, shown, 0.0, seeded(3)).values()
    (found,) = torch.autograd.grad(value, latents)

    generator = seeded(3)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    with torch.no_grad():
        if name == "sd3":
            sigma = 3 * t / (1 + 2 * t)
            alpha = 1 - sigma
            context, null, pooled, pooled_null = pipeline.encode_prompt("a barrel", None, None, negative_prompt="")
            z_t = alpha * latents + sigma * noise

            def ask(context, pooled):
                told = {"encoder_hidden_states": context.repeat(2, 1, 1), "pooled_projections": pooled.repeat(2, 1)}
                return pipeline.transformer(z_t, timestep=torch.tensor([1000 * sigma] * 2), **told).sample

            flow = ask(null, pooled_null) + scale * (ask(context, pooled) - ask(null, pooled_null))
            noise_hat = z_t + alpha * flow
        else:
            kept = pipeline.scheduler.alphas_cumprod[400].double()
            alpha, sigma = kept.sqrt().item(), (1 - kept).sqrt().item()
            context, null = pipeline.encode_prompt("a barrel", "cpu", 1, True, "")
            z_t = alpha * latents + sigma * noise

            def ask(context):
                return pipeline.unet(z_t, 400, encoder_hidden_states=context.repeat(2, 1, 1)).sample

            noise_hat = ask(null) + scale * (ask(context) - ask(null))
            if name == "sd-v":
                noise_hat = sigma * z_t + alpha * noise_hat
    close(found, sigma**2 * (noise_hat - noise) / 2, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3", "if"])
def test_an_adapter_begins_as_the_prior_and_learns(families, name):
    _, prior = families[name]
    adapter = prior.adapter(rank=2, rate=1e-2, seed=0)
    z_t, t, told = latents_of(prior), torch.tensor([0.5, 0.5]), prior.conditions("a barrel", "", TWO).positive
    close(adapter.denoise(z_t, t, told).clean, prior.denoise(z_t, t, told).clean)
    before = {key: value.clone() for key, value in prior.network.state_dict().items()}
    optimizer = torch.optim.Adam(adapter.param_groups())
    losses = []
    for _ in range(8):
        loss = lesson(adapter, latents_of(prior, seed=5), told, seeded(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in prior.network.state_dict().items())


def test_prompts_are_read_once_and_kept_on_disk(families, tmp_path, monkeypatch):
    _, prior = families["xl"]
    loads = []
    own = text_to_image.components.text_encoders
    monkeypatch.setattr(text_to_image.components, "text_encoders", lambda *told: loads.append(told) or own(*told))

    def fresh():
        return replace(prior, reader=replace(prior.reader, folder=tmp_path / "kept", said={}))

    first = fresh()
    first.read(["a barrel", "a barrel, side view"])
    found = first.conditions(["a barrel", "a barrel, side view"], "", TWO)
    assert len(loads) == 1
    assert not found.null["context"].any()  # of XL, force_zeros_for_empty_prompt
    again = fresh().conditions(["a barrel", "a barrel, side view"], "", TWO)
    assert len(loads) == 1
    assert all(torch.equal(found.positive[key], again.positive[key]) for key in found.positive)
    assert not torch.equal(*found.positive["context"])
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:-3])  # torn
    torn = fresh().conditions(["a barrel", "a barrel, side view"], "", TWO)
    assert len(loads) > 1
    assert all(torch.equal(found.positive[key], torn.positive[key]) for key in found.positive)


def test_a_prompt_that_would_be_cut_off_is_refused(families):
    _, prior = families["sd"]
    with pytest.raises(ValueError, match=r"takes 202 tokens; shorten it to at most 77"):
        prior.conditions("a" * 1 + " b" * 199, "", ONE)


def test_a_lora_is_added_to_the_network(families, tmp_path):
    pipeline, prior = families["sd"]
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = normal(2, 16), normal(16, 2, seed=1)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, tmp_path / "style.safetensors")
    where = replace(prior.reader.checkpoint, lora=tmp_path / "style.safetensors")
    changed = text_to_image.load(where, "cpu", torch.float32)
    weight = pipeline.unet.get_submodule(name).weight
    close(changed.network.get_submodule(name).weight, weight + up @ down)
    others = {key: value for key, value in pipeline.unet.state_dict().items() if not key.startswith(name)}
    assert all(torch.equal(changed.network.state_dict()[key], value) for key, value in others.items())


def test_a_single_file_is_the_same_prior(families, tmp_path):
    pipeline, prior = families["sd"]
    shutil.copytree(prior.reader.checkpoint.folder, tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = tiny_checkpoints.single(pipeline)
    save_file(weights, tmp_path / "one.safetensors")
    found = text_to_image.load(checkpoint.found(str(tmp_path / "one.safetensors")), "cpu", torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found.network.parameters(), prior.network.parameters(), strict=True))
    found = replace(found, reader=replace(found.reader, folder=tmp_path / "words"))
    told, again = (each.conditions("a barrel", "", ONE).positive for each in (prior, found))
    close(told["context"], again["context"])
    z_t, t = latents_of(prior, 1), torch.tensor([0.5])
    close(prior.denoise(z_t, t, told).clean, found.denoise(z_t, t, again).clean)
    close(prior.decode(z_t), found.decode(z_t))
    del weights["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(weights, tmp_path / "one.safetensors")
    with pytest.raises(UnreadablePrior, match=r"cannot use .*one\.safetensors"):
        text_to_image.load(checkpoint.found(str(tmp_path / "one.safetensors")), "cpu", torch.float32)
