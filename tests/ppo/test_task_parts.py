"""A part of the policy for the new task alone: the old task's actions stay the same to the bit, whatever is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_toys import NEW, OLD, TwoTasks, check_resumed_is_whole, config, make_runner, states_of, write_student
from numpy_policy import check_layers

from foundation.config.finetune_cfg import AdaptersCfg, CriticCfg, HeadsCfg, ProgressiveCfg
from foundation.core.errors import UserError
from foundation.students import student_from_description
from foundation.students.by_task import ByTaskStudent
from foundation.teachers import TeacherPolicyWrapper

PARTS = {
    "head": {"heads": HeadsCfg(layers=0)},
    "head_and_layer": {"heads": HeadsCfg(layers=1)},
    "adapters": {"adapters": AdaptersCfg(rank=2, by_task=True)},
    "columns": {"progressive": ProgressiveCfg(init="copy")},
    "fresh_columns": {"progressive": ProgressiveCfg(init="fresh")},
}
STUDENTS = {
    "mlp": {"hidden_dims": [8, 6], "value_head": True},
    "gru": {"encoder_dims": [6], "hidden_size": 4, "hidden_dims": [5]},
    "history": {"length": 3, "hidden_dims": [8]},
}
CASES = [("mlp", part) for part in PARTS]
CASES += [("gru", "head_and_layer"), ("gru", "adapters"), ("history", "columns")]


def actions(path: Path, obs: torch.Tensor) -> torch.Tensor:
    """Mean and std of a checkpoint over 5 steps of 10 environments."""
    output = TeacherPolicyWrapper(path).sequence(obs.unflatten(0, (5, 10)))[0]
    assert output.std is not None
    return torch.cat([output.mean, output.std], dim=-1)


@pytest.mark.parametrize(("name", "part"), CASES)
def test_the_old_task_keeps_its_actions_to_the_bit_and_the_new_one_is_learned(name, part, tmp_path):
    """A copy acts as the policy at the start; afterwards the old task's mean and std are the same, the new one's not.

    The checkpoint is a teacher, and the start of a next run, without anything else.
    """
    start = write_student(tmp_path / "s.pt", name, **STUDENTS[name])
    runner = make_runner(tmp_path / "run", config(start, **PARTS[part]))
    before = {task: actions(start, states_of(task)) for task in (OLD, NEW)}
    runner.begin()
    begun = actions(tmp_path / "run" / "start_student.pt", states_of(NEW))
    assert torch.equal(begun, before[NEW]) == (part != "fresh_columns")
    runner.run()
    path = tmp_path / "run" / "final_student.pt"
    assert torch.equal(actions(path, states_of(OLD)), before[OLD])
    assert not torch.equal(actions(path, states_of(NEW)), before[NEW])
    mixed = torch.where(torch.arange(50).unsqueeze(-1) % 2 == 0, states_of(OLD), states_of(NEW))
    if name == "mlp":  # without memory each state has the action of its own task, whatever runs beside it
        even = actions(path, mixed).flatten(0, 1)[::2]
        assert torch.equal(even, before[OLD].flatten(0, 1)[::2])
    assert make_runner(tmp_path / "next", config(path, kl_coef=1.0)).student.is_described_by(runner.student.describe())


@pytest.mark.parametrize(("name", "part"), CASES)
def test_its_layers_are_those_of_plain_files(name, part, tmp_path):
    """What exporters go through has the same outputs by an independent implementation, in each task and in mixtures."""
    start = write_student(tmp_path / "s.pt", name, **STUDENTS[name])
    runner = make_runner(tmp_path / "run", config(start, **PARTS[part]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in runner.student.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    check_layers(runner.student)


@pytest.mark.parametrize("part", ["adapters", "head", "columns"])
def test_the_floor_of_the_deviation_is_the_parts_own(part, tmp_path):
    """The new task's deviation is raised to it; that of the old one, which is frozen, is what it was."""
    start = write_student(tmp_path / "s.pt", init_std=0.1)
    runner = make_runner(tmp_path / "run", config(start, **PARTS[part]))
    runner.ppo.min_std = 0.5
    runner.ppo._floor_std()
    stds = {task: runner.student.step(states_of(task))[0].std for task in (OLD, NEW)}
    assert stds[NEW].min().item() == pytest.approx(0.5) and stds[OLD].max().item() == pytest.approx(0.1)


