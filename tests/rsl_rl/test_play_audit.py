"""``play.py`` as an audit: a gate on success, several seeds, checksums, ablations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny_runs import TASK, write_teacher

from foundation.core.errors import UserError
from foundation.rsl_rl import play


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the flags that play a bad teacher in short episodes, some of which end by time-out."""
    monkeypatch.chdir(tmp_path)
    path = write_teacher(tmp_path / "teacher" / "model.pt")
    return [
        *("--task", TASK, "--checkpoint", str(path), "--no-export", "--device", "cpu", "--num_episodes", "16"),
        "env.episode_length_s=0.3",
    ]


def test_the_exit_code_says_whether_success_is_enough(policy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """0 where it is at least what was asked for, 3 where it is below; the JSON has the rate and its interval."""
    assert play.main([*policy, "--json", "a.json"]) == 0
    figures = json.loads(Path("a.json").read_text())
    rate = figures["success_rate"]
    low, high = figures["success_interval_95"]
    assert 0 <= low <= rate <= high <= 1
    assert play.main([*policy, "--min_success", str(rate)]) == 0
    capsys.readouterr()
    assert play.main([*policy, "--min_success", str(min(1.0, rate + 0.01))]) == (3 if rate < 1 else 0)
    assert "asked for" in capsys.readouterr().out


def test_several_seeds_and_the_files_they_rest_on(policy: list[str]) -> None:
    """Each seed's episodes are those that --seed gives; the manifest has the policy's checksum and its config's."""
    assert play.main([*policy, "--eval_seeds", "3,4", "--json", "both.json"]) == 0
    assert play.main([*policy, "--seed", "4", "--json", "one.json"]) == 0
    both = json.loads(Path("both.json").read_text())
    one = json.loads(Path("one.json").read_text())
    assert both["num_episodes"] == 2 * one["num_episodes"]
    assert [row["seed"] for row in both["seeds"]] == [3, 4]
    assert both["seeds"][1]["mean_return"] == one["return"]["mean"]
    named = {Path(entry["path"]).name: entry["sha256"] for entry in both["manifest"]}
    assert named["model.pt"] == hashlib.sha256(Path("teacher/model.pt").read_bytes()).hexdigest()
    assert "agent.yaml" in named


def test_ablation_in_the_figures(policy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each input, on the seeds of the intact policy; without an input that it does not read, nothing."""
    typed = ["--ablate", "all", "--ablate", "policy:zero", "--obs_groups", "policy"]
    assert play.main([*policy, *typed, "--json", "a.json"]) == 0
    rows = json.loads(Path("a.json").read_text())["ablations"]
    assert [row["input"] for row in rows][:2] == ["policy.position_error", "policy.orientation"]
    assert (rows[-1]["input"], rows[-1]["how"]) == ("policy", "zero")
    assert rows[-1]["return_change"] != 0.0
    assert "which inputs does the policy use?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--min_success", "90"], "--min_success is 90: it must be from 0 to 1"),
        (["--eval_seeds", "1,x"], "--eval_seeds 1,x: 'x' is not an integer; write them as 0,1,2"),
        (["--eval_seeds", "1,1"], "--eval_seeds 1,1 has a seed twice"),
        (["--eval_seeds", "1,2", "--seed", "3"], "--seed and --eval_seeds both seed the episodes"),
        (["--ablate", "camera"], "no term 'camera' in policy"),
    ],
)
def test_bad_input(policy: list[str], typed: list[str], message: str) -> None:
    """One line that names the flag."""
    with pytest.raises(UserError, match=message):
        play.main([*policy, *typed])
