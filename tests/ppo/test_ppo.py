"""Our PPO: hand-computed advantages, and RSL-RL's own algorithm as an oracle on the same batch and the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from rsl_rl.algorithms import PPO
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from toy_env import RegulatorEnv

from foundation.config.agent_cfg import PPOAlgorithmCfg
from foundation.core.errors import UserError
from foundation.policies.obs_groups import ObsSelector
from foundation.ppo.critic import ValueFunction
from foundation.ppo.ppo import (
    Ppo,
    Transitions,
    bootstrap_time_outs,
    estimate_advantages,
    surrogate_loss,
    value_loss,
)
from foundation.ppo.rollout import RolloutCollector
from foundation.students import StudentPolicy
from foundation.students.base import Student
from foundation.students.gru import GRUStudent, GRUStudentCfg
from foundation.students.history import HistoryStudent, HistoryStudentCfg
from foundation.students.mlp import MLPStudentCfg

models = pytest.importorskip("rsl_rl.models", reason="RSL-RL 3.x has no models of its own")

NUM_ENVS = 6
NUM_STEPS = 8
GROUPS = {"actor": ["policy"], "critic": ["privileged"]}
DIMS = [16, 12]


def settings(**values: Any) -> PPOAlgorithmCfg:
    """Settings in which every term and both schedules do something."""
    return PPOAlgorithmCfg(
        **{
            "num_learning_epochs": 2,
            "num_mini_batches": 3,
            "learning_rate": 3e-3,
            "entropy_coef": 0.01,
            "max_grad_norm": 1e9,
            **values,
        }
    )


def test_advantages_are_those_computed_by_hand():
    """Three steps, the second of which ends an episode: nothing crosses it (gamma = lambda = 0.5)."""
    rewards = torch.tensor([[1.0], [2.0], [3.0]])
    values = torch.tensor([[4.0], [5.0], [6.0]])
    dones = torch.tensor([[0.0], [1.0], [0.0]])
    # delta_2 = 3 + 0.5 * 8 - 6 = 1;  delta_1 = 2 - 5 = -3;  delta_0 = 1 + 0.5 * 5 - 4 = -0.5
    # A_2 = 1;  A_1 = -3;  A_0 = -0.5 + 0.25 * -3 = -1.25
    found = estimate_advantages(rewards, values, dones, torch.tensor([8.0]), 0.5, 0.5)
    assert found.squeeze().tolist() == [-1.25, -3.0, 1.0]


def test_a_time_out_is_no_failure():
    """What would have followed, by the value of the state before, is added to the reward; elsewhere nothing is."""
    found = bootstrap_time_outs(
        torch.tensor([1.0, 1.0]), torch.tensor([10.0, 10.0]), torch.tensor([1.0, 0.0]), gamma=0.9
    )
    assert found.tolist() == [10.0, 1.0]


def test_clipped_losses_are_those_computed_by_hand():
    """Ratios 2 and 0.5 with advantages 1 and -1 are cut at 1.2 and 0.8; the clipped value keeps the larger error."""
    ratio = torch.tensor([2.0, 0.5])
    loss = surrogate_loss(ratio.log(), torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2)
    assert loss.item() == pytest.approx((-1.2 + 0.8) / 2)
    values = torch.tensor([1.0])
    assert value_loss(values, torch.tensor([0.0]), torch.tensor([1.0]), None).item() == 0.0
    assert value_loss(values, torch.tensor([0.0]), torch.tensor([1.0]), 0.2).item() == pytest.approx(0.64)


class Stock:
    """RSL-RL's own PPO, with the weights of ours."""

    def __init__(self, env: RegulatorEnv, cfg: PPOAlgorithmCfg, recurrent: bool = False):
        obs = env.get_observations()
        gaussian = {"class_name": "GaussianDistribution", "init_std": 0.4, "std_type": "log"}
        options: dict[str, Any] = {"hidden_dims": DIMS, "activation": "elu"}
        actor_class = models.RNNModel if recurrent else models.MLPModel
        memory = {"rnn_type": "gru", "rnn_hidden_dim": 5, "rnn_num_layers": 1} if recurrent else {}
        self.actor = actor_class(obs, GROUPS, "actor", 2, distribution_cfg=dict(gaussian), **options, **memory)
        self.critic = models.MLPModel(obs, GROUPS, "critic", 1, **options)
        storage = RolloutStorage("rl", env.num_envs, NUM_STEPS, obs, [2], "cpu")
        known = asdict(cfg)
        for name in ("class_name", "rnd_cfg", "symmetry_cfg"):
            del known[name]
        self.ppo = PPO(self.actor, self.critic, storage, **known)

    def copy_to(self, actor: Student, critic: ValueFunction) -> None:
        """Give ours the same weights."""
        theirs = self.actor.state_dict()
        body = [name for name in theirs if name.startswith("mlp.")]
        last = max(int(name.split(".")[1]) for name in body)
        weights = {name.replace("mlp.", "body."): theirs[name] for name in body if not name.startswith(f"mlp.{last}.")}
        weights |= {"mean.weight": theirs[f"mlp.{last}.weight"], "mean.bias": theirs[f"mlp.{last}.bias"]}
        weights |= {name.replace("rnn.rnn.", "core.rnn."): theirs[name] for name in theirs if name.startswith("rnn.")}
        weights["log_std"] = theirs["distribution.log_std_param"]
        actor.load_state_dict({**actor.state_dict(), **weights})
        values = self.critic.state_dict()
        critic.load_state_dict({f"trunk.layers.{name.removeprefix('mlp.')}": values[name] for name in values})

    def rollout(self, env: RegulatorEnv) -> None:
        """Collect, as RSL-RL's runner does."""
        obs = env.get_observations()
        with torch.inference_mode():
            for _ in range(NUM_STEPS):
                actions = self.ppo.act(obs)
                obs, rewards, dones, extras = env.step(actions)
                self.ppo.process_env_step(obs, rewards, dones, extras)
            self.ppo.compute_returns(obs)


