"""The training of the shipped teacher: its last correction."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train_bptt_teacher

from foundation.tasks.quadrotor.training.bptt import PolicyStack


def test_a_policy_that_never_comes_to_rest_is_left_as_it_is():
    """Without thrust every vehicle falls: there is no offset to take out, and no weight becomes NaN."""
    actor = PolicyStack(1, 26, [8], 4, bias=-1.0)
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    train_bptt_teacher.remove_offset(actor, seed=0, num_episodes=4)
    assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items())
