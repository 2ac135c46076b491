"""``play.py --engine torch,l2f,...``: one policy on several engines, each in a process of its own, and one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_runs import TASK, write_teacher

from foundation.core.errors import UserError
from foundation.engines import l2f
from foundation.rsl_rl import play

OWN_ENGINE = """
from foundation.engines.torch import TorchEngine

class Other(TorchEngine):
    name = "other"

class Broken(TorchEngine):
    name = "broken"

    def make_env(self, env_cfg, agent_cfg, *, video=None):
        raise ValueError("this simulator has a fault")
"""


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the flags that play a bad policy beside its teacher in short episodes; engines of ours can be imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_engine.py").write_text(OWN_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write_teacher(tmp_path / "teacher" / "model.pt")
    return [
        *("--task", TASK, "--checkpoint", str(path), "--teacher", str(path), "--device", "cpu", "--num_episodes", "8"),
        "env.episode_length_s=0.1",
    ]


def test_engines_side_by_side(
    policy: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each engine's figures are those of the command on it alone; one that is not there is said in a line."""
    monkeypatch.setattr(l2f, "l2f_is_installed", lambda: False)
    several = ["--engine", "torch,own_engine:Other,l2f", "--engine_python", f"own_engine:Other={sys.executable}"]
    assert play.main([*policy, *several, "--json", "all.json"]) == 0
    seen = capsys.readouterr()
    assert play.main([*policy, "--engine", "torch", "--no-export", "--json", "one.json"]) == 0
    both = json.loads(Path("all.json").read_text())
    one = json.loads(Path("one.json").read_text())
    assert list(both["engines"]) == ["torch", "own_engine:Other"]
    assert [found["engine"] for found in both["engines"].values()] == ["torch", "other"]
    for found in both["engines"].values():
        for name in ("return", "success_rate", "num_episodes", "teacher", "return_ratio", "seed"):
            assert found[name] == one[name], name
    assert one["return_ratio"] == 1.0 and one["return_ratio_interval_95"] == 0.0  # it is its own teacher
    assert list(both["not_installed"]) == ["l2f"] and both["failed"] == {}
    assert "100.00" in seen.out  # an interval may be wrapped beneath it
    assert "--engine_python l2f=PATH" in seen.err
    assert not Path("teacher/exported").exists()


def test_an_engine_that_fails(policy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The others' rows stand, its own error is one line, and the exit code is 1; with no row at all it is an error."""
    assert play.main([*policy, "--engine", "torch,own_engine:Broken", "--json", "all.json"]) == 1
    figures = json.loads(Path("all.json").read_text())
    assert list(figures["engines"]) == ["torch"]
    assert "this simulator has a fault" in figures["failed"]["own_engine:Broken"]
    assert "this simulator has a fault" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"could be played on none of them .*this simulator has a fault"):
        play.main([*policy, "--engine", "own_engine:Broken", "--engine_python", f"own_engine:Broken={sys.executable}"])


def test_the_gate_on_success_holds_for_each(policy: list[str]) -> None:
    """The exit code is 3 where the success is too low on one of them."""
    assert (
        play.main([*policy, "--engine", "torch,own_engine:Other", "--min_success", "1", "env.episode_length_s=0.3"])
        == 3
    )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--engine", "torch,l3f"], r"--engine l3f: unknown engine. Did you mean 'l2f'"),
        (["--engine", "torch,,l2f"], "has an empty name"),
        (["--engine", "torch,torch"], "names an engine twice"),
        (["--engine", "torch,auto"], "name the engines to play on"),
        (["--engine_python", "torch=/bin/true"], "name the engines to play on"),
        (["--engine", "torch,gymnasium"], "--engine gymnasium cannot run --task"),
        (["--engine", "torch,l2f", "--engine_python", "l2f"], "--engine_python l2f: write it as"),
        (["--engine", "torch,l2f", "--engine_python", "l2=/bin/true"], "--engine does not name 'l2'"),
        (["--engine", "torch,l2f", "--engine_python", "l2f=/nowhere/python"], "'/nowhere/python' is no program"),
        (["--engine", "torch,l2f", *2 * ["--engine_python", "l2f=/bin/true"]], "gives 'l2f' two Pythons"),
        (["--engine", "torch,l2f", "--robustness"], "--robustness goes with one engine"),
        (["--engine", "torch,l2f", "--video"], "--video goes with one engine"),
        (["--engine", "torch,l2f", "--real-time"], "--real-time goes with one engine"),
    ],
)
def test_bad_input(policy: list[str], typed: list[str], message: str) -> None:
    """One line that says what to type."""
    with pytest.raises(UserError, match=message):
        play.main([*policy, *typed])


def test_a_python_without_the_package(policy: list[str]) -> None:
    """A program that is no Python of ours is an error with what it said, or its exit code."""
    with pytest.raises(UserError, match="torch: its process ended with exit code 1"):
        play.main([*policy, "--engine", "torch", "--engine_python", "torch=/bin/false"])
