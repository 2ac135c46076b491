"""A policy with a part of its own for each task, chosen by the columns of its observation that say which task runs.

Fine-tuning makes it of another student: the part that is there is frozen, and a new one, which begins as its copy, acts
where the new task's column is 1. So the old tasks' actions never change. What parts share decides what it is:

- all hidden layers, or all but the last ones: heads of each task's own on one frozen trunk;
- none: a whole network for each task, of which low-rank adapters train next to nothing;
- none, and each part also reads the hidden layers of those before it: progressive columns (Rusu et al. 2016).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import nn

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.policies.layers import OBS, Activation, Add, Dense, Layers
from foundation.policies.memory import MemoryLayer, run_layers
from foundation.policies.output import PolicyOutput, map_output
from foundation.students import student_from_description
from foundation.students.base import OF_A_RUN, Heads, NetworkCfg, Student, hidden_layers
from foundation.students.cnn import CNNStudent

NAME = "by_task"
LARGE = 65536.0
"""More than any action, value or hidden unit: what a part's outputs are pushed down by where another part acts, in
files of plain layers."""


@dataclass
class ByTaskCfg(NetworkCfg):
    """A part for each task; made by ``finetune.py``."""

    name: str = NAME
    """This student."""
    base: dict[str, Any] = field(default_factory=dict)
    """Description of the student that the first part was."""
    columns: list[int] = field(default_factory=list)
    """Column of the policy's observations that is 1 while the task of the second part runs, that of the third one, ...;
    the first part acts where none of them is."""
    shared: int = 0
    """Hidden layers that all parts share, activation functions included, from the first one on."""
    lateral: bool = False
    """Each part also reads the hidden layers of the parts before it."""


class Part(nn.Module):
    """Layers of one task behind the shared ones, and its heads."""

    def __init__(self, layers: nn.ModuleList, heads: Heads, laterals: nn.ModuleList) -> None:
        """Copy a part of the same sizes."""
        super().__init__()
        self.layers = copy.deepcopy(layers)
        self.mean = copy.deepcopy(heads.mean)
        self.log_std = copy.deepcopy(heads.log_std)
        self.value = copy.deepcopy(heads.value)
        self.laterals = laterals


class ByTaskStudent(Student):
    """A part for each task behind shared layers; the newest part's layers and heads are the student's own."""

    cfg_class = ByTaskCfg

    def __init__(self, cfg: ByTaskCfg, num_obs: int, num_actions: int) -> None:
        """Create the parts.

        Args:
            cfg: Describes them.
            num_obs: Number of observations.
            num_actions: Number of actions.
        """
        base = student_from_description({**cfg.base, "num_obs": num_obs, "num_actions": num_actions})
        refuse_unfit(base)
        hidden = hidden_layers(base)
        if not 0 <= cfg.shared <= len(hidden) or not cfg.columns:
            raise UserError(
                f"a student by task shares {cfg.shared} of {len(hidden)} layers in {len(cfg.columns)} tasks"
            )
        if any(not 0 <= column < num_obs for column in cfg.columns):
            raise UserError(f"the task columns {cfg.columns} are not all among its {num_obs} observations")
        super().__init__(cfg, num_obs, num_actions, base.mean.in_features)
        self.front = nn.ModuleList(hidden[: cfg.shared])
        self.own_layers = nn.ModuleList(hidden[cfg.shared :])
        self.laterals = self._make_laterals(len(cfg.columns))
        self.earlier = nn.ModuleList(
            Part(self.own_layers, self, self._make_laterals(index)) for index in range(len(cfg.columns))
        )
        self.columns = list(cfg.columns)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, ByTaskCfg)
        if not cfg.base:
            raise UserError(
                f"student={NAME} is what finetune.py makes of a trained student (finetune.adapters.by_task, "
                "finetune.heads, finetune.progressive): choose another"
            )
        return cls(cfg, num_obs, num_actions)

    def _make_laterals(self, before: int) -> nn.ModuleList:
        """Return the connections of a part that has ``before`` parts before it; they are zero before training."""
        made = nn.ModuleList()
        if not before or not self.is_lateral:
            return made
        readers = [*_dense_of(self.own_layers)[1:], self.mean]
        for layer in readers:
            made.append(nn.Linear(before * layer.in_features, layer.out_features, bias=False))
            nn.init.zeros_(made[-1].weight)  # pyright: ignore[reportArgumentType]  # a Linear's weight is a tensor
        return made

    # -- its parts ------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> list[tuple[nn.ModuleList, Heads, nn.ModuleList]]:
        """Layers, heads and lateral connections of each part, the oldest first."""
        old = [(part.layers, part, part.laterals) for part in self.earlier if isinstance(part, Part)]
        return [*old, (self.own_layers, self, self.laterals)]

    def own_modules(self) -> list[nn.Module]:
        """Return the modules of the newest part."""
        heads = (self.mean, self.log_std, self.value)
        return [self.own_layers, self.laterals, *(head for head in heads if isinstance(head, nn.Module))]

    def freeze_earlier(self) -> None:
        """Let the newest part alone be trained."""
        self.requires_grad_(False)
        for module in self.own_modules():
            module.requires_grad_(True)
        if isinstance(self.log_std, nn.Parameter):
            self.log_std.requires_grad_(True)

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers of the newest part in order."""
        return *self.front, *self.own_layers

    @cached_property
    def _remembering(self) -> list[MemoryLayer]:
        """The hidden layers with memory of all parts, those that are shared first."""
        layers = [*self.front, *(layer for part, _, _ in self.parts for layer in part)]
        return [layer for layer in layers if isinstance(layer, MemoryLayer)]

    def named_layers(self) -> dict[str, nn.Module]:
        """Return none: which layers act depends on the task."""
        return {}

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the hidden layers of one part, input side first."""
        return [m.out_features for layer in self.trunk() for m in layer.modules() if isinstance(m, nn.Linear)]

    # -- acting ---------------------------------------------------------------------------------------------------

    def chosen(self, obs: torch.Tensor) -> torch.Tensor:
        """Return the index of the part that acts. Shape: (..., num_obs) to (...)."""
        index = torch.zeros(obs.shape[:-1], dtype=torch.long, device=obs.device)
        for number, column in enumerate(self.columns, 1):
            index = torch.where(obs[..., column] > 0.5, number, index)
        return index

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        sizes = [_memory_of(self.front), *(_memory_of(layers) for layers, _, _ in self.parts)]
        states: list[torch.Tensor | None] = [None] * len(sizes)
        if state is not None:
            own = state.split(sizes, dim=-1)
            states = [part if size else None for part, size in zip(own, sizes, strict=True)]
        chosen = self.chosen(obs)
        x, _, states[0] = run_layers(self.front, self._normalized(obs), states[0], resets, sequence)
        output: PolicyOutput | None = None
        seen: list[list[torch.Tensor]] = []
        for number, (layers, heads, laterals) in enumerate(self.parts):
            acts = chosen == number
            idle = not sizes[number + 1] and not self.is_lateral and not bool(acts.any())
            if idle and not (number == len(self.parts) - 1 and output is None):
                continue  # most often all environments run one task: the other parts need not be computed
            if self.is_lateral:
                own_output = self._run_column(layers, heads, laterals, x, seen)
            else:
                features, _, states[number + 1] = run_layers(layers, x, states[number + 1], resets, sequence)
                own_output = self._heads(features, heads)
            output = own_output if output is None else _merged(acts, own_output, output)
        assert output is not None
        after = [part for part in states if part is not None]
        return output, torch.cat(after, dim=-1) if after else None

    @property
    def is_lateral(self) -> bool:
        """Whether each part reads the layers of those before it."""
        assert isinstance(self.cfg, ByTaskCfg)
        return self.cfg.lateral

    def _run_column(
        self,
        layers: nn.ModuleList,
        heads: Heads,
        laterals: nn.ModuleList,
        x: torch.Tensor,
        seen: list[list[torch.Tensor]],
    ) -> PolicyOutput:
        """Run a progressive column (Rusu et al. 2016, eq. 1).

        Args:
            layers: Its hidden layers.
            heads: Its output layers.
            laterals: Its connections from the columns before it.
            x: What the first layer reads.
            seen: Of each column before it, what each dense layer after the first read; this column's are appended.
        """
        before = list(seen)
        own: list[torch.Tensor] = []
        first = True
        for layer in layers:
            if not isinstance(layer, nn.Linear):
                x = layer(x)
            elif first:
                x = layer(x)
                first = False
            else:
                own.append(x)
                x = layer(x) + self._from_others(laterals, before, len(own) - 1)
        own.append(x)
        raw = heads.mean(x) + self._from_others(laterals, before, len(own) - 1)
        seen.append(own)
        return self._heads(x, heads, raw)

    @staticmethod
    def _from_others(laterals: nn.ModuleList, before: list[list[torch.Tensor]], depth: int) -> torch.Tensor | float:
        return laterals[depth](torch.cat([column[depth] for column in before], dim=-1)) if before else 0.0

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return mean actions, with memory those of an episode's first step. Shape: (..., num_actions)."""
        flat = obs.reshape(-1, self.num_obs)
        return self.step(flat)[0].mean.reshape(*obs.shape[:-1], self.num_actions)

    # -- in other formats -----------------------------------------------------------------------------------------

    def list_layers(self, layers: Layers) -> None:
        """Append all parts, and layers that let one of them through."""
        names: dict[nn.Module, str] = {module: name for name, module in self.named_modules()}
        x = self._list_normalized(layers)
        for layer in self.front:
            x = layers.module(layer, x, names[layer])
        seen: list[list[str]] = []
        found: dict[str, str] = {}
        for number, (own, heads, laterals) in enumerate(self.parts):
            prefix = f"earlier.{number}." if number < len(self.earlier) else ""
            outputs = self._list_part(layers, x, own, heads, laterals, seen, prefix, names)
            if number == 0:
                found = outputs
                continue
            gate = _list_gate(layers, self.columns[number - 1], f"task.{number}")
            found = {
                key: _list_choice(layers, gate, outputs[key], found[key], f"{key}.{number}")
                for key in outputs
                if key in found
            }
        layers.outputs |= found

    def _list_part(
        self,
        layers: Layers,
        x: str,
        own: nn.ModuleList,
        heads: Heads,
        laterals: nn.ModuleList,
        seen: list[list[str]],
        prefix: str,
        names: dict[nn.Module, str],
    ) -> dict[str, str]:
        """Append one part; return the values that are its outputs."""
        before = list(seen)
        read: list[str] = []
        first = True
        for layer in own:
            given = x
            x = layers.module(layer, given, names[layer])
            if not isinstance(layer, nn.Linear):
                continue
            if not first:
                read.append(given)
                x = _list_lateral(layers, x, laterals, before, len(read) - 1, names[layer])
            first = False
        read.append(x)
        raw = layers.dense(x, f"{prefix}mean", heads.mean)
        raw = _list_lateral(layers, raw, laterals, before, len(read) - 1, f"{prefix}mean")
        seen.append(read)
        return {"features": x} | self._list_heads(layers, x, raw, heads, prefix)


