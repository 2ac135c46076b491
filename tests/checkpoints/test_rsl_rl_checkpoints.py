"""Checkpoints that the real RSL-RL releases write, through TeacherPolicyWrapper."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from numpy_policy import check_layers  # noqa: E402
from rsl_rl_cases import GROUPS, NUM_ENVS, NUM_STEPS, VERSIONS, cases  # noqa: E402
from written_once import of_release  # noqa: E402

ALL = [(version, case) for version in VERSIONS for case in cases(version)]


def each(rows):
    """Parametrise a test over (release, case), named by both."""
    return pytest.mark.parametrize(
        ("version", "case"), [pytest.param(*row, id=f"{row[0]}-{row[1].name}") for row in rows]
    )


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function of the folder of a release's checkpoints."""
    return partial(of_release, tmp_path_factory, "write_rsl_rl_checkpoints.py")


def roll(teacher: TeacherPolicyWrapper, expected: dict) -> torch.Tensor:
    """Return the teacher's actions over the stored observations, with the stored resets."""
    actions = []
    for step in range(NUM_STEPS):
        obs = TensorDict({name: values[step] for name, values in expected["obs"].items()}, batch_size=[NUM_ENVS])
        actions.append(teacher.act(obs))
        teacher.reset(expected["dones"][step])
    return torch.stack(actions)


@each(ALL)
def test_same_actions_as_the_library(written, version, case):
    """Over 20 steps with resets of part of the envs, actions equal the library's own inference policy to 1e-5."""
    place = written(version) / case.name
    expected = torch.load(place / "expected.pt")
    teacher = TeacherPolicyWrapper(place / "model_7.pt")
    assert (roll(teacher, expected) - expected["actions"]).abs().max() <= 1e-5
    assert teacher.num_obs == sum(GROUPS[group] for group in case.actor_groups)
    assert teacher.hidden_dims == list(case.hidden_dims)
    assert teacher.describe()["activation"] == case.activation
    assert teacher.describe()["obs_normalization"] == case.normalized
    assert (teacher.state_size > 0) == (case.rnn is not None)
    assert teacher.obs_groups == (None if version == "2.3.3" else list(case.actor_groups))
    assert teacher.clip_actions == (2.5 if version[0] in "23" else None)


@each([row for row in ALL if row[1].rnn is None and not row[1].distilled])
def test_same_deviation_and_value_as_the_library(written, version, case):
    """Deviations equal the library's to 1e-5 relative, and so do values where the critic reads what the actor reads."""
    place = written(version) / case.name
    expected = torch.load(place / "expected.pt")
    teacher = TeacherPolicyWrapper(place / "model_7.pt")
    obs = torch.cat([expected["obs"][group][-1] for group in case.actor_groups], dim=-1)
    output = teacher.output(obs)
    known = expected["std"] > 1e-3  # releases before 5 let a state-dependent deviation be negative
    assert torch.allclose(output.std[known], expected["std"][known], rtol=1e-5, atol=1e-5)
    assert known.any()
    assert teacher.has_value == (case.critic_groups == case.actor_groups)
    if teacher.has_value:
        assert torch.allclose(output.value, expected["value"], rtol=1e-5, atol=1e-5)
    else:
        assert output.value is None


@each([row for row in ALL if row[0][0] in "35"])
def test_typed_layers_equal_the_steps(written, version, case):
    """Actor, critic, memories and distribution, computed by NumPy from the typed layers, give the teacher's outputs."""
    layers = check_layers(TeacherPolicyWrapper(written(version) / case.name / "model_7.pt"))
    assert ("value" in layers.outputs) == (case.critic_groups == case.actor_groups and not case.distilled)


@each([row for row in ALL if row[0][0] in "45"])
def test_exported_policy(written, version, case):
    """The ``policy.pt`` that the release exports gives its actions to 1e-5, its activation known from the file."""
    place = written(version) / case.name
    expected = torch.load(place / "expected.pt")
    teacher = TeacherPolicyWrapper(place / "exported" / "policy.pt")
    assert (roll(teacher, expected) - expected["actions"]).abs().max() <= 1e-5
    assert teacher.describe()["format"] == "TorchScript export"
    assert (teacher.describe()["activation"], teacher.describe()["activation_from"]) == (case.activation, "checkpoint")
    assert teacher.hidden_dims == list(case.hidden_dims) and teacher.obs_groups == list(case.actor_groups)


@pytest.mark.parametrize("version", VERSIONS)
def test_sequence_is_the_library_rolled_out(written, version):
    """One call over the whole sequence gives the library's step-by-step actions, resets included."""
    for name in ("gru_2", "lstm_2"):
        place = written(version) / name
        expected = torch.load(place / "expected.pt")
        teacher = TeacherPolicyWrapper(place / "model_7.pt")
        resets = torch.cat([torch.zeros_like(expected["dones"][:1]), expected["dones"][:-1]])
        output, _ = teacher.sequence(expected["obs"]["policy"], None, resets)
        assert (output.mean - expected["actions"]).abs().max() <= 1e-5


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_activation_would_be_seen(written, version):
    """The comparison can fail: with another activation the actions differ by far more than the tolerance."""
    place = written(version) / "relu"
    expected = torch.load(place / "expected.pt")
    teacher = TeacherPolicyWrapper(place / "model_7.pt", activation="tanh")
    assert (roll(teacher, expected) - expected["actions"]).abs().max() > 1e-2


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_config_elu_is_taken_with_a_warning(written, version, tmp_path, caplog):
    """Without params/agent.yaml the activation is ELU, and a warning says so; an override silences it."""
    shutil.copy(written(version) / "elu" / "model_7.pt", tmp_path / "model_7.pt")
    expected = torch.load(written(version) / "elu" / "expected.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "model_7.pt")
    assert "activation" in caplog.text and "elu" in caplog.text
    assert (roll(teacher, expected) - expected["actions"]).abs().max() <= 1e-5
    caplog.clear()
    TeacherPolicyWrapper(tmp_path / "model_7.pt", activation="elu")
    assert "activation" not in caplog.text


@pytest.mark.parametrize("version", ["5.4.2", "5.5.1"])
def test_an_ambiguous_head_is_refused_without_a_config(written, version, tmp_path):
    """A network of twice as many outputs and no deviation is refused unless the user says which distribution it has."""
    shutil.copy(written(version) / "beta" / "model_7.pt", tmp_path / "model_7.pt")
    with pytest.raises(UserError, match="distribution"):
        TeacherPolicyWrapper(tmp_path / "model_7.pt")
    expected = torch.load(written(version) / "beta" / "expected.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "model_7.pt", distribution="beta", action_range=[-2.0, 3.0])
    assert (roll(teacher, expected) - expected["actions"]).abs().max() <= 1e-5


@pytest.mark.parametrize("version", VERSIONS)
def test_version_is_told(written, version):
    """The description names the family of releases that the layout belongs to."""
    told = {
        name: TeacherPolicyWrapper(written(version) / name / "model_7.pt").describe()["format"]
        for name in ("normalized", "elu", "distilled")
    }
    assert told["normalized"] == f"RSL-RL {version[0]}.x"
    assert "distillation" in told["distilled"]
    if version[0] in "45":
        assert told["elu"] == f"RSL-RL {version[0]}.x"
