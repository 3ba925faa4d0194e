"""ControlNets and InstructPix2Pix on the command line, from a mesh to a mesh, and everything that can be wrong."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_checkpoints
import torch
from PIL import Image
from tiny_assets import box

from threed import paint, pictures
from threed.cli import main
from threed.distill.folder import SHIPPED, UnreadablePrior
from threed.distill.hub import checkpoint, controlnet, download
from threed.distill.hub.instruct import Original
from threed.distill.hub.known import CONTROLS
from threed.edit_cli import Edit, as_text
from threed.exporters import glb
from threed.recipe import AssetSettings
from threed.recipes import RECIPES
from threed.renderers import surface
from threed.run import Control
from threed.single_view import PAPERS
from threed.start import begin
from threed.text_cli import Text, checked


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A mesh, Stable Diffusion, ControlNets for it and for another, and InstructPix2Pix."""
    folder = tmp_path_factory.mktemp("original")
    base = tiny_checkpoints.write(folder / "sd", "sd")
    tiny_checkpoints.write(folder / "pix2pix", "pix2pix")
    other = tiny_checkpoints.unet(context=24)
    for name, unet in (("depth", base.unet), ("other-normal", other)):
        tiny_checkpoints.controlnet(unet).save_pretrained(folder / name, safe_serialization=True)
    glb.write(box(), folder / "box.glb")
    return folder


@pytest.fixture
def here(original, tmp_path, monkeypatch):
    """A copy of them, in the folder in which commands are typed; assets are small and quick."""
    monkeypatch.setenv("THREED_CACHE", str(tmp_path / "cache"))
    shutil.copytree(original, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    small = AssetSettings(faces=300, texture_size=64, grid=24, smoothing=2)
    for name in ("repaint", "latent-paint"):
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], asset=small))
        monkeypatch.setitem(PAPERS, name, (replace(PAPERS[name][0], resolution=16),))
    monkeypatch.setattr(paint, "TEACHING_STEPS", 5)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.setattr(pictures, "turntable", partial(pictures.turntable, frames=2, size=32))
    monkeypatch.setattr(pictures, "preview", partial(pictures.preview, size=32))
    return tmp_path / "here"


def complaint(capsys, *arguments):
    """What a mistake is answered with, before anything is written."""
    code = main(list(arguments))
    said = capsys.readouterr().err
    assert code == 2, said
    assert not Path("outputs").exists()
    return said


SD, STEPS = "sd:sd/checkpoint", ["--steps", "1", "--format", "glb", "--texture-size", "64"]
LATENT = ["text", "a barrel", "--recipe", "latent-paint", "--start", "box.glb", "--prior", SD, *STEPS]


def looked(monkeypatch):
    """The sizes of the maps that are drawn from now on."""
    sizes, own = [], dict(controlnet.MAPS)
    drawn = {
        kind: lambda render, cameras, kind=kind: sizes.append(render.alpha.shape) or own[kind](render, cameras)
        for kind in own
    }
    monkeypatch.setattr(controlnet, "MAPS", drawn)
    return sizes


def test_a_mesh_is_painted_by_a_checkpoint_that_sees_its_depth(here, monkeypatch):
    """In the checkpoint's 16 pixels a side, not in the scene's 8 latents."""
    sizes = looked(monkeypatch)
    assert main([*LATENT, "--control", "depth", "--output", "one"]) == 0
    assert Path("one/asset.glb").stat().st_size > 1000
    assert {tuple(size) for size in sizes} == {(1, 16, 16, 1)}
    told = json.loads(Path("one/recipe.json").read_text())["control"]
    assert told == {"kind": "depth", "name": "depth", "strength": 1.0}
    assert main([*LATENT, "--control", "depth", "--control-strength", "0.5", "--output", "one", "--resume"]) == 2


def test_edits_are_steered_too(here):
    asked = Edit(Path("box.glb"), "a barrel", prior=SD, control="normal:depth", control_strength=0.5)
    request = checked(Text(**as_text(asked)))
    assert request.control == Control("normal", "depth", 0.5)
    assert request.recipe.name == "repaint"


