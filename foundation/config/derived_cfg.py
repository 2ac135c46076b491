"""Derived observation groups: their settings, and the description of one that checkpoints and datasets keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foundation.config.plain import to_plain
from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError, suggest
from foundation.core.text import quoted

Lost = Literal["hold", "zero"]

LONGEST = 10_000
"""Most steps of a history or a delay: more are a slip of the keyboard."""
LARGEST = 1e30
"""Bound of noise and rounding [units of the column]: beyond it float32 becomes infinite."""


@dataclass
class DerivedObsCfg:
    """An observation group that is made of others, such as the student's; those stay as they are, bit for bit.

    The order: columns are chosen, noise is added, then rounding, delay, lost readings, history. Each of ``noise``,
    ``dropout``, ``quantise`` and ``delay`` is one number for all columns, or a number for each of some terms:
    ``{body_rates: 0.1}``. Terms have the task's names; columns without a name are written by place: ``3``, ``3:6``.
    """

    from_: str | list[str] | None = None
    """Group, or groups to be concatenated in this order, that it is made of. Required."""
    keep: list[str] | None = None
    """Terms that it has, in this order, and no others. None: all."""
    drop: list[str] = field(default_factory=list)
    """Terms that it does not have."""
    history: int = 1
    """Steps seen at once, the newest included: each term's own side by side, oldest first, as Isaac Lab's managers have
    them. Before an episode's start its first reading is repeated."""
    delay: int | dict[str, int] = 0
    """Steps by which readings come late [env steps]; before an episode's start its first reading is repeated."""
    noise: float | dict[str, float] = 0.0
    """Standard deviation of Gaussian noise [units of the column]; of a reading drawn once, also in the history."""
    dropout: float | dict[str, float] = 0.0
    """Probability that a term's reading does not come, drawn for each term, environment and step; never of an episode's
    first step."""
    lost: Lost = "hold"
    """What is seen for a reading that does not come: hold (the last one that came) or zero."""
    quantise: float | dict[str, float] = 0.0
    """Readings are rounded to whole multiples of this [units of the column]; 0: they are not."""

    @property
    def sources(self) -> list[str]:
        """Names of the groups that it is made of."""
        return [self.from_] if isinstance(self.from_, str) else list(self.from_ or [])

    @property
    def is_corrupted(self) -> bool:
        """Whether readings are changed on their way, beyond the choice of columns and the history."""
        return any(_numbers(getattr(self, name)) for name in _PER_TERM)


_PER_TERM = ("delay", "noise", "dropout", "quantise")


def _numbers(value: float | Mapping[str, float]) -> list[float]:
    """Return the numbers of a setting that are not zero."""
    listed = list(value.values()) if isinstance(value, Mapping) else [value]
    return [number for number in listed if number]


def check_derived(groups: Mapping[str, DerivedObsCfg], prefix: str = "distill.obs") -> None:
    """Check what types cannot express.

    Args:
        groups: Settings of each derived group, by its name.
        prefix: Key of them all, for messages.

    Raises:
        UserError: At the first value that cannot be.
    """
    for name, cfg in groups.items():
        where = f"{prefix}.{name}"
        if not cfg.sources:
            near = [other for other in groups if other != name and groups[other].sources]
            hint = f" {suggest(name, near)}" if near else ""
            raise UserError(f"{where}.from is missing: name the group that it is made of, {where}.from=policy.{hint}")
        if cfg.keep is not None and cfg.drop:
            raise UserError(f"{where}.keep and {where}.drop are both set: give one of them")
        if cfg.keep is not None and not cfg.keep:
            raise UserError(f"{where}.keep is empty: name a term that it has")
        if not 1 <= cfg.history <= LONGEST:
            raise UserError(f"{where}.history is {cfg.history}: it must be from 1 (no history) to {LONGEST}")
        _check_numbers(where, "delay", cfg.delay, LONGEST, f"from 0 to {LONGEST}")
        _check_numbers(where, "noise", cfg.noise, LARGEST, f"a finite number, 0 or more, up to {LARGEST:g}")
        _check_numbers(where, "quantise", cfg.quantise, LARGEST, f"a finite number, 0 (off) or more, up to {LARGEST:g}")
        _check_numbers(where, "dropout", cfg.dropout, 1.0, "from 0 to less than 1")


def _check_numbers(where: str, name: str, value: float | Mapping[str, float], high: float, expected: str) -> None:
    by_term = value.items() if isinstance(value, Mapping) else [("", value)]
    for term, number in by_term:
        below = number < high if name == "dropout" else number <= high
        if not (number >= 0 and below):
            key = f"{where}.{name}" + (f".{term}" if term else "")
            raise UserError(f"{key} is {number:g}: it must be {expected}")


@dataclass(frozen=True)
class DerivedTerm:
    """Some columns of a group that belong together."""

    name: str
    """Name of the task's term, with ``[a:b]`` where it is a part of one."""
    group: str
    """Group that they are of."""
    columns: list[int]
    """Columns of that group, in order."""
    unit: str = ""
    """Unit; empty for numbers without a unit, or where it is not known."""
    frame: str = ""
    """Frame and order of the components; empty where it is not known."""


