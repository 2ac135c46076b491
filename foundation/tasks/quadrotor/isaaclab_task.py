"""Registration of the task for Isaac Lab's own commands, through the entry-point group ``isaaclab.tasks``.

``python -m isaaclab train --rl_library rsl_rl --task Isaac-Quadcopter-Point-Ctrl-v0`` imports this module. Its runner
knows the fields of Isaac Lab's own configs alone, so our PPO settings are handed over in their form; it cannot take the
start at hover (``init_output``), the floor of the std (``min_std``) and the evaluations (``eval_interval``).
"""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium
import torch

from foundation.config.agent_cfg import ModelCfg
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg

TASKS = ("Isaac-Quadcopter-Point-Ctrl-v0", "Isaac-Quadcopter-Point-Ctrl-Play-v0")


def ppo_cfg() -> Any:
    """Return our PPO settings as an ``RslRlOnPolicyRunnerCfg``."""
    from isaaclab_rl.rsl_rl import RslRlOnPolicyRunnerCfg, RslRlPpoAlgorithmCfg

    ours = QuadcopterPointCtrlPPORunnerCfg()
    runner = RslRlOnPolicyRunnerCfg(
        actor=_model(ours.actor),
        critic=_model(ours.critic),
        algorithm=RslRlPpoAlgorithmCfg(),
        experiment_name=ours.experiment_name,
    )
    _copy_known(asdict(ours.algorithm), runner.algorithm)
    for name in ("seed", "num_steps_per_env", "max_iterations", "save_interval", "obs_groups", "clip_actions"):
        setattr(runner, name, getattr(ours, name))
    runner.device = "cuda:0" if torch.cuda.is_available() else "cpu"  # the command does not set it from --device
    return runner


def _model(ours: ModelCfg) -> Any:
    from isaaclab_rl.rsl_rl import RslRlMLPModelCfg

    model = RslRlMLPModelCfg(
        hidden_dims=list(ours.hidden_dims), activation=ours.activation, obs_normalization=ours.obs_normalization
    )
    if ours.distribution_cfg is not None:
        model.distribution_cfg = RslRlMLPModelCfg.GaussianDistributionCfg(init_std=ours.distribution_cfg.init_std)
        _copy_known({"std_type": ours.distribution_cfg.std_type}, model.distribution_cfg)
    return model


def _copy_known(values: dict[str, Any], target: object) -> None:
    for name, value in values.items():
        if hasattr(target, name):
            setattr(target, name, value)


for _task in TASKS:
    gymnasium.registry[_task].kwargs["rsl_rl_cfg_entry_point"] = ppo_cfg
