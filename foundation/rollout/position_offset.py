"""Steady-state position offset of a teacher: its estimate, and its removal from the stored observations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.policies.actors import Actor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.stepper import Observer, Stepper

FLAG = "--position_offset_correction"


class _Field(NamedTuple):
    """A position in the student's observation."""

    column: int
    frame: str


class PositionCorrection:
    """Subtract each teacher's offset, rotated into the group's frame, from the student's stored position.

    A teacher that comes to rest at d instead of 0 does at d what the student is to do at 0: its label for a state at p
    is stored beside the position p - d. The teacher itself, and the student while it acts, see p.

    The environment declares in ``position_fields`` (group -> first column, frame: ``world`` or ``body``) where the
    groups have the position error, and in ``rotation_fields`` (group -> first column of the nine entries of R, body to
    world, row by row) from where body frames are turned.

    Args:
        env: The environment.
        student_obs: Selects the student's observations.
        num_teachers: Offsets to keep.

    Raises:
        UserError: If the task declares no position, or none in what the student observes.
    """

    def __init__(self, env: VecEnv, student_obs: ObsSelector, num_teachers: int = 1):
        declared = EnvCapabilities.of(env)
        self.positions = declared.position_fields
        if not self.positions:
            raise UserError(f"{FLAG}: this task does not declare where its observations have the position.")
        obs = env.get_observations()
        rotations = declared.rotation_fields
        self._rotation = next(((name, first) for name, first in rotations.items() if name in obs.keys()), None)  # noqa: SIM118
        if self._rotation is None and any(frame == "body" for _, frame in self.positions.values()):
            raise UserError(f"{FLAG}: this task has positions in the body frame but declares no rotation_fields.")
        self.fields = self._locate(obs, student_obs)
        self.offsets = torch.zeros(num_teachers, 3, device=env.device)
        """World frame [m]. Shape: (num_teachers, 3)."""

    def _locate(self, obs: TensorDict, selector: ObsSelector) -> list[_Field]:
        start = 0
        total = sum(math.prod(obs[name].shape[1:]) for name in selector.groups)
        low, high = selector.obs_slice or (0, total)
        fields = []
        for group in selector.groups:
            if group in self.positions:
                column, frame = self.positions[group]
                column += start - low
                if column < 0 or column + 3 > high - low:
                    raise UserError(f"{FLAG}: distill.student.obs_slice cuts the position of group '{group}' off.")
                fields.append(_Field(column, frame))
            start += math.prod(obs[group].shape[1:])
        if not fields:
            declared = ", ".join(self.positions)
            raise UserError(f"{FLAG}: the groups {list(selector.groups)} declare no position ({declared} do).")
        return fields

    def __call__(self, student_obs: torch.Tensor, obs: TensorDict, index: torch.Tensor | None) -> torch.Tensor:
        """Return the student's observation to store.

        Args:
            student_obs: The observation that the student acts on. Shape: (num_envs, num_obs).
            obs: The environment's observations at the same step.
            index: Each environment's teacher. Shape: (num_envs,). None: the only one.
        """
        offset = self.offsets.expand(len(student_obs), -1) if index is None else self.offsets[index]
        stored = student_obs.clone()
        for field in self.fields:
            own = offset if field.frame == "world" else self._to_body(offset, obs)
            stored[:, field.column : field.column + 3] -= own
        return stored

    def world_position(self, obs: TensorDict) -> torch.Tensor:
        """Return the position error in the world frame [m]. Shape: (num_envs, 3)."""
        for wanted in ("world", "body"):
            for group, (column, frame) in self.positions.items():
                if frame == wanted and group in obs.keys():  # noqa: SIM118
                    position = obs[group][:, column : column + 3]
                    return position if frame == "world" else self._turn(obs, position, "nij,nj->ni")
        raise UserError(f"{FLAG}: none of the declared groups ({', '.join(self.positions)}) is among the observations.")

    def _to_body(self, vectors: torch.Tensor, obs: TensorDict) -> torch.Tensor:
        return self._turn(obs, vectors, "nij,ni->nj")

    def _turn(self, obs: TensorDict, vectors: torch.Tensor, how: str) -> torch.Tensor:
        assert self._rotation is not None
        group, first = self._rotation
        rotation = obs[group][:, first : first + 9].unflatten(-1, (3, 3))
        return torch.einsum(how, rotation, vectors)

    def measure(
        self,
        env: VecEnv,
        teacher: Actor,
        index_of: Callable[[TensorDict], torch.Tensor] | None,
        seed: int,
        poll: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Estimate the offsets: the mean position over the second half of episodes that end by time-out.

        Every environment runs one episode, in which its teacher acts; one that ends before its time is left out. A
        teacher without any whole episode keeps an offset of zero.

        Args:
            env: The environment; it is reset with ``seed``.
            teacher: Acts.
            index_of: Each environment's teacher; None: the only one.
            seed: Seed of the reset.
            poll: Called now and then; may raise to stop.

        Returns:
            How many episodes each teacher's estimate rests on. Shape: (num_teachers,).
        """
        rest = _RestPosition(env, self.world_position)
        stepper = Stepper(env, teacher, [rest])
        obs = stepper.reset(seed)
        index = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device) if index_of is None else index_of(obs)
        stepper.run(rest.length, poll)
        whole, means = rest.means()
        counts = torch.zeros(len(self.offsets), device=env.device).index_add_(0, index, whole.float())
        sums = torch.zeros_like(self.offsets).index_add_(0, index, means)
        self.offsets.copy_(sums / counts.clamp_min(1.0).unsqueeze(-1))
        return counts


class _RestPosition(Observer):
    """Mean position over the second half of each environment's first episode."""

    def __init__(self, env: VecEnv, position: Callable[[TensorDict], torch.Tensor]):
        self.position = position
        self.length = int(env.max_episode_length)
        self.step = 0
        self.first = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        """Whether the first episode is still running. Shape: (num_envs,)."""
        self.timed_out = torch.zeros_like(self.first)
        self.total = torch.zeros(env.num_envs, 3, device=env.device)
        self.steps = torch.zeros(env.num_envs, device=env.device)

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        if self.step >= self.length // 2:
            self.total += torch.where(self.first.unsqueeze(-1), self.position(obs), 0.0)
            self.steps += self.first

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """See :class:`Observer`."""
        # Some environments let an episode end by time-out one step before ``max_episode_length``.
        time_outs = extras.get("time_outs")
        self.timed_out |= self.first & (self.step == self.length - 1 if time_outs is None else time_outs.bool())
        self.first &= ~dones
        self.step += 1

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which first episodes ended by time-out, (num_envs,), and their positions [m], (num_envs, 3)."""
        whole = self.timed_out & (self.steps > 0)
        return whole, torch.where(whole.unsqueeze(-1), self.total / self.steps.clamp_min(1.0).unsqueeze(-1), 0.0)
