"""``--resume --multi_task FILE``: a run goes on with its own list of tasks, and another one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from foundation.cli.multi_task_job import listed_ids, plain_list, refuse_another_list
from foundation.core.errors import UserError
from foundation.runs.run_dir import RunDir

TASKS = [
    {"id": "a", "task": "CartPole-v1", "teacher": "a.zip", "num_envs": 4},
    {"id": "b", "task": "Acrobot-v1", "teacher": "b.zip"},
]


def write(path: Path, tasks: list[dict]) -> str:
    """Write a list of tasks and return its path."""
    path.write_text(yaml.safe_dump({"format": "foundation-tasks-1", "tasks": tasks}))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that began with the two tasks, as far as this reads it."""
    for name in ("a.zip", "b.zip", "other.zip"):
        (tmp_path / name).touch()
    folder = tmp_path / "2026-01-01_00-00-00"
    (folder / "params").mkdir(parents=True)
    listed = plain_list(write(tmp_path / "tasks.yaml", TASKS))
    (folder / "params" / "multi_task.yaml").write_text(yaml.safe_dump({"tasks": listed}))
    return RunDir(folder)


def test_the_same_list_resumes_wherever_it_is_typed(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path, from its own folder, or not at all."""
    refuse_another_list(run, None)
    refuse_another_list(run, str(tmp_path / "tasks.yaml"))
    monkeypatch.chdir(tmp_path)
    refuse_another_list(run, "tasks.yaml")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "Pendulum-v1"}, "task 'Pendulum-v1' of task 'b', and the run has 'Acrobot-v1'"),
        ({"teacher": "other.zip"}, "other.zip"),
        ({"num_envs": 8}, "num_envs 8 of task 'b', and the run has None"),
        ({"id": "c"}, "tasks a, c, and the run has a, b"),
    ],
)
def test_another_list_is_refused_and_the_difference_named(run: RunDir, tmp_path: Path, change: dict, says: str) -> None:
    """The file that is typed is not ignored in silence."""
    path = write(tmp_path / "tasks.yaml", [TASKS[0], TASKS[1] | change])
    with pytest.raises(UserError) as error:
        refuse_another_list(run, path)
    assert says in str(error.value) and "leave --multi_task out with --resume" in str(error.value)


def test_the_order_of_the_tasks_is_part_of_the_list(run: RunDir, tmp_path: Path) -> None:
    """The run's settings are those of its first task."""
    path = write(tmp_path / "tasks.yaml", TASKS[::-1])
    with pytest.raises(UserError, match="has tasks b, a, and the run has a, b"):
        refuse_another_list(run, path)


def test_a_run_of_one_task_is_not_resumed_as_one_of_several(run: RunDir) -> None:
    """It has its settings, and no list."""
    (run.params_dir / "multi_task.yaml").unlink()
    with pytest.raises(UserError, match="is a run of one task: leave --multi_task out"):
        listed_ids(run)
