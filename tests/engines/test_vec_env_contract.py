"""What every engine's environment promises (``foundation.engines.base``), on each engine that can be imported here."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from foundation.config.values import apply_values
from foundation.engines import engine_class, engine_names
from foundation.engines.base import EnvCapabilities, LaunchRequest

QUADROTOR = ("Isaac-Quadcopter-Point-Ctrl-v0",)
PURSUIT = ("Isaac-Quadcopter-Chase-v0", "Isaac-Quadcopter-Evade-v0")
SEEING = ("Isaac-Quadcopter-Gate-v0", "Isaac-Quadcopter-Point-Ctrl-Seen-v0")
LEGS = ("Foundation-Velocity-Flat-Go1-v0", "Foundation-Velocity-Rough-Go1-v0")
TASKS = {
    "gymnasium": ("CartPole-v1", "Pendulum-v1"),
    "torch": (*QUADROTOR, *PURSUIT, *SEEING),
    "l2f": (*QUADROTOR, *PURSUIT),
    "mjlab": ("Mjlab-Cartpole-Balance", "Mjlab-Velocity-Flat-Unitree-Go1"),
    "mujoco": LEGS,
}
"""Of engines that run others than the point-control task."""
CASES = [(engine, task) for engine in engine_names() for task in TASKS.get(engine, QUADROTOR)]
every_engine = pytest.mark.parametrize(("engine", "task"), CASES)
NUM_ENVS = 4
SHORT = {"mjlab": {"episode_length_s": 2.0}, "mujoco": {"episode_length_s": 1.0, "variation.num_models": 4}}
"""Settings of engines whose tasks have episodes of a thousand steps, or slow ones."""


@contextmanager
def opened(name: str, task: str) -> Iterator[Any]:
    """Launch an engine and make an environment of it, or skip where the engine cannot run here."""
    cls = engine_class(name)
    obstacle = cls.why_not(task)
    if obstacle is not None:
        pytest.skip(f"{name}: {obstacle}")
    if task in LEGS and importlib.util.find_spec("mjlab") is None:
        pytest.skip("the robot's files are mjlab's, which is not installed")
    engine = cls()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        engine.set_common(env_cfg, num_envs=NUM_ENVS, seed=3, device="cpu")
        apply_values(env_cfg, SHORT.get(name, {}), "env")

    with engine.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        env = engine.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()
            env.close()  # a second time does nothing


def actions_for(env: Any, generator: torch.Generator) -> torch.Tensor:
    """Draw actions that the environment takes. Shape: (num_envs, num_actions)."""
    declared = EnvCapabilities.of(env)
    drawn = torch.rand(env.num_envs, env.num_actions, generator=generator)
    if declared.action_choices is not None:
        return (drawn * torch.tensor(declared.action_choices)).floor()
    return drawn * 2.0 - 1.0


def steps(env: Any, count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [env.step(actions_for(env, generator)) for _ in range(count)]


@every_engine
def test_attributes_and_results_have_the_documented_kinds(engine, task):
    """Sizes are integers, observations a TensorDict of groups, rewards and dones one for each environment."""
    with opened(engine, task) as env:
        assert (env.num_envs, type(env.num_actions)) == (NUM_ENVS, int)
        assert int(env.max_episode_length) > 0
        assert env.episode_length_buf.shape == (NUM_ENVS,)
        assert torch.device(env.device).type == "cpu"
        first = env.reset(1)
        for obs, rewards, dones, extras in steps(env, 3):
            assert isinstance(obs, TensorDict)
            assert obs.batch_size == (NUM_ENVS,)
            assert {name: value.shape for name, value in obs.items()} == {k: v.shape for k, v in first.items()}
            assert all(value.ndim >= 2 and not value.requires_grad for value in obs.values())
            assert rewards.shape == (NUM_ENVS,) and rewards.is_floating_point()
            assert dones.shape == (NUM_ENVS,) and set(dones.unique().tolist()) <= {0, 1}
            assert isinstance(extras, dict)
            if extras.get("time_outs") is not None:
                assert extras["time_outs"].shape == (NUM_ENVS,)
                assert not (extras["time_outs"].bool() & ~dones.bool()).any()
            assert all(value.shape == (NUM_ENVS,) for value in extras.get("episode_metrics", {}).values())


@every_engine
def test_observations_are_read_without_being_changed(engine, task):
    """``get_observations`` returns what ``reset`` or ``step`` returned, however often it is asked."""
    with opened(engine, task) as env:
        for act in (lambda: env.reset(2), lambda: steps(env, 2)[-1][0]):
            returned = act()
            for _ in range(2):
                again = env.get_observations()
                assert all(torch.equal(again[name], value) for name, value in returned.items())


@every_engine
def test_seeds_work_both_ways(engine, task):
    """The same seed and actions give the same steps, resets within them included; another seed others."""
    with opened(engine, task) as env:
        flights = []
        for seed in (7, 7, 8):
            start = env.reset(seed)
            assert (env.episode_length_buf == 0).all()
            flights.append([start, *(obs for obs, *_ in steps(env, 40))])
            flights[-1] = [torch.cat([value.flatten(1) for value in obs.values()], 1).clone() for obs in flights[-1]]
        assert all(torch.equal(one, other) for one, other in zip(flights[0], flights[1], strict=True))
        assert not torch.equal(flights[0][0], flights[2][0])


@every_engine
def test_episodes_begin_anew_by_themselves(engine, task):
    """Where an episode ends its count is 0 and no other's is; none is longer than the longest."""
    with opened(engine, task) as env:
        env.reset(4)
        lengths = torch.zeros(NUM_ENVS, dtype=torch.long)
        ended = 0
        generator = torch.Generator().manual_seed(1)
        for _ in range(min(int(env.max_episode_length), 500) + 1):
            _, _, dones, _ = env.step(actions_for(env, generator))
            lengths = (lengths + 1) * (1 - dones.long())
            ended += int(dones.sum())
            assert torch.equal(env.episode_length_buf.long(), lengths)
            assert (lengths < int(env.max_episode_length)).all()
        assert ended >= NUM_ENVS


@every_engine
def test_results_of_a_step_are_kept_by_later_steps(engine, task):
    """Extras, rewards and observations are the step's own, not buffers that the next step writes to."""
    with opened(engine, task) as env:
        env.reset(5)
        obs, rewards, dones, extras = steps(env, 1)[0]
        kept = [obs.clone(), rewards.clone(), dones.clone(), dict(extras)]
        steps(env, 30)
        assert all(torch.equal(obs[name], value) for name, value in kept[0].items())
        assert torch.equal(rewards, kept[1]) and torch.equal(dones, kept[2])
        assert extras.keys() == kept[3].keys()


@every_engine
def test_what_an_environment_declares_is_consistent(engine, task):
    """Whether a second one may exist is the engine's limit; an action space has choices or ranges, one each."""
    with opened(engine, task) as env:
        declared = EnvCapabilities.of(env)
        assert declared.one_per_process == (engine_class(engine).envs_per_process == 1)
        assert declared.step_dt is None or declared.step_dt > 0.0
        assert declared.action_choices is None or declared.action_range is None
        if declared.action_choices is not None:
            assert len(declared.action_choices) == env.num_actions and min(declared.action_choices) > 1
        if declared.action_range is not None:
            assert len(declared.action_range) == env.num_actions
            assert all(low < high and math.isfinite(high - low) for low, high in declared.action_range)
        groups = set(env.get_observations().keys())
        assert set(declared.position_fields) | set(declared.rotation_fields) <= groups
        assert all(factor > 0.0 and unit for factor, unit in declared.metric_units.values())