def ours(cfg: PPOAlgorithmCfg, env: RegulatorEnv, recurrent: bool = False) -> tuple[Ppo, RolloutCollector]:
    """Our PPO of the same architecture, and what collects for it."""
    if recurrent:
        options = GRUStudentCfg(encoder_dims=[], hidden_size=5, hidden_dims=DIMS, activation="elu", stochastic=True)
        actor: Student = GRUStudent(options, 2, 2)
    else:
        actor = StudentPolicy(2, 2, DIMS, "elu", stochastic=True)
    ppo = Ppo(actor, ValueFunction.fresh(3, DIMS, "elu", normalize=False), cfg)
    selectors = ObsSelector(["policy"]), ObsSelector(["privileged"])
    return ppo, RolloutCollector(env, ppo, *selectors, NUM_STEPS, random_starts=False, seed=3)


def pairs(stock: Stock, ppo: Ppo) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Each weight of RSL-RL's networks beside ours."""
    copied = Ppo(type(ppo.actor).from_cfg(ppo.actor.cfg, 2, 2), ValueFunction.fresh(3, DIMS, "elu", False), ppo.cfg)
    stock.copy_to(copied.actor, copied.critic)
    for network, other in ((ppo.actor, copied.actor), (ppo.critic, copied.critic)):
        for (name, own), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
            yield name, own, theirs


