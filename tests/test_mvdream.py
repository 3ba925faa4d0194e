"""MVDream as a prior: against its network written out, diffusers' own conversion, and cameras in closed form."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import tiny_mvdream
import torch
from safetensors.torch import load_file

from threed.distill.anneal import Anneal
from threed.distill.hub import checkpoint, mvdream, text_to_image
from threed.distill.prior import Pictures, guide
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.renderers.camera import Cameras, orbit

FULL = tiny_mvdream.CONFIG | {  # as ashawkey/mvdream-sd2.1-diffusers has it
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "context_dim": 1024,
    "image_size": 32,
    "model_channels": 320,
    "num_head_channels": 64,
    "num_res_blocks": 2,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


def pictures(count=4, kinds=("albedo",)):
    return Pictures(orbit(count), kinds, torch.ones(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_mvdream.write(tmp_path_factory.mktemp("mvdream"))


@pytest.fixture(scope="module")
def prior(folder):
    found = text_to_image.load(checkpoint.found(f"sd:{folder}"), "cpu", torch.float32)
    return replace(found, reader=replace(found.reader, folder=folder.parent / "read"))


@pytest.fixture(scope="module")
def twin(folder):
    return tiny_mvdream.Twin(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))


def test_the_network_is_the_one_written_out(prior, twin):
    told = prior.conditions("a barrel", "", pictures())
    z_t, t = normal(4, 4, 8, 8), torch.full((4,), 0.4)
    wanted = twin(z_t, 1000 * t, told.positive["context"], told.positive["camera"][0])
    found = mvdream.ask(prior.network, z_t, 1000 * t, told.positive, 16)
    close(found, wanted, atol=1e-4)
    assert twin.read == set(twin.stored)  # every weight of the file has its place
    alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(t))
    close(prior.denoise(z_t, t, told.positive).clean, (z_t - sigma * wanted) / alpha, atol=1e-3)


def test_velocity_where_the_scheduler_says_so(folder, tmp_path, prior):
    shutil.copytree(folder, tmp_path / "v")
    path = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    assert text_to_image.load(checkpoint.found(str(tmp_path / "v"))).predicts == "velocity"
    assert prior.predicts == "noise"
    assert prior.image_size == 16


def test_weights_map_one_to_one_onto_those_of_diffusers():
    """At the size of the real checkpoint: Stable Diffusion 2.1's 865,910,724 parameters, and two layers for cameras."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network, names = mvdream.blank(FULL)
    assert set(names) == set(network.state_dict())
    assert len(set(names.values())) == len(names) == 686 + 4
    assert sum(p.numel() for p in network.parameters()) == 865_910_724 + (16 + 1) * 1280 + (1280 + 1) * 1280
    single = {
        f"model.diffusion_model.{theirs.replace('camera_embed.', 'label_emb.0.')}": ours
        for ours, theirs in names.items()
    }
    converted = convert_ldm_unet_checkpoint(single, {"layers_per_block": 2, "class_embed_type": "projection"})
    assert converted == {ours: ours for ours in names}


def test_with_one_view_it_is_the_plain_network(prior, folder):
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    plain = UNet2DConditionModel(**mvdream.settings(tiny_mvdream.CONFIG)).eval()
    plain.load_state_dict(prior.network.state_dict())
    plain.set_attn_processor(AttnProcessor())
    told = prior.conditions("a barrel", "", pictures(1)).positive
    z_t, t = normal(1, 4, 8, 8), torch.tensor([300.0])
    with torch.no_grad():
        wanted = plain(z_t, t, told["context"], class_labels=told["camera"][0]).sample
    close(mvdream.ask(prior.network, z_t, t, told, 16), wanted)


def test_views_of_a_kind_see_one_another_and_no_others(prior):
    told = prior.conditions("a barrel", "", pictures(4, ("albedo", "normal"))).positive
    assert told["camera"].shape == (2, 4, 16)
    z_t, t = normal(8, 4, 8, 8), torch.full((8,), 0.5)
    other = z_t.clone()
    other[2] += 0.5
    before, after = (prior.denoise(z, t, told).clean for z in (z_t, other))
    moved = (after - before).abs().amax(dim=(1, 2, 3))
    assert (moved[:4] > 1e-4).all()
    assert (moved[4:] < 1e-6).all()
    alone = prior.conditions("a barrel", "", pictures()).positive
    close(before[4:], prior.denoise(z_t[4:], t[4:], alone).clean)


