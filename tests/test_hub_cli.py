"""Checkpoints of others on the command line: by every kind of name, and everything that can be wrong with one."""

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_checkpoints
import torch
from huggingface_hub.hf_api import BlobLfsInfo
from safetensors.torch import load_file, save_file

from threed import pictures
from threed.cli import main
from threed.distill.folder import SHIPPED, located
from threed.distill.hub import checkpoint, download
from threed.distill.hub.known import KNOWN
from threed.recipe import AssetSettings
from threed.recipes import RECIPES
from threed.single_view import PAPERS, single_view

DREAM = ["text", "a barrel", "--recipe", "dreamfusion"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a Stable Diffusion checkpoint; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("original")
    tiny_checkpoints.write(folder, "sd")
    return folder / "checkpoint"


@pytest.fixture
def sd(original, tmp_path, monkeypatch):
    """A copy of it, in the folder in which commands are typed."""
    monkeypatch.setenv("THREED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "sd")
    return tmp_path / "sd"


def complaint(capsys, *arguments):
    """What a mistake is answered with, before anything is written."""
    code = main(list(arguments))
    said = capsys.readouterr().err
    assert code == 2, said
    assert not Path("outputs").exists()
    return said


def change(path, **told):
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def test_a_text_becomes_an_asset_by_a_checkpoint(sd, capsys, monkeypatch):
    recipe = RECIPES["dreamfusion"]
    small = replace(recipe, asset=AssetSettings(faces=300, texture_size=64, grid=32, smoothing=2))
    monkeypatch.setitem(RECIPES, "dreamfusion", small)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.setattr(pictures, "turntable", partial(pictures.turntable, frames=2, size=32))
    monkeypatch.setattr(pictures, "preview", partial(pictures.preview, size=32))
    assert main([*DREAM, "--prior", "sd:sd", "--steps", "2", "--format", "glb"]) == 0
    run = Path("outputs/a-barrel-0")
    recipe = json.loads((run / "recipe.json").read_text())
    assert (run / "asset.glb").stat().st_size > 1000
    assert recipe["prior"] == "sd:sd"
    stage = recipe["recipe"]["stages"][0]
    assert (stage["loss"]["scale"], stage["kinds"], stage["views"]["count"]) == (100.0, ["albedo"], 1)
    assert recipe["recipe"]["wording"]["strength"] == 1.0
    words = list(Path("cache/prompts").iterdir())
    assert len(words) == 8  # the prompt alone and with four views, the views that are led aside from, and nothing
    capsys.readouterr()
    assert main([*DREAM, "--prior", "sd:sd", "--steps", "3", "--resume"]) == 2  # another recipe


def pickled(sd):
    path = sd / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def truncated(sd):
    path = sd / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pointer(sd):
    (sd / "vae" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def mixed(sd):
    path = sd / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"conv_in.weight": torch.zeros(16, 9, 3, 3)}, path)


def lacking(sd):
    path = sd / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_out.bias"]
    save_file(weights, path)


WRONG = [
    (pickled, "diffusion_pytorch_model.bin is a pickle, which may run any code when it is read; use a safetensors"),
    (truncated, "text_encoder/model.safetensors: it has "),
    (pointer, "only its beginning (or a pointer of Git LFS); copy or download it again"),
    (mixed, "'conv_in.weight' is [16, 9, 3, 3] and should be [16, 4, 3, 3]; the folder mixes two checkpoints"),
    (lacking, "'conv_out.bias' is None and should be [4]"),
    (lambda sd: shutil.rmtree(sd / "vae"), "there is nothing in sd/vae; copy the checkpoint's folder again"),
    (lambda sd: (sd / "model_index.json").write_text("{"), "cannot read sd/model_index.json"),
    (
        lambda sd: change(sd / "model_index.json", _class_name="MVDreamStableDiffusionPipeline"),
        "sd is MVDream in another layout (MVDreamStableDiffusionPipeline), which is not supported yet; use",
    ),
    (
        lambda sd: change(sd / "model_index.json", _class_name="KandinskyPipeline"),
        "sd is a KandinskyPipeline; checkpoints may be one of: FluxPipeline, IFPipeline, MVDiffusion",
    ),
    (
        lambda sd: change(sd / "model_index.json", unet=["pipeline", "Evil"]),
        "sd has a pipeline.Evil for its unet, and it has to be UNet2DConditionModel; use another checkpoint",
    ),
    (lambda sd: (sd / "unet" / "config.json").write_text('{"in_channels": "many"}'), "cannot build the unet of sd"),
    *(
        (
            lambda sd, path=path: (sd / path).write_text("[]"),
            f"cannot read sd/{path}: it is no table; copy the checkpoint's folder again",
        )
        for path in ("unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
    ),
    (lambda sd: (sd / "tokenizer" / "tokenizer_config.json").write_text("{"), "tokenizer_config.json: Expecting prop"),
    (
        lambda sd: change(sd / "vae" / "config.json", block_out_channels=[8, 16]),
        "the vae of sd is not what its config.json says: it has 87 weights less, such as one of [8, 16, 1, 1]; the",
    ),
    (
        lambda sd: change(sd / "vae" / "config.json", latent_channels=3),
        "the vae of sd is not what its config.json says",
    ),
    (
        lambda sd: change(sd / "text_encoder" / "config.json", hidden_size=32),
        "sd cannot be Stable Diffusion 1 and 2: the width of what its text encoders say is 32 and should be 16; copy",
    ),
    (
        lambda sd: change(sd / "model_index.json", _class_name="StableDiffusionInstructPix2PixPipeline"),
        "sd cannot be InstructPix2Pix: the in_channels of the unet is 4 and should be 8",
    ),
    (
        lambda sd: change(sd / "scheduler" / "scheduler_config.json", prediction_type="banana"),
        "the scheduler of sd says that its network predicts 'banana', which nobody knows; use another checkpoint",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[f"{k}" for k in range(len(WRONG))])
def test_a_checkpoint_that_cannot_be_used(sd, capsys, spoil, said):
    spoil(sd)
    assert said in complaint(capsys, *DREAM, "--prior", "sd:sd")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--prior", "sd:gone"],
            "there is no checkpoint 'gone'; give a folder in diffusers' layout, a .safetensors file",
        ),
        (["--prior", "old.ckpt"], "old.ckpt is a pickle, which may run any code when it is read"),
        (["--prior", "sd:sd/unet"], "'sd/unet' has no model_index.json; give the folder that has it"),
        (
            ["--prior", "alone.safetensors"],
            "nothing says what 'alone.safetensors' looks like inside; put the model_index",
        ),
        (["--prior", "sd:sd", "--lora", "gone.safetensors"], "there is no LoRA 'gone.safetensors'; check the path"),
        (["--prior", "sd:sd", "--lora", "style.pt"], "style.pt is a pickle"),
        (
            ["--prior", "sd:sd", "--lora", "none.safetensors"],
            "'none.safetensors' has no LoRA weights; give one to --lora",
        ),
        (["--lora", "none.safetensors"], "--lora belongs to text-to-image checkpoints, and --prior is 'embedded'"),
        (["--prior", "sd:sd", "--recipe", "instant"], "recipe 'instant' asks no prior of pictures; use --recipe dream"),
    ],
)
def test_flags_that_do_not_fit(sd, capsys, flags, said):
    Path("old.ckpt").write_bytes(b"pickle")
    Path("style.pt").write_bytes(b"pickle")
    save_file({"weight": torch.zeros(2)}, "none.safetensors")
    save_file({"weight": torch.zeros(2)}, "alone.safetensors")
    assert said in complaint(capsys, *DREAM, *flags)


