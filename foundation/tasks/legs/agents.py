"""Agent settings of the Go1's velocity tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.config.agent_cfg import (
    DistillationRunnerCfg,
    DistributionCfg,
    ModelCfg,
    OnPolicyRunnerCfg,
    PPOAlgorithmCfg,
)


@dataclass
class Go1PPORunnerCfg(OnPolicyRunnerCfg):
    """PPO settings; actor and critic are told what the robots differ in."""

    experiment_name: str = "go1_flat"
    num_steps_per_env: int = 24
    max_iterations: int = 150
    save_interval: int = 20
    eval_interval: int = 20
    num_eval_episodes: int = 64
    clip_actions: float | None = 5.0
    actor: ModelCfg = field(
        default_factory=lambda: ModelCfg(
            hidden_dims=[128, 128],
            obs_normalization=True,
            distribution_cfg=DistributionCfg(init_std=0.86, std_type="log"),
            init_output=0.0,
            init_output_gain=0.1,
        )
    )
    critic: ModelCfg = field(default_factory=lambda: ModelCfg(hidden_dims=[128, 128], obs_normalization=True))
    algorithm: PPOAlgorithmCfg = field(
        default_factory=lambda: PPOAlgorithmCfg(
            num_learning_epochs=4,
            num_mini_batches=4,
            learning_rate=1e-3,
            schedule="adaptive",
            desired_kl=0.02,
            entropy_coef=0.005,
            value_loss_coef=2.0,
            use_clipped_value_loss=False,
        )
    )


@dataclass
class Go1RoughPPORunnerCfg(Go1PPORunnerCfg):
    """PPO settings on rough ground."""

    experiment_name: str = "go1_rough"


@dataclass
class Go1DistillationRunnerCfg(DistillationRunnerCfg):
    """Settings of distillation: the student is blind to velocity, friction and load."""

    experiment_name: str = "go1_flat"
    clip_actions: float | None = 5.0
    obs_groups: dict[str, list[str]] = field(
        default_factory=lambda: {"teacher": ["policy"], "student": ["proprioception"]}
    )


@dataclass
class Go1RoughDistillationRunnerCfg(Go1DistillationRunnerCfg):
    """The same on rough ground."""

    experiment_name: str = "go1_rough"
