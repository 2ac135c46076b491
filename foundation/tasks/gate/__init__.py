"""Fly through a gate that the camera sees, at 100 Hz, within 4 s."""

from __future__ import annotations

import gymnasium

_module = f"{__name__}.gate_env"
for _variant, _suffix in (("", ""), ("-Play", "_PLAY")):
    gymnasium.register(
        id=f"Isaac-Quadcopter-Gate{_variant}-v0",
        entry_point=f"{_module}:QuadcopterGateEnv",
        disable_env_checker=True,
        order_enforce=False,
        kwargs={
            "env_cfg_entry_point": f"{_module}:QuadcopterGateEnvCfg{_suffix}",
            "torch_env_entry_point": f"{_module}:QuadcopterGateEnv",
            "layout_entry_point": f"{__name__}.layout:make_layout",
            "rsl_rl_cfg_entry_point": f"{__name__}.agents:QuadcopterGatePPORunnerCfg",
            "rsl_rl_distillation_cfg_entry_point": f"{__name__}.agents:QuadcopterGateDistillationRunnerCfg",
        },
    )