@pytest.mark.parametrize("command", [["prior", "sample", "x"], ["prior", "evaluate", "sd"]])
def test_commands_that_want_a_prior_of_this_program(sd, capsys, command):
    said = complaint(capsys, *command, "--prior", "sd:sd")
    assert "'sd:sd' is a checkpoint of others, which only threed text, image and edit ask; use embedded" in said


def test_too_long_a_prompt(sd, capsys):
    assert main(["text", "barrels " * 40, "--recipe", "dreamfusion", "--prior", "sd:sd"]) == 2
    assert "shorten it to at most 77" in capsys.readouterr().err


class Hub:
    """A hub with one repository, or one error."""

    def __init__(self, files=(), error=None, sums=None):
        self.files, self.error, self.sums = files, error, sums or {}

    def model_info(self, name, files_metadata):
        if self.error:
            raise self.error
        siblings = [
            SimpleNamespace(rfilename=each, size=10**8, lfs=self.sums.get(each) and BlobLfsInfo(9, self.sums[each], 9))
            for each in self.files
        ]
        return SimpleNamespace(siblings=siblings)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's library, whose cache is empty and whose network is `reply(...)`."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *told: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def reply(snapshot=None, **told):
        asked = []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(**told))
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.extend(allow_patterns) or snapshot
        )
        return asked

    return reply


def http(kind):
    import httpx2
    from huggingface_hub import errors

    return getattr(errors, kind)("no", response=httpx2.Response(403, request=httpx2.Request("GET", "https://x")))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            lambda: http("GatedRepoError"),
            "is gated: read and accept its licence at https://huggingface.co/DeepFloyd/IF, then",
        ),
        (
            lambda: http("RepositoryNotFoundError"),
            "the hub has no 'DeepFloyd/IF', or it is private; see: threed prior list",
        ),
        (lambda: http("HfHubHTTPError"), "cannot download 'DeepFloyd/IF': "),
        (
            lambda: ConnectionError("no route"),
            "cannot download 'DeepFloyd/IF': no route; try again, or copy the checkpoint",
        ),
    ],
)
def test_a_hub_that_says_no(sd, hub, capsys, error, said):
    hub(error=error())
    assert said in complaint(capsys, *DREAM, "--prior", "sd:DeepFloyd/IF")


