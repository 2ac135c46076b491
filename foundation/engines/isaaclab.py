"""Engine for Isaac Lab 3.0: direct, manager-based and multi-agent tasks. Version 2.3 is in ``isaaclab23``."""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import gymnasium

from foundation.core.errors import UserError, suggest
from foundation.engines import isaaclab23
from foundation.engines.base import Configure, Engine, LaunchRequest, VecEnv, VideoRequest
from foundation.engines.isaaclab_installed import (
    add_launcher_flags,
    has_kit,
    major_version,
    not_installed,
    register_package_tasks,
    set_agent_device,
)
from foundation.tasks import CANNOT_IMPORT, launching, resolve_task

logger = logging.getLogger(__name__)

_OLD_FLAGS = ("--enable_cameras",)
"""Flags of earlier launchers, accepted and without effect in 3.0."""


class IsaacLabEngine(Engine):
    """Run tasks of Isaac Lab, ours included, on whatever physics their configuration chooses."""

    name: ClassVar[str] = "isaaclab"
    envs_per_process: ClassVar[int | None] = 1
    selectors: ClassVar[tuple[str, ...]] = ("physics", "renderer", "presets")

    def __init__(self) -> None:
        self._task: str | None = None
        self._args = argparse.Namespace()

    # -- what can run here ----------------------------------------------------------------------------------------

    @classmethod
    def why_not(cls, task: str) -> str | None:
        """Return why the task cannot run here, or None. Imports the packages that register tasks, starts nothing."""
        missing = not_installed()
        if missing is not None:
            return missing
        if major_version() < 3:
            return _not_in_2(task)
        try:
            _register_tasks()
            spec = resolve_task(task)
        except UserError as error:
            if isinstance(error.__cause__, ImportError | SyntaxError):
                return CANNOT_IMPORT
            return f"it does not know '{task}'. {suggest(task.rpartition(':')[2], cls.task_names())}"
        if not _has_isaaclab_env(spec):
            return f"task '{spec.id}' has no environment for Isaac Lab"
        return None

    @classmethod
    def task_names(cls) -> list[str]:
        """List the registered tasks, or none where they are known only once Kit runs (2.3)."""
        if not_installed() is not None or major_version() < 3:
            return []
        _register_tasks()
        return sorted(name for name, spec in gymnasium.registry.items() if _has_isaaclab_env(spec))

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the launcher's own flags, except those that the command already has."""
        known = set(parser._option_string_actions)
        launcher = argparse.ArgumentParser(add_help=False)
        if not_installed() is None:
            add_launcher_flags(launcher)
        group = parser.add_argument_group("Isaac Lab launcher")
        for action in launcher._actions:
            if not known.intersection(action.option_strings):
                group._add_action(action)
                known.update(action.option_strings)
        for flag in _OLD_FLAGS:
            if flag not in known:
                group.add_argument(flag, action="store_true", help="accepted; cameras are found by themselves")

    # -- a session ------------------------------------------------------------------------------------------------

    def launch(self, request: LaunchRequest, configure: Configure) -> AbstractContextManager[tuple[Any, Any]]:
        """Start Kit if the task's physics needs it (PhysX does, Newton does not) and yield the configs."""
        missing = not_installed()
        if missing is not None:
            raise UserError(f"--engine isaaclab: {missing}")
        if major_version() < 3:
            return self._session_of_2(request, configure)
        return self._session(request, configure)

    @contextmanager
    def _session_of_2(self, request: LaunchRequest, configure: Configure) -> Iterator[tuple[Any, Any]]:
        with isaaclab23.session(request, configure) as (self._task, env_cfg, agent_cfg):
            yield env_cfg, agent_cfg

    @contextmanager
    def _session(self, request: LaunchRequest, configure: Configure) -> Iterator[tuple[Any, Any]]:
        from isaaclab.app import launch_simulation

        env_cfg, agent_cfg = self._load(request)
        self.set_common(env_cfg, num_envs=None, seed=None, device=request.device)
        set_agent_device(agent_cfg, request.device)
        configure(env_cfg, agent_cfg)
        self._args = self._launcher_args(request, str(env_cfg.sim.device))
        mistake: UserError | None = None
        with launching(self.name), launch_simulation(env_cfg, self._args):
            try:
                yield env_cfg, agent_cfg
            except UserError as error:  # raised again below: inside the block, the launcher would print a traceback
                mistake = error
                if "omni" in sys.modules:  # closing Kit ends the process, so the message is printed before
                    print(f"error: {error}", file=sys.stderr, flush=True)
                    raise SystemExit(2) from None
            finally:
                self._task = None
        if mistake is not None:
            raise mistake

    def load_configs(self, request: LaunchRequest) -> tuple[Any, Any]:
        """Load the task's configs; those of Isaac Lab 2 can only be read after Kit has started."""
        missing = not_installed()
        if missing is not None:
            raise UserError(f"--engine isaaclab: {missing}")
        return super().load_configs(request) if major_version() < 3 else self._load(request)

    def _load(self, request: LaunchRequest) -> tuple[Any, Any]:
        """Read the task's configurations, with the presets that were asked for."""
        from isaaclab_tasks.utils import resolve_task_config

        _register_tasks()
        spec = resolve_task(request.task)
        if not _has_isaaclab_env(spec):
            raise UserError(f"--engine isaaclab: task '{spec.id}' has no environment for Isaac Lab")
        if spec.kwargs.get(request.agent_entry_point) is None:
            entries = [key for key in spec.kwargs if key.endswith("_cfg_entry_point") and not key.startswith("env")]
            raise UserError(
                f"task '{spec.id}' has no '{request.agent_entry_point}' (--agent). "
                f"{suggest(request.agent_entry_point, entries)}"
            )
        presets = list(getattr(request.args, "presets", None) or [])
        try:
            with launching(self.name):
                env_cfg, agent_cfg = resolve_task_config(spec.id, request.agent_entry_point, overrides=presets)
        except ValueError as error:
            raise UserError(f"task '{spec.id}': {' '.join(str(error).split())}") from error
        self._task = spec.id
        return env_cfg, agent_cfg

    @staticmethod
    def _launcher_args(request: LaunchRequest, device: str) -> argparse.Namespace:
        """Return a copy of the flags for the launcher, which changes the namespace that it is given."""
        args = argparse.Namespace(**copy.deepcopy(vars(request.args)))
        args.device = device
        args.distributed = False  # the launcher would choose another device by the process's rank
        if request.video and getattr(args, "visualizer", None) is None and not has_kit():
            args.visualizer = ["newton_gl"]
        return args

    def set_common(self, env_cfg: Any, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        """Set number of environments, seed and device where given."""
        if num_envs is not None:
            env_cfg.scene.num_envs = num_envs
        if seed is not None:
            env_cfg.seed = seed
        if device is not None:
            env_cfg.sim.device = device

    def make_env(self, env_cfg: object, agent_cfg: object, *, video: VideoRequest | None = None) -> VecEnv:
        """Build the process's one environment of the launched task."""
        if self._task is None:
            raise RuntimeError("make_env is called inside 'with engine.launch(...)'")
        return build_env(self._task, env_cfg, agent_cfg, self._args, video)


def build_env(
    task: str, env_cfg: object, agent_cfg: object, args: argparse.Namespace, video: VideoRequest | None
) -> Any:
    """Make the environment of a launched task, convert a multi-agent one to a single agent, and wrap it for RSL-RL."""
    from isaaclab.envs import DirectMARLEnvCfg, multi_agent_to_single_agent
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper

    from foundation.engines.isaaclab_assets import naming_assets
    from foundation.engines.isaaclab_vec_env import IsaacLabVecEnv
    from foundation.engines.random_state import RandomState

    clip = agent_cfg.get("clip_actions") if isinstance(agent_cfg, dict) else getattr(agent_cfg, "clip_actions", None)
    random_state = RandomState()
    with random_state.active(), naming_assets(task, env_cfg, major=major_version()):
        env = _make_gym_env(task, env_cfg, args, video)
        if isinstance(env_cfg, DirectMARLEnvCfg):
            env = multi_agent_to_single_agent(env)
        wrapper = RslRlVecEnvWrapper(env, clip_actions=clip)
    return IsaacLabVecEnv(wrapper, random_state)


def _make_gym_env(task: str, env_cfg: object, args: argparse.Namespace, video: VideoRequest | None) -> Any:
    if major_version() < 3:
        return isaaclab23.make_gym_env(task, env_cfg, video)
    if video is not None:
        from foundation.engines.isaaclab_video import configure_recorder

        configure_recorder(env_cfg, args, video)
    return gymnasium.make(task, cfg=env_cfg)


def _not_in_2(task: str) -> str | None:
    """Return why Isaac Lab 2, which knows its tasks only once Kit runs, should not be tried for a task."""
    spec = gymnasium.registry.get(task)
    if spec is not None and any(key.endswith("_env_entry_point") for key in spec.kwargs):
        return f"Isaac Lab 2 is installed, and '{task}' has no environment for it (Isaac Lab 3 has one)"
    return None


def _register_tasks() -> None:
    """Import Isaac Lab's tasks and those of installed packages."""
    importlib.import_module("isaaclab_tasks")
    register_package_tasks()


def _has_isaaclab_env(spec: Any) -> bool:
    """Return whether a task is Isaac Lab's or has an environment for it beside those of other engines."""
    if "env_cfg_entry_point" not in spec.kwargs:
        return False
    others = any(key.endswith("_env_entry_point") for key in spec.kwargs)
    return not others or "isaaclab_env_entry_point" in spec.kwargs
