"""A user's own task and losses, which go wrong at a chosen moment: NaN from the environment, the teacher, the loss."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch

from foundation.policies.output import PolicyOutput
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

NUM_ENVS = 16
"""The environment to collect in; evaluations have another number."""
_moment: dict[str, int] = {}
_calls: dict[str, int] = {}


def spoil(what: str, call: int) -> None:
    """From the n-th call on, ``what`` (observations, rewards, teacher, loss, gradient) is NaN."""
    from foundation.teachers import TeacherPolicyWrapper

    _moment[what] = call
    step, sequence = TeacherPolicyWrapper.step, TeacherPolicyWrapper.sequence

    def spoiled_step(self: Any, obs: torch.Tensor, state: Any = None) -> Any:
        output, state = step(self, obs, state)
        return output._replace(mean=_spoil("teacher", output.mean)) if len(obs) == NUM_ENVS else output, state

    def spoiled_sequence(self: Any, obs: torch.Tensor, state: Any = None, resets: Any = None) -> Any:
        output, state = sequence(self, obs, state, resets)
        return output._replace(mean=_spoil("teacher", output.mean)) if obs.shape[1] == NUM_ENVS else output, state

    TeacherPolicyWrapper.step = spoiled_step  # type: ignore[method-assign]
    TeacherPolicyWrapper.sequence = spoiled_sequence  # type: ignore[method-assign]


def _due(what: str) -> bool:
    _calls[what] = _calls.get(what, 0) + 1
    return what in _moment and _calls[what] >= _moment[what]


def _spoil(what: str, tensor: torch.Tensor) -> torch.Tensor:
    if _due(what):
        tensor = tensor.clone()
        tensor[0] = float("nan")
    return tensor


class SpoiledEnv(QuadcopterPointCtrlEnv):
    """The point-control task until its moment comes."""

    def step(self, actions: torch.Tensor) -> Any:
        obs, rewards, dones, extras = super().step(actions)
        if self.num_envs == NUM_ENVS:
            obs["policy"] = _spoil("observations", obs["policy"])
            rewards = _spoil("rewards", rewards)
        return obs, rewards, dones, extras


def loss(student: PolicyOutput, teacher: PolicyOutput, params: Any) -> torch.Tensor:
    """A mean squared error until its moment comes; then NaN, or finite with a gradient that is not."""
    error = (student.mean - teacher.mean).square().mean(-1)
    if _due("gradient"):
        error = error + (error - error.detach()).sqrt()
    return _spoil("loss", error)


_POINT_CTRL = gymnasium.spec("Isaac-Quadcopter-Point-Ctrl-v0")
gymnasium.register(
    id="Spoiled-v0",
    entry_point=f"{__name__}:SpoiledEnv",
    kwargs={**_POINT_CTRL.kwargs, "torch_env_entry_point": f"{__name__}:SpoiledEnv"},
)
