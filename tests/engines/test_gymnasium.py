"""The engine ``gymnasium``, against environments that are stepped by hand, one by one."""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from foundation.config.overrides import parse_overrides
from foundation.core.errors import UserError
from foundation.engines import gymnasium as engine_module
from foundation.engines import select_engine
from foundation.engines.base import EnvCapabilities, LaunchRequest, VideoRequest
from foundation.engines.gymnasium import GymnasiumEngine, _following_camera
from foundation.engines.gymnasium_spaces import Observations, make_actions
from foundation.engines.gymnasium_vec_env import GymnasiumVecEnv, seeds_of
from foundation.engines.torch import TorchEngine

MODES = ["same_step", "next_step", "disabled"]
NUM_ENVS = 5


CAMERA = {"lookat": np.zeros(3)}
"""Default of an argument as MuJoCo's tasks have it."""


class WalkEnv(gymnasium.Env):
    """A walk on a line that terminates beyond 3, may truncate itself, and draws from its own random numbers.

    Args:
        drift: Added to each step.
        scale: Factor on rewards.
        limits: Whether the walk may stop by itself, at random.
        camera: Cannot be compared by ``==``; nothing can override it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012  # as gymnasium has it
    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-10.0, 10.0, (2,), np.float64),
            "camera": spaces.Box(0, 255, (6, 4, 3), np.uint8),
            "map": spaces.Box(0, 1, (2, 3), np.bool_),
            "room": spaces.Discrete(3, start=1),
            "doors": spaces.MultiDiscrete([2, 3]),
            "inner": spaces.Dict({"flags": spaces.MultiBinary(2)}),
        }
    )
    action_space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))

    def __init__(
        self,
        render_mode: str | None = None,
        drift: float = 0.1,
        scale: int = 1,
        limits: bool = True,
        camera: dict[str, Any] = CAMERA,
    ):
        self.render_mode = render_mode
        self.drift, self.scale, self.limits = drift, scale, limits

    def _obs(self) -> dict[str, Any]:
        noise = self.np_random.normal()
        room = 1 + self.count % 3
        camera = np.arange(72, dtype=np.uint8).reshape(6, 4, 3) + np.uint8(self.count)
        flags = np.array([self.count % 2, 1], dtype=np.int8)
        walls = np.arange(6).reshape(2, 3) % 2 == self.count % 2
        doors = np.array([self.count % 2, self.count % 3])
        place = np.array([self.x, noise])
        return {"place": place, "camera": camera, "map": walls, "room": room, "doors": doors, "inner": {"flags": flags}}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.x, self.count = float(self.np_random.uniform(-1, 1)), 0
        return self._obs(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.x += float(action[0]) + self.drift
        self.count += 1
        terminated = abs(self.x) > 3.0
        truncated = self.limits and bool(self.np_random.random() < 0.1)
        reward = self.scale * (self.x + float(action[1]))
        return self._obs(), reward, terminated, truncated, {"is_success": self.x > 3.0}

    def render(self) -> np.ndarray:
        return np.full((32, 48, 3), min(255, 10 * self.count), dtype=np.uint8)


class LateVectorEnv(VectorEnv):
    """A vector environment that begins episodes in a step of their own, and knows no other way."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = spaces.Box(-1, 1, (1,))
    single_action_space = spaces.Discrete(2)

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 5, scale: int = 1):
        self.num_envs = num_envs


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the walk for a test."""
    before = dict(gymnasium.registry)
    gymnasium.register("Test/Walk-v0", WalkEnv, max_episode_steps=9)
    gymnasium.register("Test/Endless-v0", WalkEnv, kwargs={"scale": 2}, vector_entry_point=LateVectorEnv)
    yield
    once = {name: spec for name, spec in gymnasium.registry.items() if name.startswith("ALE/")}
    gymnasium.registry.clear()
    gymnasium.registry.update(once | before)  # ale_py registers its games when it is imported, and never again


@contextmanager
def made(task: str, *tokens: str, num_envs: int = NUM_ENVS, video: VideoRequest | None = None) -> Iterator[Any]:
    """An environment of the engine, with overrides as they are typed."""
    overrides = parse_overrides(tokens, scopes=("env", "agent"))
    engine = GymnasiumEngine()
    with engine.launch(LaunchRequest(task), overrides.configure) as (env_cfg, agent_cfg):
        engine.set_common(env_cfg, num_envs=num_envs, seed=11, device="cpu")
        env = engine.make_env(env_cfg, agent_cfg, video=video)
        try:
            yield env
        finally:
            env.close()


class ByHand:
    """The same environments, made and stepped one by one: the oracle."""

    def __init__(self, task: str, seed: int, num_envs: int = NUM_ENVS, **kwargs: Any):
        self.envs = [gymnasium.make(task, disable_env_checker=True, **kwargs) for _ in range(num_envs)]
        seeds = np.random.SeedSequence(seed).generate_state(num_envs)
        self.obs = [env.reset(seed=int(word >> 1))[0] for env, word in zip(self.envs, seeds, strict=True)]

    def step(self, actions: list[Any]) -> list[tuple[Any, float, bool, bool, Any, dict]]:
        """Step each; return observation (of the new episode, where one ended), reward, flags, last observation."""
        results = []
        for env, action in zip(self.envs, actions, strict=True):
            obs, reward, terminated, truncated, info = env.step(action)
            last = obs
            if terminated or truncated:
                obs, _ = env.reset()
            results.append((obs, float(reward), terminated, truncated, last, info))
        return results


def flat_walk(obs: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the groups of the walk are, written down by hand."""
    room, doors = np.zeros(3), np.zeros(5)
    room[obs["room"] - 1] = 1
    doors[obs["doors"][0]] = 1
    doors[2 + obs["doors"][1]] = 1
    return {
        "place": obs["place"].astype(np.float32),
        "camera": obs["camera"].transpose(2, 0, 1),
        "map": obs["map"].reshape(-1).astype(np.uint8),
        "room": room.astype(np.float32),
        "doors": doors.astype(np.float32),
        "inner.flags": obs["inner"]["flags"].astype(np.uint8),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_transitions_are_those_of_environments_stepped_by_hand(mode, vectorization):
    """Observations, rewards, ends, time-outs, final observations and successes agree, transition by transition."""
    generator = torch.Generator().manual_seed(0)
    ends = truncations = 0
    with made("Test/Walk-v0", f"env.autoreset_mode={mode}", f"env.vectorization={vectorization}") as env:
        hand = ByHand("Test/Walk-v0", 11)
        lengths = [0] * NUM_ENVS
        for _ in range(120):
            before = env.get_observations()
            for i, expected in enumerate(hand.obs):
                for name, value in flat_walk(expected).items():
                    np.testing.assert_array_equal(before[name][i].numpy(), value, err_msg=name)
            actions = torch.rand(NUM_ENVS, 2, generator=generator) * 6.0 - 3.0
            taken = [np.clip(a, [-2, 0], [2, 1]).astype(np.float32) for a in actions.double().numpy()]
            obs, rewards, dones, extras = env.step(actions)
            results = hand.step(taken)
            hand.obs = [result[0] for result in results]
            for i, (new, reward, terminated, truncated, last, info) in enumerate(results):
                ended = terminated or truncated
                lengths[i] = 0 if ended else lengths[i] + 1
                assert float(rewards[i]) == pytest.approx(reward, rel=1e-6)
                assert bool(dones[i]) == ended
                assert bool(extras["time_outs"][i]) == (truncated and not terminated)
                assert obs["place"][i].tolist() == flat_walk(new)["place"].tolist()
                if ended:
                    ends, truncations = ends + 1, truncations + truncated
                    assert bool(extras["episode_metrics"]["success"][i]) == info["is_success"]
                    for name, value in flat_walk(last).items():
                        np.testing.assert_array_equal(extras["final_observations"][name][i].numpy(), value)
            assert env.episode_length_buf.tolist() == lengths
            assert ("final_observations" in extras) == bool(dones.any())
    assert ends > 40 and 5 < truncations < ends


@pytest.mark.parametrize("mode", MODES)
def test_cart_pole_by_hand(mode):
    """CartPole's transitions agree too, to the bit, over ends by falling and by the time limit."""
    generator = torch.Generator().manual_seed(1)
    with made("CartPole-v1", f"env.autoreset_mode={mode}", "env.max_episode_steps=30") as env:
        hand = ByHand("CartPole-v1", 11, max_episode_steps=30)
        kinds = set()
        for _ in range(200):
            assert np.array_equal(env.get_observations()["policy"].numpy(), np.stack(hand.obs))
            actions = torch.randint(2, (NUM_ENVS, 1), generator=generator)
            _, rewards, dones, extras = env.step(actions.float())
            results = hand.step(actions.flatten().tolist())
            hand.obs = [result[0] for result in results]
            assert rewards.tolist() == [result[1] for result in results]
            assert dones.tolist() == [result[2] or result[3] for result in results]
            assert extras["time_outs"].tolist() == [result[3] and not result[2] for result in results]
            kinds |= {(result[2], result[3]) for result in results}
    assert {(True, False), (False, True)} <= kinds


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1", "Test/Walk-v0", "Blackjack-v1", "FrozenLake-v1"])
def test_the_contract_of_vec_env(task, mode):
    """Shapes, types, devices and names are those that ``VecEnv`` promises, with each autoreset mode."""
    with made(task, f"env.autoreset_mode={mode}") as env:
        obs = env.reset(4)
        assert obs is env.get_observations()
        assert env.num_envs == NUM_ENVS and env.num_actions >= 1 and env.max_episode_length >= 1
        for _ in range(30):
            obs, rewards, dones, extras = env.step(torch.zeros(NUM_ENVS, env.num_actions))
            assert tuple(obs.batch_size) == (NUM_ENVS,)
            time_outs = extras.get("time_outs", torch.zeros(NUM_ENVS, dtype=torch.bool))
            assert rewards.shape == dones.shape == time_outs.shape == (NUM_ENVS,)
            assert rewards.dtype == torch.float32 and dones.dtype == time_outs.dtype == torch.bool
            assert not (time_outs & ~dones).any()
            assert ("success" in extras.get("episode_metrics", {})) == (task != "Blackjack-v1")
            assert not env.episode_length_buf[dones].any()
        env.close()
        env.close()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_transitions(mode):
    """Two environments, and one that is reset, repeat a seed's rewards and observations; another seed differs."""

    def play(env: GymnasiumVecEnv, seed: int) -> torch.Tensor:
        seen = [env.reset(seed)["place"]]
        for step in range(40):
            obs, rewards, *_ = env.step(torch.full((NUM_ENVS, 2), 0.3 * (step % 3)))
            seen += [obs["place"], rewards.unsqueeze(-1)]
        return torch.cat(seen, dim=-1)

    with made("Test/Walk-v0", f"env.autoreset_mode={mode}") as one, made("Test/Walk-v0") as other:
        first = play(one, 5)
        assert torch.equal(first, play(other, 5)) and torch.equal(first, play(one, 5))
        assert not torch.equal(first, play(one, 6))


def test_seeds_of_neighbours_share_nothing():
    """Seeds 1 and 2 give no environment the same episodes; more environments keep the seeds of the first."""
    assert not set(seeds_of(1, 1000)) & set(seeds_of(2, 1000))
    assert seeds_of(3, 4) == seeds_of(3, 9)[:4]
    assert all(0 <= seed < 2**31 for seed in seeds_of(7, 100))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_assigning_lengths_moves_time_limits(vectorization):
    """An environment that is told to be one step before its limit is timed out by the next step, the others are not."""
    with made("Pendulum-v1", f"env.vectorization={vectorization}", "env.max_episode_steps=50") as env:
        env.episode_length_buf = torch.tensor([0, 49, 10, 49, 0])
        _, _, dones, extras = env.step(torch.zeros(NUM_ENVS, 1))
        assert dones.tolist() == extras["time_outs"].tolist() == [False, True, False, True, False]
        assert env.episode_length_buf.tolist() == [1, 0, 11, 0, 1]


def test_a_user_may_learn_from_what_was_returned():
    """Observations of a step do not change when the next one is taken."""
    with made("CartPole-v1") as env:
        obs = env.step(torch.zeros(NUM_ENVS, 1))[0]["policy"]
        kept = obs.clone()
        env.step(torch.ones(NUM_ENVS, 1))
        assert torch.equal(obs, kept)


# -- actions -----------------------------------------------------------------------------------------------------------


def test_continuous_actions_are_clipped_or_scaled():
    """Clip takes the task's units; scale maps -1, 0 and 1 to the bounds and their middle."""
    space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    given = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [9.0, 0.25]])
    clipped, scaled = make_actions(space, "T", "clip"), make_actions(space, "T", "scale")
    assert clipped(given).tolist() == [[-1, 0], [0, 0], [1, 1], [2, 0.25]]
    assert scaled(given).tolist() == [[-2, 0], [0, 0.5], [2, 1], [2, 0.625]]
    assert clipped.range == ((-2.0, 2.0), (0.0, 1.0)) and scaled.range == ((-1.0, 1.0), (-1.0, 1.0))
    assert clipped(given).dtype == np.float32
    with pytest.raises(UserError, match=r"env\.actions=scale: an action of T has no bounds"):
        make_actions(spaces.Box(-np.inf, np.inf, (1,)), "T", "scale")


