"""Which settings a resumed run says that it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import to_plain
from foundation.runs.changed_settings import changed_settings
from foundation.runs.run_dir import RunDir


def changes(folder: Path, was: DistillationCfg, now: DistillationCfg, *envs: dict[str, Any]) -> str:
    run = RunDir(folder)
    run.save_params(*envs[:1])
    return changed_settings(run, {"distillation": to_plain(was)}, now, *envs[1:])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ({"learning_rate": 1e-4}, {"learning_rate": 3e-4}, ", but learning_rate is 3e-4, was 1e-4"),
        ({"learning_rate": 0.00123456789}, {"learning_rate": 0.1}, ", but learning_rate is 0.1, was 0.00123456789"),
        ({"n_epochs": 4, "seed": 1}, {"n_epochs": 7, "seed": 2}, "seed is 2, was 1; n_epochs is 7, was 4"),
        ({"shuffle": True}, {"shuffle": True}, ""),
    ],
)
def test_every_setting_that_differs_is_named_in_one_line(old, new, says, tmp_path) -> None:
    """With both values, as they are typed; where nothing differs nothing is said."""
    said = changes(tmp_path, DistillationCfg(**old), DistillationCfg(**new))
    assert said.endswith(says) and bool(said) is bool(says)
    assert "\n" not in said


def test_nested_settings_and_those_of_the_environment_are_named_with_their_key(tmp_path) -> None:
    """``dataset.size`` and ``env.sim.dt``; tuples are what the file makes of them, and NaN is like itself."""
    was, now = DistillationCfg(), DistillationCfg()
    now.dataset.size = 500
    before = {"sim": {"dt": 0.01, "gravity": (0.0, -9.8)}, "reward": float("nan"), "log_dir": "logs/a"}
    after = {"sim": {"dt": 0.02, "gravity": (0.0, -9.8)}, "reward": float("nan"), "log_dir": "logs/b"}
    said = changes(tmp_path, was, now, before, after)
    assert said == ", but dataset.size is 500, was None; env.sim.dt is 0.02, was 0.01"


def test_a_field_that_an_older_run_did_not_have_is_not_a_change(tmp_path) -> None:
    """A run of an earlier version is resumed with the defaults of the fields that have come since."""
    saved = to_plain(DistillationCfg())
    del saved["final_eval_episodes"]
    assert changed_settings(RunDir(tmp_path), {"distillation": saved}, DistillationCfg()) == ""
