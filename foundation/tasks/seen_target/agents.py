"""Agent settings of point control with a seen target: those of the point-control task, and a student that sees."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.tasks.quadrotor.agents.rsl_rl_distillation_cfg import QuadcopterPointCtrlDistillationRunnerCfg
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg


@dataclass
class QuadcopterPointCtrlSeenPPORunnerCfg(QuadcopterPointCtrlPPORunnerCfg):
    """PPO settings for ``Isaac-Quadcopter-Point-Ctrl-Seen-v0``; actor and critic know where the target is."""

    experiment_name: str = "quadcopter_point_ctrl_seen"


@dataclass
class QuadcopterPointCtrlSeenDistillationRunnerCfg(QuadcopterPointCtrlDistillationRunnerCfg):
    """Settings of distillation: the student has a camera instead of the position."""

    experiment_name: str = "quadcopter_point_ctrl_seen"
    obs_groups: dict[str, list[str]] = field(
        default_factory=lambda: {"teacher": ["policy"], "student": ["proprioception", "camera"]}
    )