def test_cameras_in_closed_form():
    """A camera from OpenGL's axes into Blender's, as the paper's code has it, where objects face +X."""

    def theirs(elevation, azimuth):
        """Azimuth 0 stands on OpenGL's +Z, and the object's front is a quarter turn on."""
        e, a = math.radians(elevation), math.radians(azimuth)
        position = torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        right = torch.linalg.cross(-position, torch.tensor([0.0, 1.0, 0.0]))
        right = right / right.norm()
        up = torch.linalg.cross(right, -position)
        matrix = torch.eye(4)
        matrix[:3] = torch.stack([right, up, position, position], dim=1)
        turned = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # y up to z up
        return (turned @ matrix).flatten()

    angles = [(0, 0), (0, 90), (15, 180), (30, 270), (-20, 33)]
    elevation, azimuth = torch.deg2rad(torch.tensor(angles, dtype=torch.float32)).unbind(1)
    found = mvdream.camera_matrix(Cameras(azimuth, elevation, torch.tensor([1.0, 2, 3, 4, 5]), torch.ones(5)))
    close(found, torch.stack([theirs(e, a + 90) for e, a in angles]), atol=1e-6)
    front = [0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]  # from +X; right is +Y, up is +Z
    close(found[0], torch.tensor(front, dtype=torch.float32), atol=1e-6)


def test_null_is_empty_text_with_the_same_cameras(prior):
    told = prior.conditions("a barrel", "ugly", pictures())
    empty = prior.conditions("", "", pictures()).positive
    assert torch.equal(told.null["context"], empty["context"])
    for each in (told.positive, told.null, told.negative):
        assert torch.equal(each["camera"], mvdream.camera_matrix(orbit(4))[None])
    assert not torch.equal(told.null["context"], told.negative["context"])


def test_a_step_of_its_loss_is_the_papers(prior, twin):
    """0.5 |x - clean_hat|^2, clean_hat guided and led back to the contrast of the positive (eq. 4)."""
    t, scale, rescale = 0.4, 50.0, 0.5
    latents = normal(4, 4, 8, 8).requires_grad_()
    loss = SDS(scale=scale, rescale=rescale, t_min=Anneal(t), t_max=Anneal(t), weight="clean")
    conditions = prior.conditions("a barrel", "", pictures())
    (value,) = loss(prior, None, Shown(latents, conditions, torch.zeros(4, 16, 16, 3)), 0.0, seeded(3)).values()
    (found,) = torch.autograd.grad(value, latents)

    generator = seeded(3)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[400].item()
    with torch.no_grad():
        z_t = math.sqrt(kept) * latents + math.sqrt(1 - kept) * noise
        said = [
            twin(z_t, torch.full((4,), 400.0), each["context"], each["camera"][0])
            for each in (conditions.positive, conditions.null)
        ]
        positive, null = ((z_t - math.sqrt(1 - kept) * each) / math.sqrt(kept) for each in said)
        clean = null + scale * (positive - null)
        contrast = positive.flatten(1).std(dim=1) / clean.flatten(1).std(dim=1)
        clean = (1 - rescale + rescale * contrast[:, None, None, None]) * clean
    close(found, (latents - clean).detach() / 4, atol=2e-3)


def test_an_adapter_of_it_learns(prior):
    adapter = prior.adapter(rank=2, rate=1e-2, seed=0)
    told, latents = prior.conditions("a barrel", "", pictures()).positive, normal(4, 4, 8, 8, seed=5)
    z_t, t = normal(4, 4, 8, 8), torch.full((4,), 0.5)
    close(adapter.denoise(z_t, t, told).clean, prior.denoise(z_t, t, told).clean)
    optimizer = torch.optim.Adam(adapter.param_groups())
    losses = []
    for _ in range(4):
        loss = lesson(adapter, latents, told, seeded(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_guidance_changes_what_is_believed(prior):
    conditions = prior.conditions("a barrel", "", pictures())
    z_t, t = normal(4, 4, 8, 8), torch.full((4,), 0.5)
    plain, strong = (guide(prior, z_t, t, conditions, scale).clean for scale in (1.0, 50.0))
    assert (plain - strong).abs().max() > 0.1
