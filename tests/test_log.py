"""What a run says: on the screen, and in files that a resumed run continues without a seam."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from threed import log as module
from threed.log import Log, rewind
from threed.machine import cores, peak_memory, set_threads, total_memory


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, _: str) -> str:
        return "NOW"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(log: Log, clock: Clock, start: int, end: int, steps: int = 10) -> None:
    with log.stage("coarse", steps, start) as tell:
        for step in range(start + 1, end + 1):
            clock.now += 2
            tell(step, {"sds": torch.tensor(1.5), "opacity": 1 / step}, pictures=8)


def test_one_record_a_step(tmp_path: Path, clock: Clock) -> None:
    train(Log(tmp_path), clock, 0, 3)
    assert lines(tmp_path) == [
        {"stage": "coarse", "step": 1, "seconds": 2.0, "sds": 1.5, "opacity": 1.0},
        {"stage": "coarse", "step": 2, "seconds": 4.0, "sds": 1.5, "opacity": 0.5},
        {"stage": "coarse", "step": 3, "seconds": 6.0, "sds": 1.5, "opacity": 0.333333},
    ]


def test_a_resumed_run_has_every_step_once_and_its_time_adds_up(tmp_path: Path, clock: Clock) -> None:
    train(Log(tmp_path), clock, 0, 7)
    clock.now += 1000  # nobody was at work
    log = Log(tmp_path)
    train(log, clock, 4, 10)
    with log.stage("finish"):
        clock.now += 5
    assert [(r["stage"], r["step"]) for r in lines(tmp_path)] == [("coarse", k + 1) for k in range(10)] + [
        ("finish", 1)
    ]
    assert log.seconds() == {"coarse": 20.0, "finish": 5.0}


def test_stages_done_again_replace_themselves_alone(tmp_path: Path, clock: Clock) -> None:
    """On every resume the prior is loaded again, and what follows the steps is done again."""
    for start in (0, 4):
        log = Log(tmp_path)
        with log.stage("load"):
            clock.now += 3
        train(log, clock, start, 10)
        with log.stage("finish"):
            clock.now += 5
    assert log.seconds() == {"coarse": 20.0, "load": 3.0, "finish": 5.0}
    assert [r["step"] for r in lines(tmp_path) if r["stage"] == "coarse"] == list(range(1, 11))
    assert [r["stage"] for r in lines(tmp_path) if r["stage"] != "coarse"] == ["load", "finish"]


def test_going_back_within_a_stage_keeps_the_time_that_it_cost(tmp_path: Path, clock: Clock) -> None:
    with Log(tmp_path).stage("coarse", 3) as log:
        for step in (1, 2, 3, 2, 3):
            clock.now += 2
            log(step, {})
    assert [(r["step"], r["seconds"]) for r in lines(tmp_path)] == [(1, 2.0), (2, 8.0), (3, 10.0)]


def test_a_torn_record_is_forgotten_at_every_byte(tmp_path: Path, clock: Clock) -> None:
    train(Log(tmp_path), clock, 0, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert rewind(path, "coarse", 10) == 2.0 * whole[:cut].count(b"\n")
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, cut) + 1]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with Log(tmp_path).stage("coarse", 1) as log:
        log(1, {"sds": float("nan"), "opacity": float("inf")})
    assert lines(tmp_path)[0]["sds"] is None
    assert lines(tmp_path)[0]["opacity"] is None


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, clock: Clock) -> None:
    screen = io.StringIO()
    train(Log(tmp_path, Console(file=screen, width=200)), clock, 0, 12, steps=20)
    printed = screen.getvalue().splitlines()
    assert len(printed) == 2  # 24 seconds, one every 10
    assert printed[0] == "coarse  5/20  sds 1.5  opacity 0.2  4.0 images/s  0:30 left"
    assert printed[1] == "coarse  10/20  sds 1.5  opacity 0.1  4.0 images/s  0:20 left"


def test_a_note_is_one_line_where_there_is_no_terminal(tmp_path: Path) -> None:
    told, screen = "a long note " * 20, io.StringIO()
    Log(tmp_path, Console(file=screen, width=40)).note(told)
    assert screen.getvalue() == f"{told}\n"


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    log = Log(tmp_path, Console(file=screen, width=200, force_terminal=True))
    with log.stage("coarse", 10, start=4):
        log(5, {"sds": 0.25}, pictures=8)
        log.note("the loss was not finite")
    assert "coarse" in screen.getvalue()
    assert "5/10" in screen.getvalue()
    assert "sds 0.25" in screen.getvalue()
    assert "images/s" in screen.getvalue()
    assert "the loss was not finite" in screen.getvalue()


def test_quiet_without_a_console(tmp_path: Path, clock: Clock, capfd: pytest.CaptureFixture) -> None:
    log = Log(tmp_path)
    log.note("unheard")
    train(log, clock, 0, 10)
    assert capfd.readouterr() == ("", "")


def test_notes_and_stages_stay_in_log_txt(tmp_path: Path, clock: Clock) -> None:
    log = Log(tmp_path)
    log.note("[bold] is no markup")
    train(log, clock, 0, 10)
    assert (tmp_path / "log.txt").read_text() == "NOW  [bold] is no markup\nNOW  coarse: 10 of 10 steps, 20.0 s\n"


def test_a_stage_that_fails_does_not_count_as_done(tmp_path: Path, clock: Clock) -> None:
    log = Log(tmp_path)
    with pytest.raises(ZeroDivisionError), log.stage("finish"):
        raise ZeroDivisionError
    assert log.seconds() == {}
    assert not (tmp_path / "log.txt").exists()


def test_the_picture_is_drawn_every_few_seconds_at_most(tmp_path: Path, clock: Clock) -> None:
    log, drawn = Log(tmp_path), []

    def draw() -> bytes:
        drawn.append(clock.now)
        return b"%d" % len(drawn)

    for _ in range(14):
        log.picture(draw)
        clock.now += 0.5
    assert drawn == [100.0, 103.0, 106.0]
    assert (tmp_path / "progress.png").read_bytes() == b"3"


def test_the_machine_is_measured() -> None:
    before = peak_memory()
    block = torch.ones(100_000_000, dtype=torch.uint8)  # touched, so that it is really there
    assert before is not None
    assert peak_memory() >= before
    assert peak_memory() >= block.nbytes
    assert total_memory() > peak_memory()


def test_threads_follow_the_cores_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert set_threads() == cores() >= 1
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert set_threads() == 1
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def test_hyper_threads_and_quotas_are_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from threed import machine

    files = {
        **{f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)},
        "/sys/fs/cgroup/cpu.max": "max 100000",
    }
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.cores() == 4
    files["/sys/fs/cgroup/cpu.max"] = "250000 100000"
    assert machine.cores() == 3
    files.clear()
    assert machine.cores() == 8
