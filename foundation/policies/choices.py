"""Discrete actions: several choices side by side, each with its own scores.

The scores, Q-values or logits, of all choices lie next to each other. A policy of one discrete action has one part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

NumChoices = int | list[int] | None
"""Choices of a discrete action, or of each of several; None where actions are continuous."""


def sizes_of(num_choices: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the number of choices of each discrete action; empty where actions are continuous."""
    if num_choices is None:
        return ()
    return (num_choices,) if isinstance(num_choices, int) else tuple(num_choices)


def num_choices_of(sizes: Sequence[int]) -> NumChoices:
    """Return sizes as configs write them: one number where there is one action, None where there is none."""
    if not sizes:
        return None
    return sizes[0] if len(sizes) == 1 else list(sizes)


def parts_of(scores: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return the scores of each action.

    Args:
        scores: Shape: (..., sum of sizes).
        sizes: Choices of each action; fewer than two: it is one action.

    Returns:
        Shape of each: (..., size).
    """
    return scores.split(list(sizes), dim=-1) if len(sizes) > 1 else (scores,)


def best_choices(scores: torch.Tensor, sizes: Sequence[int] = ()) -> torch.Tensor:
    """Return the index of each action's best choice, as floats. Shape: (..., sum of sizes) to (..., num_actions)."""
    best = [part.argmax(dim=-1, keepdim=True) for part in parts_of(scores, sizes)]
    return (best[0] if len(best) == 1 else torch.cat(best, dim=-1)).to(scores.dtype)


def draw_choices(logits: torch.Tensor, sizes: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
    """Draw each action's choice from its own distribution. Shape: (..., sum of sizes) to (..., num_actions)."""
    drawn = []
    for part in parts_of(logits, sizes):
        flat = part.reshape(-1, part.shape[-1]).softmax(dim=-1)
        drawn.append(torch.multinomial(flat, 1, generator=generator).reshape(*logits.shape[:-1], 1))
    return (drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=-1)).to(logits.dtype)


def random_choices(uniform: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return choices of numbers that were drawn uniformly from [0, 1). Shape: (..., num_actions) to the same."""
    counts = torch.tensor(sizes, dtype=uniform.dtype, device=uniform.device)
    return (uniform * counts).floor().minimum(counts - 1.0)
