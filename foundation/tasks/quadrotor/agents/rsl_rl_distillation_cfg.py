"""Settings of RSL-RL's own ``DistillationRunner`` for the built-in task."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.config.agent_cfg import DistillationAlgorithmCfg, DistillationRunnerCfg, DistributionCfg, ModelCfg


@dataclass
class QuadcopterPointCtrlDistillationRunnerCfg(DistillationRunnerCfg):
    """Settings for ``Isaac-Quadcopter-Point-Ctrl-v0``; the teacher is one trained by ``rsl_rl_ppo_cfg``."""

    experiment_name: str = "quadcopter_point_ctrl"
    num_steps_per_env: int = 120
    max_iterations: int = 100
    save_interval: int = 25
    clip_actions: float | None = 1.0
    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"teacher": ["policy"], "student": ["policy"]})
    student: ModelCfg = field(
        default_factory=lambda: ModelCfg(
            hidden_dims=[64, 64], obs_normalization=True, distribution_cfg=DistributionCfg(init_std=0.1)
        )
    )
    teacher: ModelCfg = field(
        default_factory=lambda: ModelCfg(
            hidden_dims=[128, 128], obs_normalization=True, distribution_cfg=DistributionCfg(init_std=0.1)
        )
    )
    algorithm: DistillationAlgorithmCfg = field(
        default_factory=lambda: DistillationAlgorithmCfg(num_learning_epochs=2, gradient_length=15, learning_rate=1e-3)
    )
