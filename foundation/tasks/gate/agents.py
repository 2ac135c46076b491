"""Agent settings of the gate task: those of the point-control task, and a student that sees."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.tasks.quadrotor.agents.rsl_rl_distillation_cfg import QuadcopterPointCtrlDistillationRunnerCfg
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg


@dataclass
class QuadcopterGatePPORunnerCfg(QuadcopterPointCtrlPPORunnerCfg):
    """PPO settings for ``Isaac-Quadcopter-Gate-v0``; actor and critic know where the gate is."""

    experiment_name: str = "quadcopter_gate"


@dataclass
class QuadcopterGateDistillationRunnerCfg(QuadcopterPointCtrlDistillationRunnerCfg):
    """Settings of distillation: the student has a camera instead of the position."""

    experiment_name: str = "quadcopter_gate"
    obs_groups: dict[str, list[str]] = field(
        default_factory=lambda: {"teacher": ["policy"], "student": ["proprioception", "camera"]}
    )
