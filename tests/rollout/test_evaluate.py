"""Evaluation: which episodes count, what they add up to, and what is left untouched."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_env import REGULATOR_GAIN, ConstantStudent, CountingEnv, CountingPolicy, LinearTeacher, RegulatorEnv

from foundation.core.errors import RunInterrupted, UserError
from foundation.evaluation.report_table import evaluation_figures, evaluation_table
from foundation.policies.actors import PolicyActor, RandomActor, SplitActor, ZeroActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.baselines import measure_baselines, ratio_interval, scores
from foundation.rollout.evaluate import EvaluationResult, evaluate
from foundation.rollout.stepper import Observer
from foundation.teachers.assignment import TeacherAssignment

LENGTHS = [[2, 7, 4], [7, 3, 3], [5, 5, 6], [1, 2, 7]]
POLICY = ObsSelector(["policy"])


def triangle(length: float) -> float:
    return length * (length + 1) / 2


@pytest.mark.parametrize(("wanted", "rounds"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_the_first_episodes_of_each_environment_count_and_no_other(wanted, rounds):
    """As many of each environment, in its own order; a fast one does not stand in for a slow one."""
    env = CountingEnv(LENGTHS, 7)
    result = evaluate(env, ZeroActor(2), wanted, seed=9)
    expected = [float(length) for lengths in LENGTHS for length in lengths[:rounds]]
    assert result.lengths.tolist() == expected
    assert result.returns.tolist() == [triangle(length) for length in expected]
    assert result.success.tolist() == [length == 7 for length in expected], "success is ending by time-out"
    assert result.metrics["last_step"].tolist() == expected
    assert env.seeds[-1] == 9


def test_a_tasks_own_success_replaces_the_time_out():
    """``episode_metrics["success"]`` at the step that ends the episode is the success."""

    class WithSuccess(CountingEnv):
        def step(self, actions):
            obs, rewards, dones, extras = super().step(actions)
            extras["episode_metrics"]["success"] = extras["episode_metrics"]["last_step"] == 5
            return obs, rewards, dones, extras

    result = evaluate(WithSuccess(LENGTHS, 7), ZeroActor(2), 4, 0)
    assert result.success.tolist() == [False, False, True, False]
    assert "success" not in result.metrics


class WithoutTimeOuts(CountingEnv):
    """What RSL-RL's contract allows: extras without ``time_outs``."""

    def step(self, actions):
        obs, rewards, dones, extras = super().step(actions)
        return obs, rewards, dones, {"episode_metrics": extras["episode_metrics"]}


def test_how_an_episode_ended_is_unknown_without_time_outs_and_not_a_failure():
    """Neither time-outs nor a success metric: no success, in the result, its summary and its table."""
    result = evaluate(WithoutTimeOuts(LENGTHS, 7), ZeroActor(2), 8, 0)
    assert result.success is None and result.part(slice(0, 2)).success is None
    assert "success_rate" not in result.summary()
    figures = evaluation_figures(result)
    assert figures["success_rate"] is None
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(evaluation_table("task", [], figures | {"metrics": {}}))
    assert "unknown" in shown.export_text() and "0.0 %" not in shown.export_text()


def test_a_metric_is_shown_in_the_unit_that_its_task_declares():
    """0.25 m are 25 cm where the task says so, and 0.25 without a unit where it does not."""
    figures = evaluation_figures(evaluate(CountingEnv(LENGTHS, 7), ZeroActor(2), 8, 0))
    figures["metrics"] = {"position_error": {"mean": 0.25, "std": 0.5}}
    for units, text in (({"position_error": (100.0, "cm")}, "position error [cm] 25.00 ± 50.00"), (None, "0.2500")):
        shown = Console(width=120, record=True, file=io.StringIO())
        shown.print(evaluation_table("task", [], figures, units))
        assert text in " ".join(shown.export_text().replace("│", " ").split())


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    """Pairs with a known ratio of means, 0.9: of 400 samples the 95 % interval holds it in 92 to 98 of a hundred."""
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for _ in range(400):
        start = torch.rand(64, generator=generator)
        teacher = 5.0 + 4.0 * start + 0.5 * torch.randn(64, generator=generator)
        student = 0.9 * (5.0 + 4.0 * start) + 0.5 * torch.randn(64, generator=generator)
        ratio = float(student.mean() / teacher.mean())
        covered += abs(ratio - 0.9) <= ratio_interval(student, teacher)
    assert 0.92 <= covered / 400 <= 0.98
    same = torch.tensor([1.0, 2.0, 3.0])
    assert ratio_interval(same, same) == 0.0, "the same episodes: no doubt about the ratio"
    assert ratio_interval(same[:1], same[:1]) == math.inf


class StepsAndActions(Observer):
    """The step of each episode and the action, both (num_envs,), of every env step."""

    def __init__(self):
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before_step(self, obs, actions):
        self.pairs.append((obs["policy"][:, 2], actions[:, 0]))


def test_a_policy_with_memory_begins_each_episode_afresh():
    """A counting policy plays the number of steps since its episode began, after resets in mid-rollout too."""
    env = CountingEnv(LENGTHS, 7)
    actor = PolicyActor(CountingPolicy(3), POLICY)
    seen = StepsAndActions()
    evaluate(env, actor, 12, 0, [seen])
    assert all(torch.equal(step, played) for step, played in seen.pairs)
    evaluate(env, actor, 4, 0, [seen])
    assert all(torch.equal(step, played) for step, played in seen.pairs), "a second evaluation starts without memory"


def test_the_same_seed_gives_the_same_episodes_and_another_does_not():
    """The seed decides the initial states."""
    env, actor = RegulatorEnv(16), PolicyActor(LinearTeacher(REGULATOR_GAIN), POLICY)
    returns = [evaluate(env, actor, 32, seed).returns for seed in (1, 1, 2)]
    assert torch.equal(returns[0], returns[1])
    assert not torch.equal(returns[0], returns[2])


