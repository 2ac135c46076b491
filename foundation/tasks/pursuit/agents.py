"""Agent settings of chasing and evading: those of the point-control task, with names of their own."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.tasks.quadrotor.agents.rsl_rl_distillation_cfg import QuadcopterPointCtrlDistillationRunnerCfg
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg


@dataclass
class QuadcopterChasePPORunnerCfg(QuadcopterPointCtrlPPORunnerCfg):
    """PPO settings for ``Isaac-Quadcopter-Chase-v0``."""

    experiment_name: str = "quadcopter_chase"


@dataclass
class QuadcopterEvadePPORunnerCfg(QuadcopterPointCtrlPPORunnerCfg):
    """PPO settings for ``Isaac-Quadcopter-Evade-v0``."""

    experiment_name: str = "quadcopter_evade"


@dataclass
class QuadcopterChaseDistillationRunnerCfg(QuadcopterPointCtrlDistillationRunnerCfg):
    """Settings of RSL-RL's own distillation for ``Isaac-Quadcopter-Chase-v0``."""

    experiment_name: str = "quadcopter_chase"


@dataclass
class QuadcopterEvadeDistillationRunnerCfg(QuadcopterPointCtrlDistillationRunnerCfg):
    """Settings of RSL-RL's own distillation for ``Isaac-Quadcopter-Evade-v0``."""

    experiment_name: str = "quadcopter_evade"
