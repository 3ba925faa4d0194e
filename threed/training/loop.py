"""optimise: the one loop that trains every network of the project, on CPU or a GPU.

A step draws random numbers from (seed, step, worker) alone, so a training that was stopped at any moment ends, on the
same machine, in the same bytes. That asks two things of a network: no dropout and no running statistics.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from threed import disk
from threed.errors import Failure, Mistake
from threed.log import Log
from threed.run import Run, difference
from threed.train import seeded
from threed.training.muon import Muon

BETAS = (0.9, 0.99)
IN_A_ROW = 20  # losses that are not finite, before the training gives up
LOOK_EVERY = 20  # steps, on a GPU: whoever looks waits for it. A CPU is looked at every step

Loss = Callable[[nn.Module, int, torch.Generator], Tensor]
Part = tuple[Tensor, tuple[Tensor, ...]]  # a mean loss and its gradient


@dataclass(frozen=True)
class Schedule:
    """How to train; with network, loss, number of workers and machine, all that the trained weights depend on."""

    steps: int
    batch: int  # samples a step, all workers together
    rate: float  # the highest learning rate, of AdamW; Muon's steps are scaled to the size of AdamW's
    warmup: int = 0  # steps until the highest rate
    final: float = 0.0  # share of the rate that is left at the end; it falls linearly (arXiv 2502.15938)
    weight_decay: float = 0.01  # of matrices and convolutions; biases and norms have none
    clip: float = 1.0  # the greatest length of a gradient
    ema: float = 0.999  # what a step leaves of the average; less in the first steps
    optimizer: Literal["adamw", "muon"] = "adamw"
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of the network's operations; its weights keep theirs
    seed: int = 0

    def __post_init__(self) -> None:
        for name, sound, remedy in (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("rate", self.rate > 0, "more than 0"),
            ("warmup", 0 <= self.warmup < self.steps, f"at least 0 and less than the {self.steps} steps"),
            ("final", 0 <= self.final <= 1, "between 0 and 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip", self.clip > 0, "more than 0"),
            ("ema", 0 <= self.ema < 1, "at least 0 and less than 1"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not sound:
                raise Mistake(f"a training cannot have {name} {getattr(self, name)!r}; it must be {remedy}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: up in a line, then down in another."""
        if step < self.warmup:
            return self.rate * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return self.rate * (1 + (self.final - 1) * progress)

    def ema_at(self, step: int) -> float:
        """What this step leaves of the average: little at first, or the untrained weights would stay in it."""
        return min(self.ema, (1 + step) / (10 + step))


