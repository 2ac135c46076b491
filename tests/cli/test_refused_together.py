"""Flags that do not go together are refused before anything that is missing is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.core.errors import UserError
from foundation.rsl_rl import distillation

CASES = {
    "several tasks offline": (["--multi_task", "tasks.yaml", "--offline"], "--multi_task lists tasks .* --offline"),
    "several tasks offline, with data": (
        ["--multi_task", "tasks.yaml", "--offline", "--dataset", "data"],
        "--multi_task lists tasks that are simulated",
    ),
    "by keys": (["distill.multi_task=tasks.yaml", "distill.offline=true"], "--multi_task lists tasks"),
    "several tasks in several processes": (
        ["--multi_task", "tasks.yaml", "--distributed"],
        "^--multi_task is for one process: leave it out",
    ),
    "a dataset in several processes": (
        ["--save_dataset=data", "--distributed"],
        "^--save_dataset is for one process",
    ),
    "a training's teacher for several tasks": (
        ["--multi_task", "tasks.yaml", "--watch_teacher", "run"],
        "^--watch_teacher is about one task",
    ),
    "one dataset of several tasks, by its key": (
        ["--multi_task", "tasks.yaml", "distill.dataset.save=data"],
        "^--save_dataset is about one task",
    ),
    "a video without a simulator": (["--offline", "--video"], "^--offline has no simulator to record"),
    "data of a run that collects none": (["--offline", "--save_dataset", "data"], "^--offline collects nothing"),
}


@pytest.mark.parametrize(("argv", "says"), CASES.values(), ids=CASES)
def test_the_combination_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], says: str
) -> None:
    """And not the file, the dataset or the torchrun that would be in vain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=says):
        distillation.main(argv)
    assert list(tmp_path.iterdir()) == []
