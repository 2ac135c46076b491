"""The file of --multi_task: what it says, and that each mistake in it is one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.config.task_list import read_tasks
from foundation.core.errors import UserError
from foundation.core.registry import forget_typed, note_typed

GOOD = """\
format: foundation-tasks-1
tasks:
- {id: cartpole, task: CartPole-v1, teacher: cart.zip, num_envs: 16}
- {id: acrobot, task: Acrobot-v1, teacher: /else/acro.zip, engine: gymnasium, overrides: [env.max_episode_steps=200]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tasks.yaml"
    path.write_text(text)
    return path


def test_a_list_becomes_command_lines(tmp_path):
    """Each task has its flags and overrides; a teacher's path is relative to the file."""
    one, two = read_tasks(write(tmp_path, GOOD))
    teacher = str(tmp_path / "cart.zip")
    assert one.arguments() == ["--task", "CartPole-v1", "--teacher_checkpoint", teacher, "--num_envs", "16"]
    assert two.arguments()[-3:] == ["--engine", "gymnasium", "env.max_episode_steps=200"]
    assert two.teacher == "/else/acro.zip"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("id: acrobot", "id: cartpole", r"two tasks with the id 'cartpole': ids must differ"),
        ("id: acrobot", "id: a/b", r"task 2: the id 'a/b' must be letters"),
        ("id: acrobot, ", "", r"task 2 lacks 'id'"),
        ("teacher: cart.zip", "teachr: cart.zip", r"task 1 has 'teachr'\. Did you mean 'teacher'"),
        ("num_envs: 16", "num_envs: many", r"task 1: 'num_envs' is 'many', it must be an integer"),
        ("num_envs: 16", "num_envs: 0", r"'num_envs' must be at least 1"),
        ("[env.max_episode_steps=200]", "[--import, os]", r"task 2 has '--import': flags are for the command line"),
        ("[env.max_episode_steps=200]", "[fast]", r"the override 'fast' must be key=value"),
        (
            "teacher: cart.zip",
            "teacher: evil.code:act",
            r"belongs to package 'evil'.*--import evil\.code",
        ),
        ("format: foundation-tasks-1", "format: other", r"must begin with 'format: foundation-tasks-1'"),
        (GOOD[GOOD.index("- {id: acrobot") :], "", r"two tasks or more"),
    ],
)
def test_mistakes_are_one_line(tmp_path, before, after, says):
    """The line names the file, the task and what is wrong."""
    forget_typed()
    with pytest.raises(UserError, match=says) as error:
        read_tasks(write(tmp_path, GOOD.replace(before, after)))
    assert "tasks.yaml" in str(error.value) and "\n" not in str(error.value)


def test_code_that_the_user_has_typed_may_teach(tmp_path):
    """``--import`` of its module is asked for, as for all that a file names."""
    note_typed(["some.code:anything"])
    tasks = read_tasks(write(tmp_path, GOOD.replace("teacher: cart.zip", "teacher: 'some.code:act'")))
    assert tasks[0].teacher == "some.code:act"
    forget_typed()
