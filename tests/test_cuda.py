"""The CUDA backend on random shapes against float64, and what stands between its sources and a launch.

Without a GPU the kernels run on the processor (`cuda_on_cpu`), are compiled for real architectures, and are launched
into a driver that only writes down what it is told. `pytest -m gpu` runs what needs one.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_on_cpu import COMPILER
from torch import Tensor
from torch.nn import functional

from threed import doctor
from threed.errors import Mistake
from threed.making import device_of
from threed.renderers import cuda_ops, ops, torch_ops
from threed.renderers.cuda_ops import compiler, driver, launch
from threed.renderers.cuda_ops.compiler import Compiler, Unavailable
from threed.renderers.ops import HashGrid, Packed

SOURCES = sorted(path.stem for path in Path(launch.__file__).parent.glob("*.cu"))
DEVICES = pytest.mark.parametrize(
    ("where", "shapes"),
    [
        pytest.param("cpu", 8, marks=pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")),
        pytest.param(
            "cuda", 100, marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
        ),
    ],
)
COUNTS = (0, 1, 2, 31, 33, 255, 256, 257, 1000)  # of threads, around the sizes of warps and blocks


class Draw:
    """Random sizes and numbers, in the single precision that both sides start from."""

    def __init__(self, seed: int, where: str) -> None:
        self.generator, self.where = torch.Generator().manual_seed(seed), where

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_of(self, choices: tuple[int, ...]) -> int:
        return choices[self.integer(0, len(choices) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)


def agree(
    draw: Draw, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], learned: tuple[int, ...]
) -> None:
    """Outputs, and the gradients of a random mean of them, within 1e-4 of the reference in float64.

    The function takes a backend and tensors, of which those of these indices are `learned`.
    """
    found, expected = [], []
    for backend, results, to in (
        (cuda_ops, found, lambda each: each.to(draw.where)),
        (torch_ops, expected, lambda each: each.double() if each.is_floating_point() else each),
    ):
        given = [to(each).requires_grad_(n in learned) for n, each in enumerate(inputs)]
        outputs = function(backend, *given)
        results += outputs
        if learned:
            weights = torch.Generator().manual_seed(0)
            loss = sum((each * to(torch.randn(each.shape, generator=weights))).sum() for each in outputs)
            results += torch.autograd.grad(loss, [given[n] for n in learned], allow_unused=True)
    for ours, exact in zip(found, expected, strict=True):
        if exact is None or ours is None:  # nothing was drawn that depends on it
            assert exact is None or not exact.any()
            assert ours is None or not ours.any()
            continue
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.cpu().double(), exact, rtol=1e-4, atol=1e-4 * max(1, _largest(exact)))


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


@DEVICES
def test_hash_grids_of_random_shapes(where: str, shapes: int) -> None:
    for seed in range(shapes):
        draw = Draw(seed, where)
        coarsest = draw.integer(2, 9)
        grid = HashGrid(
            draw.integer(1, 6), draw.integer(1, 5), draw.integer(3, 12), coarsest, draw.integer(coarsest, 60)
        )
        x = _inside_cells(draw, draw.one_of(COUNTS), grid)
        table, g = draw.normal(grid.size, grid.features), draw.normal(len(x), grid.levels * grid.features)

        def everything(backend, x, table, g, u, grid=grid):
            encoded, slope = backend.hash_encode(x, table, grid), backend.hash_gradient(x, table, g, grid)
            second = torch.autograd.grad(slope, (table, g), u, retain_graph=True)
            return encoded, slope, *second

        agree(draw, everything, (x, table, g, draw.normal(len(x), 3)), (1, 2))


def _inside_cells(draw: Draw, count: int, grid: HashGrid) -> Tensor:
    """Points that single precision puts into the cells that double precision puts them into; some outside the cube."""
    x = 1.2 * draw.uniform(2 * count, 3) - 0.1
    fractions = torch.stack([(x.clamp(0, 1).double() * scale + 0.5) % 1 for scale in grid.scales])
    return x[((fractions > 1e-3) & (fractions < 1 - 1e-3)).all(-1).all(0)][:count]


@DEVICES
def test_rays_of_random_shapes(where: str, shapes: int) -> None:
    """Marches are equal to the bit; composites and their gradients are near those of float64."""
    for seed in range(shapes):
        draw = Draw(seed, where)
        rays, cells = draw.one_of(COUNTS), draw.integer(1, 20)
        origins = draw.normal(rays, 3)
        directions = functional.normalize(draw.normal(rays, 3) - origins, dim=-1)
        jitter, occupied = draw.uniform(rays), draw.uniform(cells, cells, cells) < 0.4
        bound, step = 0.5 + float(draw.uniform()), 0.03 + 0.3 * float(draw.uniform())
        expected = torch_ops.march(origins, directions, occupied, bound, step, jitter)
        given = (each.to(where) for each in (origins, directions, occupied))
        found = cuda_ops.march(*given, bound, step, jitter.to(where))
        for name in ("starts", "ray", "near", "far"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name

        def everything(backend, near, far, density, values, packed=expected):
            packed = Packed(packed.starts.to(near.device), packed.ray.to(near.device), near, far)
            return *backend.composite(density, values, packed), backend.transmittance(density, packed)

        samples = len(expected.ray)
        density, values = 10 ** (5 * draw.uniform(samples) - 3), draw.normal(samples, draw.integer(1, 9))
        agree(draw, everything, (expected.near, expected.far, density, values), (2, 3))


@DEVICES
def test_surfaces_of_random_shapes(where: str, shapes: int) -> None:
    """Which face is seen is the same at every pixel; all that follows from it is near float64."""
    for seed in range(shapes):
        draw = Draw(seed, where)
        views, height, width = draw.integer(1, 3), draw.integer(1, 40), draw.integer(1, 70)
        vertices, channels = draw.integer(3, 60), draw.integer(1, 6)
        clip = draw.normal(views, vertices, 4)
        clip[..., 3] = 1.7 * draw.uniform(views, vertices) + draw.one_of((-1, 1)) * 0.3  # behind the camera, or not
        faces = torch.randint(0, vertices, (draw.integer(0, 50), 3), generator=draw.generator)
        if seed % 2:  # all is there twice, at the same depth
            clip, faces, vertices = clip.repeat(1, 2, 1), torch.cat([faces, faces + vertices]), 2 * vertices
        seen = torch_ops.rasterize(clip, faces, height, width)
        found = cuda_ops.rasterize(clip.to(where), faces.to(where), height, width)
        assert torch.equal(found.face.cpu(), seen.face)
        torch.testing.assert_close(found.depth.cpu(), seen.depth, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.barycentric.cpu(), seen.barycentric, rtol=1e-5, atol=1e-6)
        attribute = draw.normal(views, vertices, channels)

        def shaded(backend, attribute, barycentric, depth, face, faces):
            return (backend.interpolate(attribute, faces, backend.Fragments(face, barycentric, depth)),)

        fragments = seen.barycentric, seen.depth, seen.face
        if len(faces):
            agree(draw, shaded, (attribute, *fragments, faces), (0, 1))

        def outlined(backend, colour, clip, barycentric, depth, face, faces):
            edges = backend.edges(faces)
            return (backend.antialias(colour, clip, backend.Fragments(face, barycentric, depth), edges),)

        agree(draw, outlined, (draw.uniform(views, height, width, channels), clip, *fragments, faces), (0, 1))


@DEVICES
def test_screen_derivatives_of_random_shapes(where: str, shapes: int) -> None:
    for seed in range(shapes):
        draw = Draw(seed, where)
        clip = draw.normal(2, 30, 4)
        clip[..., 3] = 1 + draw.uniform(2, 30)
        faces = torch.randint(0, 30, (20, 3), generator=draw.generator)
        seen = torch_ops.rasterize(clip, faces, draw.integer(1, 30), draw.integer(1, 30))

        def derivatives(backend, attribute, clip, barycentric, depth, face, faces):
            fragments = backend.Fragments(face, barycentric, depth)
            return (backend.screen_derivatives(attribute, faces, clip, faces, fragments),)

        attribute = draw.normal(30, draw.integer(1, 4))
        agree(draw, derivatives, (attribute, clip, seen.barycentric, seen.depth, seen.face, faces), ())


@DEVICES
def test_textures_of_random_shapes(where: str, shapes: int) -> None:
    for seed in range(shapes):
        draw = Draw(seed, where)
        height, width, count = draw.integer(1, 40), draw.integer(1, 40), draw.one_of(COUNTS)
        size = torch.tensor([width, height])
        uv = 3 * draw.uniform(count, 2) - 1
        place = torch.stack([uv * (size // 2**level).clamp(min=1) - 0.5 for level in range(6)])
        uv = uv[((place - place.round()).abs() > 1e-3).all(-1).all(0)]  # where the look-up has one slope
        lod, wrap = 7 * draw.uniform(len(uv)) - 1, draw.one_of(("clamp", "repeat"))

        def looked_up(backend, image, uv, lod, wrap=wrap):
            return backend.texture(image, uv, wrap), backend.texture(image, uv, wrap, lod)

        agree(draw, looked_up, (draw.normal(height, width, draw.integer(1, 5)), uv, lod), (0, 1, 2))


@pytest.fixture(scope="module")
def nvrtc() -> Compiler:
    try:
        return compiler.nvrtc()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("file", SOURCES)
@pytest.mark.parametrize(
    ("architecture", "real"),
    [("sm_75", "float"), ("sm_80", "float"), ("sm_90", "double"), ("sm_120", "float")],
)
def test_kernels_compile_and_keep_to_registers(nvrtc: Compiler, file: str, architecture: str, real: str) -> None:
    options = (*launch.OPTIONS, f"-Dreal={real}", "-DFEATURES=2", "--ptxas-options=-v")
    image, log = nvrtc.compile(launch.source(file), architecture, options)
    assert image.startswith(b"\x7fELF")
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert used == [("0", "0", "0")] * len(launch.kernels(file))


def test_a_source_that_does_not_compile_says_where(nvrtc: Compiler) -> None:
    with pytest.raises(RuntimeError, match='identifier "nothing" is undefined'):
        nvrtc.compile("KERNEL f() { nothing(); }", "sm_90", ["-DKERNEL=extern __global__ void"])


@pytest.mark.parametrize(
    ("capability", "architecture"), [(75, "sm_75"), (87, "sm_86"), (90, "sm_90"), (121, "sm_120"), (130, "compute_120")]
)
def test_architectures(capability: int, architecture: str) -> None:
    """Machine code of a generation runs on its later chips, and PTX on later generations."""
    known = SimpleNamespace(version=(13, 0), capabilities=(75, 86, 90, 120))
    assert Compiler.architecture(known, capability) == architecture


def test_a_gpu_that_is_too_old() -> None:
    known = SimpleNamespace(version=(13, 0), capabilities=(75, 80))
    with pytest.raises(
        Unavailable, match=r"capability 6\.1 is too old for NVRTC 13\.0, which starts at 7\.5; use a ne"
    ):
        Compiler.architecture(known, 61)


def test_a_driver_that_is_too_old() -> None:
    driver.check_driver((13, 0), (12, 9))
    driver.check_driver((12, 2), (12, 9))  # minor versions do not matter
    with pytest.raises(Unavailable, match=r"driver is for CUDA 12\.9 .* for CUDA 13\.5; update the driver"):
        driver.check_driver((12, 9), (13, 5))


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_libraries", lambda: ["/nowhere/libnvrtc.so.13"])
    monkeypatch.setattr(compiler, "_NAMES", ())
    with pytest.raises(Unavailable, match=r"no NVRTC.*; pip install nvidia-cuda-nvrtc"):
        compiler.nvrtc.__wrapped__()


class Counting:
    """A compiler that counts what it does."""

    version, done = (13, 0), 0

    def compile(self, source: str, architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
        self.done += 1
        return f"{source} {architecture} {options}".encode(), ""


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    counted = Counting()
    monkeypatch.setattr(compiler, "nvrtc", lambda: counted)
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path / "threed" / "kernels")
    return counted


def test_what_was_compiled_is_kept(counting: Counting) -> None:
    made = {compiler.compiled(*each) for each in (("a", "sm_90", ()), ("a", "sm_80", ()), ("b", "sm_90", ("-O",))) * 2}
    assert len(made) == counting.done == 3
    counting.version = (13, 1)
    assert compiler.compiled("a", "sm_90", ()) in made
    assert counting.done == 4


@pytest.mark.parametrize("content", [b"", b"x", lambda whole: whole[:-1], lambda whole: whole[:40] + b"!" + whole[41:]])
def test_a_broken_file_is_compiled_anew(counting: Counting, content: bytes | Callable[[bytes], bytes]) -> None:
    image = compiler.compiled("source", "sm_90", ())
    (path,) = compiler.cache_folder().iterdir()
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    assert compiler.compiled("source", "sm_90", ()) == compiler.compiled("source", "sm_90", ()) == image
    assert counting.done == 2
    assert list(compiler.cache_folder().iterdir()) == [path]


def test_a_folder_that_cannot_be_written(counting: Counting, tmp_path: Path) -> None:
    (tmp_path / "threed").write_text("no folder")
    assert compiler.compiled("a", "sm_90", ()) == compiler.compiled("a", "sm_90", ())
    assert counting.done == 2


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.cache_folder() == tmp_path / "threed" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiler.cache_folder() == tmp_path / ".cache" / "threed" / "kernels"


def transmittance(**changes: object) -> None:
    given = {"count": 1, "density": torch.ones(2), "starts": torch.tensor([0, 2]), "near": torch.zeros(2)}
    given |= {"far": torch.ones(2), "reaching": torch.zeros(2)} | changes
    launch.launch("packed", "transmittance", *given.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": torch.ones(2).half()}, "computes in float32 and float64, not torch.float16"),
        ({"near": torch.ones(2).double()}, "near is a tensor of torch.float32, not torch.float64"),
        ({"starts": torch.tensor([0, 2]).int()}, "starts is a tensor of torch.int64, not torch.int32"),
        ({"reaching": torch.ones(4)[::2]}, "reaching is written to, but not contiguous"),
        ({"near": torch.ones(2, device="meta")}, "of tensors on cpu, meta"),
        ({"count": 2**40}, "more than a launch has"),
        ({"more": 3}, "takes 5 arguments, not 6"),
    ],
)
def test_arguments_are_what_the_source_declares(changes: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        transmittance(**changes)


def test_numbers_are_what_the_source_declares() -> None:
    def accumulate(channels: object) -> None:
        values = torch.ones(2, 1)
        launch.launch("packed", "accumulate", 1, values, torch.ones(2), torch.tensor([0, 2]), channels, values[:1])

    for wrong in (torch.tensor(1), None):
        with pytest.raises(TypeError, match="channels is a number"):
            accumulate(wrong)
    with pytest.raises(OverflowError, match="channels is 4294967297, more than int holds"):
        accumulate(2**32 + 1)


class Driver:
    """A driver that does nothing, and writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def called(*arguments: object) -> int:
            self.told.append((name, *arguments))
            return 0

        return called

    def cuLaunchKernel(self, function: object, *given: object) -> int:
        *grid, stream, parameters, more = given
        count = ctypes.cast(parameters[0], ctypes.POINTER(ctypes.c_int64)).contents.value
        density = ctypes.cast(parameters[1], ctypes.POINTER(ctypes.c_void_p)).contents.value
        self.told.append(("launch", grid, stream.value, len(parameters), count, density, more))
        return 0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, counting: Counting) -> Iterator[list[tuple[object, ...]]]:
    """What a driver is told, of launches with tensors of the CPU."""
    fake = Driver()
    monkeypatch.setattr(driver, "_driver", lambda: fake)
    monkeypatch.setattr(driver, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(driver, "_index", lambda device: 0)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setitem(launch.LOADERS, "cpu", driver.Program)
    launch.program.cache_clear()
    driver._primary.cache_clear()
    yield fake.told
    launch.program.cache_clear()
    driver._primary.cache_clear()


def test_what_the_driver_is_told(told: list[tuple[object, ...]]) -> None:
    density = torch.ones(2)
    assert driver.obstacle(density.device) is None
    told.clear()
    driver._primary.cache_clear()
    for _ in range(2):
        transmittance(count=300, density=density)
    names = [each[0] for each in told]
    assert names[:4] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"]
    assert [names.count(each) for each in ("cuModuleLoadData", "cuModuleGetFunction", "launch")] == [1, 1, 2]
    assert names.count("cuCtxPushCurrent_v2") == names.count("cuCtxPopCurrent_v2") == 3
    assert told[-2] == ("launch", [2, 1, 1, 256, 1, 1, 0], 77, 6, 300, density.data_ptr(), None)
    transmittance(count=0)
    assert len(told) == len(names)  # nothing to do


def test_a_driver_that_fails(told: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "cuModuleLoadData", lambda *_: 209, raising=False)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData: .*\(209\)"):
        transmittance()
    assert re.fullmatch(r"cuModuleLoadData: .*\(209\)", str(driver.obstacle(torch.device("cpu"))))
    assert [each[0] for each in told][-2:] == ["cuGetErrorString", "cuCtxPopCurrent_v2"]


def test_the_gpu_gets_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "obstacle", lambda device: None)
    assert ops.backend.__wrapped__(torch.device("cuda")) == "cuda_ops"


