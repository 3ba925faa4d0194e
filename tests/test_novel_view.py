"""Zero-1-to-3 and Stable-Zero123 as priors, against their networks asked by hand, and on the command line.

Tiny networks of the real classes, random weights, float32 on the CPU: what differs is rounding.
"""

import copy
import json
import math
import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_novel_views
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pictured import ball, knowing, little, photo
from torch.nn import functional
from transformers import CLIPImageProcessor

from threed import pictures
from threed.cli import main
from threed.distill.anneal import Anneal
from threed.distill.conditions import reference_picture
from threed.distill.embedded import Reference
from threed.distill.folder import UnreadablePrior
from threed.distill.hub import checkpoint, components, download, novel_view
from threed.distill.hub.known import KNOWN
from threed.distill.prior import Pictures, Prior, guide
from threed.distill.score import Shown
from threed.distill.sds import SDS
from threed.distill.vsd import lesson
from threed.novel_view import novel_view as recipe_under
from threed.novel_view import remark
from threed.recipe import AssetSettings
from threed.recipes import RECIPES
from threed.renderers.camera import Cameras, orbit
from threed.single_view import PAPERS
from threed.viewpoint import Viewpoint

FRONT = Viewpoint(0.0, 0.0).camera


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


def cameras(count, seed=0):
    azimuth, elevation, distance = torch.rand(3, count, generator=seeded(seed), dtype=torch.float64)
    fov_y = torch.full_like(azimuth, math.radians(40))
    return Cameras(7 * azimuth - 3, 3 * elevation - 1.5, 1 + distance, fov_y)


def in_blender(camera):
    """Polar angle from straight above, and azimuth, of where a camera is: in Blender +Z is up and -Y in front."""
    x, y, z = camera.position.unbind(-1)
    x, y, z = x, -z, y
    return torch.arccos(z / camera.distance), torch.atan2(y, x)


@pytest.mark.parametrize("stable", [False, True])
def test_cameras_are_told_by_the_angles_that_blender_measures(stable):
    """As the training pictures' cameras were, out of where they stood."""
    seen, others = cameras(1, seed=1), cameras(50)
    (polar, azimuth), (polar_seen, azimuth_seen) = in_blender(others), in_blender(seen)
    found = novel_view.camera_features(others, seen, stable)
    close(found[:, 0], polar - polar_seen)
    close(found[:, 1], (azimuth - azimuth_seen).sin())
    close(found[:, 2], (azimuth - azimuth_seen).cos())
    if stable:
        close(found[:, 3], polar_seen.expand(50))


def test_known_cameras():
    right = replace(FRONT, azimuth=torch.tensor([math.pi / 2]))  # on +X
    above = replace(FRONT, elevation=torch.tensor([math.pi / 6]))
    features = partial(novel_view.camera_features, stable=False)
    close(features(FRONT, FRONT), torch.tensor([[0.0, 0, 1, 0]]))
    close(features(right, FRONT), torch.tensor([[0.0, 1, 0, 0]]))
    close(features(FRONT, right), torch.tensor([[0.0, -1, 0, 0]]))
    close(features(above, FRONT), torch.tensor([[-math.pi / 6, 0, 1, 0]]))  # less polar angle
    close(novel_view.camera_features(right, above, True), torch.tensor([[math.pi / 6, 1, 0, math.pi / 3]]))


def test_distance_is_counted_as_in_training():
    """With the lens of then: metres. With any: whatever makes the object as small."""
    lens = torch.tensor([2 * math.atan(16 / 35)])
    seen = replace(FRONT, distance=torch.tensor([novel_view.DISTANCE]), fov_y=lens)
    farther = replace(seen, distance=torch.tensor([2.2]))
    close(novel_view.farther(farther, seen), torch.tensor([2.2 - 1.85]))
    tele = replace(farther, distance=2.2 * (lens / 2).tan() / 0.1, fov_y=2 * torch.tensor([0.1]).atan())
    close(novel_view.farther(tele, seen), torch.tensor([2.2 - 1.85]))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The folder of a checkpoint, and its components; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("original") / "zero123"
    return folder, tiny_novel_views.write(folder)


@pytest.fixture(scope="module")
def both(original):
    """Its components, the prior of the same files, and that shown a picture from half the left and above."""
    folder, parts = original
    prior = novel_view.load(checkpoint.found(f"sd:{folder}"), "cpu", torch.float32)
    return parts, prior, prior.shown(Reference(picture(), Viewpoint(-30.0, 20.0).camera))


