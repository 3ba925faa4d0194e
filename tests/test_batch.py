"""Lists through workers: who does what, what is tried again, what is left after an interruption, what is told."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from tiny_assets import box

from threed import summary
from threed.batch import carry_out
from threed.batch_cli import Batch, workers_for
from threed.cli import main
from threed.crew import Crew, threads_each
from threed.exporters import glb
from threed.kept import keeping, kept
from threed.summary import Line
from threed.worker import Job, Outcome, work

STANDIN = Path(__file__).parent / "standin_worker.py"


def job(name: str, **cells: str) -> Job:
    return Job(name, name, 1, cells, ".")


class Scripted:
    """Workers whose outcomes are written down: by name, one after the other."""

    def __init__(self, count: int, outcomes: dict[str, list[Outcome]]) -> None:
        self.count, self.outcomes, self.given, self.most, self.closed = count, outcomes, [], 0, False
        self.at_work: list[Job] = []

    def free(self) -> int:
        return self.count - len(self.at_work)

    def give(self, job: Job) -> None:
        assert self.free() > 0
        self.given.append(job.name)
        self.at_work.append(job)
        self.most = max(self.most, len(self.at_work))

    def results(self, patience: float) -> list[tuple[Job, Outcome]]:
        job = self.at_work.pop(0)
        return [(job, self.outcomes[job.name].pop(0))]

    def close(self) -> None:
        self.closed = True


DONE, LOST, WRONG = Outcome(True), Outcome(False, "lost", may_pass=True), Outcome(False, "wrong")


def test_what_may_pass_is_tried_again_behind_the_others() -> None:
    workers = Scripted(2, {"a": [LOST, DONE], "b": [WRONG], "c": [DONE], "d": [LOST, LOST]})
    told = []
    found = carry_out(
        [job(n) for n in "abcd"], workers, 1, lambda j, o, tries, again: told.append((j.name, tries, again))
    )
    assert found == {"a": DONE, "b": WRONG, "c": DONE, "d": LOST}
    assert workers.given == ["a", "b", "c", "d", "a", "d"]
    assert (workers.most, workers.closed) == (2, True)
    assert sorted(told) == [
        ("a", 1, True),
        ("a", 2, False),
        ("b", 1, False),
        ("c", 1, False),
        ("d", 1, True),
        ("d", 2, False),
    ]


def test_ctrl_c_ends_the_workers() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    workers = Scripted(1, {"a": [DONE]})
    with pytest.raises(KeyboardInterrupt):
        carry_out([job("a")], workers, 1, interrupt)
    assert workers.closed


def test_threads_never_exceed_the_cores() -> None:
    for cores in range(1, 17):
        for workers in range(1, cores + 1):
            assert workers <= workers * threads_each(workers, cores) <= cores
    assert threads_each(4, 2) == 1


@pytest.mark.parametrize(
    ("cores", "memory", "asked", "found"),
    [
        (64, 23e9, None, (11, 5)),  # as many as the memory holds
        (2, 23e9, None, (2, 1)),
        (4, 1e9, None, (1, 4)),
        (8, None, None, (8, 1)),
        (8, 1e9, 3, (3, 2)),  # who says so knows why
    ],
)
def test_workers_share_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: float | None, asked: int | None, found: tuple[int, int]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("threed.machine.cores", lambda: cores)
    monkeypatch.setattr("threed.machine.total_memory", lambda: memory)
    workers = workers_for(Batch(Path("l.csv"), workers=asked), 1000)
    assert isinstance(workers, Crew)
    assert (workers.count, workers.threads) == found


def crew(count: int, threads: int = 1) -> Crew:
    return Crew(count, threads, [sys.executable, str(STANDIN)])


def test_a_worker_that_dies_costs_its_row_one_try(tmp_path: Path) -> None:
    jobs = [job(n, mark=str(tmp_path / n)) for n in ("die-once", "fine-1", "fine-2", "die-always", "wrong", "fine-3")]
    tries: dict[str, int] = {}
    found = carry_out(jobs, crew(2, threads=3), 1, lambda j, o, n, again: tries.update({j.name: n}))
    assert {name for name, outcome in found.items() if outcome.done} == {"die-once", "fine-1", "fine-2", "fine-3"}
    assert found["wrong"] == Outcome(False, "as it is")
    assert "its worker died" in found["die-always"].reason
    assert "it hurts" in found["die-always"].reason  # the last it said
    assert tries == {"die-once": 2, "fine-1": 1, "fine-2": 1, "fine-3": 1, "die-always": 2, "wrong": 1}
    assert (tmp_path / "fine-1").read_text() == "3 3"  # its threads


def test_no_worker_outlives_its_batch(tmp_path: Path) -> None:
    source = (
        "from threed.crew import Crew; from threed.worker import Job; import sys, time; "
        "c = Crew(1, 1, sys.argv[1:3]); c.give(Job('sleep', '', 1, {'mark': sys.argv[3]}, '.')); time.sleep(60)"
    )
    mark = tmp_path / "pid"
    batch = subprocess.Popen([sys.executable, "-c", source, sys.executable, str(STANDIN), str(mark)])
    try:
        until(lambda: mark.exists() and mark.read_text())
    finally:
        batch.kill()
        batch.wait()
    worker = int(mark.read_text())
    until(lambda: not alive(worker))


def until(true, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_work_tells_what_may_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from threed.errors import Crowded, Failure, Mistake

    def failing(error: Exception) -> Outcome:
        def make(*_: object) -> None:
            raise error

        monkeypatch.setattr("threed.worker.make", make)
        return work(Job("a", str(tmp_path), 1, {}, "."))

    assert failing(Mistake("no")) == Outcome(False, "no")
    assert failing(Failure("no")) == Outcome(False, "no")
    assert failing(Crowded("no room")) == Outcome(False, "no room", may_pass=True)
    assert failing(OSError(28, "full")) == Outcome(False, "OSError: [Errno 28] full", may_pass=True)
    assert failing(MemoryError("much")) == Outcome(False, "MemoryError: much", may_pass=True)
    assert "MemoryError: much" in (tmp_path / "log.txt").read_text()


def test_networks_are_read_once_while_they_are_kept(tmp_path: Path) -> None:
    read: list[str] = []

    def load(folder: Path, device: str = "cpu") -> object:
        read.append(device)
        return object()

    (tmp_path / "weights").write_text("1")
    assert kept(load)(tmp_path) is not kept(load)(tmp_path)
    with keeping():
        first = kept(load)(tmp_path)
        assert kept(load)(tmp_path) is first
        assert kept(load)(tmp_path, "cuda") is not first
        changed = kept(load)(tmp_path)
        (tmp_path / "weights").write_text("22")
        assert kept(load)(tmp_path) is not changed
    assert kept(load)(tmp_path) is not kept(load)(tmp_path)
    assert len(read) == 2 + 4 + 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A crew whose rows end at once, with the smallest run folder; the names that it was given."""
    given: list[str] = []

    class Quick(Scripted):
        def __init__(self, count: int, threads: int, command: Sequence[str] = ()) -> None:
            super().__init__(count, {})

        def results(self, patience: float) -> list[tuple[Job, Outcome]]:
            job = self.at_work.pop(0)
            given.append(job.name)
            return [(job, Outcome(False, "no volume") if "bad" in job.name else work(job))]

    def make(job: Job, folder: Path) -> None:
        from threed import text_cli
        from threed.rows import Row
        from threed.run import Run

        asked = Row(job.line, job.cells, job.home).asked(folder, job.overwrite)
        request = text_cli.checked(asked)
        with Run.create(folder, request, asked.resume, asked.overwrite) as run:
            for suffix in request.formats:
                run.write(f"asset.{suffix}", b"mesh")
            run.write("report.json", json.dumps({"triangles": 12, "seconds": {"start": 1.5}}).encode())

    monkeypatch.setattr("threed.crew.Crew", Quick)
    monkeypatch.setattr("threed.worker.make", make)
    monkeypatch.chdir(tmp_path)
    return given


