"""PPO settings that learn to fly the built-in task in a few CPU minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.config.agent_cfg import DistributionCfg, ModelCfg, OnPolicyRunnerCfg, PPOAlgorithmCfg

HOVER_ACTION = 0.612
"""Motor command at which the Crazyflie hovers: rotor speed u = 0.806, action 2 u - 1."""


@dataclass
class QuadcopterPointCtrlPPORunnerCfg(OnPolicyRunnerCfg):
    """Settings for ``Isaac-Quadcopter-Point-Ctrl-v0``."""

    experiment_name: str = "quadcopter_point_ctrl"
    num_steps_per_env: int = 32
    max_iterations: int = 400
    save_interval: int = 50
    eval_interval: int = 5
    num_eval_episodes: int = 128
    clip_actions: float | None = 1.0
    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"actor": ["policy"], "critic": ["policy"]})
    actor: ModelCfg = field(
        default_factory=lambda: ModelCfg(
            hidden_dims=[256, 256, 256],
            activation="elu",
            obs_normalization=True,
            distribution_cfg=DistributionCfg(init_std=0.3),
            init_output=HOVER_ACTION,
            init_output_gain=0.1,
        )
    )
    critic: ModelCfg = field(
        default_factory=lambda: ModelCfg(hidden_dims=[256, 256, 256], activation="elu", obs_normalization=True)
    )
    algorithm: PPOAlgorithmCfg = field(
        default_factory=lambda: PPOAlgorithmCfg(
            num_learning_epochs=5,
            num_mini_batches=4,
            learning_rate=5e-4,
            schedule="fixed",
            gamma=0.98,
            lam=0.95,
            entropy_coef=0.0,
        )
    )
