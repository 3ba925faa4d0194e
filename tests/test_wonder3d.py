"""Wonder3D as a prior: against its network written out, and its way of drawing by hand.

Tiny networks of the real classes, random weights, float32 on the CPU: what differs is rounding.
"""

import copy
import math
from dataclasses import replace
from functools import cached_property

import pytest
import tiny_rigged
import torch
from test_zero123plus import close, normal, on_grey, picture, seeded
from torch.nn import functional

from threed.distill.anneal import Anneal
from threed.distill.embedded import Reference
from threed.distill.hub import checkpoint, cross_domain, shown, wonder3d
from threed.distill.prior import Pictures, Prior, guide
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.renderers.camera import orbit
from threed.viewpoint import Viewpoint

CAMERA = Viewpoint(-30.0, 12.0).camera
KINDS = ("albedo", "normal")


def looks(kinds=KINDS, grey=0.5):
    return Pictures(wonder3d.RIG.cameras(float(CAMERA.azimuth), 0.0), kinds, torch.full((3,), grey))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The components of a checkpoint, the prior of the same files, and that shown a picture."""
    folder = tmp_path_factory.mktemp("original") / "wonder3d"
    parts = tiny_rigged.wonder3d(folder)
    prior = shown.load(checkpoint.found(f"sd:{folder}"), "cpu", torch.float32)
    return parts, prior, prior.shown(Reference(picture(), CAMERA))


class ByHand:
    """What the network is told, and what it says, without any of the prior's code."""

    def __init__(self, parts):
        self.parts, self.twin = parts, tiny_rigged.Twin(parts["unet"])

    @cached_property
    @torch.no_grad()
    def context(self):
        values = self.parts["feature_extractor"](on_grey(0.5), return_tensors="pt").pixel_values
        return self.parts["image_encoder"](values).image_embeds[:, None]

    @cached_property
    @torch.no_grad()
    def latents(self):
        seen = picture()
        mixed = (seen[:, :3] + seen[:, 3:]) / 2 + (1 - seen[:, 3:]) / 2
        small = functional.interpolate(2 * mixed - 1, (16, 16), mode="bilinear", antialias=True)
        return self.parts["vae"].encode(small).latent_dist.mode() * 0.18215

    @staticmethod
    def labels(colours_first=True):
        rows = []
        for normals in (False, True) if colours_first else (True, False):
            for polar, azimuth in wonder3d.ANGLES:
                angles = (0.0, polar, azimuth, float(normals), float(not normals))
                rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        return torch.tensor(rows)

    @torch.no_grad()
    def noise(self, z, k, null):
        """Self-attention over the six views of a domain, then over the two pictures of a view."""

        def keys(name, tokens):
            def seen(place):
                domain, view = divmod(place, 6)
                others = range(6 * domain, 6 * domain + 6) if name.endswith("attn1") else (view, view + 6)
                return torch.cat([tokens[other] for other in others])

            return torch.stack([seen(place) for place in range(12)])

        told = 0.0 if null else 1.0
        both = torch.cat([z, told * self.latents.expand(12, -1, -1, -1)], dim=1)
        context = told * self.context.expand(12, -1, -1)
        return self.twin(both, torch.full((12,), float(k)), context, keys, self.labels())

    def guided(self, z, k, scale):
        null = self.noise(z, k, True)
        return null + scale * (self.noise(z, k, False) - null)


@pytest.fixture(scope="module")
def hand(both):
    return ByHand(both[0])


def test_it_is_a_prior(both):
    _, unseen, prior = both
    assert isinstance(prior, Prior)
    assert (prior.image_size, prior.name, prior.base.predicts) == (16, "Wonder3D", "noise")
    with pytest.raises(ValueError, match="show it one first"):
        unseen.conditions("", "", looks())


def test_the_network_is_the_one_written_out(both, hand):
    """Every weight of the file has its part in it."""
    _, _, prior = both
    told, z, t = prior.conditions("", "", looks()), normal(12, 4, 8, 8), torch.full((12,), 0.4)
    for null, condition in enumerate((told.positive, told.null)):
        close(prior.denoise(z, t, condition).noise, hand.noise(z, 400, bool(null)), atol=1e-4)
    assert hand.twin.read == set(hand.twin.stored)


