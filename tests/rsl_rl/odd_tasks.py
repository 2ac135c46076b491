"""Tasks of another package, one of which goes wrong."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch

from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv


class NanEnv(QuadcopterPointCtrlEnv):
    """Observations turn NaN in one environment after a few steps."""

    def step(self, actions: torch.Tensor) -> Any:
        """Advance, and spoil the observations."""
        obs, rewards, dones, extras = super().step(actions)
        self.spoiled = getattr(self, "spoiled", 0) + 1
        if self.spoiled > 5:
            obs["policy"] = obs["policy"].clone()
            obs["policy"][0, 3] = float("nan")
        return obs, rewards, dones, extras


_POINT_CTRL = gymnasium.spec("Isaac-Quadcopter-Point-Ctrl-v0")
gymnasium.register(
    id="Odd-Nan-v0",
    entry_point=f"{__name__}:NanEnv",
    kwargs={**_POINT_CTRL.kwargs, "torch_env_entry_point": f"{__name__}:NanEnv"},
)
