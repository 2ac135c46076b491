"""Several learners whose students share layers, updated in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from foundation.dataset.dataset import DistillationDataset
from foundation.learning.learner import Learner, LearningStats


def learn_in_turns(
    learners: Mapping[str, Learner],
    datasets: Mapping[str, DistillationDataset],
    new_transitions: int,
    epoch: int,
    poll: Callable[[], None] | None = None,
) -> dict[str, LearningStats]:
    """Make the updates of all learners for one epoch, a minibatch of one after another.

    Args:
        learners: By the names of their tasks.
        datasets: What each draws from.
        new_transitions: New transitions that each learner's number of updates is in proportion to.
        epoch: Counted from 0.
        poll: Called once per update; may raise to abandon the epoch.
    """
    counts = {name: learner.num_updates(new_transitions) for name, learner in learners.items()}
    running = {
        name: learner.updates(datasets[name], new_transitions, epoch, poll) for name, learner in learners.items()
    }
    for name in turns(counts):
        next(running[name])
    learned = {}
    for name, updates in running.items():  # students leave training all at once, as they have layers in common
        try:
            next(updates)
        except StopIteration as end:
            learned[name] = end.value
    return learned


def share_moments(optimizers: Sequence[torch.optim.Optimizer], parameters: Iterable[torch.nn.Parameter]) -> None:
    """Let several optimisers have one state for the parameters that they have in common.

    With moments of its own, a task that has all but converged takes the trunk's small gradients for large ones when
    another task moves the trunk, and the two push each other away.

    Args:
        optimizers: The state is that of the first.
        parameters: In all of them.
    """
    first, *others = optimizers
    for parameter in parameters:
        state = first.state[parameter]
        for other in others:
            other.state[parameter] = state


def turns(counts: Mapping[str, int]) -> list[str]:
    """Return the order of some numbers of updates: one after another, and those that are fewer spread evenly."""
    numbered = enumerate(counts.items())
    places = [(done / count, index, name) for index, (name, count) in numbered for done in range(count)]
    return [name for _, _, name in sorted(places)]
