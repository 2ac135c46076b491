"""What an evaluation's figures rest on: intervals, several seeds, and the files with their checksums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from foundation.rollout.episodes import EvaluationResult

MISSED = 3
"""Exit code of ``play.py`` where the success is below ``--min_success``."""


def wilson_interval(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """Return the confidence interval of a success rate (Wilson 1927, as in Brown, Cai and DasGupta 2001, eq. 4).

    Args:
        successes: Episodes that succeeded.
        episodes: All episodes.
        z: Quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        Lower and upper end, from 0 to 1; (0, 1) without episodes.
    """
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    spread = z * z / episodes
    centre = (rate + spread / 2.0) / (1.0 + spread)
    half = z * math.sqrt(rate * (1.0 - rate) / episodes + spread / (4.0 * episodes)) / (1.0 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def pooled(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Put the episodes of several seeds together; what one of them does not know is not known."""
    if len(results) == 1:
        return results[0]
    names = set(results[0].metrics).intersection(*(result.metrics for result in results))
    success = [result.success for result in results if result.success is not None]
    teacher = [result.teacher for result in results if result.teacher is not None]
    return EvaluationResult(
        returns=torch.cat([result.returns for result in results]),
        lengths=torch.cat([result.lengths for result in results]),
        success=torch.cat(success) if len(success) == len(results) else None,
        metrics={name: torch.cat([r.metrics[name] for r in results]) for name in results[0].metrics if name in names},
        env_steps=sum(result.env_steps for result in results),
        teacher=torch.cat(teacher) if len(teacher) == len(results) else None,
    )


def seed_figures(seeds: Sequence[int], results: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
    """Return return and success of each seed's episodes."""
    found: list[dict[str, Any]] = []
    for seed, result in zip(seeds, results, strict=True):
        rate = None if result.success is None else float(result.success.double().mean())
        found.append({"seed": seed, "mean_return": result.mean_return, "success_rate": rate})
    return found


def manifest(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return path, size [bytes] and SHA-256 of each file that is there, in the order of their paths."""
    listed = []
    for path in sorted({path.resolve() for path in files if path.is_file()}):
        data = path.read_bytes()
        listed.append({"path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return listed
