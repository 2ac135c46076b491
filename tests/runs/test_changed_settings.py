"""Which settings a resumed run says that it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg
from foundation.config.plain import to_plain
from foundation.config.validate import label
from foundation.core.errors import UserError
from foundation.runs.changed_settings import changed_settings, refuse_settled
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
    assert said == ", but dataset.size is 500, was null; env.sim.dt is 0.02, was 0.01"


def test_a_field_that_an_older_run_did_not_have_is_not_a_change(tmp_path) -> None:
    """A run of an earlier version is resumed with the defaults of the fields that have come since."""
    saved = to_plain(DistillationCfg())
    del saved["final_eval_episodes"]
    assert changed_settings(RunDir(tmp_path), {"distillation": saved}, DistillationCfg()) == ""


def test_an_entry_that_has_come_or_gone_is_a_change(tmp_path) -> None:
    """A second auxiliary loss, one that is left out, a task's own dictionary: an entry is no field of a new version."""
    was, now = DistillationCfg(), DistillationCfg()
    was.loss.auxiliary = {"huber": 0.5}
    now.loss.auxiliary = {"huber": 0.5, "kl": 0.1}
    assert changes(tmp_path, was, now) == ", but loss.auxiliary.kl is 0.1, was not set"
    assert changes(tmp_path, now, was) == ", but loss.auxiliary.kl is not set, was 0.1"
    assert changes(tmp_path, DistillationCfg(), was) == ", but loss.auxiliary.huber is 0.5, was not set"
    said = changes(tmp_path, was, was, {"rewards": {"alive": 1.0}}, {"rewards": {"alive": 1.0, "effort": -0.1}})
    assert said == ", but env.rewards.effort is -0.1, was not set"


def test_a_part_that_has_come_is_shown_whole(tmp_path) -> None:
    """A schedule where there was none, and the other way round."""
    was, now = DistillationCfg(), DistillationCfg()
    now.optimizer.lr_schedule = ScheduleCfg("linear", 1.0, 0.1)
    said = changes(tmp_path, was, now)
    assert said.startswith(", but optimizer.lr_schedule is {") and "linear" in said and said.endswith(", was null")
    assert changes(tmp_path, now, was).startswith(", but optimizer.lr_schedule is null, was {")


def test_where_an_object_lies_in_memory_is_no_setting(tmp_path) -> None:
    """An object of a task's own config is written as its text, whose address is another in each process."""
    was = DistillationCfg()
    values = ("<own.Terrain object at 0x7f00aa>", "<own.Terrain object at 0x7f11bb>", "<own.Plane object at 0x7f11bb>")
    before, same, other = ({"terrain": value} for value in values)
    assert changes(tmp_path, was, was, before, same) == ""
    assert "env.terrain is" in changes(tmp_path, was, was, before, other)


def test_what_is_read_when_a_run_begins_cannot_change_when_it_is_resumed() -> None:
    """The first one that differs is named as the user sets it; other settings, and those of old files, are free."""
    was = to_plain(DistillationCfg())
    now = DistillationCfg(n_epochs=7)
    refuse_settled(was, now, ["dataset.load", "student.init_checkpoint"], label)
    now.dataset.load = "stored"
    refuse_settled({"dataset": {}}, now, ["dataset.load"], label)
    with pytest.raises(UserError, match="--dataset is stored, and the run began with null"):
        refuse_settled(was, now, ["student.init_checkpoint", "dataset.load"], label)
