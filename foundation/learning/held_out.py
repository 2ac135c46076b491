"""Loss and action error on transitions that are held out of the training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.transition import Batch
from foundation.learning.learner import Learner

BATCH_ROWS = 16384
"""Transitions in a batch of the measurement, about."""


@torch.no_grad()
def held_out_loss(learner: Learner, dataset: DistillationDataset, epoch: int) -> dict[str, float]:
    """Measure the student that would be saved on every transition of a dataset, each once.

    Args:
        learner: Its policy is measured, by its losses.
        dataset: Transitions that it has not learned from; their weights count.
        epoch: Counted from 0, for schedules of the losses.

    Returns:
        ``held_out_loss`` as the learner adds its terms up, each term where there are several, and ``action_rmse``
        [action units].
    """
    params = learner.loss_params(epoch)
    policy = learner.policy
    names = [term.name for term in learner.terms]
    device = next(policy.parameters()).device
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    total = torch.zeros((), device=device)
    for batch in _whole_pass(dataset, learner.sequence_length):
        output = learner.outputs(policy, batch)
        weights = learner.weights(batch)
        weights = torch.ones(batch.obs.shape[:-1], device=device) if weights is None else weights
        values = learner.per_sample(output, batch.targets, params)
        values.append((output.mean - batch.targets.mean).square().mean(-1))
        sums += torch.stack([(value * weights).sum() for value in values]).double()
        total += weights.sum()
    *means, square = (sums / total.clamp_min(1e-8)).tolist()
    terms = dict(zip(names, means, strict=True))
    weights = dict(zip(names, learner.term_weights(epoch), strict=True))
    loss = sum(weight * terms[name] for name, weight in weights.items())
    return {"held_out_loss": loss, "action_rmse": math.sqrt(square)} | (terms if len(terms) > 1 else {})


def _whole_pass(dataset: DistillationDataset, length: int) -> Iterator[Batch]:
    """Yield every transition, or every sequence, once."""
    items = len(dataset) // length
    size = max(1, min(items, BATCH_ROWS // length))
    draw = dataset.flat_minibatches if length == 1 else dataset.sequence_minibatches
    yield from draw(size, items // size, shuffle=False)
    if items % size:
        yield from draw(items % size, 1, shuffle=False)
