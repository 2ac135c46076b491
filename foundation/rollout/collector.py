"""Rollouts: somebody acts, the teacher labels, every step is stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import CollectionCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.episode_log import EpisodeLog
from foundation.engines.base import VecEnv, saves_state
from foundation.policies.actors import Policy, PolicyActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.policies.output import PolicyOutput
from foundation.rollout.driver import Driver, bound_of_labels
from foundation.rollout.episodes import CollectionStats, EpisodeTracker, merge_stats
from foundation.rollout.labelling import LateLabels
from foundation.rollout.row_keeper import RowKeeper


class Collector:
    """Fills a dataset from one environment.

    Args:
        env: The environment (see ``engines.base.VecEnv``).
        teacher: Labels every step, and acts where it drives.
        student: Acts where it drives.
        dataset: Takes the rows.
        teacher_obs: Selects the teacher's observations.
        student_obs: Selects the student's observations.
        cfg: Noise, staggering and the clipping of labels.
        mode: ``steps`` goes on where the last epoch stopped; ``episodes`` resets first, with a seed made of
            ``(seed, epoch)``.
        num_episodes: Episodes to finish in an epoch.
        seed: Seed of the resets and of the collector's own randomness.
        label_bound: The environment's or agent config's bound of the actions, if any; labels are clipped to it unless
            ``cfg`` says otherwise.
        teacher_deterministic: The acting teacher plays its mean; labels are its mean always.
        keeper: Tells many teachers' rows apart and corrects their positions; None: there is nothing to do.
        recorder: Follows the episodes of the rows, saves and filters them; None: nobody wants it.
    """

    def __init__(
        self,
        env: VecEnv,
        teacher: Policy,
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
        keeper: RowKeeper | None = None,
        recorder: EpisodeLog | None = None,
    ):
        self.recorder = recorder or EpisodeLog(dataset)
        self.env, self.dataset, self.keeper = env, dataset, keeper or RowKeeper()
        self.teacher_obs, self.student_obs = teacher_obs, student_obs
        self.cfg, self.mode, self.num_episodes = cfg or CollectionCfg(), mode, num_episodes
        self.seed, self.label_bound = seed, bound_of_labels(self.cfg, label_bound)
        device = env.device
        self.driver = Driver(
            teacher,
            self.cfg,
            env.num_envs,
            env.num_actions,
            seed=seed,
            device=device,
            teacher_deterministic=teacher_deterministic,
        )
        self.teacher, self.student = PolicyActor(teacher, teacher_obs), PolicyActor(student, student_obs)
        self.tracker = EpisodeTracker(env.num_envs, dataset.chunk_steps, device, int(env.max_episode_length))
        self.rounds = math.ceil(num_episodes / env.num_envs)
        self.resets = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        self._obs: TensorDict | None = None
        self._beta: float | None = None
        self.late = LateLabels(self.teacher, dataset, self._clip)
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
        self.recorder.begin(epoch)
        ended, env_steps = 0, 0
        drained: list[dict[str, torch.Tensor]] = []
        slots: list[int] = []
        logs: list[dict] = []
        wanted = self.rounds * self.env.num_envs if self.mode == "episodes" else self.num_episodes
        for _ in range(self._most_chunks()):
            if poll is not None:
                poll()
            slot, last_log = self._collect_chunk(beta)
            self.recorder.chunk(slot, self.tracker.chunk(), epoch)
            count, episodes = self.tracker.drain()
            ended += count
            env_steps += self.dataset.rows_per_chunk
            drained.append(episodes)
            slots = [kept for kept in slots if kept != slot] + [slot]
            logs.append(last_log)
            if ended >= wanted:
                self.recorder.end(epoch)
                return merge_stats(drained, env_steps, slots, [*logs, self.driver.log()])
        raise UserError(
            f"Only {ended} of {wanted} episodes ended within {self.env.max_episode_length} env steps each: check the "
            "environment's time-outs."
        )

    def restart(self) -> None:
        """Somebody else has used the environment: begin anew, with a reset, at the next collection."""
        self._obs = None

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
            self.driver.begin_episodes(self.resets, beta)
        elif beta != self._beta and beta in (0.0, 1.0):
            # A phase begins for every environment at once; episodes begun under another driver are nobody's.
            self.driver.all_by(beta == 1.0)
            self.tracker.cut()
        self._beta = beta

    def _stagger(self) -> None:
        """Start the environments at different times of their episodes, so that ends come evenly."""
        lengths = torch.randint(
            int(self.env.max_episode_length),
            (self.env.num_envs,),
            generator=self.driver.generator,
            device=self.env.device,
        )
        self.env.episode_length_buf = lengths.to(self.env.episode_length_buf.dtype)
        self._obs = self.env.get_observations()
        self.tracker.cut()

    def _collect_chunk(self, beta: float) -> tuple[int, dict]:
        dataset, env = self.dataset, self.env
        slot = dataset.begin_chunk()
        student_steps = beta < 1.0 or dataset.states is not None
        reward_sum = torch.zeros(env.num_envs, device=env.device)
        extras: dict = {}
        obs = self._obs
        assert obs is not None
        late = self.late if beta == 0.0 and self.late.possible else None
        self.late.begin()
        for step in range(dataset.chunk_steps):
            student_obs, teacher_obs = self.student_obs(obs), self.teacher_obs(obs)
            label = self.teacher.output(teacher_obs) if late is None else None
            state = self.student.current_state(student_obs) if dataset.states is not None else None
            student = self.student.output(student_obs) if student_steps else None
            stored, index = self.keeper.stored(student_obs, obs)
            dataset.write(step, stored, None if label is None else self._clip(label), self.resets, index, state)
            if late is not None:
                late.add(teacher_obs, self.resets)
            obs, rewards, dones, extras = env.step(self.driver.actions(label, student, beta))
            dones = dones.bool()
            self.tracker.add(step, rewards, dones, self.keeper.told(extras, index, self.driver.teacher_drives))
            reward_sum += rewards
            if late is None:
                self.teacher.reset(dones)
            self.student.reset(dones)
            self.resets.copy_(dones)
            if 0.0 < beta < 1.0:
                self.driver.begin_episodes(dones, beta)
        self._obs = obs
        if late is not None:
            late.finish(self.resets)
        self.keeper.check()
        self._check_finite(slot, reward_sum)
        dataset.commit_chunk()
        return slot, dict(extras.get("log") or {})

    def _clip(self, label: PolicyOutput) -> PolicyOutput:
        if self.label_bound is None:
            return label
        return label._replace(mean=label.mean.clamp(-self.label_bound, self.label_bound))

    @torch.no_grad()
    def fit_noise(self, slots: list[int]) -> None:
        """Fit DART's noise to the errors that the student, having learned, still makes on some chunks' states."""
        if self.cfg.dart_alpha == 0.0 or not slots:
            return
        self.driver.fit_noise(torch.cat([self._student_errors(slot) for slot in slots]))

    def _student_errors(self, slot: int) -> torch.Tensor:
        """Return student less teacher on a chunk. Shape: (chunk_steps, num_envs, num_actions)."""
        dataset, device = self.dataset, self.env.device
        rows, resets = dataset.rows[slot].to(device).float(), dataset.resets[slot].to(device)
        obs, mean = rows[..., dataset.columns["obs"]], rows[..., dataset.columns["mean"]]
        state = None if dataset.states is None else dataset.states[slot, 0].to(device)
        output, _ = self.student.policy.sequence(obs, state, resets)
        return output.mean - mean

    def _check_finite(self, slot: int, reward_sum: torch.Tensor) -> None:
        """Stop on NaN or infinity before the chunk counts (one host sync per chunk)."""
        rows = self.dataset.rows[slot]
        if bool(torch.isfinite(rows.sum() + reward_sum.sum())):  # NaN and infinity survive a sum: one pass suffices
            return
        finite = torch.isfinite(rows)
        if bool(finite.all() & torch.isfinite(reward_sum).all()):  # finite numbers, too large to be summed
            return
        # NaN spreads from teacher to environment and back: what was spoiled at the first bad step began it.
        steps = (~finite).any(dim=-1).any(dim=-1).nonzero()
        if len(steps) == 0:
            raise UserError("The environment returned NaN or infinite rewards.")
        first = finite[int(steps[0])]
        small = self.dataset.dtype == torch.float16
        room = ", and that no number is beyond 65504, the largest of dataset.dtype=float16" if small else ""
        if not bool(first[:, self.dataset.columns["obs"]].all()):
            groups = ", ".join(self.student_obs.groups)
            raise UserError(
                f"The environment returned NaN or infinite observations (group {groups}): check its reset{room}."
            )
        name = next(name for name in self._stored if not bool(first[:, self.dataset.columns[name]].all()))
        raise UserError(
            f"The teacher's output '{name}' is NaN or infinite: check its normaliser and its observation groups "
            f"({', '.join(self.teacher_obs.groups)}){room}."
        )

    def _most_chunks(self) -> int:
        """Return how many chunks suffice if every episode ends in time."""
        steps = (self.rounds + 1) * (int(self.env.max_episode_length) + 1)
        return 1 + math.ceil(steps / self.dataset.chunk_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, the environment's own state included where it can give it."""
        state: dict[str, Any] = {**self.driver.state_dict(), "beta": self._beta, "begun": self._obs is not None}
        state["recorder"] = self.recorder.state_dict()
        if self.mode == "steps" and self._obs is not None and saves_state(self.env):
            state["env"] = self.env.state_dict()
            state["tracker"] = self.tracker.state_dict()
            state["resets"] = self.resets.clone()
            state["student_state"] = self.student.state
            state["teacher_state"] = self.teacher.state
        return state

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore what :meth:`state_dict` returned.

        Returns:
            Whether the rollouts go on exactly where they stopped.
        """
        self.driver.load_state_dict(state)
        self.recorder.load_state_dict(state.get("recorder", {}))
        self._beta = state["beta"]
        if self.mode == "episodes" or not state["begun"]:
            return True
        if "env" not in state or not saves_state(self.env):
            return False
        self.env.load_state_dict(state["env"])
        self.tracker.load_state_dict(state["tracker"])
        self.resets.copy_(state["resets"])
        for actor, name in ((self.student, "student_state"), (self.teacher, "teacher_state")):
            memory = state[name]
            actor.state = None if memory is None else memory.to(self.env.device)
        self._obs = self.env.get_observations()
        return True


def collect_episodes(
    env: VecEnv,
    teacher: Policy,
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
        teacher_selector(teacher, env.get_observations(), teacher_obs_groups),
        ObsSelector(student_obs_groups or ["policy"]),
        mode="episodes",
        num_episodes=num_episodes,
        seed=seed,
    )
    return collector.collect(epoch, beta)
