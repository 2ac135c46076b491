"""Velocity: the Go1 follows commanded velocities for 10 s, at 50 Hz, on a plane or on rough ground."""

from __future__ import annotations

import math
from typing import Any

import torch

from foundation.tasks.legs import go1_model, mdp
from foundation.tasks.legs.env_cfg import (
    Go1FlatEnvCfg,
    Go1FlatEnvCfg_PLAY,
    Go1RoughEnvCfg,
    Go1RoughEnvCfg_PLAY,
    check_legs_cfg,
)
from foundation.tasks.legs.layout import SCAN, SCAN_SPACING
from foundation.tasks.legs.terrain import Terrain
from foundation.tasks.mujoco.env import Judgement, MujocoEnv, check_mujoco_cfg

__all__ = ["Go1FlatEnvCfg", "Go1FlatEnvCfg_PLAY", "Go1RoughEnvCfg", "Go1RoughEnvCfg_PLAY", "Go1VelocityEnv"]

NUM_JOINTS = 12
_EDGE = 0.6
"""An episode that comes this near to the edge of the rough ground is ended [m]."""
_START_NOISE = (0.1, 0.2)
"""Greatest deviation of the joints' first angles [rad], and of all first velocities [m/s, rad/s]."""


class Go1VelocityEnv(MujocoEnv):
    """Many Go1s, each with a friction, a load, motors and pushes of its own, which only its teacher is told.

    An action is the change of the joints' targets from standing. An episode ends when the robot falls, and by time-out,
    which is the success. The teacher's group ``policy`` has the trunk's velocity, contacts, what the robots differ in
    and, on rough ground, the heights around; the student's ``proprioception`` has noisy body rates, gravity and joints,
    the command, the last action and the gait's clock. ``velocity``, ``dynamics`` and ``heights`` are what a student can
    learn to estimate.
    """

    cfg: Go1FlatEnvCfg
    num_actions = NUM_JOINTS
    reward_names = mdp.REWARD_TERMS
    limit_names = mdp.LIMITS
    metric_names = ("velocity_error", "yaw_rate_error", "foot_slip", "front_duty", "rear_duty")
    metric_units = {  # noqa: RUF012 (as the other tasks declare it)
        "velocity_error": (1.0, "m/s"),
        "yaw_rate_error": (1.0, "rad/s"),
        "foot_slip": (1.0, "m/s"),
        "front_duty": (100.0, "%"),
        "rear_duty": (100.0, "%"),
    }
    joint_names = go1_model.JOINTS
    _TENSORS = (*MujocoEnv._TENSORS, "_command", "_contact", "_noise")

    def __init__(self, cfg: Go1FlatEnvCfg | None = None, render_mode: str | None = None):
        """Build the models and environments, and reset them with ``cfg.seed``."""
        cfg = cfg or Go1FlatEnvCfg()
        check_mujoco_cfg(cfg)
        check_legs_cfg(cfg)
        self._file = go1_model.find_file(cfg.robot.file)
        self.terrain = Terrain(cfg.terrain) if cfg.terrain.height > 0.0 else None
        spec = go1_model.make_spec(self._file, cfg.sim.dt, self.terrain, meshes=False)
        nominal = go1_model.compile_model(spec, self.terrain)
        self.variants = go1_model.make_variants(nominal, cfg.variation)
        super().__init__(cfg, self.variants.models, render_mode)

    def prepare(self) -> None:
        """Allocate commands and noise."""
        n = self.num_envs
        self._command = torch.zeros(n, 3)
        self._contact = torch.ones(n, 4, dtype=torch.bool)
        noise = self.cfg.observation_noise
        widths = [noise.base_ang_vel] * 3 + [noise.projected_gravity] * 3
        widths += [noise.joint_pos] * NUM_JOINTS + [noise.joint_vel] * NUM_JOINTS
        self._noise_width = torch.tensor(widths)
        self._noise = torch.zeros(n, len(widths))
        weights = [getattr(self.cfg.rewards, name) for name in mdp.REWARD_TERMS]
        scale = [1.0 if name == "termination" else self.step_dt for name in mdp.REWARD_TERMS]
        self._weights = (torch.tensor(weights) * torch.tensor(scale)).unsqueeze(1)
        self._standing = torch.from_numpy(go1_model.STANDING)
        actions = self.cfg.actions.joint_pos
        self._target_scale, self._target_offset = (
            torch.tensor([by_joint[name] for name in go1_model.JOINTS], dtype=torch.float64)
            for by_joint in (actions.scale, actions.offset)
        )
        ahead, aside = (SCAN_SPACING * (torch.arange(count) - 0.5 * (count - 1)) for count in SCAN)
        self._scan = torch.cartesian_prod(ahead, aside)
        self._first_sensor = int(self.sim.model.sensor(f"{go1_model.FEET[0]}_position").adr[0])

    # -- the hooks of the simulation -----------------------------------------------------------------------------------

    @property
    def num_uniform(self) -> int:
        """Variant, command, place, yaw, joints and velocities."""
        return 1 + 4 + 2 + 1 + NUM_JOINTS + 18

    def begin(self, where: torch.Tensor, uniform: torch.Tensor) -> None:
        """Stand somewhere, turned anyhow, with a command."""
        n = self.num_envs
        variant, command, place, yaw, joints, velocities = uniform.split([1, 4, 2, 1, NUM_JOINTS, 18], 1)
        qpos = torch.zeros(n, 7 + NUM_JOINTS, dtype=torch.float64)
        half_yaw = math.pi * (yaw[:, 0] - 0.5)
        qpos[:, 2] = go1_model.STANDING_HEIGHT
        qpos[:, 3] = half_yaw.cos()
        qpos[:, 6] = half_yaw.sin()
        if self.terrain is not None:
            qpos[:, :2] = self.cfg.terrain.start * (2.0 * place - 1.0)
            qpos[:, 2] += self._heights_around(qpos).max(-1).values
        qpos[:, 7:] = self._standing + _START_NOISE[0] * (2.0 * joints - 1.0)
        qvel = _START_NOISE[1] * (2.0 * velocities - 1.0)
        chosen = (variant[:, 0] * len(self.variants.models)).long()
        self.sim.begin(where.numpy(), qpos.numpy(), qvel.numpy(), chosen.numpy())
        self._command = torch.where(where[:, None], self._commands(command), self._command)
        self._contact = self._contact | where[:, None]

    def _commands(self, uniform: torch.Tensor) -> torch.Tensor:
        """Turn random numbers (num_envs, 4) into commands (num_envs, 3)."""
        cfg = self.cfg.command
        bounds = torch.tensor([cfg.lin_vel_x, cfg.lin_vel_y, cfg.ang_vel_z], dtype=uniform.dtype)
        drawn = bounds[:, 0] + uniform[:, :3] * (bounds[:, 1] - bounds[:, 0])
        return (drawn * (uniform[:, 3:] >= cfg.standing)).float()

    def disturb(self) -> None:
        """Push some of the robots."""
        push = self.cfg.push
        if push.interval == 0.0:
            return
        uniform = torch.rand(self.num_envs, 4, generator=self._generator, dtype=torch.float64)
        pushed = (uniform[:, 0] < self.step_dt / push.interval).double().unsqueeze(1)
        change = 2.0 * uniform[:, 1:] - 1.0
        qvel = self.qvel
        qvel[:, :2] += pushed * push.velocity * change[:, :2]
        qvel[:, 5:6] += pushed * push.yaw_rate * change[:, 2:]

    def control(self, action: torch.Tensor) -> torch.Tensor:
        """Return the joints' target angles [rad]. Shape: (num_envs, 12)."""
        return self._target_offset + self._target_scale * action

    def judge(self, action: torch.Tensor) -> Judgement:
        """Compute reward, falls and metrics after a step."""
        qpos = self.qpos
        body = mdp.body_motion(qpos, self.qvel)
        feet = self._feet()
        self._contact = feet.contact
        height = (qpos[:, 2] - self._ground_below(qpos)).float()
        tilted = -body.gravity[:, 2] < math.cos(self.cfg.terminations.tilt)
        exceeded = torch.stack([tilted, height < self.cfg.terminations.height])
        phase_sine = mdp.clock(self._steps + 1, self.step_dt, self.cfg.gait.frequency)[:, 0]
        terms = self._weights * mdp.reward_terms(
            body=body,
            feet=feet,
            command=self._command,
            phase_sine=phase_sine,
            action_change=action - self._action,
            joint_offset=(qpos[:, 7:] - self._standing).float(),
            height=height,
            clearance=self.cfg.gait.clearance,
            fallen=exceeded.any(0),
        )
        reward = terms[:-1].sum(0).clamp(min=self.cfg.rewards.floor * self.step_dt) + terms[-1]
        on_ground = feet.contact.float()
        metrics = {
            "velocity_error": (self._command[:, :2] - body.lin_vel[:, :2]).norm(dim=-1),
            "yaw_rate_error": (self._command[:, 2] - body.ang_vel[:, 2]).abs(),
            "foot_slip": (feet.speed * on_ground).sum(-1) / on_ground.sum(-1).clamp(min=1.0),
            "front_duty": on_ground[:, :2].mean(-1),
            "rear_duty": on_ground[:, 2:].mean(-1),
        }
        return Judgement(terms, exceeded, metrics, reward, self._at_the_edge(qpos))

    def advance(self) -> None:
        """Give some of the robots new commands."""
        uniform = torch.rand(self.num_envs, 5, generator=self._generator, dtype=torch.float64)
        changed = uniform[:, :1] < self.step_dt / self.cfg.command.interval
        self._command = torch.where(changed, self._commands(uniform[:, 1:]), self._command)

    def observe(self) -> dict[str, torch.Tensor]:
        """Build the observation groups; the noise of ``proprioception`` is drawn here, once for each step."""
        qpos = self.qpos
        qvel = self.qvel
        body = mdp.body_motion(qpos, qvel)
        joint_pos = (qpos[:, 7:] - self._standing).float()
        joint_vel = qvel[:, 6:].float()
        clock = mdp.clock(self._steps, self.step_dt, self.cfg.gait.frequency)
        dynamics = self.variants.dynamics[torch.from_numpy(self.sim.variant)]
        own = [body.ang_vel, body.gravity, self._command, joint_pos, joint_vel, self._action, clock]
        privileged = [self._contact.float(), dynamics]
        groups = {"velocity": body.lin_vel, "dynamics": dynamics}
        if self.terrain is not None:
            heights = qpos[:, 2:3] - go1_model.STANDING_HEIGHT - self._heights_around(qpos)
            groups["heights"] = heights.float()
            privileged.append(groups["heights"])
        self._noise = self._noise_width * (2.0 * torch.rand(self._noise.shape, generator=self._generator) - 1.0)
        rates, gravity, angles, speeds = self._noise.split([3, 3, NUM_JOINTS, NUM_JOINTS], 1)
        sensed = [
            body.ang_vel + rates,
            body.gravity + gravity,
            self._command,
            joint_pos + angles,
            joint_vel + speeds,
            self._action,
            clock,
        ]
        groups["policy"] = torch.cat([body.lin_vel, *own, *privileged], 1)
        groups["proprioception"] = torch.cat(sensed, 1)
        return groups

    # -- the ground --------------------------------------------------------------------------------------------------

    @property
    def _steps(self) -> torch.Tensor:
        """Steps into the episodes, on the CPU. Shape: (num_envs,)."""
        return self.episode_length_buf.cpu()

    def _feet(self) -> mdp.Feet:
        """Return the feet as the last physics step found them, which is one physics step ago."""
        sensors = self.sim.sensors[:, -2:, self._first_sensor : self._first_sensor + 12]
        places = torch.from_numpy(sensors).view(self.num_envs, -1, 4, 3)
        last = places[:, -1]
        height = last[..., 2]
        if self.terrain is not None:
            height = height - self.terrain.height_at(last[..., 0], last[..., 1])
        moved = last[..., :2] - places[:, 0, :, :2]
        speed = moved.norm(dim=-1) / (self.cfg.sim.dt * max(1, places.shape[1] - 1))
        return mdp.Feet(height.float(), height < mdp.CONTACT_HEIGHT, speed.float())

    def _heights_around(self, qpos: torch.Tensor) -> torch.Tensor:
        """Return the ground's height at the points of the scan [m]. Shape: (num_envs, num_points)."""
        if self.terrain is None:
            return torch.zeros(self.num_envs, len(self._scan), dtype=torch.float64)
        w, x, y, z = qpos[:, 3:7].unbind(-1)
        yaw = torch.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
        ahead, aside = self._scan.double().unbind(-1)
        cos = yaw.cos()[:, None]
        sin = yaw.sin()[:, None]
        return self.terrain.height_at(
            qpos[:, :1] + cos * ahead - sin * aside, qpos[:, 1:2] + sin * ahead + cos * aside
        ).double()

    def _ground_below(self, qpos: torch.Tensor) -> torch.Tensor:
        """Return the mean height of the ground around the trunks [m]. Shape: (num_envs,)."""
        if self.terrain is None:
            return torch.zeros(self.num_envs, dtype=torch.float64)
        return self._heights_around(qpos).mean(-1)

    def _at_the_edge(self, qpos: torch.Tensor) -> torch.Tensor | None:
        if self.terrain is None:
            return None
        return qpos[:, :2].abs().max(-1).values > 0.5 * self.cfg.terrain.size - _EDGE

    def push(self, velocity: torch.Tensor) -> None:
        """Change the velocities of the trunks at once [m/s, world frame]. Shape: (num_envs, 3)."""
        qvel = self.qvel
        qvel[:, :3] += velocity.detach().cpu().double()

    def model_to_draw(self) -> Any:
        """Return the nominal robot with its meshes, on the same ground."""
        spec = go1_model.make_spec(self._file, self.cfg.sim.dt, self.terrain, meshes=True)
        return go1_model.compile_model(spec, self.terrain)
