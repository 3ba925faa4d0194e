"""optimise arrives where the closed form says, agrees with a plain twin, and resumes to the very bit."""

from __future__ import annotations

import copy
import errno
import io
import json
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from threed import checkpoint, disk
from threed.errors import Failure, Mistake
from threed.log import Log
from threed.train import seeded
from threed.training import loop
from threed.training.loop import BETAS, IN_A_ROW, Schedule, Training, optimise, optimizers, step_and_put_back
from threed.training.muon import Muon

SCHEDULE = Schedule(steps=12, batch=6, rate=0.02, warmup=3, final=0.1, ema=0.7, clip=0.5, precision="float32", seed=4)
MUON = replace(SCHEDULE, optimizer="muon")


class Small(nn.Module):
    """A bit of everything: a convolution, a hidden matrix, a norm, biases, a constant and a parameter that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.middle = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(5, 2)
        self.fixed = nn.Parameter(torch.full((2,), 0.5), requires_grad=False)
        self.register_buffer("constant", torch.arange(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).movedim(1, -1)
        y = self.norm(y + F.gelu(self.middle(y)))
        return self.last(y) * self.fixed + self.constant


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def hidden(name: str) -> bool:
    return name.startswith("middle")


def loss(network: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(samples, 2, 4, 4, generator=generator)
    return (network(x) - x.roll(1, 1).movedim(1, -1)).square().mean()


def trained(folder: Path, schedule: Schedule = SCHEDULE, network: nn.Module | None = None, **options: Any) -> nn.Module:
    chosen = hidden if schedule.optimizer == "muon" else None
    return optimise(network or small(), options.pop("loss", loss), schedule, Log(folder), hidden=chosen, **options)


def twin(schedule: Schedule, workers: int = 1) -> tuple[Small, dict[str, Tensor]]:
    """The whole loop as its parts are written everywhere: backward, clip, two optimizers, an average by name."""
    network = small()
    average = copy.deepcopy(dict(network.named_parameters()))
    matrices = [network.middle.weight] if schedule.optimizer == "muon" else []
    rest = [p for p in network.parameters() if p.requires_grad and all(p is not m for m in matrices)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
    ]
    steps: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=BETAS, foreach=False)]
    if matrices:
        decay = schedule.weight_decay
        steps.append(Muon(matrices, weight_decay=decay))
    for k in range(schedule.steps):
        network.zero_grad()
        for worker in range(workers):
            samples = len(range(worker, schedule.batch, workers))
            share = samples / schedule.batch
            (loss(network, samples, seeded(schedule.seed, k, worker)) * share).backward()
        nn.utils.clip_grad_norm_(network.parameters(), schedule.clip)
        up, down = (k + 1) / (schedule.warmup + 1), (schedule.steps - k) / (schedule.steps - schedule.warmup)
        for optimizer in steps:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * min(up, schedule.final + (1 - schedule.final) * down)
            optimizer.step()
        kept = min(schedule.ema, (1 + k) / (10 + k))
        with torch.no_grad():
            for name, p in network.named_parameters():
                average[name] = kept * average[name] + (1 - kept) * p
    return network, average


@pytest.fixture(autouse=True)
def one_thread():
    """Small work is fastest so; the other tests get their threads back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Equal to the bit."""
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


# Where it arrives


def test_a_linear_network_arrives_at_the_least_squares_solution(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    y = x @ torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]]) + 0.7 + torch.randn(40, 2, generator=generator)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1)], 1), y).solution
    schedule = Schedule(steps=300, batch=1, rate=0.2, weight_decay=0.0, clip=1e9, ema=0.9, precision="float32")
    network = nn.Linear(3, 2)
    average = optimise(network, lambda net, *_: (net(x) - y).square().mean(), schedule, Log(tmp_path))
    for arrived in (network, average):
        torch.testing.assert_close(arrived.weight.T, solution[:3], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(arrived.bias, solution[3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", [SCHEDULE, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_weight_and_every_average_is_the_twins(tmp_path: Path, schedule: Schedule, workers: int) -> None:
    network = small()
    average = trained(tmp_path, schedule, network, workers=workers)
    expected, expected_average = twin(schedule, workers)
    for name, p in network.named_parameters():
        torch.testing.assert_close(p, expected.get_parameter(name), atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(average.get_parameter(name), expected_average[name], atol=2e-6, rtol=2e-5)
    assert torch.equal(average.fixed, torch.full((2,), 0.5))
    assert not average.training
    assert {p.data_ptr() for p in network.parameters()}.isdisjoint(p.data_ptr() for p in average.parameters())


def test_workers_that_see_the_same_samples_do_what_one_does(tmp_path: Path) -> None:
    x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    nets = [
        trained(tmp_path / str(workers), loss=lambda net, *_: (net(x) - 1).square().mean(), workers=workers)
        for workers in (1, 3)
    ]
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_workers_are_threads_of_their_own_and_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    seen: set[tuple[str, int, torch.dtype]] = set()

    def watched(network: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
        product = network.middle(torch.randn(samples, 5, generator=generator))
        seen.add((threading.current_thread().name, torch.get_num_threads(), product.dtype))
        time.sleep(0.002)  # so that the other worker begins
        return loss(network, samples, generator)

    schedule = replace(SCHEDULE, precision="bfloat16")
    one, other = (trained(tmp_path / name, schedule, loss=watched, workers=2) for name in "ab")
    assert_same(one, other)
    assert {(threads, dtype) for _, threads, dtype in seen} == {(1, torch.bfloat16)}
    assert len({name for name, *_ in seen}) == 2
    assert threading.current_thread().name not in {name for name, *_ in seen}
    with ThreadPoolExecutor(1) as pool:  # a new thread gets what the process has
        assert pool.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2
    assert {p.dtype for p in one.parameters()} == {torch.float32}


def test_a_network_in_another_memory_layout_learns_the_same(tmp_path: Path) -> None:
    """Fused kernels read memory in its order: a gradient laid out otherwise would reach the wrong weights."""
    one = trained(tmp_path / "a")
    other = trained(tmp_path / "b", network=small().to(memory_format=torch.channels_last))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_compiled_network_is_called_and_the_plain_one_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []

    class Compiled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.network)
            return self.network(x)

    monkeypatch.setattr(torch, "compile", Compiled)
    one, network = trained(tmp_path / "a"), small()
    assert_same(one, trained(tmp_path / "b", network=network, compiled=True))
    assert calls == [network] * SCHEDULE.steps


def test_the_rate_rises_and_falls_in_lines() -> None:
    schedule = Schedule(steps=10, batch=1, rate=2.0, warmup=3, final=0.3)
    rates = [schedule.rate_at(k) for k in range(11)]
    assert rates == pytest.approx([0.5, 1, 1.5, 2, 1.8, 1.6, 1.4, 1.2, 1, 0.8, 0.6])
    assert Schedule(steps=2, batch=1, rate=2.0).rate_at(0) == 2.0


# Resuming


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("schedule", [SCHEDULE, MUON], ids=["adamw", "muon"])
def test_stopped_at_any_step_it_ends_in_the_same_bytes(
    tmp_path: Path, schedule: Schedule, layout: torch.memory_format
) -> None:
    network = small().to(memory_format=layout)
    whole = trained(tmp_path / "whole", schedule, network, workers=2)
    calls = 2 * schedule.steps
    for stop in (1, 2, 7, 12, 18, calls - 1):  # the loss is asked once more, and never again
        asked = iter(range(stop))

        def fatal(net: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
            if next(asked, None) is None:  # noqa: B023
                raise Killed
            return loss(net, samples, generator)

        folder = tmp_path / str(stop)
        often = {"checkpoint_every": 0.0 if stop % 3 else 1e9}
        with pytest.raises(Killed):
            trained(folder, schedule, small().to(memory_format=layout), loss=fatal, workers=2, **often)
        saved = list((folder / "checkpoints").glob("*.safetensors"))
        # What never was saved begins as it began.
        resumed = small(seed=9 if saved else 0).to(memory_format=layout)
        assert_same(trained(folder, schedule, resumed, workers=2), whole)
        assert_same(resumed, network)
        assert [line["step"] for line in lines(folder)] == list(range(1, schedule.steps + 1))


def test_a_full_disk_stops_it_and_it_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole")
    written = []

    def full(path: Path, content: bytes) -> None:
        written.append(path.name)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    write = disk.write
    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        trained(tmp_path / "a", checkpoint_every=0.0)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert len(lines(tmp_path / "a")) == 4
    assert_same(trained(tmp_path / "a", network=small(seed=9)), whole)
    assert [line["step"] for line in lines(tmp_path / "a")] == list(range(1, 13))


def test_a_torn_checkpoint_has_a_predecessor(tmp_path: Path) -> None:
    whole = trained(tmp_path, checkpoint_every=0.0)
    last = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    assert_same(trained(tmp_path, network=small(seed=9)), whole)
    assert "is no whole checkpoint" in (tmp_path / "log.txt").read_text()


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError

    whole, network = trained(tmp_path), small(seed=9)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert_same(trained(tmp_path, network=network, loss=never), whole)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


def test_time_alone_decides_when_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, drawn = [], []
    monkeypatch.setattr(checkpoint, "save", lambda path, state: saved.append(state["step"]))
    now = iter(range(10**6))
    monkeypatch.setattr(loop, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(now))}))

    def sheet(network: nn.Module) -> bytes:
        drawn.append(len(lines(tmp_path)))
        return b""

    trained(tmp_path, checkpoint_every=7.0, sheet_every=1e9, sheet=sheet)
    assert saved[-1] == 12
    assert 2 < len(saved) < 8
    assert drawn == [12]


# What it tells


def test_every_step_is_told(tmp_path: Path) -> None:
    trained(tmp_path)
    first = loss(small(), 6, seeded(4, 0, 0)).detach()
    told = lines(tmp_path)
    assert [(line["stage"], line["step"]) for line in told] == [("train", k + 1) for k in range(12)]
    assert told[0]["loss"] == pytest.approx(float(first), rel=1e-5)
    assert "train: 12 of 12 steps" in (tmp_path / "log.txt").read_text()


def test_the_samples_are_the_averages(tmp_path: Path) -> None:
    def sheet(network: nn.Module) -> bytes:
        assert not network.training
        assert not torch.is_grad_enabled()
        shown.append({name: p.clone() for name, p in network.named_parameters()})
        stream = io.BytesIO()
        Image.new("RGB", (3, len(shown))).save(stream, "PNG")
        return stream.getvalue()

    shown: list[dict[str, Tensor]] = []
    average = trained(tmp_path, sheet=sheet, sheet_every=0.0)
    assert Image.open(tmp_path / "samples.png").size == (3, 12)
    assert len(shown) == 12
    assert all(torch.equal(p, shown[-1][name]) for name, p in average.named_parameters())
    assert_same(average, trained(tmp_path / "without"))


# What goes wrong


def broken(bad: set[int], value: float) -> loop.Loss:
    """Not finite at these steps."""
    steps = iter(range(10**6))

    def sometimes(network: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
        return loss(network, samples, generator) * (value if next(steps) in bad else 1.0)

    return sometimes


@pytest.mark.parametrize("schedule", [SCHEDULE, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, schedule: Schedule, value: float) -> None:
    """The first step too, when the optimizers have no memory yet."""
    training = Training(small(), schedule, ["middle.weight"] if schedule.optimizer == "muon" else [])
    sometimes = broken({0, 3, 4}, value)
    memories = []
    for _ in range(6):
        training.update([training.gradient(training.network, sometimes, 0, 6)], [6])
        memories.append(copy.deepcopy((training.network.state_dict(), [o.state_dict() for o in training.optimizers])))
    (weights2, optimizers2), (weights4, optimizers4) = memories[2], memories[4]
    assert all(torch.equal(weights2[name], weights4[name]) for name in weights2)
    for two, four in zip(optimizers2, optimizers4, strict=True):
        for key, memory in two["state"].items():
            assert all(torch.equal(memory[name], four["state"][key][name]) for name in memory)
    first = small().state_dict()
    assert all(torch.equal(memories[0][0][name], first[name]) for name in first)
    assert not torch.equal(weights4["middle.weight"], memories[5][0]["middle.weight"])
    assert (int(training.skipped), int(training.in_a_row)) == (3, 0)

    trained(tmp_path, schedule, loss=broken({0, 3, 4}, value))
    assert [line["loss"] is None for line in lines(tmp_path)] == [k in {0, 3, 4} for k in range(12)]
    log = (tmp_path / "log.txt").read_text()
    for step, skipped in ((1, 1), (4, 2), (5, 3)):
        assert f"step {step}: the loss or its gradient is not finite; skipped {skipped} steps so far" in log


def test_a_device_that_is_not_asked_puts_back_to_the_bit() -> None:
    """What a GPU does for Muon, beside a Muon that was never shown the gradients that are not finite."""

    def states(slopes: list[float], step: Callable[[float, torch.optim.Optimizer], None]) -> list[list[Tensor]]:
        network = small()
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        _, muon = optimizers(trained, ["middle.weight"], 0.1)
        seen = []
        for slope in slopes:
            network.middle.weight.grad = torch.full((5, 5), slope).tril()
            step(slope, muon)
            seen.append([network.middle.weight.detach().clone(), muon.state_dict()["state"][0]["momentum_buffer"]])
            seen[-1] = [tensor.clone() for tensor in seen[-1]]
        return seen

    def masked(slope: float, muon: torch.optim.Optimizer) -> None:
        step_and_put_back(torch.tensor(math.isfinite(slope)), muon) if muon.state else muon.step()

    one, bad, bad_again, other, last = states([1.0, math.nan, math.inf, 0.5, -2.0], masked)
    expected = states([1.0, 0.5, -2.0], lambda _, muon: muon.step())
    for state, wanted in zip([one, bad, bad_again, other, last], [expected[k] for k in (0, 0, 0, 1, 2)], strict=True):
        assert all(map(torch.equal, state, wanted))
    assert not torch.equal(one[0], other[0])


def test_on_every_device(tmp_path: Path, device: torch.device) -> None:
    """A device that is looked at now and then skips the very steps, and arrives where it does without them."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3))

    def on(bad: set[int]) -> loop.Loss:
        steps = iter(range(10**6))

        def squares(net: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
            here = x.to(generator.device)
            return (net(here) - here.roll(1, 1)).square().mean() * (math.nan if next(steps) in bad else 1.0)

        return squares

    schedule = replace(MUON, steps=50, warmup=0, final=1.0, ema=0.0)
    names = [name for name, _ in network().named_parameters() if name.startswith("1")]
    nets = []
    for bad, steps in (({0, 7, 8}, 50), (set(), 47)):
        where, shorter = Log(tmp_path / str(steps)), replace(schedule, steps=steps)
        nets.append(optimise(network().to(device), on(bad), shorter, where, hidden=names.__contains__))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert a.device.type == device.type
        torch.testing.assert_close(a, b)
    assert "skipped 3 steps so far" in (tmp_path / "50" / "log.txt").read_text()
    assert lines(tmp_path / "50")[-1]["step"] == 50


def test_too_many_in_a_row_end_it(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, steps=60)
    trained(tmp_path / "survives", schedule, loss=broken({*range(10, 29), *range(30, 49)}, math.nan))
    with pytest.raises(Failure) as caught:
        trained(tmp_path / "a", schedule, loss=broken(set(range(10, 60)), math.nan))
    assert str(caught.value) == (
        "step 30: the loss or its gradient was not finite 20 times in a row; "
        "train in another folder with a rate below 0.02, or look at the training data"
    )
    assert IN_A_ROW == 20


def test_the_count_in_a_row_survives_a_stop(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, steps=60)
    asked = []

    def stops(network: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
        asked.append(samples)
        if len(asked) == 15:
            raise Killed
        return loss(network, samples, generator) * math.nan

    with pytest.raises(Killed):
        trained(tmp_path, schedule, loss=stops, checkpoint_every=0.0)
    with pytest.raises(Failure, match=r"step 20: .* 20 times in a row"):
        trained(tmp_path, schedule, loss=stops)
    assert len(asked) == 15 + 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.5}, "schedule.rate was 0.02 and is 0.5 now"),
        ({"steps": 13}, "schedule.steps was 12 and is 13 now"),
        ({"seed": 5}, "schedule.seed was 4 and is 5 now"),
    ],
)
def test_the_checkpoint_of_another_schedule_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    trained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Mistake) as caught:
        trained(tmp_path, replace(SCHEDULE, **change))
    assert str(caught.value) == (
        f"{str(tmp_path)!r} holds a checkpoint of another training: {message}; use the old value or another folder"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    wider, longer = small(), small()
    wider.last = nn.Linear(5, 3)
    longer.extra = nn.Linear(2, 2)
    with pytest.raises(Mistake, match=r"network.last.bias was \[2\] and is \[3\] now; use the old value or another"):
        trained(tmp_path, network=wider)
    with pytest.raises(Mistake, match=r"network.extra.bias was None and is \[2\] now"):
        trained(tmp_path, network=longer)


def test_other_matrices_for_muon_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, MUON)
    with pytest.raises(Mistake, match=r"matrices was \['middle.weight'\] and is \['last.weight'\] now"):
        optimise(small(), loss, MUON, Log(tmp_path), hidden=lambda name: name.startswith("last"))