def test_discrete_actions_are_indices():
    """Indices count from 0, whatever the space's start; those beyond are the nearest choice; shapes are the space's."""
    one = make_actions(spaces.Discrete(3, start=5), "T", "clip")
    assert one(torch.tensor([[0.0], [2.0], [7.0], [-1.0], [float("nan")]])).tolist() == [5, 7, 7, 5, 5]
    assert (one.size, one.choices, one.range) == (1, (3,), None)
    many = make_actions(spaces.MultiDiscrete([[2, 3], [4, 5]]), "T", "clip")
    assert many(torch.tensor([[1.0, 1.0, 3.0, 9.0]])).tolist() == [[[1, 1], [3, 4]]]
    assert many.choices == (2, 3, 4, 5)
    assert make_actions(spaces.MultiBinary(3), "T", "clip")(torch.tensor([[0.0, 1.0, 2.0]])).tolist() == [[0, 1, 1]]
    with pytest.raises(UserError, match="actions of Dict are not supported"):
        make_actions(spaces.Dict({"a": spaces.Discrete(2)}), "T", "clip")


def test_observations_keep_images_as_bytes():
    """Images are uint8, channels first, whether they came so or not; a grey one gets a channel."""
    last = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    image = Observations(spaces.Box(0, 255, (5, 4, 3), np.uint8), "T")(last)["policy"]
    assert image.dtype == np.uint8 and np.array_equal(image, last.transpose(0, 3, 1, 2))
    stacked = Observations(spaces.Box(0, 255, (3, 5, 4), np.uint8), "T")(last.reshape(2, 3, 5, 4))["policy"]
    assert np.array_equal(stacked, last.reshape(2, 3, 5, 4))
    assert Observations(spaces.Box(0, 255, (5, 4), np.uint8), "T")(last[..., 0])["policy"].shape == (2, 1, 5, 4)
    with pytest.raises(UserError, match=r"observations of Text have no fixed size"):
        Observations(spaces.Text(4), "T")