def optimise(
    network: nn.Module,
    loss: Loss,
    schedule: Schedule,
    log: Log,
    *,
    hidden: Callable[[str], bool] | None = None,
    sheet: Callable[[nn.Module], bytes] | None = None,
    workers: int = 1,
    compiled: bool = False,
    checkpoint_every: float = 600.0,
    sheet_every: float = 300.0,
) -> nn.Module:
    """Train `network` where it lies, from the last checkpoint in the log's folder on; returns the averaged network.

    network: parameters that want no gradient stay as they are, the others end as trained last.
    loss: draws so many samples with the generator, which lies where the network does, and returns their mean loss. It
        is called under autocast, by all workers at once.
    hidden: for "muon", whether the parameter of this name is a matrix or a convolution between hidden layers; the
        others are AdamW's.
    sheet: the averaged network's work as a PNG, for samples.png: every `sheet_every` seconds and at the end.
    workers: threads that share every batch, on a CPU; each computes with its share of PyTorch's threads.
    compiled: call the network through torch.compile.
    checkpoint_every: seconds between checkpoints; the last step always ends with one.

    Raises, before any work, Mistake for a folder that another process works in or that holds another training, and
    for arguments that contradict each other; later Failure when the loss is not finite IN_A_ROW times in a row, and
    OSError when the disk is full. The same call goes on from the last checkpoint.
    """
    training = Training(network, schedule, check(network, schedule, hidden, workers, compiled))
    called: Any = torch.compile(network) if compiled else network
    look_every = 1 if training.device.type == "cpu" else LOOK_EVERY
    shares = [schedule.batch // workers + (w < schedule.batch % workers) for w in range(workers)]
    with opened(log) as run, crew(workers) as each:
        training.restore(run)
        checkpoints, sheets = Timer(checkpoint_every), Timer(sheet_every)
        losses: list[Tensor] = []
        with log.stage("train", schedule.steps, training.step) as tell:
            while training.step < schedule.steps:
                parts = list(each(lambda w: training.gradient(called, loss, w, shares[w]), range(workers)))
                losses.append(training.update(parts, shares))
                finished = training.step == schedule.steps
                if finished or training.step % look_every == 0:
                    training.look(log)
                    tell(training.step, {"loss": torch.stack(losses).mean()}, pictures=len(losses) * schedule.batch)
                    losses.clear()
                if sheet and (sheets.due() or finished):
                    with torch.no_grad():
                        disk.write(log.folder / "samples.png", sheet(training.average))
                if checkpoints.due() or finished:
                    run.checkpoint(training.state())
    return copy.deepcopy(training.average)


class Training:
    """A network, its average and its optimizers between two steps: all that a checkpoint keeps."""

    def __init__(self, network: nn.Module, schedule: Schedule, matrices: Sequence[str]) -> None:
        """`matrices` names the parameters that are Muon's."""
        self.network, self.schedule, self.matrices = network.train(), schedule, list(matrices)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        averaged = dict(self.average.named_parameters())
        self.weights: list[Tensor] = list(trained.values())
        self.averages: list[Tensor] = [averaged[name] for name in trained]
        # Laid out like the weights, which the gradients that autograd returns need not be, and fused kernels ask for.
        self.slopes = [torch.zeros_like(weight) for weight in self.weights]
        for weight, slope in zip(self.weights, self.slopes, strict=True):
            weight.grad = slope
        self.optimizers = optimizers(trained, self.matrices, schedule.weight_decay)
        self.device = self.weights[0].device
        self.step = 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self.in_a_row = torch.zeros_like(self.skipped)
        self._told = 0  # of so many skipped steps

    def gradient(self, network: nn.Module, loss: Loss, worker: int, samples: int) -> Part:
        """One worker's part of this step."""
        generator = seeded(self.schedule.seed, self.step, worker)
        if self.device.type != "cpu":
            generator = torch.Generator(self.device).manual_seed(generator.initial_seed())
        low = self.schedule.precision == "bfloat16"
        # The cache of casts would be shared by all threads, and one of them would clear it under the others.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            value = loss(network, samples, generator)
        return value.detach(), torch.autograd.grad(value, self.weights, materialize_grads=True)

    @torch.no_grad()
    def update(self, parts: Sequence[Part], shares: Sequence[int]) -> Float[Tensor, ""]:
        """Take the step, unless loss or gradient is not finite. Never waits for the device. Returns the mean loss."""
        value = torch.zeros((), device=self.device)
        torch._foreach_zero_(self.slopes)
        for (part, slopes), samples in zip(parts, shares, strict=True):  # in the workers' order, for equal bytes
            value += part * (samples / sum(shares))
            torch._foreach_add_(self.slopes, slopes, alpha=samples / sum(shares))
        length = nn.utils.clip_grad_norm_(self.weights, self.schedule.clip)
        sound = value.isfinite() & length.isfinite()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.step)
            step_if(sound, optimizer)
        torch._foreach_lerp_(self.averages, self.weights, 1 - self.schedule.ema_at(self.step))
        self.skipped += ~sound
        self.in_a_row = torch.where(sound, 0, self.in_a_row + 1)
        self.step += 1
        return value

    def look(self, log: Log) -> None:
        """Tell of steps that were skipped. Waits for the device; raises Failure when there were too many in a row."""
        in_a_row, skipped = int(self.in_a_row), int(self.skipped)
        if skipped > self._told:
            log.note(f"step {self.step}: the loss or its gradient is not finite; skipped {skipped} steps so far")
            self._told = skipped
        if in_a_row >= IN_A_ROW:
            raise Failure(
                f"step {self.step}: the loss or its gradient was not finite {in_a_row} times in a row; "
                f"train in another folder with a rate below {self.schedule.rate}, or look at the training data"
            )

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on, and what they belong to."""
        return {
            "training": self._about(),
            "step": self.step,
            "skipped": int(self.skipped),
            "in_a_row": int(self.in_a_row),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, run: Run) -> None:
        """Put the run's last state back, if there is one. Raises Mistake when it belongs to another training."""
        if (state := run.latest()) is None:
            return
        if changed := difference(state.get("training", {}), self._about()):
            name, before, after = changed
            raise Mistake(
                f"{str(run.folder)!r} holds a checkpoint of another training: {name} was {before!r} and is {after!r} "
                "now; use the old value or another folder"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for weight, memory in optimizer.state.items():
                laid_out = {n: torch.empty_like(weight).copy_(v) for n, v in memory.items() if v.shape == weight.shape}
                memory.update(laid_out)  # fused kernels go through weights and memory alike, however they are laid out
        self.step = state["step"]
        self.skipped.fill_(state["skipped"])
        self.in_a_row.fill_(state["in_a_row"])
        self._told = state["skipped"]

    def _about(self) -> dict[str, Any]:
        """What a checkpoint has to agree with."""
        shapes = {name: list(tensor.shape) for name, tensor in self.network.state_dict().items()}
        return {"schedule": asdict(self.schedule), "network": shapes, "matrices": self.matrices}


class Timer:
    """Due once a period, in seconds."""

    def __init__(self, period: float) -> None:
        self.period, self.next = period, time.monotonic() + period

    def due(self) -> bool:
        if time.monotonic() < self.next:
            return False
        self.next = time.monotonic() + self.period
        return True


def check(
    network: nn.Module, schedule: Schedule, hidden: Callable[[str], bool] | None, workers: int, compiled: bool
) -> list[str]:
    """The names of Muon's matrices. Raises Mistake when the arguments of `optimise` contradict each other."""
    if not 1 <= workers <= schedule.batch:
        raise Mistake(f"{workers} workers cannot share a batch of {schedule.batch}; use 1 to {schedule.batch} workers")
    device = next(network.parameters()).device.type
    if workers > 1 and (device != "cpu" or compiled):
        what = "a compiled network" if compiled else f"a network on {device!r}"
        raise Mistake(f"{workers} workers cannot train {what}; use 1 worker")
    for name, module in network.named_modules():
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if dropout or isinstance(module, nn.modules.batchnorm._NormBase):
            raise Mistake(
                f"{name!r} is a {type(module).__name__}, with which a training cannot be resumed exactly; "
                "use no dropout, and a norm without running statistics"
            )
    if (schedule.optimizer == "muon") != (hidden is not None):
        raise Mistake(f"optimizer {schedule.optimizer!r} contradicts hidden={hidden!r}; give `hidden` for 'muon' alone")
    if hidden is None:
        return []
    names = [name for name, p in network.named_parameters() if p.requires_grad and p.ndim >= 2 and hidden(name)]
    if not names:
        raise Mistake("optimizer 'muon' has no matrix to train: `hidden` chose none; use optimizer 'adamw'")
    return names


@contextmanager
def opened(log: Log) -> Iterator[Run]:
    """The log's folder as a run's, for this process alone. Raises Mistake when another process is at work in it."""
    checkpoints = log.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if (lock := disk.lock(checkpoints / "lock")) is None:
        raise Mistake(f"another process is at work in {str(log.folder)!r}; wait for it or choose another folder")
    with Run(log.folder, log, lock) as run:
        yield run


@contextmanager
def crew(workers: int) -> Iterator[Callable[[Callable[[int], Part], Iterable[int]], Iterable[Part]]]:
    """A `map` for so many workers at once, which share the threads that PyTorch has."""
    if workers == 1:
        yield map
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, "worker", torch.set_num_threads, (max(1, threads // workers),)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # part of what a worker sets is the whole process's


def optimizers(trained: dict[str, nn.Parameter], matrices: Sequence[str], decay: float) -> list[torch.optim.Optimizer]:
    """AdamW of all parameters but the named matrices, and Muon of these."""
    others = [p for name, p in trained.items() if name not in matrices]
    decayed, plain = [p for p in others if p.ndim >= 2], [p for p in others if p.ndim < 2]
    groups = [{"params": ps, "weight_decay": d} for ps, d in ((decayed, decay), (plain, 0.0)) if ps]
    chosen: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=BETAS, fused=True)] if groups else []
    if matrices:
        chosen.append(Muon([trained[name] for name in matrices], weight_decay=decay))
    return chosen


def step_if(sound: Bool[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """Take a step of the optimizer, or leave its weights and its memory to the bit as they are."""
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]  # which its fused kernels look at
        optimizer.step()
    # Nobody waits for a CPU; and before its first step an optimizer has no memory yet that could be put back.
    elif sound.device.type == "cpu" or not optimizer.state:
        if sound:
            optimizer.step()
    else:
        step_and_put_back(sound, optimizer)


def step_and_put_back(sound: Bool[Tensor, ""], optimizer: torch.optim.Optimizer) -> None:
    """`step_if` for any optimizer, without asking a device that is still at work on the answer."""
    changed = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    changed += [value for memory in optimizer.state.values() for value in memory.values() if isinstance(value, Tensor)]
    before = [tensor.clone() for tensor in changed]
    optimizer.step()
    for tensor, old in zip(changed, before, strict=True):
        tensor.copy_(torch.where(sound, tensor, old))