# -- making one -------------------------------------------------------------------------------------------------------


def has_weights(layer: nn.Module) -> bool:
    """Return whether a layer has parameters."""
    return any(True for _ in layer.parameters())


def refuse_unfit(student: Student) -> None:
    """Refuse a student whose layers cannot be given to tasks.

    Raises:
        UserError: Naming the student.
    """
    if isinstance(student, CNNStudent) or student.cfg.num_estimates or isinstance(student, ByTaskStudent):
        raise UserError(
            f"student={student.cfg.name} cannot have parts by task: that needs a student of flat observations, "
            "without an estimate of another group (mlp, gru, lstm, history, tcn)"
        )


def by_task_cfg(student: Student, column: int, shared: int, lateral: bool) -> ByTaskCfg:
    """Return the config of a student with a further part.

    Args:
        student: Any, or one that has parts already.
        column: Column of its observations that is 1 while the new part's task runs.
        shared: Hidden layers that parts share, where it has no parts yet.
        lateral: Whether parts read the layers of those before them, where it has no parts yet.
    """
    if isinstance(student.cfg, ByTaskCfg):
        return replace(student.cfg, columns=[*student.cfg.columns, column])
    refuse_unfit(student)
    common: dict[str, Any] = {own.name: getattr(student.cfg, own.name) for own in fields(NetworkCfg)} | {"name": NAME}
    base = asdict(student.cfg)
    for of_a_run in OF_A_RUN:
        base.pop(of_a_run, None)
    return ByTaskCfg(**common, base=base, columns=[column], shared=shared, lateral=lateral)