# -- configurations, names and errors ----------------------------------------------------------------------------------


def test_overrides_are_arguments_of_the_constructor():
    """env.drift and env.scale reach the environment, with the types of its signature; the registered scale stays."""
    with made("Test/Walk-v0", "env.drift=1", "env.limits=false", num_envs=2) as env:
        inner = env._vector.envs[0].unwrapped
        assert (inner.drift, type(inner.drift), inner.limits) == (1.0, float, False)
    with made("Test/Endless-v0", num_envs=1) as env:
        assert env._vector.envs[0].unwrapped.scale == 2
        assert env.max_episode_length == 10_000


def test_an_argument_that_holds_an_array_is_left_to_the_constructor():
    """Arrays of a copied configuration, as evaluation makes its environment of, have no one answer to ``==``."""
    engine = GymnasiumEngine()
    with engine.launch(LaunchRequest("Test/Walk-v0"), lambda *_: None) as (env_cfg, agent_cfg):
        engine.set_common(env_cfg, num_envs=1, seed=11, device="cpu")
        engine.make_env(copy.deepcopy(env_cfg), agent_cfg).close()
        assert hasattr(env_cfg, "drift") and not hasattr(env_cfg, "camera")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("env.drft=1", r"unknown key 'env\.drft'.*'drift'"),
        ("env.scale=1.5", r"'env\.scale' is 1\.5: it must be an integer"),
        ("env.limits=3", r"'env\.limits' is 3: it must be true or false"),
        ("env.autoreset_mode=later", r"'env\.autoreset_mode' is 'later'"),
        ("env.make_kwargs={wind: 3}", r"cannot be made: .*unexpected keyword argument 'wind'"),
        ("env.make_kwargs={num_envs: 3}", r"env\.make_kwargs: 'num_envs' is not for the constructor; write --num_envs"),
        ("env.make_kwargs={max_episode_steps: x}", r"not for the constructor; write env\.max_episode_steps"),
        ("env.make_kwargs={render_mode: x}", r"not for the constructor; write --video"),
        ("env.scene=null", r"env\.scene=null: the task needs it; .* env\.scene\.num_envs=VALUE"),
        ("env.sim=null", r"env\.sim=null: the task needs it; .* env\.sim\.device=VALUE"),
        ("env.max_episode_steps=0", r"env\.max_episode_steps is 0"),
        ("env.vectorization=vector_entry_point", r"Test/Walk-v0 registers none"),
    ],
)
def test_a_wrong_override_is_named(token, message):
    """An unknown argument, a wrong type and a value that cannot be are each one line."""
    with pytest.raises(UserError, match=message), made("Test/Walk-v0", token):
        pass


