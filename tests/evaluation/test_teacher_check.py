"""Is the teacher worth learning from: when a run stops, when it warns, and what it says."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from toy_env import REGULATOR_GAIN, LinearTeacher, RegulatorEnv

from foundation.config.distillation_cfg import TeacherCfg
from foundation.core.errors import UserError
from foundation.evaluation.teacher_check import check_teacher, is_above
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.baselines import measure_baselines
from foundation.rollout.evaluate import EvaluationResult

CAUSES = ("distill.teacher.obs_groups", "order", "normaliser", "distill.teacher.activation", "scale")


def episodes(returns: list[float]) -> EvaluationResult:
    values = torch.tensor(returns)
    return EvaluationResult(values, torch.ones_like(values), values > 0)


def unknown(returns: torch.Tensor) -> EvaluationResult:
    """Episodes of which nobody says whether they succeeded."""
    return EvaluationResult(returns, torch.ones_like(returns), None)


def results(teacher: list[float], zero: list[float], random: list[float]) -> dict[str, EvaluationResult]:
    return {"teacher": episodes(teacher), "zero": episodes(zero), "random": episodes(random)}


@pytest.mark.parametrize("random", [[10.0, 11.0, 12.0], [5.0, 6.0, 7.0], [4.0, 5.0, 9.0]])
def test_a_teacher_not_above_random_stops_the_run_and_the_line_names_the_causes(random):
    """Below, equal, or above by less than chance gives: one line with both figures, the causes and the way on."""
    with pytest.raises(UserError) as error:
        check_teacher(results([5.0, 6.0, 7.0], [0.0, 0.0, 1.0], random), TeacherCfg(obs_groups=["policy"]))
    line = str(error.value)
    assert "\n" not in line
    assert "6.00 ± " in line and f"{statistics.mean(random):.2f} ± " in line
    assert all(cause in line for cause in (*CAUSES, "(now policy)", "distill.teacher.check=false"))


def test_where_everything_scores_the_same_the_line_says_so():
    """No reward reaches anybody: it may be the task, and the line tells how to go on then."""
    with pytest.raises(UserError, match=r"zero actions return the same.*check=false"):
        check_teacher(results([0.0] * 4, [0.0] * 4, [0.0] * 4), TeacherCfg())


@pytest.mark.parametrize(("checkpoint", "shown"), [("a.pt", " 'a.pt' prints"), ("set/teachers.yaml", " prints")])
def test_only_one_file_is_named_to_look_at(checkpoint, shown):
    """What teacher_info.py cannot read, a manifest, is not given to it."""
    with pytest.raises(UserError, match=f"teacher_info.py{shown}"):
        check_teacher(results([1.0, 2.0], [0.0, 0.0], [5.0, 6.0]), TeacherCfg(checkpoint=checkpoint))


def test_with_the_check_off_the_run_is_warned_and_goes_on():
    """``distill.teacher.check=false``: one warning with the same causes."""
    [line] = check_teacher(results([1.0, 2.0], [0.0, 0.0], [5.0, 6.0]), TeacherCfg(check=False))
    assert all(cause in line for cause in CAUSES)


def test_a_teacher_below_zero_actions_stops_the_run():
    """A good task has a good zero action: a teacher below it reads something else; unless told, the run stops."""
    measured = results([5.0, 6.0, 7.0], [8.0, 8.0, 8.0], [0.0, 1.0, 0.0])
    with pytest.raises(UserError, match=r"6\.00 ± .*is below that of zero actions, 8\.00.*distill.teacher.check=false"):
        check_teacher(measured, TeacherCfg())
    [line] = check_teacher(measured, TeacherCfg(check=False))
    assert "zero actions, 8.00" in line and "normaliser" in line
    assert check_teacher(results([5.0, 6.0, 7.0], [4.0, 4.0, 4.0], [0.0, 1.0, 0.0]), TeacherCfg()) == []


def spread_out(mean: float, std: float, number: int = 64) -> list[float]:
    """Returns of exactly this mean and sample standard deviation."""
    values = torch.linspace(-1.0, 1.0, number, dtype=torch.float64)
    return (mean + std * values / values.std()).tolist()


def test_a_teacher_barely_above_no_policy_is_warned_of():
    """The PPO of two iterations: -69 beside -76 and -119, no success. By the spread, or by the way to solved."""
    measured = results(spread_out(-69.0, 20.0), spread_out(-76.0, 9.0), spread_out(-119.0, 7.0))
    [line] = check_teacher(measured, TeacherCfg())
    share = 7.0 / math.sqrt(0.5 * (20.0**2 + 9.0**2))
    assert "barely above that of zero actions" in line and f"{share:.1f} of the standard deviation" in line
    assert "success is 0 % in 64 episodes" in line
    [line] = check_teacher(measured, TeacherCfg(), solved_return=600.0)
    assert f"{100 * 7.0 / 676.0:.1f} % of the way to the task's solved return 600.00" in line


@pytest.mark.parametrize(
    ("teacher", "solved"),
    [((681.0, 12.0), 600.0), ((400.0, 150.0), 600.0), ((681.0, 12.0), None), ((40.0, 60.0), 600.0)],
)
def test_teachers_that_have_learned_something_are_not_warned_of(teacher, solved):
    """The shipped teacher, a mediocre one, and one at a sixth of the way pass without a word."""
    measured = results(spread_out(*teacher), spread_out(-76.0, 9.0), spread_out(-119.0, 7.0))
    assert check_teacher(measured, TeacherCfg(), solved) == []


def test_a_teacher_without_any_success_is_said_so_and_unknown_is_not_zero():
    """0 % is loud; where success is unknown nothing is said."""
    measured = results(spread_out(-10.0, 1.0), spread_out(-76.0, 9.0), spread_out(-119.0, 7.0))
    [line] = check_teacher(measured, TeacherCfg())
    assert "success is 0 %" in line and "barely" not in line
    for result in measured.values():
        result.success = None
    assert check_teacher(measured, TeacherCfg()) == []


def test_the_wanted_return_is_asked_for_first_and_whatever_the_check_says():
    """``--teacher_min_return`` is the user's own bar."""
    for check in (True, False):
        with pytest.raises(UserError, match=r"is 1\.50, below --teacher_min_return 2:"):
            check_teacher(results([1.0, 2.0], [0.0, 0.0], [5.0, 6.0]), TeacherCfg(min_return=2.0, check=check))


