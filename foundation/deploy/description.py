"""Description of an exported policy: names, units and sizes of observations and actions, and their rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from foundation.core.errors import UserError
from foundation.core.text import quoted

VERSION = 1
"""Of the description; a reader refuses a later one."""

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
"""Plain values of JSON."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Some of the numbers of an observation or an action that belong together."""

    name: str
    """Name, such as ``body_rates``."""
    size: int
    """Size."""
    unit: str = ""
    """Unit, such as ``rad/s``; empty for numbers without a unit, or where it is not known."""
    frame: str = ""
    """Frame and order of the components, such as ``body, FLU``; empty where it does not matter or is not known."""
    history: int = 1
    """Steps of it side by side, oldest first, which are part of ``size``: the caller's to keep."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """One exported policy. Observations are given raw: the normaliser is inside."""

    name: str
    """Name of the policy, and of its files."""
    num_obs: int
    """Size of the observation."""
    num_actions: int
    """Size of the action; 1 for a discrete policy, whose action is the index of a choice."""
    num_choices: int | tuple[int, ...] | None = None
    """Number of choices of a discrete policy, of each action where it makes several choices at once. None: its actions
    are continuous."""
    state_size: int = 0
    """Numbers that it remembers from step to step."""
    observations: tuple[Field, ...]
    """Fields of the observation, in order."""
    actions: tuple[Field, ...]
    """Fields of the action, in order."""
    obs_groups: tuple[str, ...] = ()
    """The environment's observation groups, concatenated in this order."""
    obs_slice: tuple[int, int] | None = None
    """``(a, b)``: the columns a to b - 1 of the concatenated groups are the observation. None: all."""
    normalized: bool = False
    """Whether a normaliser is inside."""
    action_clip: float | None = None
    """The policy gives actions within plus or minus this, as in its training. None: without a bound."""
    action_scale: tuple[float, ...] | None = None
    """The task's target is ``offset + scale * action``, which is the caller's to apply. None: not known."""
    action_offset: tuple[float, ...] | None = None
    """See ``action_scale``."""
    control_interval: float | None = None
    """Time between two steps in its training [s]; the memory must advance at this rate. None: not known."""
    task: str | None = None
    """The task that it was trained on."""
    format: str
    """Kind of the file that it was read from."""
    architecture: str
    """Its layers, as text."""
    source_sha256: str | None = None
    """Hash of the file that it was read from."""
    weight_bits: int | None = None
    """Bits of its weights where they were rounded. None: they are what they were."""
    duties: tuple[str, ...] = ()
    """What whoever runs it has to do to the observations, or must not, in sentences; none for groups as they are."""

    def as_dict(self) -> dict[str, Json]:
        """Return plain values, as JSON has them."""
        values: dict[str, Json] = {"description_version": VERSION}
        for field in dataclasses.fields(self):
            values[field.name] = _plain(getattr(self, field.name))
        if not self.duties:
            del values["duties"]
        if self.weight_bits is None:
            del values["weight_bits"]
        return values

    @classmethod
    def from_dict(cls, values: object, where: str) -> Description:
        """Read what :meth:`as_dict` gave.

        Args:
            values: A mapping of plain values.
            where: The file, for errors.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{where} is corrupt: its description is {quoted(values)}. Export it again.")
        given = dict(values)
        version = given.pop("description_version", None)
        if version != VERSION:
            raise UserError(f"{where} has a description of version {quoted(version)}; {VERSION} is understood.")
        try:
            read = {name: _READERS[name](value) for name, value in given.items()}
            description = cls(**read)
            description._check_sizes()
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{where} is corrupt: its description has {quoted(str(error))}. Export it again.") from None
        return description

    def _check_sizes(self) -> None:
        for what, fields, size in (
            ("observations", self.observations, self.num_obs),
            ("actions", self.actions, self.num_actions),
        ):
            total = sum(field.size for field in fields)
            if total != size or size < 1:
                raise ValueError(f"{what} of {total} numbers, not {size}")

    def column_name(self, column: int) -> str:
        """Return the name of a column of the observation, such as ``body_rates[1]``."""
        start = 0
        for field in self.observations:
            if column < start + field.size:
                return f"{field.name}[{column - start}]"
            start += field.size
        return f"observation[{column}]"


def _plain(value: object) -> Json:
    if isinstance(value, Field):
        plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if value.history == 1:
            del plain["history"]
        return plain
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} is no plain value")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{quoted(value)} where text was expected")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{quoted(value)} where a count was expected")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{quoted(value)} where a number was expected")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{quoted(value)} where true or false was expected")
    return value


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{quoted(value)} where a list was expected")
    return value


def _field(value: object) -> Field:
    if not isinstance(value, dict) or set(value) - {"history"} != {"name", "size", "unit", "frame"}:
        raise TypeError(f"{quoted(value)} where a field was expected")
    return Field(
        name=_text(value["name"]),
        size=_count(value["size"]),
        unit=_text(value["unit"]),
        frame=_text(value["frame"]),
        history=_count(value.get("history", 1)),
    )


def _choices(value: object) -> int | tuple[int, ...]:
    return tuple(_count(part) for part in _items(value)) if isinstance(value, list | tuple) else _count(value)


def _slice(value: object) -> tuple[int, int]:
    start, stop = _items(value)
    return _count(start), _count(stop)


_READERS = {
    "name": _text,
    "num_obs": _count,
    "num_actions": _count,
    "num_choices": lambda value: None if value is None else _choices(value),
    "state_size": _count,
    "observations": lambda value: tuple(_field(part) for part in _items(value)),
    "actions": lambda value: tuple(_field(part) for part in _items(value)),
    "obs_groups": lambda value: tuple(_text(part) for part in _items(value)),
    "obs_slice": lambda value: None if value is None else _slice(value),
    "normalized": _flag,
    "action_clip": lambda value: None if value is None else _number(value),
    "action_scale": lambda value: None if value is None else tuple(_number(part) for part in _items(value)),
    "action_offset": lambda value: None if value is None else tuple(_number(part) for part in _items(value)),
    "control_interval": lambda value: None if value is None else _number(value),
    "task": lambda value: None if value is None else _text(value),
    "format": _text,
    "architecture": _text,
    "source_sha256": lambda value: None if value is None else _text(value),
    "weight_bits": _count,
    "duties": lambda value: tuple(_text(part) for part in _items(value)),
}
"""What reads each field, checked."""
