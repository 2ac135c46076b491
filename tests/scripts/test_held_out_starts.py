"""Starts in the midst of a game: who acts when, and which rewards count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import held_out_starts  # noqa: E402

from foundation.core.errors import UserError  # noqa: E402
from foundation.policies.actors import ZeroActor  # noqa: E402


class Walk:
    """Environments whose rewards are their clocks; one ends after ``length`` steps, or where the action is 9.

    The observation is the number of env steps in the episode.
    """

    num_actions = 1
    device = torch.device("cpu")

    def __init__(self, num_envs: int, length: int, max_episode_length: int = 40):
        self.num_envs = num_envs
        self.length = length
        self.max_episode_length = max_episode_length
        self.clock = torch.zeros(num_envs)
        self.actions: list[torch.Tensor] = []

    def reset(self, seed: int | None = None) -> TensorDict:
        self.clock = torch.zeros(self.num_envs)
        self.actions = []
        return self.observe()

    def observe(self) -> TensorDict:
        return TensorDict({"policy": self.clock[:, None].clone()}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple:
        self.actions.append(actions[:, 0].clone())
        rewards = self.clock.clone()
        self.clock += 1
        dones = (self.clock == self.length) | (actions[:, 0] == 9)
        self.clock[dones] = 0
        return self.observe(), rewards, dones, {}


class Constant:
    """Always the same action; remembers where it was told that episodes begin."""

    def __init__(self, action: float):
        self.action = action
        self.resets: list[torch.Tensor] = []

    def reset(self, dones: torch.Tensor | None = None) -> None:
        if dones is not None:
            self.resets.append(dones)

    def act(self, obs: TensorDict) -> torch.Tensor:
        return torch.full((obs.batch_size[0], 1), self.action)


def led_steps(env: Walk) -> torch.Tensor:
    """Return for how many steps the player (action 1) has acted in each environment."""
    return (torch.stack(env.actions) == 1).sum(dim=0)


def test_rewards_count_from_where_the_policy_takes_over():
    """Of an episode of 12 steps with rewards 0 to 11, k steps led, the rest sums to k + ... + 11."""
    env = Walk(64, length=12)
    actor = Constant(2.0)
    returns = held_out_starts.returns_from_starts(env, Constant(1.0), actor, seed=3, most_steps=8)
    led = led_steps(env)
    assert led.min() == 1
    assert led.max() == 8
    assert torch.equal(returns, (66 - led * (led - 1) // 2).double())


def test_starts_are_the_same_for_every_policy_and_others_with_another_seed():
    """What the policy does, or how long it survives, changes no start."""
    env = Walk(64, length=12)
    led = []
    for action, seed in ((2.0, 3), (9.0, 3), (2.0, 4)):
        held_out_starts.returns_from_starts(env, Constant(1.0), Constant(action), seed=seed, most_steps=8)
        led.append(led_steps(env))
    assert torch.equal(led[0], led[1])
    assert not torch.equal(led[0], led[2])


def test_an_episode_that_ends_while_the_player_acts_does_not_count():
    """Where episodes last 3 steps and up to 8 are led, another is begun: rewards 1 + 2, or 2, remain."""
    env = Walk(64, length=3)
    returns = held_out_starts.returns_from_starts(env, Constant(1.0), Constant(2.0), seed=0, most_steps=8)
    assert set(returns.tolist()) == {2.0, 3.0}


def test_only_the_first_episode_of_the_policy_counts():
    """A policy that ends its episode at once collects the one reward, however long the others go on."""
    env = Walk(64, length=12)
    returns = held_out_starts.returns_from_starts(env, Constant(1.0), Constant(9.0), seed=3, most_steps=8)
    assert torch.equal(returns, led_steps(env).double())


def test_the_policy_forgets_what_it_saw_of_the_player():
    """A policy with memory begins where it takes over: each environment is reset exactly there."""
    env = Walk(16, length=12)
    actor = Constant(2.0)
    held_out_starts.returns_from_starts(env, Constant(1.0), actor, seed=3, most_steps=8)
    led = led_steps(env)
    first = torch.stack(actor.resets).int().argmax(dim=0) + 1
    assert torch.equal(first, led)


def test_an_environment_that_never_ends_is_an_error():
    """One line, with the limit that it does not keep."""
    env = Walk(2, length=10_000)
    with pytest.raises(UserError, match="max_episode_length=40"):
        held_out_starts.returns_from_starts(env, Constant(1.0), Constant(2.0), most_steps=2)


def test_a_player_takes_a_quarter_of_its_choices_at_random():
    """Of 40,000 choices between two, an eighth differ from the teacher's; another run draws the same ones."""
    with held_out_starts.opened("CartPole-v1", 4) as env:
        player = held_out_starts.player_of(env, ZeroActor(1))
        again = held_out_starts.player_of(env, ZeroActor(1))
        obs = TensorDict({"policy": torch.zeros(40_000, 4)}, batch_size=[40_000])
        actions = player.act(obs)
        assert torch.equal(actions, again.act(obs))
    assert set(actions.unique().tolist()) == {0.0, 1.0}
    assert abs(float(actions.mean()) - 0.125) < 4 * (0.125 * 0.875 / 40_000) ** 0.5
