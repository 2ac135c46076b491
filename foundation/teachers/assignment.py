"""Assignment of many teachers to environments, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError, suggest
from foundation.core.registry import resolve_attribute
from foundation.policies.obs_groups import ObsSelector

TEACHER = "teacher"
BY_TEACHER = "teacher_drove"
"""Names of two further metrics of an episode: the index of its teacher, and whether the teacher acted in it."""
Choose = Callable[[TensorDict], torch.Tensor]
"""Maps observations to the index of each environment's teacher. Shape: (num_envs,)."""


class TeacherAssignment:
    """Gives every environment its teacher: environment i follows teacher ``i % K``, or the one that is chosen for it.

    Args:
        names: The teachers' names, K of them.
        choose: Chooses by the observations; it may choose otherwise at every step. None: ``i % K``.
        where: What the user set to choose so, for the message.
    """

    def __init__(self, names: Sequence[str], choose: Choose | None = None, where: str = ""):
        self.names = list(names)
        self.choose = choose
        self.where = where
        self.num_teachers = len(self.names)
        self._fixed: torch.Tensor | None = None
        self._range: torch.Tensor | None = None

    def index(self, obs: TensorDict) -> torch.Tensor:
        """Return each environment's teacher. An index out of range is clamped here and refused by :meth:`check`.

        Args:
            obs: The environment's observations.

        Returns:
            Shape: (num_envs,), int64.
        """
        if self.choose is not None:
            index = self.choose(obs).reshape(obs.batch_size[0])
            rounded = index.round() if index.is_floating_point() else index
            self._note(torch.stack([index.min(), index.max()]).float())
            return rounded.long().clamp(0, self.num_teachers - 1)
        envs = obs.batch_size[0]
        if self._fixed is None or len(self._fixed) != envs:
            groups = next(iter(obs.values()))
            self._fixed = torch.arange(envs, device=groups.device) % self.num_teachers
        return self._fixed

    def _note(self, seen: torch.Tensor) -> None:
        """Keep the range of the indices on their device: nothing is copied to the host on a step."""
        if self._range is not None:
            seen = torch.stack([torch.minimum(self._range[0], seen[0]), torch.maximum(self._range[1], seen[1])])
        self._range = seen

    def check(self) -> None:
        """Refuse what :meth:`index` was given since the last check (one host sync).

        Raises:
            UserError: If an index was not one of a teacher.
        """
        if self._range is None:
            return
        low, high = self._range.tolist()
        self._range = None
        bad = low if not 0 <= low < self.num_teachers else high
        if not 0 <= bad < self.num_teachers:
            raise UserError(
                f"{self.where} chose teacher {bad:g}, but there are {self.num_teachers}, counted from 0 to "
                f"{self.num_teachers - 1} ({', '.join(self.names[:4])}{', ...' if self.num_teachers > 4 else ''})."
            )


class ExpertSelector(ObsSelector):
    """Selects the teacher's observations and puts the index of the environment's expert behind them."""

    def __init__(self, base: ObsSelector, assignment: TeacherAssignment):
        vars(self).update(vars(base))
        self.assignment = assignment

    def __call__(self, obs: TensorDict) -> torch.Tensor:
        """Return the selected observations and the index. Shape: (num_envs, num_obs + 1)."""
        selected = super().__call__(obs)
        return torch.cat([selected, self.assignment.index(obs).unsqueeze(-1).to(selected.dtype)], dim=-1)


def make_choice(expert: str, obs: TensorDict) -> Choose:
    """Return what chooses the experts.

    Args:
        expert: ``distill.teacher.expert``: an observation group of one column, or ``"pkg.module:function"``.
        obs: Observations of the environment.

    Raises:
        UserError: If there is no such group or function, or it gives something else than one index per environment.
    """
    groups = {str(name): obs[name] for name in obs.keys()}  # noqa: SIM118  # a TensorDict supports `in` for its keys() only
    if ":" in expert:
        choose = _function(expert)
        try:
            index = choose(obs)
        except Exception as error:
            raise UserError(f"distill.teacher.expert={expert} failed: {type(error).__name__}: {error}") from error
        if not isinstance(index, torch.Tensor) or index.numel() != obs.batch_size[0]:
            shape = tuple(index.shape) if isinstance(index, torch.Tensor) else type(index).__name__
            raise UserError(f"distill.teacher.expert={expert} must return a tensor (num_envs,), it returned {shape}.")
        return choose
    if expert not in groups:
        raise UserError(f"distill.teacher.expert: no observation group '{expert}'. {suggest(expert, groups)}")
    if groups[expert].numel() != obs.batch_size[0]:
        size = tuple(groups[expert].shape[1:])
        raise UserError(f"distill.teacher.expert: group '{expert}' has shape {size}; the index is one column.")
    return lambda observations: observations[expert]


def _function(path: str) -> Choose:
    function = resolve_attribute(path, "distill.teacher.expert", typed_as="distill.teacher.expert=")
    if not callable(function):
        raise UserError(f"distill.teacher.expert={path} is not a function.")
    return cast(Choose, function)
