"""Saliency of the observations: how strongly a policy's action depends on each of them, by its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.policies.actors import Policy
from foundation.policies.distribution import sample_output
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import as_float

LEAST = 1e-12
"""Added to a sum of squares, whose root has no gradient at zero."""


def action_saliency(output: PolicyOutput, obs: torch.Tensor, columns: torch.Tensor, create_graph: bool) -> torch.Tensor:
    """Return the norm over the actions of their derivative by each of some observations.

    Of a discrete policy the scores of the choices less their mean are derived: what all choices have in common says
    nothing about the action.

    Args:
        output: Computed from ``obs``, which requires a gradient; of a policy without memory, so that a sample's output
            depends on its own observation alone.
        obs: Shape: (..., num_obs).
        columns: Those observations. Shape: (num_shared,).
        create_graph: Whether the result is derived in its turn.

    Returns:
        Shape: (..., num_shared).
    """
    actions = output.mean if output.logits is None else output.logits - output.logits.mean(dim=-1, keepdim=True)
    total = torch.zeros_like(obs[..., columns])
    for index in range(actions.shape[-1]):
        own = actions[..., index].sum()
        (gradient,) = torch.autograd.grad(own, obs, retain_graph=True, create_graph=create_graph)
        total = total + gradient[..., columns].square()
    return (total + LEAST).sqrt()


class SalientTeacher:
    """A teacher without memory that labels with its saliency too.

    Args:
        teacher: The teacher.
        columns: Those of its observations that the student sees too. Shape: (num_shared,).
    """

    state_size = 0

    def __init__(self, teacher: Policy, columns: torch.Tensor):
        self.teacher = teacher
        self.columns = columns
        self.num_obs = teacher.num_obs
        self.num_actions = teacher.num_actions

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return None: it has no memory."""
        return None

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return None: it has no memory."""
        return None

    def step(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Map observations (num_envs, num_obs) to outputs with ``saliency``."""
        with torch.enable_grad():
            given = as_float(obs).detach().requires_grad_()
            output, _ = self.teacher.step(given, None)
            derived = output.mean if output.logits is None else output.logits
            if not derived.requires_grad:
                raise UserError(
                    "Loss 'attention' reads the gradient of the teacher's action by its observations, and this teacher "
                    "has none: leave the loss out, or use a teacher whose layers are read."
                )
            saliency = action_saliency(output, given, self.columns, create_graph=False)
        fields = [None if field is None else field.detach() for field in output]
        return PolicyOutput(*fields)._replace(saliency=saliency.detach()), None  # pyright: ignore[reportArgumentType]

    def sequence(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Map observations (num_steps, num_envs, num_obs) to outputs with ``saliency``."""
        flat, _ = self.step(obs.flatten(0, 1), None)
        fields = [None if field is None else field.unflatten(0, obs.shape[:2]) for field in flat]
        return PolicyOutput(*fields), None  # pyright: ignore[reportArgumentType]

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions. Shape: (..., num_actions)."""
        sample = getattr(self.teacher, "sample", sample_output)
        return sample(output, generator)


def shared_columns(
    student: ObsSelector, teacher: ObsSelector, obs: TensorDict, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which columns of student and teacher are the same observations: those of the flat groups that both read.

    Args:
        student: The student's observation groups.
        teacher: The teacher's.
        obs: Observations of the environment.
        device: Where the indices are.

    Returns:
        Columns of the student's and of the teacher's observation. Shape of each: (num_shared,).

    Raises:
        UserError: If they share no group.
    """
    own, theirs = _named_columns(student, obs), _named_columns(teacher, obs)
    place = {name: index for index, name in enumerate(theirs)}
    pairs = [(index, place[name]) for index, name in enumerate(own) if name in place and name[0] not in student.images]
    if not pairs:
        raise UserError(
            f"Loss 'attention' compares how the actions depend on observations that both see, and the student reads "
            f"{', '.join(student.groups)} while the teacher reads {', '.join(teacher.groups)}: give them a group in "
            "common, or leave the loss out."
        )
    columns = torch.tensor(pairs, device=device).T
    return columns[0], columns[1]


def _named_columns(selector: ObsSelector, obs: TensorDict) -> Sequence[tuple[str, int]]:
    names = [(group, index) for group in selector.groups for index in range(obs[group][0].numel())]
    return names if selector.obs_slice is None else names[slice(*selector.obs_slice)]
