"""Stacked teachers are their teachers."""

from __future__ import annotations

from pathlib import Path

import many_teachers
import pytest
import torch
from small_teacher import write_teacher
from torch import nn

from foundation.core.errors import UserError
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.distribution import Choices, SquashedGaussian
from foundation.policies.output import PolicyOutput
from foundation.policies.rnn import RecurrentCore
from foundation.policies.scaling import FastTanh
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble, load_ensemble
from foundation.teachers.manifest import find_teachers
from foundation.teachers.stacked import LoopedNetworks, StackedNetworks, stack_networks

NUM_TEACHERS, ROWS = 5, 4


def load_both(folder, mode="per_env", **options):
    entries = find_teachers(str(many_teachers.write_set(folder, NUM_TEACHERS, **options)))
    singles = [TeacherPolicyWrapper(entry.checkpoint) for entry in entries]
    return load_ensemble(entries, mode=mode), singles


def observations(*leading):
    return torch.randn(*leading, 26, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("normalizer", [False, True])
@pytest.mark.parametrize("rnn", [None, "gru", "lstm"])
def test_every_environment_gets_its_own_teachers_output(tmp_path, rnn, normalizer):
    """Row i of a stacked step is what teacher i % K alone says of it: mean, std, value and features, over 6 steps."""
    ensemble, singles = load_both(tmp_path, rnn=rnn, normalizer=normalizer)
    assert isinstance(ensemble.networks, StackedNetworks)
    envs = NUM_TEACHERS * ROWS
    obs, state = observations(6, envs), None
    for t in range(6):
        output, state = ensemble.step(obs[t], state)
        for index, single in enumerate(singles):
            alone = single.output(obs[t, index::NUM_TEACHERS])
            for name in ("mean", "std", "value", "features"):
                found, wanted = getattr(output, name)[index::NUM_TEACHERS], getattr(alone, name)
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6, msg=f"{name} of teacher {index}")


def test_a_large_mean_does_not_blur_the_scale(tmp_path):
    """Observations around 1e5 and more, such as a pressure in Pa, are normalised as each teacher alone does it."""
    paths = [many_teachers.write_mlp(tmp_path / f"{index}.pt", index, normalizer=True) for index in range(2)]
    means = torch.logspace(3, 9, 26)
    for path in paths:
        saved = torch.load(path)
        saved["model_state_dict"]["actor_obs_normalizer._mean"] = means
        torch.save(saved, path)
    obs = means + torch.linspace(-1, 1, 26) * 1e-3 * means  # well above what float32 resolves
    obs = torch.stack([obs, 2 * means - obs])
    mean = load_ensemble(find_teachers([str(path) for path in paths]))(obs)
    for row, path in enumerate(paths):
        torch.testing.assert_close(mean[row : row + 1], TeacherPolicyWrapper(path)(obs[row : row + 1]))


def test_students_of_other_columns_are_refused(tmp_path):
    """Two students of as many columns, but not the same ones, cannot be given one slice."""
    from foundation.students import StudentPolicy

    for name, columns in (("a", [0, 22]), ("b", [4, 26])):
        student = StudentPolicy(22, 4)
        saved = {"student": student.describe(), "model_state_dict": student.state_dict(), "obs_slice": columns}
        torch.save(saved, tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match="'a' and 'b' differ in their slice of the observations"):
        load_ensemble(find_teachers(str(tmp_path / "*.pt")))


@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize("mode", ["per_env", "expert", "mean"])
def test_a_sequence_is_its_steps(tmp_path, rnn, mode):
    """``sequence`` equals ``step`` repeated with resets between, in every mode, and so does its final state."""
    ensemble, _ = load_both(tmp_path, mode, rnn=rnn)
    obs = observations(5, 2 * NUM_TEACHERS)
    if mode == "expert":
        obs = torch.cat([obs, torch.randint(NUM_TEACHERS, (5, 2 * NUM_TEACHERS, 1)).float()], dim=-1)
    resets = torch.rand(5, 2 * NUM_TEACHERS, generator=torch.Generator().manual_seed(1)) < 0.3
    together, last = ensemble.sequence(obs, None, resets)
    state = ensemble.initial_state(2 * NUM_TEACHERS)
    for t in range(5):
        state = ensemble.reset_state(state, resets[t])
        output, state = ensemble.step(obs[t], state)
        torch.testing.assert_close(together.mean[t], output.mean, rtol=1e-5, atol=1e-6)
    assert (last is None) == (rnn is None)
    if rnn is not None:
        torch.testing.assert_close(last, state)


