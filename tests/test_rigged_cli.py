"""Zero123++ and Wonder3D on the command line, and everything that can be wrong with their files."""

import re
import shutil
from pathlib import Path

import pytest
import tiny_rigged
import torch
from safetensors.torch import load_file, save_file
from test_hub_cli import change, complaint
from test_pictured import photo

from threed.checkpoint import load
from threed.cli import main
from threed.distill.folder import UnreadablePrior
from threed.distill.hub import checkpoint, download, shown
from threed.distill.hub.known import KNOWN
from threed.errors import Failure

DOCS = Path(__file__).parent.parent / "docs" / "priors.md"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with a checkpoint of each; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("originals")
    tiny_rigged.zero123plus(folder / "zero123plus")
    tiny_rigged.wonder3d(folder / "wonder3d")
    return folder


@pytest.fixture
def here(originals, tmp_path, monkeypatch):
    """A copy of it, and a picture, in which commands are typed."""
    shutil.copytree(originals, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    photo(tmp_path / "here" / "chair.png")
    return tmp_path / "here"


def image(name, recipe="zero123"):
    return ["image", "chair.png", "--recipe", recipe, "--prior", f"sd:{name}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            image("zero123plus"),
            "'sd:zero123plus' is Zero123++, which draws its views from its own cameras and no others",
        ),
        (
            image("wonder3d", "magic123"),
            "recipe 'magic123' asks for views from all around; use --recipe wonder3d",
        ),
        (
            ["text", "a chair", "--recipe", "dreamfusion", "--prior", "sd:wonder3d"],
            "the prior 'sd:wonder3d' is told a picture, and hears no words; use threed image",
        ),
        ([*image("zero123plus"), "--lora", "style.safetensors"], "--lora belongs to priors that hear words"),
    ],
)
def test_flags_that_do_not_fit(here, capsys, arguments, said):
    assert said in complaint(capsys, *arguments)


def shorter(path):
    path.write_bytes(path.read_bytes()[:-100])


def to_pickle(path):
    path.rename(path.with_suffix(".bin"))


def without(path, part):
    weights = load_file(path)
    save_file({name: each for name, each in weights.items() if part not in name}, path)


PLUS, WONDER, NETWORK = "zero123plus", "wonder3d", "unet/diffusion_pytorch_model.safetensors"
WRONG = [
    (PLUS, NETWORK, shorter, "diffusion_pytorch_model.safetensors: it has "),
    (
        PLUS,
        "vision_encoder/model.safetensors",
        to_pickle,
        "vision_encoder/model.bin is a pickle, which may run any code",
    ),
    (PLUS, "vision_encoder/model.safetensors", shorter, "vision_encoder/model.safetensors: it has "),
    (
        PLUS,
        "model_index.json",
        lambda path: change(path, ramping_coefficients=[0.5] * 9),
        "the number of ramping_coefficients is 9 and should be 77; copy the checkpoint's folder again",
    ),
    (
        PLUS,
        "model_index.json",
        lambda path: change(path, ramping_coefficients="steep"),
        "ramping_coefficients is 0 and",
    ),
    (
        PLUS,
        "vision_encoder/config.json",
        lambda path: change(path, projection_dim=20),
        "the projection_dim of the vision_encoder is 20 and should be 16",
    ),
    (PLUS, "feature_extractor_vae", shutil.rmtree, "there is nothing in zero123plus/feature_extractor_vae; copy"),
    (
        PLUS,
        "model_index.json",
        lambda path: change(path, unet=["pipeline", "RefOnlyNoisedUNet"]),
        "has a pipeline.RefOnlyNoisedUNet for its unet, and it has to be UNet2DConditionModel",
    ),
    (WONDER, NETWORK, shorter, "diffusion_pytorch_model.safetensors: it has "),
    (WONDER, NETWORK, to_pickle, "unet/diffusion_pytorch_model.bin is a pickle, which may run any code"),
    (
        WONDER,
        NETWORK,
        lambda path: without(path, "attn_joint_mid.to_q"),
        "attn_joint_mid.to_q.weight' is None and should be [16, 16]; the folder mixes two checkpoints",
    ),
    (
        WONDER,
        "unet/config.json",
        lambda path: change(path, cd_attention_mid=False),
        "cannot build the unet of wonder3d: its cd_attention_mid is False, and Wonder3D's is True",
    ),
    (
        WONDER,
        "unet/config.json",
        lambda path: change(path, num_views=4),
        "cannot build the unet of wonder3d: its num_views is 4, and Wonder3D's is 6",
    ),
    (
        WONDER,
        "image_encoder/config.json",
        lambda path: change(path, projection_dim=20),
        "the projection_dim of the image_encoder is 20 and should be 16",
    ),
    (
        WONDER,
        "model_index.json",
        lambda path: change(path, unet=["diffusers", "UNet2DConditionModel"]),
        "has a diffusers.UNet2DConditionModel for its unet, and it has to be UNetMV2DConditionModel",
    ),
]