def test_an_asset_is_changed_by_an_instruction(here, monkeypatch):
    """Beside the original, which lies where the scene lies, a solid that begins as it, too."""
    looks, own = [], Original.conditions

    def seen(self, prior, pictures, told):
        looks.append((self.asset, pictures))
        return own(self, prior, pictures, told)

    monkeypatch.setattr(Original, "conditions", seen)
    edit = ["edit", "box.glb", "make it golden", "--prior", "sd:pix2pix/checkpoint", *STEPS]
    assert main([*edit, "--output", "golden"]) == 0
    assert Path("golden/asset.glb").stat().st_size > 1000
    told = json.loads(Path("golden/recipe.json").read_text())["recipe"]
    assert told["wording"] is None
    assert told["stages"][0]["loss"]["scale"] == 7.5
    asset, shown = looks[0]
    original = surface.render(asset, shown.cameras, 64, 64)
    assert torch.equal(shown.scene(64).alpha, original.alpha)
    solid = begin("box.glb", "", 0, SHIPPED).render(shown.cameras)
    assert pictures.silhouette_iou(solid.alpha, original.alpha) > 0.9


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["text", "make it golden", "--recipe", "dreamfusion"],
            "is InstructPix2Pix, which changes what is there; use threed",
        ),
        (
            ["image", "box.png", "--recipe", "zero123"],
            "is InstructPix2Pix, which changes what is there; use threed edit",
        ),
        (
            ["edit", "box.glb", "make it golden", "--control", "depth"],
            "is InstructPix2Pix, and --control steers Stable",
        ),
    ],
)
def test_instructions_want_something_to_change(here, capsys, command, said):
    Image.new("RGB", (32, 32)).save("box.png")
    assert said in complaint(capsys, *command, "--prior", "sd:pix2pix/checkpoint")


def pickled(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def truncated(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change(path, **told):
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


WRONG = [
    (pickled, "diffusion_pytorch_model.bin is a pickle, which may run any code when it is read; use a safetensors"),
    (truncated, "depth/diffusion_pytorch_model.safetensors: it has "),
    (
        lambda folder: (folder / "config.json").unlink(),
        "there is no ControlNet 'depth'; give a folder as diffusers saves",
    ),
    (lambda folder: (folder / "config.json").write_text("{"), "depth/config.json: "),
    (lambda folder: (folder / "config.json").write_text("[]"), "depth/config.json: it is no table"),
    (
        lambda folder: change(folder / "config.json", _class_name="UNet2DConditionModel"),
        "depth is a UNet2DConditionModel, and --control wants a ControlNetModel or a T2IAdapter; use",
    ),
    (
        lambda folder: change(folder / "config.json", cross_attention_dim=24),
        "depth is not what its config.json says: 'down_blocks.1.attentions.0",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[f"{k}" for k in range(len(WRONG))])
def test_a_controlnet_that_cannot_be_used(here, spoil, said):
    spoil(here / "depth")
    with pytest.raises(UnreadablePrior, match=re.escape(said)):
        controlnet.verify(controlnet.found("depth"), checkpoint.found(SD))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--control", "other-normal"],
            "its cross_attention_dim is 24 and should be 16; use one that was trained for it",
        ),
        (["--control", "sd"], "'sd' does not say what it is steered by; write depth:sd or normal:sd"),
        (["--control", "depth-and-normal"], "'depth-and-normal' does not say what it is steered by"),
        (["--control", "depth:gone"], "there is no ControlNet 'gone'; give a folder as diffusers saves one"),
        (
            ["--control", "depth", "--control-strength", "-1"],
            "--control-strength is -1.0; it must lie between 0 and 10",
        ),
        (["--control-strength", "0.5"], "--control-strength is 0.5, and there is no --control; give one"),
        (
            ["--control", "depth", "--prior", "embedded"],
            "--control belongs to text-to-image checkpoints, and --prior is",
        ),
    ],
)
def test_flags_that_do_not_fit(here, capsys, flags, said):
    assert said in complaint(capsys, *LATENT, *flags)


def test_only_some_families_are_steered(here, capsys):
    tiny_checkpoints.write(here / "if", "if")
    said = complaint(capsys, *LATENT, "--control", "depth", "--prior", "sd:if/checkpoint")
    assert "is DeepFloyd IF, and --control steers Stable Diffusion 1, 2 and XL; leave it out" in said


def test_an_id_of_the_hub(here, monkeypatch):
    files = ["README.md", "config.json", "images/bird.png", "diffusion_pytorch_model.bin", "control.py"]
    weights = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"]
    assert controlnet.needed([*files, *weights]) == ["config.json", weights[0]]
    with pytest.raises(ValueError, match="its ControlNet is there as a pickle alone"):
        controlnet.needed(files)
    assert [controlnet.hub_id(name) for name in ("a/b", "a", "sd/checkpoint", "/a/b")] == ["a/b", None, None, None]
    asked = []
    monkeypatch.setattr(download, "downloaded", lambda *told: asked.append(told) or here / "depth")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    assert controlnet.fetched("owner/depth", print) == here / "depth"
    assert asked == [("owner/depth", print, controlnet.needed)]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(here / "depth" / file))
    assert controlnet.fetched("owner/depth", pytest.fail) == controlnet.found("owner/depth") == here / "depth"


def test_the_list_names_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["prior", "list"]) == 0
    said = capsys.readouterr().out
    assert all(f"--control {each.id}\n" in said and each.licence in said for each in CONTROLS)
    assert all(controlnet.named(each.id)[0] in each.what for each in CONTROLS)