def test_what_cannot_be_compiled(sd, capsys, monkeypatch):
    assert "--compile belongs to text-to-image checkpoints" in complaint(capsys, *DREAM, "--compile")
    monkeypatch.setattr("shutil.which", lambda name: None)
    said = complaint(capsys, *DREAM, "--prior", "sd:sd", "--compile")
    assert "--compile needs a C++ compiler, and none is found; install one, or leave --compile out" in said


def test_offline_means_offline(sd, hub, capsys, monkeypatch):
    import huggingface_hub

    hub(error=AssertionError("the network was used"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = complaint(capsys, *DREAM, "--prior", "sd:owner/name")
    assert "'owner/name' is not whole in " in said
    assert "HF_HUB_OFFLINE is set; unset it, or copy the checkpoint here and give its folder" in said


def test_only_what_is_used_is_downloaded_and_a_line_says_so(sd, hub):
    files = [
        "README.md",
        "model_index.json",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/config.json",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "safety_checker/model.safetensors",
    ]
    asked, lines = hub(snapshot=str(sd), files=files), []
    assert download.fetched("owner/name", lines.append) == sd
    assert asked == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert lines[0].startswith(
        "downloading owner/name (1.0 GB, safetensors alone) from https://huggingface.co/owner/name into"
    )


def test_what_came_is_what_the_hub_has(hub, tmp_path, capsys):
    """By the sum that it states of a file in Git LFS; another one is removed, from behind its name too."""
    files = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "s/vae").mkdir(parents=True)
    (tmp_path / "s" / files[2]).symlink_to(tmp_path / "blob")
    sums = {files[2]: hashlib.sha256(b"weights").hexdigest(), "README.md": "of what is not wanted"}
    lines = []
    hub(snapshot=str(tmp_path / "s"), files=files, sums=sums)
    assert download.fetched("owner/name", lines.append) == tmp_path / "s"
    assert lines[1] == "1 of 3 files have the SHA-256 that the hub states; for the others it states none"
    (tmp_path / "blob").write_bytes(b"Weights")
    said = complaint(capsys, *DREAM, "--prior", "sd:owner/name")
    assert (
        f"{files[2]} has the SHA-256 {hashlib.sha256(b'Weights').hexdigest()}, and the hub states {sums[files[2]]}"
        in said
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["s", "vae"]


def test_a_repository_of_pickles_is_not_downloaded(sd, hub, capsys):
    hub(files=["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"])
    assert "its unet is there as a pickle alone" in complaint(capsys, *DREAM, "--prior", "sd:owner/name")


def test_what_the_cache_has_whole_needs_no_network(sd, hub, monkeypatch):
    import huggingface_hub

    hub(error=AssertionError("the network was used"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *told: str(sd / "model_index.json"))
    assert download.fetched("owner/name", print) == sd
    assert checkpoint.found("sd:owner/name").folder == sd


def test_names(sd):
    assert checkpoint.hub_id("sd:owner/name") == "owner/name"
    for name in ("sd:sd/unet", "owner/name", "sd:a/b/c", "sd:/x"):
        assert checkpoint.hub_id(name) is None
    assert [checkpoint.is_checkpoint(name) for name in ("sd", "sd:x", "x.safetensors", "embedded", "sd/unet")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert located("sd:sd") == located("sd") == SHIPPED
    (sd / "unet" / "diffusion_pytorch_model.safetensors").rename(
        sd / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    assert checkpoint.found("sd").variant("unet") == "fp16"
    assert checkpoint.found("sd").variant("vae") is None
    checkpoint.verify(checkpoint.found("sd"))


def test_the_list_needs_no_network(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["prior", "list"]) == 0
    said = capsys.readouterr().out
    assert all(f"sd:{each.id}\n" in said and each.licence in said for each in KNOWN)
    assert said.startswith("embedded\n")
    assert "in the local cache" not in said


def test_every_recipe_that_distils_has_a_papers_numbers():
    distils = {name for name, recipe in RECIPES.items() if any(stage.loss for stage in recipe.stages)}
    assert set(PAPERS) == distils
    for name in distils:
        recipe, ours = single_view(RECIPES[name]), RECIPES[name]
        assert recipe.wording
        for stage, was in zip(recipe.stages, ours.stages, strict=True):
            assert stage.kinds in (("albedo",), ("normal",), ("shaded",))
            assert type(stage.loss) is type(was.loss)
            assert stage.steps > was.steps
            assert (stage.terms, stage.reference) == (was.terms, was.reference)
    assert single_view(RECIPES["dreamfusion"], 20.0).stages[0].loss.scale == 20.0
    assert single_view(RECIPES["prolificdreamer"], 20.0).stages[0].loss.scale == 7.5
