"""Rollouts: somebody acts, the teacher labels, every step is stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import CollectionCfg
from foundation.data.actors import Policy, StudentActor, TeacherPolicy
from foundation.data.dataset import DistillationDataset
from foundation.data.obs_groups import ObsSelector
from foundation.errors import UserError
from foundation.networks.output import PolicyOutput


@dataclass
class CollectionStats:
    """What an epoch's collection saw. Statistics come from whole episodes alone."""

    returns: torch.Tensor
    """Return of each finished episode. Shape: (num_episodes,)."""
    lengths: torch.Tensor
    """Length of each finished episode [env steps]. Shape: (num_episodes,)."""
    time_outs: torch.Tensor
    """Whether it ended by time-out. Shape: (num_episodes,)."""
    env_steps: int
    """Transitions collected, over all environments."""
    slots: list[int] = field(default_factory=list)
    """Chunks written."""
    log: dict[str, float] = field(default_factory=dict)
    """Means of ``extras["log"]``."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """``extras["episode_metrics"]`` of the finished episodes, each (num_episodes,)."""


class EpisodeTracker:
    """Adds up returns per environment and records the episodes that end, without a host sync per step."""

    def __init__(self, num_envs: int, chunk_steps: int, device: torch.device | str):
        self.returns = torch.zeros(num_envs, device=device)
        self.lengths = torch.zeros(num_envs, device=device)
        self.whole = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.counts = torch.zeros(num_envs, device=device)
        self.quota = math.inf
        shape = (chunk_steps, num_envs)
        self._returns = torch.zeros(shape, device=device)
        self._lengths = torch.zeros(shape, device=device)
        self._ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self._whole = torch.zeros(shape, dtype=torch.bool, device=device)
        self._time_outs = torch.zeros(shape, dtype=torch.bool, device=device)
        self._metrics: list[dict[str, torch.Tensor]] = []

    def add(self, step: int, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """Count one env step. Shapes: (num_envs,)."""
        self.returns.add_(rewards)
        self.lengths.add_(1.0)
        self._returns[step].copy_(self.returns)
        self._lengths[step].copy_(self.lengths)
        self._ended[step].copy_(dones)
        torch.logical_and(self.whole, self.counts < self.quota, out=self._whole[step])
        time_outs = extras.get("time_outs")
        if time_outs is not None:
            self._time_outs[step].copy_(time_outs)
        metrics = extras.get("episode_metrics") or {}
        self._metrics.append({name: value.clone() for name, value in metrics.items()})
        self.counts.add_(dones)
        self.returns.masked_fill_(dones, 0.0)
        self.lengths.masked_fill_(dones, 0.0)
        self.whole.logical_or_(dones)

    def cut(self) -> None:
        """Episodes in progress are not whole: they never enter a statistic."""
        self.whole.fill_(False)

    def restart(self, quota: float = math.inf) -> None:
        """Every environment was reset: all episodes begin now, and each environment's first ``quota`` count."""
        self.quota = quota
        self.counts.zero_()
        self.returns.zero_()
        self.lengths.zero_()
        self.whole.fill_(True)

    def drain(self) -> tuple[int, dict[str, torch.Tensor]]:
        """Return how many episodes ended since the last call, and the whole ones among them (one host sync).

        With a quota, only the episodes within it are counted: counting whichever end first would favour short ones.
        """
        mask = self._ended & self._whole
        ended = int((mask if self.quota < math.inf else self._ended).sum())
        out = {"returns": self._returns[mask], "lengths": self._lengths[mask], "time_outs": self._time_outs[mask]}
        if self._metrics and self._metrics[0]:
            for name in self._metrics[0]:
                out["metric/" + name] = torch.stack([m[name] for m in self._metrics])[mask]
        self._metrics = []
        self._ended.zero_()
        return ended, out

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a chunk's end carries over."""
        return {"returns": self.returns, "lengths": self.lengths, "whole": self.whole}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in ("returns", "lengths", "whole"):
            getattr(self, name).copy_(state[name])


