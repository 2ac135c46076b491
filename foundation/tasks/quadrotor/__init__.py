"""Fly a quadrotor to a point and stay there, at 100 Hz, for 5 s.

One gym id serves every engine. gym's registry holds one entry point per id, so that the ones here ask which engine is
launching, and import its classes only then: importing a task must not need Isaac Lab.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from foundation.tasks import launching_engine


def make_env_cfg() -> Any:
    """Return the environment's configuration for the engine that is launching."""
    if launching_engine() == "isaaclab":
        from foundation.tasks.quadrotor import isaaclab_env

        return isaaclab_env.QuadcopterPointCtrlIsaacEnvCfg()
    from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg

    return QuadcopterPointCtrlEnvCfg()


def make_play_env_cfg() -> Any:
    """Return the configuration for playing a policy: few environments, no observation noise."""
    if launching_engine() == "isaaclab":
        from foundation.tasks.quadrotor import isaaclab_env

        return isaaclab_env.QuadcopterPointCtrlIsaacEnvCfg_PLAY()
    from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg_PLAY

    return QuadcopterPointCtrlEnvCfg_PLAY()


def make_env(cfg: Any = None, render_mode: str | None = None, **_: Any) -> Any:
    """Build the environment for a configuration, in the engine that the configuration's class belongs to.

    Args:
        cfg: The environment's configuration. None: the built-in engine's default.
        render_mode: As of gymnasium.
    """
    from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg

    if cfg is None or isinstance(cfg, QuadcopterPointCtrlEnvCfg):
        from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

        return QuadcopterPointCtrlEnv(cfg, render_mode=render_mode)
    from foundation.tasks.quadrotor import isaaclab_env

    return isaaclab_env.make_env(cfg, render_mode=render_mode)


_AGENTS = f"{__name__}.agents"

for _id, _cfg in (
    ("Isaac-Quadcopter-Point-Ctrl-v0", "make_env_cfg"),
    ("Isaac-Quadcopter-Point-Ctrl-Play-v0", "make_play_env_cfg"),
):
    gymnasium.register(
        id=_id,
        entry_point=f"{__name__}:make_env",
        # gymnasium's wrappers check the interface of a single environment, and these are batched.
        disable_env_checker=True,
        order_enforce=False,
        # Isaac Lab's keys (*_cfg_entry_point), and one key for each engine's environment class.
        kwargs={
            "env_cfg_entry_point": f"{__name__}:{_cfg}",
            "torch_env_entry_point": f"{__name__}.torch_env:QuadcopterPointCtrlEnv",
            "l2f_env_entry_point": f"{__name__}.l2f_env:QuadcopterPointCtrlL2fEnv",
            "layout_entry_point": f"{__name__}.layout:make_layout",
            "isaaclab_env_entry_point": f"{__name__}.isaaclab_env:make_env",
            "rsl_rl_cfg_entry_point": f"{_AGENTS}.rsl_rl_ppo_cfg:QuadcopterPointCtrlPPORunnerCfg",
            "rsl_rl_distillation_cfg_entry_point": (
                f"{_AGENTS}.rsl_rl_distillation_cfg:QuadcopterPointCtrlDistillationRunnerCfg"
            ),
        },
    )
