"""MVDream on the command line: recipes with the paper's numbers, an asset, and everything that can be wrong."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_mvdream
import torch
from safetensors.torch import load_file, save_file

from threed import pictures
from threed.cli import main
from threed.distill.sds import SDS
from threed.multi_view import multi_view
from threed.recipe import AssetSettings
from threed.recipes import RECIPES
from threed.single_view import PAPERS, single_view

DREAM = ["text", "a barrel", "--recipe", "mvdream"]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_mvdream.write(tmp_path_factory.mktemp("original"))


@pytest.fixture
def mv(original, tmp_path, monkeypatch):
    """A copy of it, in the folder in which commands are typed."""
    monkeypatch.setenv("THREED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "mv")
    return tmp_path / "mv"


def test_a_text_becomes_an_asset(mv, monkeypatch):
    small = replace(RECIPES["mvdream"], asset=AssetSettings(faces=300, texture_size=64, grid=32, smoothing=2))
    monkeypatch.setitem(RECIPES, "mvdream", small)
    monkeypatch.setattr("threed.multi_view.RESOLUTION", 32)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.setattr(pictures, "turntable", partial(pictures.turntable, frames=2, size=32))
    monkeypatch.setattr(pictures, "preview", partial(pictures.preview, size=32))
    assert main([*DREAM, "--prior", "sd:mv", "--steps", "2", "--format", "glb"]) == 0
    run = Path("outputs/a-barrel-0")
    told = json.loads((run / "recipe.json").read_text())
    assert (run / "asset.glb").stat().st_size > 1000
    assert told["recipe"]["wording"] is None
    assert [(stage["views"]["count"], stage["steps"]) for stage in told["recipe"]["stages"]] == [(4, 1), (4, 1)]
    assert len(list(Path("cache/prompts").iterdir())) == 2  # the prompt and nothing: no view is named


def test_the_papers_numbers():
    """Shi et al.: 10,000 steps, half of them at 256 pixels, timesteps that fall for 8,000."""
    recipe = multi_view(RECIPES["mvdream"])
    coarse, fine = recipe.stages
    assert recipe.wording is None
    assert (coarse.steps, fine.steps) == (5_000, 5_000)
    assert (coarse.scene.resolution, fine.scene.resolution) == (64, 256)
    for stage, first in ((coarse, 0), (fine, 5_000)):
        loss = stage.loss
        assert (type(loss), loss.scale, loss.rescale, loss.weight) == (SDS, 50.0, 0.5, "clean")
        assert (stage.views.count, stage.views.elevation, stage.kinds) == (4, (0.0, 30.0), ("albedo",))
        for step in (0, 1_000, 3_000, 4_000, 5_000):
            fallen = min((first + step) / 8_000, 1)
            assert loss.t_min(step / 5_000) == pytest.approx(0.98 - 0.96 * fallen)
            assert loss.t_max(step / 5_000) == pytest.approx(0.98 - 0.48 * fallen)


@pytest.mark.parametrize("name", sorted(set(PAPERS) - {"mvdream"}))
def test_every_other_recipe_is_that_of_single_views_seen_from_four_sides(name):
    found, single = multi_view(RECIPES[name]), single_view(RECIPES[name])
    assert found.wording is None
    for stage, alone in zip(found.stages, single.stages, strict=True):
        assert stage.views.count == 4
        assert (stage.kinds, stage.steps, stage.scene) == (alone.kinds, alone.steps, alone.scene)
        assert stage.reference == alone.reference
        strong = alone.loss.scale == 100.0
        assert (stage.loss.scale, stage.loss.rescale) == ((50.0, 0.5) if strong else (alone.loss.scale, 0.0))


def change(path, **told):
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def rewrite(path, edit):
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def truncated(mv):
    path = mv / UNET
    path.write_bytes(path.read_bytes()[:-100])


def pickled(mv):
    (mv / UNET).rename((mv / UNET).with_suffix(".bin"))


WRONG = [
    (lambda mv: shutil.rmtree(mv / "vae"), "there is nothing in mv/vae; copy the checkpoint's folder again"),
    (lambda mv: (mv / "unet" / "config.json").unlink(), "there is nothing in mv/unet; copy the checkpoint's folder"),
    (truncated, f"cannot use mv/{UNET}: it has "),
    (pickled, "unet/diffusion_pytorch_model.bin is a pickle, which may run any code when it is read"),
    (
        lambda mv: rewrite(mv / UNET, lambda weights: weights.pop("camera_embed.0.weight")),
        "the unet of mv is not what its config.json says: 'camera_embed.0.weight' is None and should be [128, 16]",
    ),
    (
        lambda mv: rewrite(mv / UNET, lambda weights: weights.update({"image_embed.latents": torch.zeros(1)})),
        "the unet of mv has 'image_embed.latents', which MVDream has not; use another checkpoint",
    ),
    (
        lambda mv: change(mv / "unet" / "config.json", context_dim=24),
        "attn2.to_k.weight' is [32, 16] and should be [32, 24]; the folder mixes two checkpoints",
    ),
    (
        lambda mv: change(mv / "unet" / "config.json", ip_dim=16),
        "cannot build the unet of mv: it is ImageDream, which wants a picture beside the text",
    ),
    (
        lambda mv: change(mv / "unet" / "config.json", camera_dim=12),
        "its cameras have 12 numbers, and MVDream's have 16",
    ),
    (lambda mv: (mv / "unet" / "config.json").write_text("[]"), "cannot read mv/unet/config.json"),
    (lambda mv: (mv / "unet" / "config.json").write_text("{"), "cannot read mv/unet/config.json"),
    (
        lambda mv: change(mv / "model_index.json", unet=["diffusers", "UNet2DConditionModel"]),
        "mv has a diffusers.UNet2DConditionModel for its unet, and it has to be MultiViewUNetModel",
    ),
    (
        lambda mv: change(mv / "model_index.json", text_encoder=[None, None]),
        "mv has a None.None for its text_encoder, and it has to be CLIPTextModel",
    ),
    (
        lambda mv: change(mv / "model_index.json", scheduler=["diffusers", "MagicScheduler"]),
        "mv has a diffusers.MagicScheduler for its scheduler, and it has to be a scheduler of diffusers",
    ),
    (
        lambda mv: change(mv / "model_index.json", vae=["mv_vae", "AutoencoderKL"]),
        "mv has a mv_vae.AutoencoderKL for its vae, and it has to be AutoencoderKL",
    ),
    (
        lambda mv: change(mv / "model_index.json", _class_name="StableDiffusionPipeline"),
        "mv has a mv_unet.MultiViewUNetModel for its unet, and it has to be UNet2DConditionModel",
    ),
    (
        lambda mv: change(mv / "model_index.json", _class_name="MVDreamStableDiffusionPipeline"),
        "mv is MVDream in another layout (MVDreamStableDiffusionPipeline), which is not supported yet",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[f"{k}" for k in range(len(WRONG))])
def test_a_checkpoint_that_cannot_be_used(mv, capsys, spoil, said):
    spoil(mv)
    assert main([*DREAM, "--prior", "sd:mv"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_a_single_file_is_none(mv, capsys):
    save_file({"weight": torch.zeros(2)}, "mv.safetensors")
    assert main([*DREAM, "--prior", "sd:mv.safetensors"]) == 2
    assert "mv.safetensors is one file, as which MVDream is not read; give a folder" in capsys.readouterr().err
