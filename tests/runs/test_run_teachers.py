"""Whose rows a run of many teachers draws how often."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import DistillationCfg
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.episodes import CollectionStats
from foundation.runs.run_teachers import RunTeachers
from foundation.teachers.assignment import BY_TEACHER

NAMES = ["a", "b", "c"]
RETURNS = torch.tensor([9.0, 1.0, 5.0])
"""Of one episode with each of the three: b is the worst, c the second."""


class Dataset:
    """Remembers what is drawn."""

    num_envs = 6
    drawn: list[int] | None = None

    def activate(self, slots: list[int], envs: torch.Tensor) -> None:
        assert slots == [0, 1]
        self.drawn = envs.tolist()


def drawn(beta: float, **settings) -> tuple[list[int] | None, int]:
    """How often the environments of an epoch of 12 steps are drawn, and the rows that this makes."""
    cfg = DistillationCfg()
    for name, value in settings.items():
        setattr(cfg.teacher, name, value)
    teacher = SimpleNamespace(num_teachers=3, mode="per_env", names=NAMES)
    env = SimpleNamespace(num_envs=6, get_observations=lambda: TensorDict({"policy": torch.zeros(6, 1)}, [6]))
    select = ObsSelector(["policy"])
    teachers = RunTeachers(teacher, cfg, env, select, select)
    stats = CollectionStats(
        RETURNS, torch.ones(3), torch.ones(3).bool(), env_steps=12, slots=[0, 1], teacher=torch.arange(3)
    )
    stats.metrics[BY_TEACHER] = torch.full((3,), beta)
    dataset = Dataset()
    rows = teachers.collected(0, beta, stats, dataset)  # type: ignore[arg-type]
    return dataset.drawn, rows


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({}, None),
        ({"weights": {"c": 4}}, [1, 1, 4]),
        ({"num_active": 1, "selection": "worst"}, [0, 1, 0]),
        ({"num_active": 1, "selection": "worst", "emphasis": 3}, [1, 3, 1]),
        ({"num_active": 1, "selection": "worst", "emphasis": 3, "weights": {"c": 4}}, [1, 3, 4]),
        ({"num_active": 2, "selection": "worst", "emphasis": 3, "weights": {"b": 2, "c": 4}}, [1, 3, 4]),
        ({"num_active": 2, "selection": "worst", "weights": {"a": 5, "b": 2}}, [0, 2, 1]),
    ],
)
def test_rows_are_drawn_as_often_as_the_larger_of_weight_and_emphasis(settings, each):
    """Environment i has teacher i % 3's share; who is not chosen, without emphasis, has none whatever its weight."""
    envs, rows = drawn(0.0, **settings)
    assert envs == (None if each is None else each * 2)
    assert rows == 12 * (3 if each is None else sum(each)) // 3


def test_nobody_is_chosen_while_the_teachers_act():
    """In teacher forcing no return of the student's is known: weights alone count."""
    chosen = {"num_active": 1, "selection": "worst"}
    assert drawn(1.0, **chosen) == (None, 12)
    assert drawn(1.0, **chosen, weights={"a": 7}) == ([7, 1, 1] * 2, 36)
