"""Version of the installed Isaac Lab, and what 2.3 and 3.0 have in common."""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
from typing import Any

_TASK_GROUP = "isaaclab.tasks"
"""Group of the entry points by which installed packages register tasks."""


def not_installed() -> str | None:
    """Return what is missing, or None."""
    if importlib.util.find_spec("isaaclab") is None:
        return "Isaac Lab is not installed here (README, section Installation)"
    if major_version() < 3:
        return None if has_kit() else "Isaac Lab 2 needs Isaac Sim, which is not installed here"
    if importlib.util.find_spec("isaaclab_tasks") is None or importlib.util.find_spec("isaaclab_rl") is None:
        return "the installed Isaac Lab lacks isaaclab_tasks or isaaclab_rl"
    return None


def has_kit() -> bool:
    """Return whether Isaac Sim is installed."""
    return importlib.util.find_spec("isaacsim") is not None


def major_version() -> int:
    """Return 2 or 3. A source checkout of 2.x has package version 0.x."""
    try:
        return 3 if int(importlib.metadata.version("isaaclab").partition(".")[0]) >= 3 else 2
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return 3 if importlib.util.find_spec("isaaclab_newton") is not None else 2


def add_launcher_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the installed launcher to an empty parser."""
    parser.add_argument("--task")  # the launcher of 2.3 warns if the parser has no arguments yet
    argv, sys.argv = sys.argv, sys.argv[:1]  # the launchers read sys.argv, and 3.0 changes it
    try:
        if major_version() < 3:
            from isaaclab.app import AppLauncher

            AppLauncher.add_app_launcher_args(parser)
        else:
            from isaaclab.app import add_launcher_args

            add_launcher_args(parser)
    finally:
        sys.argv = argv


def register_package_tasks() -> None:
    """Import what installed packages declare as tasks. This package's own are registered already."""
    for entry in importlib.metadata.entry_points(group=_TASK_GROUP):
        if entry.value.partition(".")[0] != "foundation":
            entry.load()


def set_agent_device(agent_cfg: Any, device: str) -> None:
    """Set the agent's device to the simulation's; its default is always cuda:0."""
    if isinstance(agent_cfg, dict):
        agent_cfg["device"] = device
    else:
        agent_cfg.device = device