def test_above_is_welchs_test_on_one_side():
    """The border lies at 1.645 standard errors, computed here with the standard library."""
    one, other = [3.0, 5.0, 4.0, 8.0], [1.0, 2.0, 4.0]
    error = math.sqrt(statistics.variance(one) / 4 + statistics.variance(other) / 3)
    shift = statistics.mean(one) - statistics.mean(other) - 1.645 * error
    for nudge, above in ((-1e-3, True), (1e-3, False)):
        moved = [value + shift + nudge for value in other]
        assert is_above(episodes(one), episodes(moved)) is above
    assert is_above(episodes([1.0]), episodes([0.5, 0.7])) and not is_above(episodes([0.5]), episodes([0.5]))


def test_equal_policies_pass_in_one_of_twenty():
    """Of 2000 comparisons of a policy with itself, 5 % are above, give or take three standard errors."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 2, 128, generator=generator)
    rate = sum(is_above(episodes(a.tolist()), episodes(b.tolist())) for a, b in draws) / 2000
    assert abs(rate - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(
    ("gain", "stops"),
    [(REGULATOR_GAIN, False), (-REGULATOR_GAIN, True), (0.2 * REGULATOR_GAIN, False)],
    ids=["good", "sign of the actions", "a fifth of the actions' scale"],
)
def test_in_an_environment_a_misread_teacher_is_told_from_a_good_one(gain, stops):
    """A regulator with its sign turned is worse than chance; a timid one is not, and is let through."""
    actor = PolicyActor(LinearTeacher(gain.clone()), ObsSelector(["policy"]))
    measured = measure_baselines(RegulatorEnv(32), actor, 32, 0, shared_rollout=False)
    if stops:
        with pytest.raises(UserError, match="not above that of random actions"):
            check_teacher(measured, TeacherCfg())
    else:
        assert check_teacher(measured, TeacherCfg()) == []


@pytest.mark.parametrize(
    ("teacher", "no_policy", "says"),
    [
        (200.0002, 200.0, "% of it, the same in every episode"),
        (-99.9, -100.0, "0.1 % of it, the same in every episode"),
        (200.0, 100.0, None),
        (-50.0, -100.0, None),
    ],
)
def test_returns_that_are_the_same_in_every_episode_have_a_scale_too(teacher, no_policy, says):
    """Without a spread a gain is compared with the return itself: a rounding of float32 is no teacher."""
    constant = {"teacher": teacher, "zero": no_policy, "random": no_policy}
    measured = {name: unknown(torch.full((64,), value)) for name, value in constant.items()}
    warnings = check_teacher(measured, TeacherCfg())
    if says is None:
        assert warnings == []
    else:
        assert len(warnings) == 1 and says in warnings[0]


def test_small_returns_are_shown_with_their_digits():
    """Returns of a ten-millionth are not "0.00 ± 0.00"."""
    spread = torch.linspace(-1e-8, 1e-8, 65)
    measured = {name: unknown(mean + spread) for name, mean in (("teacher", 1.03e-7), ("zero", 1e-7), ("random", 9e-8))}
    [warning] = check_teacher(measured, TeacherCfg())
    assert warning.count("1e-07 ± ") == 2 and "0.00" not in warning


def test_a_solved_return_that_doing_nothing_reaches_says_nothing_of_the_way():
    """The gain is then compared with the spread, instead of passing whatever it is."""
    spread = torch.linspace(-1.0, 1.0, 65)
    means = (("teacher", 150.3), ("zero", 150.0), ("random", 149.0))
    measured = {name: unknown(mean + spread) for name, mean in means}
    [warning] = check_teacher(measured, TeacherCfg(), 100.0)
    assert "of the standard deviation" in warning
