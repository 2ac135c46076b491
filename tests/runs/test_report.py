"""What a run's console shows: three lines an evaluated epoch, and the time left."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from foundation.config.distillation_cfg import DistillationCfg, OptimizerCfg
from foundation.learning.learner import LearningStats
from foundation.rollout.episodes import CollectionStats
from foundation.runs import report
from foundation.runs.report import Clock, Reporter


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_the_epochs_left_and_the_last_measurement() -> None:
    """Epochs of 9 s: after three, with two and a measurement of 12 s to come, 30 s are left."""
    time = Time()
    clock = Clock(time)
    assert clock.line(5) == "elapsed 0:00"
    for _ in range(3):
        time.now += 9.0
        clock.epoch_ended()
    clock.closing = 12.0
    assert clock.line(2) == "elapsed 0:27, left 0:30"
    assert clock.line(0) == "elapsed 0:27, left 0:12"


def test_the_time_left_follows_the_recent_epochs() -> None:
    """A hundred fast epochs before do not count against ten slow ones: 10 epochs of 360 s are an hour."""
    time = Time()
    clock = Clock(time)
    for seconds in [1.0] * 100 + [360.0] * 10:
        time.now += seconds
        clock.epoch_ended()
    assert clock.line(10) == "elapsed 1:01:40, left 1:00:00"


def learned() -> LearningStats:
    return LearningStats(mean_loss=0.012345, num_updates=100, learning_rate=1e-4, terms={})


def collected() -> CollectionStats:
    returns = torch.tensor([33.0, 57.0])
    return CollectionStats(returns=returns, lengths=torch.full((2,), 5.0), success=torch.ones(2).bool(), env_steps=10)


def lines(evaluations: list[bool], cfg: DistillationCfg, seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is shown of epochs that take so many seconds each; True are evaluated."""
    time = Time()
    monkeypatch.setattr(report, "Clock", lambda: Clock(time))
    console = Console(file=io.StringIO(), highlight=False, soft_wrap=True)
    reporter = Reporter(cfg, console=console)
    figures = {"mean_return": 640.0, "std_return": 20.0, "success_rate": 0.99}
    for epoch, evaluated in enumerate(evaluations):
        time.now += seconds
        reporter.epoch(
            epoch, 1.0, collected(), learned(), figures if evaluated else None, {"evaluation_seconds": 1.0}, {}
        )
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_an_evaluation_is_one_line_with_the_documented_words(monkeypatch) -> None:
    """Collection, training and evaluation of an epoch stand in one line; epochs without one are not shown."""
    cfg = DistillationCfg(n_epochs=9, num_eval_episodes=100, final_eval_episodes=200)
    [shown] = lines([False, False, True, False], cfg, 2.0, monkeypatch)
    assert shown == (
        "Epoch 3/9 (teacher forcing): 10 transitions, 2 whole episodes"
        " | Data collection - Mean return: 45.00 ± 12.00"
        " | Training - Mean loss: 0.012345"
        " | Evaluation - Mean return: 640.00 ± 20.00, success 99.0 %"
        " | elapsed 0:06, left 0:16"  # six epochs of 2 s are left, and twice 2 s for twice the episodes
    )


def test_slow_epochs_and_the_last_one_are_shown_without_an_evaluation(monkeypatch) -> None:
    """Nobody has to wait for a sign of life longer than an epoch, or than ten seconds."""
    cfg = DistillationCfg(n_epochs=3)
    assert len(lines([False, False, False], cfg, 60.0, monkeypatch)) == 3
    [last] = lines([False, False, False], cfg, 1.0, monkeypatch)
    assert last.startswith("Epoch 3/3 ")


def test_the_last_measurement_is_announced_with_the_flag_that_shortens_it(capsys) -> None:
    """It takes a while, and says nothing meanwhile."""
    Reporter(DistillationCfg()).last_measurement(2048, cheap=True)
    said = capsys.readouterr().out
    assert said == (
        "Measuring the best student and the teacher on 2048 fresh episodes each (--final_eval_episodes) ...\n"
    )


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"batch_size": 16}, "lower --batch_size (now 16, try 4), or collect more"),
        ({"batch_size": 16, "updates_per_epoch": 2}, "raise distill.optimizer.updates_per_epoch (now 2)."),
        ({"batch_size": 1}, "raise distill.optimizer.update_ratio (now 2), or collect more"),
        ({}, "give a --batch_size (now 256 transitions"),
    ],
)
def test_the_advice_on_too_few_updates_makes_more_of_them(caplog, options, advice):
    """What is advised differs from what is set, and is what the number of updates depends on."""
    optimizer = OptimizerCfg(updates_per_epoch=options.pop("updates_per_epoch", None))
    reporter = Reporter(DistillationCfg(optimizer=optimizer, **options))
    reporter._warn_of_few_updates(2)
    assert f"only 2 updates in an epoch: {advice}" in caplog.text


def test_an_epoch_is_broken_between_its_figures_on_a_terminal_that_is_too_narrow() -> None:
    """At 120 columns no line is longer, and none ends in the middle of a figure; a wide one shows one line."""
    for width, number in ((120, 3), (400, 1)):
        console = Console(file=io.StringIO(), highlight=False, soft_wrap=True, force_terminal=True, width=width)
        reporter = Reporter(DistillationCfg(n_epochs=1), console=console)
        title = "Epoch 1/1 (student acts): 102,400 transitions, 1,024 whole episodes"
        parts = [f"Data collection - Mean return: {'1' * 80}", "Evaluation - Mean return: 640.00 ± 20.00"]
        reporter.show_epoch(1, title, parts, evaluated=True)
        shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(shown) == number and max(map(len, shown)) <= width
        assert [line.strip() for line in shown] == ([title, *parts] if number == 3 else [" | ".join([title, *parts])])