def picture(side=40):
    """What is shown: colours times alpha, and alpha, of one in which nothing is like anything else."""
    alpha = torch.rand(1, 1, side, side, generator=seeded(1))
    return reference_picture(torch.rand(1, 3, side, side, generator=seeded(2)) * alpha, alpha)


def on_white():
    """The same as it is seen: channels first, in [0, 1]."""
    shown = picture()
    return (shown[:, :3] + shown[:, 3:]) / 2 + 1 - shown[:, 3:]


def eight_bits():
    return Image.fromarray((on_white()[0].movedim(0, -1) * 255).round().byte().numpy())


LOOKS = Pictures(orbit(3), ("albedo",), torch.ones(3))


def by_hand(parts, stable=False):
    """What the network is told of LOOKS: context and latents."""
    values = parts["feature_extractor"](eight_bits(), return_tensors="pt").pixel_values
    with torch.no_grad():
        said = parts["image_encoder"](values).image_embeds
        small = functional.interpolate(2 * on_white() - 1, (16, 16), mode="bilinear", antialias=True)
        latents = parts["vae"].encode(small).latent_dist.mode()
    turn = LOOKS.cameras.azimuth + math.radians(30)
    fall = (math.radians(20) - LOOKS.cameras.elevation).float()
    seen = Viewpoint(-30.0, 20.0).camera
    last = novel_view.farther(LOOKS.cameras, seen)
    if stable:
        last = torch.full((3,), math.radians(70))
    camera = torch.stack([fall, turn.sin(), turn.cos(), last], dim=1)
    context = torch.cat([said.expand(3, -1), camera], dim=1) @ parts["weight"].T + parts["bias"]
    return context[:, None], latents.expand(3, -1, -1, -1)


def test_it_is_a_prior(both):
    _, unseen, prior = both
    assert isinstance(prior, Prior)
    assert prior.image_size == 16
    assert prior.name == "Zero-1-to-3"
    with pytest.raises(ValueError, match="show it one first"):
        unseen.conditions("", "", LOOKS)


