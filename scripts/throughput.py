"""Print how fast runs collected and learned, and what a transition of theirs takes in memory.

    python scripts/throughput.py logs/distillation/EXPERIMENT/RUN [RUN ...]

Of each run of ``distillation.py``, the medians over its epochs: env steps a second while it collected, drawing and
labelling included, and transitions a second in the minibatches while it learned. Read from TensorBoard's files, and so
of the machine that ran it and of what else ran there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.learning.learner import DEFAULT_TRANSITIONS, FEWEST_SEQUENCES
from foundation.report.event_file import Curve, read_scalars


class Throughput(NamedTuple):
    """Speed of a run."""

    collected: float
    """Env steps per second of collection."""
    learned: float
    """Transitions per second of learning."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run of distillation.py")
    return parser.read(argv)


def throughput(run: Path) -> Throughput:
    """Return a run's medians over its epochs.

    Raises:
        UserError: If the folder is not that of a run of ``distillation.py`` with an epoch in it.
    """
    scalars = read_scalars(run)
    settings = run / "params" / "distillation.yaml"
    names = ("performance/env_steps_per_second", "performance/learning_seconds", "training/updates")
    missing = next((name for name in names if name not in scalars), None)
    if missing is not None or not settings.is_file():
        raise UserError(f"'{run}' is no run of distillation.py that has learned: it has no {missing or settings.name}")
    cfg = load_yaml(settings)
    sequence = cfg.get("sequence_length") or 1
    batch = (cfg.get("batch_size") or max(DEFAULT_TRANSITIONS // sequence, FEWEST_SEQUENCES)) * sequence
    rates = [
        updates * batch / seconds
        for updates, seconds in zip(by_epoch(scalars[names[2]]), by_epoch(scalars[names[1]]), strict=True)
        if seconds > 0.0
    ]
    if not rates:
        raise UserError(f"'{run}' has learned nothing")
    return Throughput(statistics.median(scalars[names[0]].values), statistics.median(rates))


def by_epoch(curve: Curve) -> list[float]:
    """Return a curve's values in the order of their epochs."""
    return [value for _, value in sorted(zip(curve.steps, curve.values, strict=True))]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each run."""
    lines = ["| run | env steps/s collected | transitions/s learned |", "|---|---:|---:|"]
    for run in parse(argv).runs:
        found = throughput(run)
        lines.append(f"| {run.name} | {found.collected:,.0f} | {found.learned:,.0f} |")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
