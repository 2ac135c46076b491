"""Unitree Go1: follow commanded velocities, with a teacher that is told what a blind student has to infer."""

from __future__ import annotations

import gymnasium

_module = f"{__name__}.velocity_env"
for _ground, _layout, _agent in (("Flat", "make_layout", "Go1"), ("Rough", "make_rough_layout", "Go1Rough")):
    for _variant, _suffix in (("", ""), ("-Play", "_PLAY")):
        gymnasium.register(
            id=f"Foundation-Velocity-{_ground}-Go1{_variant}-v0",
            entry_point=f"{_module}:Go1VelocityEnv",
            disable_env_checker=True,
            order_enforce=False,
            kwargs={
                "env_cfg_entry_point": f"{_module}:Go1{_ground}EnvCfg{_suffix}",
                "mujoco_env_entry_point": f"{_module}:Go1VelocityEnv",
                "layout_entry_point": f"{__name__}.layout:{_layout}",
                "rsl_rl_cfg_entry_point": f"{__name__}.agents:{_agent}PPORunnerCfg",
                "rsl_rl_distillation_cfg_entry_point": f"{__name__}.agents:{_agent}DistillationRunnerCfg",
            },
        )
