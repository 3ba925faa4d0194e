"""Rows over Ray: where there is no cluster, and where one of two workers dies; these two skip without Ray."""

import os
import socket
import time
from pathlib import Path

import pytest

from threed.batch import carry_out
from threed.cli import main
from threed.cluster import Cluster, Maker, answering
from threed.errors import Mistake
from threed.worker import Job, Outcome


class Standin(Maker):
    """Whose row is a file of its own; the first time that it is asked for "killed" it dies amid that."""

    def make(self, job: str) -> str:
        import json

        told = Job(**json.loads(job))
        mark = Path(told.folder)
        first = not mark.exists()
        mark.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['NUMBA_NUM_THREADS']}")
        if told.name == "killed" and first:
            os.kill(os.getpid(), 9)
        return Outcome(told.name != "wrong", "as it is" if told.name == "wrong" else "").to_json()


def test_one_of_two_workers_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    jobs = [Job(name, str(tmp_path / name), 1, {}, ".") for name in ("a", "killed", "b", "wrong", "c")]
    tries: dict[str, int] = {}
    workers = Cluster("local", 2, 1, tmp_path, Standin)
    found = carry_out(jobs, workers, 1, lambda job, outcome, n, again: tries.update({job.name: n}))
    assert {name for name, outcome in found.items() if outcome.done} == {"a", "killed", "b", "c"}
    assert found["wrong"] == Outcome(False, "as it is")
    assert tries == {"a": 1, "killed": 2, "b": 1, "wrong": 1, "c": 1}
    assert {(tmp_path / name).read_text() for name in found} == {"1 1"}
    assert not list(tmp_path.glob(".seen*"))


def test_no_cluster_costs_seconds_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.chdir(tmp_path)
    Path("l.txt").write_text("a barrel\n")
    began = time.monotonic()
    assert main(["batch", "l.txt", "--ray", address]) == 2
    assert time.monotonic() - began < 20
    assert f"there is no Ray cluster at '{address}'" in capsys.readouterr().err
    assert os.listdir() == ["l.txt"]


@pytest.mark.parametrize("address", ["here", "host", "host:", "host:99999", "host:0", ":6379", "http://host:1/x", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(Mistake, match="write HOST:PORT, for example"):
        answering(address)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("threed.cluster.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    Path("l.txt").write_text("a barrel\n")
    assert main(["batch", "l.txt", "--output", "library", "--ray", "local"]) == 2
    assert 'pip install "threed-assets[ray]"' in capsys.readouterr().err
    assert not Path("library").exists()


def test_an_actor_that_does_not_see_the_library(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    assert Maker().sees(str(tmp_path), "token") == ""
    assert "put --output on storage that all machines share" in Maker().sees(str(tmp_path / "gone"), "token")
