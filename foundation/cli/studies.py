"""The studies of ``play.py`` beyond a plain measurement, and the files that they leave in the policy's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from foundation.config.plain import finite, to_plain
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_json
from foundation.engines.base import VecEnv
from foundation.evaluation.robustness import measure_robustness, robustness_table
from foundation.policies.actors import Actor
from foundation.report.charts import grid
from foundation.report.pictures import robustness_charts

logger = logging.getLogger("foundation.play")

SUMMARY = "summary.json"


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
    console = Console(highlight=False)
    measured = measure_robustness(
        env, actors, typed, num_episodes, seed, poll, lambda name: logger.info("robustness: %s", name.replace("_", " "))
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
