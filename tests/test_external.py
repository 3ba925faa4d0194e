"""Libraries of others behind the names of the primitives: what goes in and comes out, how they are turned on, and that
nothing else imports them.

Here `standin_libraries` stand for them; `pytest -m gpu` takes those that are installed.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import standin_libraries
import torch
from torch import Tensor

from threed import doctor, making
from threed.cli import main
from threed.errors import Mistake
from threed.log import Log
from threed.nerf import NeRF, NeRFConfig
from threed.recipes import RECIPES
from threed.renderers import external, ops, torch_ops
from threed.renderers.camera import orbit
from threed.renderers.external import nerfacc, nvdiffrast, tinycudann
from threed.renderers.ops import HashGrid
from threed.renderers.torch_ops import Fragments
from threed.train import seeded

NAMES = tuple(external.LIBRARIES)
GRID = HashGrid(levels=3, features=2, log2_table=9, coarsest=3, finest=11)  # one level dense, the others hashed


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was built by one stand-in, or by the library itself, is nothing to the next test."""
    yield
    tinycudann._encoding.cache_clear()
    nvdiffrast._context.cache_clear()
    ops._mixed.cache_clear()


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in standin_libraries.modules().items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


def everywhere(name: str) -> pytest.MarkDecorator:
    """On the processor by a stand-in, and on a GPU by the library itself."""
    there = torch.cuda.is_available() and external.installed(name)
    real = [pytest.mark.gpu, pytest.mark.skipif(not there, reason=f"no GPU, or no {name}")]
    return pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=real)], indirect=True)


