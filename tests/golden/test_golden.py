"""What the commands did at commit 28860de, before the package was laid out anew, they do today.

``make_golden.py`` recorded it there: the weights of students, a run that was killed half way, a saved dataset, two
students, and every flag and key.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_server import run_script

sys.path.insert(0, str(Path(__file__).resolve().parent))
from golden_runs import (
    COMMANDS,
    FIXTURES,
    HALF_WAY,
    HERE,
    RUNS,
    SHORTEST,
    STUDENTS,
    actions_of,
    config_of,
    flags_of,
    machine,
    outcome,
    played,
    run_in,
    typed_as,
    write_teachers,
)

GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
FLAGS: dict[str, Any] = json.loads((HERE / "flags.json").read_text())
SAME_BITS = GOLDEN["machine"] == machine()
"""Whether torch computes here what it computed where the runs were recorded."""
TOLERANCE = 0.02
"""Of losses and returns, where it does not."""
CHANGED: dict[str, str] = {}
"""Deliberate changes since: the name of a run, ``command --flag``, a key or ``student.key`` -> why."""


def command(name: str, *args: str, folder: Path) -> str:
    """Run one of the commands as ``golden_runs.command`` does, forked from a process that has imported torch."""
    done = run_script(f"{name}.py", *args, folder=folder, environment={"FOUNDATION_NATIVE": "0"})
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"{name}.py {' '.join(args)}: exit code {done.returncode}\n{printed}"
    return printed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a working folder with the teachers, the recorded dataset and students."""
    write_teachers(tmp_path)
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(HALF_WAY.name))
    return tmp_path


def compare(name: str, now: dict[str, Any], before: dict[str, Any]) -> None:
    """Compare two outcomes bit for bit, or on another machine within the tolerance."""
    if SAME_BITS and name not in CHANGED:
        assert now == before
    else:
        assert now["figures"] == pytest.approx(before["figures"], rel=TOLERANCE)


def missing(names: Any, now: Any, prefix: str) -> list[str]:
    """Return the recorded names that are gone, but for those that were taken away on purpose."""
    return [name for name in names if name not in now and prefix + name not in CHANGED]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "gru", "kl", "many_teachers"])
def test_a_run_gives_the_same_student(name: str, folder: Path) -> None:
    """The same command line gives the same final weights, loss and returns, to the bit."""
    printed = command("distillation", *RUNS[name], folder=folder)
    compare(name, outcome(run_in(folder), printed), GOLDEN["runs"][name])


@pytest.mark.slow
def test_its_dataset_trains_offline(folder: Path) -> None:
    """A dataset saved at that commit is learned from without a simulator, to the same bits."""
    printed = command("distillation", *RUNS["offline"], folder=folder)
    compare("offline", outcome(run_in(folder), printed), GOLDEN["runs"]["offline"])


@pytest.mark.slow
def test_saving_a_dataset_writes_the_same_rows(folder: Path) -> None:
    """``--save_dataset`` writes the files that it wrote, to the byte of every tensor."""
    from safetensors.torch import load_file

    shutil.rmtree(folder / "dataset")
    command("distillation", *RUNS["save_dataset"], folder=folder)
    files = sorted(path.name for path in (FIXTURES / "dataset").glob("*.safetensors"))
    assert sorted(path.name for path in (folder / "dataset").glob("*.safetensors")) == files
    for name in files:
        before, now = load_file(FIXTURES / "dataset" / name), load_file(folder / "dataset" / name)
        assert before.keys() == now.keys()
        for key in before:
            assert before[key].dtype == now[key].dtype
            if SAME_BITS:
                assert torch.equal(before[key], now[key]), f"{key} of {name}"


@pytest.mark.slow
def test_its_run_resumes(folder: Path) -> None:
    """A run killed at that commit while it saved its third epoch ends as one that was not, and its curves are whole."""
    shutil.copytree(FIXTURES / HALF_WAY.name, folder / HALF_WAY)
    printed = command("distillation", "--resume", "--experiment_name", "golden", "--device", "cpu", folder=folder)
    assert re.search(r"Resuming .* after epoch 2 \(exact\)", printed)
    compare("half_way", outcome(folder / HALF_WAY, printed), GOLDEN["runs"]["half_way"])
    assert _steps(folder / HALF_WAY, "training/loss") == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_its_students_play(student: str, folder: Path) -> None:
    """A student saved at that commit flies as it flew."""
    now = played(student, folder, command)
    assert now == pytest.approx(GOLDEN["played"][student], rel=1e-9 if SAME_BITS else TOLERANCE)


