"""The state of an environment's curriculum, which a policy's checkpoint carries to the next environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from foundation.core.errors import UserError
from foundation.core.text import quoted

KEY = "env_state"
"""Entry of a checkpoint, or of its ``infos`` as mjlab writes it."""


@dataclass(frozen=True)
class EnvState:
    """How far an environment's curriculum has come."""

    common_step_counter: int
    """Env steps of training; mjlab's word."""
    terrain_levels: tuple[int, ...] | None = None
    """Level of terrain that each environment had reached. None: not known, or there are none."""

    def to_plain(self) -> dict[str, int | list[int]]:
        """Return a checkpoint's entry."""
        entry: dict[str, int | list[int]] = {"common_step_counter": self.common_step_counter}
        return entry if self.terrain_levels is None else entry | {"terrain_levels": list(self.terrain_levels)}

    def levels_of(self, num_envs: int) -> list[int] | None:
        """Return the levels for another number of environments; None where they are not known.

        An environment gets that of the one at the same place in the row, because the kinds of terrain are dealt out in
        blocks: so a kind keeps its levels.
        """
        levels = self.terrain_levels
        return None if not levels else [levels[env * len(levels) // num_envs] for env in range(num_envs)]


def read_env_state(values: Mapping[str, Any], where: str) -> EnvState | None:
    """Read the state from a checkpoint of this project, or of mjlab's or RSL-RL's runner; None where it has none.

    Args:
        values: The checkpoint.
        where: The file, for the message.

    Raises:
        UserError: If it is corrupt.
    """
    infos = values.get("infos")
    found = values.get(KEY, infos.get(KEY) if isinstance(infos, Mapping) else None)
    if found is None:
        return None
    entry: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    steps = entry.get("common_step_counter")
    if not _is_count(steps):
        raise UserError(f"{where} is corrupt: its {KEY} is {quoted(found)}, common_step_counter must count env steps.")
    levels = entry.get("terrain_levels")
    if levels is None:
        return EnvState(steps)
    if not isinstance(levels, list) or not all(map(_is_count, levels)):
        raise UserError(f"{where} is corrupt: its {KEY} is {quoted(found)}, terrain_levels must be whole numbers.")
    return EnvState(steps, tuple(levels))


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def furthest(states: Iterable[EnvState | None]) -> EnvState | None:
    """Return the state after the most env steps; None where there is none."""
    known = [state for state in states if state is not None]
    return max(known, key=lambda state: state.common_step_counter, default=None)
