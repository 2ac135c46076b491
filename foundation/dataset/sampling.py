"""Draw transitions without replacement, at a cost that does not grow with the dataset."""

from __future__ import annotations

import torch

NARROW = 1024
"""Indices in a stratum below which single precision chooses among them."""
CACHED = 32768
"""Indices that are drawn at once on a CPU: what stays in its cache."""


def draw_without_replacement(
    num_items: int, num_draws: int, generator: torch.Generator, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Draw indices uniformly, none twice before all have been drawn.

    Whole passes are permutations. The rest is drawn from ``k`` strata of (nearly) equal width under a random
    rotation: every index has the same probability, none comes twice, and the cost is O(k), not O(num_items).

    Args:
        num_items: Transitions, or sequences, to draw from, at least 1.
        num_draws: How many to draw.
        generator: Source of randomness, on ``device``.
        device: Where the result lives.

    Returns:
        Indices in random order. Shape: (num_draws,).
    """
    passes, rest = divmod(num_draws, num_items)
    parts = [torch.randperm(num_items, generator=generator, device=device) for _ in range(passes)]
    if rest:
        edges = torch.arange(rest + 1, device=device, dtype=torch.int64) * num_items // rest
        low = edges[:-1]
        width = edges[1:] - edges[:-1]
        uniform = torch.rand(rest, generator=generator, device=device, dtype=torch.float64)
        picked = low + torch.minimum((uniform * width).long(), width - 1)
        rotation = torch.randint(num_items, (1,), generator=generator, device=device)
        order = torch.randperm(rest, generator=generator, device=device)
        parts.append(((picked + rotation) % num_items)[order])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def draw_minibatches(
    num_items: int, num_batches: int, batch_size: int, generator: torch.Generator, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Draw the indices of batches uniformly, none twice before all have been drawn.

    Where there are more indices than draws, they are cut into strata of (nearly) equal width under a random rotation,
    one draw from each, and every ``num_batches`` neighbours among them into a group. Each batch takes one stratum
    of every group, by a shift that is random for each group: it is spread over all of them, and any two of different
    groups come together as often as by chance. Its indices rise, which memory likes.

    Args:
        num_items: Transitions, or sequences, to draw from, at least 1.
        num_batches: How many batches.
        batch_size: Indices in each.
        generator: Source of randomness, on ``device``.
        device: Where the result lives.

    Returns:
        Indices. Shape: (num_batches, batch_size).
    """
    draws = num_batches * batch_size
    if draws >= num_items:
        return draw_without_replacement(num_items, draws, generator, device).view(num_batches, batch_size)
    options = {"generator": generator, "device": device}
    rotation = torch.randint(num_items, (1,), **options)
    shift = torch.randint(num_batches, (batch_size,), **options).double()
    first = torch.arange(batch_size, device=device, dtype=torch.float64).mul_(num_batches)
    # Where strata are narrow the 24 bits of a float32 are more than enough to choose within one.
    kind = torch.float32 if num_items < NARROW * draws else torch.float64
    index = torch.empty(num_batches, batch_size, dtype=torch.int64, device=device)
    # A little more than the width of a stratum, so that the last one ends with the last index.
    spacing = num_items / draws * (1.0 + 2.0**-50)
    together = max(1, CACHED // batch_size) if index.device.type == "cpu" else num_batches
    for start in range(0, num_batches, together):
        number = torch.arange(start, min(num_batches, start + together), device=device, dtype=torch.float64)
        stratum = number.unsqueeze(1) + shift
        stratum.sub_((stratum >= num_batches).double().mul_(num_batches)).add_(first)
        # float64 holds indices exactly, and is several times faster here than integers are.
        low = (stratum * spacing).floor_()
        width = stratum.add_(1.0).mul_(spacing).floor_().sub_(low)
        row = torch.rand(low.shape, dtype=kind, **options).mul(width).floor_()
        torch.minimum(row, width.sub_(1.0), out=row)
        row.add_(low).add_(rotation)
        row.sub_((row >= num_items).double().mul_(num_items))
        index[start : start + len(row)] = row
    return index


class ActiveDraws:
    """Numbers what can be drawn of the environments that are learned from, chunk by chunk.

    Args:
        active: How often each environment of each chunk is there; 0 is not at all. Shape: (num_chunks, num_envs).
        per_env: Transitions, or sequences, that an environment has in a chunk, numbered by chunk, time and environment.
    """

    def __init__(self, active: torch.Tensor, per_env: int):
        self.num_envs = active.shape[1]
        self.per_env = per_env
        times = active.flatten().long()
        self._pairs = torch.arange(len(times), device=times.device).repeat_interleave(times)

    def __len__(self) -> int:
        return len(self._pairs) * self.per_env

    def indices(self, index: torch.Tensor) -> torch.Tensor:
        """Return the dataset's indices of some active ones, themselves numbered from 0 to ``len(self) - 1``."""
        pair = self._pairs[index // self.per_env]
        item = index % self.per_env
        return (pair // self.num_envs * self.per_env + item) * self.num_envs + pair % self.num_envs
