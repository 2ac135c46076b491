"""Derived observation groups at the boundary of an engine: an environment's groups, and those made of them beside."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from foundation.config.derived_cfg import DerivedGroup, DerivedObsCfg, DerivedTerm
from foundation.core.errors import UserError, suggest
from foundation.core.memory import refuse_beyond_memory
from foundation.deploy.description import Field
from foundation.engines.base import SavesState, VecEnv, saves_state
from foundation.engines.observation_terms import observation_terms
from foundation.engines.video import EnvWrapper

_RANGE = re.compile(r"(\d*):(\d*)|(\d+)")
_PART = re.compile(r"(.+)\[(\d*):(\d*)\]")
FINAL = "final_observations"
"""Entry of a step's extras with the last observations of the episodes that ended."""


class DerivedGroups(EnvWrapper):
    """Add derived groups to an environment's observations; all else is passed through, its own groups bit for bit.

    Noise and lost readings come from generators of their own, seeded by :meth:`reset`: the same seed gives the same
    bits, and the environment's random numbers are left alone.

    Args:
        env: The environment.
        settings: Settings of each derived group, by its name.
        task: The task, which may name columns.
        seed: Seed until :meth:`reset` gives another.
        recorded: Groups as a policy was trained on them: their terms are taken in that order.
        key: Key of the settings, for messages.

    Raises:
        UserError: If a group or a term is not there, or nothing is left.
    """

    def __init__(
        self,
        env: VecEnv,
        settings: Mapping[str, DerivedObsCfg],
        task: str,
        seed: int = 0,
        recorded: Mapping[str, DerivedGroup] | None = None,
        key: str = "obs",
    ):
        super().__init__(env)
        obs = env.get_observations()
        terms = observation_terms(env, task, obs)
        self.derived_groups: dict[str, DerivedGroup] = {}
        self._pipes: dict[str, Pipe] = {}
        for name, cfg in settings.items():
            columns = SourceColumns(f"{key}.{name}", cfg, obs, terms)
            columns.check_name(name)
            group = columns.choose()
            if recorded is not None and name in recorded:
                group = columns.as_recorded(group, recorded[name])
            self.derived_groups[name] = group
            num_bytes = 4.0 * env.num_envs * (group.size + group.num_columns)
            refuse_beyond_memory(num_bytes, env.device, f"{key}.{name}.history={cfg.history}", "give fewer steps")
            self._pipes[name] = Pipe(group, columns.numbers(group), env.num_envs, env.device)
        self._derived: dict[str, torch.Tensor] = {}
        self._seed(seed)
        self._begin(obs)
        if saves_state(env):  # only then does the wrapper have these methods
            self._saving: SavesState = env
            self.state_dict = self._state_dict
            self.load_state_dict = self._load_state_dict

    def get_observations(self) -> TensorDict:
        """Return the current observation groups, the derived ones as the last step or reset made them."""
        return self._joined(self.env.get_observations(), self._derived)

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Args:
            seed: Of the environment and of noise and lost readings; None continues their sequences.

        Returns:
            Observation groups.
        """
        obs = self.env.reset(seed)
        if seed is not None:
            self._seed(seed)
        return self._begin(obs)

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Advance the environment. Shape of ``actions``: (num_envs, num_actions)."""
        obs, rewards, dones, extras = self.env.step(actions)
        final = extras.get(FINAL)
        if final is not None:  # before the step's own: these are the last readings of the episodes that ended
            derived = {name: pipe.peek(final) for name, pipe in self._pipes.items()}
            extras = {**extras, FINAL: self._joined(final, derived)}
        fresh = dones.bool()
        self._derived = {name: pipe.push(obs, fresh) for name, pipe in self._pipes.items()}
        return self._joined(obs, self._derived), rewards, dones, extras

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    @torch.no_grad()
    def _begin(self, obs: TensorDict) -> TensorDict:
        self._derived = {name: pipe.push(obs, None) for name, pipe in self._pipes.items()}
        return self._joined(obs, self._derived)

    def _seed(self, seed: int) -> None:
        for name, pipe in self._pipes.items():
            # One stream for each group: another group beside it does not change its noise.
            pipe.generator.manual_seed((seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63)

    def _joined(self, obs: Mapping[str, torch.Tensor] | TensorDict, derived: Mapping[str, torch.Tensor]) -> TensorDict:
        """Return groups and derived groups in a TensorDict of their own: the environment may keep the one it gave."""
        return TensorDict({**dict(obs.items()), **derived}, batch_size=[self.env.num_envs])

    def _state_dict(self) -> dict[str, Any]:
        """Return the environment's state, and that of the derived groups."""
        pipes = {name: pipe.state_dict() for name, pipe in self._pipes.items()}
        return {"env": self._saving.state_dict(), "derived": pipes, "current": dict(self._derived)}

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if "derived" not in state or set(state["derived"]) != set(self._pipes):
            raise UserError("obs: the derived observation groups are not those that the run was begun with")
        self._saving.load_state_dict(state["env"])
        for name, pipe in self._pipes.items():
            pipe.load_state_dict(state["derived"][name])
        self._derived = {name: value.to(self.env.device) for name, value in state["current"].items()}


@dataclass(frozen=True)
class PipeNumbers:
    """Settings of a derived group, one number for each column. Shape of each: (num_columns,)."""

    noise: list[float]
    quantise: list[float]
    delay: list[int]
    dropout: list[float]


class Past(NamedTuple):
    """What the next step of a derived group depends on."""

    late: torch.Tensor | None
    """The last readings, newest first; None without delay. Shape: (1 + longest delay, num_envs, num_columns)."""
    held: torch.Tensor
    """What has come last. Shape: (num_envs, num_columns)."""
    window: torch.Tensor | None
    """The last of what has come, newest first; None without history. Shape: (history, num_envs, num_columns)."""


class Pipe:
    """The way of readings from an environment's groups to a derived one.

    Args:
        group: The derived group.
        numbers: Its settings by column.
        num_envs: Number of environments.
        device: Of the observations.
    """

    def __init__(self, group: DerivedGroup, numbers: PipeNumbers, num_envs: int, device: torch.device | str):
        self.generator = torch.Generator(device)
        self.num_envs = num_envs
        self._hold = group.settings.lost == "hold"
        self._history = group.settings.history
        self._parts = [(term.group, torch.tensor(term.columns, device=device)) for term in group.terms]
        terms = [index for index, term in enumerate(group.terms) for _ in term.columns]
        self._term_of_column = torch.tensor(terms, device=device)
        self._noise = _where_any(numbers.noise, device)
        self._quantise = _where_any(numbers.quantise, device)
        self._delay = torch.tensor(numbers.delay, device=device) if any(numbers.delay) else None
        self._longest_delay = max(numbers.delay)
        # One draw decides about all columns of a term.
        first = [terms.index(index) for index in range(len(group.terms))]
        self._dropout = _where_any([numbers.dropout[column] for column in first], device)
        self._order = torch.tensor(_by_term(group), device=device)
        self._past: Past | None = None
        """None before the first reading."""

    def push(self, obs: Mapping[str, torch.Tensor] | TensorDict, fresh: torch.Tensor | None) -> torch.Tensor:
        """Take the readings of a step.

        Args:
            obs: Observation groups.
            fresh: Where an episode begins with them; None: everywhere. Shape: (num_envs,).

        Returns:
            The derived group. Shape: (num_envs, size).
        """
        self._past = self._advance(self._measure(obs), fresh)
        return self._output(self._past)

    def peek(self, obs: Mapping[str, torch.Tensor] | TensorDict) -> torch.Tensor:
        """Return the group for one more step of the same episodes, which is not kept. Shape: (num_envs, size)."""
        nowhere = torch.zeros(self.num_envs, dtype=torch.bool, device=self.generator.device)
        return self._output(self._advance(self._measure(obs), nowhere))

    def _measure(self, obs: Mapping[str, torch.Tensor] | TensorDict) -> torch.Tensor:
        """Read the columns, with noise and rounding. Shape: (num_envs, num_columns)."""
        parts = [obs[name].index_select(-1, columns) for name, columns in self._parts]
        reading = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self._noise is not None:
            drawn = torch.randn(reading.shape, generator=self.generator, device=self.generator.device)
            reading = reading + self._noise * drawn
        if self._quantise is not None:
            step = torch.where(self._quantise > 0.0, self._quantise, 1.0)
            reading = torch.where(self._quantise > 0.0, (reading / step).round() * step, reading)
        return reading

    def _advance(self, reading: torch.Tensor, fresh: torch.Tensor | None) -> Past:
        """Return what is remembered after a reading."""
        past = self._past or Past(None, reading, None)
        begins = None if fresh is None else fresh.unsqueeze(-1)
        late = None
        came = reading
        if self._delay is not None:
            late = _shifted(past.late, reading, begins, 1 + self._longest_delay)
            came = late[self._delay, :, torch.arange(len(self._delay), device=late.device)].T
        held = came
        if self._dropout is not None:
            drawn = torch.rand(
                self.num_envs, len(self._dropout), generator=self.generator, device=self.generator.device
            )
            lost = (drawn < self._dropout)[:, self._term_of_column]
            if begins is not None:
                seen = past.held if self._hold else torch.zeros_like(came)
                held = torch.where(lost & ~begins, seen, came)
        window = _shifted(past.window, held, begins, self._history) if self._history > 1 else None
        return Past(late, held, window)

    def _output(self, past: Past) -> torch.Tensor:
        if past.window is None:
            return past.held
        return past.window.transpose(0, 1).flatten(1).index_select(-1, self._order)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on."""
        past = None if self._past is None else self._past._asdict()
        return {"generator": self.generator.get_state(), "past": past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"].cpu())
        past = state["past"]
        if past is not None:
            device = self.generator.device
            late, window = (None if past[name] is None else past[name].to(device) for name in ("late", "window"))
            past = Past(late, past["held"].to(device), window)
        self._past = past


def _shifted(
    frames: torch.Tensor | None, newest: torch.Tensor, begins: torch.Tensor | None, length: int
) -> torch.Tensor:
    """Put a frame before others and drop the last; where an episode begins, all are the new one.

    Args:
        frames: The newest first. Shape: (length, num_envs, num_columns). None: there are none yet.
        newest: Shape: (num_envs, num_columns).
        begins: Shape: (num_envs, 1). None: everywhere.
        length: Number of frames.
    """
    if frames is None or begins is None:
        return newest.unsqueeze(0).repeat(length, 1, 1)
    shifted = torch.cat([newest.unsqueeze(0), frames[:-1]])
    return torch.where(begins, newest, shifted)


def _where_any(numbers: Sequence[float], device: torch.device | str) -> torch.Tensor | None:
    """Return numbers as a tensor; None where all are zero. Shape: (len(numbers),)."""
    return torch.tensor(numbers, dtype=torch.float32, device=device) if any(numbers) else None


def _by_term(group: DerivedGroup) -> list[int]:
    """Return the place of each column in frames side by side, the newest first: term by term, each oldest first."""
    order: list[int] = []
    first = 0
    for term in group.terms:
        for step in reversed(range(group.settings.history)):
            order += [step * group.num_columns + first + column for column in range(len(term.columns))]
        first += len(term.columns)
    return order


# -- choosing columns --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of a source group, and the term that it belongs to."""

    group: str
    index: int
    """Of the group."""
    term: int
    """Which of all terms."""
    place: int
    """Of the term."""


class SourceColumns:
    """The columns that a derived group can be made of, by their names.

    Args:
        where: Key of the settings, such as ``obs.student``, for messages.
        cfg: The settings.
        obs: Observations of the environment.
        terms: Fields of the groups whose columns have names.
    """

    def __init__(self, where: str, cfg: DerivedObsCfg, obs: TensorDict, terms: Mapping[str, Sequence[Field]]):
        self.where = where
        self.cfg = cfg
        self.offered = [str(name) for name in obs.keys()]  # noqa: SIM118  # a TensorDict's
        self.fields: list[tuple[str, Field]] = []
        """Group and field of each term; a group without names is one term."""
        self.columns: list[_Column] = []
        self._named = False
        for group in cfg.sources:
            if group not in self.offered:
                raise UserError(
                    f"{where}.from: the environment has no observation group '{group}'. {suggest(group, self.offered)}"
                )
            shape = tuple(obs[group].shape[1:])
            if len(shape) != 1:
                raise UserError(
                    f"{where}.from: group '{group}' is an image of shape {shape}, and derived groups are made of flat "
                    f"ones: read it beside, distill.student.obs_groups=[{where.rpartition('.')[2]}, {group}], with its "
                    "frames stacked by the task, or a student with memory"
                )
            self._add(group, terms.get(group), shape[0])
        if len(set(cfg.sources)) < len(cfg.sources):
            raise UserError(f"{where}.from names a group twice: {cfg.sources}")

    def _add(self, group: str, fields: Sequence[Field] | None, size: int) -> None:
        self._named = self._named or fields is not None
        first = 0
        for field in fields or [Field(name=group, size=size)]:
            number = len(self.fields)
            self.fields.append((group, field))
            self.columns += [_Column(group, first + place, number, place) for place in range(field.size)]
            first += field.size

    def check_name(self, name: str) -> None:
        """Raise where a derived group would take the place of one that the teacher may read."""
        if name in self.offered:
            raise UserError(
                f"{self.where}: the environment has a group '{name}', which the teacher may read: name the derived one "
                f"otherwise, such as obs.student.from={name}"
            )

    def choose(self) -> DerivedGroup:
        """Return the group with the columns that ``keep`` or ``drop`` leave."""
        cfg = self.cfg
        if cfg.keep is not None:
            chosen = [column for name in cfg.keep for column in self.find(name, "keep")]
            twice = next((column for index, column in enumerate(chosen) if column in chosen[:index]), None)
            if twice is not None:
                raise UserError(f"{self.where}.keep has {self._name(twice)} twice: name it once")
        else:
            dropped = {column for name in cfg.drop for column in self.find(name, "drop")}
            chosen = [column for column in self.columns if column not in dropped]
        if not chosen:
            raise UserError(f"{self.where}.drop leaves nothing of {' + '.join(cfg.sources)}: drop fewer terms")
        group = DerivedGroup(cfg, self._terms(chosen))
        self.numbers(group)  # refuses names that are not there
        return group

    def as_recorded(self, group: DerivedGroup, recorded: DerivedGroup) -> DerivedGroup:
        """Return the group with its terms in the order that a policy was trained on.

        Raises:
            UserError: If they are not the same terms.
        """
        here = {(term.group, term.name): term for term in group.terms}
        if all((term.group, term.name) in here for term in recorded.terms) and len(here) == len(recorded.terms):
            ordered = [here[term.group, term.name] for term in recorded.terms]
            if all(len(a.columns) == len(b.columns) for a, b in zip(ordered, recorded.terms, strict=True)):
                return DerivedGroup(group.settings, ordered)
        if group.num_columns == recorded.num_columns and not self._named:
            return group  # an engine that names nothing
        listed = [[f"{term.name} ({len(term.columns)})" for term in known.terms] for known in (recorded, group)]
        raise UserError(
            f"{self.where}: the policy was trained on {', '.join(listed[0])}, and here are {', '.join(listed[1])}"
        )

    def numbers(self, group: DerivedGroup) -> PipeNumbers:
        """Return the settings by column.

        Raises:
            UserError: For a term that is not there, or not kept.
        """
        kept = [(term.group, column) for term in group.terms for column in term.columns]
        return PipeNumbers(
            noise=self._by_column("noise", self.cfg.noise, kept),
            quantise=self._by_column("quantise", self.cfg.quantise, kept),
            delay=[int(number) for number in self._by_column("delay", self.cfg.delay, kept)],
            dropout=self._by_column("dropout", self.cfg.dropout, kept),
        )

    def _by_column(self, key: str, value: float | Mapping[str, float], kept: Sequence[tuple[str, int]]) -> list[float]:
        if not isinstance(value, Mapping):
            return [float(value)] * len(kept)
        numbers = dict.fromkeys(kept, 0.0)
        for name, number in value.items():
            found = [(column.group, column.index) for column in self.find(str(name), key)]
            missing = [column for column in found if column not in numbers]
            if len(missing) == len(found):
                raise UserError(f"{self.where}.{key}: '{name}' is not in the group: it was dropped")
            numbers |= dict.fromkeys((column for column in found if column in numbers), float(number))
        return [numbers[column] for column in kept]

    def find(self, name: str, key: str) -> list[_Column]:
        """Return the columns that a name means: a term, a part of one (``body_rates[0:2]``), or places (``3:6``).

        A group's name before it (``policy.body_rates``) tells terms of several groups apart.

        Raises:
            UserError: With the nearest names, or how many columns there are.
        """
        group, dot, rest = name.partition(".")
        columns = self.columns
        wanted = name
        if dot and group in self.cfg.sources:
            columns = [column for column in columns if column.group == group]
            wanted = rest
        found = [column for column in columns if self.fields[column.term][1].name == wanted]
        if found:
            return found
        part = _PART.fullmatch(wanted)
        if part is not None:
            term = [column for column in columns if self.fields[column.term][1].name == part[1]]
            cut = _cut(term, part[2], part[3])
            if cut:
                return cut
        places = _RANGE.fullmatch(wanted)
        if places is not None:
            start, stop, single = places.groups()
            chosen = _cut(columns, start, stop) if single is None else columns[int(single) : int(single) + 1]
            within = int(stop or 0 if single is None else single) <= len(columns) - (single is not None)
            if chosen and within:
                return chosen
            raise UserError(
                f"{self._at(key)}: there are no columns '{name}' of {' + '.join(self.cfg.sources)}, which has "
                f"{len(columns)}; places are 0 to {len(columns) - 1}, as '3' or '3:6' (in quotes in a YAML file)"
            )
        raise UserError(f"{self._at(key)}: {self._unknown(name)}")

    def _at(self, key: str) -> str:
        return f"{self.where}.{key}" if key else self.where

    def _unknown(self, name: str) -> str:
        sources = " + ".join(self.cfg.sources)
        if not self._named:
            return (
                f"no term '{name}': the columns of {sources} have no names here; write their places, 0 to "
                f"{len(self.columns) - 1}, as 3 or 3:6"
            )
        valid = [field.name for _, field in self.fields]
        return f"no term '{name}' in {sources}. {suggest(name, valid, limit=30, ordered=True)}"

    def _name(self, column: _Column) -> str:
        field = self.fields[column.term][1]
        return field.name if field.size == 1 else f"{field.name}[{column.place}:{column.place + 1}]"

    def _terms(self, chosen: Iterable[_Column]) -> list[DerivedTerm]:
        """Put columns that follow each other in one term together again."""
        runs: list[list[_Column]] = []
        for column in chosen:
            last = runs[-1][-1] if runs else None
            if last is not None and (last.term, last.place + 1) == (column.term, column.place):
                runs[-1].append(column)
            else:
                runs.append([column])
        terms: list[DerivedTerm] = []
        for run in runs:
            group, field = self.fields[run[0].term]
            name = field.name
            if len(run) < field.size:
                name = f"{name}[{run[0].place}:{run[-1].place + 1}]"
            columns = [column.index for column in run]
            terms.append(DerivedTerm(name, group, columns, field.unit, field.frame))
        return terms


def _cut(columns: list[_Column], start: str, stop: str) -> list[_Column]:
    return columns[int(start or 0) : int(stop) if stop else None]
