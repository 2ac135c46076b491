"""Training through a simulator: the stack of policies, the trainer, and the fits of std and critic."""

from __future__ import annotations

import pytest
import torch

from foundation.policies.mlp import build_mlp
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.tasks.quadrotor.training.bptt import BpttCfg, PolicyStack, train
from foundation.tasks.quadrotor.training.critic_fit import discounted_returns, fit_critics, fit_std
from foundation.tasks.quadrotor.training.differentiable import DifferentiablePointCtrl


class Chase:
    """One number per environment must follow a goal; every other environment has the other sign of control."""

    num_obs, num_actions = 2, 1

    def __init__(self, num_envs: int = 64):
        self.num_envs = num_envs
        generator = torch.Generator().manual_seed(0)
        self.goal = torch.rand(num_envs, 1, generator=generator) * 2 - 1
        self.x = torch.zeros(num_envs, 1)
        self.sign = torch.where(torch.arange(num_envs) % 2 == 0, 1.0, -1.0).unsqueeze(1)

    def observe(self):
        return torch.cat([self.x, self.goal], dim=1)

    def step(self, actions):
        self.x = self.x + 0.3 * self.sign * actions
        return -(self.x - self.goal).square()[:, 0]

    def terminal_value(self):
        return torch.zeros(self.num_envs)

    def detach(self):
        self.x = torch.zeros_like(self.x)


def test_a_stacked_policy_is_the_network_it_says_it_is():
    """Each policy of a stack, exported, equals the plain network on its own share of the environments."""
    stack = PolicyStack(3, 26, [32, 16], 4, bias=0.6, seed=1)
    obs = torch.randn(12, 26, generator=torch.Generator().manual_seed(0))
    out = stack(obs)
    for k in range(3):
        network = build_mlp(26, [32, 16], 4, "elu")
        network.load_state_dict(stack.mlp_state_dict(k))
        torch.testing.assert_close(network(obs[k::3]), out[k::3])
    assert out.mean().item() == pytest.approx(0.6, abs=0.1)


def test_stacked_policies_learn_their_own_vehicles():
    """Two policies trained together reach the goal with opposite controls; one alone gets the same weights."""
    cfg = BpttCfg(hidden_dims=[16], horizon=5, updates=300, learning_rate=1e-2)
    task = Chase()
    stack = PolicyStack(2, 2, cfg.hidden_dims, 1)
    history: list[torch.Tensor] = []
    train(task, stack, cfg, lambda _, rewards: history.append(rewards))
    assert (history[-1] > -0.1).all()
    assert (history[-1] > history[0] / 3).all()
    actions = stack(torch.tensor([[0.0, 0.5]]).repeat(64, 1))
    assert actions[0] > 0 > actions[-1]


def test_a_policy_whose_gradient_is_not_finite_does_not_spoil_the_others():
    """With NaN in the second policy's rewards the first one learns on."""

    class Broken(Chase):
        def step(self, actions):
            reward = super().step(actions)
            return reward * torch.where(torch.arange(self.num_envs) % 2 == 0, 1.0, float("nan"))

    stack = PolicyStack(2, 2, [16], 1)
    before = stack.weights[0].detach().clone()
    train(Broken(), stack, BpttCfg(hidden_dims=[16], horizon=5, updates=5))
    for parameter in stack.parameters():
        assert torch.isfinite(parameter).all()
    assert not torch.equal(before[0], stack.weights[0][0])


def _env(num_envs: int, seed: int = 0, seconds: float = 5.0) -> QuadcopterPointCtrlEnv:
    return QuadcopterPointCtrlEnv(
        QuadcopterPointCtrlEnvCfg(scene=SceneCfg(num_envs), seed=seed, episode_length_s=seconds)
    )


def test_a_differentiable_rollout_is_the_environments():
    """Stepped with the same commands from the same states, it sees what the environment sees."""
    env = _env(8)
    task = DifferentiablePointCtrl(env)
    env.reset(5)
    task._state, task._action = env.state.clone(), env.previous_action.clone()
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        action = torch.rand(8, 4, generator=generator) * 2 - 1
        obs, *_ = env.step(action)
        task.step(action)
        torch.testing.assert_close(task.observe(), obs["policy"])


