"""Every student of the registry keeps the same promises."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save, load_checkpoint
from foundation.students import (
    StudentPolicy,
    make_student,
    student_cfg_class,
    student_from_description,
    student_names,
)

STEPS, ENVS, OBS, ACTIONS = 25, 6, 22, 4
OPTIONS = (
    {},
    {"stochastic": True, "value_head": True},
    {"stochastic": True, "state_dependent_std": True},
    {"distribution": "tanh"},
    {"stochastic": True, "distribution": "tanh"},
    {"stochastic": True, "state_dependent_std": True, "distribution": "beta"},
    {"num_layers": 2, "learn_initial_state": True, "hidden_dims": [8], "encoder_dims": []},
    {"length": 1},
    {"kernel_size": 3, "channels": [6, 5], "hidden_dims": []},
)


def build(name, options):
    """Return a student with random weights everywhere and a fitted normaliser, or None if it lacks an option."""
    cfg_class = student_cfg_class(name)
    known = {f.name for f in dataclasses.fields(cfg_class)}
    if not set(options) <= known:
        return None
    student = make_student(cfg_class(**options), OBS, ACTIONS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(0.0, 0.15)
    student.normalizer.update(torch.randn(200, OBS) * 3 + 1)
    return student


def all_students():
    """Return every student with every set of options that it has."""
    torch.manual_seed(0)
    found = [(name, index, build(name, options)) for name in student_names() for index, options in enumerate(OPTIONS)]
    return [pytest.param(student, id=f"{name}-{index}") for name, index, student in found if student is not None]


def test_registry():
    """The folder is the registry: these six modules define students, the helpers beside them do not."""
    assert student_names() == ("cnn", "gru", "history", "lstm", "mlp", "tcn")


@pytest.mark.parametrize("student", all_students())
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_steps_equal_sequence(student, rate):
    """``step`` repeated with resets equals ``sequence`` in every output and in the final state, to 1e-6."""
    generator = torch.Generator().manual_seed(int(rate * 10))
    obs = torch.randn(STEPS, ENVS, OBS, generator=generator)
    resets = torch.rand(STEPS, ENVS, generator=generator) < rate
    start = student.initial_state(ENVS)
    if start is not None:
        start = torch.randn(start.shape, generator=generator)
    state, outputs = start, []
    for t in range(STEPS):
        state = student.reset_state(state, resets[t])
        output, state = student.step(obs[t], state)
        outputs.append(output)
    together, final = student.sequence(obs, start, resets)
    for field in together._fields:
        whole = getattr(together, field)
        if whole is None:
            assert all(getattr(output, field) is None for output in outputs)
        else:
            stepped = torch.stack([getattr(output, field) for output in outputs])
            assert torch.allclose(stepped, whole, rtol=1e-6, atol=1e-6)
    assert together.mean.shape == (STEPS, ENVS, ACTIONS)
    if start is None:
        assert final is None
    else:
        assert final.shape == (ENVS, student.state_size) and (final - state).abs().max() <= 1e-6


@pytest.mark.parametrize("student", all_students())
def test_reset_forgets(student):
    """After a reset an env acts as at an episode's start, whatever went before; the others remember."""
    first, second = torch.randn(ENVS, OBS), torch.randn(ENVS, OBS)
    _, state = student.step(first, None)
    dones = torch.tensor([True, False] * (ENVS // 2))
    after = student.step(second, student.reset_state(state, dones))[0].mean
    fresh = student.step(second, None)[0].mean
    assert torch.allclose(after[dones], fresh[dones], atol=1e-6)
    if student.state_size:
        assert not torch.allclose(after[~dones], fresh[~dones], atol=1e-4)
    assert torch.allclose(student(second), fresh, atol=1e-6)


@pytest.mark.parametrize("student", all_students())
def test_round_trip_through_a_checkpoint(student, tmp_path):
    """Description and state_dict alone, through a safely read file, rebuild the same student."""
    saved = {"student": student.describe(), "model_state_dict": student.state_dict()}
    atomic_torch_save(saved, tmp_path / "s.pt")
    read = load_checkpoint(tmp_path / "s.pt")
    again = student_from_description(read["student"])
    again.load_state_dict(read["model_state_dict"])
    obs = torch.randn(STEPS, ENVS, OBS)
    assert torch.equal(again.sequence(obs)[0].mean, student.sequence(obs)[0].mean)
    assert again.describe() == student.describe() == read["student"]


@pytest.mark.parametrize("student", all_students())
def test_a_description_of_fewer_settings_is_of_this_architecture(student):
    """An earlier version lacked a setting: at its default it is the same student, at another value it is not."""
    earlier = student.describe()
    known = earlier.pop("distribution")
    assert student.is_described_by(earlier) == (known == "gaussian")
    assert student.is_described_by(student.describe())
    for name, value in (("num_obs", student.num_obs + 1), ("init_std", 0.123), ("no_such_setting", 1)):
        assert not student.is_described_by(student.describe() | {name: value})


@pytest.mark.parametrize("student", all_students())
def test_outputs_that_were_asked_for(student):
    """A deviation and a value are there exactly when the config asks for them; the deviation is positive."""
    output, _ = student.step(torch.randn(ENVS, OBS))
    assert (output.std is not None) == student.cfg.stochastic and (output.value is not None) == student.cfg.value_head
    if output.std is not None:
        assert output.std.shape == (ENVS, ACTIONS) and bool((output.std > 0).all())
    if output.value is not None:
        assert output.value.shape == (ENVS, 1)


@pytest.mark.parametrize("student", all_students())
def test_every_parameter_learns(student):
    """Each parameter gets a gradient from the outputs over a sequence with resets."""
    student.zero_grad()
    resets = torch.rand(STEPS, ENVS) < 0.2
    output, _ = student.sequence(torch.randn(STEPS, ENVS, OBS), None, resets)
    sum(part.square().sum() for part in (output.mean, output.std, output.value) if part is not None).backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert silent == []


def test_raptor_student_has_2084_parameters():
    """RAPTOR's 22-16-GRU16-4 with its learned initial state has 368 + 1632 + 68 + 16 = 2,084 parameters."""
    student = make_student(student_cfg_class("gru")(learn_initial_state=True), 22, 4)
    assert sum(parameter.numel() for parameter in student.parameters()) == 2084


def test_initial_std():
    """A stochastic student starts with the deviation that its config says."""
    for dependent in (False, True):
        student = StudentPolicy(OBS, ACTIONS, stochastic=True, state_dependent_std=dependent, init_std=0.25)
        assert torch.allclose(student.step(torch.randn(3, OBS))[0].std, torch.tensor(0.25))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden_dims": [64, 0]}),
        ("mlp", {"init_std": 0.0}),
        ("mlp", {"init_std": -1.0}),
        ("mlp", {"init_std": 50.0}),
        ("gru", {"hidden_size": 0}),
        ("lstm", {"num_layers": 0}),
        ("gru", {"encoder_dims": [-3]}),
        ("tcn", {"channels": [0]}),
    ],
)
def test_sizes_and_deviations_that_cannot_be_are_refused(name, options):
    """One line that names the setting, before a layer is made or a deviation is clipped."""
    with pytest.raises(UserError, match=rf"student\.{next(iter(options))} is .*must be"):
        make_student(student_cfg_class(name)(name=name, stochastic=True, **options), 5, 2)


