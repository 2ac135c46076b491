"""Forgetting and transfer, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest

from foundation.core.errors import UserError
from foundation.evaluation.forgetting import TaskReturns, measure_forgetting, normalized_score

# Three tasks in returns 0 to 10, -10 to 10 and 100 to 300 of (random, reference).
TASKS = [
    TaskReturns("a", random=0.0, reference=10.0, before=1.0, after=(9.0, 10.0, 4.0)),
    TaskReturns("b", random=-10.0, reference=10.0, before=-10.0, after=(-6.0, 8.0, 0.0)),
    TaskReturns("c", random=100.0, reference=300.0, before=90.0, after=(100.0, 150.0, 310.0)),
]


def test_scores_are_zero_at_random_and_one_at_the_reference():
    """(value - random) / (reference - random); negative returns need no care, and a useless reference gives NaN."""
    assert normalized_score(-10.0, -10.0, 30.0) == 0.0
    assert normalized_score(30.0, -10.0, 30.0) == 1.0
    assert normalized_score(10.0, -10.0, 30.0) == 0.5
    assert math.isnan(normalized_score(1.0, 5.0, 5.0))
    assert math.isnan(normalized_score(1.0, 5.0, 4.0))
    assert math.isnan(normalized_score(1.0, math.nan, 4.0))


def test_the_measures_by_hand():
    """Every figure of three tasks, worked on paper."""
    found = measure_forgetting(TASKS)
    assert found.matrix == [
        pytest.approx([0.9, 0.2, 0.0]),
        pytest.approx([1.0, 0.9, 0.25]),
        pytest.approx([0.4, 0.5, 1.05]),
    ]
    assert found.forgetting[:2] == pytest.approx([1.0 - 0.4, 0.9 - 0.5])  # a was best after stage b
    assert math.isnan(found.forgetting[2])
    assert found.retention == pytest.approx([0.4 / 0.9, 0.5 / 0.9, 1.0])
    assert found.mean_score == pytest.approx((0.4 + 0.5 + 1.05) / 3)
    assert found.backward_transfer == pytest.approx(((0.4 - 0.9) + (0.5 - 0.9)) / 2)
    assert found.forward_transfer == pytest.approx(((0.2 - 0.0) + (0.25 - (-0.05))) / 2)


def test_measures_do_not_depend_on_the_units_of_the_returns():
    """Returns times 7 plus 3 give the same figures."""
    other = [
        TaskReturns(t.name, 7 * t.random + 3, 7 * t.reference + 3, 7 * t.before + 3, tuple(7 * x + 3 for x in t.after))
        for t in TASKS
    ]
    one, two = measure_forgetting(TASKS).tags(), measure_forgetting(other).tags()
    assert one.keys() == two.keys()
    assert list(one.values()) == pytest.approx(list(two.values()))


def test_tags_leave_out_what_is_not_known():
    """One task has no transfer and no forgetting; its score and its retention, 1, are there."""
    tags = measure_forgetting([TaskReturns("a", 0.0, 10.0, 0.0, (5.0,))]).tags()
    assert tags == {"forgetting/mean_score": 0.5, "forgetting/score/a": 0.5, "forgetting/retention/a": 1.0}


def test_improving_is_negative_forgetting():
    """A task that later stages improve is not forgotten."""
    better = measure_forgetting(
        [TaskReturns("a", 0.0, 1.0, 0.0, (0.5, 0.75)), TaskReturns("b", 0.0, 1.0, 0.0, (0.0, 1.0))]
    )
    assert better.forgetting[0] == -0.25 and better.backward_transfer == 0.25


def test_missing_measurements_are_named():
    """Each task must have been measured after each stage."""
    with pytest.raises(UserError, match="task 'b' was measured after 1 stages, and there are 2 tasks"):
        measure_forgetting([TaskReturns("a", 0, 1, 0, (1.0, 1.0)), TaskReturns("b", 0, 1, 0, (1.0,))])
    with pytest.raises(UserError, match="no task"):
        measure_forgetting([])
