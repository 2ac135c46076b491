"""Chase a moving target, or evade a pursuer: two tasks of conflicting goals and one observation layout."""

from __future__ import annotations

import gymnasium

for _name in ("Chase", "Evade"):
    _module = f"{__name__}.{_name.lower()}"
    for _variant, _suffix in (("", ""), ("-Play", "_PLAY")):
        gymnasium.register(
            id=f"Isaac-Quadcopter-{_name}{_variant}-v0",
            entry_point=f"{_module}:Quadcopter{_name}Env",
            disable_env_checker=True,
            order_enforce=False,
            kwargs={
                "env_cfg_entry_point": f"{_module}:Quadcopter{_name}EnvCfg{_suffix}",
                "torch_env_entry_point": f"{_module}:Quadcopter{_name}Env",
                "l2f_env_entry_point": f"{_module}:Quadcopter{_name}L2fEnv",
                "layout_entry_point": f"{__name__}.layout:make_layout",
                "rsl_rl_cfg_entry_point": f"{__name__}.agents:Quadcopter{_name}PPORunnerCfg",
                "rsl_rl_distillation_cfg_entry_point": f"{__name__}.agents:Quadcopter{_name}DistillationRunnerCfg",
            },
        )
