"""envpool's environments behind the gymnasium engine, against a pool of the same interface computed by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from foundation.config.overrides import parse_overrides
from foundation.core.errors import UserError
from foundation.engines.base import LaunchRequest, VideoRequest
from foundation.engines.gymnasium import GymnasiumEngine
from foundation.engines.gymnasium_vec_env import seeds_of

NUM_ENVS = 4


class CountingPool:
    """As envpool: results in any order with their numbers; an environment that has ended ignores its next action.

    An observation is (start, steps); the start is a number made of the seed, a thousand more in each further episode.
    Choice 1 after 2 steps or more terminates; ``max_episode_steps`` truncate.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, seed: list[int], max_episode_steps: int):
        self.start = np.array([float(number % 900) for number in seed])
        self.limit = max_episode_steps
        self.steps = np.zeros(len(seed))
        self.ended = np.zeros(len(seed), dtype=bool)
        self.closed = False

    def _results(self, envs: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        order = envs[::-1]
        return np.stack([self.start, self.steps], -1).astype(np.float32)[order], {"env_id": order}

    def reset(self, env_id: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        envs = np.arange(len(self.steps)) if env_id is None else env_id
        self.start[envs] += 1000.0
        self.steps[envs] = 0.0
        self.ended[envs] = False
        return self._results(envs)

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        assert actions.dtype == np.int32
        wasted = self.ended.copy()
        self.start[wasted] += 1000.0
        self.steps = np.where(wasted, 0.0, self.steps + 1.0)
        terminated = (actions == 1) & (self.steps >= 2) & ~wasted
        truncated = (self.steps >= self.limit) & ~wasted
        self.ended = terminated | truncated
        obs, info = self._results(np.arange(len(self.steps)))
        order = info["env_id"]
        return obs, self.steps[order] * 10.0 + order, terminated[order], truncated[order], info

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pools(monkeypatch) -> list[CountingPool]:
    """A package of envpool's name; returns the pools that it has made."""
    made: list[CountingPool] = []

    def make(task: str, *, env_type: str, num_envs: int, seed: list[int], max_episode_steps: int) -> CountingPool:
        assert (task, env_type, len(seed)) == ("CartPole-v1", "gymnasium", num_envs)
        made.append(CountingPool(seed, max_episode_steps))
        return made[-1]

    package = ModuleType("envpool")
    package.__dict__.update(make=make, list_all_envs=lambda: ["CartPole-v1"])
    monkeypatch.setitem(sys.modules, "envpool", package)
    return made


@contextmanager
def launched(*tokens: str, task: str = "CartPole-v1", video: VideoRequest | None = None) -> Iterator[Any]:
    """An environment of the engine by envpool, with overrides as they are typed."""
    overrides = parse_overrides(["env.vectorization=envpool", *tokens], scopes=("env", "agent"))
    engine = GymnasiumEngine()
    with engine.launch(LaunchRequest(task), overrides.configure) as (env_cfg, agent_cfg):
        engine.set_common(env_cfg, num_envs=NUM_ENVS, seed=11, device="cpu")
        env = engine.make_env(env_cfg, agent_cfg, video=video)
        try:
            yield env
        finally:
            env.close()


def test_transitions_are_those_of_episodes_counted_by_hand(pools):
    """No action is wasted: in the step that ends an episode the next one begins, and its last observation is kept."""
    with launched("env.max_episode_steps=5") as env:
        obs = env.reset(3)["policy"]
        start = np.array([float(seed % 900) for seed in seeds_of(3, NUM_ENVS)]) + 1000.0
        steps = np.zeros(NUM_ENVS)
        assert np.array_equal(obs.numpy(), np.stack([start, steps], -1))
        generator = torch.Generator().manual_seed(0)
        ends = []
        for _ in range(40):
            actions = torch.randint(2, (NUM_ENVS, 1), generator=generator).float()
            groups, rewards, dones, extras = env.step(actions)
            steps = steps + 1
            last = np.stack([start, steps], -1)
            terminated = (actions[:, 0].numpy() == 1) & (steps >= 2)
            truncated = (steps >= 5) & ~terminated
            ended = terminated | truncated
            assert np.array_equal(rewards.numpy(), 10.0 * steps + np.arange(NUM_ENVS))
            assert np.array_equal(dones.numpy(), ended)
            assert np.array_equal(extras.get("time_outs", torch.zeros(NUM_ENVS)).numpy(), truncated)
            start = np.where(ended, start + 1000.0, start)
            steps = np.where(ended, 0.0, steps)
            assert np.array_equal(groups["policy"].numpy(), np.stack([start, steps], -1))
            if ended.any():
                assert np.array_equal(extras["final_observations"]["policy"].numpy()[ended], last[ended])
            ends.append((terminated.any(), truncated.any(), ended.all()))
        assert np.any(ends, axis=0)[:2].all()
    assert all(pool.closed for pool in pools)


def test_a_seed_repeats_its_episodes(pools):
    """The same seed begins the same episodes, another one others."""
    with launched() as env:
        first, again, other = (env.reset(seed)["policy"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_envpool_has_not_is_one_line(pools, monkeypatch):
    """A task, a mode, a setting, a picture, the package: each says what to type."""
    cases = [
        ((), "Acrobot-v1", "env.vectorization=envpool: envpool has no Acrobot-v1; use sync"),
        (("env.autoreset_mode=disabled",), "CartPole-v1", "env.autoreset_mode=disabled: with envpool it is same_step"),
        (("env.make_kwargs={gravity: 3.0}",), "CartPole-v1", "CartPole-v1 cannot be made with gravity=3.0"),
    ]
    for tokens, task, message in cases:
        with pytest.raises(UserError, match=message.replace(".", r"\.")), launched(*tokens, task=task):
            pass
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UserError, match="'envpool' is not installed: pip install envpool, or use sync"), launched():
        pass