@pytest.mark.parametrize(
    "values",
    [{}, {"schedule": "fixed"}, {"use_clipped_value_loss": False}, {"normalize_advantage_per_mini_batch": True}],
)
def test_without_retention_it_is_rsl_rls_ppo_bit_for_bit(values):
    """Five iterations from the same weights: rollouts, advantages, losses, learning rate and weights are the same.

    The random generator is set at the beginning of each iteration, as RSL-RL's update draws actions that it does not
    use. No gradient is clipped: their norm is a sum over the layers, which are in another order here.
    """
    cfg = settings(**values)
    env, other = RegulatorEnv(NUM_ENVS), RegulatorEnv(NUM_ENVS)
    stock = Stock(env, cfg)
    ppo, collector = ours(cfg, other)
    stock.copy_to(ppo.actor, ppo.critic)
    env.reset(3)
    for iteration in range(5):
        torch.manual_seed(iteration)
        stock.rollout(env)
        storage = stock.ppo.storage
        kept = {name: getattr(storage, name).squeeze(-1).clone() for name in ("rewards", "returns", "advantages")}
        theirs = stock.ppo.update()
        torch.manual_seed(iteration)
        rollout, _ = collector.collect()
        losses = ppo.update(rollout)
        assert torch.equal(collector.actor.steps["rewards"], kept["rewards"])
        assert torch.equal(rollout.returns, kept["returns"])
        assert torch.equal(rollout.advantages, kept["advantages"])
        for name in ("surrogate", "value", "entropy"):
            assert losses[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-7)
        assert ppo.learning_rate == stock.ppo.learning_rate
        for name, own, their in pairs(stock, ppo):
            assert torch.equal(own, their), name


def test_with_clipped_gradients_it_is_rsl_rls_ppo_to_rounding():
    """The norms are added up in another order: the weights after three iterations differ by less than 1e-6."""
    cfg = settings(max_grad_norm=0.2, schedule="fixed")
    env, other = RegulatorEnv(NUM_ENVS), RegulatorEnv(NUM_ENVS)
    stock = Stock(env, cfg)
    ppo, collector = ours(cfg, other)
    stock.copy_to(ppo.actor, ppo.critic)
    env.reset(3)
    for iteration in range(3):
        torch.manual_seed(iteration)
        stock.rollout(env)
        stock.ppo.update()
        torch.manual_seed(iteration)
        ppo.update(collector.collect()[0])
    for name, own, theirs in pairs(stock, ppo):
        torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-5, msg=name)


def test_a_recurrent_actor_gives_rsl_rls_losses_and_gradients_to_rounding():
    """Episodes that end inside a rollout are padded there and reset here: the same losses and gradients, to 1e-6."""
    cfg = settings(num_learning_epochs=1, num_mini_batches=1, schedule="fixed")
    env, other = RegulatorEnv(NUM_ENVS, 5), RegulatorEnv(NUM_ENVS, 5)
    stock = Stock(env, cfg, recurrent=True)
    ppo, collector = ours(cfg, other, recurrent=True)
    stock.copy_to(ppo.actor, ppo.critic)
    env.reset(3)
    for iteration in range(3):
        torch.manual_seed(iteration)
        stock.rollout(env)
        theirs = stock.ppo.update()
        torch.manual_seed(iteration)
        rollout, _ = collector.collect()
        assert bool(rollout.resets[1:].any())
        losses = ppo.update(rollout)
        for name in ("surrogate", "value", "entropy"):
            assert losses[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
        gradients = {name: parameter.grad for name, parameter in stock.actor.named_parameters()}
        for name, parameter in ppo.actor.core.rnn.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[f"rnn.rnn.{name}"], atol=1e-6, rtol=1e-3)
        stock.copy_to(ppo.actor, ppo.critic)  # rounding is not to add up


