"""Many copies of a MuJoCo model as RSL-RL's ``VecEnv``: what every task on this engine shares.

A task says in a subclass how episodes begin, what the actuators are told, what a step is worth and what is observed;
physics, episodes, random numbers, statistics, saving and pictures are here. Random numbers are drawn for every
environment at every step, and those that begin an episode take theirs, so that none depends on which others ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.tasks.mujoco.perturbations import QUANTITIES
from foundation.tasks.mujoco.simulation import BatchedSimulation

if TYPE_CHECKING:
    import numpy as np

    from foundation.tasks.mujoco.picture import Picture


@dataclass
class SceneCfg:
    """Number of environments."""

    num_envs: int = 512
    """Parallel environments."""


@dataclass
class SimCfg:
    """The simulation."""

    dt: float = 0.005
    """Time step of the physics [s]."""
    device: str = "cpu"
    """Torch device of observations, rewards and actions; the physics is computed on the CPU."""
    num_threads: int | None = None
    """Threads of the physics. None: as many as torch uses (``OMP_NUM_THREADS``). Results do not depend on it."""


@dataclass
class ViewerCfg:
    """Pictures of ``render()``."""

    num_envs: int = 1
    """Environments shown beside one another."""
    resolution: tuple[int, int] = (640, 360)
    """Width and height [px]."""
    distance: float = 1.6
    """Of the camera from what it follows [m]."""
    azimuth: float = 125.0
    """Direction of the camera's view in the world [deg]."""
    elevation: float = -18.0
    """Angle of the camera's view above the horizontal [deg]."""
    spacing: float = 0.7
    """Distance between environments that are shown beside one another [m]."""


@dataclass
class MujocoEnvCfg:
    """What every task on this engine can be told."""

    scene: SceneCfg = field(default_factory=SceneCfg)
    """Number of environments."""
    sim: SimCfg = field(default_factory=SimCfg)
    """The simulation."""
    decimation: int = 4
    """Physics steps per action."""
    episode_length_s: float = 10.0
    """Length of an episode [s]."""
    seed: int | None = 42
    """Seed of the environment's own generator, which nothing else draws from. None: a random one."""
    viewer: ViewerCfg = field(default_factory=ViewerCfg)
    """Pictures."""


class Judgement(NamedTuple):
    """What a task says of one step."""

    terms: torch.Tensor
    """Weighted terms of the reward. Shape: (num_terms, num_envs)."""
    exceeded: torch.Tensor
    """Which limit was passed; any of them terminates. Shape: (num_limits, num_envs)."""
    metrics: Mapping[str, torch.Tensor]
    """What an episode's metrics are the means of, each (num_envs,)."""
    reward: torch.Tensor | None = None
    """Reward, where it is not the sum of the terms. Shape: (num_envs,)."""
    truncated: torch.Tensor | None = None
    """Episodes that end without having failed, before their time is over. Shape: (num_envs,)."""


def check_mujoco_cfg(cfg: MujocoEnvCfg) -> None:
    """Refuse settings that no simulation can have."""
    for name in ("scene", "sim", "viewer"):
        if getattr(cfg, name) is None:
            raise UserError(f"env.{name}=null: the task needs it; set single values of it, env.{name}.NAME=VALUE")
    positive: dict[str, float] = {"sim.dt": cfg.sim.dt, "episode_length_s": cfg.episode_length_s}
    for name, value in positive.items():
        if not 0.0 < value < float("inf"):
            raise UserError(f"env.{name} must be positive [s], it is {value}")
    counts: dict[str, int | None] = {
        "scene.num_envs": cfg.scene.num_envs,
        "decimation": cfg.decimation,
        "sim.num_threads": cfg.sim.num_threads,
        "viewer.num_envs": cfg.viewer.num_envs,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"env.{name} must be at least 1, it is {value}")


