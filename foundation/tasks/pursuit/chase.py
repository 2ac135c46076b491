"""Chase: follow a moving target, at 100 Hz, for 5 s."""

from __future__ import annotations

import math

import torch

from foundation.tasks.pursuit import mdp
from foundation.tasks.pursuit.env_cfg import QuadcopterChaseEnvCfg, QuadcopterChaseEnvCfg_PLAY, check_chase_cfg
from foundation.tasks.pursuit.torch_env import PursuitEnv
from foundation.tasks.quadrotor.episode_stats import LogNames
from foundation.tasks.quadrotor.l2f_env import L2fPhysics
from foundation.tasks.quadrotor.mdp import between

__all__ = ["QuadcopterChaseEnv", "QuadcopterChaseEnvCfg", "QuadcopterChaseEnvCfg_PLAY", "QuadcopterChaseL2fEnv"]

AMPLITUDE = slice(0, 3)
PULSE = slice(3, 6)
PHASE = slice(6, 9)
RANDOM = 9


class QuadcopterChaseEnv(PursuitEnv):
    """Many quadrotors, each following a target on a Lissajous curve or under random pushes.

    An episode ends when the target is lost, when the vehicle leaves the arena or passes a limit, and by time-out. It is
    a success if it ends by time-out with a mean distance below ``success_distance`` over its last second.
    """

    cfg: QuadcopterChaseEnvCfg
    task = "chase"
    other_kind = "target"
    num_constants = 10
    log_names = LogNames(mdp.REWARD_TERMS, (*mdp.LIMITS, "lost"), "tracking_error")
    metric_units = {"tracking_error": (100.0, "cm")}  # noqa: RUF012 (as the other tasks declare it)
    position_fields = {  # noqa: RUF012
        "policy": (mdp.RELATIVE_POSITION, "body"),
        "deployable": (mdp.RELATIVE_POSITION, "body"),
    }
    """Observation group -> (first column of the position error, its frame)."""

    def __init__(self, cfg: QuadcopterChaseEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        cfg = cfg or QuadcopterChaseEnvCfg()
        check_chase_cfg(cfg)
        super().__init__(cfg, render_mode)

    def draw_others(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw each episode's curve, phase and kind; the vehicle's box is around the target's start."""
        target = self.cfg.target
        uniform = self.random_uniform(self.num_constants)
        amplitude = between(uniform[AMPLITUDE], target.lissajous.amplitude)
        pulse = between(uniform[PULSE], target.lissajous.frequency) * (2.0 * math.pi)
        phase = uniform[PHASE] * (2.0 * math.pi)
        random = uniform[RANDOM:] < target.langevin.share
        langevin = mdp.langevin_start(self.random_normal(6), target.langevin.speed, self._spring)
        others = torch.where(random, langevin, mdp.lissajous(phase, amplitude, pulse))
        self._table[:3] += others[:3]
        return others, torch.cat([amplitude, pulse, phase, random.to(self._dtype)])

    @property
    def _spring(self) -> float:
        """Angular frequency of the random targets' spring [rad/s]."""
        return 2.0 * math.pi * self.cfg.target.langevin.frequency

    def move(self, state: torch.Tensor) -> torch.Tensor:
        """Move the targets by one step, each in its way."""
        constants = self._constants
        phase = constants[PHASE] + self.step_dt * constants[PULSE]
        self._constants = torch.cat([constants[: PHASE.start], phase, constants[RANDOM:]])
        settings = self.cfg.target.langevin
        normal = self._normal_table[:, self.table_row]
        pushed = mdp.langevin(self._other, normal, settings.speed, self._spring, settings.damping, self.step_dt)
        return torch.where(
            constants[RANDOM] > 0.5, pushed, mdp.lissajous(phase, constants[AMPLITUDE], constants[PULSE])
        )

    def is_over(self, distance: torch.Tensor) -> torch.Tensor:
        """Return where the target is lost. Shape: (num_envs,)."""
        return distance > self.cfg.terminations.lost

    def task_metrics(self, metrics: dict[str, torch.Tensor], time_outs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return which episodes are a success. Shape: (num_envs,)."""
        return {"success": time_outs & (metrics["tracking_error"] < self.cfg.success_distance)}

    @property
    def solved_return(self) -> float:
        """80 % of what no error at any step would give."""
        return 0.8 * self.cfg.rewards.alive * self.max_episode_length


class QuadcopterChaseL2fEnv(L2fPhysics, QuadcopterChaseEnv):
    """The same on the dynamics of the real ``l2f`` package."""
