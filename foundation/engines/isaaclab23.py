"""Engine for Isaac Lab 2.3, whose own packages can be imported only once Kit runs."""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import gymnasium

from foundation.core.errors import UserError, suggest
from foundation.engines.base import Configure, LaunchRequest, VideoRequest
from foundation.engines.isaaclab_installed import add_launcher_flags, register_package_tasks, set_agent_device
from foundation.tasks import launching, resolve_task

logger = logging.getLogger(__name__)


@contextmanager
def session(request: LaunchRequest, configure: Configure) -> Iterator[tuple[str, Any, Any]]:
    """Start Kit, load the task's configurations, let ``configure`` change them.

    Yields:
        The gym id, the environment's and the agent's configuration.
    """
    from isaaclab.app import AppLauncher

    app = AppLauncher(launcher_args(request)).app
    try:
        with launching("isaaclab"):
            task, env_cfg, agent_cfg = load(request)
            env_cfg.sim.device = request.device
            set_agent_device(agent_cfg, request.device)
            configure(env_cfg, agent_cfg)
            yield task, env_cfg, agent_cfg
    except UserError as error:
        _leave(f"error: {error}", 2)
    except Exception:
        _leave(traceback.format_exc(), 1)
    finally:
        app.close()


def _leave(message: str, code: int) -> NoReturn:
    """End the process: closing Kit would end it with code 0."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launcher_args(request: LaunchRequest) -> argparse.Namespace:
    """Copy the flags for ``AppLauncher``, which writes to what it is given.

    Our own flags are left out: those whose names Kit's ``SimulationApp`` knows would be taken for settings of it.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_launcher_flags(parser)
    args = parser.parse_args([])
    delattr(args, "task")
    given = vars(copy.deepcopy(request.args))
    for name in vars(args):
        if given.get(name) is not None:
            setattr(args, name, given[name])
    args.headless = request.headless or bool(given.get("headless"))
    args.device = request.device
    if request.video:
        args.enable_cameras = True
    return args


def load(request: LaunchRequest) -> tuple[str, Any, Any]:
    """Read the configurations of a task, whose packages are imported now."""
    importlib.import_module("isaaclab_tasks")
    from isaaclab_tasks.utils.parse_cfg import load_cfg_from_registry

    register_package_tasks()
    spec = resolve_task(request.task)
    for key in ("env_cfg_entry_point", request.agent_entry_point):
        if spec.kwargs.get(key) is None:
            raise UserError(f"task '{spec.id}' has no '{key}'. {suggest(key, spec.kwargs)}")
    return (
        spec.id,
        load_cfg_from_registry(spec.id, "env_cfg_entry_point"),
        load_cfg_from_registry(spec.id, request.agent_entry_point),
    )


def make_gym_env(task: str, env_cfg: object, video: VideoRequest | None) -> Any:
    """Make the gymnasium environment, recorded by gymnasium's own wrapper where asked to, as ``train.py`` does."""
    if video is None:
        return gymnasium.make(task, cfg=env_cfg)
    env: Any = gymnasium.make(task, cfg=env_cfg, render_mode="rgb_array")
    interval = video.interval
    recorder = gymnasium.wrappers.RecordVideo(
        env,
        video_folder=str(video.folder),
        step_trigger=lambda step: step % interval == 0 if interval else step == 0,
        video_length=video.length,
        disable_logger=True,
    )
    recorder.step_id = video.first_step - 1  # clips are named by the steps of the whole run
    return recorder