@pytest.mark.parametrize("kind", ["tanh", "beta"])
@pytest.mark.parametrize("dependent", [False, True])
def test_a_bounded_student_is_the_distribution_of_its_moments(kind, dependent):
    """Mean action tanh(network); its deviation and its draws are those of torch.distributions with its parameters."""
    torch.manual_seed(1)
    student = StudentPolicy(OBS, ACTIONS, stochastic=True, distribution=kind, state_dependent_std=dependent)
    output, _ = student.step(torch.randn(ENVS, OBS))
    raw = student.mean(output.features)
    assert torch.equal(output.mean, raw.tanh())
    if kind == "tanh":
        mean, std = output.pre_tanh.chunk(2, dim=-1)
        assert torch.equal(mean, raw) and torch.allclose(std, torch.tensor(0.5))
        assert torch.allclose(output.std, std * torch.autograd.functional.jacobian(torch.tanh, raw).sum((-1, -2)))
        drawn = torch.distributions.Normal(mean, std).sample((40_000,)).tanh()
    else:
        alpha, beta = output.concentration.chunk(2, dim=-1)
        reference = torch.distributions.Beta(alpha, beta)
        assert torch.allclose(2.0 * reference.mean - 1.0, output.mean, atol=1e-6)
        assert torch.allclose(2.0 * reference.stddev, output.std, atol=1e-6)
        assert torch.allclose(alpha + beta, torch.tensor(4.0))  # 1 / 0.5^2
        drawn = 2.0 * reference.sample((40_000,)) - 1.0
    many = type(output)(*(None if field is None else field.expand(40_000, *field.shape) for field in output))
    own = student.sample(many, torch.Generator().manual_seed(2))
    assert bool((own.abs() <= 1.0).all())
    assert torch.allclose(own.mean(0), drawn.mean(0), atol=0.02) and torch.allclose(own.std(0), drawn.std(0), atol=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distribution": "beta"}, "student.distribution=beta needs a standard deviation: set student.stochastic=true"),
        ({"distribution": "tanh", "num_choices": 3}, "distribution=tanh is of continuous actions"),
    ],
)
def test_distributions_that_cannot_be_are_refused(options, words):
    """One line that says what to set."""
    with pytest.raises(UserError, match=words):
        make_student(student_cfg_class("mlp")(**options), 5, 1)