def lines_of(library: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(library, "summary.csv").read_text(encoding="utf-8").splitlines()))


def test_a_list_becomes_a_library_and_again_only_what_is_missing(
    quick: list[str], capsys: pytest.CaptureFixture
) -> None:
    Path("l.csv").write_text('prompt,name,seed\na barrel,,2\na crate,bad,\n"a <b>, ü",umlaut,\n', encoding="utf-8")
    assert main(["batch", "l.csv", "--output", "lib"]) == 1
    assert quick == ["a-barrel-2", "bad", "umlaut"]
    told = capsys.readouterr()
    assert "2 of 3  bad failed: no volume" in told.err
    assert "left" in told.err
    assert "2 finished, 1 failed" in told.out
    first, bad, last = lines_of("lib")
    assert first == {
        "name": "a-barrel-2", "subject": "a barrel", "recipe": "instant", "seed": "2", "state": "finished",
        "triangles": "12", "seconds": "1.5", "tries": "1", "reason": "",
    }  # fmt: skip
    assert (bad["state"], bad["reason"], last["subject"]) == ("failed", "no volume", "a <b>, ü")
    page = Path("lib/index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;, ü" in page
    assert "<b>, ü" not in page.replace("<b>a &lt;b", "")
    assert Image.open("lib/contact.png").size == (3 * summary.SIDE, summary.SIDE + 20)
    quick.clear()
    assert main(["batch", "l.csv", "--output", "lib"]) == 1
    assert quick == ["bad"]
    Path("lib/umlaut/report.json").unlink()  # killed before its end
    quick.clear()
    assert main(["batch", "l.csv", "--output", "lib"]) == 1
    assert quick == ["bad", "umlaut"]


def test_a_changed_row_is_made_anew_only_when_told_so(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    Path("l.csv").write_text("prompt,name,seed\na barrel,x,0\na crate,y,0\n")
    assert main(["batch", "l.csv"]) == 0
    Path("l.csv").write_text("prompt,name,seed\na barrel,x,1\na crate,y,0\n")
    quick.clear()
    assert main(["batch", "l.csv"]) == 2
    assert "line 2: 'library/x' holds another run: seed was 0 and is 1 now" in capsys.readouterr().err
    assert quick == []
    assert main(["batch", "l.csv", "--overwrite"]) == 0
    assert quick == ["x"]
    assert main(["batch", "l.csv", "--overwrite"]) == 0
    assert quick == ["x"]


def test_all_rows_are_checked_before_any_work(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    Path("none.png").write_bytes(b"no picture")
    Path("l.csv").write_text(
        "prompt,image,name,seed,recipe,faces\n"
        "a barrel,,,,,\n"
        "a barrel,,,,,\n"
        "a crate,,,-1,,\n"
        "a crate,,c,,magic4d,\n"
        ",gone.png,,,,\n"
        ",none.png,,,,\n"
        "a crate,,d,,,7\n"
    )
    assert main(["batch", "l.csv"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("threed: 6 rows of 'l.csv' cannot be made, and nothing was begun:\n")
    for line, words in {
        3: "name is 'a-barrel-0', as in line 2",
        4: "--seed is -1",
        5: "unknown recipe 'magic4d'",
        6: "there is no picture 'gone.png'",
        7: "'none.png' is no picture that can be read",
        8: "--faces is 7",
    }.items():
        assert f"  line {line}: {words}" in said
    assert quick == []
    assert not Path("library").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["gone.csv"], "there is no file 'gone.csv'"),
        (["l.txt", "--workers", "0"], "--workers is 0; it must lie between 1 and 256"),
        (["l.txt", "--retries", "11"], "--retries is 11"),
        (["l.txt", "--set", "recipe"], "--set has 'recipe'; write COLUMN=VALUE"),
        (["l.txt", "--set", "colour=red"], "unknown column 'colour'"),
        (["l.txt", "--output", "l.txt"], "cannot write into 'l.txt'"),
    ],
)
def test_mistakes_of_the_command(
    quick: list[str], capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    Path("l.txt").write_text("a barrel\n")
    assert main(["batch", *flags]) == 2
    assert message in capsys.readouterr().err


def test_one_batch_a_library(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    from threed.batch_cli import alone

    Path("l.txt").write_text("a barrel\n")
    Path("library").mkdir()
    with alone(Path("library")):
        assert main(["batch", "l.txt"]) == 2
    assert "another batch is at work in 'library'" in capsys.readouterr().err
    assert main(["batch", "l.txt"]) == 0


def test_ctrl_c_leaves_a_summary_and_says_how_to_go_on(
    quick: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("threed.batch.carry_out", interrupted)
    Path("l.txt").write_text("a barrel\n")
    assert main(["batch", "l.txt"]) == 130
    assert "continue with: threed batch l.txt" in capsys.readouterr().err
    assert [line["state"] for line in lines_of("library")] == ["waiting"]


def test_a_report_that_is_broken_stops_no_summary(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text('{"triangles": null}')
    (tmp_path / "a" / "preview.png").write_text("no picture")
    assert summary.figures(tmp_path / "a") == {}
    summary.write(tmp_path, [Line("a", "a barrel", "instant", 0, "finished")])
    assert (tmp_path / "contact.png").stat().st_size > 0


def test_a_row_that_was_killed_and_gone_on_with_is_as_one_that_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The whole of it, once: a real worker, kill -9 of the batch in the middle, and the same bytes in the end."""
    glb.write(box(), tmp_path / "box.glb")
    cells = "a box,box.glb,200,64,glb"
    (tmp_path / "l.csv").write_text(f"name,prompt,start,faces,texture_size,format\none,{cells}\ntwo,{cells}\n")
    library = tmp_path / "lib"
    flags = ["batch", str(tmp_path / "l.csv"), "--output", str(library), "--workers", "1"]
    batch = subprocess.Popen([sys.executable, "-m", "threed", *flags], stderr=subprocess.DEVNULL)
    try:
        until(lambda: (library / "two" / "recipe.json").exists(), 120)
    finally:
        batch.kill()
        batch.wait()
    assert not (library / "two" / "report.json").exists()
    made = (library / "one" / "report.json").stat().st_mtime_ns
    assert main(flags) == 0
    assert "1 of 2 are there already" in capsys.readouterr().err
    assert (library / "one" / "report.json").stat().st_mtime_ns == made
    for name in ("asset.glb", "preview.png", "turntable.webp", "recipe.json"):
        assert (library / "one" / name).read_bytes() == (library / "two" / name).read_bytes()
