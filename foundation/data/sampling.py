"""Drawing row numbers without replacement, at a cost that does not grow with the dataset."""

from __future__ import annotations

import torch

NARROW = 1024
"""Rows in a stratum below which single precision chooses among them."""


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
        # float64 holds row numbers exactly, and is several times faster here than integers are. Where strata are
        # narrow the 24 bits of a float32 are more than enough to choose within one.
        kind = torch.float32 if num_rows < NARROW * rest else torch.float64
        edges = torch.arange(rest + 1, device=device, dtype=torch.float64).mul_(num_rows).div_(rest).floor_()
        low, width = edges[:-1], edges[1:] - edges[:-1]
        picked = torch.rand(rest, generator=generator, device=device, dtype=kind).mul(width).floor_()
        torch.minimum(picked, width.sub_(1.0), out=picked)
        picked.add_(low).add_(torch.randint(num_rows, (1,), generator=generator, device=device))
        picked.sub_((picked >= num_rows) * float(num_rows))
        order = torch.randperm(rest, generator=generator, device=device, dtype=torch.int32)
        parts.append(picked.index_select(0, order).long())
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
