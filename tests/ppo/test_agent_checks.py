"""Numbers of an agent config with which PPO would learn nothing, or something else, without a word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from foundation.config.agent_cfg import OnPolicyRunnerCfg, PPOAlgorithmCfg
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.core.errors import UserError
from foundation.ppo.actor import std_of_entropy
from foundation.ppo.agent_checks import check_algorithm, check_networks, check_rollout
from foundation.ppo.settings import AgentSettings
from foundation.ppo.train_run import check_agent_cfg

MANY = "at most 2147483647, the largest integer of 32 bits, it is 1000000000000"
ALGORITHM = [
    ({"num_learning_epochs": 0}, "num_learning_epochs must be at least 1, it is 0"),
    ({"num_mini_batches": -1}, "num_mini_batches must be at least 1, it is -1"),
    ({"num_learning_epochs": 10**12}, "num_learning_epochs must be " + MANY),
    ({"num_mini_batches": 10**12}, "num_mini_batches must be " + MANY),
    ({"gamma": -1.0}, "gamma must be from 0 to 1, it is -1"),
    ({"lam": 2.0}, "lam must be from 0 to 1, it is 2"),
    ({"clip_param": 0.0}, "clip_param must be above 0, it is 0"),
    ({"desired_kl": -0.1}, "desired_kl must be above 0, it is -0.1"),
    ({"desired_kl": 0.0}, "desired_kl must be above 0, it is 0"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0, it is 0"),
    ({"value_loss_coef": -1.0}, "value_loss_coef must be a finite number, 0 or more, it is -1"),
    ({"entropy_coef": float("inf")}, "entropy_coef must be a finite number, it is inf"),
    ({"learning_rate": 0.0}, "learning_rate must be positive and finite, it is 0"),
    ({"schedule": "adaptve"}, "schedule is 'adaptve'. Did you mean 'adaptive'?"),
]


@pytest.mark.parametrize(("values", "says"), ALGORITHM)
def test_train_and_finetune_refuse_the_same_numbers(values: dict[str, Any], says: str) -> None:
    """Whichever command runs PPO: the key, what it must be and what it is."""
    cfg = OnPolicyRunnerCfg(algorithm=PPOAlgorithmCfg(**values))
    with pytest.raises(UserError) as trained:
        check_agent_cfg(cfg)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError) as tuned:
        AgentSettings.read(cfg, FinetuneCfg())
    assert str(trained.value) == str(tuned.value) == f"agent.algorithm.{says}"


def test_the_defaults_and_the_limits_pass() -> None:
    """What RSL-RL takes as off or as no bound is no mistake."""
    check_algorithm(PPOAlgorithmCfg())
    check_algorithm({"gamma": 1.0, "lam": 0.0, "clip_param": float("inf"), "max_grad_norm": None, "desired_kl": None})
    check_networks(OnPolicyRunnerCfg())
    check_networks({"actor": {"hidden_dims": [-1, 8]}, "policy": {"actor_hidden_dims": (8,), "init_noise_std": 1.0}})


NETWORKS = [
    ({"actor": {"hidden_dims": []}}, "agent.actor.hidden_dims is []"),
    ({"critic": SimpleNamespace(hidden_dims=[8, 0])}, "agent.critic.hidden_dims is [8, 0]"),
    ({"policy": {"critic_hidden_dims": [-2]}}, "agent.policy.critic_hidden_dims is [-2]"),
    ({"actor": {"distribution_cfg": {"init_std": 0.0}}}, "agent.actor.distribution_cfg.init_std is 0"),
    ({"policy": {"init_noise_std": -1.0}}, "agent.policy.init_noise_std is -1"),
]


@pytest.mark.parametrize(("agent", "says"), NETWORKS)
def test_a_network_of_no_size_and_a_std_that_is_none_are_refused(agent: dict[str, Any], says: str) -> None:
    """In each of RSL-RL's layouts, which build such a layer or clamp such a number in silence."""
    with pytest.raises(UserError) as error:
        check_networks(agent)
    assert str(error.value).startswith(says)


def test_a_rollout_has_at_least_as_many_transitions_as_minibatches() -> None:
    """3 steps in 2 environments are 6 minibatches at most, and must fit into memory."""
    check_rollout({"num_mini_batches": 6}, 3, 2, 4, "cpu")
    with pytest.raises(UserError, match=r"num_mini_batches is 7: it must be at most 6, the transitions of a rollout"):
        check_rollout({"num_mini_batches": 7}, 3, 2, 4, "cpu")
    with pytest.raises(UserError, match="would take at least"):
        check_rollout({}, 2**50, 2, 4, "cpu")


@pytest.mark.parametrize("steps", [0, -1])
def test_a_rollout_without_steps_is_refused(steps: int) -> None:
    """``agent.num_steps_per_env`` of 0 is not taken for the default."""
    with pytest.raises(UserError, match=f"agent.num_steps_per_env must be at least 1, it is {steps}"):
        AgentSettings.read(OnPolicyRunnerCfg(num_steps_per_env=steps), FinetuneCfg())


@pytest.mark.parametrize(("name", "value"), [("num_eval_episodes", 0), ("eval_interval", -1)])
def test_train_names_the_key_of_its_evaluations(name: str, value: int) -> None:
    """And not ``--num_envs``, which the user has not typed."""
    with pytest.raises(UserError, match=f"agent.{name} must be at least"):
        check_agent_cfg(OnPolicyRunnerCfg(**{name: value}))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["num_steps_per_env", "max_iterations", "num_eval_episodes"])
def test_train_refuses_work_without_an_end(name: str) -> None:
    """An integer of more than 32 bits; intervals may be longer than any run."""
    check_agent_cfg(OnPolicyRunnerCfg(save_interval=10**12, eval_interval=10**12))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=f"agent.{name} must be at most 2147483647, .* it is 1000000000000$"):
        check_agent_cfg(OnPolicyRunnerCfg(**{name: 10**12}))  # pyright: ignore[reportArgumentType]


def test_an_entropy_beyond_any_std_is_infinite_and_no_traceback() -> None:
    """exp(1e20) is no number; whoever sets the std refuses infinity and zero."""
    assert std_of_entropy(1e20, 4) == float("inf")
    assert std_of_entropy(-1e20, 4) == 0.0