@dataclass(frozen=True)
class DerivedGroup:
    """A derived group as it was in an environment: what a policy that reads it has to be given."""

    settings: DerivedObsCfg
    terms: list[DerivedTerm]
    """Its terms in order; each has ``settings.history`` times as many columns in it."""

    @property
    def num_columns(self) -> int:
        """Columns of one step."""
        return sum(len(term.columns) for term in self.terms)

    @property
    def size(self) -> int:
        """Columns of the group."""
        return self.settings.history * self.num_columns

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint or an index."""
        return {"settings": to_plain(self.settings), "terms": [to_plain(term) for term in self.terms]}

    @classmethod
    def from_plain(cls, values: object, where: str) -> DerivedGroup:
        """Read what :meth:`to_plain` gave.

        Raises:
            UserError: If it is corrupt; names ``where``.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("terms"), list):
            raise UserError(f"{where} is corrupt: a derived group is {quoted(values)}.")
        settings = values.get("settings")
        listed = [term if isinstance(term, Mapping) else {} for term in values["terms"]]
        terms = [DerivedTerm(**read_fields(DerivedTerm, term, where)) for term in listed]
        known = read_fields(DerivedObsCfg, settings if isinstance(settings, Mapping) else {}, where)
        group = cls(DerivedObsCfg(**known), terms)
        numbers = [column for term in terms for column in term.columns]
        if not numbers or min(numbers) < 0 or any(term.group not in group.settings.sources for term in terms):
            raise UserError(f"{where} is corrupt: the terms of a derived group are {quoted(values['terms'])}.")
        texts = [text for term in terms for text in (term.name, term.unit, term.frame)]
        texts += [*group.settings.sources, *(group.settings.keep or []), *group.settings.drop]
        _check_printable(texts, where)
        check_derived({"group": group.settings}, f"{where} is corrupt: obs")
        return group

    def line(self) -> str:
        """Describe in one line how it is made: ``policy without base_lin_vel, 3 steps of history, 1 late``."""
        cfg = self.settings
        chosen = ""
        if cfg.keep is not None:
            chosen = f", {', '.join(term.name for term in self.terms)} alone"
        elif cfg.drop:
            chosen = f" without {', '.join(cfg.drop)}"
        parts = [f"{' + '.join(cfg.sources)}{chosen}"]
        if cfg.history > 1:
            parts.append(f"history of {cfg.history} steps")
        units = {
            "delay": "delay {} [env steps]",
            "noise": "noise {}",
            "quantise": "in steps of {}",
            "dropout": "dropout {}",
        }
        parts += [text.format(_shown(getattr(cfg, key))) for key, text in units.items() if _numbers(getattr(cfg, key))]
        return "; ".join(parts)

    def caller_duties(self) -> list[str]:
        """Return in sentences what whoever runs a policy that reads the group has to do."""
        cfg = self.settings
        names = ", ".join(term.name for term in self.terms)
        duties = [f"Give it {names} of {' + '.join(cfg.sources)}, {self.num_columns} numbers a step, as they are read."]
        if cfg.history > 1:
            duties.append(
                f"The history is outside of the policy: keep the last {cfg.history} readings of each term side by "
                f"side, oldest first, {self.size} numbers; at the start repeat the first reading."
            )
        if _numbers(cfg.delay):
            duties.append(
                f"It was trained on delayed readings ({_shown(cfg.delay)} [env steps]), in the place of the delays of "
                "sensors and transport: add none."
            )
        changed = [name for name in ("noise", "quantise", "dropout") if _numbers(getattr(cfg, name))]
        if changed:
            duties.append(f"It was trained with {', '.join(changed)}, in the place of real sensors' errors: add none.")
        return duties


def _shown(value: float | Mapping[str, float]) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return f"{value:g}"


def read_derived(values: object, where: str) -> dict[str, DerivedGroup]:
    """Read the derived groups of a checkpoint or of a dataset's index; none where there is no entry.

    Raises:
        UserError: If they are corrupt; names ``where``.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{where} is corrupt: its derived groups are {quoted(values)}.")
    _check_printable(values, where)
    return {name: DerivedGroup.from_plain(group, where) for name, group in values.items()}


def _check_printable(texts: Iterable[str], where: str) -> None:
    """Refuse names that no program writes: they are printed, and a terminal would obey its codes in them."""
    for text in texts:
        if not text.isprintable():
            raise UserError(f"{where} is corrupt: {quoted(text)} is a name in its derived groups.")


def write_derived(groups: Mapping[str, DerivedGroup], read: Iterable[str]) -> dict[str, Any]:
    """Return the plain values of those derived groups that a policy reads."""
    return {name: groups[name].to_plain() for name in read if name in groups}


def copied(groups: Mapping[str, DerivedGroup]) -> dict[str, DerivedObsCfg]:
    """Return copies of the settings of derived groups, to be changed by overrides."""
    return {name: replace(group.settings) for name, group in groups.items()}