def test_a_gpu_without_kernels_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "obstacle", lambda device: "there is no NVRTC; pip install it")
    with pytest.warns(UserWarning, match="slow primitives: there is no NVRTC; pip install it"):
        assert ops.backend.__wrapped__(torch.device("cuda", 7)) == "torch_ops"


def test_no_device_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "finds no CUDA device; see" in str(driver.obstacle(torch.device("cuda")))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that PyTorch speaks of."""
    spoken = SimpleNamespace(there=True, capability=(9, 0), memory=140e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: spoken.there)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "H200")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: spoken.capability)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda: SimpleNamespace(total_memory=spoken.memory), raising=False
    )
    return spoken


def test_auto_is_a_gpu_that_can_do_it(gpu: SimpleNamespace) -> None:
    assert device_of("auto") == device_of("cuda") == "cuda"
    assert device_of("cpu") == "cpu"
    gpu.memory = 1e9
    assert device_of("auto") == "cpu"
    gpu.there = False
    assert device_of("auto") == "cpu"
    with pytest.raises(Mistake, match="did you mean 'auto'"):
        device_of("autoo")


def test_a_gpu_that_cannot_do_it(gpu: SimpleNamespace) -> None:
    gpu.capability = 6, 1
    with pytest.raises(
        Mistake, match=r"H200 has compute capability 6\.1 and this PyTorch needs 7\.5; use --device cpu"
    ):
        device_of("cuda")
    gpu.capability, gpu.memory = (7, 5), 1e9
    with pytest.raises(Mistake, match=r"H200 has 1\.0 GB and a run takes up to 2 GB; use --device cpu"):
        device_of("cuda")


def test_a_driver_that_is_too_old_for_pytorch(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which then sees no GPU at all."""
    gpu.there = False
    monkeypatch.setattr(driver, "version", lambda: (11, 4))
    monkeypatch.setattr("torch.version.cuda", "12.8")
    said = "the driver is for CUDA 11.4 and this PyTorch for 12.8; update the driver"
    with pytest.raises(Mistake, match=f"finds no device 'cuda' on this machine: {re.escape(said)}, or use --device"):
        device_of("cuda")
    (cuda,) = doctor.graphics()
    assert (cuda.state, cuda.remedy) == ("NOTE", said)
    assert device_of("auto") == "cpu"
    monkeypatch.setattr(driver, "version", lambda: (12, 1))
    assert doctor.unseen() == ""


def test_what_the_doctor_says_of_a_gpu(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "version", lambda: (12, 4))
    monkeypatch.setattr(compiler, "nvrtc", lambda: SimpleNamespace(version=(12, 9)))
    monkeypatch.setattr(driver, "obstacle", lambda device: None)
    cuda, nvrtc = doctor.graphics()
    assert (cuda.state, cuda.found) == ("OK", "H200, compute capability 9.0, 140.0 GB")
    assert (nvrtc.state, nvrtc.found) == ("OK", "12.9")
    monkeypatch.setattr(driver, "obstacle", lambda device: "there is no NVRTC; pip install it")
    _, nvrtc = doctor.graphics()
    assert (nvrtc.state, nvrtc.remedy) == ("NOTE", "pip install it")
    gpu.memory = 1e9
    (cuda,) = doctor.graphics()
    assert cuda.state == "NOTE"
    gpu.there = False
    (cuda,) = doctor.graphics()  # this PyTorch is for CPUs, but there is a driver
    assert ("a PyTorch with CUDA" in cuda.remedy) == (torch.version.cuda is None)
