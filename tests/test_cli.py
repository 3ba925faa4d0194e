"""What a user types, and what the program answers: every message, every exit code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from threed import __version__, disk, doctor
from threed.cli import main
from threed.distill.losses import LOSSES
from threed.distill.worded import Wording
from threed.errors import FULL, Failure, unknown
from threed.exporters import ENCODERS
from threed.recipe import FAULTS
from threed.recipes import RECIPES
from threed.run import Request, Run
from threed.text_cli import Text

ROOT = Path(__file__).resolve().parent.parent
BARREL = "a wooden barrel"
DREAM = [BARREL, "--recipe", "dreamfusion"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Request]:
    """The pipeline, replaced by one that writes a small asset; the requests that reached it."""
    requests: list[Request] = []

    def text_to_3d(request: Request, run: Run) -> None:
        requests.append(request)
        with run.log.stage("export"):
            run.write("asset.glb", b"glb")

    pipeline(monkeypatch, text_to_3d)
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return requests


def pipeline(monkeypatch: pytest.MonkeyPatch, text_to_3d: Callable[[Request, Run], None]) -> None:
    module = types.ModuleType("threed.pipeline")
    module.text_to_3d = text_to_3d
    monkeypatch.setitem(sys.modules, "threed.pipeline", module)


def failing(error: BaseException) -> Callable[[Request, Run], None]:
    def text_to_3d(request: Request, run: Run) -> None:
        raise error

    return text_to_3d


def test_the_defaults_are_the_recipes(asked: list[Request], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["text", "  a wooden\n barrel "]) == 0
    assert asked == [Request(BARREL, RECIPES["instant"])]
    assert json.loads((tmp_path / "outputs" / "a-wooden-barrel-0" / "recipe.json").read_text())["prompt"] == BARREL
    printed = capsys.readouterr().out
    assert "outputs/a-wooden-barrel-0/asset.glb" in printed
    assert "peak memory" in printed


def test_a_recipes_negative_prompt_gives_way_to_the_users(asked: list[Request]) -> None:
    small = ["--recipe", "nfsd", "--steps", "1"]
    assert main(["text", BARREL, *small]) == 0
    assert main(["text", BARREL, *small, "--negative", "a  chair", "--output", "other"]) == 0
    assert main(["text", BARREL, "--recipe", "sjc", "--output", "third"]) == 0
    negative = RECIPES["nfsd"].negative
    assert negative
    assert [request.negative for request in asked] == [negative, "a chair", ""]


def test_every_flag_reaches_the_request(asked: list[Request], tmp_path: Path) -> None:
    flags = (
        "--output out --seed 7 --recipe dreamfusion --prior embedded --negative chair --steps 5 --format obj GLB .obj"
    )
    flags += " --faces 500 --texture-size 256 --height 2.5 --device cpu"
    assert main(["text", BARREL, *flags.split()]) == 0
    request = asked[0]
    recipe = request.recipe
    assert (request.seed, request.negative, request.formats) == (7, "chair", ("obj", "glb"))
    assert (recipe.stages[0].steps, recipe.asset.faces, recipe.asset.texture_size, recipe.asset.height) == (
        5,
        500,
        256,
        2.5,
    )
    assert (tmp_path / "out" / "asset.glb").exists()


@pytest.mark.parametrize("name", LOSSES)
def test_any_recipe_goes_under_any_loss(asked: list[Request], name: str) -> None:
    """At its own timesteps, and at the guidance scale that was asked for; with a negative prompt where it needs one."""
    assert main(["text", *DREAM, "--loss", name, "--scale", "3"]) == 0
    (before,), (after,) = RECIPES["dreamfusion"].stages, asked[0].recipe.stages
    assert isinstance(after.loss, LOSSES[name])
    assert (after.loss.scale, after.loss.t_min, after.loss.t_max) == (3.0, before.loss.t_min, before.loss.t_max)
    assert (after.scene, after.steps, after.particles) == (before.scene, before.steps, 1)
    assert asked[0].negative == (FAULTS if name == "nfsd" else "")


def test_every_particle_has_as_many_steps(asked: list[Request]) -> None:
    assert main(["text", BARREL, "--recipe", "prolificdreamer", "--particles", "3", "--negative", "a crate"]) == 0
    before, after = RECIPES["prolificdreamer"].stages, asked[0].recipe.stages
    assert [stage.particles for stage in after] == [3, 1, 3]
    assert [stage.steps for stage in after] == [3 * before[0].steps, before[1].steps, 3 * before[2].steps]
    assert asked[0].negative == "a crate"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], 'the prompt is empty; say what to make, for example: threed text "a wooden barrel"'),
        (["very " * 30], "the prompt '(very ){19}v \\.{3}' takes 32 tokens of at most 16; shorten it"),
        (["x\udcff"], r"the prompt 'x\\udcff' is not UTF-8; type it anew, or check the locale \(LANG\)"),
        ([BARREL, "--negative", "\udcff"], r"the negative '\\udcff' is not UTF-8; type it anew, or .*"),
        ([BARREL, "--output", "x" * 256], "the file system takes no name as long as 'x{256}'; give a shorter one"),
        (
            [BARREL, "--negative", "very " * 30],
            "the --negative 'very very .*' takes 32 tokens of at most 16; shorten it",
        ),
        ([BARREL, "--recipe", "DreamFuson"], "unknown recipe 'DreamFuson'; did you mean 'dreamfusion'\\? known: .*"),
        ([BARREL, "--recipe", "lrm"], "recipe 'lrm' makes assets of a picture; use threed image, or another --recipe"),
        ([BARREL, "--recipe", "xyz"], "unknown recipe 'xyz'; known: .*dreamfusion.*"),
        (
            [BARREL, "--prior", "embeded"],
            "unknown prior 'embeded'; it is neither embedded nor a folder with a prior.json; see: threed prior list",
        ),
        (
            [BARREL, "--start", "cube"],
            r"unknown start 'cube'; use sphere, volume, or a mesh file \(\.glb, \.gltf, \.obj, \.ply, \.stl, \.usdz\)",
        ),
        (
            [BARREL, "--start", "no.glb"],
            r"there is no file 'no\.glb' to start from; check the path, or use --start volume",
        ),
        (
            [BARREL, "--recipe", "instant", "--start", "sphere"],
            "recipe 'instant' would end with the sphere; use --start volume, a mesh file, or another --recipe",
        ),
        (
            [BARREL, "--recipe", "instant", "--steps", "9"],
            "--steps is 9, and recipe 'instant' has none; leave it out, or use --recipe dreamfusion",
        ),
        ([BARREL, "--loss", "vsd"], "--loss needs a recipe that distils, .*'instant' does not; .*--recipe dreamfusion"),
        ([*DREAM, "--loss", "nsfd"], "unknown loss 'nsfd'; did you mean 'nfsd'\\? known: bsd, csd, .*"),
        ([*DREAM, "--scale", "-2"], "--scale is -2.0; it must lie between 0 and 1000"),
        ([*DREAM, "--particles", "0"], "--particles is 0; it must lie between 1 and 64"),
        (
            [*DREAM, "--particles", "2"],
            "particles share what a loss learns, and these stages' learn nothing; use --loss vsd",
        ),
        (
            [BARREL, "--recipe", "mvdream", "--loss", "nfsd"],
            "rescale is 0.5, and nfsd compares no contrasts; leave it at 0",
        ),
        ([*DREAM, "--perp-neg", "-1"], "--perp-neg is -1.0; it must lie between 0 and 100"),
        ([BARREL, "--view-words"], "--view-words needs a recipe that distils, .*'instant' does not; .*"),
        (
            ["very " * 12, *DREAM[1:], "--perp-neg", "1"],
            "the prompt '(very )+very, front view' takes 17 tokens of at most 16; shorten it",
        ),
        (
            [*DREAM, "--scale", "1", "--negative", "a crate"],
            "--negative is 'a crate', and at a guidance scale of 1 nothing is led away from it; "
            "leave it out, or use another --scale",
        ),
        (
            [BARREL, "--recipe", "latent-paint", "--start", "volume"],
            "recipe 'latent-paint' paints a mesh, and --start is 'volume'; give it a mesh file",
        ),
        (
            [BARREL, "--recipe", "repaint"],
            "recipe 'repaint' begins with a mesh; give it one with --start, or use threed edit",
        ),
        (
            [BARREL, "--recipe", "sketch-shape"],
            "recipe 'sketch-shape' begins with a mesh; give it one with --start, or use threed edit",
        ),
        (
            [BARREL, "--recipe", "sketch-shape", "--start", "sphere"],
            "recipe 'sketch-shape' keeps to a shape; use --start with a mesh file, or volume",
        ),
        ([BARREL, "--format", "glb", "fbx"], "unknown format 'fbx'; known: glb, gltf, obj, ply, stl, usdz"),
        (
            [BARREL, "--format", "glbb"],
            "unknown format 'glbb'; did you mean 'glb'\\? known: glb, gltf, obj, ply, stl, usdz",
        ),
        ([BARREL, "--format"], "--format names nothing; give at least one, for example: --format glb"),
        ([BARREL, "--device", "gpu"], "unknown device 'gpu'; did you mean 'cpu'\\? known: auto, cpu, cuda, mps"),
        ([BARREL, "--device", "tpu9000"], "unknown device 'tpu9000'; known: auto, cpu, cuda, mps"),
        ([BARREL, "--seed", "-1"], "--seed is -1; it must lie between 0 and 9223372036854775807"),
        ([BARREL, "--steps", "0"], "--steps is 0; it must lie between 1 and 100000"),
        ([BARREL, "--faces", "99"], "--faces is 99; it must lie between 100 and 60000"),
        ([BARREL, "--texture-size", "8192"], "--texture-size is 8192; it must lie between 64 and 4096"),
        ([BARREL, "--texture-size", "1000"], "--texture-size is 1000; it must be a power of two, for example 1024"),
        ([BARREL, "--height", "0"], "--height is 0.0; it must lie between 0.001 and 1000"),
        ([BARREL, "--height", "nan"], "--height is nan; it must lie between 0.001 and 1000"),
        ([BARREL, "--output", "file"], "'file' is not a folder; choose another --output"),
        ([BARREL, "--output", "file/in"], r"cannot write into 'file/in' \(Not a directory\); choose another --output"),
        ([BARREL, "--resume", "--overwrite"], "--resume and --overwrite contradict each other; give one of them"),
    ],
)
def test_a_mistake_costs_one_line_and_no_work(
    asked: list[Request], capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    assert main(["text", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"threed: {message}\n", err)
    assert asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_prompts_name_views_and_lead_aside_from_others(asked: list[Request]) -> None:
    for number, (flags, strength) in enumerate(
        ((["--view-words"], 0.0), (["--perp-neg", "2"], 2.0), (["--view-words", "--perp-neg", "0.5"], 0.5))
    ):
        assert main(["text", *DREAM, *flags, "--output", str(number)]) == 0
        assert asked[-1].recipe.wording == Wording(strength=strength)
        assert asked[-1].recipe.stages == RECIPES["dreamfusion"].stages
    assert main(["text", *DREAM, "--output", "none"]) == 0
    assert asked[-1].recipe.wording is None


@pytest.mark.parametrize("loss", LOSSES)
def test_a_negative_prompt_that_a_loss_hears_at_scale_1_is_taken(asked: list[Request], loss: str) -> None:
    code = main(["text", *DREAM, "--loss", loss, "--scale", "1", "--negative", "a crate"])
    assert code == (0 if loss in {"nfsd", "csd", "sdi", "bsd"} else 2)


def test_particles_beyond_memory_are_refused_before_any_stage(
    asked: list[Request], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a later stage, too."""
    monkeypatch.setattr("threed.particles.total_memory", lambda: 2**27)
    assert main(["text", BARREL, "--recipe", "prolificdreamer", "--particles", "64"]) == 2
    assert re.fullmatch(
        r"threed: 64 particles of \d\.\d million numbers do not fit; use at most \d+\n", capsys.readouterr().err
    )
    assert asked == []