def test_who_sees_whom(both):
    """With cross-domain attention silent, the domains know nothing of one another; views of a domain always do."""
    _, _, prior = both
    told, z, t = prior.conditions("", "", looks()).positive, normal(12, 4, 8, 8), torch.full((12,), 0.5)
    other = z.clone()
    other[8] += 0.5

    def moved(prior):
        return (prior.denoise(other, t, told).noise - prior.denoise(z, t, told).noise).abs().amax(dim=(1, 2, 3))

    assert (moved(prior) > 1e-5).all()
    deaf = copy.deepcopy(prior.network)
    for name, weight in deaf.named_parameters():
        if "attn_joint_mid.to_out" in name:
            weight.data.zero_()
    apart = moved(replace(prior, base=replace(prior.base, network=deaf)))
    assert (apart[:6] < 1e-6).all()
    assert (apart[6:] > 1e-5).all()


def test_what_it_is_told(both, hand):
    """Latents and what CLIP says, zeros for null, and of every picture its view and what it shows."""
    _, _, prior = both
    told = prior.conditions("unheard", "unheard", looks())
    close(told.positive["context"], hand.context.expand(12, -1, -1), atol=1e-4)
    close(told.positive["reference"], hand.latents.expand(12, -1, -1, -1), atol=1e-4)
    assert not any(told.null[name].any() for name in ("context", "reference"))
    for words in (told.positive, told.null):
        close(words["camera"].flatten(0, 1), hand.labels())
    assert told.negative is None


def test_angles_are_those_of_cameras_that_turn_about_the_first_ones_upright_axis():
    """Where the first stands and which way is up to it, as it was in training, and then the rig's azimuths."""
    front, up = torch.tensor([-0.850077, -0.459099, 0.258065]), torch.tensor([0.0, 0.490004, 0.871720])
    turn = torch.tensor(wonder3d.RIG.azimuth).deg2rad()[:, None]
    x, y, z = (turn.cos() * front + turn.sin() * torch.linalg.cross(up, front)).unbind(1)
    polar, azimuth = z.acos(), torch.atan2(y, x)
    wanted = torch.stack([polar - polar[0], (azimuth - azimuth[0]) % (2 * math.pi)], dim=1)
    close(torch.tensor(wonder3d.ANGLES), wanted, atol=3e-3)  # they were told in half precision


def test_normals_turn_between_each_camera_and_the_first():
    """What one direction of the world is to all cameras, is one colour to the network; grey stays grey."""
    cameras = wonder3d.RIG.cameras(0.7, 0.0)
    world = functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
    own = torch.einsum("cji,j->ci", cameras.rotation, world)
    rendered = torch.full((12, 16, 16, 3), 0.5)
    rendered[6:, 4:] = ((own + 1) / 2)[:, None, None]
    to_network = wonder3d.turned(rendered, wonder3d.own_to_front())
    assert torch.equal(to_network[:6], rendered[:6])
    close(to_network[6:, 4:], to_network[6:7, 4:].expand(6, -1, -1, -1))
    close(to_network[6, 5, 5], (cameras.rotation[0].T @ world + 1) / 2)
    close(to_network[6:, :4], torch.full((6, 4, 16, 3), 0.5))
    close(wonder3d.turned(to_network, wonder3d.own_to_front().mT), rendered)
    assert torch.equal(wonder3d.turned(rendered[:7], wonder3d.own_to_front()), rendered[:7])  # no group


def test_pictures_to_the_autoencoder_and_back(both):
    parts, _, prior = both
    rendered = torch.rand(12, 16, 16, 3, generator=seeded())
    with torch.no_grad():
        turned = wonder3d.turned(rendered, wonder3d.own_to_front())
        latents = parts["vae"].encode((2 * turned - 1).movedim(-1, 1)).latent_dist.mode() * 0.18215
        close(prior.encode(rendered), latents)
        drawn = (parts["vae"].decode(latents / 0.18215).sample.movedim(1, -1) + 1) / 2
    close(prior.decode(latents)[:6], drawn[:6])
    close(wonder3d.turned(prior.decode(latents), wonder3d.own_to_front()), drawn, atol=1e-4)