@pytest.fixture
def where(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu":
        request.getfixturevalue("standins")
    return request.param


def agree(
    theirs: Callable[..., tuple[Tensor, ...]],
    ours: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    where: str,
    near: float = 1e-5,
) -> None:
    """Outputs, and the gradients of a random mean of them to all inputs."""
    results = []
    for function, device in ((theirs, where), (ours, "cpu")):
        given = [each.to(device).requires_grad_() for each in inputs]
        outputs = function(*given)
        loss = sum((each * torch.randn(each.shape, generator=seeded(9)).to(device)).sum() for each in outputs)
        gradients = torch.autograd.grad(loss, given)
        results.append([each.detach().cpu() for each in (*outputs, *gradients)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near * max(1.0, float(other.abs().max())))


@everywhere("tinycudann")
@pytest.mark.parametrize("features", [1, 3, 4, 11])
def test_tinycudann_encodes_the_same_table(where: str, features: int) -> None:
    x = 1.2 * torch.rand(300, 3, generator=seeded(0)) - 0.1
    table = torch.randn(GRID.size, features, generator=seeded(1))
    theirs, ours = (
        lambda x, table, encode=encode: (encode(x, table, GRID),)
        for encode in (tinycudann.hash_encode, torch_ops.hash_encode)
    )
    agree(theirs, ours, (x, table), where, 1e-4)
    nothing = tinycudann.hash_encode(x[:0].to(where), table.to(where), GRID)
    assert nothing.shape == (0, GRID.levels * features)


@everywhere("tinycudann")
def test_tinycudann_has_the_slope_and_its_gradients(where: str) -> None:
    x = torch.rand(200, 3, generator=seeded(0))
    table = torch.randn(GRID.size, 3, generator=seeded(1))
    v = torch.randn(200, GRID.levels * 3, generator=seeded(2))
    theirs, ours = (
        lambda table, v, backend=backend: (backend.hash_gradient(x.to(table), table, v, GRID),)
        for backend in (tinycudann, torch_ops)
    )
    agree(theirs, ours, (table, v), where, 1e-4)
    with torch.no_grad():
        assert not tinycudann.hash_gradient(x.to(where), table.to(where), v.to(where), GRID).requires_grad


@pytest.mark.parametrize("key", ["base_resolution", "log2_hashmap_size"])
def test_another_layout_is_refused(standins: None, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """As a version with another rule for the size of a level, or for which level is dense, would have it."""
    theirs = sys.modules["tinycudann"]

    def other(count, told, dtype):
        return standin_libraries.Encoding(count, told | {key: told[key] + 1}, dtype=dtype)

    monkeypatch.setattr(theirs, "Encoding", other)
    with pytest.raises(ValueError, match=r"tinycudann lays out .* in another way .* leave --backend tinycudann out"):
        tinycudann.hash_encode(torch.rand(3, 3), torch.zeros(GRID.size, 2), GRID)


@everywhere("nerfacc")
@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("step", [0.04, 0.3, 0.9])  # of cells of 0.25 m
def test_nerfacc_marches_to_the_contract(where: str, jittered: bool, step: float) -> None:
    generator = seeded(3)
    origins = 3 * torch.nn.functional.normalize(torch.randn(60, 3, generator=generator), dim=-1)
    origins[:8] /= 10  # within the cube
    directions = torch.nn.functional.normalize(torch.rand(60, 3, generator=generator) - 0.5 - origins / 3, dim=-1)
    directions[-5:] *= -1  # away from it
    occupied = torch.rand(8, 8, 8, generator=generator) < 0.4
    jitter = torch.rand(60, generator=generator) if jittered else None
    told = origins, directions, occupied, 1.0, step, jitter
    expected = torch_ops.march(*told)
    found = nerfacc.march(*(each.to(where) if isinstance(each, Tensor) else each for each in told))
    assert len(expected.ray) > 30
    for name in ("starts", "ray", "near", "far"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=0, atol=1e-6)
    empty = nerfacc.march(*(each.to(where) for each in (origins, directions, occupied & False)), 1.0, step)
    assert (empty.starts.tolist(), len(empty.ray)) == ([0] * 61, 0)


@everywhere("nerfacc")
def test_nerfacc_composites(where: str) -> None:
    origins = torch.tensor([[0.0, 0.1, 3.0], [0.2, 0.0, 3.0], [5.0, 0.0, 3.0]])  # the last one misses
    directions = torch.tensor([[0.0, 0.0, -1.0]]).expand(3, 3)
    packed = torch_ops.march(origins, directions, torch.ones(4, 4, 4, dtype=torch.bool), 1.0, 0.05)
    theirs_packed = ops.Packed(*(each.to(where) for each in vars(packed).values()))
    density = 4 * torch.rand(len(packed.ray), generator=seeded(0))
    values = torch.randn(len(packed.ray), 5, generator=seeded(1))
    agree(
        lambda density, values: nerfacc.composite(density, values, theirs_packed),
        lambda density, values: torch_ops.composite(density, values, packed),
        (density, values),
        where,
    )
    reaching = nerfacc.transmittance(density.to(where).requires_grad_(), theirs_packed)
    torch.testing.assert_close(reaching.cpu(), torch_ops.transmittance(density, packed))
    assert not reaching.requires_grad


def drawn() -> tuple[Tensor, Tensor]:
    """Two views of triangles anywhere, some of them behind the camera, others seen from behind."""
    generator = seeded(4)
    clip = torch.randn(2, 30, 4, generator=generator) * torch.tensor([1.5, 1.5, 0.5, 0.5])
    clip[..., 3] += 1
    return clip, torch.randint(30, (24, 3), generator=generator)


@everywhere("nvdiffrast")
def test_nvdiffrast_draws_the_same_picture(where: str) -> None:
    clip, faces = drawn()
    expected = torch_ops.rasterize(clip, faces, 24, 32)
    found = nvdiffrast.rasterize(clip.to(where).requires_grad_(), faces.to(where), 24, 32)
    same = found.face.cpu() == expected.face
    assert same.float().mean() > (0.98 if where == "cuda" else 0.9999)  # it snaps vertices to a lattice of its own
    assert 0.2 < (expected.face >= 0).float().mean() < 0.95
    for name in ("barycentric", "depth"):
        one, other = (getattr(each, name).cpu()[same] for each in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert found.face.dtype == torch.int32
    assert not found.barycentric.requires_grad
    nothing = nvdiffrast.rasterize(clip.to(where), faces[:0].to(where), 4, 6)
    assert (nothing.face == -1).all()
    assert (nothing.depth == 1).all()


def test_nvdiffrast_refuses_what_it_cannot_draw(standins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, faces = drawn()
    with pytest.raises(IndexError, match=r"faces of vertices . to 30, and there are 30"):
        nvdiffrast.rasterize(clip, faces.index_fill(0, torch.tensor([3]), 30), 4, 4)
    monkeypatch.setattr(nvdiffrast, "MOST_FACES", 23)
    with pytest.raises(ValueError, match="24 faces; nvdiffrast draws at most 23 at once"):
        nvdiffrast.rasterize(clip, faces, 4, 4)


@everywhere("nvdiffrast")
@pytest.mark.parametrize("shape", [(30, 3), (2, 30, 3)], ids=["shared", "per view"])
def test_nvdiffrast_interpolates(where: str, shape: tuple[int, ...]) -> None:
    clip, faces = drawn()
    seen = torch_ops.rasterize(clip, faces, 9, 7)

    def drawing(backend, device):
        def draw(attribute, barycentric):
            fragments = Fragments(seen.face.to(device), barycentric, seen.depth.to(device))
            return (backend.interpolate(attribute, faces.to(device), fragments),)

        return draw

    attribute = torch.randn(shape, generator=seeded(0))
    agree(drawing(nvdiffrast, where), drawing(torch_ops, "cpu"), (attribute, seen.barycentric), where)


@everywhere("nvdiffrast")
@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
@pytest.mark.parametrize(
    ("size", "trilinear"), [((6, 5), False), ((8, 4), True), ((6, 5), True), ((1, 1), True)], ids=str
)
def test_nvdiffrast_looks_up(where: str, wrap: str, size: tuple[int, int], trilinear: bool) -> None:
    image = torch.rand(*size, 3, generator=seeded(0))
    uv = 1.6 * torch.rand(4, 20, 2, generator=seeded(1)) - 0.3
    lod = 6 * torch.rand(4, 20, generator=seeded(2)) - 1
    theirs, ours = (
        (lambda image, uv, lod, b=backend: (b.texture(image, uv, wrap, lod) + 0 * lod[..., None],))
        if trilinear
        else (lambda image, uv, lod, b=backend: (b.texture(image, uv, wrap) + 0 * lod[..., None],))
        for backend in (nvdiffrast, torch_ops)
    )
    agree(theirs, ours, (image, uv, lod), where, 1e-4)
    made = ops.own(torch.device(where)).mipmap(image.to(where))
    handed, itself = (
        nvdiffrast.texture(each, uv.to(where), wrap, lod.to(where) if trilinear else None)
        for each in (made, image.to(where))
    )
    torch.testing.assert_close(handed, itself)
    assert nvdiffrast.texture(image.to(where), uv[:0].to(where), wrap).shape == (0, 20, 3)


def test_what_is_turned_on_takes_its_names_alone(standins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with ops.using(NAMES, lambda text: None):
        assert ops.ops(cpu) is ops.own(cpu)  # they are for CUDA alone
    monkeypatch.setattr(ops, "EXTERNAL", "cpu")
    ours, told = ops.own(cpu), []
    with ops.using(("nvdiffrast", "nerfacc"), told.append):
        mixed = ops.ops(cpu)
        assert {name for name in ours.__all__ if getattr(mixed, name) is not getattr(ours, name)} == {
            *nvdiffrast.__all__,
            *nerfacc.__all__,
        }
        assert mixed.antialias is ours.antialias  # which nvdiffrast has, too, and of which it is not asked
    assert ops.ops(cpu) is ours
    (notice,) = told
    assert "licence" in notice
    assert "not commercial use" in notice
    with pytest.raises(ValueError, match="unknown backend 'kaolin'; use one of tinycudann, nerfacc, nvdiffrast"):
        ops.using(("kaolin",), print).__enter__()


def test_a_scene_looks_the_same_by_any_of_them(standins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, looks = NeRF(NeRFConfig(GRID, samples=16, occupancy=8), seeded(0)), []
    monkeypatch.setattr(ops, "EXTERNAL", "cpu")
    for names in ((), ("tinycudann", "nerfacc")):
        with ops.using(names, print):
            render = scene.render(orbit(1), 12, seeded(1))
            gradients = torch.autograd.grad((render.rgb + render.normal).square().sum(), [*scene.parameters()])
            looks.append((render.rgb, render.alpha, render.depth, render.normal, *gradients))
    for ours, theirs in zip(*looks, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


DREAM = RECIPES["dreamfusion"]


def test_a_library_is_ready_before_any_work(standins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert making.backends_of(("nerfacc", "nvdiffrast", "nerfacc"), "cuda", DREAM) == ("nerfacc", "nvdiffrast")
    for names, device, recipe, message in (
        (("nerfac",), "cuda", DREAM, "unknown backend 'nerfac'; did you mean 'nerfacc'"),
        (("nerfacc",), "mps", DREAM, "--backend nerfacc needs a CUDA device and this run has 'mps'; use --device cuda"),
        (("nerfacc",), "cuda", RECIPES["instant"], "recipe 'instant' optimises nothing .*; leave it out"),
    ):
        with pytest.raises(Mistake, match=message):
            making.backends_of(names, device, recipe)
    monkeypatch.setattr(external, "installed", lambda name: False)
    with pytest.raises(Mistake, match="nerfacc is not installed; try: pip install nerfacc, or leave --backend nerf"):
        making.backends_of(("nerfacc",), "cuda", DREAM)


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tinycudann.py").write_text("raise OSError('no extension for this compute capability')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    assert external.installed("tinycudann")
    with pytest.raises(Mistake, match=r"tinycudann does not load \(no extension for .*\); build it .*, or leave"):
        making.backends_of(("tinycudann",), "cuda", DREAM)
    assert [f.found for f in doctor.backends() if f.what == "tinycudann"] == [
        "installed; --backend tinycudann turns it on"
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backend nerfacc", "--backend nerfacc needs a CUDA device and this run has 'cpu'; use --device cuda"),
        ("--backend gsplat", "unknown backend 'gsplat'; known: nerfacc, nvdiffrast, tinycudann"),
        pytest.param(
            "--backend nerfacc --device cuda",
            "PyTorch finds no device 'cuda' on this machine; use one of: .*",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_mistakes_end_at_once(
    flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["text", "a barrel", "--recipe", "dreamfusion", *flags.split()]) == 2
    assert importlib.import_module("re").search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_the_licence_reaches_screen_and_log(standins: None, tmp_path: Path) -> None:
    log = Log(tmp_path)
    with ops.using(("nvdiffrast",), log.note):
        assert "not commercial use" in (tmp_path / "log.txt").read_text()


PIPELINE = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from threed import doctor, pipeline
from threed.distill.gaussian import Gaussian
from threed.exporters import export
from threed.nerf import NeRFConfig
from threed.recipes import RECIPES
from threed.renderers.ops import HashGrid
from threed.run import Request, Run
from threed.solid import SolidConfig
from threed.tets import TetConfig
finding, = [each for each in doctor.backends() if each.what == "nvdiffrast"]
assert finding.found.startswith("installed"), finding
recipe = RECIPES["magic3d"]
nerf = NeRFConfig(HashGrid(levels=2, coarsest=4, finest=8), samples=16, occupancy=8, resolution=16)
solid = SolidConfig(TetConfig(resolution=8), resolution=16)
stages = tuple(replace(s, scene=scene, steps=1) for s, scene in zip(recipe.stages, (nerf, solid)))
recipe = replace(recipe, stages=stages, asset=replace(recipe.asset, faces=100, texture_size=64, grid=16))
request = Request("a barrel", recipe)
with Run.create(Path("run"), request) as run:
    shape = pipeline.shaped(request, run, Gaussian(torch.zeros(3, 16, 16), torch.ones(3, 16, 16)))
export(pipeline.solidify(shape, request), Path("asset.glb"))
assert Path("asset.glb").exists()
assert not {"nvdiffrast", "nerfacc", "tinycudann"} & set(sys.modules)
"""


def test_nothing_imports_them_by_itself(tmp_path: Path) -> None:
    """A volume, its surface, an asset, and the doctor, in a new process that finds all three: each tells when it is."""
    for name in NAMES:
        package = tmp_path / "found" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"open({str(tmp_path / name)!r}, 'w').close()\n")
    paths = [str(tmp_path / "found"), str(Path(__file__).parent.parent)]

    def run(program: str) -> None:
        program = f"import sys; sys.path[:0] = {paths!r}\n{program}"
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)

    run(PIPELINE)
    assert not [name for name in NAMES if (tmp_path / name).exists()]
    run("import nvdiffrast")  # that the file tells
    assert (tmp_path / "nvdiffrast").exists()
