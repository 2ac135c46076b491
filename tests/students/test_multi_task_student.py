"""Students of several tasks: what they share, and that each is an ordinary student for all that."""

from __future__ import annotations

import pytest
import torch

from foundation.core.errors import UserError
from foundation.students import make_student, student_cfg_class, student_names
from foundation.students.base import Student
from foundation.students.multi_task import MultiTaskStudent, shared_layers

SIZES = {"one": (4, 2), "two": (7, 3), "three": (5, 1)}


def student(name: str, num_obs: int, num_actions: int, **options: object) -> Student:
    return make_student(student_cfg_class(name)(name=name, **options), num_obs, num_actions)


def made(name: str = "mlp", **options: object) -> MultiTaskStudent:
    shared = MultiTaskStudent()
    for task, (num_obs, num_actions) in SIZES.items():
        shared.add(task, student(name, num_obs, num_actions, **options))
    return shared


def test_parameters_are_those_of_own_layers_and_one_trunk():
    """The count is that of the input layers and heads of each task and the trunk, once: worked out by hand."""
    shared = made(hidden_dims=[16, 8, 4])
    own = sum((obs * 16 + 16) + (4 * actions + actions) for obs, actions in SIZES.values())
    trunk = (16 * 8 + 8) + (8 * 4 + 4)
    assert shared.num_parameters == own + trunk
    assert shared.num_shared == trunk


@pytest.mark.parametrize("name", student_names())
def test_every_student_can_share(name):
    """Of each kind of student all tasks have the same trunk, and a task acts as its own student alone would."""
    options = {"hidden_dims": [8, 8]} if name != "tcn" else {"hidden_dims": [8]}
    shared = made(name, **options)
    students = list(shared.students)
    for other in students[1:]:
        assert all(a is b for a, b in zip(shared_layers(students[0]), shared_layers(other), strict=True))
    for view, (num_obs, num_actions) in zip(students, SIZES.values(), strict=True):
        alone = student(name, num_obs, num_actions, **options)
        alone.load_state_dict(view.state_dict())
        obs = torch.randn(6, 3, num_obs)
        assert torch.equal(view.sequence(obs)[0].mean, alone.sequence(obs)[0].mean)


def test_an_update_of_one_task_moves_the_trunk_and_no_other_head():
    """Gradients of one task reach the trunk, and neither input layer nor head of another."""
    shared = made()
    one, two = shared.students[0], shared.students[1]
    one.step(torch.randn(9, 4))[0].mean.square().sum().backward()
    trunk = shared_layers(two)
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for part in trunk
        for parameter in part.parameters()
    )
    assert two.mean.weight.grad is None and two.body[0].weight.grad is None


def test_what_cannot_be_shared_is_refused():
    """One hidden layer alone, and layers of other sizes, are one line each that names what to set."""
    with pytest.raises(UserError, match=r"for tasks to share: give it two or more"):
        MultiTaskStudent().add("one", student("mlp", 4, 2, hidden_dims=[8]))
    shared = MultiTaskStudent()
    shared.add("one", student("mlp", 4, 2, hidden_dims=[8, 8]))
    with pytest.raises(UserError, match=r"tasks 'one' and 'two' have layers of other sizes"):
        shared.add("two", student("mlp", 4, 2, hidden_dims=[8, 9]))
