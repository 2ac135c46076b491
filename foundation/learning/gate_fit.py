"""Fits a gate over several teachers to what each of them earned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from foundation.config.distillation_cfg import GateCfg
from foundation.core.errors import UserError
from foundation.teachers.gate import TeacherGate

LEARNING_RATE, BATCH_ROWS, CHECKS = 1e-3, 512, 20
LEAST_ROWS = 32
"""Rows of a teacher below which nothing can be said of it."""


class GateRows(NamedTuple):
    """Steps of flights, and what followed them."""

    obs: torch.Tensor
    """The teachers' observations. Shape: (num_rows, num_obs)."""
    returns: torch.Tensor
    """Sum of the next rewards. Shape: (num_rows,)."""
    teacher: torch.Tensor
    """Who drove all the while. Shape: (num_rows,)."""
    flight: torch.Tensor
    """Number of the episode that the row is from. Shape: (num_rows,)."""


def fit_gate(
    rows: GateRows,
    names: Sequence[str],
    cfg: GateCfg,
    seed: int,
    poll: Callable[[], None] | None = None,
) -> tuple[TeacherGate, float]:
    """Regress, for each row, the output of the teacher that drove it on its standardised return.

    The squared error makes the outputs conditional means. Every teacher counts the same, however few its rows are. A
    tenth of the episodes is held out: the weights that do best there, of 20 moments, are taken.

    Args:
        rows: What to learn from.
        names: The teachers' names, in order.
        cfg: Sizes, and the number of updates.
        seed: Of weights and minibatches.
        poll: Called now and then; may raise to stop.

    Returns:
        The gate, and the share of the returns' variance that it explains in what is held out.

    Raises:
        UserError: If a teacher has next to no rows.
    """
    counts = torch.bincount(rows.teacher, minlength=len(names))
    few = [name for name, count in zip(names, counts.tolist(), strict=True) if count < LEAST_ROWS]
    if few:
        raise UserError(
            f"distill.teacher.gate: after {len(rows.obs)} steps of flight there are fewer than {LEAST_ROWS} of "
            f"'{few[0]}': raise distill.teacher.gate.episodes ({cfg.episodes}) or lower distill.teacher.gate.horizon."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = TeacherGate(rows.obs.shape[1], len(names), cfg)
    gate = gate.to(rows.obs.device)
    gate.normalizer.update(rows.obs)
    targets = (rows.returns - rows.returns.mean()) / rows.returns.std().clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    held = _held_out(rows.flight, generator)
    share = len(rows.obs) / (len(names) * counts.clamp_min(1).to(targets.dtype))
    rows = rows._replace(returns=targets)
    explained = _learn(gate, rows, share[rows.teacher], held, cfg.updates, generator, poll)
    return gate.requires_grad_(False).eval(), explained


def _held_out(flight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return which rows are of a tenth of the episodes, one at least; of a single episode all. Shape: (num_rows,)."""
    _, index = torch.unique(flight, return_inverse=True)
    number = int(index.max()) + 1
    order = torch.randperm(number, generator=generator).to(flight.device)
    return torch.isin(index, order[: max(1, number // 10)])


def _learn(
    gate: TeacherGate,
    rows: GateRows,
    share: torch.Tensor,
    held: torch.Tensor,
    updates: int,
    generator: torch.Generator,
    poll: Callable[[], None] | None,
) -> float:
    """Fit the gate in place and return the explained share of the held-out variance."""
    used = (torch.ones_like(held) if bool(held.all()) else ~held).nonzero().flatten()
    judged = held.nonzero().flatten()
    optimizer = torch.optim.Adam(gate.network.parameters(), lr=LEARNING_RATE)
    best, best_error = copy.deepcopy(gate.state_dict()), _error(gate, rows, share, judged)
    for update in range(updates):
        picked = used[torch.randint(len(used), (BATCH_ROWS,), generator=generator).to(used.device)]
        loss = _squares(gate, rows, share, picked).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (update + 1) % max(1, updates // CHECKS) == 0 or update + 1 == updates:
            if poll is not None:
                poll()
            error = _error(gate, rows, share, judged)
            if error < best_error:
                best, best_error = copy.deepcopy(gate.state_dict()), error
    gate.load_state_dict(best)
    variance = (share * (rows.returns - (share * rows.returns).mean()).square()).mean()
    return 1.0 - best_error / max(1e-12, float(variance))


def _squares(gate: TeacherGate, rows: GateRows, share: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """Return each picked row's squared error, weighted by its share. Shape: (num_picked,)."""
    predicted = gate.values(rows.obs[picked]).gather(1, rows.teacher[picked].unsqueeze(1)).squeeze(1)
    return share[picked] * (predicted - rows.returns[picked]).square()


@torch.no_grad()
def _error(gate: TeacherGate, rows: GateRows, share: torch.Tensor, picked: torch.Tensor) -> float:
    parts = [_squares(gate, rows, share, part).sum() for part in picked.split(65536)]
    return float(torch.stack(parts).sum()) / len(picked)
