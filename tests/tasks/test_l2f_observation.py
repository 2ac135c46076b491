"""The ``l2f`` observation group against the observation of the real l2f package: recorded and live."""

from __future__ import annotations

import torch
from l2f_flights import flight, recorded_and_live

from foundation.tasks.quadrotor import mdp


@recorded_and_live
def test_the_group_is_what_l2f_observes(source):
    """After a step, columns 0..22 of l2f's observation are ours: position, R, velocity, rates, newest action."""
    flown = flight("observed", source)
    state, action, observed = [torch.from_numpy(flown[name]) for name in ("state", "action", "observed")]
    position, velocity, body_rates, quaternion, speeds = state.split((3, 3, 3, 4, 4))
    ours = mdp.observations(position, velocity, body_rates, quaternion, action.T, speeds)["l2f"]
    torch.testing.assert_close(ours, observed[:, :22], atol=1e-6, rtol=1e-5)