class SeedsEverything(RegulatorEnv):
    """Seeds the global generators in ``reset``, as Isaac Lab does, and draws from them."""

    def reset(self, seed=None):
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        torch.rand(1), np.random.rand(), random.random()
        return super().reset(seed)


@pytest.mark.parametrize("broken", [False, True])
def test_every_global_random_state_is_as_before_afterwards(broken):
    """torch's, numpy's and Python's, even where the evaluation fails."""
    env = SeedsEverything(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def stop() -> None:
        if broken:
            raise RunInterrupted

    if broken:
        with pytest.raises(RunInterrupted):
            evaluate(env, ZeroActor(2), 40, 5, poll=stop)
    else:
        evaluate(env, ZeroActor(2), 40, 5, poll=stop)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_summary_by_hand():
    """Mean, population standard deviation, rates and the 95 % interval of four episodes."""
    result = EvaluationResult(
        torch.tensor([1.0, 2.0, 3.0, 6.0]),
        torch.tensor([10.0, 10.0, 10.0, 20.0]),
        torch.tensor([True, False, True, True]),
        {"position_error": torch.tensor([0.0, 0.1, 0.2, 0.3])},
    )
    expected = {
        "mean_return": 3.0,
        "std_return": 3.5**0.5,
        "mean_length": 12.5,
        "success_rate": 0.75,
        "position_error": 0.15,
    }
    assert result.summary() == pytest.approx(expected)
    assert result.return_interval == pytest.approx(1.96 * math.sqrt(14.0 / 3.0) / 2.0)
    assert math.isinf(result.part(slice(0, 1)).return_interval)
    assert result.part(slice(1, 3)).summary()["mean_return"] == 2.5


def test_what_never_ends_and_what_is_not_finite_is_an_error():
    """Evaluation ends with one line in both cases."""
    endless = CountingEnv([[10**6]], 10**6)
    endless.max_episode_length = 30
    with pytest.raises(UserError, match="did not end within max_episode_length=30"):
        evaluate(endless, ZeroActor(2), 1, 0)
    spoiled = PolicyActor(ConstantStudent(2, [math.nan, 0.0]), POLICY)
    with pytest.raises(UserError, match="NaN"):
        evaluate(RegulatorEnv(2), spoiled, 2, 0)


@pytest.mark.parametrize("shared", [False, True])
def test_teacher_beats_random_and_zero_and_all_see_their_own_environments(shared):
    """One rollout split in three, or three rollouts: the same ranking, and the right number of episodes of each."""
    env = RegulatorEnv(64)
    found = measure_baselines(env, PolicyActor(LinearTeacher(REGULATOR_GAIN), POLICY), 64, 5, shared_rollout=shared)
    counts = {name: len(result.returns) for name, result in found.items()}
    assert counts == ({"teacher": 21, "zero": 21, "random": 22} if shared else dict.fromkeys(found, 64))
    assert found["teacher"].mean_return > max(found["zero"].mean_return, found["random"].mean_return)


def test_a_shared_rollout_takes_as_many_rounds_as_there_are_episodes_to_fly():
    """Of few environments each flies several episodes, and every actor gets those of its own block."""
    env = CountingEnv([[2]] * 2 + [[3]] * 2 + [[4]] * 2, 4)
    found = measure_baselines(env, ZeroActor(2), 60, 5, shared_rollout=True)
    assert {name: result.lengths.tolist() for name, result in found.items()} == {
        "teacher": [2.0] * 20,
        "zero": [3.0] * 20,
        "random": [4.0] * 20,
    }


@pytest.mark.parametrize(("num_teachers", "counts"), [(2, [3, 3]), (3, [6, 6, 6])])
def test_no_teacher_goes_unmeasured_for_want_of_environments(num_teachers, counts):
    """A third of the environments is shared out only where every teacher has one among them."""
    teachers = TeacherAssignment([str(number) for number in range(num_teachers)])
    env = CountingEnv([[3]] * 6, 3)
    found = measure_baselines(
        env, ZeroActor(2), 18, 5, shared_rollout=True, teacher_of=teachers.index, num_teachers=num_teachers
    )
    assert torch.bincount(found["teacher"].teacher, minlength=num_teachers).tolist() == counts


def test_a_split_actor_gives_each_block_its_own_actor():
    """Consecutive blocks; the last one takes what is left over."""
    env = CountingEnv([[3]] * 5, 3)
    split = SplitActor([ZeroActor(2), PolicyActor(ConstantStudent(3, [1.0, 1.0]), POLICY)], 5)
    actions = split.act(env.get_observations())
    assert actions[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_random_actions_are_uniform_and_of_their_own_seed():
    """In [-1, 1], the same for the same seed, without touching the global generator."""
    before = torch.get_rng_state()
    obs = RegulatorEnv(1000).get_observations()
    one, two, other = (RandomActor(2, seed).act(obs) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert float(one.abs().max()) <= 1.0
    assert float(one.std()) == pytest.approx(3**-0.5, rel=0.05)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("student", "teacher", "random_", "expected"),
    [
        (90.0, 100.0, 20.0, {"return_ratio": 0.9, "normalized_score": 0.875}),
        (-50.0, -20.0, -120.0, {"normalized_score": 0.7}),
        (5.0, 10.0, 10.0, {"return_ratio": 0.5}),
        (5.0, -1.0, 3.0, {}),
    ],
)
def test_scores_by_hand_and_absent_where_they_mean_nothing(student, teacher, random_, expected):
    """A ratio needs a positive teacher, a normalised score a teacher better than random."""
    assert scores(student, teacher, random_) == pytest.approx(expected)
