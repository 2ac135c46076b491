"""Hold a place before a ball that the camera sees, and that the student is not told of, at 100 Hz, for 5 s."""

from __future__ import annotations

import gymnasium

_module = f"{__name__}.seen_env"
for _variant, _suffix in (("", ""), ("-Play", "_PLAY")):
    gymnasium.register(
        id=f"Isaac-Quadcopter-Point-Ctrl-Seen{_variant}-v0",
        entry_point=f"{_module}:QuadcopterPointCtrlSeenEnv",
        disable_env_checker=True,
        order_enforce=False,
        kwargs={
            "env_cfg_entry_point": f"{_module}:QuadcopterPointCtrlSeenEnvCfg{_suffix}",
            "torch_env_entry_point": f"{_module}:QuadcopterPointCtrlSeenEnv",
            "layout_entry_point": f"{__name__}.layout:make_layout",
            "rsl_rl_cfg_entry_point": f"{__name__}.agents:QuadcopterPointCtrlSeenPPORunnerCfg",
            "rsl_rl_distillation_cfg_entry_point": f"{__name__}.agents:QuadcopterPointCtrlSeenDistillationRunnerCfg",
        },
    )