@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_its_students_act(student: str) -> None:
    """A student saved at that commit, loaded as a policy, gives the same actions; one with memory step by step."""
    now, before = (
        torch.tensor(a) for a in (actions_of(FIXTURES / f"student_{student}.pt"), GOLDEN["actions"][student])
    )
    torch.testing.assert_close(now, before, rtol=0, atol=0 if SAME_BITS else 1e-5)


def test_its_weights_load_into_the_public_student() -> None:
    """``foundation.StudentPolicy`` takes a saved state dict and then acts as the whole checkpoint does."""
    from foundation import StudentPolicy

    student = StudentPolicy(26, 4)
    student.load_state_dict(torch.load(FIXTURES / "student_mlp.pt", weights_only=True)["model_state_dict"])
    obs = (torch.arange(3 * 2 * 26, dtype=torch.float32).reshape(3, 2, 26) % 17 - 8) / 8
    with torch.no_grad():
        torch.testing.assert_close(student(obs), torch.tensor(GOLDEN["actions"]["mlp"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_there(name: str, tmp_path: Path) -> None:
    """Every flag of that commit exists, with its default; there may be more."""
    before, now = FLAGS["flags"][name], flags_of(name, tmp_path)
    assert not missing(before, now, f"{name} ")
    different = {flag: (value, now[flag]) for flag, value in before.items() if flag in now and now[flag] != value}
    assert not missing(different, (), f"{name} ")


@pytest.mark.slow
def test_every_key_is_there(folder: Path) -> None:
    """Every key of the config of that commit can be typed and has, untyped, its default; there may be more."""
    command("distillation", *SHORTEST, folder=folder)
    untyped = dict(_leaves(config_of(run_in(folder))))
    own = {"task", "device", "num_envs", "n_epochs", "num_episodes", "num_eval_episodes", "final_eval_episodes"}
    own |= {"teacher.checkpoint", "teacher.check"}
    filled_in = {"experiment_name", "dataset.size", "teacher.obs_groups", "student.obs_groups"}
    plain = {key: entry["default"] for key, entry in FLAGS["keys"].items() if not _schedule_of(key)}
    assert not missing(plain, untyped, "")
    wrong = {key: untyped[key] for key in plain.keys() - own - filled_in if untyped.get(key) != plain[key]}
    assert not missing(wrong, (), "")

    shutil.rmtree(folder / "logs")
    values = {key: value for key, value in plain.items() if key not in own | {"dataset.size"} and key not in CHANGED}
    for schedule in sorted({_schedule_of(key) for key in FLAGS["keys"]} - {""}):
        values[schedule] = {"kind": "linear", "start": 1.0, "end": 0.5, "epochs": 3, "points": []}
        assert {f"{schedule}.{name}" for name in values[schedule]} <= FLAGS["keys"].keys()
    tokens = [f"distill.{key}={typed_as(value)}" for key, value in values.items()]
    command("distillation", *SHORTEST, *tokens, folder=folder)
    typed = dict(_leaves(config_of(run_in(folder))))
    expected = dict(_leaves({key: value for key, value in values.items() if key not in filled_in}))
    assert {key: typed[key] for key in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_every_key_of_a_student_is_there(name: str, folder: Path) -> None:
    """Every key of each student of that commit can be typed, and is what was written then."""
    before = FLAGS["students"][name]
    tokens = [f"distill.student.{key}={typed_as(value)}" for key, value in before.items() if key != "name"]
    command("distillation", *SHORTEST, f"student={name}", *tokens, folder=folder)
    now = config_of(run_in(folder))["student"]
    assert not missing(before, now, "student.")
    assert {key: now[key] for key in before if key in now} == {key: before[key] for key in before if key in now}


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _schedule_of(key: str) -> str:
    """Return the key of the schedule that this key is of, or ""."""
    parent, _, last = key.rpartition(".")
    return parent if last in ("kind", "start", "end", "epochs", "points") else ""


def _steps(run: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]
