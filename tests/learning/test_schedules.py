"""Schedules at their ends, in the middle and beyond."""

from __future__ import annotations

import math

import pytest

from foundation.config.distillation_cfg import ScheduleCfg
from foundation.core.errors import UserError
from foundation.learning.schedules import KINDS, value_at

POINTS = ("piecewise", "step")
"""Kinds that are given by points."""


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_a_schedule_starts_and_ends_where_it_says(kind):
    """``start`` at epoch 0, ``end`` at the last epoch of its length and after, monotone between."""
    schedule = ScheduleCfg(kind, start=2.0, end=0.5, epochs=11)
    values = [value_at(schedule, epoch, 100) for epoch in range(20)]
    assert values[0] == pytest.approx(2.0)
    assert values[10:] == pytest.approx([0.5] * 10)
    assert values == sorted(values, reverse=True)


def test_the_middle_has_the_closed_form():
    """Half-way: the mean for linear and cosine, the geometric mean for exponential; a quarter of a cosine by hand."""
    middle = {kind: value_at(ScheduleCfg(kind, 2.0, 0.5), 5, 11) for kind in ("linear", "cosine", "exponential")}
    assert middle == pytest.approx({"linear": 1.25, "cosine": 1.25, "exponential": 1.0})
    quarter = value_at(ScheduleCfg("cosine", 1.0, 0.0), 1, 5)
    assert quarter == pytest.approx(0.5 * (1.0 + math.sqrt(0.5)))


def test_piecewise_interpolates_between_its_points_and_is_flat_beyond():
    """[epoch, value] pairs."""
    schedule = ScheduleCfg("piecewise", points=[[2, 1.0], [4, 0.0], [4, 5.0], [6, 7.0]])
    assert [value_at(schedule, epoch, 100) for epoch in range(8)] == [1.0, 1.0, 1.0, 0.5, 5.0, 6.0, 7.0, 7.0]


def test_step_keeps_each_value_until_the_next_point():
    """The first value holds before its point, too."""
    schedule = ScheduleCfg("step", points=[[2, 1.0], [4, 0.5], [7, 0.0]])
    assert [value_at(schedule, epoch, 100) for epoch in range(9)] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.0]


def test_a_number_is_a_constant_and_so_is_a_constant_schedule():
    """Plain numbers are accepted wherever a schedule is."""
    assert value_at(0.3, 7, 10) == 0.3
    assert value_at(ScheduleCfg("constant", start=0.3, end=9.0), 7, 10) == 0.3


def test_a_run_of_one_epoch_starts():
    """One epoch is the start, not a division by zero."""
    assert {value_at(ScheduleCfg(kind, 2.0, 1.0), 0, 1) for kind in KINDS if kind not in POINTS} == {2.0}


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ScheduleCfg("linaer"), r"Unknown schedule kind 'linaer'\. Did you mean 'linear'\?"),
        (ScheduleCfg("exponential", 1.0, 0.0), "needs start and end > 0"),
        (ScheduleCfg("piecewise"), "piecewise schedule needs points"),
        (ScheduleCfg("step"), "step schedule needs points"),
    ],
)
def test_what_cannot_be_a_schedule_is_said(schedule, message):
    """One line that names the mistake."""
    with pytest.raises(UserError, match=message):
        value_at(schedule, 0, 10)
