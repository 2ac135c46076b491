"""What an epoch's episodes are for, worked out by hand from the config."""

from __future__ import annotations

import pytest

from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg
from foundation.runs.epoch_plan import EpochPlan


def plan(has_eval_env: bool = False, **settings: object) -> EpochPlan:
    """A plan of 30 epochs, teacher-forced in the first 4, with dotted settings on top."""
    cfg = DistillationCfg(n_epochs=30, epoch_teacher_forcing=4)
    for name, value in settings.items():
        *groups, last = name.split("__")
        holder: object = cfg
        for group in groups:
            holder = getattr(holder, group)
        setattr(holder, last, value)
    return EpochPlan(cfg, has_eval_env)


def test_the_teacher_acts_first_and_then_the_student() -> None:
    """Four forced epochs: the normaliser is fitted in them, and the student may act from the fifth on."""
    own = plan()
    assert [own.beta(epoch) for epoch in (0, 3, 4, 29)] == [1.0, 1.0, 0.0, 0.0]
    assert own.first_student_epoch == own.forced_epochs == 4
    assert [own.fits_normalizer(epoch) for epoch in (3, 4)] == [True, False]


def test_without_forced_epochs_the_normaliser_is_fitted_to_the_first() -> None:
    """A student that acts at once has nothing else to be fitted to."""
    own = plan(epoch_teacher_forcing=0)
    assert [own.fits_normalizer(epoch) for epoch in (0, 1)] == [True, False]


def test_a_student_that_never_acts_is_forced_to_the_end() -> None:
    """As many forced epochs as there are."""
    own = plan(epoch_teacher_forcing=50)
    assert own.first_student_epoch is None and own.forced_epochs == 30


@pytest.mark.parametrize(
    ("settings", "teacher", "student"),
    [
        ({}, True, True),
        ({"has_eval_env": True}, False, False),
        ({"collection__mode": "steps"}, False, False),
        ({"collection__epsilon": 0.1}, False, False),
        ({"collection__noise_std": 0.1}, False, False),
        ({"teacher_deterministic": False}, False, True),
        ({"collection__student_deterministic": False}, True, False),
        ({"optimizer__ema_decay": 0.9}, True, False),
        ({"collection__beta": ScheduleCfg(kind="constant", start=0.5)}, False, False),
    ],
)
def test_episodes_measure_whoever_acts_alone_in_them(settings: dict, teacher: bool, student: bool) -> None:
    """Whole episodes of the only environment, without noise, of the policy whose figure is wanted."""
    own = plan(**settings)
    assert (own.teacher_acts_alone(0), own.student_acts_alone(10)) == (teacher, student)
    assert not own.student_acts_alone(0) and not own.teacher_acts_alone(10)


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"has_eval_env": True}, list(range(30))),
        ({"epoch_teacher_forcing": 25}, [9, 19, 25, 26, 27, 28, 29]),
        ({"eval_interval": 7}, [6, 13, 20, 27, 29]),
    ],
)
def test_evaluations_are_rare_where_they_interrupt_the_teacher(settings: dict, due: list[int]) -> None:
    """Every epoch; every tenth of the forced ones where there is one environment; or as given, and after the last."""
    own = plan(**settings)
    assert [epoch for epoch in range(30) if own.evaluation_due(epoch)] == due