def test_a_device_that_is_not_there(
    asked: list[Request], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert main(["text", BARREL, "--device", "cuda"]) == 2
    expected = "threed: PyTorch finds no device 'cuda' on this machine; use one of: cpu, auto\n"
    assert capsys.readouterr().err == expected


def test_corrupt_weights(asked: list[Request], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    prior.mkdir()
    (prior / "prior.json").write_text("{}")
    (prior / "SHA256SUMS").write_text(f"{hashlib.sha256(b'other').hexdigest()}  prior.json\n")
    assert main(["text", BARREL, "--prior", str(prior)]) == 2
    assert re.fullmatch("threed: cannot use .*prior.json: its checksum differs.*; .* again\n", capsys.readouterr().err)
    assert asked == []
    assert not (tmp_path / "outputs").exists()


def test_resume_and_overwrite(asked: list[Request], capsys: pytest.CaptureFixture) -> None:
    assert main(["text", BARREL]) == 0
    capsys.readouterr()
    assert main(["text", BARREL]) == 2
    assert "already holds this run (recipe.json); continue it with --resume, replace it with" in capsys.readouterr().err
    assert main(["text", BARREL, "--resume"]) == 0
    assert main(["text", BARREL, "--resume", "--faces", "300"]) == 2
    assert "recipe.asset.faces was 8000 and is 300 now; choose another --output" in capsys.readouterr().err
    assert main(["text", BARREL, "--overwrite", "--faces", "300"]) == 0
    assert len(asked) == 3


def test_what_is_finished_is_not_made_again(asked: list[Request], tmp_path: Path) -> None:
    command = ["text", BARREL, "--format", "glb", "--resume", "--output", "out"]
    for file, runs in (("report.json", 1), ("asset.glb", 2)):  # all is there; then a file has gone
        assert main(command) == 0
        (tmp_path / "out" / "report.json").write_text("{}")
        assert main(command) == 0
        assert len(asked) == runs
        (tmp_path / "out" / file).unlink()


def test_ctrl_c_says_how_to_go_on(
    asked: list[Request], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline(monkeypatch, failing(KeyboardInterrupt()))
    assert main(["text", BARREL, "--seed", "3", "--overwrite"]) == 130
    continued = "threed text 'a wooden barrel' --seed 3 --resume"
    assert capsys.readouterr().err == f"threed: stopped; continue with: {continued}\n"


@pytest.mark.parametrize("number", sorted(FULL))
def test_a_full_disk_says_how_to_go_on(
    asked: list[Request], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pipeline(monkeypatch, failing(OSError(number, os.strerror(number), "asset.glb")))
    assert main(["text", BARREL]) == 1
    expected = r"threed: the disk is full \(.*'asset.glb'\); free 50 MB and continue with: threed text .* --resume\n"
    assert re.fullmatch(expected, capsys.readouterr().err)


def test_a_run_that_cannot_go_on_says_why(
    asked: list[Request], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline(monkeypatch, failing(Failure("the volume is empty; try another --seed")))
    assert main(["text", BARREL]) == 1
    assert capsys.readouterr().err == "threed: the volume is empty; try another --seed\n"


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(errno.EIO, "a broken disk")])
def test_a_defect_keeps_its_traceback(asked: list[Request], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    pipeline(monkeypatch, failing(error))
    with pytest.raises(type(error), match=r"a (defect|broken disk)"):
        main(["text", BARREL])


@pytest.mark.parametrize("arguments", [["text"], ["text", "a", "barrel"], ["text", "x", "--faces", "many"]])
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "threed" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"threed {__version__}\n"


def test_help_teaches(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in ([], ["--help"], ["text", "--help"], ["doctor", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    text = capsys.readouterr().out
    flags = "output seed recipe loss scale particles view-words perp-neg start prior negative steps format faces "
    flags += "texture-size height device resume overwrite"
    for flag in flags.split():
        assert f"--{flag} " in text
    assert 'threed text "a small green pine tree" --seed 3' in text
    assert "100 to 60000" in text
    recipes = [recipe.name for recipe in RECIPES.values() if recipe.wants == "text"]
    for known in (*recipes, *(suffix[1:] for suffix in ENCODERS)):
        assert known in text


@pytest.mark.parametrize("arguments", [["--help"], ["text", "--help"], ["text", ""], ["text", "x", "--faces", "1"]])
def test_quick_answers_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from threed.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'diffusers', 'transformers', 'numba'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)


def test_head_may_close_the_pipe() -> None:
    command = f"{sys.executable} -m threed text --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_nearest_name() -> None:
    assert str(unknown("recipe", "GLB", ["glb", "obj"])) == "unknown recipe 'GLB'; did you mean 'glb'? known: glb, obj"


def test_the_doctor_finds_a_healthy_machine(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for what in ("Python", "torch", "threads", "bfloat16", "memory", "output", "numba kernels", "embedded prior"):
        assert what in printed
    assert "FAIL" not in printed


def test_the_doctor_names_what_is_missing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("threed.distill.folder.SHIPPED", tmp_path)
    monkeypatch.setitem(doctor.TESTED, "no-such-package", "1.0")
    monkeypatch.setitem(doctor.TESTED, "numpy", "0.1")
    monkeypatch.setattr(disk, "write", failing_write)
    monkeypatch.setattr("threed.machine.total_memory", lambda: 10**9)
    assert main(["doctor"]) == 1
    rows = {row.split("│")[2].strip(): row for row in capsys.readouterr().out.splitlines() if row.startswith("│")}
    assert re.search("FAIL.*cannot use .*SHA256SUMS.*reinstall the package", rows["embedded prior"])
    assert re.search("FAIL.*not installed.*pip install no-such-package==1.0", rows["no-such-package"])
    assert re.search("NOTE.*tested with 0.1", rows["numpy"])
    assert re.search("FAIL.*Read-only file system.*give --output", rows["output"])
    assert re.search("NOTE.*1.0 GB.*takes up to 2 GB: close other programs", rows["memory"])


def failing_write(*_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken():
        yield 1 / 0

    (finding,) = doctor.examine(broken)
    assert (finding.state, finding.what) == ("FAIL", "broken")
    assert "ZeroDivisionError" in finding.found


def test_the_tested_versions_are_the_pinned_ones() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {name: pins[name] for name in doctor.TESTED} == doctor.TESTED


def test_the_default_recipe_exists() -> None:
    assert Text("").recipe in RECIPES
