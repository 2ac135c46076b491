"""One DQN of several games: the game that is made of them, and the policy of one of them."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import train_joint_dqn  # noqa: E402

from foundation.core.errors import UserError  # noqa: E402

TASKS = ("CartPole-v1", "Acrobot-v1")


def test_episodes_are_of_each_game_in_turn():
    """CartPole's four numbers and two zeros behind its one-hot, then Acrobot's six, then CartPole again."""
    env = train_joint_dqn.Together(TASKS)
    assert env.observation_space.shape == (2 + 6,)
    assert env.action_space.n == 3
    alone = [gymnasium.make(task) for task in TASKS]
    for index, game in enumerate(alone):
        game.reset(seed=5 + index)
    firsts = [env.reset(seed=5)[0], env.reset()[0], env.reset()[0]]
    own = [alone[0].reset()[0], alone[1].reset()[0], alone[0].reset()[0]]
    np.testing.assert_array_equal(firsts[0], [1, 0, *own[0], 0, 0])
    np.testing.assert_array_equal(firsts[1], [0, 1, *own[1]])
    np.testing.assert_array_equal(firsts[2], [1, 0, *own[2], 0, 0])


def test_a_choice_that_a_game_lacks_is_its_last():
    """CartPole has two: the third acts as the second, step by step."""
    env, alone = train_joint_dqn.Together(TASKS, only=0), gymnasium.make("CartPole-v1")
    env.reset(seed=1)  # seeds the game, and begins its first episode
    alone.reset(seed=1)
    alone.reset()
    for joint, own in ((2, 1), (0, 0), (2, 1)):
        obs, reward, terminated, truncated, _ = env.step(np.int64(joint))
        expected = alone.step(own)
        np.testing.assert_array_equal(obs[2:6], expected[0])
        assert (reward, terminated, truncated) == expected[1:4]


class Recorded:
    """A policy that chooses the last of three, and keeps what it was given."""

    num_obs = 8

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        self.obs = obs
        return torch.full((len(obs), 1), 2.0)


def test_the_policy_of_a_game_reads_what_it_was_trained_on():
    """The same numbers as in training, and no choice that the game lacks."""
    policy = Recorded()
    actor = train_joint_dqn.JointActor(policy, index=0, num_games=2, num_choices=2)  # type: ignore[arg-type]
    actions = actor.act(TensorDict({"policy": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}, batch_size=[1]))
    assert policy.obs.tolist() == [[1, 0, 1, 2, 3, 4, 0, 0]]
    assert actions.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--total_timesteps", "10"], "--total_timesteps must be at least 5000"),
        (["--num_eval_episodes", "0"], "--num_eval_episodes must be at least 1"),
        (["--seed", "-1"], "--seed must be between 0 and"),
    ],
)
def test_bad_flags_are_one_line(words, message):
    """Named, before anything is made."""
    with pytest.raises(UserError, match=message):
        train_joint_dqn.parse(["--tasks", *TASKS, *words])


def test_games_that_cannot_be_joined_are_refused():
    """Continuous actions and grids of numbers."""
    with pytest.raises(UserError, match="Pendulum-v1: DQN needs Discrete actions, got Box"):
        train_joint_dqn.Together(["CartPole-v1", "Pendulum-v1"])
    with pytest.raises(UserError, match="FrozenLake-v1: observations must be flat numbers"):
        train_joint_dqn.Together(["CartPole-v1", "FrozenLake-v1"])


def test_a_short_training_leaves_a_policy_that_is_read(tmp_path):
    """The zip is a teacher of 8 numbers and 3 choices, and the history has both games' returns."""
    pytest.importorskip("stable_baselines3")
    words = ["--tasks", *TASKS, "--output", str(tmp_path), "--total_timesteps", "5000", "--num_eval_episodes", "1"]
    assert train_joint_dqn.main(words) == 0
    policy = train_joint_dqn.TeacherPolicyWrapper(tmp_path / "teacher.zip")
    assert (policy.num_obs, policy.num_choices) == (8, 3)
    assert '"returns"' in (tmp_path / "history.json").read_text()
