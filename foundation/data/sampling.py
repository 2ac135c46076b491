"""Drawing row numbers without replacement, at a cost that does not grow with the dataset."""

from __future__ import annotations

import torch


def draw_without_replacement(
    num_rows: int, num_draws: int, generator: torch.Generator, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Draw row numbers uniformly, none twice before all have been drawn.

    Whole passes are permutations. The rest is drawn from ``k`` strata of (nearly) equal width under a random
    rotation: every row has the same probability, no row comes twice, and the cost is O(k), not O(num_rows).

    Args:
        num_rows: Rows to draw from, at least 1.
        num_draws: How many to draw.
        generator: Source of randomness, on ``device``.
        device: Where the result lives.

    Returns:
        Row numbers in random order. Shape: (num_draws,).
    """
    passes, rest = divmod(num_draws, num_rows)
    parts = [torch.randperm(num_rows, generator=generator, device=device) for _ in range(passes)]
    if rest:
        edges = torch.arange(rest + 1, device=device, dtype=torch.int64) * num_rows // rest
        low, width = edges[:-1], edges[1:] - edges[:-1]
        uniform = torch.rand(rest, generator=generator, device=device, dtype=torch.float64)
        picked = low + torch.minimum((uniform * width).long(), width - 1)
        rotation = torch.randint(num_rows, (1,), generator=generator, device=device)
        order = torch.randperm(rest, generator=generator, device=device)
        parts.append(((picked + rotation) % num_rows)[order])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ActiveItems:
    """Numbers the items of the environments that are learned from, chunk by chunk.

    Args:
        active: Which environments of which chunks. Shape: (num_chunks, num_envs).
        per_env: Items that an environment has in a chunk, numbered by chunk, time and environment.
    """

    def __init__(self, active: torch.Tensor, per_env: int):
        self.num_envs, self.per_env = active.shape[1], per_env
        self._pairs = active.flatten().nonzero().squeeze(-1)

    def __len__(self) -> int:
        return len(self._pairs) * self.per_env

    def items(self, index: torch.Tensor) -> torch.Tensor:
        """Return the dataset's numbers of some active items, themselves numbered from 0 to ``len(self) - 1``."""
        pair, item = self._pairs[index // self.per_env], index % self.per_env
        return (pair // self.num_envs * self.per_env + item) * self.num_envs + pair % self.num_envs
