"""Episodes of several processes as those of one."""

from __future__ import annotations

import torch

from foundation.core.distributed import ALONE
from foundation.rollout.episodes import CollectionStats, EvaluationResult
from foundation.rollout.on_ranks import join_episodes, on_ranks


def stats(returns: list[float], env_steps: int, log: dict[str, float], **changes: object) -> CollectionStats:
    values = torch.tensor(returns)
    fields = {"settled": values > 0.0, "success": values > 1.0, "slots": [int(env_steps)], **changes}
    return CollectionStats(values, 2.0 * values, env_steps=env_steps, log=log, **fields)


def test_episodes_of_all_follow_each_other_by_rank() -> None:
    """Episodes are joined, steps added, logs averaged by steps; chunks stay each process's own."""
    own = stats([1.0, 2.0], 30, {"a": 1.0, "b": 5.0}, metrics={"error": torch.tensor([0.5, 0.25])})
    other = stats([-3.0], 10, {"a": 3.0})
    joined = join_episodes(own, [vars(other), vars(own)])
    assert joined.returns.tolist() == [-3.0, 1.0, 2.0]
    assert joined.lengths.tolist() == [-6.0, 2.0, 4.0]
    assert joined.settled is not None and joined.settled.tolist() == [False, True, True]
    assert joined.success is not None and joined.success.tolist() == [False, False, True]
    assert joined.metrics["error"].tolist() == [0.0, 0.5, 0.25]
    assert joined.env_steps == 40 and joined.slots == [30]
    assert joined.log == {"a": 1.5, "b": 5.0}
    assert joined.teacher is None


def test_what_one_process_does_not_know_none_knows() -> None:
    """Success that one environment does not report is unknown; a part of a rollout is joined too."""
    one = EvaluationResult(torch.tensor([1.0]), torch.tensor([3.0]), None, env_steps=4)
    two = EvaluationResult(torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([True]), env_steps=5)
    joined = join_episodes(one, [vars(one), vars(two)])
    assert joined.success is None and joined.returns.tolist() == [1.0, 2.0] and joined.env_steps == 9


def test_one_process_gets_what_its_rollouts_return() -> None:
    """Nothing is copied."""
    own = stats([1.0], 1, {})
    assert on_ranks(ALONE, lambda: {"x": own})["x"] is own