def test_which_part_acts_by_hand():
    """Three parts with constant heads: each acts where its own column is 1, the first one where none is."""
    described = {"num_obs": 3, "num_actions": 1, "name": "by_task", "stochastic": True}
    described |= {"base": {"name": "mlp", "hidden_dims": [4]}, "columns": [1, 2], "shared": 2}
    student = student_from_description(described)
    assert isinstance(student, ByTaskStudent) and len(student.parts) == 3
    with torch.no_grad():
        for number, (_, heads, _) in enumerate(student.parts):
            heads.mean.weight.zero_()
            heads.mean.bias.fill_(10.0 * (number + 1))
    obs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert student(obs).flatten().tolist() == [10.0, 20.0, 30.0, 10.0]


def test_a_lateral_connection_by_hand():
    """Columns of 1-1-1 with weights 1: each layer of the second adds what the first one's layer before it gives."""
    described = {"num_obs": 2, "num_actions": 1, "name": "by_task", "lateral": True, "columns": [1]}
    described |= {"base": {"name": "mlp", "hidden_dims": [1, 1], "activation": "relu"}, "shared": 0}
    student = student_from_description(described)
    assert isinstance(student, ByTaskStudent)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(1.0 if parameter.dim() == 2 else 0.0)
        student.laterals[0].weight.fill_(10.0)  # pyright: ignore[reportCallIssue]
        student.laterals[1].weight.fill_(100.0)  # pyright: ignore[reportCallIssue]
    # First column: h1 = 3, h2 = 3, action 3. Second: h1 = 3, h2 = 3 + 10 * 3 = 33, action 33 + 100 * 3 = 333.
    assert student(torch.tensor([[2.0, 1.0], [3.0, 0.0]])).flatten().tolist() == [333.0, 3.0]


def test_a_third_task_gets_a_part_and_a_known_one_is_trained_further(tmp_path):
    """Two runs give three parts; a run on the newest part's task again adds none; on an older one's it is refused."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    parts = {"heads": HeadsCfg(layers=0)}
    make_runner(tmp_path / "a", config(start, max_iterations=2, **parts)).run()
    first = tmp_path / "a" / "final_student.pt"
    again = make_runner(tmp_path / "b", config(first, max_iterations=2, **parts))
    assert isinstance(again.student, ByTaskStudent) and again.student.columns == [NEW]
    third = make_runner(tmp_path / "c", config(first, max_iterations=2, **parts), task=OLD)
    assert isinstance(third.student, ByTaskStudent) and third.student.columns == [NEW, OLD]
    before = actions(first, states_of(NEW))
    third.run()
    assert torch.equal(actions(tmp_path / "c" / "final_student.pt", states_of(NEW)), before)
    with pytest.raises(UserError, match="has a part for this task already"):
        make_runner(tmp_path / "d", config(tmp_path / "c" / "final_student.pt", **parts))
    with pytest.raises(UserError, match="give the key that it was made with"):
        make_runner(tmp_path / "d", config(first, heads=HeadsCfg(layers=1)))


@pytest.mark.parametrize("part", ["adapters", "fresh_columns"])
def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_bits(part, tmp_path):
    """Stopped in the third iteration: last checkpoint, best and final policy are the same."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    values = {"kl_coef": 0.5, "max_iterations": 5, **PARTS[part]}
    check_resumed_is_whole(tmp_path, config(start, **values))


BAD = [
    ({"heads": HeadsCfg(layers=3)}, "the policy has 1 hidden layers"),
    ({"heads": HeadsCfg(layers=0), "task_columns": [3, 9]}, "the policy reads 4 columns"),
    ({"heads": HeadsCfg(layers=0), "task_columns": [0, 2]}, "are to say which task runs"),
]


@pytest.mark.parametrize(("values", "says"), BAD)
def test_what_does_not_fit_the_policy_or_the_task_is_one_line(values, says, tmp_path):
    """The line names the key."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    with pytest.raises(UserError, match=says) as error:
        make_runner(tmp_path / "run", config(start, critic=CriticCfg(), **values))
    assert "\n" not in str(error.value) and "finetune." in str(error.value)


def test_columns_of_a_recurrent_student_and_observations_without_a_task_are_refused(tmp_path, monkeypatch):
    """Each in one line that says what to take instead."""
    start = write_student(tmp_path / "s.pt", "gru")
    with pytest.raises(UserError, match=r"finetune.progressive connects dense layers"):
        make_runner(tmp_path / "run", config(start, **PARTS["columns"]))
    plain = write_student(tmp_path / "p.pt", hidden_dims=[8])
    monkeypatch.setattr(TwoTasks, "observation_terms", {})
    with pytest.raises(UserError, match="no column of the policy's observations"):
        make_runner(tmp_path / "run", config(plain, **PARTS["head"]))
