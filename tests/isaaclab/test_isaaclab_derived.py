"""Groups that are made for the student, in Isaac Lab: terms by the manager's names, and the teacher untouched."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from foundation.config.derived_cfg import DerivedObsCfg
from foundation.core.errors import UserError
from foundation.engines.derived_groups import DerivedGroups

TASK = "Toy-Lift-Manager"
OURS = "Isaac-Quadcopter-Point-Ctrl-v0"


@pytest.fixture(autouse=True)
def _registered() -> None:
    importlib.import_module("toy_tasks")


def _roll(env: Any, groups: list[str] | None = None) -> list[torch.Tensor]:
    """Return every observation of some groups (None: all), every reward and end of 40 steps."""
    obs = env.reset(5)
    names = groups or [str(name) for name in obs.keys()]  # noqa: SIM118  # a TensorDict's
    generator = torch.Generator().manual_seed(2)
    seen = [obs[name].clone() for name in names]
    for _ in range(40):
        obs, rewards, dones, _ = env.step(torch.rand(env.num_envs, env.num_actions, generator=generator) * 2 - 1)
        seen += [*(obs[name].clone() for name in names), rewards.clone(), dones.clone().bool()]
    return seen


@pytest.mark.parametrize("task", [TASK, OURS])
def test_the_environment_is_untouched_to_the_bit(task, open_environment):
    """Whatever the student's corruption, every group of the environment, its noise too, is the same bits."""
    settings = DerivedObsCfg(from_="policy", noise=0.5, dropout=0.5, quantise=0.1, delay=2, history=3)
    with open_environment("isaaclab", task, episode_length_s=0.3) as env:
        groups = [str(name) for name in env.get_observations().keys()]  # noqa: SIM118  # a TensorDict's
        plain = _roll(env)
    with open_environment("isaaclab", task, episode_length_s=0.3) as env:
        derived = _roll(DerivedGroups(env, {"student": settings}, task), groups)
    assert len(plain) == len(derived)
    assert all(torch.equal(one, other) for one, other in zip(plain, derived, strict=True))


def test_terms_have_the_managers_names(open_environment):
    """Each active term of a manager-based task can be dropped by its name; one that is not there is named."""
    with open_environment("isaaclab", TASK) as env:
        manager = env.unwrapped.observation_manager
        names = list(manager.active_terms["teacher"])
        sizes = [shape[0] for shape in manager.group_obs_term_dim["teacher"]]
        wrapped = DerivedGroups(env, {"student": DerivedObsCfg(from_="teacher", drop=[names[0]])}, TASK)
        obs = wrapped.reset(0)
        assert torch.equal(obs["student"], obs["teacher"][:, sizes[0] :])
        assert [term.name for term in wrapped.derived_groups["student"].terms] == names[1:]
        with pytest.raises(UserError, match=f"no term '{names[0]}x' in teacher. Did you mean '{names[0]}'"):
            DerivedGroups(env, {"student": DerivedObsCfg(from_="teacher", drop=[f"{names[0]}x"])}, TASK)
