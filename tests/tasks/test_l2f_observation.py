"""The ``l2f`` observation group against the observation of the real l2f package."""

from __future__ import annotations

import l2f
import numpy as np
import torch
from l2f import vector8

from foundation.tasks.quadrotor import mdp


def test_the_group_is_what_l2f_observes():
    """After a step, columns 0..22 of l2f's observation are ours: position, R, velocity, rates, newest action."""
    device, rng, env = l2f.Device(), vector8.VectorRng(), vector8.VectorEnvironment()
    params, states, following = vector8.VectorParameters(), vector8.VectorState(), vector8.VectorState()
    vector8.initialize_rng(device, rng, 5)
    vector8.initialize_environment(device, env)
    vector8.sample_initial_parameters(device, env, params, rng)
    vector8.sample_initial_state(device, env, params, states, rng)
    action = (np.random.default_rng(0).random((8, 4)) * 2 - 1).astype(np.float32)
    vector8.step(device, env, params, states, action, following, rng)
    observed = np.zeros((8, env.OBSERVATION_DIM), dtype=np.float32)
    vector8.observe(device, env, params, following, observed, rng)

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(getattr(s, name)) for s in following.states], axis=1))

    ours = mdp.observations(
        read("position"),
        read("linear_velocity"),
        read("angular_velocity"),
        read("orientation"),
        torch.from_numpy(action).T,
        read("rpm"),
    )["l2f"]
    torch.testing.assert_close(ours, torch.from_numpy(observed[:, :22]), atol=1e-6, rtol=1e-5)
