"""What a run takes is counted, and what fits is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_checkpoints
import torch

from threed import memory
from threed.cli import main
from threed.distill.hub import checkpoint, text_to_image
from threed.distill.hub.checkpoint import Checkpoint
from threed.distill.prior import Pictures
from threed.errors import Mistake
from threed.memory import Footprint, Live, applied, footprint, frugal, need, planned, sides
from threed.pipeline import load
from threed.recipe import Recipe
from threed.recipes import RECIPES
from threed.renderers.camera import orbit
from threed.run import Thrift
from threed.single_view import single_view
from threed.text_cli import Text, checked
from threed.train import seeded

CPU = torch.device("cpu")
NAMES = ("sd", "sd3", "if")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        tiny_checkpoints.write(folder / name, name)
    return {name: folder / name / "checkpoint" for name in NAMES}


def found(folder: Path) -> Checkpoint:
    return checkpoint.found(f"sd:{folder}")


def test_what_lives_is_counted_and_what_has_gone_is_not() -> None:
    x = torch.ones(1000)
    with Live([x]) as live:
        kept = x * 2
        gone = [x * 3, x * 4]
        view = kept[:10]  # which takes nothing
        x.add_(1)
        assert (live.bytes, live.peak) == (12_000, 12_000)
        gone.clear()
        assert (live.bytes, live.peak) == (4_000, 12_000)
        half = view.new_empty(500, dtype=torch.float16)
    del kept, view
    assert (live.bytes, live.peak) == (half.nbytes, 12_000)


@pytest.mark.parametrize("depth", [3, 6])
def test_a_gradient_keeps_what_it_needs(depth: int) -> None:
    """Of a chain of exponentials, every result: closed form, on tensors without numbers as on real ones."""
    peaks = []
    for device in ("cpu", "meta"):
        x = torch.zeros(1000, device=device, requires_grad=True)
        with Live([x]) as live:
            y = x
            for _ in range(depth):
                y = y.exp()
            kept = live.bytes
            del y
        assert kept == 4000 * depth
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_count_without_numbers_is_that_of_the_networks_themselves(folders: dict[str, Path], name: str) -> None:
    """But for attention, which kernels of processors do in another way; no more than a tenth."""
    prior = text_to_image.load(found(folders[name]), "cpu", torch.float32)
    side, step = sides(found(folders[name]))
    assert (side, side % step) == (prior.image_size, 0)
    counted = footprint(found(folders[name]), CPU, side, False)
    weights = [
        p
        for each in (prior.network, prior.autoencoder and prior.autoencoder.network)
        if each
        for p in each.parameters()
    ]
    if text_to_image.precision(prior.family, CPU) == torch.float32:
        assert counted.weights == sum(each.nbytes for each in weights)
    if prior.autoencoder is None:
        assert counted.kept == counted.encoding == 0
        return
    picture = torch.rand(1, 3, side, side, generator=seeded(0)).requires_grad_()
    with Live([*weights, picture]) as live:
        latents = prior.autoencoder.encode(picture)
        kept = live.bytes
        latents.sum().backward()
    assert counted.kept == pytest.approx(kept, rel=0.1)
    assert counted.encoding == pytest.approx(live.peak, rel=0.1)


def test_checkpointing_keeps_less_and_changes_no_gradient(folders: dict[str, Path]) -> None:
    where = found(folders["sd"])
    whole, spared = (footprint(where, CPU, 64, each, True) for each in (False, True))
    assert spared.weights == whole.weights
    assert spared.kept < whole.kept / 2
    assert spared.encoding < whole.encoding
    assert spared.learning < whole.learning
    assert spared.denoising == whole.denoising  # which has no gradient
    gradients = []
    for thrift in (None, Thrift(8, checkpointed=True, side=32)):
        prior = applied(text_to_image.load(where, "cpu", torch.float32), thrift)
        prior = replace(prior, image_size=32)
        picture = torch.rand(1, 16, 16, 3, generator=seeded(0)).requires_grad_()
        latents = prior.encode(picture)
        (gradient,) = torch.autograd.grad(
            (latents * torch.linspace(-1, 1, latents.numel()).view_as(latents)).sum(), picture
        )
        z_t, t = latents.detach(), torch.tensor([0.5])
        words = prior.conditions("", "", Pictures(orbit(1), ("albedo",), torch.ones(3))).positive
        answer = prior.answer(prior.network, z_t.requires_grad_(), t, words).clean
        gradients.append((gradient, *torch.autograd.grad(answer.square().sum(), z_t)))
    for one, other in zip(*gradients, strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


STABLE = Footprint(weights=2e9, kept=3e9, encoding=3.3e9, denoising=0.6e9, learning=5e9)
SPARED = replace(STABLE, kept=0.2e9, encoding=2e9, learning=2e9)


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of about the size of Stable Diffusion 1.5; what a smaller picture takes goes with its area."""

    def counted(where: Checkpoint, device: torch.device, side: int, checkpointed: bool, learns: bool) -> Footprint:
        full, share = SPARED if checkpointed else STABLE, (side / 512) ** 2
        parts = {name: getattr(full, name) * share for name in ("kept", "encoding", "denoising", "learning")}
        return replace(full, **parts)

    monkeypatch.setattr(memory, "footprint", counted)
    monkeypatch.setattr(memory, "sides", lambda where: (512, 64))


