"""Everything that exporters need to know about a policy, gathered from its checkpoint and its task."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy
import torch

from foundation.checkpoints.reading.loading import LoadedPolicy
from foundation.config.derived_cfg import DerivedGroup
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint, load_yaml
from foundation.deploy.description import Description, Field
from foundation.deploy.golden import Golden
from foundation.deploy.program import OBS, Program
from foundation.engines.observation_terms import Layout, task_layout
from foundation.export.joints import joints_of
from foundation.export.program import program_of
from foundation.policies.choices import sizes_of
from foundation.policies.info import PolicyInfo
from foundation.policies.policy_network import PolicyNetwork
from foundation.tasks import load_entry_point, resolve_task

logger = logging.getLogger(__name__)

GOLDEN_STEPS = 120
GOLDEN_ENVS = 4
_MAX_ELEMENTS = 1 << 17
"""Observations of a golden sequence: one of images is shorter."""


@runtime_checkable
class DrawsObservations(Protocol):
    """A policy whose observations are not all as its normaliser expects them: it reads images."""

    def typical_obs(self, noise: torch.Tensor) -> torch.Tensor:
        """Return observations as the environment may give them. Shape, in and out: (..., num_obs)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A policy, ready to be written in any format."""

    network: PolicyNetwork
    """The policy itself."""
    info: PolicyInfo
    """What was read about it."""
    program: Program
    """Its operations, the bound of its actions included."""
    description: Description
    """What a user of the exported file has to know."""
    golden: Golden
    """The recorded sequence that exported files are checked by."""


def make_bundle(policy: LoadedPolicy, name: str = "policy", task: str | None = None) -> Bundle:
    """Gather what is known about a policy.

    Args:
        policy: As :func:`foundation.checkpoints.load_policy` read it.
        name: Of the exported files.
        task: The task that it acts in. None: the one that its checkpoint names, if any.
    """
    info = policy.info
    network = policy.network
    path = Path(info.path)
    try:
        program = program_of(network, info.clip_actions)
    except UserError as error:
        raise UserError(f"'{path}' cannot be exported: {error}") from error
    stated = None if task is not None else _own_task(path)
    layout = task_layout(resolve_task(task)) if task is not None else layout_of(stated)
    task = task or stated
    groups = tuple(info.obs_groups or ())
    layout = {**layout, **{group: derived_fields(made) for group, made in info.derived.items()}}
    joints = joints_of(run_config(path, "env.yaml"), program.num_actions)
    if joints is not None and "actions" not in layout:
        layout["actions"] = tuple(Field(name=joint, size=1) for joint in joints.names)
    duties = [f"Observation group '{n}': {said}" for n, made in info.derived.items() for said in made.caller_duties()]
    description = Description(
        name=name,
        num_obs=program.num_obs,
        num_actions=program.num_actions,
        num_choices=tuple(info.num_choices) if isinstance(info.num_choices, list) else info.num_choices,
        state_size=program.state_size,
        observations=_observations(layout, groups, info.obs_slice, program.num_obs, path),
        actions=_actions(layout, info, program.num_actions),
        obs_groups=groups,
        obs_slice=None if info.obs_slice is None else (info.obs_slice[0], info.obs_slice[1]),
        normalized=any(operation.kind == "normalize" for operation in program.operations),
        action_clip=info.clip_actions,
        action_scale=None if joints is None else joints.scale,
        action_offset=None if joints is None else joints.offset,
        control_interval=_control_interval(path, task),
        task=task,
        format=info.format,
        architecture=_architecture(info),
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        duties=tuple(duties),
    )
    golden = record(network, info.clip_actions, program)
    return Bundle(network=network, info=info, program=program, description=description, golden=golden)


def known_fields(info: PolicyInfo, task: str | None = None) -> dict[str, tuple[Field, ...]]:
    """Return the fields of what a policy reads and gives, where its task or its checkpoint names them.

    Args:
        info: What was read about the policy.
        task: The task that it acts in. None: the one that its checkpoint names, if any.

    Returns:
        ``observations`` and ``actions``; an entry is left out where its columns have no names.

    Raises:
        UserError: If there is no such task, or it has other observations.
    """
    path = Path(info.path)
    layout = task_layout(resolve_task(task)) if task is not None else layout_of(_own_task(path))
    layout = {**layout, **{group: derived_fields(made) for group, made in info.derived.items()}}
    groups = tuple(info.obs_groups or ())
    policy = layout.get("policy", ())
    if not groups and info.num_obs == sum(field.size for field in policy):
        groups = ("policy",)  # what a teacher that names no groups is given
    found: dict[str, tuple[Field, ...]] = {}
    if groups and all(group in layout for group in groups):
        found["observations"] = _observations(layout, groups, info.obs_slice, info.num_obs, path)
    actions = _actions(layout, info, info.num_actions)
    if layout.get("actions") and sum(field.size for field in layout["actions"]) == info.num_actions:
        found["actions"] = actions
    return found


def derived_fields(group: DerivedGroup) -> tuple[Field, ...]:
    """Return the fields of a group that was made of others: each of its terms with its history."""
    names = [term.name for term in group.terms]
    steps = group.settings.history
    fields: list[Field] = []
    for term in group.terms:
        name = term.name if names.count(term.name) == 1 else f"{term.group}.{term.name}"
        size = steps * len(term.columns)
        fields.append(Field(name=name, size=size, unit=term.unit, frame=term.frame, history=steps))
    return tuple(fields)


@torch.no_grad()
def record(network: PolicyNetwork, clip: float | None, program: Program, seed: int = 0) -> Golden:
    """Return what a policy gives for observations drawn as its normaliser expects them, with resets of some envs.

    Args:
        network: The policy.
        clip: Bound of its actions.
        program: Its operations, for the moments of its normaliser.
        seed: Of the observations.
    """
    generator = numpy.random.default_rng(seed)
    steps = max(4, min(GOLDEN_STEPS, _MAX_ELEMENTS // (GOLDEN_ENVS * program.num_obs)))
    obs = generator.standard_normal((steps, GOLDEN_ENVS, program.num_obs)).astype(numpy.float32)
    for operation in program.operations:
        if operation.kind == "normalize" and operation.inputs == (OBS,):
            obs = obs / numpy.where(operation.arrays["scale"] == 0, 1, operation.arrays["scale"])
            obs = obs + operation.arrays["mean"]
    if isinstance(network, DrawsObservations):
        obs = network.typical_obs(torch.from_numpy(obs)).numpy()
    resets = generator.random((steps, GOLDEN_ENVS)) < 0.05
    resets[0] = True
    if steps > 3:
        resets[2, 0] = True
        resets[3, 1:3] = True
    obs = obs.astype(numpy.float32)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    actions: list[torch.Tensor] = []
    state = network.initial_state(GOLDEN_ENVS, device)
    for given, begins in zip(torch.from_numpy(obs), torch.from_numpy(resets), strict=True):
        state = network.reset_state(state, begins.to(device))
        output, state = network.step(given.to(device), state)
        actions.append(output.mean if clip is None else output.mean.clamp(-clip, clip))
    return Golden(obs=obs, resets=resets, actions=torch.stack(actions).float().cpu().numpy())


def _own_task(path: Path) -> str | None:
    """Return the task that a checkpoint names, None where it is of a kind that names none."""
    try:
        task = load_checkpoint(path).get("task")
    except UserError:
        return None
    return task if isinstance(task, str) else None


def layout_of(task: str | None) -> Layout:
    """Return the same of a task that a checkpoint names: it need not be known here."""
    if task is None:
        return {}
    try:
        return task_layout(resolve_task(task))
    except UserError as error:
        logger.info("The names of the observations are not known: %s", error)
        return {}


def _observations(
    layout: Layout, groups: tuple[str, ...], columns: list[int] | None, num_obs: int, path: Path
) -> tuple[Field, ...]:
    known = groups and all(group in layout for group in groups)
    if not known:
        name = groups[0] if len(groups) == 1 and columns is None else "observation"
        return (Field(name=name, size=num_obs),)
    fields = [field for group in groups for field in layout[group]]
    if columns is not None:
        fields = _cut(fields, columns[0], columns[1])
    total = sum(field.size for field in fields)
    if total != num_obs:
        raise UserError(
            f"'{path}' reads {num_obs} observations, and its groups {list(groups)} have {total} in its task: give the "
            "task that it acts in (--task), or its groups (distill.teacher.obs_groups=[...])"
        )
    return tuple(fields)


def _cut(fields: Sequence[Field], start: int, stop: int) -> list[Field]:
    """Return the fields of the columns from start to stop; one that is cut is named after the columns that are left."""
    kept: list[Field] = []
    first = 0
    for field in fields:
        low = max(start, first)
        high = min(stop, first + field.size)
        if low < high:
            whole = high - low == field.size
            name = field.name if whole else f"{field.name}[{low - first}:{high - first}]"
            kept.append(Field(name=name, size=high - low, unit=field.unit, frame=field.frame))
        first += field.size
    return kept


def _actions(layout: Layout, info: PolicyInfo, num_actions: int) -> tuple[Field, ...]:
    if info.num_choices is not None:
        sizes = sizes_of(info.num_choices)
        names = ["choice"] if len(sizes) == 1 else [f"choice.{index}" for index in range(len(sizes))]
        pairs = zip(names, sizes, strict=True)
        return tuple(Field(name=name, size=1, frame=f"index of one of {size} choices") for name, size in pairs)
    fields = tuple(layout.get("actions", ()))
    return fields if sum(field.size for field in fields) == num_actions else (Field(name="action", size=num_actions),)


def run_config(path: Path, name: str) -> dict[str, object]:
    """Return a config of the run that a checkpoint belongs to; empty where there is none.

    Args:
        path: The checkpoint.
        name: Such as ``env.yaml``.
    """
    for folder in (path.absolute().parent, path.resolve().parent, path.resolve().parent.parent):
        config = folder / "params" / name
        if config.is_file():
            values = load_yaml(config)
            return values if isinstance(values, dict) else {}
    return {}


def _control_interval(path: Path, task: str | None) -> float | None:
    """Return the time between two actions [s]: of the run's own config, else of the task's."""
    env = run_config(path, "env.yaml")
    sim = env.get("sim")
    interval = _product(sim.get("dt") if isinstance(sim, dict) else None, env.get("decimation"))
    if interval is not None or task is None:
        return interval
    try:
        cfg = load_entry_point(resolve_task(task), "env_cfg_entry_point")
    except (UserError, ImportError):  # a task of an engine that is not installed here
        return None
    return _product(getattr(getattr(cfg, "sim", None), "dt", None), getattr(cfg, "decimation", None))


def _product(dt: object, decimation: object) -> float | None:
    numbers = [value for value in (dt, decimation) if isinstance(value, int | float) and not isinstance(value, bool)]
    return float(f"{numbers[0] * numbers[1]:.9g}") if len(numbers) == 2 and min(numbers) > 0 else None


def _architecture(info: PolicyInfo) -> str:
    sizes = " -> ".join(
        str(size) for size in (info.num_obs, *info.hidden_dims, sum(sizes_of(info.num_choices)) or info.num_actions)
    )
    memory = "" if info.recurrence == "none" else f", memory: {info.recurrence}"
    return f"{info.format}: {sizes}, {info.activation}{memory}"
