"""Every kind of student, and what it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks import ours
from benchmarks.race import Bench

PRESET = {"experiment": "fast_gru", "student": "gru"}
KINDS: dict[str, dict[str, Any]] = {
    "mlp 64-64": {},
    "mlp 256-256": {"student.hidden_dims": [256, 256], "learning_rate": 5e-3},
    "gru 16": PRESET,
    "gru 64": {**PRESET, "student.hidden_size": 64, "student.encoder_dims": [64], "learning_rate": 5e-3},
    "lstm 16": {**PRESET, "student": "lstm"},
    "history 8": {**PRESET, "student": "history"},
    "tcn": {**PRESET, "student": "tcn", "learning_rate": 1e-2},
}
"""Students and what they change of ``experiment=fast``."""


def kinds(bench: Bench, seeds: Sequence[int], epochs: int) -> list[dict[str, Any]]:
    """Train every kind of student on about the same number of transitions and measure what it ends with.

    Args:
        bench: Where.
        seeds: Seeds.
        epochs: Epochs of a run, twice as many without memory; the step size has fallen to a hundredth by its end.
    """
    rows = []
    for name, values in KINDS.items():
        # An epoch of the presets with memory has twice the steps: as much data for all.
        length = epochs if "experiment" in values else 2 * epochs
        for seed in seeds:
            trace = ours.train({**values, "n_epochs": length}, bench.teacher, bench.device, seed, math.inf, name)
            last = trace.snapshots[-1]
            obs = bench.score.env.get_observations()
            actor = ours.actor(last.weights, obs["deployable"].shape[-1], 4, bench.device, values)
            measured = bench.score.measure(actor)
            rows.append(
                {
                    "kind": name,
                    "seed": seed,
                    "parameters": sum(p.numel() for p in actor.policy.parameters()),  # type: ignore[attr-defined]
                    "cpu_seconds": last.cpu,
                    "env_steps": last.env_steps,
                    "return_ratio": measured["mean_return"] / bench.score.mean_return,
                    **measured,
                }
            )
            bench.report(f"{name} seed {seed}: {100 * rows[-1]['return_ratio']:.2f} % in {last.cpu:.1f} CPU s")
    return rows