def chosen(folders: dict[str, Path], recipe: Recipe, gigabytes: float) -> tuple[Recipe, Thrift]:
    return planned(single_view(recipe), f"sd:{folders['sd']}", None, "cuda", gigabytes)


def test_as_little_as_it_takes_is_changed(stable: None, folders: dict[str, Path]) -> None:
    for gigabytes, spared, side in ((24, False, None), (6, True, None), (4.6, True, 384), (3.6, True, 256)):
        recipe, thrift = chosen(folders, RECIPES["magic3d"], gigabytes)
        assert thrift == Thrift(gigabytes, spared, side), gigabytes
        assert [stage.scene.deferred for stage in recipe.stages] == [spared, spared]
        assert [stage.scene.resolution for stage in recipe.stages] == [64, side or 512]
        assert need(recipe, memory.footprint(found(folders["sd"]), CPU, side or 512, spared, False)) <= 1e9 * gigabytes
    with pytest.raises(
        Mistake, match=r"--vram is 3, and recipe 'magic3d' with .* takes 3\.. GB at least; use a smaller"
    ):
        chosen(folders, RECIPES["magic3d"], 3)


def test_what_was_not_counted_is_not_guessed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "COUNTED", ())
    with pytest.raises(
        Mistake, match=r"nobody has counted what .* takes \(Stable Diffusion 1 and 2\); leave --vram out"
    ):
        chosen(folders, RECIPES["dreamfusion"], 8)


def test_a_step_is_the_most_of_its_phases() -> None:
    (stage,) = single_view(RECIPES["dreamfusion"]).stages
    recipe = replace(RECIPES["dreamfusion"], stages=(stage,))
    scene = memory.PIXEL * 64**2
    assert need(recipe, STABLE) == pytest.approx(memory.SLACK * (2e9 + scene + 3.6e9) + memory.CONTEXT)
    assert need(frugal(recipe, Thrift(8, True)), SPARED) == pytest.approx(
        memory.SLACK * (2e9 + scene + 2e9) + memory.CONTEXT
    )
    learning = single_view(RECIPES["prolificdreamer"])  # the adapter's gradient goes through the network
    assert need(learning, STABLE) == pytest.approx(memory.SLACK * (2e9 + memory.PIXEL * 512**2 + 8e9) + memory.CONTEXT)
    assert need(RECIPES["carved"], STABLE) < memory.SLACK * 2.1e9 + memory.CONTEXT  # asks no prior


def test_the_embedded_prior_fits_anywhere() -> None:
    recipe = RECIPES["magic3d"]
    assert planned(recipe, "embedded", None, "cpu", 2.0) == (recipe, Thrift(2.0))
    assert str(Thrift(2.0)) == "for 2 GB: nothing has to change"
    assert (
        str(Thrift(8, True, 384)) == "for 8 GB: gradients deferred and checkpointed, the prior sees 384 pixels a side"
    )


def test_too_little_is_a_mistake(
    stable: None,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dream = ["text", "a barrel", "--recipe", "dreamfusion"]
    assert main([*dream, "--vram", "1"]) == 2
    assert "--vram is 1.0; it must lie between 2 and 1000" in capsys.readouterr().err
    assert main([*dream, "--prior", f"sd:{folders['sd']}", "--vram", "3"]) == 2
    assert "--vram is 3, and recipe 'dreamfusion' with the prior" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_request_says_it_and_the_prior_does_it(
    stable: None, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREED_CACHE", str(tmp_path))
    asked = Text("a barrel", recipe="dreamfusion", prior=f"sd:{folders['sd']}", vram=9.0)
    request = checked(asked)
    assert request.thrift == Thrift(9.0)
    assert not request.recipe.stages[0].scene.deferred
    assert checked(replace(asked, vram=None)).thrift is None
    prior = load(replace(request, thrift=Thrift(9.0, True, 32)))
    assert prior.image_size == 32
    assert prior.autoencoder.network.encoder.gradient_checkpointing
    assert any(getattr(each, "gradient_checkpointing", False) for each in prior.network.modules())