def test_a_value_that_gymnasiums_own_constructor_cannot_look_up_is_named():
    """It raises a bare ``KeyError: '7x7'``; the line says which override that is."""
    said = r"--task FrozenLake-v1 cannot be made with env\.map_name=7x7: KeyError"
    with pytest.raises(UserError, match=said), made("FrozenLake-v1", "env.map_name=7x7"):
        pass


def test_a_vector_environment_that_would_waste_a_step_is_refused():
    """One that begins episodes in a step of their own, without masks, would put ignored actions into the dataset."""
    for task in ("CartPole-v1", "Test/Endless-v0"):
        with (
            pytest.raises(UserError, match=r"a step whose action it ignores.*env\.vectorization=sync"),
            made(task, "env.vectorization=vector_entry_point"),
        ):
            pass


def test_auto_finds_the_engine():
    """A registered id runs here, module:Id too; this project's own tasks go to their engine as before."""
    assert select_engine("CartPole-v1")[0] is GymnasiumEngine
    assert select_engine("Test/Walk-v0")[0] is GymnasiumEngine
    assert select_engine("Isaac-Quadcopter-Point-Ctrl-v0")[0] is TorchEngine
    with pytest.raises(UserError, match=r"Did you mean 'CartPole-v1'"):
        select_engine("CartPol-v1")
    with pytest.raises(UserError, match="registered for other engines"):
        select_engine("Isaac-Quadcopter-Point-Ctrl-v0", "gymnasium")


