"""Similarity: closed forms of the divergences, and errors that one known column explains."""

from __future__ import annotations

import math

import pytest
import torch
from toy_env import REGULATOR_GAIN, LinearTeacher, RegulatorEnv

from foundation.evaluation.similarity import (
    ComparedStates,
    explain_errors,
    fifths,
    gaussian_kl,
    measure_similarity,
    similarity_table,
)
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput


def test_kl_of_two_gaussians():
    """KL(N(0, 1) || N(1, 2)) = ln 2 + (1 + 1) / 8 - 1/2, and twice that for two independent ones."""
    p = PolicyOutput(torch.zeros(1, 2), torch.ones(1, 2))
    q = PolicyOutput(torch.ones(1, 2), torch.full((1, 2), 2.0))
    assert float(gaussian_kl(p, q)) == pytest.approx(2 * (math.log(2.0) + 0.25 - 0.5), rel=1e-6)
    assert float(gaussian_kl(p, p)) == 0.0


def test_the_column_that_makes_the_error_is_found():
    """The error is 4 where column 1 is above 0.8 and else 0: that part of that column, and all of the variance."""
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(20_000, 3, generator=generator)
    errors = 4.0 * (observed[:, 1] > 0.8)
    first, *others = explain_errors(observed, errors, ["a [m]", "b [m/s]", "c"])
    assert first.name == "b [m/s]"
    assert first.share == pytest.approx(1.0, abs=0.05)
    assert first.low == pytest.approx(0.8, abs=0.02) and first.high == pytest.approx(1.0, abs=0.01)
    assert first.rmse == pytest.approx(2.0, abs=0.05)
    assert all(column.share < 0.01 for column in others)
    assert explain_errors(observed, torch.ones(20_000), []) == ()


def test_columns_of_few_values_and_without_names_are_read():
    """Two values, as a flag has, make two parts; a column that does not vary explains nothing."""
    observed = torch.stack([torch.arange(100.0) % 2, torch.zeros(100)], 1)
    columns = explain_errors(observed, observed[:, 0], [])
    assert [column.name for column in columns] == ["observation 0", "observation 1"]
    assert columns[0].share == pytest.approx(1.0) and columns[0].low == columns[0].high == 1.0
    assert columns[1].share == 0.0


def actor(gain: torch.Tensor) -> PolicyActor:
    return PolicyActor(LinearTeacher(gain), ObsSelector(["policy"]))


def test_a_teacher_is_like_itself():
    """No error on either set of states, from the same starts."""
    own, other = actor(REGULATOR_GAIN.clone()), actor(REGULATOR_GAIN.clone())
    for one in measure_similarity(RegulatorEnv(8), own, other, num_episodes=8):
        assert one.figures["action_rmse"] == 0.0
    assert similarity_table(measure_similarity(RegulatorEnv(8), own, other, num_episodes=8)).row_count == 2


def test_the_error_of_the_actions_is_that_of_the_policies():
    """Student = teacher + 0.3 in every action: the RMSE is 0.3 wherever it is measured, none within a bound of 0."""
    student = PolicyActor(LinearTeacher(REGULATOR_GAIN.clone(), 0.3), ObsSelector(["policy"]))
    found = measure_similarity(RegulatorEnv(8), actor(REGULATOR_GAIN.clone()), student, num_episodes=8)
    assert [one.states for one in found] == ["teacher", "student"]
    for one in found:
        assert one.figures["action_rmse"] == pytest.approx(0.3, rel=1e-4)
        assert one.figures["value_rmse"] == pytest.approx(0.3 * REGULATOR_GAIN.shape[1], rel=1e-4)
    assert found[0].episodes == ()
    worst = found[1].episodes
    assert [episode.total for episode in worst] == sorted(episode.total for episode in worst)
    assert all(error == pytest.approx(0.3, rel=1e-4) for episode in worst for error in episode.errors)
    clipped = measure_similarity(RegulatorEnv(8), actor(REGULATOR_GAIN.clone()), student, num_episodes=8, bound=0.0)
    assert clipped[0].figures["action_rmse"] == 0.0


def test_discrete_choices_and_their_distributions():
    """Logits (ln 3, 0) and (0, 0) are 3/4, 1/4 and even: KL 0.1308 and agreement of the larger one, by hand."""
    states = ComparedStates(actor(REGULATOR_GAIN), actor(REGULATOR_GAIN), "teacher", None, discrete=True)
    teacher = PolicyOutput(torch.zeros(2, 1), logits=torch.tensor([[math.log(3.0), 0.0]] * 2))
    student = PolicyOutput(torch.tensor([[0.0], [1.0]]), logits=torch.zeros(2, 2))
    errors = states._compare(teacher, student)
    assert errors.tolist() == [0.0, 1.0]
    states._errors, states._observed = [errors], [torch.zeros(2, 1)]
    figures = states.result([]).figures
    assert figures["agreement"] == 0.5
    assert figures["kl"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    middle = (0.625, 0.375)
    js = 0.5 * sum(p * math.log(p / m) for p, m in zip((0.75, 0.25), middle, strict=True))
    js += 0.5 * sum(0.5 * math.log(0.5 / m) for m in middle)
    assert figures["js_divergence"] == pytest.approx(js, rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "chosen"),
    [
        ([], []),
        ([7], [7]),
        (range(10, 101, 10), [20, 40, 60, 80, 100]),
        ([60, 120, 180, 240, 300], [60, 120, 180, 240, 300]),
        ([1, 50, 100], [1, 50, 100]),
    ],
)
def test_the_fifths_of_a_training_are_the_nearest_epochs_that_were_kept(kept, chosen):
    """Each fifth takes the nearest one, each of them once."""
    assert fifths(list(kept)) == chosen
