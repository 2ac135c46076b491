"""Figures by variant, such as the vehicle of each environment."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tensordict import TensorDict

from foundation.cli.command import run_command
from foundation.cli.play_job import variant_of
from foundation.engines.base import EnvCapabilities, count_variants
from foundation.evaluation.breakdown import variant_figures, variant_table
from foundation.rollout.evaluate import EvaluationResult
from foundation.rsl_rl import play
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles, to_dict, vehicle_names

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


def test_episodes_are_sorted_by_vehicle():
    """Means by hand; the error is that of episodes flown to their end, and None where there is none."""
    result = EvaluationResult(
        returns=torch.tensor([10.0, 20.0, 30.0, 50.0]),
        lengths=torch.full((4,), 500.0),
        success=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        metrics={"position_error": torch.tensor([0.1, 0.2, 0.3, 0.5])},
        teacher=torch.tensor([1, 0, 0, 1]),
    )
    zero, one = variant_figures(result, "vehicle", ["a", "b"], ["position_error"])
    assert zero == {"vehicle": "a", "episodes": 2, "return": 25.0, "success_rate": 0.0, "position_error": None}
    assert one["return"] == 30.0
    assert one["success_rate"] == 1.0
    assert one["position_error"] == pytest.approx(0.3)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(variant_table([one, zero], "vehicle", {"position_error": (100.0, "cm")}))
    text = console.export_text()
    assert text.index("│ a ") < text.index("│ b "), "the worst comes first"
    assert "error [cm]" in text and " 30.00 " in text


def test_names_and_numbers_of_vehicles(tmp_path):
    """A folder's files in order, sampled ones by number; environments are rounded up to whole fleets."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert vehicle_names([str(tmp_path), "sampled:2:7"]) == ["a", "b", "sampled_0", "sampled_1"]
    assert vehicle_names(None) == []
    assert count_variants(QuadcopterPointCtrlEnvCfg(vehicles=[str(tmp_path), "sampled:2"])) == 4
    assert count_variants(QuadcopterPointCtrlEnvCfg()) == 1
    assert count_variants(SimpleNamespace()) == 1


def test_one_variant_needs_no_table():
    """Environments that are all the same, or declare no variants, have no figures by variant."""
    index = torch.tensor([0, 1])
    assert variant_of(EnvCapabilities()) is None
    assert variant_of(EnvCapabilities(variant_kind="vehicle", variant_index=torch.zeros(4))) is None
    told = variant_of(EnvCapabilities(variant_kind="vehicle", variant_index=index))
    assert told is not None and told(TensorDict({})) is index
    result = EvaluationResult(torch.ones(2), torch.ones(2), None, {})
    assert variant_figures(result, "", [], []) == []


@pytest.mark.parametrize("engine", ["torch", pytest.param("l2f", marks=pytest.mark.l2f)])
def test_play_shows_each_vehicle(engine, tmp_path, monkeypatch, capsys):
    """``play.py`` with a folder of vehicles flies each equally often, in either simulator, and lists them."""
    monkeypatch.chdir(tmp_path)
    vehicles = sample_vehicles(3, seed=1)
    (tmp_path / "fleet").mkdir()
    for index in range(3):
        (tmp_path / "fleet" / f"quad_{index}.json").write_text(json.dumps(to_dict(vehicles, index)))
    argv = ["--task", TASK, "--agent", "zero", "--device", "cpu", "--engine", engine, "--json", "play.json"]
    argv += ["--num_episodes", "4", "env.vehicles=fleet", "env.episode_length_s=0.1"]
    assert run_command(play.main, argv) == 0
    rows = json.loads((tmp_path / "play.json").read_text())["vehicles"]
    assert [(row["vehicle"], row["episodes"]) for row in rows] == [(f"quad_{i}", 2) for i in range(3)]
    assert "3 vehicles, the worst first" in capsys.readouterr().out