@pytest.mark.parametrize(
    ("task", "package"),
    [
        ("ALE/Pong-v5", "ale-py"),
        ("MinAtar/Breakout-v1", "minatar"),
        ("HalfCheetah-v5", "mujoco"),
        ("LunarLander-v3", "Box2D"),
    ],
)
@pytest.mark.parametrize("requested", ["auto", "gymnasium"])
def test_a_missing_extra_is_one_line(monkeypatch, task, package, requested):
    """The line names the package and the extra, and no other engine's reasons."""
    monkeypatch.setattr(engine_module, "_is_installed", lambda name: False)
    gymnasium.registry.pop(task if task.startswith(("ALE", "MinAtar")) else "", None)
    with pytest.raises(UserError) as caught:
        select_engine(task, requested)
    told = f"the Python package '{package}' is not installed: pip install -e '.[gymnasium]' in the clone's folder"
    assert str(caught.value) == f"--task {task}: {told}"


def test_no_agent_config_is_asked_for():
    """The agent's config is ours, with a folder's name; PPO on a discrete task is refused with the way to go."""
    engine = GymnasiumEngine()
    with engine.launch(LaunchRequest("Test/Walk-v0"), lambda env, agent: None) as (env_cfg, agent_cfg):
        assert agent_cfg.experiment_name == "Test-Walk-v0"
        engine.make_env(env_cfg, agent_cfg).close()
        flat = ["doors", "inner.flags", "map", "place", "room"]
        assert {name: sorted(groups) for name, groups in agent_cfg.obs_groups.items()} == {
            "actor": flat,
            "critic": flat,
        }
    request = LaunchRequest("CartPole-v1", needs_agent=True)
    with (
        engine.launch(request, lambda env, agent: None) as (env_cfg, agent_cfg),
        pytest.raises(
            UserError, match=r"one of 2 actions.*Gaussian policies.*scripts/train_dqn\.py --task CartPole-v1"
        ),
    ):
        engine.make_env(env_cfg, agent_cfg)


