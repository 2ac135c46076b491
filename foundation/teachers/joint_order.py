"""A teacher whose joints are in another order than the environment's: permute what it reads and what it gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from foundation.config.joint_columns import JointBlock
from foundation.core.errors import UserError, suggest
from foundation.policies.output import PolicyOutput

TYPED = "distill.teacher.joint_order"
"""Key by which a user gives the order; an empty list leaves columns and actions as they are."""


class JointOrder(nn.Module):
    """The permutations of one teacher, or of K teachers that are stacked.

    Args:
        obs: The environment's column that each of the teacher's is. Shape: (num_obs,) or (num_teachers, num_obs).
        actions: The teacher's action that each of the environment's is. Shape: (num_actions,) or
            (num_teachers, num_actions).
    """

    obs: torch.Tensor
    actions: torch.Tensor
    theirs: torch.Tensor

    def __init__(self, obs: torch.Tensor, actions: torch.Tensor):
        super().__init__()
        # Not part of the weights: a teacher's checksum is that of its file.
        self.register_buffer("obs", obs, persistent=False)
        self.register_buffer("actions", actions, persistent=False)
        self.register_buffer("theirs", actions.argsort(-1), persistent=False)

    def observe(self, obs: torch.Tensor) -> torch.Tensor:
        """Return observations in the teacher's order. Shape: (..., num_obs), or (num_teachers, rows, num_obs)."""
        return _taken(obs, self.obs)

    def act(self, output: PolicyOutput) -> PolicyOutput:
        """Return a teacher's output in the environment's order."""
        return _reordered(output, self.actions)

    def undo(self, output: PolicyOutput, teacher: int | None = None) -> PolicyOutput:
        """Return an output of :meth:`act` in the teacher's own order.

        Args:
            output: The output.
            teacher: Of K teachers, the one that gave it.
        """
        return _reordered(output, self.theirs if teacher is None else self.theirs[teacher])

    def for_env(self, actions: torch.Tensor, teacher: int | None = None) -> torch.Tensor:
        """Return a teacher's actions in the environment's order. Shape: (..., num_actions)."""
        return _taken(actions, self.actions if teacher is None else self.actions[teacher])


def _taken(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    if index.dim() == 1:
        return values.index_select(-1, index)
    return torch.take_along_dim(values, index.unsqueeze(1), dim=-1)


def _reordered(output: PolicyOutput, index: torch.Tensor) -> PolicyOutput:
    """Permute what an output has for each action."""

    def each(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else _taken(values, index)

    def pairs(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else torch.cat([_taken(half, index) for half in values.chunk(2, -1)], dim=-1)

    return output._replace(
        mean=_taken(output.mean, index),
        std=each(output.std),
        pre_tanh=pairs(output.pre_tanh),
        concentration=pairs(output.concentration),
    )


def check_order(order: Sequence[str], actions: Sequence[str], known: Sequence[str], stated: str, typed: bool) -> None:
    """Check the names of a teacher's joints against the environment's.

    Args:
        order: The teacher's joints, and bodies if it reads any, in its order.
        actions: Joint of each action of the environment; "" for none.
        known: All names of joints and bodies that the environment has.
        stated: Where the order is stated, for messages.
        typed: Whether the user has typed it, so that every name must be known.

    Raises:
        UserError: For a name that is there twice, unknown or missing.
    """
    twice = next((name for index, name in enumerate(order) if name in order[:index]), None)
    if twice is not None:
        raise UserError(f"{stated} has '{twice}' twice: name every joint once")
    unknown = next((name for name in order if name not in known), None)
    if typed and unknown is not None:
        raise UserError(f"{stated}: the environment has no joint '{unknown}'. {suggest(unknown, known, limit=30)}")
    missing = [name for name in actions if name and name not in order]
    if not missing:
        return
    if typed:
        raise UserError(f"{stated} lacks {_few(missing)}: name every joint of the environment, in the teacher's order")
    raise UserError(
        f"the teacher's joints ({stated}) are not the environment's: it has no {_few(missing)}. Give its order in the "
        f"environment's names, {TYPED}=[{_few(list(filter(None, actions)))}], or {TYPED}=[] to take the columns as "
        "they are"
    )


def permutation(
    order: Sequence[str], blocks: Sequence[JointBlock], obs_slice: Sequence[int] | None, stated: str
) -> list[int]:
    """Return, for each column that a teacher reads, the environment's column.

    Args:
        order: The teacher's joints and bodies, in its order.
        blocks: The environment's columns.
        obs_slice: ``[a, b]``: columns of them that it reads. None: all.
        stated: Where the order is stated, for messages.

    Raises:
        UserError: If the order says nothing of some joints of a block, or the columns are cut within one.
    """
    columns: list[int] = []
    for block in blocks:
        own = _block_order(order, block, stated)
        if block.part and own != list(range(len(own))):
            raise UserError(
                f"{stated} is another order than the environment's, and '{block.part}' names columns by their place, "
                "which are other joints there: name whole terms"
            )
        for _ in range(block.frames):
            first = len(columns)
            columns += [first + place for place in own]
    if obs_slice is None:
        return columns
    start, stop = obs_slice
    cut = [column - start for column in columns[start:stop]]
    if any(not 0 <= column < stop - start for column in cut):
        raise UserError(
            f"distill.teacher.obs_slice=[{start},{stop}] cuts a term of joints, whose order is another here"
        )
    return cut


def action_permutation(order: Sequence[str], actions: Sequence[str], stated: str) -> list[int]:
    """Return, for each action of the environment, the teacher's action."""
    columns = _block_order(order, JointBlock(tuple(actions)), stated)
    return [columns.index(place) for place in range(len(columns))]


def _block_order(order: Sequence[str], block: JointBlock, stated: str) -> list[int]:
    """Return, for each column of one step in the teacher's order, its place in the environment's."""
    names = block.names
    known = [name for name in names if name in order]
    if not known:
        return list(range(len(names)))
    missing = [name for name in names if name and name not in order]
    if missing:
        raise UserError(f"{stated} lacks {_few(missing)}, which the observations have: name them too")
    theirs = iter(sorted(known, key=list(order).index))
    return [names.index(next(theirs)) if name else place for place, name in enumerate(names)]


def moved(order: Sequence[str], actions: Sequence[str]) -> list[str]:
    """Return each joint that is in another place, as ``FL_hip_joint 0 -> 3``: the teacher's place, and the env's."""
    theirs = action_permutation(order, actions, "")
    return [f"{actions[here]} {there} -> {here}" for here, there in enumerate(theirs) if there != here]


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