def test_the_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(tmp_path / "checkpoints" / "000000.safetensors", {"stage": "coarse", "step": 3})
    with pytest.raises(Mistake, match="holds a checkpoint of another training"):
        trained(tmp_path)


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    lock = disk.lock(tmp_path / "checkpoints" / "lock")
    assert lock is not None
    with lock, pytest.raises(Mistake, match=r"another process is at work in .*; wait for it or choose another folder"):
        trained(tmp_path)
    trained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("steps", 0, "at least 1"),
        ("batch", 0, "at least 1"),
        ("rate", 0.0, "more than 0"),
        ("warmup", 12, "at least 0 and less than the 12 steps"),
        ("final", 1.5, "between 0 and 1"),
        ("weight_decay", -1.0, "at least 0"),
        ("clip", 0.0, "more than 0"),
        ("ema", 1.0, "at least 0 and less than 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_impossible_schedules(field: str, value: Any, remedy: str) -> None:
    values = asdict(SCHEDULE) | {field: value}
    with pytest.raises(Mistake) as caught:
        Schedule(**values)
    assert str(caught.value) == f"a training cannot have {field} {value!r}; it must be {remedy}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "0 workers cannot share a batch of 6; use 1 to 6 workers"),
        ({"workers": 7}, "7 workers cannot share a batch of 6; use 1 to 6 workers"),
        ({"workers": 2, "compiled": True}, "2 workers cannot train a compiled network; use 1 worker"),
        ({"workers": 2, "network": small().to("meta")}, "2 workers cannot train a network on 'meta'; use 1 worker"),
        (
            {"network": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))},
            "'1' is a Dropout, with which a training cannot be resumed exactly; "
            "use no dropout, and a norm without running statistics",
        ),
        (
            {"network": nn.Sequential(nn.BatchNorm2d(3))},
            "'0' is a BatchNorm2d, with which a training cannot be resumed exactly; "
            "use no dropout, and a norm without running statistics",
        ),
        ({"schedule": MUON}, "optimizer 'muon' contradicts hidden=None; give `hidden` for 'muon' alone"),
        (
            {"schedule": MUON, "hidden": lambda name: False},
            "optimizer 'muon' has no matrix to train: `hidden` chose none; use optimizer 'adamw'",
        ),
    ],
)
def test_contradictions_are_told_before_any_work(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    network, schedule = options.pop("network", small()), options.pop("schedule", SCHEDULE)
    with pytest.raises(Mistake) as caught:
        optimise(network, loss, schedule, Log(tmp_path / "new"), **options)
    assert str(caught.value) == message
    assert not (tmp_path / "new").exists()


def test_adamw_has_no_hidden_matrices(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="optimizer 'adamw' contradicts hidden=<function hidden"):
        optimise(small(), loss, SCHEDULE, Log(tmp_path), hidden=hidden)
