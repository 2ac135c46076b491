"""A direct task for Isaac Lab 2.3 whose dynamics are two lines of torch: push a point to the origin."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import torch
from isaaclab.envs import DirectMARLEnv, DirectMARLEnvCfg, DirectRLEnv, DirectRLEnvCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sim import SimulationCfg
from isaaclab.utils import configclass
from isaaclab_rl.rsl_rl import RslRlOnPolicyRunnerCfg, RslRlPpoActorCriticCfg, RslRlPpoAlgorithmCfg


@configclass
class ToyEnvCfg(DirectRLEnvCfg):
    """The task."""

    decimation: int = 2
    episode_length_s: float = 1.0
    action_space: int = 1
    observation_space: int = 2
    state_space: int = 0
    gain: float = 5.0
    """Acceleration per action [m/s^2]."""
    sim: SimulationCfg = SimulationCfg(dt=0.01, render_interval=2)
    scene: InteractiveSceneCfg = InteractiveSceneCfg(num_envs=8, env_spacing=2.0, replicate_physics=False)


class ToyEnv(DirectRLEnv):
    """Position and velocity of a point, pushed along a line."""

    cfg: ToyEnvCfg

    def __init__(self, cfg: ToyEnvCfg, render_mode: str | None = None, **kwargs):
        super().__init__(cfg, render_mode, **kwargs)
        self.state = torch.zeros(self.num_envs, 2, device=self.device)

    def _pre_physics_step(self, actions: torch.Tensor) -> None:
        self._push = actions[:, 0]

    def _apply_action(self) -> None:
        self.state[:, 1] += self.cfg.gain * self._push * self.physics_dt
        self.state[:, 0] += self.state[:, 1] * self.physics_dt

    def _get_observations(self) -> dict[str, torch.Tensor]:
        return {"policy": self.state.clone()}

    def _get_rewards(self) -> torch.Tensor:
        self.extras["log"] = {"distance": self.state[:, 0].abs().mean()}
        return 1.0 - self.state[:, 0].abs()

    def _get_dones(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.state[:, 0].abs() > 3.0, self.episode_length_buf >= self.max_episode_length

    def _reset_idx(self, env_ids: Sequence[int]) -> None:
        super()._reset_idx(env_ids)
        self.state[env_ids, 0] = torch.rand(len(env_ids), device=self.device) * 2 - 1
        self.state[env_ids, 1] = 0.0


@configclass
class ToyRunnerCfg(RslRlOnPolicyRunnerCfg):
    """PPO settings in the form of 2.3; ``obs_groups`` is left missing, as most tasks of it do."""

    num_steps_per_env = 8
    max_iterations = 2
    save_interval = 50
    experiment_name = "toy23"
    policy = RslRlPpoActorCriticCfg(
        init_noise_std=0.5,
        actor_obs_normalization=False,
        critic_obs_normalization=False,
        actor_hidden_dims=[16],
        critic_hidden_dims=[16],
        activation="elu",
    )
    algorithm = RslRlPpoAlgorithmCfg(
        value_loss_coef=1.0,
        use_clipped_value_loss=True,
        clip_param=0.2,
        entropy_coef=0.0,
        num_learning_epochs=2,
        num_mini_batches=2,
        learning_rate=1e-3,
        schedule="fixed",
        gamma=0.98,
        lam=0.95,
        desired_kl=0.01,
        max_grad_norm=1.0,
    )


gymnasium.register(
    id="Toy-Push-v0",
    entry_point=f"{__name__}:ToyEnv",
    disable_env_checker=True,
    kwargs={
        "env_cfg_entry_point": f"{__name__}:ToyEnvCfg",
        "rsl_rl_cfg_entry_point": f"{__name__}:ToyRunnerCfg",
    },
)


@configclass
class ToyMarlEnvCfg(DirectMARLEnvCfg):
    """The same with two agents."""

    decimation: int = 2
    episode_length_s: float = 1.0
    possible_agents: list = ["left", "right"]  # noqa: RUF012 (a configclass)
    action_spaces: dict = {"left": 1, "right": 1}  # noqa: RUF012
    observation_spaces: dict = {"left": 1, "right": 1}  # noqa: RUF012
    state_space: int = 0
    sim: SimulationCfg = SimulationCfg(dt=0.01, render_interval=2)
    scene: InteractiveSceneCfg = InteractiveSceneCfg(num_envs=8, env_spacing=2.0, replicate_physics=False)


class ToyMarlEnv(DirectMARLEnv):
    """``left`` sees the position, ``right`` the velocity; both push."""

    cfg: ToyMarlEnvCfg

    def __init__(self, cfg: ToyMarlEnvCfg, render_mode: str | None = None, **kwargs):
        super().__init__(cfg, render_mode, **kwargs)
        self.point = torch.zeros(self.num_envs, 2, device=self.device)

    def _pre_physics_step(self, actions: dict[str, torch.Tensor]) -> None:
        self._push = (actions["left"] + actions["right"])[:, 0]

    def _apply_action(self) -> None:
        self.point[:, 1] += self._push * self.physics_dt
        self.point[:, 0] += self.point[:, 1] * self.physics_dt

    def _get_observations(self) -> dict[str, torch.Tensor]:
        return {"left": self.point[:, :1].clone(), "right": self.point[:, 1:].clone()}

    def _get_rewards(self) -> dict[str, torch.Tensor]:
        return {"left": -self.point[:, 0].abs(), "right": -self.point[:, 0].abs()}

    def _get_dones(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        ended = self.episode_length_buf >= self.max_episode_length
        never = torch.zeros_like(ended)
        return dict.fromkeys(self.cfg.possible_agents, never), dict.fromkeys(self.cfg.possible_agents, ended)

    def _reset_idx(self, env_ids: Sequence[int]) -> None:
        super()._reset_idx(env_ids)
        self.point[env_ids, 0] = torch.rand(len(env_ids), device=self.device) * 2 - 1
        self.point[env_ids, 1] = 0.0


gymnasium.register(
    id="Toy-Push-Marl-v0",
    entry_point=f"{__name__}:ToyMarlEnv",
    disable_env_checker=True,
    kwargs={
        "env_cfg_entry_point": f"{__name__}:ToyMarlEnvCfg",
        "rsl_rl_cfg_entry_point": f"{__name__}:ToyRunnerCfg",
    },
)
