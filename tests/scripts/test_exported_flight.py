"""``scripts/exported_flight.py``: its link does to messages what it says, and the exported files fly as the policy."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("exported_flight", ROOT / "scripts" / "exported_flight.py")
assert SPEC is not None
assert SPEC.loader is not None
flight = importlib.util.module_from_spec(SPEC)
sys.modules["exported_flight"] = flight  # dataclasses look their module up
SPEC.loader.exec_module(flight)

ENVS = 400


class Counting:
    """Gives what it saw of the clock, and notes how often it was asked."""

    def __init__(self):
        self.asked = []

    def reset(self, dones=None):
        """Nothing to forget."""

    def act(self, obs):
        """Return the time that the observation was made, and the own columns it was given."""
        self.asked.append(obs["o"].clone())
        return obs["o"][:, :1] / 100.0


def seen_by(link, steps, own=None):
    """Run a link on observations that hold the time, and return the actions and the actor."""
    actor = Counting()
    linked = flight.LinkedActor(actor, link, own or {})
    times = [TensorDict({"o": torch.full((ENVS, 2), float(step))}, batch_size=[ENVS]) for step in range(steps)]
    actions = [linked.act(obs) for obs in times]
    return torch.stack(actions)[..., 0] * 100.0, actor


def test_delay_and_rates():
    """A delay of two shows what was two steps ago; half rate acts on every second step, double rate twice on each."""
    assert seen_by(flight.Link(delay=2), 6)[0][:, 0].tolist() == pytest.approx([0, 0, 0, 1, 2, 3])
    actions, actor = seen_by(flight.Link(hold=2), 6)
    assert actions[:, 0].tolist() == pytest.approx([0, 0, 2, 2, 4, 4])
    assert len(actor.asked) == 3
    assert len(seen_by(flight.Link(repeat=2), 6)[1].asked) == 12


def test_a_tenth_of_the_messages_is_lost():
    """The last message that arrived stands; the first of an episode always arrives."""
    for link in (flight.Link(lost_observations=0.1), flight.Link(lost_actions=0.1)):
        actions, _ = seen_by(link, 30)
        assert (actions[0] == 0).all()
        time = torch.arange(1.0, 30.0).unsqueeze(1)
        lost = ((actions[1:] - time).abs() > 0.5).double().mean()
        assert abs(float(lost) - 0.1) < 0.01


def test_its_own_last_action_is_never_late():
    """The columns of the last action hold what it commanded itself, and what the environment says at the start."""
    _, actor = seen_by(flight.Link(delay=3), 5, {"o": slice(1, 2)})
    assert [float(obs[0, 1]) for obs in actor.asked] == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.0])
    _, actor = seen_by(flight.Link(), 5, {"o": slice(1, 2)})
    assert [float(obs[0, 1]) for obs in actor.asked] == pytest.approx([0.0, 0.0, 0.01, 0.02, 0.03])


@pytest.mark.slow
def test_the_files_fly_as_the_policy(tmp_path, capsys, monkeypatch):
    """By one command: C and ONNX have the policy's return to 1 % in every condition, in episodes of 2 s here."""
    monkeypatch.setattr(flight, "QuadcopterPointCtrlEnvCfg", partial(QuadcopterPointCtrlEnvCfg, episode_length_s=2.0))
    assert flight.main(["--num_episodes", "8", "--output", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "exported_flight.json").read_text())
    policies = {name: value for name, value in figures.items() if isinstance(value, dict)}
    assert len(policies) == 2
    for conditions in policies.values():
        assert set(conditions) == set(flight.CONDITIONS)
        for each in conditions.values():
            expected = each["PyTorch"]["mean_return"]
            for runtime in ("C", "ONNX"):
                assert abs(each[runtime]["mean_return"] - expected) <= 0.01 * max(abs(expected), 100.0)
    assert "| policy at half rate |" in capsys.readouterr().out