@torch.no_grad()
def grow(student: Student, column: int, shared: int, lateral: bool) -> ByTaskStudent:
    """Return a student with a part more, which begins as a copy of the part that acts there now, the first one.

    Args:
        student: Any, or one that has parts already; it is not changed.
        column: Column of its observations that is 1 while the new part's task runs.
        shared: Hidden layers that parts share, where it has no parts yet.
        lateral: Whether parts read the layers of those before them, where it has no parts yet.
    """
    cfg = by_task_cfg(student, column, shared, lateral)
    grown = ByTaskStudent(cfg, student.num_obs, student.num_actions)
    grown.normalizer.load_state_dict(student.normalizer.state_dict())
    if isinstance(student, ByTaskStudent):
        front, parts = student.front, student.parts
    else:
        hidden = nn.ModuleList(hidden_layers(student))
        front, parts = hidden[:shared], [(hidden[shared:], student, nn.ModuleList())]
    grown.front.load_state_dict(front.state_dict())
    for (layers, heads, laterals), (from_layers, from_heads, from_laterals) in zip(
        grown.parts, [*parts, parts[0]], strict=True
    ):
        layers.load_state_dict(from_layers.state_dict())
        if len(from_laterals):
            laterals.load_state_dict(from_laterals.state_dict())
        _copy_heads(heads, from_heads)
    return grown.to(student.mean.weight.device)


