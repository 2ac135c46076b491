"""Hold a place before a ball that the camera sees, and that the student is not told of, at 100 Hz, for 5 s.

The engine that launches decides on the classes, as in point control: importing this must not need Isaac Lab.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from foundation.tasks import launching_engine


def make_env_cfg() -> Any:
    """Return the environment's configuration for the engine that is launching."""
    if launching_engine() == "isaaclab":
        from foundation.tasks.seen_target import isaaclab_env

        return isaaclab_env.QuadcopterPointCtrlSeenIsaacEnvCfg()
    from foundation.tasks.seen_target.seen_env import QuadcopterPointCtrlSeenEnvCfg

    return QuadcopterPointCtrlSeenEnvCfg()


def make_play_env_cfg() -> Any:
    """Return the configuration for playing a policy: few environments."""
    if launching_engine() == "isaaclab":
        from foundation.tasks.seen_target import isaaclab_env

        return isaaclab_env.QuadcopterPointCtrlSeenIsaacEnvCfg_PLAY()
    from foundation.tasks.seen_target.seen_env import QuadcopterPointCtrlSeenEnvCfg_PLAY

    return QuadcopterPointCtrlSeenEnvCfg_PLAY()


def make_env(cfg: Any = None, render_mode: str | None = None, **_: Any) -> Any:
    """Build the environment for a configuration, in the engine that the configuration's class belongs to.

    Args:
        cfg: The environment's configuration. None: the built-in engine's default.
        render_mode: As of gymnasium.
    """
    from foundation.tasks.seen_target.seen_env import QuadcopterPointCtrlSeenEnv, QuadcopterPointCtrlSeenEnvCfg

    if cfg is None or isinstance(cfg, QuadcopterPointCtrlSeenEnvCfg):
        return QuadcopterPointCtrlSeenEnv(cfg, render_mode=render_mode)
    from foundation.tasks.seen_target import isaaclab_env

    return isaaclab_env.make_env(cfg, render_mode=render_mode)


_module = f"{__name__}.seen_env"
for _variant, _cfg in (("", "make_env_cfg"), ("-Play", "make_play_env_cfg")):
    gymnasium.register(
        id=f"Isaac-Quadcopter-Point-Ctrl-Seen{_variant}-v0",
        entry_point=f"{__name__}:make_env",
        disable_env_checker=True,
        order_enforce=False,
        kwargs={
            "env_cfg_entry_point": f"{__name__}:{_cfg}",
            "torch_env_entry_point": f"{_module}:QuadcopterPointCtrlSeenEnv",
            "isaaclab_env_entry_point": f"{__name__}.isaaclab_env:make_env",
            "layout_entry_point": f"{__name__}.layout:make_layout",
            "rsl_rl_cfg_entry_point": f"{__name__}.agents:QuadcopterPointCtrlSeenPPORunnerCfg",
            "rsl_rl_distillation_cfg_entry_point": f"{__name__}.agents:QuadcopterPointCtrlSeenDistillationRunnerCfg",
        },
    )
