"""The quadrotor tasks on the dynamics of the real ``l2f`` package.

Initial states, rewards, terminations and observation groups are those of the built-in environment, drawn from the same
generator: for the same seed every episode begins as it does there, and only the physics is that of another program.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.quadrotor_env import QuadrotorEnv
from foundation.tasks.quadrotor.sim.l2f_dynamics import L2fDynamics
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv


class L2fPhysics(QuadrotorEnv):
    """The vehicles' physics computed by ``l2f``; named before a task's environment among the base classes."""

    def make_dynamics(self) -> None:
        """Hand the vehicles to ``l2f``."""
        super().make_dynamics()
        self._l2f = L2fDynamics(self.vehicles, self.dt)

    def integrate(self, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Integrate the physics over one action; not differentiable. Shapes: (17, num_envs), (4, num_envs)."""
        if self._disturbed:
            self._l2f.push(self._forces[:3])
        for _ in range(self.decimation):
            state = self._l2f.step(state, actions)
        return state


class QuadcopterPointCtrlL2fEnv(L2fPhysics, QuadcopterPointCtrlEnv):
    """Many quadrotors in ``l2f``, each flying to its target."""

    def __init__(self, cfg: QuadcopterPointCtrlEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        cfg = cfg or QuadcopterPointCtrlEnvCfg()
        super().__init__(replace(cfg, compile=False), render_mode)  # what is compiled is the built-in physics
