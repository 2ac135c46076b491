"""What a distillation run takes from the task's agent configs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_teacher import TASK

from foundation.config.distillation_cfg import DistillationCfg
from foundation.rsl_rl.agent_values import choose_groups, name_experiment

OBS = {"policy": torch.zeros(2, 5), "extra": torch.zeros(2, 3), "small": torch.zeros(2, 4)}


def chosen(agent: object, *, num_obs: int, trained_on: list[str] | None = None, task: str = "none", **given: object):
    cfg = DistillationCfg(task=task)
    for name, value in given.items():
        who, _, field = name.partition("_")
        setattr(getattr(cfg, who), field, value)
    choose_groups(cfg, agent, SimpleNamespace(num_obs=num_obs, obs_groups=trained_on), OBS)
    return cfg.teacher.obs_groups, cfg.student.obs_groups


@pytest.mark.parametrize(
    ("agent", "num_obs", "trained_on", "teacher", "student"),
    [
        ({}, 5, None, ["policy"], ["policy"]),
        ({"obs_groups": {"actor": ["small"]}}, 4, None, ["small"], ["small"]),
        ({"obs_groups": {"policy": ["small"]}}, 4, None, ["small"], ["small"]),
        (
            {"obs_groups": {"teacher": ["policy", "extra"], "student": ["small"]}},
            8,
            None,
            ["policy", "extra"],
            ["small"],
        ),
        (SimpleNamespace(obs_groups={"teacher": ["policy"], "student": ["small"]}), 5, None, ["policy"], ["small"]),
        ({"obs_groups": {"teacher": ["policy"]}}, 4, ["small"], ["small"], ["policy"]),
        ({"obs_groups": {"teacher": ["policy"]}}, 5, ["small"], ["policy"], ["policy"]),
        ({"obs_groups": {"teacher": ["gone"]}}, 4, ["small"], ["small"], ["policy"]),
        ({"obs_groups": {"teacher": ["extra"]}}, 99, ["small"], ["extra"], ["policy"]),
        ({"obs_groups": object()}, 5, None, ["policy"], ["policy"]),
    ],
)
def test_groups_left_out_are_the_agent_configs(agent, num_obs, trained_on, teacher, student) -> None:
    """The agent's config comes first, then what the teacher was trained on: the first whose size fits the teacher."""
    assert chosen(agent, num_obs=num_obs, trained_on=trained_on) == (teacher, student)


def test_groups_that_were_given_stay() -> None:
    """What the user set is never replaced, whatever its size; a slice counts towards the size of what was not."""
    assert chosen({}, num_obs=1, teacher_obs_groups=["extra"], student_obs_groups=["small"]) == (["extra"], ["small"])
    agent = {"obs_groups": {"teacher": ["small"], "actor": ["policy"]}}
    assert chosen(agent, num_obs=3, teacher_obs_slice=[2, 5])[0] == ["policy"]


def test_the_tasks_own_distillation_config_is_heard() -> None:
    """``rsl_rl_distillation_cfg_entry_point`` gives the groups that the PPO config does not name."""
    assert chosen({"obs_groups": {"actor": ["small"]}}, num_obs=5, task=TASK) == (["policy"], ["policy"])


def test_an_experiment_without_a_name_has_the_agents_or_the_tasks() -> None:
    """A name that was given stays; else the agent config's; else the task's id."""
    for given, agent, name in (
        ("a", {"experiment_name": "b"}, "a"),
        (None, {"experiment_name": "b"}, "b"),
        (None, {}, "Id"),
    ):
        cfg = DistillationCfg(task="package:Id", experiment_name=given)
        name_experiment(cfg, agent)
        assert cfg.experiment_name == name
