"""Plain values of another type, missing, huge or odd, in every kind of file: read, or refused in one short line."""

from __future__ import annotations

import copy
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.dataset.disk.reader import SavedDataset
from foundation.runs import run_state
from foundation.students import StudentPolicy
from foundation.tasks.quadrotor.sim.vehicle_folder import registry
from foundation.tasks.quadrotor.sim.vehicle_json import to_dict
from foundation.tasks.quadrotor.sim.vehicles import load_vehicles
from foundation.teachers.manifest import find_teachers, read_manifest

ODD = [
    None, True, -1, 0, 2**31, 2**62, 1e30, float("nan"), float("inf"), "", "x", "os:system", "a" * 5000, "\0", "../x",
    [], {}, [[]], [None], {"a": {}}, ["x"] * 50, [-1], [10**9, 10**9], {"0": 1},
]  # fmt: skip
TRIES = 60


def tampered(value: Any, rng: random.Random) -> Any:
    """Return a copy with one or two values replaced, left out or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2])):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and rng.random() < 0.7:
                place = place[key]
                continue
            how = rng.random()
            if how < 0.2:
                del place[key]
            elif how < 0.3 and isinstance(place, dict):
                place[rng.choice([7, "", f"{key}x"])] = place.pop(key)
            else:
                place[key] = copy.deepcopy(rng.choice(ODD))
            break
    return value


def student() -> dict[str, Any]:
    network = StudentPolicy(6, 2)
    state = {
        "epoch": 1, "env_steps": 10, "num_envs": 2, "baselines": {}, "stopwatch": {}, "collector": {}, "dataset": {},
        "shards": {}, "teachers": {}, "torch_rng": torch.get_rng_state(),
    }  # fmt: skip
    return {
        "student": network.describe(), "model_state_dict": dict(network.state_dict()), "obs_groups": ["policy"],
        "obs_slice": [0, 6], "clip_actions": 1.0, "task": "T", "epoch": 1, "best_return": 1.0, "best_epoch": 0,
        "optimizer_state_dict": {}, "resume": state,
    }  # fmt: skip


def read_student(folder: Path, values: Any) -> None:
    torch.save(values, folder / "best_student.pt")
    load_policy(folder / "best_student.pt", Overrides())


def read_state(folder: Path, values: Any) -> None:
    torch.save(values, folder / "checkpoint_latest.pt")
    path = folder / "checkpoint_latest.pt"
    run_state.read_checkpoint(load_checkpoint(path), path, run_state.RunState)


AGENT = {
    "policy": {"class_name": "ActorCritic", "activation": "elu", "actor_hidden_dims": [8], "noise_std_type": "scalar"},
    "obs_groups": {"policy": ["policy"], "critic": ["policy"]}, "clip_actions": 1.0, "empirical_normalization": False,
}  # fmt: skip


def read_agent(folder: Path, values: Any) -> None:
    weights = {"actor.0.weight": torch.ones(8, 6), "actor.0.bias": torch.ones(8)}
    weights |= {"actor.2.weight": torch.ones(2, 8), "actor.2.bias": torch.ones(2), "std": torch.ones(2)}
    torch.save({"model_state_dict": weights, "iter": 1}, folder / "model_1.pt")
    (folder / "agent.yaml").write_text(yaml.safe_dump(values))
    load_policy(folder / "model_1.pt", Overrides())


MANIFEST = {
    "format": "foundation-teachers-1", "task": "T",
    "teachers": [{"name": "a", "checkpoint": "t0.pt", "mean_return": 1.0, "status": "ok"}, {"checkpoint": "t1.pt"}],
}  # fmt: skip


def read_teachers(folder: Path, values: Any) -> None:
    for name in ("t0.pt", "t1.pt"):
        (folder / name).touch()
    (folder / "teachers.yaml").write_text(yaml.safe_dump(values))
    read_manifest(folder / "teachers.yaml")


ROWS = {
    "rows": torch.zeros(1, 4, 2, 5), "resets": torch.zeros(1, 4, 2, dtype=torch.bool),
    "episode": torch.zeros(1, 4, 2, dtype=torch.int64), "episode_id": torch.zeros(1, dtype=torch.int64),
    "episode_return": torch.zeros(1), "episode_length": torch.ones(1, dtype=torch.int64),
    "episode_success": torch.zeros(1), "episode_whole": torch.ones(1, dtype=torch.bool),
}  # fmt: skip
DATA = save(ROWS)
INDEX = {
    "format": "foundation-dataset", "version": 1, "task": "T", "obs_groups": ["policy"], "obs_slice": None,
    "num_obs": 3, "targets": {"mean": 2}, "dtype": "float32", "chunk_steps": 4, "num_envs": 2, "num_teachers": 1,
    "weighted": False, "clip_actions": None, "columns": {"obs": [0, 3], "mean": [3, 5]}, "teacher": {},
    "files": [
        {"file": "c.safetensors", "chunks": 1, "rows": 8, "bytes": len(DATA), "crc32": f"{zlib.crc32(DATA):08x}"}
    ],
}  # fmt: skip


def read_dataset(folder: Path, values: Any, data: bytes = DATA) -> None:
    (folder / "c.safetensors").write_bytes(data)
    (folder / "dataset.json").write_text(json.dumps(values))
    saved = SavedDataset(folder)
    for entry in saved.files:
        saved.read(entry)


def read_vehicle(folder: Path, values: Any) -> None:
    (folder / "v.json").write_text(json.dumps(values))
    load_vehicles(folder / "v.json")


READERS: dict[str, tuple[Callable[[Path, Any], None], Any]] = {
    "student": (read_student, student()),
    "state": (read_state, student()),
    "agent.yaml": (read_agent, AGENT),
    "manifest": (read_teachers, MANIFEST),
    "dataset.json": (read_dataset, INDEX),
    "vehicle": (read_vehicle, to_dict(next(iter(registry().values())), 0)),
}


@pytest.mark.parametrize("kind", READERS)
def test_tampered_values_are_read_or_refused(kind, tmp_path):
    """What was not tampered with is read; of sixty that were, each is read or refused in one line that is printed."""
    read, values = READERS[kind]
    read(tmp_path, values)
    rng = random.Random(kind)
    refusals = 0
    for _ in range(TRIES):
        try:
            read(tmp_path, tampered(values, rng))
        except UserError as error:
            refusals += 1
            assert str(error).isprintable() and len(str(error)) < 1200
    assert refusals > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": INDEX["files"] * 4}, "twice"),
        ({"files": [INDEX["files"][0] | {"chunks": 10**12, "rows": 8 * 10**12}]}, "lists 8000000000000 transitions"),
        ({"files": [INDEX["files"][0] | {"chunks": 1e30}]}, "'chunks' is 1e"),
        ({"files": [INDEX["files"][0] | {"file": "../c"}]}, "corrupt"),
        ({"files": [{}]}, "lacks 'file'"),
        ({"obs_groups": {"a": 1}}, "'obs_groups'"),
        ({"obs_slice": [3, 1]}, "obs_slice"),
        ({"task": "a\0"}, "zero"),
        ({"teacher": 3}, "'teacher'"),
        ({"num_envs": -2}, "sizes"),
        ({"clip_actions": "x"}, "'clip_actions'"),
    ],
)
def test_an_index_that_cannot_be(changes, words, tmp_path):
    """``dataset.json``: each mistake is named, before memory is set aside by what it says."""
    with pytest.raises(UserError, match=words):
        read_dataset(tmp_path, INDEX | changes)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 3000, "\ufeff{}", '"\\ud800"', "{} x", "1" * 10_000])
def test_json_that_is_no_index(text, tmp_path):
    """Depth, halves of characters and huge numbers: one line."""
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError) as caught:
        SavedDataset(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["rows", "resets", "episode"])
def test_rows_that_are_not_finite_or_of_another_type(name, tmp_path):
    """NaN in the rows, and numbers with fractions where there are marks or indices, are refused."""
    data = save(ROWS | {name: torch.full(ROWS[name].shape, float("nan"))})
    entry = INDEX["files"][0] | {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    with pytest.raises(UserError, match=r"NaN|not integers"):
        read_dataset(tmp_path, INDEX | {"files": [entry]}, data)


def test_links_in_a_circle(tmp_path):
    """A teacher that is a link to itself, in a manifest or alone, is one line."""
    (tmp_path / "t.pt").symlink_to("t.pt")
    (tmp_path / "teachers.yaml").write_text(
        yaml.safe_dump({"format": "foundation-teachers-1", "teachers": [{"checkpoint": "t.pt"}]})
    )
    for spec in (str(tmp_path / "teachers.yaml"), f"{tmp_path / 't.pt'},{tmp_path / 't.pt'}"):
        with pytest.raises(UserError):
            find_teachers(spec)
