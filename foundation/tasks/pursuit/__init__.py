"""Chase a moving target, or evade a pursuer: two tasks of conflicting goals and one observation layout."""

from __future__ import annotations

from typing import Any

import gymnasium

from foundation.core.errors import UserError
from foundation.core.registry import resolve_attribute
from foundation.tasks import launching_engine


def _make_cfg(name: str, play: bool) -> Any:
    """Return a task's configuration for the engine that is launching."""
    if launching_engine() == "isaaclab":
        raise UserError(f"Isaac-Quadcopter-{name}-v0 runs on the built-in simulator: --engine torch")
    cfg = f"{__name__}.env_cfg:Quadcopter{name}EnvCfg{'_PLAY' if play else ''}"
    return resolve_attribute(cfg, f"task 'Isaac-Quadcopter-{name}-v0'", trusted=True)()


def make_chase_env_cfg() -> Any:
    """Return the configuration of the chase."""
    return _make_cfg("Chase", play=False)


def make_chase_play_env_cfg() -> Any:
    """Return the configuration for looking at a policy that chases."""
    return _make_cfg("Chase", play=True)


def make_evade_env_cfg() -> Any:
    """Return the configuration of the evasion."""
    return _make_cfg("Evade", play=False)


def make_evade_play_env_cfg() -> Any:
    """Return the configuration for looking at a policy that evades."""
    return _make_cfg("Evade", play=True)


for _name in ("Chase", "Evade"):
    for _variant, _play in (("", ""), ("-Play", "_play")):
        gymnasium.register(
            id=f"Isaac-Quadcopter-{_name}{_variant}-v0",
            entry_point=f"{__name__}.{_name.lower()}:Quadcopter{_name}Env",
            disable_env_checker=True,
            order_enforce=False,
            kwargs={
                "env_cfg_entry_point": f"{__name__}:make_{_name.lower()}{_play}_env_cfg",
                "torch_env_entry_point": f"{__name__}.{_name.lower()}:Quadcopter{_name}Env",
                "l2f_env_entry_point": f"{__name__}.{_name.lower()}:Quadcopter{_name}L2fEnv",
                "layout_entry_point": f"{__name__}.layout:make_layout",
                "rsl_rl_cfg_entry_point": f"{__name__}.agents:Quadcopter{_name}PPORunnerCfg",
                "rsl_rl_distillation_cfg_entry_point": f"{__name__}.agents:Quadcopter{_name}DistillationRunnerCfg",
            },
        )
