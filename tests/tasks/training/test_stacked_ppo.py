"""PPO of stacked policies."""

from __future__ import annotations

import torch

from foundation.tasks.quadrotor.training.bptt import PolicyStack
from foundation.tasks.quadrotor.training.stacked_ppo import StackedPpo, StackedPpoCfg


class Match:
    """One step is an episode: the action must be the observation, or its negative for every other environment."""

    def __init__(self, num_envs: int = 64):
        self.generator = torch.Generator().manual_seed(0)
        self.num_envs = num_envs
        self.sign = torch.where(torch.arange(num_envs) % 2 == 0, 1.0, -1.0)
        self._draw()

    def _draw(self):
        self.obs = {"policy": torch.rand(self.num_envs, 1, generator=self.generator) * 2 - 1}

    def get_observations(self):
        return self.obs

    def step(self, actions):
        reward = 1 - (actions[:, 0] - self.sign * self.obs["policy"][:, 0]).square()
        self._draw()
        ends = torch.ones(self.num_envs, dtype=torch.long)
        return self.obs, reward, ends, {"time_outs": torch.zeros(self.num_envs, dtype=torch.bool)}


def test_stacked_policies_learn_each_its_own_task():
    """Two policies with opposite goals, in one stack, both come within 0.15 of the best action."""
    policies = PolicyStack(2, 1, [16], 1)
    trainer = StackedPpo(Match(), policies, StackedPpoCfg(updates=40, num_steps=16, minibatches=4, learning_rate=3e-3))
    while not trainer.finished:
        rewards = trainer.update()
    assert (rewards > 0.97).all()
    actions = policies(torch.tensor([[0.5], [0.5]]))[:, 0].tolist()
    assert abs(actions[0] - 0.5) < 0.15
    assert abs(actions[1] + 0.5) < 0.15


def test_advantages_by_hand():
    """Rewards 1, 1, 1 with an end after the second, values 0, gamma = lam = 0.5: advantages 1 + 1/4, 1, 1 + V/2."""
    trainer = StackedPpo(Match(2), PolicyStack(2, 1, [4], 1), StackedPpoCfg(gamma=0.5, lam=0.5))
    dones = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    last = torch.tensor([[0.3], [0.3]])
    values = [torch.zeros(2)] * 3
    advantages = trainer._advantages(torch.ones(3, 2), dones, values, last)
    tail = 1 + 0.5 * trainer.critics(last)[:, 0].detach()
    torch.testing.assert_close(torch.stack(advantages), torch.stack([torch.full((2,), 1.25), torch.ones(2), tail]))


def test_the_reward_that_is_shown_is_the_environments():
    """What is guessed to follow a time-out goes into the advantages, not into the mean reward per step."""

    class EndsInTime(Match):
        def step(self, actions):
            obs, _, ends, _ = super().step(actions)
            return obs, torch.full((self.num_envs,), 0.25), ends, {"time_outs": torch.ones_like(ends).bool()}

    trainer = StackedPpo(EndsInTime(4), PolicyStack(2, 1, [4], 1), StackedPpoCfg(num_steps=4, minibatches=1))
    with torch.no_grad():
        trainer.critics.biases[-1].fill_(100.0)
    assert trainer.update().tolist() == [0.25, 0.25]