@pytest.mark.parametrize("side", [224, 32])
def test_clip_sees_what_transformers_processor_makes(side):
    """And what PIL's bicubic filter and the published means and deviations make of a square picture."""
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    shown = on_white().movedim(1, -1)
    found = novel_view.pixel_values(processor, shown)
    assert torch.equal(found, processor(eight_bits(), return_tensors="pt").pixel_values)
    small = np.asarray(eight_bits().resize((side, side), Image.Resampling.BICUBIC)) / 255
    small = (small - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    close(found[0], torch.tensor(small).float().movedim(-1, 0), atol=1e-5)


def test_what_is_seen_and_shown_is_encoded_as_the_autoencoder_does(both):
    parts, _, prior = both
    rendered = torch.rand(2, 16, 16, 3, generator=seeded())
    with torch.no_grad():
        mode = parts["vae"].encode((2 * rendered - 1).movedim(-1, 1)).latent_dist.mode()
        close(prior.encode(rendered), mode * parts["vae"].config.scaling_factor)
    close(prior.seen.latents, by_hand(parts)[1][:1], atol=1e-4)  # not scaled
    assert prior.seen.embedding.shape == (1, tiny_novel_views.SAID)


@pytest.mark.parametrize("stable", [False, True])
def test_conditions_are_the_linear_map_of_picture_and_camera(both, stable):
    parts, _, prior = both
    told = replace(prior, stable=stable).conditions("unheard", "unheard", LOOKS)
    context, latents = by_hand(parts, stable)
    close(told.positive["context"], context, atol=1e-4)
    close(told.positive["reference"], latents, atol=1e-4)
    assert not any(each.any() for each in told.null.values())
    assert told.negative is None
    twice = prior.conditions("", "", replace(LOOKS, kinds=("albedo", "shaded"))).positive
    assert torch.equal(*twice["context"].chunk(2))  # kind-major


def test_both_layouts_are_the_same_prior(both, tmp_path):
    """With the same weights: the names of the linear map are all that differs."""
    _, _, prior = both
    tiny_novel_views.write(tmp_path / "zero123", "Zero1to3StableDiffusionPipeline")
    other = novel_view.load(checkpoint.found(str(tmp_path / "zero123")), "cpu", torch.float32)
    other = other.shown(Reference(picture(), Viewpoint(-30.0, 20.0).camera))
    told, same = (each.conditions("", "", LOOKS).positive for each in (prior, other))
    assert all(torch.equal(told[name], same[name]) for name in told)
    z, t = torch.randn(3, 4, 8, 8, generator=seeded()), torch.full((3,), 0.5)
    assert torch.equal(prior.denoise(z, t, told).clean, other.denoise(z, t, same).clean)


def noise_by_hand(parts, z, k, scale):
    context, latents = by_hand(parts)

    def ask(context, latents):
        return parts["unet"](torch.cat([z, latents], dim=1), k, encoder_hidden_states=context).sample

    with torch.no_grad():
        null = ask(torch.zeros_like(context), torch.zeros_like(latents))
        return null + scale * (ask(context, latents) - null)


def test_a_guided_sample_is_that_of_diffusers_by_hand(both):
    """All of DDIM's way, the network asked by hand; then the same with what the prior believes at every step."""
    parts, _, prior = both
    scheduler, scale = copy.deepcopy(parts["scheduler"]), 3.0
    scheduler.set_timesteps(5)
    told, z = prior.conditions("", "", LOOKS), torch.randn(3, 4, 8, 8, generator=seeded(3))
    ours = z
    for k in scheduler.timesteps:
        z = scheduler.step(noise_by_hand(parts, z, k, scale), k, z).prev_sample
        believed = guide(prior, ours, torch.full((3,), k.item() / 1000), told, scale)
        ours = scheduler.step(believed.noise, k, ours).prev_sample
    close(ours, z, atol=1e-3)
    close(prior.decode(ours), (parts["vae"].decode(z / 0.18215).sample.movedim(1, -1) + 1) / 2, atol=2e-3)


def test_a_step_of_score_distillation_is_the_one_by_hand(both):
    """sigma^2 (noise_hat - noise)."""
    parts, _, prior = both
    latents = torch.randn(3, 4, 8, 8, generator=seeded(4)).requires_grad_()
    loss = SDS(scale=3.0, t_min=Anneal(0.4), t_max=Anneal(0.4))
    shown = Shown(latents, prior.conditions("", "", LOOKS), torch.zeros(3, 16, 16, 3))
    (value,) = loss(prior, None, shown, 0.0, seeded(5)).values()
    (found,) = torch.autograd.grad(value, latents)
    generator = seeded(5)
    torch.rand(1, generator=generator)  # the timestep
    noise = torch.randn(latents.shape, generator=generator)
    kept = parts["scheduler"].alphas_cumprod[400]
    z_t = kept.sqrt() * latents.detach() + (1 - kept).sqrt() * noise
    close(found, (1 - kept) * (noise_by_hand(parts, z_t, 400, 3.0) - noise) / 3, atol=1e-4)


def test_an_adapter_begins_as_the_prior_and_learns(both):
    _, _, prior = both
    adapter, told = prior.adapter(rank=2, rate=1e-2, seed=0), prior.conditions("", "", LOOKS).positive
    z, t = torch.randn(3, 4, 8, 8, generator=seeded()), torch.full((3,), 0.5)
    close(adapter.denoise(z, t, told).clean, prior.denoise(z, t, told).clean)
    optimizer, losses = torch.optim.Adam(adapter.param_groups()), []
    for _ in range(6):
        losses.append(lesson(adapter, z, told, seeded(1)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_clip_is_freed_once_it_has_read(both, monkeypatch):
    _, unseen, _ = both
    own, kept = components.image_encoder, []

    def watched(*told):
        network, processor = own(*told)
        kept.append(weakref.ref(network))
        return network, processor

    monkeypatch.setattr(components, "image_encoder", watched)
    prior = unseen.shown(Reference(picture(), FRONT))
    assert [each() for each in kept] == [None]
    assert prior.seen


def test_a_clip_that_lacks_a_weight(original, tmp_path):
    """Its file was whole; what is in it shows when it is read."""
    shutil.copytree(original[0], tmp_path / "zero123")
    path = tmp_path / "zero123" / "image_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if name.endswith("pre_layrnorm.weight"))]
    save_file(weights, path)
    prior = novel_view.load(checkpoint.found(str(tmp_path / "zero123")), "cpu", torch.float32)
    with pytest.raises(UnreadablePrior, match=r"zero123: the weights lack '.*pre_layrnorm.weight'"):
        prior.shown(Reference(picture(), FRONT))


@pytest.mark.parametrize(
    ("path", "stable"),
    [
        ("hub/models--ashawkey--stable-zero123-diffusers/snapshots/0123", True),
        ("hub/models--ashawkey--zero123-xl-diffusers/snapshots/0123", False),
        ("stable_zero123/zero123-xl", False),
        ("stable-diffusion/mine", False),
        ("Zero123/Stable_Zero123C", True),
    ],
)
def test_a_name_tells_which_of_the_two_it_is(path, stable):
    assert novel_view.is_stable(Path("/") / path) is stable


def test_pictures_are_never_larger_than_in_training(tmp_path):
    unet = tiny_novel_views.tiny_checkpoints.unet(channels=8, out_channels=4, sample_size=512)
    tiny_novel_views.write(tmp_path / "zero123", unet=unet)
    assert novel_view.load(checkpoint.found(str(tmp_path / "zero123")), "cpu", torch.float32).image_size == 256


# On the command line


@pytest.fixture
def zero(original, tmp_path, monkeypatch):
    """A copy of a checkpoint, and a picture, in the folder in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original[0], tmp_path / "zero123")
    photo(tmp_path / "chair.png")
    return tmp_path / "zero123"


IMAGE = ["image", "chair.png", "--recipe", "zero123", "--prior", "sd:zero123"]


def test_a_picture_becomes_an_asset(zero, tmp_path, monkeypatch, capsys):
    """By a start that knows a ball, so that little time goes into it."""
    recipe, asset = RECIPES["zero123"], AssetSettings(faces=300, texture_size=64, grid=32, smoothing=2)
    stages = tuple(replace(stage, scene=little(stage.scene)) for stage in recipe.stages)
    monkeypatch.setitem(RECIPES, "zero123", replace(recipe, asset=asset, stages=stages))
    monkeypatch.setitem(PAPERS, "zero123", tuple(replace(paper, resolution=24) for paper in PAPERS["zero123"]))
    monkeypatch.setattr("threed.distill.folder.SHIPPED", knowing(ball(), tmp_path / "ball"))
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.setattr(pictures, "turntable", partial(pictures.turntable, frames=2, size=32))
    monkeypatch.setattr(pictures, "preview", partial(pictures.preview, size=32))
    assert main([*IMAGE, "--steps", "3", "--fov", "30", "--elevation", "15", "--format", "glb"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the prior 'sd:zero123' is asked as Zero-1-to-3 is" in said
    run = Path("outputs/chair-0")
    assert (run / "asset.glb").stat().st_size > 1000
    told = json.loads((run / "recipe.json").read_text())
    assert told["prior"] == "sd:zero123"
    assert told["recipe"]["wording"] is None
    assert json.loads((run / "report.json").read_text())["picture"]["silhouette_iou"] > 0.8


def complaint(capsys, *arguments):
    """What a mistake is answered with, before anything is written."""
    code = main(list(arguments))
    said = capsys.readouterr().err
    assert code == 2, said
    assert not Path("outputs").exists()
    return said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["text", "a chair", "--recipe", "dreamfusion", "--prior", "sd:zero123"],
            "the prior 'sd:zero123' is told a picture, and hears no words; use threed image, or a text-to-image check",
        ),
        ([*IMAGE, "--negative", "blurry"], "--negative belongs to priors that hear words, and 'sd:zero123' is told a"),
        ([*IMAGE, "--learn", "word"], "--learn word belongs to priors that hear words"),
        ([*IMAGE, "--lora", "style.safetensors"], "--lora belongs to priors that hear words"),
        ([*IMAGE, "--loss", "nfsd"], "--loss nfsd belongs to priors that hear words"),
        (
            ["image", "chair.png", "--prior", "sd:zero123"],
            "recipe 'carved' asks no prior of pictures; use --recipe zero123 with this --prior",
        ),
        (["prior", "sample", "x", "--prior", "sd:zero123"], "'sd:zero123' is a checkpoint of others"),
        (["image", "chair.png", "--recipe", "zero123", "--prior", "one.safetensors"], "one.safetensors cannot be used"),
    ],
)
def test_flags_that_do_not_fit(zero, capsys, arguments, said):
    save_file({"weight": torch.zeros(2)}, "one.safetensors")
    shutil.copytree(zero, "one")
    assert said in complaint(capsys, *arguments)


def pickled(zero):
    path = zero / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def truncated(zero):
    path = zero / "image_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def narrow(zero):
    path = zero / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"
    save_file({"proj.weight": torch.zeros(16, 12), "proj.bias": torch.zeros(16)}, path)


def unnamed(zero):
    path = zero / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"
    save_file({"weight": torch.zeros(16, 16), "bias": torch.zeros(16)}, path)


def of_words(zero):
    """The network of a text-to-image checkpoint."""
    shutil.rmtree(zero / "unet")
    tiny_novel_views.tiny_checkpoints.unet().save_pretrained(zero / "unet")


def other_clip(zero):
    path = zero / "image_encoder" / "model.safetensors"
    save_file(load_file(path) | {"visual_projection.weight": torch.zeros(20, 16)}, path)


def change(path, **told):
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


WRONG = [
    (pickled, "clip_camera_projection/diffusion_pytorch_model.bin is a pickle, which may run any code"),
    (truncated, "image_encoder/model.safetensors: it has "),
    (narrow, "the weight of the clip_camera_projection is [16, 12] and should be [16, 16]; copy the checkpoint's"),
    (unnamed, "the weight of the clip_camera_projection is None and should be [16, 16]"),
    (of_words, "the in_channels of the unet is 4 and should be 8"),
    (other_clip, "the size of the image_encoder is [20, 16] and should be [12, 16]"),
    (lambda zero: shutil.rmtree(zero / "image_encoder"), "there is nothing in zero123/image_encoder; copy"),
    (lambda zero: shutil.rmtree(zero / "feature_extractor"), "there is nothing in zero123/feature_extractor; copy"),
    (
        lambda zero: change(zero / "model_index.json", clip_camera_projection=None),
        "names no clip_camera_projection; copy the checkpoint's folder again",
    ),
    (
        lambda zero: change(zero / "model_index.json", clip_camera_projection=["evil", "Evil"]),
        "has a evil.Evil for its clip_camera_projection, and it has to be CLIPCameraProjection",
    ),
    (
        lambda zero: change(zero / "model_index.json", image_encoder=["zero123", "CLIPVisionModelWithProjection"]),
        "has a zero123.CLIPVisionModelWithProjection for its image_encoder",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[f"{k}" for k in range(len(WRONG))])
def test_a_checkpoint_that_cannot_be_used(zero, capsys, spoil, said):
    spoil(zero)
    assert said in complaint(capsys, *IMAGE)


def test_only_what_is_used_is_downloaded():
    used = [
        "clip_camera_projection/config.json",
        "clip_camera_projection/diffusion_pytorch_model.fp16.safetensors",
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        "image_encoder/model.fp16.safetensors",
        "model_index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    others = [
        "clip_camera_projection/diffusion_pytorch_model.fp16_ema.safetensors",
        "clip_camera_projection/zero123.py",
        "image_encoder/model.safetensors",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert download.needed([*used, *others]) == used
    assert "image_encoder/config.json" not in download.needed(["text_encoder/config.json", "image_encoder/config.json"])


def test_papers_numbers_and_the_pictures_lens():
    told = recipe_under(RECIPES["zero123"], 5.0, 20.0)
    (stage,) = told.stages
    assert (told.wording, stage.loss.scale, stage.steps, stage.white_background) == (None, 3.0, 600, 1.0)
    assert (stage.views.count, stage.views.elevation, stage.views.fov_y) == (4, (-10.0, 80.0), 20.0)
    drawn = stage.views.sample(seeded())
    seen = Viewpoint(10.0, 20.0, 20.0).camera
    close(novel_view.farther(drawn, seen), torch.zeros(4))  # as far as the picture's
    magic = recipe_under(RECIPES["magic123"], 5.0, 40.0)
    assert [stage.loss.scale for stage in magic.stages] == [5.0, 5.0]
    craft = recipe_under(RECIPES["dreamcraft3d"], 5.0, 40.0)
    assert [stage.kinds for stage in craft.stages] == [("albedo",)] * 3
    assert all(stage.reference.rgb(0.5) == 1000.0 for stage in craft.stages)
    assert [name for name in PAPERS if "two priors" in remark(name)] == ["magic123", "dreamcraft3d"]


def test_the_list_has_them_with_their_licences(capsys):
    assert main(["prior", "list"]) == 0
    said = capsys.readouterr().out
    licences = {each.id: each.licence for each in KNOWN if "zero123" in each.id}
    assert licences["ashawkey/zero123-xl-diffusers"] == "MIT"
    assert "Non-Commercial" in licences["ashawkey/stable-zero123-diffusers"]
    assert all(f"sd:{name}\n" in said for name in licences)
