"""What a user types after `threed image`, and what the program answers: every message, every exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from threed.cli import main
from threed.exporters import ENCODERS
from threed.recipes import LEARNS, RECIPES
from threed.run import Request, Run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Request]:
    """The pipeline, replaced by one that writes a small asset; the requests that reached it. And some pictures."""
    requests: list[Request] = []

    def picture_to_3d(request: Request, photograph: object, mask: object, how: str, run: Run) -> None:
        requests.append(request)
        with run.log.stage("export"):
            run.write("asset.glb", b"glb")

    module = types.ModuleType("threed.pictured")
    module.picture_to_3d = picture_to_3d
    monkeypatch.setitem(sys.modules, "threed.pictured", module)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.chdir(tmp_path)
    disc("chair.png", [(20, 20, 60, 60)])
    disc("plain.jpg", [], "RGB")
    disc("two.png", [(5, 20, 35, 50), (45, 20, 75, 50)])
    disc("cut.png", [(40, 20, 100, 60)])
    Path("half.png").write_bytes(Path("chair.png").read_bytes()[:120])
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    return requests


def disc(name: str, places: list[tuple[int, int, int, int]], mode: str = "RGBA") -> None:
    image = Image.new(mode, (80, 80), (0, 0, 0, 0)[: len(mode)])
    for place in places:
        ImageDraw.Draw(image).ellipse(place, fill="brown")
    image.save(name)


def test_the_defaults(asked: list[Request], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["image", "chair.png"]) == 0
    (request,) = asked
    assert (request.prompt, request.recipe, request.name) == ("", RECIPES["carved"], "chair")
    told = json.loads((tmp_path / "outputs" / "chair-0" / "recipe.json").read_text())["picture"]
    assert re.fullmatch("[0-9a-f]{64}", told.pop("digest"))
    assert told == {"name": "chair", "mask": None, "remove_background": True, "elevation": None, "fov": 40.0}
    assert "outputs/chair-0/asset.glb" in capsys.readouterr().out


def test_every_flag_reaches_the_request(asked: list[Request], tmp_path: Path) -> None:
    flags = "--output out --seed 7 --mask chair.png --elevation 20 --fov 30 --recipe lrm --prior embedded --format obj"
    flags += " --faces 500 --texture-size 256 --height 2.5 --device cpu"
    assert main(["image", "plain.jpg", "--prompt", " a  chair", *flags.split()]) == 0
    (request,) = asked
    asset, source = request.recipe.asset, request.picture
    assert (request.prompt, request.seed, request.formats, request.device) == ("a chair", 7, ("obj",), "cpu")
    assert (asset.faces, asset.texture_size, asset.height) == (500, 256, 2.5)
    assert source
    assert source.mask
    assert (source.elevation, source.fov, source.remove_background) == (20.0, 30.0, True)
    assert main(["image", "plain.jpg", "--no-remove-background"]) == 0
    assert asked[1].picture
    assert not asked[1].picture.remove_background


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "there is no picture 'none.png'; check the path"),
        (["."], "there is no picture '.'; check the path"),
        (["empty.png"], "'empty.png' is empty; save it again as PNG or JPEG"),
        (["text.png"], "'text.png' is no picture that can be read; save it again as PNG or JPEG"),
        (["half.png"], r"'half.png' is cut short or damaged \(.*\); copy it again, or save it again as PNG or JPEG"),
        (["plain.jpg"], "no object was found in the picture: it is all one colour; use another picture"),
        (
            ["two.png"],
            "several objects were found in the picture; crop it to one, or say which: give a mask with --mask.*",
        ),
        (["cut.png"], "the right border of the picture cuts the object; use a picture with the whole object in it, .*"),
        (["chair.png", "--mask", "none.png"], "there is no picture 'none.png'; check the path after --mask"),
        (["chair.png", "--mask", "text.png"], "'text.png' is no picture that can be read; .*"),
        (["chair.png", "--mask", "plain.jpg"], "no object was found in the picture; .*"),
        (
            ["chair.png", "--mask", "chair.png", "--no-remove-background"],
            "--mask and --no-remove-background contradict each other; give one of them",
        ),
        (["chair.png", "--elevation", "90"], "--elevation is 90.0; it must lie between -45 and 80"),
        (["chair.png", "--fov", "nan"], "--fov is nan; it must lie between 5 and 100"),
        (["chair.png", "--seed", "-1"], "--seed is -1; it must lie between 0 and .*"),
        (["chair.png", "--faces", "1"], "--faces is 1; it must lie between 100 and 60000"),
        (["chair.png", "--texture-size", "1000"], "--texture-size is 1000; it must be a power of two, for .* 1024"),
        (["chair.png", "--height", "0"], "--height is 0.0; it must lie between 0.001 and 1000"),
        (["chair.png", "--format"], "--format names nothing; give at least one, for example: --format glb"),
        (["chair.png", "--format", "fbx"], "unknown format 'fbx'; known: glb, gltf, obj, ply, stl, usdz"),
        (["chair.png", "--resume", "--overwrite"], "--resume and --overwrite contradict each other; give one of them"),
        (
            ["chair.png", "--recipe", "instant"],
            "recipe 'instant' makes assets of a text; use threed text, or another --recipe",
        ),
        (
            ["chair.png", "--recipe", "xyz"],
            "unknown recipe 'xyz'; known: carved, dreamcraft3d, lrm, magic123, realfusion, syncdreamer, wonder3d, "
            "zero123, zero123plus",
        ),
        (
            ["chair.png", "--prior", "xyz"],
            "unknown prior 'xyz'; it is neither embedded nor a folder with a prior.json; see: threed prior list",
        ),
        (
            ["chair.png", "--prompt", "very " * 30],
            "the prompt 'very very .*' takes 32 tokens of at most 16; shorten it",
        ),
        (["chair.png", "--device", "tpu"], "unknown device 'tpu'; .*known: auto, cpu, cuda, mps"),
        (["chair.png", "--output", "text.png"], "'text.png' is not a folder; choose another --output"),
    ],
)
def test_a_mistake_costs_one_line_and_no_work(
    asked: list[Request], capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["image", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"threed: {message}\n", err)
    assert asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "the prior 'prior' has no start; use --prior embedded, or train one"),
        ('{"picture": 0}', "the start of the prior 'prior' takes no pictures; use --prior embedded"),
        ("{", r"cannot use .*start.config\.json: .*"),
    ],
)
def test_a_prior_that_takes_no_pictures(
    asked: list[Request], capsys: pytest.CaptureFixture, tmp_path: Path, shape: str | None, message: str
) -> None:
    from threed.distill.folder import SHIPPED

    (tmp_path / "prior").mkdir()
    for name in ("tokenizer", "prior.json"):
        (tmp_path / "prior" / name).symlink_to(SHIPPED / name)
    if shape:
        (tmp_path / "prior" / "start").mkdir()
        (tmp_path / "prior" / "start" / "config.json").write_text(shape)
    assert main(["image", "chair.png", "--prior", "prior"]) == 2
    assert re.fullmatch(f"threed: {message}\n", capsys.readouterr().err)
    assert asked == []


def test_resume_belongs_to_one_picture(asked: list[Request], capsys: pytest.CaptureFixture) -> None:
    assert main(["image", "chair.png"]) == 0
    assert main(["image", "chair.png", "--resume"]) == 0
    assert main(["image", "chair.png", "--resume", "--fov", "20"]) == 2
    disc("chair.png", [(20, 20, 61, 61)])
    assert main(["image", "chair.png", "--resume"]) == 2
    err = capsys.readouterr().err
    assert "picture.fov was 40.0 and is 20.0 now" in err
    assert re.search("picture.digest was '[0-9a-f]{64}' and is '[0-9a-f]{64}' now; choose another --output", err)
    assert main(["image", "chair.png", "--overwrite"]) == 0


def test_ctrl_c_says_how_to_go_on(
    asked: list[Request], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["threed.pictured"], "picture_to_3d", stopped)
    assert main(["image", "chair.png", "--overwrite"]) == 130
    assert capsys.readouterr().err == "threed: stopped; continue with: threed image chair.png --resume\n"


def test_help_teaches(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main(["image", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    flags = "output seed prompt mask no-remove-background elevation fov recipe prior format faces texture-size height"
    for flag in (*flags.split(), *["loss", "scale", "negative", "start", "steps", "device", "resume", "overwrite"]):
        assert f"--{flag} " in text
    recipes = [recipe.name for recipe in RECIPES.values() if recipe.wants == "picture"]
    for known in (*recipes, *(suffix[1:] for suffix in ENCODERS), 'threed image chair.jpg --prompt "a wooden chair"'):
        assert known in text


def test_the_flags_of_text_change_the_recipe(asked: list[Request]) -> None:
    flags = "--recipe magic123 --loss csd --scale 3.5 --steps 14 --start volume --negative blurry"
    assert main(["image", "chair.png", *flags.split()]) == 0
    (request,) = asked
    assert (request.recipe.start, request.negative) == ("volume", "blurry")
    assert [(type(s.loss).__name__, s.loss and s.loss.scale) for s in request.recipe.stages] == [("CSD", 3.5)] * 2
    assert [stage.steps for stage in request.recipe.stages] == [8, 6]
    assert [stage.reference for stage in request.recipe.stages] == [s.reference for s in RECIPES["magic123"].stages]
    assert main(["image", "chair.png", "--steps", "3", "--output", "other"]) == 0
    assert [stage.steps for stage in asked[1].recipe.stages] == [3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--loss csd",
            "--loss needs a recipe that distils, and 'carved' does not; leave it out, or use --recipe zero123",
        ),
        ("--recipe lrm --steps 3", "--steps is 3, and recipe 'lrm' has none; leave it out, or use --recipe zero123"),
        ("--learn word", "--learn is 'word', and recipe 'carved' distils nothing; use --recipe realfusion"),
        ("--recipe realfusion --learn words", "unknown lesson 'words'; did you mean 'word'?"),
        ("--recipe zero123 --loss sdss", "unknown loss 'sdss'; did you mean 'sds'?"),
        ("--start sphere", "a sphere does not tell from where the picture was taken; use --start carved, volume, or"),
        ("--start none.glb", "there is no file 'none.glb' to start from"),
        ("--recipe zero123 --scale 1001", "--scale is 1001.0; it must lie between 0 and 1000"),
        ("--recipe magic3d", "recipe 'magic3d' makes assets of a text; use threed text, or another --recipe"),
        ("--recipe carvd", "unknown recipe 'carvd'; did you mean 'carved'?"),
    ],
)
def test_flags_that_do_not_go_together(
    asked: list[Request], flags: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["image", "chair.png", *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert asked == []
    assert not Path("outputs").exists()


def test_the_word_that_is_learned_is_one_of_the_prompts(asked: list[Request], capsys: pytest.CaptureFixture) -> None:
    """14 words and two markers are what the prior reads; a word more is too many."""
    learns = ["image", "chair.png", "--recipe", "realfusion", "--learn", "both", "--prompt"]
    assert main([*learns, "very " * 14]) == 2
    assert "takes 17 tokens of at most 16; shorten it" in capsys.readouterr().err
    assert main([*learns, "very " * 13]) == 0
    assert asked[0].recipe.learns == LEARNS
    assert main(["image", "chair.png", "--recipe", "realfusion", "--output", "other"]) == 0
    assert asked[1].recipe.learns is None


def test_a_text_cannot_be_carved(capsys: pytest.CaptureFixture) -> None:
    assert main(["text", "a chair", "--start", "carved"]) == 2
    assert "there is no picture to carve by; use threed image" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["image", "--help"], ["image", "none.png"]])
def test_quick_answers_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from threed.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'scipy', 'PIL', 'numba'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
