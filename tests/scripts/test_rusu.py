"""The study of small games: sizes of students, and the page that is written from what is done."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from foundation.students import StudentPolicy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import rusu  # noqa: E402


@pytest.mark.parametrize(("num_obs", "width", "num_choices"), [(4, 32, 2), (400, 7, 6), (6, 1, 3)])
def test_parameters_are_those_of_the_student(num_obs, width, num_choices):
    """The formula counts what the student has."""
    student = StudentPolicy(num_obs, 1, hidden_dims=(width, width), num_choices=num_choices)
    assert rusu.num_parameters(num_obs, width, num_choices) == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize("share", [0.25, 0.07, 0.01])
def test_a_width_comes_nearest_to_its_share(share):
    """No width one up or down is nearer to the share of a teacher of 67,586 parameters."""
    width = rusu.width_of(share, 4, 2, 67_586)
    off = [abs(rusu.num_parameters(4, w, 2) - share * 67_586) for w in (width - 1, width, width + 1)]
    assert off[1] == min(off)


def test_the_page_has_the_median_and_the_range_of_the_seeds(tmp_path):
    """Of three seeds, and a dash where nothing was run; the picture is written too."""
    found = {"CartPole-v1": [0.9, 1.0, 0.4], "Acrobot-v1": [0.7, 0.8, 0.75]}
    done: dict = {f"teacher {game}": {"parameters": 1000} for game in found}
    for game, values in found.items():
        for seed, value in enumerate(values):
            stage = {"score": value, "teacher_return": 500.0, "parameters": {"student": 70, "teacher": 1000}}
            done[f"compression {game} 0.07 s{seed}"] = stage
            done[f"losses {game} nll s{seed}"] = stage
    done["multi_task CartPole-v1+Acrobot-v1 s0"] = {
        "tasks": {"CartPole-v1": {"score": 0.95}, "Acrobot-v1": {"score": 0.5}}
    }
    text = rusu.page(done, "rusu")
    assert statistics.median(found["CartPole-v1"]) == 0.9
    assert "| CartPole-v1 | - | 0.900 (0.400 to 1.000) | - |" in text
    assert "| CartPole-v1 | - | 70 parameters: 0.900 (0.400 to 1.000) | - | - | - | - |" in text
    assert "| Acrobot-v1 | 0.500 (0.500 to 0.500) | 0.750 (0.700 to 0.800) |" in text
    rusu.draw(done, tmp_path / "rusu.png")
    assert (tmp_path / "rusu.png").stat().st_size > 1000


def test_runs_of_a_study_differ_in_name_and_cover_every_game(tmp_path):
    """Two games, two seeds: losses and sizes of each, none of them twice."""
    args = rusu.parse(["--games", "CartPole-v1", "Acrobot-v1", "--seeds", "0", "1", "--folder", str(tmp_path)])
    study = rusu.Study(args)
    names = [name for seed in args.seeds for game in study.games for name, _ in study.runs(game, seed)]
    assert len(names) == len(set(names)) == 2 * 2 * (len(rusu.LOSSES) + len(rusu.SHARES))