def _copy_heads(heads: Heads, source: Heads) -> None:
    for own, theirs in ((heads.mean, source.mean), (heads.log_std, source.log_std), (heads.value, source.value)):
        if isinstance(own, nn.Linear) and isinstance(theirs, nn.Linear):
            own.load_state_dict(theirs.state_dict())
        elif isinstance(own, nn.Parameter) and isinstance(theirs, nn.Parameter):
            own.copy_(theirs)


# -- helpers ----------------------------------------------------------------------------------------------------------


def _dense_of(layers: nn.ModuleList) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _memory_of(layers: nn.ModuleList) -> int:
    return sum(layer.state_size for layer in layers if isinstance(layer, MemoryLayer))


def _merged(acts: torch.Tensor, new: PolicyOutput, old: PolicyOutput) -> PolicyOutput:
    """Return one output where ``acts``, shape (...), and the other elsewhere."""
    where = acts.unsqueeze(-1)
    return map_output(lambda one, other: torch.where(where, one, other), new, old)


def _list_lateral(
    layers: Layers, x: str, laterals: nn.ModuleList, before: list[list[str]], depth: int, name: str
) -> str:
    """Append the connection from earlier columns to a dense layer whose result is ``x``; return the sum."""
    if not len(laterals):
        return x
    given = [column[depth] for column in before]
    both = given[0] if len(given) == 1 else layers.concatenate(tuple(given), f"{name}.others")
    lateral = laterals[depth]
    assert isinstance(lateral, nn.Linear)
    other = layers.dense(both, f"{name}.lateral", lateral)
    return layers.add(Add(name=f"{name}.sum", inputs=(x, other), shape=layers.shape(x)))


def _list_gate(layers: Layers, column: int, name: str) -> str:
    """Append a number that is 1 where a column of the observation is above 0.5, else 0."""
    x = layers.columns(OBS, f"{name}.column", column, (1,))
    steep = 2.0**24  # the next number above 0.5 is 2^-24 more
    return layers.clamp(layers.scale(x, f"{name}.steep", steep, -0.5 * steep), f"{name}.gate", 0.0, 1.0)


def _list_choice(layers: Layers, gate: str, on: str, off: str, name: str) -> str:
    """Append layers that let ``on`` through where the gate is 1, and ``off`` where it is 0.

    They are plain ones, so that every format has them: each value's positive and negative part, less a large number
    where the other value is chosen, goes through ReLU. What is chosen comes through exactly: zeros are added to it.
    """
    size = layers.size(on)
    one = torch.eye(size)
    zero = torch.zeros(size, size)
    ones = torch.ones(size, 1)
    none = torch.zeros(size, 1)
    masks = [
        layers.scale(gate, f"{name}.when_on", LARGE, -LARGE),
        layers.scale(gate, f"{name}.when_off", -LARGE, 0.0),
    ]
    x = layers.concatenate((on, off, *masks), f"{name}.both")
    parts = [[one, zero, ones, none], [-one, zero, ones, none], [zero, one, none, ones], [zero, -one, none, ones]]
    weight = torch.cat([torch.cat(part, dim=1) for part in parts])
    shape = (4 * size,)
    x = layers.add(Dense(name=f"{name}.split", inputs=(x,), shape=shape, weight=weight, bias=torch.zeros(4 * size)))
    x = layers.add(Activation(name=f"{name}.let_through", inputs=(x,), shape=shape, function="relu"))
    weight = torch.cat([one, -one, one, -one], dim=1)
    return layers.add(Dense(name=f"{name}.chosen", inputs=(x,), shape=(size,), weight=weight, bias=torch.zeros(size)))