@pytest.mark.parametrize(("name", "part", "spoil", "said"), WRONG, ids=[f"{k}" for k in range(len(WRONG))])
def test_a_checkpoint_that_cannot_be_used(here, name, part, spoil, said):
    spoil(here / name / part)
    with pytest.raises(UnreadablePrior, match=re.escape(said)):
        checkpoint.verify(checkpoint.found(f"sd:{name}"))


def test_a_file_or_a_lora_beside_it(here):
    save_file({"lora": torch.zeros(2)}, "style.safetensors")
    shutil.copytree("wonder3d", "style")
    for found in (checkpoint.found("style.safetensors"), checkpoint.found("sd:zero123plus", "style.safetensors")):
        with pytest.raises(UnreadablePrior, match=r"style\.safetensors (is one file|cannot be used)"):
            checkpoint.verify(found)


def test_only_what_is_used_is_downloaded():
    used = [
        "feature_extractor_clip/preprocessor_config.json",
        "feature_extractor_vae/preprocessor_config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vision_encoder/config.json",
        "vision_encoder/model.safetensors",
    ]
    assert download.needed([*used, "ComfyUI_00034_.png", "README.md", "inference.py", "unet/unet.py"]) == used
    wonder = ["feature_extractor/preprocessor_config.json", "image_encoder/model.safetensors", "model_index.json"]
    assert download.needed([*wonder, "unet/config.json"]) == [*wonder, "unet/config.json"]
    with pytest.raises(UnreadablePrior, match=r"make a folder of its numbers alone, see Pickles in docs/priors\.md"):
        download.needed(["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"])


def test_pickles_become_safetensors_as_the_documentation_says(here):
    """Its program, on a folder whose weights are pickles of numbers."""
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    before = {path: load_file(path) for path in sorted((here / "wonder3d").rglob("*.safetensors"))}
    assert len(before) == 3
    for path, weights in before.items():
        torch.save(weights, path.with_name(f"{path.stem.replace('model', 'pytorch_model', path.stem == 'model')}.bin"))
        path.unlink()
    with pytest.raises(UnreadablePrior, match="is a pickle"):
        checkpoint.verify(checkpoint.found("sd:wonder3d"))
    exec(program.replace("FOLDER", "wonder3d"), {})
    for path, weights in before.items():
        after = load_file(path)
        assert after.keys() == weights.keys()
        assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert shown.load(checkpoint.found("sd:wonder3d"), "cpu").name == "Wonder3D"


def test_the_list_has_them_with_their_licences(capsys):
    assert main(["prior", "list"]) == 0
    said = capsys.readouterr().out
    licences = {each.id: each.licence for each in KNOWN if f"sd:{each.id}\n" in said}
    assert licences["sudo-ai/zero123plus-v1.1"] == licences["sudo-ai/zero123plus-v1.2"] == "CC-BY-NC 4.0"
    assert licences["flamehaze1115/wonder3d-v1.0"] == "AGPL-3.0"


@pytest.mark.parametrize(("name", "pictures"), [(PLUS, 6), (WONDER, 12)])
def test_views_are_drawn_and_fitted_to(here, capsys, monkeypatch, name, pictures):
    """Up to the scene that was fitted: what networks of chance draw is no surface that one would care to unwrap."""

    def enough(shape, request):
        raise Failure("a scene was fitted")

    monkeypatch.setattr("threed.pictured.solidify", enough)
    monkeypatch.setattr("threed.views_first.RESOLUTION", 32)
    monkeypatch.setattr("threed.views_first.FIT", 2)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    assert main([*image(name, name), "--output", "out"]) == 1
    assert "a scene was fitted" in capsys.readouterr().err
    drawn = load(here / "out" / "views.safetensors")["pictures"]
    assert len(drawn) == pictures
    assert drawn.std() > 0.01