@pytest.mark.parametrize(
    "actor",
    [
        lambda: GRUStudent(GRUStudentCfg(stochastic=True), 2, 2),
        lambda: HistoryStudent(HistoryStudentCfg(length=3, hidden_dims=[8], stochastic=True), 2, 2),
        lambda: StudentPolicy(2, 2, [8], stochastic=True, state_dependent_std=True),
        lambda: StudentPolicy.from_cfg(MLPStudentCfg(hidden_dims=[8], stochastic=True, distribution="tanh"), 2, 2),
    ],
    ids=["gru", "history", "state_dependent_std", "tanh"],
)
def test_the_first_pass_over_a_rollout_finds_the_densities_that_were_drawn_from(actor):
    """With the weights that collected, every action's density is what was stored: memories and resets are right."""
    env = RegulatorEnv(NUM_ENVS, 5)
    ppo = Ppo(actor(), ValueFunction.fresh(3, [8], "elu", False), settings())
    selectors = ObsSelector(["policy"]), ObsSelector(["privileged"])
    collector = RolloutCollector(env, ppo, *selectors, NUM_STEPS, random_starts=True, seed=0)
    for _ in range(3):
        rollout, _ = collector.collect()
        batch = rollout if ppo.in_sequences else rollout.flat()
        output, losses = ppo.losses(batch)
        log_probs = ppo.distribution(output).log_prob(batch.actions).sum(-1)
        torch.testing.assert_close(log_probs, batch.log_probs, atol=1e-5, rtol=1e-5)
        assert losses["surrogate"].item() == pytest.approx(-float(batch.advantages.mean()), abs=1e-6)


def test_a_frozen_actor_does_not_move_while_the_critic_does():
    """The warm-up changes every weight of the critic and none of the actor, nor the learning rate."""
    ppo, collector = ours(settings(), RegulatorEnv(NUM_ENVS))
    before = [p.detach().clone() for p in ppo.actor.parameters()]
    critic = [p.detach().clone() for p in ppo.critic.parameters()]
    losses = ppo.update(collector.collect()[0], critic_rate=1e-3)
    assert set(losses) == {"value"}
    assert all(torch.equal(p, q) for p, q in zip(ppo.actor.parameters(), before, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(ppo.critic.parameters(), critic, strict=True))
    assert ppo.learning_rate == settings().learning_rate


def test_the_deviation_stays_above_its_floor():
    """An entropy coefficient below zero would reduce it to nothing; the floor holds."""
    env = RegulatorEnv(NUM_ENVS)
    cfg = settings(entropy_coef=-10.0, learning_rate=0.1, schedule="fixed")
    ppo = Ppo(StudentPolicy(2, 2, [8], stochastic=True), ValueFunction.fresh(3, [8], "elu", True), cfg, min_std=0.3)
    selectors = ObsSelector(["policy"]), ObsSelector(["privileged"])
    collector = RolloutCollector(env, ppo, *selectors, NUM_STEPS, random_starts=False, seed=0)
    for _ in range(4):
        ppo.update(collector.collect()[0])
    obs = env.get_observations()["policy"]
    assert ppo.actor.step(obs)[0].std.min().item() == pytest.approx(0.3, rel=1e-5)


class NanEnv(RegulatorEnv):
    """Rewards become NaN in the third step."""

    count = 0

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        obs, rewards, dones, extras = super().step(actions)
        self.count += 1
        return obs, rewards * (float("nan") if self.count > 2 else 1.0), dones, extras


def test_nan_from_the_environment_is_one_line_that_names_it():
    """Nothing is learned from a rollout with NaN in it."""
    _, collector = ours(settings(), NanEnv(NUM_ENVS))
    with pytest.raises(UserError, match="the environment's rewards became NaN or infinite in step 2"):
        collector.collect()


def test_fewer_environments_than_minibatches_of_sequences_are_refused():
    """A policy with memory learns from whole rollouts of some environments: the line says what to change."""
    ppo, collector = ours(settings(num_mini_batches=7), RegulatorEnv(NUM_ENVS), recurrent=True)
    with pytest.raises(UserError, match="num_mini_batches is 7"):
        ppo.update(collector.collect()[0])


def test_transitions_of_some_environments_carry_their_memories():
    """A minibatch of sequences begins with the memories of its own environments."""
    _, collector = ours(settings(), RegulatorEnv(NUM_ENVS), recurrent=True)
    collector.collect()
    rollout: Transitions = collector.collect()[0]
    part = rollout.envs(slice(2, 4))
    assert rollout.state is not None and part.state is not None
    assert torch.equal(part.state, rollout.state[2:4]) and part.obs.shape == (NUM_STEPS, 2, 2)