def test_users_snippet():
    """A student of the default architecture is rebuilt from its sizes and a state_dict alone, and gives actions."""
    trained = StudentPolicy(26, 4)
    trained.normalizer.update(torch.randn(100, 26) * 2)
    student = StudentPolicy(26, 4)
    student.load_state_dict(trained.state_dict())
    observation = torch.randn(26)
    assert student(observation).shape == (4,) and torch.equal(student(observation), trained(observation))
    assert student.hidden_dims == [64, 64]


def test_plain_config_is_completed():
    """A plain StudentCfg that names a student is built with that student's own defaults."""
    student = make_student(StudentCfg(name="lstm", value_head=True), 5, 2)
    assert student.describe()["hidden_size"] == 16 and student.value is not None


def test_students_of_another_package(monkeypatch):
    """``pkg.module:Class`` works; a checkpoint may use it only when the program has imported it already."""
    module = types.ModuleType("their_students")

    class Theirs(StudentPolicy):
        pass

    module.Theirs = Theirs
    monkeypatch.setitem(sys.modules, "their_students", module)
    cfg = student_cfg_class("their_students:Theirs")(name="their_students:Theirs")
    described = make_student(cfg, 3, 2).describe()
    assert isinstance(student_from_description(described), Theirs)
    monkeypatch.delitem(sys.modules, "their_students")
    with pytest.raises(UserError, match="--import their_students if you trust it"):
        student_from_description(described)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({}, "num_obs|name"),
        ({"name": "mlpp", "num_obs": 3, "num_actions": 2}, "'mlp'"),
        ({"name": "mlp", "num_obs": 3, "num_actions": 2, "hiden_dims": [3]}, "hidden_dims"),
        ({"name": "mlp", "num_obs": 3, "num_actions": 2, "hidden_dims": ["a"]}, "mlp"),
        ({"name": "mlp", "num_obs": 0, "num_actions": 2}, "observations"),
        ({"name": "antigravity:x", "num_obs": 3, "num_actions": 2}, "antigravity"),
        ({"name": "tcn", "num_obs": 3, "num_actions": 2, "channels": []}, "channels"),
    ],
)
def test_bad_descriptions_are_refused(description, words):
    """A description that is incomplete, misspelt or of wrong type is refused by name; nothing is imported for it."""
    with pytest.raises(UserError, match=words):
        student_from_description(description)
    assert "antigravity" not in sys.modules
