"""The interface that every policy has, made of the one method that each defines."""

from __future__ import annotations

import pytest
import torch

from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork


class Adder(PolicyNetwork):
    """Acts with the sum of what it has seen in the episode, and counts the steps as its value."""

    num_obs, num_actions, state_size = 1, 1, 2

    def run(self, obs, state, resets, sequence):
        if sequence:
            return self.run_steps(obs, state, resets)
        assert state is not None
        after = state + torch.cat([obs, torch.ones_like(obs)], dim=-1)
        return PolicyOutput(mean=after[:, :1], value=after[:, 1:]), after


class Doubler(PolicyNetwork):
    """Acts with twice the observation; it has no memory."""

    num_obs, num_actions = 1, 1

    def run(self, obs, state, resets, sequence):
        return PolicyOutput(mean=2.0 * obs), state


def test_many_steps_begin_anew_where_an_episode_does():
    """A sequence sums the observations of each episode alone, and returns the state after the last step."""
    obs = torch.tensor([[[1.0], [10.0]], [[2.0], [20.0]], [[3.0], [30.0]]])
    resets = torch.tensor([[False, False], [False, True], [True, False]])
    output, state = Adder().sequence(obs, None, resets)
    assert output.mean.squeeze(-1).tolist() == [[1.0, 10.0], [3.0, 20.0], [3.0, 50.0]]
    assert output.value is not None and output.value[-1].tolist() == [[1.0], [2.0]]
    assert output.std is None and state is not None and state.tolist() == [[3.0, 1.0], [50.0, 2.0]]


def test_a_step_without_a_state_is_an_episodes_first():
    """Without a state, a step and the call begin an episode; with one they go on from it."""
    policy, obs = Adder(), torch.tensor([[4.0]])
    first, state = policy.step(obs)
    assert first.mean.item() == policy(obs).item() == 4.0
    assert policy.step(obs, state)[0].mean.item() == 8.0


def test_a_policy_without_memory_has_no_state():
    """State size 0 means no state, before and after, in steps and sequences."""
    policy = Doubler()
    assert policy.initial_state(3) is None
    for output, state in (policy.step(torch.ones(3, 1)), policy.sequence(torch.ones(2, 3, 1))):
        assert state is None and bool((output.mean == 2.0).all())


def test_a_policy_that_defines_nothing_says_so():
    """The base alone does not act."""
    with pytest.raises(TypeError, match="PolicyNetwork does not define run"):
        PolicyNetwork().step(torch.ones(1, 1))
