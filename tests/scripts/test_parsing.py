"""The scripts' command lines: every mistake is one line that names the nearest flag, and nothing is begun."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from foundation.cli.command import run_command

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

REQUIRED = {
    "sample_vehicles": ["--num", "1", "--output", "made"],
    "train_teachers": ["--vehicles", "made", "--output", "made"],
    "train_bptt_teacher": ["--output", "made"],
    "raptor_pipeline": ["1", "--folder", "made"],
    "raptor_ablation": ["--manifest", "made"],
    "benchmark": ["--out", "made"],
}


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--sed", "1"], "unknown flag '--sed'"),
        (["--hel"], "unknown flag '--hel'. Did you mean '--help'"),
        (["one", "two"], None),
        (["-x"], None),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, name, given, says):
    """Exit code 2, one line on stderr, no usage, nothing written."""
    monkeypatch.chdir(tmp_path)
    code = run_command(importlib.import_module(name).main, [*REQUIRED[name], *given])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1
    assert (says or "error: ") in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("federated", ["--rounds", "0"], "--rounds: 0 is too small: it must be at least 1"),
        ("federated", ["--episodes", "-1"], "--episodes: -1 is too small"),
        ("federated", ["--rounds", "1000000000000"], "--rounds: 1000000000000 is too large: it must be at most"),
        ("train_gate_teacher", ["--updates", "0"], "--updates: 0 is too small"),
        ("train_bptt_teacher", ["--num_episodes", "-1"], "--num_episodes: -1 is too small"),
        ("robustness_study", ["--num_episodes", "0"], "--num_episodes: 0 is too small"),
        ("federated", ["--seed", "-1"], "--seed: must be between 0 and 4294967295, got -1"),
        ("sample_vehicles", ["--num", "1", "--output", "made", "--seed", "-1"], "--seed: must be between 0 and"),
        ("latency", ["--steps", "0"], "--steps: 0 is too small"),
        ("exported_flight", ["--num_episodes", "0"], "--num_episodes: 0 is too small"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys, name, given, says):
    """And not taken for work of no size, nor found after minutes of training."""
    monkeypatch.chdir(tmp_path)
    assert run_command(importlib.import_module(name).main, given) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_flag_is_not_a_missing_one(capsys):
    """The flag that was typed is named, before the one that is required."""
    assert run_command(importlib.import_module("sample_vehicles").main, ["--nun", "3", "--output", "made"]) == 2
    assert "'--nun'. Did you mean '--num'?" in capsys.readouterr().err


def test_a_size_that_is_none_is_refused_with_quick_too(tmp_path, monkeypatch, capsys):
    """Although quick sizes would take its place."""
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module("train_teachers").main
    assert run_command(main, [*REQUIRED["train_teachers"], "--quick", "--updates", "-1"]) == 2
    assert "--updates must be at least 1" in capsys.readouterr().err


def test_vehicles_are_written_beside_the_real_ones_or_not_at_all(tmp_path, monkeypatch, capsys):
    """A file where the second folder should be is refused before the first one is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made_real").touch()
    assert run_command(importlib.import_module("sample_vehicles").main, REQUIRED["sample_vehicles"]) == 2
    assert "made_real' is a file" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def path_arguments() -> list[tuple[str, str]]:
    """Every argument of a script that is typed ``Path``, or named as one for people: script and flag, "" without."""
    found = []
    for file in sorted(SCRIPTS.glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"):
                continue
            said = {key.arg: ast.unparse(key.value).strip("'\"") for key in call.keywords if key.arg}
            if said.get("type") == "Path" or said.get("metavar") in ("FILE", "FOLDER", "PATH", "DIR", "RUN"):
                name = ast.literal_eval(call.args[0])
                found.append((file.stem, name if name.startswith("-") else ""))
    return found


@pytest.mark.parametrize("blank", ["", "   "], ids=["empty", "spaces"])
@pytest.mark.parametrize(("name", "flag"), path_arguments())
def test_a_blank_path_is_not_the_current_folder(tmp_path, monkeypatch, capsys, name, flag, blank):
    """As of a shell's variable that is not set: one line that names the argument, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    given = [flag, blank] if flag else [blank]
    assert run_command(importlib.import_module(name).main, given) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"{flag} was given a" in error and "text: write" in error
    assert list(tmp_path.iterdir()) == []
