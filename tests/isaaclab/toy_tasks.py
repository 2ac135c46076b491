"""Two tasks of Isaac Lab's other workflows, small enough to solve by hand: hold a mass at a height.

``Toy-Lift-Manager`` has real managers and noisy observations; ``Toy-Lift-Marl`` has two agents, each pulling half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import isaaclab.envs.mdp as mdp
import torch
from isaaclab.assets import RigidObjectCfg
from isaaclab.envs import DirectMARLEnv, DirectMARLEnvCfg, ManagerBasedRLEnvCfg
from isaaclab.managers import (
    ActionTerm,
    ActionTermCfg,
    EventTermCfg,
    ObservationGroupCfg,
    ObservationTermCfg,
    RewardTermCfg,
    SceneEntityCfg,
    TerminationTermCfg,
)
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sim import SimulationCfg, UsdFileCfg
from isaaclab.utils import configclass
from isaaclab.utils.noise import UniformNoiseCfg
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_rl.rsl_rl import RslRlDistillationRunnerCfg, RslRlMLPModelCfg

from foundation.tasks.quadrotor.isaaclab_env import _USD

WEIGHT = 0.0306 * 9.81
"""Of the body [N]."""


@configclass
class ToySceneCfg(InteractiveSceneCfg):
    """One free body per environment."""

    robot: RigidObjectCfg = RigidObjectCfg(prim_path="/World/envs/env_.*/Robot", spawn=UsdFileCfg(usd_path=str(_USD)))


def _sim() -> SimulationCfg:
    solver = MJWarpSolverCfg(iterations=1, ls_iterations=1, disable_contacts=True, njmax=1, nconmax=1)
    return SimulationCfg(dt=0.02, render_interval=1, physics=NewtonCfg(solver_cfg=solver))


def _pull(robot: Any, action: torch.Tensor) -> None:
    """Pull with the weight times ``1 + action``. Shape of ``action``: (num_envs,)."""
    force = torch.zeros(len(action), 1, 3, device=action.device)
    force[:, 0, 2] = WEIGHT * (1.0 + action)
    robot.permanent_wrench_composer.set_forces_and_torques_index(forces=force, torques=torch.zeros_like(force))


class PullAction(ActionTerm):
    """One number per environment: the surplus of the pull over the weight, in weights."""

    def __init__(self, cfg: ActionTermCfg, env: Any):
        super().__init__(cfg, env)
        self._raw = torch.zeros(self.num_envs, 1, device=self.device)

    @property
    def action_dim(self) -> int:
        return 1

    @property
    def raw_actions(self) -> torch.Tensor:
        return self._raw

    @property
    def processed_actions(self) -> torch.Tensor:
        return self._raw

    def process_actions(self, actions: torch.Tensor) -> None:
        self._raw = actions.clone()

    def apply_actions(self) -> None:
        _pull(self._asset, self._raw[:, 0])


def height(env: Any) -> torch.Tensor:
    return env.scene["robot"].data.root_pos_w.torch[:, 2:]


def climb_rate(env: Any) -> torch.Tensor:
    return env.scene["robot"].data.root_lin_vel_w.torch[:, 2:]


def near(env: Any) -> torch.Tensor:
    return 1.0 - height(env)[:, 0].abs()


@configclass
class ActionsCfg:
    """What acts."""

    pull: ActionTermCfg = ActionTermCfg(class_type=PullAction, asset_name="robot")


@configclass
class ObservationsCfg:
    """What is seen: exactly by the teacher, with noise by the student."""

    @configclass
    class TeacherCfg(ObservationGroupCfg):
        """Exact."""

        height = ObservationTermCfg(func=height)
        climb_rate = ObservationTermCfg(func=climb_rate)

    @configclass
    class PolicyCfg(ObservationGroupCfg):
        """Noisy."""

        height = ObservationTermCfg(func=height, noise=UniformNoiseCfg(n_min=-0.02, n_max=0.02))
        climb_rate = ObservationTermCfg(func=climb_rate, noise=UniformNoiseCfg(n_min=-0.02, n_max=0.02))

        def __post_init__(self) -> None:
            self.enable_corruption = True

    teacher: TeacherCfg = TeacherCfg()
    policy: PolicyCfg = PolicyCfg()


@configclass
class EventsCfg:
    """Where episodes begin."""

    start = EventTermCfg(
        func=mdp.reset_root_state_uniform,
        mode="reset",
        params={"pose_range": {"z": (-0.5, 0.5)}, "velocity_range": {}, "asset_cfg": SceneEntityCfg("robot")},
    )


@configclass
class RewardsCfg:
    """Being near."""

    near = RewardTermCfg(func=near, weight=1.0)


@configclass
class TerminationsCfg:
    """Time."""

    time_out = TerminationTermCfg(func=mdp.time_out, time_out=True)


@configclass
class ToyManagerEnvCfg(ManagerBasedRLEnvCfg):
    """The manager-based task."""

    decimation: int = 1
    episode_length_s: float = 1.0
    sim: SimulationCfg = _sim()
    scene: InteractiveSceneCfg = ToySceneCfg(num_envs=8, env_spacing=2.0)
    actions: ActionsCfg = ActionsCfg()
    observations: ObservationsCfg = ObservationsCfg()
    events: EventsCfg = EventsCfg()
    rewards: RewardsCfg = RewardsCfg()
    terminations: TerminationsCfg = TerminationsCfg()


@configclass
class ToyMarlEnvCfg(DirectMARLEnvCfg):
    """The multi-agent task."""

    decimation: int = 1
    episode_length_s: float = 1.0
    possible_agents: list = ["left", "right"]  # noqa: RUF012 (a configclass)
    action_spaces: dict = {"left": 1, "right": 1}  # noqa: RUF012
    observation_spaces: dict = {"left": 1, "right": 1}  # noqa: RUF012
    state_space: int = 0
    sim: SimulationCfg = _sim()
    scene: InteractiveSceneCfg = ToySceneCfg(num_envs=8, env_spacing=2.0)


class ToyMarlEnv(DirectMARLEnv):
    """``left`` sees the height, ``right`` the climb rate; both pull."""

    def _pre_physics_step(self, actions: dict[str, torch.Tensor]) -> None:
        self._pull = 0.5 * (actions["left"] + actions["right"])[:, 0]

    def _apply_action(self) -> None:
        _pull(self.scene["robot"], self._pull)

    def _get_observations(self) -> dict[str, torch.Tensor]:
        return {"left": height(self).clone(), "right": climb_rate(self).clone()}

    def _get_rewards(self) -> dict[str, torch.Tensor]:
        return {"left": 0.5 * near(self), "right": 0.5 * near(self)}

    def _get_dones(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        ended = self.episode_length_buf >= self.max_episode_length
        never = torch.zeros_like(ended)
        return dict.fromkeys(self.cfg.possible_agents, never), dict.fromkeys(self.cfg.possible_agents, ended)

    def _reset_idx(self, env_ids: Sequence[int]) -> None:
        super()._reset_idx(env_ids)
        ids = torch.as_tensor(env_ids, dtype=torch.int32, device=self.device)
        pose = torch.zeros(len(ids), 7, device=self.device)
        pose[:, :3] = self.scene.env_origins[ids.long()]
        pose[:, 2] += torch.rand(len(ids), device=self.device) - 0.5
        pose[:, 6] = 1.0
        robot = self.scene["robot"]
        robot.write_root_pose_to_sim_index(root_pose=pose, env_ids=ids)
        robot.write_root_velocity_to_sim_index(root_velocity=torch.zeros(len(ids), 6, device=self.device), env_ids=ids)


@configclass
class ToyDistillationRunnerCfg(RslRlDistillationRunnerCfg):
    """For RSL-RL's own distillation, as Isaac Lab's tasks have it; what is not said is MISSING."""

    obs_groups: dict = {"student": ["policy"], "teacher": ["teacher"]}  # noqa: RUF012
    student: RslRlMLPModelCfg = RslRlMLPModelCfg(hidden_dims=[32, 16], activation="relu")


_AGENT = "foundation.config.agent_cfg:OnPolicyRunnerCfg"

gymnasium.register(
    id="Toy-Lift-Manager",
    entry_point="isaaclab.envs:ManagerBasedRLEnv",
    disable_env_checker=True,
    kwargs={
        "env_cfg_entry_point": f"{__name__}:ToyManagerEnvCfg",
        "rsl_rl_cfg_entry_point": _AGENT,
        "rsl_rl_distillation_cfg_entry_point": f"{__name__}:ToyDistillationRunnerCfg",
    },
)
gymnasium.register(
    id="Toy-Lift-Marl",
    entry_point=f"{__name__}:ToyMarlEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": f"{__name__}:ToyMarlEnvCfg", "rsl_rl_cfg_entry_point": _AGENT},
)
