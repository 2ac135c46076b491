"""Ablation: a policy measured with one of its inputs taken away, beside the intact one on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from tensordict import TensorDict

from foundation.config.derived_cfg import DerivedObsCfg
from foundation.core.errors import UserError, suggest
from foundation.deploy.description import Field
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.engines.derived_groups import SourceColumns
from foundation.engines.observation_terms import observation_terms
from foundation.evaluation.report_table import evaluation_figures
from foundation.policies.actors import Actor
from foundation.rollout.episodes import EvaluationResult
from foundation.rollout.stepper import Observer

How = Literal["zero", "mean", "shuffled"]
EVERY = "all"
"""In the place of a name: every named term that the policy reads, or whole groups where columns have no names."""


@dataclass(frozen=True)
class Ablation:
    """An input that is taken away."""

    name: str
    """Group or term, as it is shown."""
    how: How
    """zero, mean (of the intact policy's episodes) or shuffled (another environment's, drawn anew at each step)."""
    columns: dict[str, list[int] | None]
    """Group -> columns of it; None: the whole group, which may be an image."""


class MeanObservations(Observer):
    """Average each observation group over the steps of a rollout, for the ablation ``mean``."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._steps = 0

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        self._steps += 1
        for name in map(str, obs.keys()):
            mean = obs[name].double().mean(dim=0)
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean

    def of(self, group: str) -> torch.Tensor:
        """Return the mean of a group. Shape: that of one environment's."""
        return self._sums[group] / max(1, self._steps)


class AblatedActor:
    """An actor that sees observations with an input taken away.

    Args:
        actor: Acts.
        ablation: The input.
        means: Of the intact policy's observations.
        seed: Seed of the shuffling.
    """

    def __init__(self, actor: Actor, ablation: Ablation, means: MeanObservations, seed: int):
        self.actor = actor
        self.ablation = ablation
        self.means = means
        self.generator = torch.Generator().manual_seed(seed)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        self.actor.reset(dones)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return actions. Shape: (num_envs, num_actions)."""
        order = torch.randperm(obs.batch_size[0], generator=self.generator) if self.ablation.how == "shuffled" else None
        changed = dict(obs.items())
        for group, columns in self.ablation.columns.items():
            value = obs[group]
            other = self._other(group, value, order)
            if columns is None:
                changed[group] = other
            else:
                changed[group] = value.clone()
                changed[group][:, columns] = other[:, columns]
        return self.actor.act(TensorDict(changed, batch_size=obs.batch_size, device=obs.device))

    def _other(self, group: str, value: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
        if order is not None:
            return value[order.to(value.device)]
        if self.ablation.how == "zero":
            return torch.zeros_like(value)
        return self.means.of(group).to(value.dtype).expand_as(value)


def parse_ablations(typed: Sequence[str], env: VecEnv, task: str, groups: Sequence[str]) -> list[Ablation]:
    """Read ``--ablate NAME[:zero|mean|shuffled]``.

    Args:
        typed: As they were typed. A name is a group that the policy reads, one of its terms, places of columns
            (``policy.3:6``), or ``all``.
        env: The environment, whose columns may have names.
        task: The task, which may name them too.
        groups: Groups that the policy reads.

    Raises:
        UserError: For a name that the policy does not read, or another way of ablation.
    """
    obs = env.get_observations()
    fields: dict[str, Sequence[Field]] = dict(observation_terms(env, task, obs))
    for name, group in EnvCapabilities.of(env).derived_groups.items():
        steps = group.settings.history
        fields[name] = [Field(name=term.name, size=steps * len(term.columns)) for term in group.terms]
    flat = [group for group in groups if obs[group].ndim == 2]
    found: list[Ablation] = []
    for text in typed:
        name, how = _split(text)
        if how == "shuffled" and env.num_envs < 2:
            raise UserError(f"--ablate {text}: shuffling needs two environments or more: --num_envs 2")
        names = _every(groups, fields) if name == EVERY else [name]
        found += [Ablation(own, how, _columns(own, obs, groups, flat, fields)) for own in names]
    return found


def _split(text: str) -> tuple[str, How]:
    name, colon, how = text.rpartition(":")
    if not colon or how.isdigit() or not how:  # places of columns: 3:6
        return text, "mean"
    known: dict[str, How] = {valid: valid for valid in get_args(How)}
    if how not in known:
        raise UserError(f"--ablate {text}: '{how}' is no way of ablation. {suggest(how, known)}")
    return name, known[how]


def _every(groups: Sequence[str], fields: dict[str, Sequence[Field]]) -> list[str]:
    names: list[str] = []
    for group in groups:
        named = fields.get(group)
        names += [group] if named is None else [f"{group}.{field.name}" for field in named]
    return names


def _columns(
    name: str, obs: TensorDict, groups: Sequence[str], flat: list[str], fields: dict[str, Sequence[Field]]
) -> dict[str, list[int] | None]:
    if name in groups:
        return {name: None}
    if not flat:
        raise UserError(f"--ablate {name}: the policy reads no such group. {suggest(name, groups)}")
    source = SourceColumns("--ablate", DerivedObsCfg(from_=flat), obs, fields)
    columns: dict[str, list[int] | None] = {}
    for column in source.find(name, ""):
        listed = columns.setdefault(column.group, [])
        assert listed is not None
        listed.append(column.index)
    return columns


def ablation_figures(ablation: Ablation, result: EvaluationResult, intact: EvaluationResult) -> dict[str, Any]:
    """Return what an ablated policy was measured at, and by how much that is less than the intact one's.

    Args:
        ablation: The input.
        result: Episodes without it.
        intact: Episodes of the intact policy on the same seeds.
    """
    figures = evaluation_figures(result)
    kept = {name: figures[name] for name in ("return", "return_interval_95", "success_rate", "success_interval_95")}
    change = result.mean_return - intact.mean_return
    return {"input": ablation.name, "how": ablation.how, **kept, "return_change": change}


def ablation_table(figures: Sequence[dict[str, Any]], intact: dict[str, Any]) -> Table:
    """Lay out a line for each ablation, the intact policy first.

    Args:
        figures: Of :func:`ablation_figures`.
        intact: Of :func:`foundation.evaluation.report_table.evaluation_figures`.
    """
    table = Table(title="Ablation: which inputs does the policy use?", box=box.ROUNDED, title_justify="left")
    for name in ("input", "how", "return", "change", "success"):
        table.add_column(name, no_wrap=name != "input", overflow="fold" if name == "input" else "ellipsis")
    rows = [{"input": "(intact)", "how": "", "return_change": None, **intact}, *figures]
    for row in rows:
        change = row["return_change"]
        success = row["success_rate"]
        table.add_row(
            Text(row["input"]),  # brackets of a term are no markup
            row["how"],
            f"{row['return']['mean']:.2f} ± {row['return_interval_95']:.2f}",
            "" if change is None else f"{change:+.2f}",
            "unknown" if success is None else f"{100.0 * success:.1f} %",
        )
    return table