def test_a_number_of_environments_that_is_no_multiple_keeps_the_rule(tmp_path):
    """With 7 environments for 5 teachers, environments 5 and 6 follow teachers 0 and 1."""
    ensemble, singles = load_both(tmp_path)
    obs = observations(7)
    mean = ensemble(obs)
    for row in range(7):
        torch.testing.assert_close(mean[row : row + 1], singles[row % 5](obs[row : row + 1]), rtol=1e-5, atol=1e-6)
    assert ensemble.teacher_index(7).tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_an_expert_is_chosen_by_the_last_column(tmp_path):
    """In ``expert`` mode each row is answered by the teacher that its last column names."""
    ensemble, singles = load_both(tmp_path, "expert", rnn="gru")
    obs, index = observations(9), torch.tensor([4, 0, 0, 3, 2, 1, 1, 4, 2])
    output, _ = ensemble.step(torch.cat([obs, index.unsqueeze(-1).float()], dim=-1))
    for row in range(9):
        wanted = singles[index[row]].step(obs[row : row + 1])[0].mean
        torch.testing.assert_close(output.mean[row : row + 1], wanted, rtol=1e-5, atol=1e-6)


def test_combinations_are_the_formulas(tmp_path):
    """Mean, inverse-variance and value-weighted targets equal the formulas computed teacher by teacher."""
    entries = [
        *find_teachers(str(many_teachers.write_mlp(tmp_path / "a.pt", 1, std=0.1))),
        *find_teachers(str(many_teachers.write_mlp(tmp_path / "b.pt", 2, std=0.3))),
    ]
    obs = observations(6)
    a, b = (TeacherPolicyWrapper(entry.checkpoint).step(obs)[0] for entry in entries)
    mean = load_ensemble(entries, mode="mean").step(obs)[0]
    torch.testing.assert_close(mean.mean, (a.mean + b.mean) / 2)
    variance = (0.1**2 + 0.3**2) / 2 + (a.mean - b.mean).square() / 4
    torch.testing.assert_close(mean.std, variance.sqrt())
    sure = load_ensemble(entries, mode="uncertainty").step(obs)[0]
    torch.testing.assert_close(sure.mean, 0.9 * a.mean + 0.1 * b.mean)
    weight = torch.sigmoid((a.value - b.value) / 0.5)
    valued = load_ensemble(entries, mode="value", temperature=0.5).step(obs)[0]
    torch.testing.assert_close(valued.mean, weight * a.mean + (1 - weight) * b.mean)


def test_students_that_teach_are_asked_one_after_the_other(tmp_path):
    """Recurrent students of this project, which no stack knows, give the same through the loop."""
    from foundation.students import make_student, student_cfg_class

    for index in range(3):
        torch.manual_seed(index)
        student = make_student(student_cfg_class("gru")(), 26, 4)
        checkpoint = {"student": student.describe(), "model_state_dict": student.state_dict(), "epoch": 1}
        torch.save(checkpoint, tmp_path / f"s{index}.pt")
    entries = find_teachers(str(tmp_path / "s*.pt"))
    ensemble = load_ensemble(entries)
    assert isinstance(ensemble.networks, LoopedNetworks)
    singles = [TeacherPolicyWrapper(entry.checkpoint) for entry in entries]
    obs, state = observations(2, 6), None
    for t in range(2):
        output, state = ensemble.step(obs[t], state)
        for index, single in enumerate(singles):
            torch.testing.assert_close(
                output.mean[index::3], single.output(obs[t, index::3]).mean, rtol=1e-5, atol=1e-6
            )


def test_draws_are_in_each_teachers_own_range(tmp_path):
    """Teachers whose Beta distributions have different ranges draw as each does alone, about its own mean."""
    teachers = []
    for index, bounds in enumerate(([-1.0, 1.0], [0.0, 10.0], [-1.0, 1.0])):
        path = many_teachers.write_mlp(tmp_path / f"{index}.pt", index, num_actions=8)
        saved = torch.load(path)
        del saved["model_state_dict"]["std"]
        torch.save(saved, path)
        teachers.append(TeacherPolicyWrapper(path, distribution="beta", action_range=bounds))
    ensemble = TeacherEnsemble(teachers, ["a", "b", "c"])
    output, _ = ensemble.step(observations(1).expand(5000, 26))
    drawn = ensemble.sample(output, torch.Generator().manual_seed(0))
    for index in range(3):
        own, mean, std = drawn[index::3], output.mean[index], output.std[index]
        torch.testing.assert_close(own.mean(0), mean, rtol=0, atol=4 * float(std.max()) / len(own) ** 0.5)
        torch.testing.assert_close(own.std(0), std, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"hidden": (32,)}, "hidden layers"), ({"num_obs": 22}, "observations"), ({"rnn": "gru"}, "recurrence")],
)
def test_teachers_of_different_sizes_are_refused(tmp_path, options, words):
    """Two teachers that differ in more than their weights are refused in one line that names both."""
    many_teachers.write_mlp(tmp_path / "a.pt", 1)
    many_teachers.write_mlp(tmp_path / "other" / "b.pt", 2, **options)
    with pytest.raises(UserError, match=f"'a' and 'b' differ in their {words}") as caught:
        load_ensemble(find_teachers([str(tmp_path / "a.pt"), str(tmp_path / "other" / "b.pt")]))
    assert "\n" not in str(caught.value)