def test_capabilities_are_declared():
    """Choices, bounds, frame time and the registered threshold are there for who asks."""
    with made("CartPole-v1") as env:
        declared = EnvCapabilities.of(env)
        assert (declared.action_choices, declared.action_range) == ((2,), None)
        assert declared.step_dt == pytest.approx(0.02) and declared.solved_return == 475.0
    with made("Test/Walk-v0") as env:
        assert EnvCapabilities.of(env).action_range == ((-2.0, 2.0), (0.0, 1.0))


def test_a_return_of_the_threshold_is_a_success():
    """Where a task registers a reward threshold, success means reaching it, whatever ended the episode."""
    gymnasium.register("Test/Threshold-v0", "gymnasium.envs.classic_control:CartPoleEnv", 12.0, max_episode_steps=20)
    with made("Test/Threshold-v0") as env:
        seen = set()
        returns = torch.zeros(NUM_ENVS)
        for step in range(300):
            action = float(step % 2) if step % 90 > 40 else 0.0
            _, rewards, dones, extras = env.step(torch.full((NUM_ENVS, 1), action))
            returns += rewards
            for total, success in zip(returns[dones], extras["episode_metrics"]["success"][dones], strict=True):
                assert bool(success) == (float(total) >= 12.0)
                seen.add(bool(success))
            returns[dones] = 0.0
    assert seen == {True, False}


def test_video_without_a_display(tmp_path):
    """A clip of the first environment is recorded, at the task's rate, and rendering unasked is one line."""
    with made("Test/Walk-v0", num_envs=2, video=VideoRequest(tmp_path, length=10, interval=0)) as env:
        for _ in range(12):
            env.step(torch.zeros(2, 2))
    clip = tmp_path / "rl-video-step-0.mp4"
    assert imageio_ffmpeg.count_frames_and_secs(str(clip))[0] == 10
    meta = next(imageio_ffmpeg.read_frames(str(clip)))
    assert meta["size"] == (48, 32) and meta["fps"] == pytest.approx(25)
    with made("Test/Walk-v0") as env, pytest.raises(UserError, match="give --video"):
        env.render()