class MujocoEnv(ABC):
    """Many copies of a MuJoCo model, one in each environment."""

    num_actions: int
    reward_names: ClassVar[tuple[str, ...]]
    """The reward's terms."""
    limit_names: ClassVar[tuple[str, ...]]
    """The limits that end an episode."""
    metric_names: ClassVar[tuple[str, ...]]
    """The metrics of an episode."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (gymnasium's convention)
    perturbations = QUANTITIES
    """What :meth:`perturb` can vary: name -> (unit, nominal value, values to measure at)."""
    _TENSORS: ClassVar[tuple[str, ...]] = ("_action", "episode_length_buf", "_sums", "_latest")
    """Tensors that decide what happens next; a task adds its own."""

    def __init__(self, cfg: MujocoEnvCfg, models: Sequence[Any], render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``.

        Args:
            cfg: The task's configuration.
            models: Variants of the model, ``mujoco.MjModel`` of equal sizes whose time step is ``cfg.sim.dt``.
            render_mode: Kept for gymnasium.
        """
        check_mujoco_cfg(cfg)
        self.cfg = cfg
        self.render_mode = render_mode
        self.num_envs = cfg.scene.num_envs
        self.device = torch.device(cfg.sim.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device '{self.device}' was asked for, but torch sees no CUDA device: use --device cpu")
        self.step_dt = cfg.sim.dt * cfg.decimation
        self.max_episode_length = max(1, round(cfg.episode_length_s / self.step_dt))
        threads = torch.get_num_threads() if cfg.sim.num_threads is None else cfg.sim.num_threads
        self.sim = BatchedSimulation(models, self.num_envs, threads)
        self._generator = torch.Generator()
        n = self.num_envs
        self.episode_length_buf = torch.zeros(n, dtype=torch.long, device=self.device)
        self._action = torch.zeros(n, self.num_actions)
        self._sums = torch.zeros(len(self.reward_names) + len(self.metric_names) + 1, n)
        """Of the episodes so far: the terms, the metrics and the steps. Shape: (num_sums, num_envs)."""
        self._latest = torch.zeros(len(self._tags()))
        self._picture: Picture | None = None
        self._seeded = False
        self.prepare()
        self.reset(cfg.seed)

    def _tags(self) -> list[str]:
        return [
            *(f"Episode_Reward/{name}" for name in self.reward_names),
            *(f"Metrics/{name}" for name in self.metric_names),
            "Metrics/episode_length",
            *(f"Episode_Termination/{name}" for name in (*self.limit_names, "time_out")),
        ]

    # -- what a task says ------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_uniform(self) -> int:
        """Random numbers that the beginning of an episode takes."""

    def prepare(self) -> None:
        """Allocate what the task needs, before the first reset."""
        return

    @abstractmethod
    def begin(self, where: torch.Tensor, uniform: torch.Tensor) -> None:
        """Begin episodes: put the simulation (``self.sim.begin``) and the task's own tensors into new states.

        Args:
            where: Which environments. Shape: (num_envs,).
            uniform: Random numbers in [0, 1) for all. Shape: (num_envs, num_uniform), float64.
        """

    def disturb(self) -> None:
        """Change the state before a step's physics, as a push does; may draw from ``self.generator``."""
        return

    @abstractmethod
    def control(self, action: torch.Tensor) -> torch.Tensor:
        """Turn actions into controls of the actuators. Shape: (num_envs, num_actions) to (num_envs, nu)."""

    @abstractmethod
    def judge(self, action: torch.Tensor) -> Judgement:
        """Judge a step after its physics; ``previous_action`` is the one before. Shape: (num_envs, num_actions)."""

    def advance(self) -> None:
        """Change the task's own tensors at the end of a step, such as commands; may draw from ``self.generator``."""
        return

    @abstractmethod
    def observe(self) -> dict[str, torch.Tensor]:
        """Build the observation groups of the current state, each (num_envs, size)."""

    # -- stepping ----------------------------------------------------------------------------------------------------

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Args:
            seed: Restart the environment's generator with it; the same seed gives the same numbers from here on.

        Returns:
            Observation groups.
        """
        if seed is not None:
            self._generator.manual_seed(seed)
        elif not self._seeded:
            self._generator.seed()
        self._seeded = True
        self._begin_episodes(torch.ones(self.num_envs, dtype=torch.bool))
        self._see()
        return self._observations

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment; those that end begin a new episode at once.

        A NaN among the actions is carried into the observations and the reward, for the caller to see.

        Args:
            actions: Shape: (num_envs, num_actions).

        Returns:
            Observation groups; rewards (num_envs,); dones (num_envs,), 1 where an episode ended; extras with
            ``time_outs``, ``log`` and ``episode_metrics``.
        """
        action = actions.detach().to("cpu", torch.float32)
        self.disturb()
        self.sim.step(self.control(action).double().numpy(), self.cfg.decimation)
        judged = self.judge(action)
        reward = judged.terms.sum(0) if judged.reward is None else judged.reward
        self.episode_length_buf = self.episode_length_buf + 1
        terminated = judged.exceeded.any(0)
        over = self.episode_length_buf.cpu() >= self.max_episode_length
        time_outs = (over if judged.truncated is None else over | judged.truncated) & ~terminated
        dones = terminated | time_outs
        self._action = action.clone()
        metrics = self._count(judged, time_outs, dones)
        self.advance()
        self._begin_episodes(dones)
        self._see()
        extras = {
            "time_outs": time_outs.to(self.device),
            "log": dict(zip(self._tags(), self._latest.to(self.device).unbind(), strict=True)),
            "episode_metrics": {name: value.to(self.device) for name, value in metrics.items()},
        }
        return self._observations, reward.to(self.device), dones.to(self.device, torch.long), extras

    def _begin_episodes(self, where: torch.Tensor) -> None:
        uniform = torch.rand(self.num_envs, self.num_uniform, generator=self._generator, dtype=torch.float64)
        if where.any():
            self.begin(where, uniform)
            self._action = self._action.masked_fill(where[:, None], 0.0)
            self._sums = self._sums.masked_fill(where, 0.0)
            self.episode_length_buf = self.episode_length_buf.masked_fill(where.to(self.device), 0)

    def _see(self) -> None:
        groups = {name: value.to(self.device, torch.float32) for name, value in self.observe().items()}
        self._observations = TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def _count(self, judged: Judgement, time_outs: torch.Tensor, dones: torch.Tensor) -> dict[str, torch.Tensor]:
        """Add a step to the statistics, and return the metrics of the episodes so far, each (num_envs,)."""
        values = torch.stack([judged.metrics[name] for name in self.metric_names])
        self._sums = self._sums + torch.cat([judged.terms, values, torch.ones(1, self.num_envs)])
        steps = self._sums[-1]
        first = len(self.reward_names)
        means = self._sums[first:-1] / steps
        if dones.any():
            seconds = self.cfg.episode_length_s
            ends = torch.cat([judged.exceeded, time_outs.unsqueeze(0)]).float()
            table = torch.cat([self._sums[:first] / seconds, means, steps.unsqueeze(0), ends])
            self._latest = table[:, dones].mean(1)
        return dict(zip(self.metric_names, means.unbind(), strict=True))

    def get_observations(self) -> TensorDict:
        """Return the observation groups of the last step or reset (noise is not drawn again)."""
        return self._observations

    # -- the rest of an environment's life -----------------------------------------------------------------------------

    @property
    def unwrapped(self) -> MujocoEnv:
        """This environment."""
        return self

    @property
    def generator(self) -> torch.Generator:
        """The environment's own source of random numbers, on the CPU."""
        return self._generator

    @property
    def previous_action(self) -> torch.Tensor:
        """The last action, zeros where an episode begins. Shape: (num_envs, num_actions)."""
        return self._action

    @property
    def qpos(self) -> torch.Tensor:
        """View of the generalised positions. Shape: (num_envs, nq), float64."""
        return torch.from_numpy(self.sim.qpos)

    @property
    def qvel(self) -> torch.Tensor:
        """View of the generalised velocities. Shape: (num_envs, nv), float64."""
        return torch.from_numpy(self.sim.qvel)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next, as copies, on the CPU."""
        tensors = {name: getattr(self, name).cpu().clone() for name in self._TENSORS}
        for name in ("state", "variant", "sensors"):
            tensors[f"sim.{name}"] = torch.from_numpy(getattr(self.sim, name)).clone()
        return {
            "tensors": tensors,
            "observations": {name: value.cpu().clone() for name, value in self._observations.items()},
            "generator": self._generator.get_state(),
            "num_envs": self.num_envs,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        if saved["num_envs"] != self.num_envs:
            raise UserError(
                f"the saved environment state has {saved['num_envs']} environments, this one has {self.num_envs}: "
                f"use --num_envs {saved['num_envs']}"
            )
        own = self.state_dict()
        for kind in ("tensors", "observations"):
            for name, value in own[kind].items():
                found = saved[kind].get(name)
                sensors = name == "sim.sensors"  # as many physics steps as the last env step had; none after a reset
                if found is None or found.dtype != value.dtype or (found.shape != value.shape and not sensors):
                    size = "none" if found is None else list(found.shape)
                    raise UserError(f"the saved environment state has another '{name}': {size}")
        for name in self._TENSORS:
            setattr(self, name, saved["tensors"][name].to(getattr(self, name).device).clone())
        for name in ("state", "variant", "sensors"):
            setattr(self.sim, name, saved["tensors"][f"sim.{name}"].clone().numpy())
        groups = {name: value.to(self.device).clone() for name, value in saved["observations"].items()}
        self._observations = TensorDict(groups, batch_size=[self.num_envs], device=self.device)
        self._generator.set_state(saved["generator"].cpu())

    def perturb(self, values: Mapping[str, float]) -> None:
        """Vary the simulation of all variants; what is not named is nominal again.

        Args:
            values: Names of :attr:`perturbations`, and by how much they change [%].
        """
        self.sim.vary(values)

    def model_to_draw(self) -> Any:
        """Return the model that pictures are of: a ``mujoco.MjModel`` with the positions of the simulated one."""
        return self.sim.model

    def render(self) -> np.ndarray:
        """Draw the first environments. Shape: (height, width, 3), uint8."""
        if self._picture is None:
            from foundation.tasks.mujoco.picture import Picture

            self._picture = Picture(self.model_to_draw(), self.cfg.viewer)
        return self._picture.draw(self.sim.qpos[: self.cfg.viewer.num_envs])

    def close(self) -> None:
        """Let go of threads and pictures; a second call does nothing."""
        self.sim.close()
        if self._picture is not None:
            self._picture.close()
            self._picture = None