def test_a_critic_that_nobody_asks_is_not_run(tmp_path):
    """``with_value = False`` leaves the value out, and value-weighting still has it for itself."""
    ensemble, _ = load_both(tmp_path)
    assert ensemble.with_value
    ensemble.with_value = False
    assert ensemble.step(observations(5))[0].value is None
    weighted, _ = load_both(tmp_path, "value")
    before = weighted.step(observations(5))[0].mean
    weighted.with_value = False
    output = weighted.step(observations(5))[0]
    assert output.value is None and torch.equal(output.mean, before)


def test_a_warning_about_all_teachers_is_said_once(tmp_path, caplog):
    """What is unknown about every teacher of a set is one warning, not one a checkpoint."""
    for name in ("a", "b", "c"):
        write_teacher(tmp_path / f"{name}.pt")
    load_ensemble(find_teachers(str(tmp_path / "*.pt")))
    assert caplog.text.count("taking 'elu'") == 1


SHIPPED = sorted((Path(__file__).resolve().parents[1] / "checkpoints" / "data").glob("*/*/expected.pt"))


@pytest.mark.parametrize("expected", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def test_two_teachers_of_any_library_answer_as_each_alone(expected):
    """Whatever kind of policy a file holds, two of it side by side give its actions, deviations, values and logits."""
    path = next(
        file
        for file in expected.parent.rglob("*")
        if file.suffix in (".pt", ".pth", ".zip") and file.name != "expected.pt"
    )
    single = TeacherPolicyWrapper(path)
    pair = TeacherEnsemble([TeacherPolicyWrapper(path), TeacherPolicyWrapper(path)], ["a", "b"])
    obs = torch.load(expected)["obs"]
    alone, together = single.sequence(obs)[0], pair.sequence(obs)[0]
    for name in ("mean", "std", "value", "logits"):
        one, other = getattr(alone, name), getattr(together, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.allclose(one, other, atol=1e-5), name


def chain(seed, *, recurrent=False):
    """Return a policy as rl-tools writes them: FAST_TANH between dense layers, actions squashed after sampling."""
    torch.manual_seed(seed)
    layers = [RecurrentCore("gru", 7, 6, learn_initial_state=True)] if recurrent else [nn.Linear(7, 6)]
    policy = ActorCritic(Trunk([*layers, FastTanh(), nn.Linear(6, 8)]), SquashedGaussian())
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4)
    return policy


def test_dense_chains_of_rl_tools_are_stacked():
    """Dense policies of any activation and a squashed Gaussian are one batched product, with each one's outputs."""
    policies = [chain(seed) for seed in range(3)]
    stacked = stack_networks(policies)
    obs = observations(3, 5)[..., :7]
    output, _ = stacked.step(obs, None)
    assert isinstance(stacked, StackedNetworks)
    for index, policy in enumerate(policies):
        alone, _ = policy.step(obs[index])
        torch.testing.assert_close(output.mean[index], alone.mean)
        torch.testing.assert_close(output.std[index], alone.std)


def test_a_learned_initial_state_is_each_teachers_own():
    """Policies whose episodes begin with a learned state are not stacked, and begin with their own."""
    policies = [chain(seed, recurrent=True) for seed in range(2)]
    looped = stack_networks(policies)
    assert isinstance(looped, LoopedNetworks)
    states = looped.initial_states(None)
    assert torch.equal(states, torch.stack([policy.actor.core.initial for policy in policies]))
    assert not torch.equal(states[0], states[1])


def test_discrete_teachers_draw_their_choices():
    """Each of several discrete teachers draws from its own logits: both choices come where both are as likely."""
    policies = [ActorCritic(Trunk([nn.Linear(7, 2)]), Choices(q_values=False)) for _ in range(2)]
    looped = stack_networks(policies)
    output = PolicyOutput(mean=torch.zeros(200, 1), logits=torch.zeros(200, 2))
    drawn = looped.sample(output, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