def test_gradients_flow_from_rewards_to_early_actions():
    """The reward after 10 steps depends, finitely, on the first command, at the target too."""
    task = DifferentiablePointCtrl(_env(16))
    first = torch.full((16, 4), 0.6, requires_grad=True)
    task.step(first)
    for _ in range(9):
        reward = task.step(torch.full((16, 4), 0.6))
    (reward + task.terminal_value()).sum().backward()
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()
    assert (first.grad.abs().sum(1) > 0).all()


@pytest.mark.slow
def test_a_short_training_learns_to_stay_in_the_air():
    """60 updates raise the mean length of episodes far above that of hovering blindly."""

    def mean_length(policy) -> float:
        env = _env(256, seed=9)
        obs, alive, length = env.get_observations(), torch.ones(256, dtype=torch.bool), torch.zeros(256)
        with torch.no_grad():
            for _ in range(300):
                obs, _, dones, _ = env.step(policy(obs["policy"]))
                length += alive
                alive &= ~dones.bool()
        return length.mean().item()

    stack = PolicyStack(1, 26, [64, 64], 4, bias=0.612)
    before = mean_length(stack)
    train(DifferentiablePointCtrl(_env(64)), stack, BpttCfg(hidden_dims=[64, 64], updates=60))
    assert mean_length(stack) > 3 * before


def test_discounted_returns_by_hand():
    """Rewards 1, 1, 1 with an end after the second: returns 1 + g, 1, 1."""

    class ThreeSteps:
        def reset(self, seed=None):
            self.t = 0
            return {"o": torch.zeros(1, 1)}

        def step(self, actions):
            self.t += 1
            return {"o": torch.full((1, 1), float(self.t))}, torch.ones(1), torch.tensor([int(self.t == 2)]), {}

    obs, returns = discounted_returns(ThreeSteps(), lambda x: x, "o", torch.zeros(1), 0.9, 3, 3, 0)
    assert returns.tolist() == pytest.approx([1.9, 1.0, 1.0])
    assert obs[:, 0].tolist() == [0, 1, 2]


def test_the_critic_is_in_units_of_the_returns():
    """Fitted on V = 50 + 3 x it predicts that, and explains nearly all of the held-out variance."""
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    critic, explained = fit_critics(x, 50 + 3 * x[:, 0], [16], updates=400)
    assert explained.shape == (1,) and explained > 0.98
    with torch.no_grad():
        assert critic(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(53, abs=0.4)


def test_each_critic_learns_from_its_own_rows():
    """Two critics side by side, whose rows alternate and whose inputs differ in scale, each know their own returns."""
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 30.0]) + 5.0
    own = torch.arange(len(x)) % 2 == 0
    critics, explained = fit_critics(x, torch.where(own, 50 + 3 * x[:, 0], -2 * x[:, 1]), [32], 2, updates=400)
    assert explained.shape == (2,) and bool((explained > 0.98).all())
    with torch.no_grad():
        values = critics(torch.tensor([[6.0, 5.0], [5.0, 35.0]]))[:, 0]
    assert values[0].item() == pytest.approx(68, abs=0.8)
    assert values[1].item() == pytest.approx(-70, abs=8)


@pytest.mark.parametrize("level", [1.0, -1.0])
def test_the_std_costs_what_it_may(level):
    """For a reward of +-1 - E|noise|^2 the noise that costs 5 % of its size has a variance of 0.05."""

    class Quadratic:
        def reset(self, seed=None):
            self.generator = torch.Generator().manual_seed(3)
            return {"o": torch.randn(2000, 1, generator=self.generator)}

        def step(self, actions):
            reward = level - (actions - self.last).square()[:, 0]
            return {"o": torch.randn(2000, 1, generator=self.generator)}, reward, torch.zeros(2000), {}

    env = Quadratic()

    def policy(obs):
        env.last = obs
        return obs

    std = fit_std(env, policy, "o", cost=0.05, steps=20)
    assert std.item() == pytest.approx(0.05**0.5, rel=0.03)
