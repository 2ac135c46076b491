"""Evade: stay away from a pursuer, within an arena, at 100 Hz, for 5 s."""

from __future__ import annotations

import torch

from foundation.tasks.pursuit import mdp
from foundation.tasks.pursuit.env_cfg import QuadcopterEvadeEnvCfg, QuadcopterEvadeEnvCfg_PLAY, check_evade_cfg
from foundation.tasks.pursuit.torch_env import PursuitEnv
from foundation.tasks.quadrotor.episode_stats import LogNames
from foundation.tasks.quadrotor.l2f_env import L2fPhysics
from foundation.tasks.quadrotor.mdp import between, direction
from foundation.tasks.quadrotor.sim.quadrotor import POSITION, VELOCITY

__all__ = ["QuadcopterEvadeEnv", "QuadcopterEvadeEnvCfg", "QuadcopterEvadeEnvCfg_PLAY", "QuadcopterEvadeL2fEnv"]


class QuadcopterEvadeEnv(PursuitEnv):
    """Many quadrotors, each hunted by a pursuer.

    An episode ends when the vehicle is caught, when it leaves the arena or passes a limit, and by time-out, which is a
    success.
    """

    cfg: QuadcopterEvadeEnvCfg
    task = "evade"
    other_kind = "pursuer"
    num_constants = 1
    log_names = LogNames(mdp.REWARD_TERMS, (*mdp.LIMITS, "caught"), "separation")
    metric_units = {"separation": (100.0, "cm")}  # noqa: RUF012 (as the other tasks declare it)

    def __init__(self, cfg: QuadcopterEvadeEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        cfg = cfg or QuadcopterEvadeEnvCfg()
        check_evade_cfg(cfg)
        super().__init__(cfg, render_mode)

    def draw_others(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw where each pursuer starts, at rest, and its greatest speed."""
        pursuer = self.cfg.pursuer
        uniform = self.random_uniform(4)
        away = direction(uniform[:2]) * between(uniform[2], pursuer.start)
        start = self._table[:3] + away
        return torch.cat([start, torch.zeros_like(start)]), between(uniform[3:], pursuer.speed)

    def move(self, state: torch.Tensor) -> torch.Tensor:
        """Move the pursuers by one step, towards where the vehicles will be."""
        p = self.cfg.pursuer
        return mdp.pursue(
            self._other,
            state[POSITION],
            state[VELOCITY],
            self._constants[0],
            p.acceleration,
            p.response,
            p.lead,
            self.step_dt,
        )

    def is_over(self, distance: torch.Tensor) -> torch.Tensor:
        """Return where the vehicle is caught. Shape: (num_envs,)."""
        return distance < self.cfg.terminations.caught

    def worth(self, distance: torch.Tensor) -> torch.Tensor:
        """Return the distance up to the cap [m]. Shape: (num_envs,)."""
        return distance.clamp(max=self.cfg.distance_cap)

    @property
    def solved_return(self) -> float:
        """80 % of what an evader gives that is at the capped distance at every step."""
        rewards = self.cfg.rewards
        return 0.8 * (rewards.alive + rewards.distance * self.cfg.distance_cap) * self.max_episode_length


class QuadcopterEvadeL2fEnv(L2fPhysics, QuadcopterEvadeEnv):
    """The same on the dynamics of the real ``l2f`` package."""