def test_its_way_of_drawing_is_the_one_by_hand(both, hand):
    """All of DDIM's way, guidance 3."""
    parts, _, prior = both
    told, draws = prior.conditions("", "", looks()), []
    for by_prior in (False, True):
        scheduler, z = copy.deepcopy(parts["scheduler"]), normal(12, 4, 8, 8, seed=3)
        scheduler.set_timesteps(4)
        for k in scheduler.timesteps:
            t = torch.full((12,), k.item() / 1000)
            noise = guide(prior, z, t, told, 3.0).noise if by_prior else hand.guided(z, int(k), 3.0)
            z = scheduler.step(noise, k, z).prev_sample
        draws.append(z)
    close(draws[1], draws[0], atol=5e-3)
    assert draws[0].abs().max() > 0.1


def test_a_step_of_score_distillation_is_the_one_by_hand(both, hand):
    """sigma^2 (noise_hat - noise), of colours and normals at once."""
    parts, _, prior = both
    latents = normal(12, 4, 8, 8, seed=4).requires_grad_()
    loss = SDS(scale=3.0, t_min=Anneal(0.4), t_max=Anneal(0.4))
    seen = Shown(latents, prior.conditions("", "", looks()), torch.zeros(12, 16, 16, 3))
    (value,) = loss(prior, None, seen, 0.0, seeded(5)).values()
    (found,) = torch.autograd.grad(value, latents)
    generator = seeded(5)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    kept = parts["scheduler"].alphas_cumprod[400]
    z = kept.sqrt() * latents.detach() + (1 - kept).sqrt() * noise
    close(found, (1 - kept) * (hand.guided(z, 400, 3.0) - noise) / 12, atol=1e-4)


def test_an_adapter_begins_as_the_prior_and_learns(both):
    _, _, prior = both
    adapter, told = prior.adapter(rank=2, rate=1e-2, seed=0), prior.conditions("", "", looks()).positive
    z, t = normal(12, 4, 8, 8), torch.full((12,), 0.5)
    close(adapter.denoise(z, t, told).clean, prior.denoise(z, t, told).clean, atol=1e-4)
    assert any("attn_joint_mid" in name for name in adapter.weights)
    optimizer, losses = torch.optim.Adam(adapter.param_groups()), []
    for _ in range(4):
        losses.append(lesson(adapter, z, told, seeded(1)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_what_it_cannot_draw(both):
    _, _, prior = both
    for kinds in (("albedo",), ("normal", "albedo"), ("albedo", "shaded")):
        with pytest.raises(ValueError, match=f"was asked for {', '.join(kinds)}; ask it for albedo, normal"):
            prior.conditions("", "", looks(kinds))
    with pytest.raises(ValueError, match=r"draws before grey, and was asked for .*; use 0\.5"):
        prior.conditions("", "", looks(grey=1.0))
    with pytest.raises(ValueError, match="draws 6 views from its own cameras and no others"):
        prior.conditions("", "", replace(looks(), cameras=orbit(6)))
    prior.conditions("", "", looks(("shaded", "normal")))


def test_weights_map_one_to_one_onto_those_of_diffusers():
    """At the size of the real checkpoint: what Stable Diffusion 1 has, labels, and a layer of attention a block."""
    from diffusers import UNet2DConditionModel

    network, names = cross_domain.blank(tiny_rigged.WONDER3D)
    found = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert names == {name: name for name in found}
    with torch.device("meta"):
        plain = UNet2DConditionModel(cross_attention_dim=768)  # what is left out is Stable Diffusion 1's
    wanted = {name: list(value.shape) for name, value in plain.state_dict().items()}
    assert sum(math.prod(shape) for shape in wanted.values()) == 859_520_964
    wanted["conv_in.weight"] = [320, 8, 3, 3]
    for layer, taken in (("linear_1", 10), ("linear_2", 1280)):
        wanted |= {f"class_embedding.{layer}.weight": [1280, taken], f"class_embedding.{layer}.bias": [1280]}
    blocks = [
        name.removesuffix(".norm1.weight") for name in wanted if name.endswith(".transformer_blocks.0.norm1.weight")
    ]
    assert len(blocks) == 16
    for block in blocks:
        width = wanted[f"{block}.norm1.weight"]
        wanted |= {f"{block}.norm_joint_mid.{kind}": width for kind in ("weight", "bias")}
        wanted |= {f"{block}.attn_joint_mid.to_{one}.weight": width * 2 for one in "qkv"}
        wanted |= {f"{block}.attn_joint_mid.to_out.0.weight": width * 2, f"{block}.attn_joint_mid.to_out.0.bias": width}
    assert found == wanted
    assert sum(math.prod(shape) for shape in found.values()) == 910_785_284  # in half precision, 1.82 GB
