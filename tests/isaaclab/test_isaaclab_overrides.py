"""Overrides and flags on Isaac Lab's own configurations, which accept anything by themselves."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from isaac_envs import TASK

from foundation.config.overrides import parse_overrides
from foundation.core.errors import UserError
from foundation.core.registry import note_typed
from foundation.engines.base import LaunchRequest
from foundation.engines.isaaclab import IsaacLabEngine

TASKS = {"ours": TASK, "direct": "Isaac-Cartpole-Direct", "manager-based": "Isaac-Cartpole"}


def _configured(task: str, *tokens: str) -> tuple[Any, Any]:
    """Load a task's configurations and apply overrides, without starting its simulation."""
    env_cfg, agent_cfg = IsaacLabEngine()._load(LaunchRequest(task))
    parse_overrides(list(tokens), scopes=("env", "agent")).configure(env_cfg, agent_cfg)
    return env_cfg, agent_cfg


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_overrides_reach_the_configurations(task):
    """With a prefix and bare, into nested fields of env and agent, with their types."""
    env_cfg, agent_cfg = _configured(task, "env.scene.num_envs=8", "agent.seed=3", "agent.max_iterations=7")
    assert (env_cfg.scene.num_envs, agent_cfg.seed, agent_cfg.max_iterations) == (8, 3, 7)
    env_cfg, agent_cfg = _configured(task, "scene.num_envs=9", "sim.dt=0.004", "max_iterations=5")
    assert (env_cfg.scene.num_envs, env_cfg.sim.dt, agent_cfg.max_iterations) == (9, 0.004, 5)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("env.scene.num_env=8", "num_envs"),
        ("scen.num_envs=8", "scene"),
        ("env.scene.num_envs=abc", "env.scene.num_envs"),
        ("env.scene.num_envs=1.5", "an integer"),
        ("agent.max_iteration=1", "max_iterations"),
        ("+scene.num_envs=8", "added"),
    ],
)
def test_mistakes_are_answered(task, token, message):
    """Misspelt keys, wrong types and Hydra's prefixes are errors that name what would do."""
    with pytest.raises(UserError) as error:
        _configured(task, token)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_a_bare_seed_is_the_agents(task):
    """``seed=3`` is ``--seed 3``: train.py seeds the environment from the agent's."""
    assert _configured(task, "seed=3")[1].seed == 3


def test_null_switches_a_term_off():
    """As in Isaac Lab's own scripts."""
    env_cfg, _ = _configured("Isaac-Cartpole", "env.rewards.alive=null", "env.scene.ground=null")
    assert env_cfg.rewards.alive is None and env_cfg.scene.ground is None


def test_the_decorator_gives_isaac_labs_configurations(monkeypatch, tmp_path):
    """A script of one's own gets Isaac Lab's configs where Isaac Lab is installed, and the distillation config."""
    from foundation.config import hydra_task_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script.py", "scene.num_envs=8", "agent.max_iterations=3", "student=gru"])

    @hydra_task_config("Isaac-Cartpole", "rsl_rl_cfg_entry_point")
    def main(env_cfg, agent_cfg, cfg):
        return type(env_cfg).__module__, env_cfg.scene.num_envs, agent_cfg.max_iterations, cfg.student.name

    module, *values = main()
    assert module.startswith("isaaclab_tasks") and values == [8, 3, "gru"]


def test_the_launchers_flags_are_accepted_beside_ours():
    """--viz, --enable_cameras and the others are there, and those of the command keep their meaning."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default=None)
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--video", action="store_true")
    IsaacLabEngine.add_args(parser)
    args = parser.parse_args(["--headless", "--viz", "none", "--enable_cameras", "--livestream", "0", "--video"])
    assert args.device is None
    assert args.visualizer == []
    assert (args.headless, args.enable_cameras, args.livestream, args.video) == (True, True, 0, True)


def test_tasks_are_known_without_starting_anything():
    """Isaac Lab's own tasks, ours and those of an importable module are; others are answered with the nearest."""
    assert IsaacLabEngine.why_not(TASK) is None
    assert IsaacLabEngine.why_not("Isaac-Cartpole-Direct") is None
    note_typed(["--task", "toy_tasks:Toy-Lift-Manager"])  # a module is imported once it was typed
    assert IsaacLabEngine.why_not("toy_tasks:Toy-Lift-Manager") is None
    assert {TASK, "Isaac-Cartpole"} <= set(IsaacLabEngine.task_names())
    assert "Isaac-Cartpole-Direct" in str(IsaacLabEngine.why_not("Isaac-Cartpole-Dirct"))
    assert IsaacLabEngine.why_not("no_such_package:Task") is not None


def test_the_agents_entry_point_must_exist():
    """--agent with a name that the task lacks lists those that it has."""
    with pytest.raises(UserError, match="rsl_rl_cfg_entry_point"):
        IsaacLabEngine()._load(LaunchRequest(TASK, agent_entry_point="rl_games_cfg_entry_point"))


def test_presets_of_a_task_are_chosen_by_name_and_unknown_ones_refused():
    """physics=physx takes PhysX for our task; physics=nonsense is an error of one line."""
    request = LaunchRequest(TASK, args=argparse.Namespace(presets=["physics=physx"]))
    env_cfg, _ = IsaacLabEngine()._load(request)
    assert type(env_cfg.sim.physics).__name__ == "PhysxCfg"
    request = LaunchRequest(TASK, args=argparse.Namespace(presets=["physics=nonsense"]))
    with pytest.raises(UserError, match="nonsense"):
        IsaacLabEngine()._load(request)


def test_preset_tokens_are_told_from_overrides():
    """physics=... is taken out of the overrides for the engine; what is left is checked as ever."""
    overrides = parse_overrides(["physics=physx", "scene.num_envs=4"], scopes=("env", "agent"))
    assert overrides.take(IsaacLabEngine.selectors) == ["physics=physx"]
    assert [item.token for item in overrides.bare] == ["scene.num_envs=4"]
