"""Where scalars go."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.report.event_file import read_scalars
from foundation.runs.metrics_writer import check_logger, make_writer
from foundation.runs.report import hyper_parameters


def steps(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_reach_tensorboard(tmp_path: Path) -> None:
    """What is added is what TensorBoard reads back."""
    writer = make_writer("tensorboard", tmp_path)
    writer.add_scalars({"a/x": 1.5, "a/y": 2}, 1)
    writer.add_scalars({"a/x": 2.5}, 2)
    writer.close()
    assert steps(tmp_path, "a/x") == [(1, 1.5), (2, 2.5)]
    assert steps(tmp_path, "a/y") == [(1, 2.0)]


def test_hyper_parameters_reach_tensorboards_table(tmp_path: Path) -> None:
    """Its plugin's record has each setting with its value, and our own reader still reads the scalars."""
    writer = make_writer("tensorboard", tmp_path)
    writer.add_scalars({"final/mean_return": 3.0}, 1)
    cfg = DistillationCfg(task="CartPole-v1", n_epochs=7)
    writer.add_hparams(hyper_parameters(cfg), {"final/mean_return": 3.0})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["n_epochs"].number_value == 7 and values["learning_rate"].number_value == pytest.approx(1e-4)
    assert values["task"].string_value == "CartPole-v1" and values["student.name"].string_value == "mlp"
    assert read_scalars(tmp_path)["final/mean_return"].values == [3.0]


def test_a_resumed_run_shows_one_curve(tmp_path: Path) -> None:
    """What an interrupted run wrote beyond the step it is resumed from is hidden."""
    for first, purge, value in ((1, None, 0.0), (3, 3, 1.0)):
        writer = make_writer("tensorboard", tmp_path, purge_step=purge)
        for step in range(first, 6):
            writer.add_scalars({"a": value}, step)
        writer.close()
        started = int(time.time())
        while int(time.time()) == started:  # files are read by the second in their names, as text within one
            time.sleep(0.05)
    assert steps(tmp_path, "a") == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0)]


@pytest.mark.parametrize(("logger", "says"), [("wandb", "pip install wandb"), ("wandbb", "Did you mean 'wandb'")])
def test_a_logger_that_cannot_be_used_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str, says: str
) -> None:
    """Unknown and uninstalled loggers are one-line errors, and no file appears."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    for check in (lambda: check_logger(logger), lambda: make_writer(logger, tmp_path)):
        with pytest.raises(UserError, match=says):
            check()
    assert not list(tmp_path.iterdir())


def test_wandb_goes_through_the_same_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run gets its project, name and plain config; every scalar arrives with its step, beside TensorBoard's."""
    seen: dict[str, Any] = {"logged": [], "finished": 0}

    def finish() -> None:
        seen["finished"] += 1

    def init(**kwargs: Any) -> Any:
        seen["init"] = kwargs
        return SimpleNamespace(log=lambda values, step: seen["logged"].append((values, step)), finish=finish)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    writer = make_writer("wandb", tmp_path, "proj", DistillationCfg(task="T"))
    writer.add_scalars({"a": 1, "b": 2.0}, 7)
    writer.flush()
    writer.close()
    assert seen["init"]["project"] == "proj" and seen["init"]["name"] == tmp_path.name
    assert seen["init"]["config"]["task"] == "T" and seen["init"]["config"]["student"]["name"] == "mlp"
    assert seen["logged"] == [({"a": 1.0, "b": 2.0}, 7)] and seen["finished"] == 1
    assert steps(tmp_path, "a") == [(7, 1.0)]


def test_neptune_goes_through_the_same_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tag is a series of its own; the config holds nothing that Neptune refuses (lists, None)."""

    class FakeRun(dict):
        def __missing__(self, tag: str) -> Any:
            self[tag] = series = SimpleNamespace(values=[])
            series.append = lambda value, step: series.values.append((value, step))
            return series

        def stop(self) -> None:
            self["stopped"] = True

    runs: list[FakeRun] = []

    def init_run(**kwargs: Any) -> FakeRun:
        runs.append(FakeRun())
        return runs[-1]

    monkeypatch.setitem(sys.modules, "neptune", SimpleNamespace(init_run=init_run))
    writer = make_writer("neptune", tmp_path, None, DistillationCfg())
    writer.add_scalars({"a": 1.0}, 3)
    writer.close()
    (run,) = runs
    assert run["a"].values == [(1.0, 3)] and run["stopped"]

    def leaves(value: Any) -> list[Any]:
        return [leaf for v in value.values() for leaf in leaves(v)] if isinstance(value, dict) else [value]

    assert all(isinstance(leaf, (bool, int, float, str)) for leaf in leaves(run["config"]))


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    """A file in the way of the log folder is one clear line."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write logs"):
        make_writer("tensorboard", tmp_path / "file" / "run")
