"""A state comes back as it was, or is refused; a file appears whole or not at all."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from threed import checkpoint, disk
from threed.checkpoint import Torn, load, save
from threed.errors import FULL

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
tensors = st.builds(
    lambda shape, dtype: (torch.arange(math.prod(shape)) * 37 % 11).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
)
leaves = st.one_of(tensors, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    """Equal in value, type, order and dtype, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@settings(deadline=None, max_examples=60)
@given(states)
def test_any_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: object) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    save(path, state)
    assert same(load(path), state)


def training(seed: int = 0) -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return net, torch.optim.Adam([{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}])


def step(net: nn.Module, adam: torch.optim.Adam, k: int) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(k))
    adam.zero_grad()
    net(x).square().sum().backward()
    adam.step()


def test_adam_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    net, adam = training()
    for k in range(3):
        step(net, adam, k)
    save(tmp_path / "a", {"net": net.state_dict(), "adam": adam.state_dict(), "step": 3})
    for k in range(3, 6):
        step(net, adam, k)

    resumed, optimizer = training(seed=1)
    state = load(tmp_path / "a")
    resumed.load_state_dict(state["net"])
    optimizer.load_state_dict(state["adam"])
    for k in range(state["step"], 6):
        step(resumed, optimizer, k)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_same_state_same_bytes(tmp_path: Path) -> None:
    state = {str(k): torch.full((k,), float(k)) for k in range(20)}
    save(tmp_path / "a", state)
    save(tmp_path / "b", state)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_saved_tensor_shares_nothing(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    save(tmp_path / "a", {"tied": [weight, weight], "view": weight.reshape(2, 3).T, "grad": nn.Parameter(weight)})
    state = load(tmp_path / "a")
    assert torch.equal(state["view"], weight.reshape(2, 3).T)
    assert torch.equal(state["tied"][1], weight)
    assert not state["grad"].requires_grad


def test_every_altered_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "a", {"x": torch.arange(4.0), "step": 7})
    whole = (tmp_path / "a").read_bytes()
    damaged = [whole[:cut] for cut in range(len(whole))]
    damaged += [whole[:k] + bytes([whole[k] ^ 0x01]) + whole[k + 1 :] for k in range(len(whole))]
    damaged.append(whole + b"\0")
    intact = load(tmp_path / "a")
    for content in damaged:
        (tmp_path / "b").write_bytes(content)
        try:
            state = load(tmp_path / "b")
        except Torn:
            continue
        assert same(state, intact)  # one blank of the header for another: nothing was lost


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot save a set \(\{1\}\); use tensors"):
        save(tmp_path / "a", {"x": {1}})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"x": 1}, tmp_path / "a")
    with pytest.raises(Torn):
        load(tmp_path / "a")


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a"
    disk.write(path, b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FullFile:
        def __init__(self, *_: object) -> None:
            path.with_name(disk.partial_name("a")).touch()

        def __enter__(self) -> FullFile:
            return self

        def __exit__(self, *_: object) -> None: ...

        write = full

    target = {"open": (Path, "open", full), "write": (Path, "open", FullFile)}
    monkeypatch.setattr(*target.get(call, (os, call, full)))
    with pytest.raises(OSError, match="No space left"):
        disk.write(path, b"new")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_a_real_limit_on_file_sizes(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "log").write_bytes(b"first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its number is looked at)
            checkpoint.save(tmp_path / "a", {"x": torch.zeros(10_000)})
        assert caught.value.errno in FULL
        with pytest.raises(OSError) as caught:  # noqa: PT011
            disk.append(tmp_path / "log", b"x" * 5000)
        assert caught.value.errno in FULL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").read_bytes() == b"first\n"


def test_a_lock_has_one_owner(tmp_path: Path) -> None:
    first = disk.lock(tmp_path / "lock")
    assert first is not None
    assert disk.lock(tmp_path / "lock") is None
    first.close()
    second = disk.lock(tmp_path / "lock")
    assert second is not None
    second.close()
