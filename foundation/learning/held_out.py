"""Loss and action error on transitions that are held out of the training, or not yet learned from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

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
        ``held_out_loss`` as the learner adds its terms up, each term where there are several, ``action_rmse``
        [action units], and the error of each column that is predicted, in its unit (``predict_rmse/NAME [UNIT]``).
    """
    terms, square, columns = _measure(learner, _whole_pass(dataset, learner.sequence_length), epoch)
    weights = dict(zip(terms, learner.objective.term_weights(epoch), strict=True))
    loss = sum(weight * terms[name] for name, weight in weights.items())
    return {"held_out_loss": loss, "action_rmse": math.sqrt(square)} | (terms if len(terms) > 1 else {}) | columns


@torch.no_grad()
def unseen_terms(learner: Learner, dataset: DistillationDataset, chunks: Sequence[int], epoch: int) -> dict[str, float]:
    """Measure the student that would be saved on new transitions, before it learns from them.

    Args:
        learner: Its policy is measured, by its losses.
        dataset: Holds the transitions.
        chunks: Places of the chunks that the epoch has collected; of many the last ones.
        epoch: Counted from 0, for schedules of the losses.

    Returns:
        Each term, unweighted, and the error of each column that is predicted, in its unit.
    """
    most = max(1, BATCH_ROWS // (dataset.num_envs * dataset.chunk_steps))
    learner.objective.fit_standardiser(dataset, epoch, learner.policies)
    device = next(learner.policy.parameters()).device
    # Losses that draw labels take no random numbers from the run's generator: measuring changes nothing.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        terms, _, columns = _measure(learner, dataset.chunk_batches(chunks[-most:]), epoch)
        return terms | columns


def _measure(
    learner: Learner, batches: Iterable[Batch], epoch: int
) -> tuple[dict[str, float], float, dict[str, float]]:
    """Return each term's mean, that of the squared action error, and the error of each predicted column."""
    objective = learner.objective
    params = objective.loss_params(epoch)
    policy = learner.policy
    names = [term.name for term in objective.terms]
    device = next(policy.parameters()).device
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    total = torch.zeros((), device=device)
    predicted = torch.zeros(len(objective.estimate_names), dtype=torch.float64, device=device)
    for batch in batches:
        output = objective.outputs(policy, batch)
        weights = objective.weights(batch)
        weights = torch.ones(batch.obs.shape[:-1], device=device) if weights is None else weights
        values = objective.per_sample(output, batch.targets, params)
        values.append((output.mean - batch.targets.mean).square().mean(-1))
        sums += torch.stack([(value * weights).sum() for value in values]).double()
        total += weights.sum()
        if objective.estimate_names and batch.targets.estimate is not None:
            error = objective.estimate(output) - batch.targets.estimate
            predicted += (error.square() * weights.unsqueeze(-1)).flatten(0, -2).sum(0).double()
    for part in (sums, total, predicted):
        learner.ranks.sum_(part)
    *means, square = (sums / total.clamp_min(1e-8)).tolist()
    errors = (predicted / total.clamp_min(1e-8)).sqrt().tolist()
    columns = {f"predict_rmse/{name}": error for name, error in zip(objective.estimate_names, errors, strict=True)}
    return dict(zip(names, means, strict=True)), square, columns


def _whole_pass(dataset: DistillationDataset, length: int) -> Iterator[Batch]:
    """Yield every transition, or every sequence, once."""
    items = len(dataset) // length
    size = max(1, min(items, BATCH_ROWS // length, dataset.gathered_rows // length))
    draw = dataset.flat_minibatches if length == 1 else dataset.sequence_minibatches
    yield from draw(size, items // size, shuffle=False)
    if items % size:
        yield from draw(items % size, 1, shuffle=False)
