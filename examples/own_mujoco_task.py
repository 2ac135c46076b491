"""A task on the engine ``mujoco`` in one file: a box with a springy leg hops to a commanded height.

python CLONE/foundation/rsl_rl/train.py --task own_mujoco_task:Hopper-v0 --num_envs 256 --max_iterations 40
python CLONE/foundation/rsl_rl/distillation.py --task own_mujoco_task:Hopper-v0 --teacher_checkpoint PATH/best_model.pt
"""

from dataclasses import dataclass

import gymnasium
import mujoco
import torch

from foundation.config.agent_cfg import OnPolicyRunnerCfg
from foundation.tasks.mujoco.env import Judgement, MujocoEnv, MujocoEnvCfg

MODEL = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="5 5 0.1" rgba="0.8 0.85 0.8 1"/>
    <body name="box" pos="0 0 0.3">
      <joint name="height" type="slide" axis="0 0 1" damping="0.2"/>
      <geom type="box" size="0.1 0.1 0.05" mass="1"/>
      <body pos="0 0 -0.1">
        <joint name="leg" type="slide" axis="0 0 1" range="-0.15 0.1" damping="1"/>
        <geom name="foot" type="sphere" size="0.04" mass="0.1"/>
      </body>
    </body>
  </worldbody>
  <actuator><position joint="leg" kp="400" ctrlrange="-0.15 0.1"/></actuator>
  <sensor><framepos objtype="geom" objname="foot"/></sensor>
</mujoco>
"""


@dataclass
class HopperEnvCfg(MujocoEnvCfg):
    """Hop to a height."""

    episode_length_s: float = 2.0
    highest: float = 0.6
    """Greatest commanded height [m]."""


class HopperEnv(MujocoEnv):
    """Boxes of two masses, each with a leg; the episode ends where one leaps too high."""

    cfg: HopperEnvCfg
    num_actions = 1
    reward_names = ("height",)
    limit_names = ("too_high",)
    metric_names = ("height_error",)
    metric_units = {"height_error": (100.0, "cm")}  # noqa: RUF012
    _TENSORS = (*MujocoEnv._TENSORS, "target")
    num_uniform = 2

    def __init__(self, cfg: HopperEnvCfg | None = None, render_mode: str | None = None):
        """Build a light and a heavy box; each episode has one of them."""
        light, heavy = (mujoco.MjModel.from_xml_string(MODEL) for _ in range(2))
        heavy.body("box").mass[:] *= 1.5
        mujoco.mj_setConst(heavy, mujoco.MjData(heavy))
        super().__init__(cfg or HopperEnvCfg(), [light, heavy], render_mode)

    def prepare(self) -> None:
        """Allocate the commanded heights."""
        self.target = torch.zeros(self.num_envs)

    def begin(self, where: torch.Tensor, uniform: torch.Tensor) -> None:
        """Draw the box and the height, and drop it."""
        qpos = torch.zeros(self.num_envs, 2, dtype=torch.float64)
        heavy = (uniform[:, 0] < 0.5).long()
        self.sim.begin(where.numpy(), qpos.numpy(), torch.zeros_like(qpos).numpy(), heavy.numpy())
        self.target = torch.where(where, 0.2 + (self.cfg.highest - 0.2) * uniform[:, 1].float(), self.target)

    def control(self, action: torch.Tensor) -> torch.Tensor:
        """Return the leg's target [m]. Shape: (num_envs, 1)."""
        return 0.125 * action - 0.025

    def judge(self, action: torch.Tensor) -> Judgement:
        """Reward the height."""
        error = (0.3 + self.qpos[:, 0].float() - self.target).abs()
        reward = torch.exp(-10.0 * error) * self.step_dt
        return Judgement(reward.unsqueeze(0), (self.qpos[:, 0] > 1.0).unsqueeze(0), {"height_error": error})

    def observe(self) -> dict[str, torch.Tensor]:
        """Return everything, and what a student without a velocity has."""
        sensed = torch.cat([self.qpos.float(), self.target.unsqueeze(1), self.previous_action], 1)
        return {"policy": torch.cat([sensed, self.qvel.float()], 1), "sensed": sensed}


gymnasium.register(
    id="Hopper-v0",
    entry_point="own_mujoco_task:HopperEnv",
    kwargs={
        "mujoco_env_entry_point": HopperEnv,
        "env_cfg_entry_point": HopperEnvCfg,
        "rsl_rl_cfg_entry_point": OnPolicyRunnerCfg,
    },
)