@pytest.mark.parametrize(("token", "channels"), [("env.grayscale=true", 1), ("env.grayscale=false", 3)])
def test_atari_is_drawn_as_it_is_observed(tmp_path, token, channels):
    """Its vector environment draws nothing: a clip shows the newest frames, enlarged, at 30 a second."""
    pytest.importorskip("ale_py")
    video = VideoRequest(tmp_path, length=5, interval=0)
    with made("ALE/Pong-v5", token, num_envs=2, video=video) as env:
        for _ in range(30):  # past the first frames, which the stack holds again and again
            before = env.get_observations()["policy"][0].reshape(4, 84, 84, channels)
            obs, *_ = env.step(torch.full((2, 1), 2.0))
            seen = obs["policy"][0].reshape(4, 84, 84, channels)
        assert torch.equal(seen[:3], before[1:]) and not torch.equal(seen[3], before[3])
        image = torch.from_numpy(env.render())
        assert image.shape == (336, 336, 3)
        for row in range(4):
            assert torch.equal(image[row::4, 3 - row :: 4], seen[3].expand(84, 84, 3))
    meta = next(imageio_ffmpeg.read_frames(str(tmp_path / "rl-video-step-0.mp4")))
    assert meta["size"] == (336, 336) and meta["fps"] == pytest.approx(30)


def test_a_vector_environment_that_cannot_be_drawn_is_one_line(tmp_path):
    """The line says which way of making the task can be."""
    video = VideoRequest(tmp_path, length=5, interval=0)
    token = "env.vectorization=vector_entry_point"
    with (
        pytest.raises(UserError, match=r"Test/Endless-v0 is not drawn; use env\.vectorization=sync"),
        made("Test/Endless-v0", token, video=video),
    ):
        pass


def runs_away(default_camera_config={"distance": 4.0}, **kwargs): ...  # noqa: B006


def names_a_body(default_camera_config={"distance": 4.0, "trackbodyid": 1}, **kwargs): ...  # noqa: B006


def is_followed(default_camera_config={"type": 1, "trackbodyid": 1}, **kwargs): ...  # noqa: B006


def has_no_camera(size=3, **kwargs): ...


def takes_no_more(default_camera_config={"distance": 4.0}): ...  # noqa: B006


@pytest.mark.parametrize(
    ("creator", "camera"),
    [
        *((runs_away, "track"), (names_a_body, "track"), (is_followed, None)),
        *((has_no_camera, None), (takes_no_more, None), (None, None)),
    ],
)
def test_a_robot_that_runs_away_is_followed_by_the_camera(creator, camera):
    """Where the class's free camera follows no body, and what makes it takes other arguments."""
    assert _following_camera(creator, {}).get("camera_name") == camera
    assert _following_camera(creator, {"camera_id": 0}) == {}


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Walker2d-v5"])
def test_a_robot_stays_in_the_picture(tmp_path, task):
    """Ten metres from its start it is seen: pixels of its body's colour, which the floor and the sky do not have."""
    pytest.importorskip("mujoco")
    with made(task, num_envs=1, video=VideoRequest(tmp_path, length=1, interval=0)) as env:
        [robot] = env.unwrapped._vector.envs
        robot = robot.unwrapped
        robot.set_state(robot.init_qpos + 10.0 * np.eye(len(robot.init_qpos))[0], robot.init_qvel)
        image = env.unwrapped.render().astype(int)
    assert ((image[..., 0] - image[..., 2]) > 30).sum() > 1000


def test_configs_are_plain_and_copied():
    """Each launch has a config of its own, and a copy of a config is as good as it."""
    request = LaunchRequest("Test/Walk-v0", args=argparse.Namespace())
    one, _ = GymnasiumEngine().load_configs(request)
    two, _ = GymnasiumEngine().load_configs(request)
    one.make_kwargs["a"] = 1
    assert two.make_kwargs == {} and asdict(two)["drift"] == 0.1


def test_the_engine_imports_nothing_that_is_not_needed():
    """Choosing an engine for CartPole imports neither ale_py, minatar nor mujoco."""
    script = (
        "import sys; from foundation.engines import select_engine; select_engine('CartPole-v1')\n"
        "heavy = {'ale_py', 'minatar', 'mujoco', 'Box2D'} & set(sys.modules)\nsys.exit(f'{heavy}' if heavy else 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
