"""Gate: fly through a gate that the camera sees, at 100 Hz, within 4 s."""

from __future__ import annotations

from typing import Any

import torch

from foundation.tasks.camera.scene import Scene
from foundation.tasks.gate import mdp
from foundation.tasks.gate.env_cfg import QuadcopterGateEnvCfg, QuadcopterGateEnvCfg_PLAY, check_gate_cfg
from foundation.tasks.quadrotor.episode_stats import LogNames
from foundation.tasks.quadrotor.mdp import InitialRanges, between, terminations
from foundation.tasks.quadrotor.quadrotor_env import TABLE_STEPS, Judgement, QuadrotorEnv
from foundation.tasks.quadrotor.settings import TaskTensors
from foundation.tasks.quadrotor.sim.quadrotor import POSITION, QUATERNION
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams

__all__ = ["QuadcopterGateEnv", "QuadcopterGateEnvCfg", "QuadcopterGateEnvCfg_PLAY"]

PILLAR_HEIGHT = 4.0
"""[m]."""
_PILLAR_SIZE = 5
_BEHIND = (1.0, 2.5)
"""Range of a pillar's distance behind the farthest gate [m]."""
_BESIDE = 2.5
"""Greatest distance of a pillar to the left or right [m]."""


class QuadcopterGateEnv(QuadrotorEnv):
    """Many quadrotors, each before a gate whose place and yaw are drawn per episode.

    An episode ends when the gate's plane is crossed: through the opening, which is the success, against the frame or
    beside it; when a limit is passed; and by time-out. The teacher's group ``policy`` says where the gate is; of the
    student's groups, ``camera`` shows it, and ``proprioception`` (or ``inertial``, without the velocity) does not.
    """

    cfg: QuadcopterGateEnvCfg
    log_names = LogNames(mdp.REWARD_TERMS, mdp.LIMITS, "gate_offset")
    metric_units = {"gate_offset": (100.0, "cm")}  # noqa: RUF012 (as the other tasks declare it)
    position_fields = {  # noqa: RUF012
        "policy": (mdp.RELATIVE_POSITION, "body"),
        "deployable": (mdp.RELATIVE_POSITION, "body"),
    }
    """Observation group -> (first column of the position error, its frame)."""
    rotation_fields = {"policy": mdp.ROTATION, "deployable": mdp.ROTATION, "proprioception": 0, "inertial": 0}  # noqa: RUF012
    """Observation group -> first column of the rotation matrix, body to world, row by row."""
    _TENSORS = (*QuadrotorEnv._TENSORS, "_gate", "_ground", "_pillars", "_gate_table", "_ground_table", "_pillar_table")

    def __init__(self, cfg: QuadcopterGateEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        cfg = cfg or QuadcopterGateEnvCfg()
        check_gate_cfg(cfg)
        super().__init__(cfg, render_mode)

    def lay_out(self, vehicles: VehicleParams) -> TaskTensors:
        """Turn the configuration into tensors for the given vehicles, on their device."""
        cfg = self.cfg
        ones = torch.ones_like(vehicles.mass)
        limits = cfg.terminations
        init = cfg.init
        ranges = InitialRanges(
            position=ones * init.position,
            max_angle=init.max_angle,
            max_velocity=init.max_velocity,
            max_body_rate=init.max_body_rate,
            rotor_speed=(float(init.rotor_speed[0]), float(init.rotor_speed[1])),
            at_target=init.at_target,
        )
        rows = [ones * limits.position, ones * limits.velocity, ones * limits.body_rate]
        weights = [getattr(cfg.rewards, name) for name in mdp.REWARD_TERMS]
        return TaskTensors(
            torch.stack(rows).repeat_interleave(3, 0),
            ranges,
            torch.tensor(weights, dtype=ones.dtype, device=ones.device).unsqueeze(1),
            {},
        )

    def prepare(self) -> None:
        """Allocate the gates and what else there is to see."""
        n = self.num_envs
        self._gate = torch.zeros(mdp.GATE_SIZE, n, device=self.device)
        self._ground = torch.zeros(n, device=self.device)
        self._pillars = torch.zeros(self.cfg.surroundings.pillars, _PILLAR_SIZE, n, device=self.device)
        self._passed = torch.zeros(n, dtype=torch.bool, device=self.device)
        gate = self.cfg.gate
        sides = torch.tensor([0.5 * gate.depth, 0.5 * gate.opening + gate.bar, 0.5 * gate.opening], device=self.device)
        self._gate_sides = sides.unsqueeze(1).expand(3, n)

    # -- the hooks of the simulator ---------------------------------------------------------------------------------

    def draw_task_table(self) -> None:
        """Draw the gates and surroundings of the episodes that begin in the coming steps."""
        gate = self.cfg.gate
        around = self.cfg.surroundings
        count = around.pillars
        shape = (5 + 3 * count, TABLE_STEPS, self.num_envs)
        uniform = torch.rand(shape, generator=self._generator, device=self.device, dtype=self._dtype)
        self._gate_table = torch.stack(
            [
                between(uniform[0], gate.distance),
                between(uniform[1], (-gate.side, gate.side)),
                between(uniform[2], (-gate.height, gate.height)),
                between(uniform[3], (-gate.yaw, gate.yaw)),
            ]
        )
        self._ground_table = between(uniform[4], around.ground)
        away, beside, thick = uniform[5:].view(3, count, TABLE_STEPS, self.num_envs)
        pillars = [
            gate.distance[1] + between(away, _BEHIND),
            between(beside, (-_BESIDE, _BESIDE)),
            self._ground_table.expand(count, -1, -1),
            between(thick, around.pillar_radius),
            torch.full_like(thick, PILLAR_HEIGHT),
        ]
        self._pillar_table = torch.stack(pillars, dim=1)

    def begin_task(self, dones: torch.Tensor | None) -> None:
        """Take this step's row of the tables where episodes begin."""
        row = self.table_row
        fresh = (self._gate_table[:, row], self._ground_table[row], self._pillar_table[:, :, row])
        if dones is None:
            self._gate, self._ground, self._pillars = (part.clone() for part in fresh)
            self._passed = torch.zeros_like(self._passed)
        else:
            now = (self._gate, self._ground, self._pillars)
            self._gate, self._ground, self._pillars = (
                torch.where(dones, new, old) for new, old in zip(fresh, now, strict=True)
            )

    def judge(self, state: torch.Tensor, action: torch.Tensor) -> Judgement:
        """Compute reward, terminations and the distance from the way through after a step."""
        gate = self.cfg.gate
        before = self._state[POSITION]
        after = state[POSITION]
        crossed = mdp.crossing(before, after, self._gate, gate.opening, gate.bar, gate.clearance)
        limits = terminations(state[:9], self._limits)
        self._passed = crossed.passed & ~limits.any(0)
        exceeded = torch.cat([limits, torch.stack([crossed.hit, crossed.missed, self._passed])])
        terminated = exceeded.any(0)
        centre = self._gate[mdp.CENTRE]
        progress = (before - centre).square().sum(0).sqrt() - (after - centre).square().sum(0).sqrt()
        failed = terminated & ~self._passed
        terms = mdp.reward_terms(progress, state[QUATERNION], action, self._action, self._passed, failed, self._weights)
        place = mdp.to_gate(after - centre, self._gate[mdp.YAW])
        return Judgement(terms, exceeded, terminated, place[1:].square().sum(0).sqrt())

    def task_metrics(self, metrics: dict[str, torch.Tensor], time_outs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return which episodes end in a success. Shape: (num_envs,)."""
        return {"success": self._passed}

    def observe(self) -> dict[str, torch.Tensor]:
        """Build the observation groups of the current state, but for the camera's."""
        return mdp.observations(self._state, self._action, self._gate)

    def scene(self) -> Scene:
        """Return the gate, the ground and the pillars."""
        frames = torch.cat([self._gate, self._gate_sides]).unsqueeze(0)
        pillars = self._pillars if len(self._pillars) else None
        return Scene(ground=self._ground, pillars=pillars, frames=frames)

    def renderer_options(self) -> dict[str, Any]:
        """Return how much of the arena is shown, and that the gate's centre is marked."""
        return {"other_kind": "target", "share_shown": 0.65}

    def drawn_others(self, num_shown: int) -> torch.Tensor | None:
        """Return the centres of the first gates. Shape: (num_shown, 3)."""
        return self._gate[mdp.CENTRE, :num_shown].T

    @property
    def gate(self) -> torch.Tensor:
        """Centre [m] and yaw [rad] of the gates, world frame. Shape: (4, num_envs)."""
        return self._gate

    @property
    def solved_return(self) -> float:
        """80 % of what a straight flight from the origin through the nearest gate gives, but for the costs."""
        rewards = self.cfg.rewards
        return 0.8 * (rewards.progress * self.cfg.gate.distance[0] + rewards.passed)
