"""An environment whose step can be compiled together with what acts in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDict

from foundation.engines.base import VecEnv


class TracedEnv(VecEnv, Protocol):
    """An environment whose step is a function of tensors, so that it can be compiled with what acts in it."""

    is_traced: bool
    """Whether this one can, as it is configured."""
    traced_groups: Sequence[str]
    """The observation groups that :meth:`trace_step` returns, from which :meth:`groups` makes all."""
    traced_metrics: Sequence[str]
    """Names in the ``episode_metrics`` that it returns."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next, as copies."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        ...

    def step_inputs(self) -> tuple[torch.Tensor, ...]:
        """Begin a step, and return what :meth:`trace_step` takes beside the actions; sizes are the same every time."""
        ...

    def trace_step(
        self, actions: torch.Tensor, inputs: Sequence[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, dict[str, Any], tuple[torch.Tensor, ...]]:
        """Advance without any change to the environment.

        Returns:
            Observation groups, rewards, dones and extras (``time_outs`` and ``episode_metrics``) as of
            :meth:`VecEnv.step`, and the state.
        """
        ...

    def groups(self, obs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return all observation groups of those that :meth:`trace_step` returns."""
        ...

    def take_state(self, after: Sequence[torch.Tensor]) -> None:
        """Go on from the state that :meth:`trace_step` has returned."""
        ...

    def take_observations(self, obs: Mapping[str, torch.Tensor]) -> TensorDict:
        """Go on from the groups that :meth:`trace_step` has returned, and return all."""
        ...

    @property
    def episode_log(self) -> dict[str, torch.Tensor]:
        """What the last step's extras have under ``log``."""
        ...
