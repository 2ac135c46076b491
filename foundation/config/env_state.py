"""The state of an environment's curriculum, which a policy's checkpoint carries to the next environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foundation.core.errors import UserError
from foundation.core.text import quoted

KEY = "env_state"
"""Entry of a checkpoint, or of its ``infos`` as mjlab writes it."""


@dataclass(frozen=True)
class EnvState:
    """How far an environment's curriculum has come."""

    common_step_counter: int
    """Env steps of training; mjlab's word."""

    def to_plain(self) -> dict[str, int]:
        """Return a checkpoint's entry."""
        return asdict(self)


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
    steps = found.get("common_step_counter") if isinstance(found, Mapping) else None
    if type(steps) is not int or not 0 <= steps < 2**63:
        raise UserError(f"{where} is corrupt: its {KEY} is {quoted(found)}, common_step_counter must count env steps.")
    return EnvState(steps)


def furthest(states: Iterable[EnvState | None]) -> EnvState | None:
    """Return the state after the most env steps; None where there is none."""
    known = [state for state in states if state is not None]
    return max(known, key=lambda state: state.common_step_counter, default=None)
