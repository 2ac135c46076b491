"""The studies of ``play.py`` beyond a plain measurement, and the files that they leave in the policy's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.config.plain import finite, to_plain
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_json
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.engines.observation_terms import observation_terms
from foundation.evaluation.report_table import table_console
from foundation.evaluation.robustness import measure_robustness, robustness_table
from foundation.evaluation.similarity import (
    fifths,
    measure_similarity,
    measure_snapshot,
    similarity_table,
    snapshot_table,
)
from foundation.export.efficiency import efficiency_figures
from foundation.policies.actors import Actor, PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.policy_network import PolicyNetwork
from foundation.report.charts import grid
from foundation.report.pictures import robustness_charts
from foundation.teachers import TeacherPolicyWrapper

logger = logging.getLogger("foundation.play")

SUMMARY = "summary.json"
MAX_DIGITS = 10
"""Of an epoch in a checkpoint's name."""


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the summary of a run; an empty one where there is none.

    Raises:
        UserError: If it cannot be read: a study would have no place to put its figures.
    """
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        values = load_json(path)
    except UserError as error:
        raise UserError(f"{error} Mend or remove it: the study's figures belong into it") from error
    if not isinstance(values, dict):
        raise UserError(f"'{path}' does not hold a mapping of names to figures. Mend or remove it")
    return values


def add_to_summary(folder: Path, name: str, figures: object) -> None:
    """Put a study's figures into the summary of a run, if it has one."""
    summary = read_summary(folder)
    if summary:
        write_json(folder / SUMMARY, summary | {name: figures})


def write_json(path: Path, figures: object) -> None:
    """Write figures, whole or not at all; what is not finite becomes null."""
    atomic_write_bytes(path, (json.dumps(finite(to_plain(figures)), indent=2) + "\n").encode())


def study_robustness(
    env: VecEnv,
    actors: Mapping[str, Actor],
    typed: Sequence[str],
    num_episodes: int,
    seed: int,
    folder: Path,
    poll: Callable[[], None],
) -> dict[str, Any]:
    """Measure robustness, show the table, and leave ``robustness.json`` and ``robustness.svg``.

    Args:
        env: The environment.
        actors: Policies by name.
        typed: Quantities that were asked for; none: all.
        num_episodes: Episodes of each policy at each value.
        seed: Seed of the episodes.
        folder: Where the files go.
        poll: Called every few env steps; may raise to stop.

    Returns:
        Worst case and area under the curve, as ``summary.json`` has them.
    """
    console = table_console()
    measured = measure_robustness(
        env, actors, typed, num_episodes, seed, poll, lambda what: logger.info("robustness: %s", what)
    )
    console.print(robustness_table(measured))
    if measured.lacking():
        print(measured.lacking())
    summary = measured.summary()
    plain = finite(to_plain(measured))
    write_json(folder / "robustness.json", plain)
    atomic_write_bytes(folder / "robustness.svg", grid(robustness_charts(plain), 2).encode())
    print(f"Curves: {folder / 'robustness.svg'}, figures: {folder / 'robustness.json'}")
    add_to_summary(folder, "robustness", summary)
    return summary


def study_similarity(
    env: VecEnv,
    teacher: PolicyActor,
    student: PolicyActor,
    task: str,
    num_episodes: int,
    seed: int,
    bound: float | None,
    folder: Path,
    poll: Callable[[], None],
    earlier: Mapping[int, Path] | None = None,
) -> dict[str, Any]:
    """Compare student and teacher, show the table, and leave ``similarity.json``.

    Args:
        env: The environment.
        teacher: The teacher.
        student: The student.
        task: Its gym id, which says what the observations are.
        num_episodes: Episodes of each.
        seed: Seed of the episodes.
        bound: Actions are clipped to it before they are compared; None: they are not.
        folder: Where the file goes.
        poll: Called every few env steps; may raise to stop.
        earlier: Epoch -> checkpoint of the student at it, for the course of the training; those nearest to its fifths
            are read.

    Returns:
        The figures by whose states they are on, as ``summary.json`` has them.
    """
    names = observation_names(env, task, student.selector)
    discrete = EnvCapabilities.of(env).action_choices is not None
    found = measure_similarity(env, teacher, student, names, num_episodes, seed, bound, discrete, poll)
    table_console().print(similarity_table(found))
    snapshots = []
    for epoch in fifths([*(earlier or {})]):
        assert earlier is not None
        logger.info("similarity: the student of epoch %d", epoch)
        then = PolicyActor(TeacherPolicyWrapper(earlier[epoch], str(env.device)), student.selector)
        snapshots.append(measure_snapshot(env, teacher, then, epoch, num_episodes, seed, bound, discrete, poll))
    if snapshots:
        table_console().print(snapshot_table(snapshots))
    figures = {"episodes": num_episodes, "seed": seed, "states": found, "training": snapshots}
    write_json(folder / "similarity.json", figures)
    print(f"Similarity: {folder / 'similarity.json'}")
    summary = {one.states: one.figures for one in found}
    add_to_summary(folder, "similarity", summary)
    return summary


def study_efficiency(actors: Mapping[str, Actor], num_envs: int, folder: Path) -> dict[str, Any]:
    """Return the cost of each policy at batch 1 and at the run's batch, and put it into the summary.

    Args:
        actors: Policies by name; those that are no networks are left out.
        num_envs: The run's batch.
        folder: The run's.
    """
    found: dict[str, Any] = {}
    for name, actor in actors.items():
        network = getattr(getattr(actor, "policy", None), "policy", None)
        if isinstance(network, PolicyNetwork):
            found[name] = efficiency_figures(network, [1, num_envs])
    if found:
        add_to_summary(folder, "efficiency", found)
    return found


def kept_epochs(folder: Path) -> dict[int, Path]:
    """Return the checkpoints that a run has kept of its training, by their epochs."""
    found = {}
    for path in folder.glob("checkpoint_epoch_*.pt"):
        epoch = path.stem.removeprefix("checkpoint_epoch_")
        if epoch.isascii() and epoch.isdigit() and len(epoch) < MAX_DIGITS:
            found[int(epoch)] = path
    return found


_AXES = "xyz"


def observation_names(env: VecEnv, task: str, selector: ObsSelector) -> list[str]:
    """Name the columns that a policy reads, with their units, as far as environment or task say what they are.

    Args:
        env: The environment.
        task: Its gym id.
        selector: Selects the columns.
    """
    terms = observation_terms(env, task, env.get_observations())
    names: list[str] = []
    for group in selector.groups:
        if group not in terms:
            return []
        for field in terms[group]:
            unit = f" [{field.unit}]" if field.unit else ""
            axes = list(_AXES) if field.size == len(_AXES) else range(field.size)
            parts = [""] if field.size == 1 else [f" {axis}" for axis in axes]
            names += [f"{field.name.replace('_', ' ')}{part}{unit}" for part in parts]
    return names if selector.obs_slice is None else names[slice(*selector.obs_slice)]
