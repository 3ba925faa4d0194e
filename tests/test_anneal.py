"""Anneal at its knots, between them, and its refusals."""

import math

import pytest

from threed.distill.anneal import Anneal


def test_without_an_end_it_is_constant():
    assert [Anneal(0.98)(p) for p in (0, 0.3, 1)] == [0.98, 0.98, 0.98]


def test_linear_knots():
    anneal = Anneal(start=0.98, end=0.5, until=0.2)
    assert anneal(0.0) == 0.98
    assert anneal(0.1) == pytest.approx(0.74, rel=1e-15)
    assert [anneal(p) for p in (0.2, 0.7, 1.0)] == [0.5, 0.5, 0.5]


def test_square_root_falls_fast_then_slowly():
    """HiFA: t = t_max - (t_max - t_min) sqrt(progress)."""
    anneal = Anneal(start=0.98, end=0.02, power=0.5)
    for progress in (0.0, 0.01, 0.25, 0.81, 1.0):
        assert anneal(progress) == pytest.approx(0.98 - 0.96 * math.sqrt(progress), abs=1e-15)


def test_an_end_of_zero_is_an_end():
    assert Anneal(1.0, 0.0)(1.0) == 0.0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"start": math.nan}, "start is nan; give a finite number"),
        ({"start": 1.0, "end": math.inf}, "end is inf; give a finite number"),
        ({"start": 1.0, "until": 0.0}, "until is 0.0; give a progress in"),
        ({"start": 1.0, "until": 1.5}, "until is 1.5; give a progress in"),
        ({"start": 1.0, "power": 0.0}, "power is 0.0; give a positive number"),
        ({"start": 1.0, "power": math.nan}, "power is nan; give a positive number"),
    ],
)
def test_numbers_that_are_no_schedule_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        Anneal(**numbers)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_is_refused(progress):
    with pytest.raises(ValueError, match=r"progress is .*; give a number in"):
        Anneal(1.0, 0.0)(progress)