class Collector:
    """Fills a dataset from one environment.

    Args:
        env: The environment (see ``engines.base.VecEnv``).
        teacher: Labels every step, and acts where it drives.
        student: Acts where it drives.
        dataset: Takes the rows.
        teacher_obs: Selects the teacher's observations.
        student_obs: Selects the student's observations.
        cfg: Noise and staggering.
        mode: ``steps`` goes on where the last epoch stopped; ``episodes`` resets first, with a seed made of
            ``(seed, epoch)``.
        num_episodes: Episodes to finish in an epoch.
        seed: Seed of the resets and of the collector's own randomness.
        label_bound: Labels are clipped to [-bound, bound] where the environment or agent config defines one.
        teacher_deterministic: The acting teacher plays its mean; labels are its mean always.
    """

    def __init__(
        self,
        env: Any,
        teacher: TeacherPolicy,
        student: Policy,
        dataset: DistillationDataset,
        teacher_obs: ObsSelector,
        student_obs: ObsSelector,
        cfg: CollectionCfg | None = None,
        *,
        mode: str = "steps",
        num_episodes: int = 100,
        seed: int = 0,
        label_bound: float | None = None,
        teacher_deterministic: bool = True,
    ):
        self.env, self.teacher, self.dataset = env, teacher, dataset
        self.teacher_obs, self.student_obs = teacher_obs, student_obs
        self.cfg, self.mode, self.num_episodes = cfg or CollectionCfg(), mode, num_episodes
        self.seed, self.label_bound, self.teacher_deterministic = seed, label_bound, teacher_deterministic
        device = env.device
        self.student = StudentActor(student, student_obs)
        self.tracker = EpisodeTracker(env.num_envs, dataset.chunk_steps, device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.rounds = math.ceil(num_episodes / env.num_envs)
        self.resets = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        self.teacher_drives = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        self._obs: TensorDict | None = None
        self._beta: float | None = None
        self._stored = [name for name in dataset.columns if name != "obs"]

    @torch.no_grad()
    def collect(self, epoch: int, beta: float, poll: Callable[[], None] | None = None) -> CollectionStats:
        """Run one epoch's rollouts.

        Args:
            epoch: Number of the epoch; with the seed it seeds the resets in ``episodes`` mode.
            beta: Probability that an episode is driven by the teacher.
            poll: Called once per chunk; may raise to abandon the epoch.

        Returns:
            Statistics of the finished whole episodes and the chunks written.

        Raises:
            UserError: If the teacher's labels, the observations or the rewards are not finite.
        """
        self._begin(epoch, beta)
        ended, env_steps = 0, 0
        drained: list[dict[str, torch.Tensor]] = []
        slots: list[int] = []
        logs: list[dict] = []
        wanted = self.rounds * self.env.num_envs if self.mode == "episodes" else self.num_episodes
        for _ in range(self._most_chunks()):
            if poll is not None:
                poll()
            slot, last_log = self._collect_chunk(beta)
            count, episodes = self.tracker.drain()
            ended += count
            env_steps += self.dataset.rows_per_chunk
            drained.append(episodes)
            slots = [kept for kept in slots if kept != slot] + [slot]
            logs.append(last_log)
            if ended >= wanted:
                return _merge(drained, env_steps, slots, logs)
        raise UserError(
            f"Only {ended} of {wanted} episodes ended within {self.env.max_episode_length} env steps each: check the "
            "environment's time-outs."
        )

    def _begin(self, epoch: int, beta: float) -> None:
        if self.mode == "episodes" or self._obs is None:
            seed = (self.seed * 1_000_003 + epoch) % (2**31)
            self._obs = self.env.reset(seed)
            self.teacher.reset()
            self.student.reset()
            self.tracker.restart(self.rounds if self.mode == "episodes" else math.inf)
            self.resets.fill_(True)
            if self.mode == "steps" and self.cfg.staggered:
                self._stagger()
            self._redraw_drivers(self.resets, beta)
        elif beta != self._beta and beta in (0.0, 1.0):
            # A phase begins for every environment at once; episodes begun under another driver are nobody's.
            self.teacher_drives.fill_(beta == 1.0)
            self.tracker.cut()
        self._beta = beta

    def _stagger(self) -> None:
        """Start the environments at different times of their episodes, so that ends come evenly."""
        lengths = torch.randint(
            int(self.env.max_episode_length), (self.env.num_envs,), generator=self.generator, device=self.env.device
        )
        self.env.episode_length_buf = lengths.to(self.env.episode_length_buf.dtype)
        self.tracker.cut()

    def _redraw_drivers(self, where: torch.Tensor, beta: float) -> None:
        if beta in (0.0, 1.0):
            self.teacher_drives.fill_(beta == 1.0)
            return
        uniform = torch.rand(self.env.num_envs, generator=self.generator, device=self.env.device)
        self.teacher_drives = torch.where(where, uniform < beta, self.teacher_drives)

    def _collect_chunk(self, beta: float) -> tuple[int, dict]:
        dataset, env = self.dataset, self.env
        slot = dataset.begin_chunk()
        student_steps = beta < 1.0 or dataset.states is not None
        reward_sum = torch.zeros(env.num_envs, device=env.device)
        extras: dict = {}
        obs = self._obs
        assert obs is not None
        for step in range(dataset.chunk_steps):
            student_obs = self.student_obs(obs)
            label = self.teacher.output(self.teacher_obs(obs))
            state = self._student_state(student_obs) if dataset.states is not None else None
            student = self.student.output(student_obs) if student_steps else None
            dataset.write(step, student_obs, self._clip(label), self.resets, None, state)
            obs, rewards, dones, extras = env.step(self._actions(label, student, beta))
            dones = dones.bool()
            self.tracker.add(step, rewards, dones, extras)
            reward_sum += rewards
            self.teacher.reset(dones)
            self.student.reset(dones)
            self.resets.copy_(dones)
            if 0.0 < beta < 1.0:
                self._redraw_drivers(dones, beta)
        self._obs = obs
        self._check_finite(slot, reward_sum)
        dataset.commit_chunk()
        return slot, dict(extras.get("log") or {})

    def _student_state(self, obs: torch.Tensor) -> torch.Tensor | None:
        if self.student.state is None:
            return self.student.student.initial_state(obs.shape[0], obs.device)
        return self.student.state

    def _clip(self, label: PolicyOutput) -> PolicyOutput:
        if self.label_bound is None:
            return label
        return label._replace(mean=label.mean.clamp(-self.label_bound, self.label_bound))

    def _actions(self, label: PolicyOutput, student: PolicyOutput | None, beta: float) -> torch.Tensor:
        """Return what is executed; noise goes here and never into the labels."""
        actions = label.mean
        if not self.teacher_deterministic and label.std is not None and beta > 0.0:
            actions = actions + label.std * self._randn_like(actions)
        if student is not None and beta < 1.0:
            actions = (
                torch.where(self.teacher_drives.unsqueeze(-1), actions, student.mean) if beta > 0.0 else student.mean
            )
        if self.cfg.noise_std > 0.0:
            actions = actions + self.cfg.noise_std * self._randn_like(actions)
        if self.cfg.epsilon > 0.0:
            device, num_envs = actions.device, actions.shape[0]
            uniform = torch.rand(actions.shape, generator=self.generator, device=device) * 2.0 - 1.0
            explore = torch.rand(num_envs, 1, generator=self.generator, device=device) < self.cfg.epsilon
            actions = torch.where(explore, uniform, actions)
        return actions

    def _randn_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=self.generator, device=tensor.device)

    def _check_finite(self, slot: int, reward_sum: torch.Tensor) -> None:
        """Stop on NaN or infinity before the chunk counts (one host sync per chunk)."""
        rows = self.dataset.rows[slot]
        if bool(torch.isfinite(rows).all() & torch.isfinite(reward_sum).all()):
            return
        if not bool(torch.isfinite(rows[..., self.dataset.columns["obs"]]).all()):
            groups = ", ".join(self.student_obs.groups)
            raise UserError(f"The environment returned NaN or infinite observations (group {groups}): check its reset.")
        for name in self._stored:
            if not bool(torch.isfinite(rows[..., self.dataset.columns[name]]).all()):
                raise UserError(
                    f"The teacher's output '{name}' is NaN or infinite: check its observation groups and normaliser."
                )
        raise UserError("The environment returned NaN or infinite rewards.")

    def _most_chunks(self) -> int:
        """Return how many chunks suffice if every episode ends in time."""
        steps = (self.rounds + 1) * (int(self.env.max_episode_length) + 1)
        return 1 + math.ceil(steps / self.dataset.chunk_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, the environment's own state included where it can give it."""
        state: dict[str, Any] = {"generator": self.generator.get_state(), "beta": self._beta}
        if self.mode == "steps" and self._obs is not None and hasattr(self.env, "state_dict"):
            state["env"] = self.env.state_dict()
            state["tracker"] = self.tracker.state_dict()
            state["resets"] = self.resets
            state["teacher_drives"] = self.teacher_drives
            state["student_state"] = self.student.state
            state["teacher_state"] = getattr(self.teacher, "state", None)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore what :meth:`state_dict` returned.

        Returns:
            Whether the rollouts go on exactly where they stopped.
        """
        self.generator.set_state(state["generator"])
        self._beta = state["beta"]
        if self.mode == "episodes":
            return True
        if "env" not in state or not hasattr(self.env, "load_state_dict"):
            return False
        self.env.load_state_dict(state["env"])
        self.tracker.load_state_dict(state["tracker"])
        self.resets.copy_(state["resets"])
        self.teacher_drives.copy_(state["teacher_drives"])
        self.student.reset()
        self.teacher.reset()
        if state["student_state"] is not None:
            self.student.state, self.student._fresh = state["student_state"].to(self.env.device), False
        if state["teacher_state"] is not None:
            self.teacher.state = state["teacher_state"].to(self.env.device)  # type: ignore[attr-defined]  # recurrent
        self._obs = self.env.get_observations()
        return True


def _merge(
    drained: list[dict[str, torch.Tensor]], env_steps: int, slots: list[int], logs: list[dict]
) -> CollectionStats:
    merged = {name: torch.cat([d[name] for d in drained]) for name in drained[0]}
    metrics = {name.removeprefix("metric/"): merged[name] for name in merged if name.startswith("metric/")}
    return CollectionStats(
        merged["returns"], merged["lengths"], merged["time_outs"], env_steps, slots, mean_log(logs), metrics
    )


def mean_log(logs: list[dict]) -> dict[str, float]:
    """Average ``extras["log"]`` dictionaries; entries are numbers or one-element tensors."""
    values: dict[str, list[float]] = {}
    for log in logs:
        for name, value in log.items():
            values.setdefault(str(name), []).append(float(value))
    means = {name: math.fsum(numbers) / len(numbers) for name, numbers in values.items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def collect_episodes(
    env: Any,
    teacher: TeacherPolicy,
    dataset: DistillationDataset,
    num_episodes: int,
    *,
    student: Policy,
    teacher_obs_groups: list[str] | None = None,
    student_obs_groups: list[str] | None = None,
    beta: float = 1.0,
    seed: int = 0,
    epoch: int = 0,
) -> CollectionStats:
    """Reset every environment and collect at least ``num_episodes`` whole episodes, labelled by the teacher.

    Args:
        env: The environment.
        teacher: Labels every visited state, and acts with probability ``beta`` per episode.
        dataset: Takes the rows.
        num_episodes: Episodes to finish.
        student: Acts otherwise.
        teacher_obs_groups: The teacher's observation groups; None: ``["policy"]``.
        student_obs_groups: The student's observation groups; None: ``["policy"]``.
        beta: 1 is teacher forcing, 0 is DAgger's on-policy phase (Ross et al. 2011).
        seed: Seed of the resets, with ``epoch``.
        epoch: Number of the epoch.

    Returns:
        Statistics of the finished episodes.
    """
    collector = Collector(
        env,
        teacher,
        student,
        dataset,
        ObsSelector(teacher_obs_groups or ["policy"]),
        ObsSelector(student_obs_groups or ["policy"]),
        mode="episodes",
        num_episodes=num_episodes,
        seed=seed,
    )
    return collector.collect(epoch, beta)
