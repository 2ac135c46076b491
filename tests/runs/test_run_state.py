"""What a run goes on from: read by its types, written as it was read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import Ranks
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.files import load_checkpoint
from foundation.runs.context import EVAL_SEED, RunContext
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import OfflineState, RunState, first_step, read_checkpoint, write_state

OLD = Path(__file__).parents[1] / "golden" / "fixtures" / "2026-01-01_00-00-00_half_way" / "checkpoint_latest.pt"


def old() -> dict[str, Any]:
    """A checkpoint of commit 28860de."""
    return load_checkpoint(OLD)


def test_an_old_checkpoint_is_read_and_written_as_it_was():
    """Every entry that the old file has is in the state, unchanged, and goes into the next checkpoint again."""
    values = old()
    checkpoint = read_checkpoint(values, OLD, RunState)
    assert checkpoint.state is not None
    written = write_state(checkpoint.state)["resume"]
    assert set(values["resume"]) <= set(written)
    for name, value in values["resume"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(written[name], value)
        else:
            assert str(written[name]) == str(value)
    assert checkpoint.state.steps_taken * checkpoint.state.num_envs == checkpoint.state.env_steps
    assert first_step(checkpoint) == values["epoch"] + 1


def test_rows_are_counted_where_an_earlier_version_did_not_say_them():
    """Chunks times steps times environments."""
    state = read_checkpoint(old(), OLD, RunState).state
    assert state is not None
    _, steps, num_envs, _ = state.dataset["shape"]
    earlier = dataclasses.replace(state, dataset_rows=None)
    assert earlier.num_rows == state.dataset["num_chunks"] * steps * num_envs
    assert dataclasses.replace(state, dataset_rows=7).num_rows == 7


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunState)])
def test_a_tampered_value_is_one_line_that_names_it(name):
    """Of another type: the file, the entry and the field are named."""
    values = old()
    values["resume"] = {**values["resume"], name: object}
    with pytest.raises(UserError) as caught:
        read_checkpoint(values, OLD, RunState)
    assert OLD.name in str(caught.value)
    assert f"'{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"epoch": -1}, {"num_envs": 0}, {"env_steps": -5}])
def test_numbers_that_no_run_has_are_refused(change):
    """They would be divided by, or count epochs backwards."""
    values = old()
    values["resume"] = {**values["resume"], **change}
    with pytest.raises(UserError, match="is corrupt: epoch"):
        read_checkpoint(values, OLD, RunState)


@pytest.mark.parametrize(
    "change",
    [
        {"stopwatch": {"wall": {"learning": "x"}, "cpu": {}}},
        {"stopwatch": {"wall": None, "cpu": {}}},
        {"stopwatch": {"wall": {"learning": float("nan")}, "cpu": {}}},
        {"early_stopping": {"best": {"a": {}}}},
        {"baselines": {"teacher": 3}},
        {"baselines": {"teacher": {"mean_return": "x"}, "random": {"mean_return": 1.0}}},
        {"baselines": {"teacher": {"mean_return": 1.0}}},
    ],
)
def test_values_inside_of_values_have_types_too(change):
    """What the first epoch would add to, or divide by, is checked before the run begins."""
    values = old()
    values["resume"] = {**values["resume"], **change}
    with pytest.raises(UserError, match="is corrupt"):
        read_checkpoint(values, OLD, RunState)


def test_a_missing_value_is_named():
    """One without a default has to be there; those that came later need not."""
    values = old()
    del values["resume"]["torch_rng"]
    with pytest.raises(UserError, match="lacks 'torch_rng'"):
        read_checkpoint(values, OLD, RunState)


def test_a_checkpoint_of_another_kind_of_run_has_no_state():
    """An offline run does not go on from one with a simulator."""
    assert read_checkpoint(old(), OLD, OfflineState).state is None


def test_the_context_derives_seeds_and_stops(tmp_path):
    """Each process collects and evaluates with seeds of its own, always the same ones; a reason to stop is raised."""
    cfg = DistillationCfg(seed=5)
    first = RunContext.make(cfg, RunDir(tmp_path), "cpu")
    third = dataclasses.replace(first, ranks=Ranks(2, 4), interrupted=lambda: "SIGTERM")
    assert (first.seed, third.seed) == (5, 7)
    assert (first.eval_seed, third.eval_seed) == (5 + EVAL_SEED, 7 + EVAL_SEED)
    assert len({first.eval_seed, first.final_seed, first.seed}) == 3
    assert first.is_first and not third.is_first
    first.poll()
    with pytest.raises(RunInterrupted, match="SIGTERM"):
        third.poll()
