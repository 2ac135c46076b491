"""Collection: teacher or student act, the teacher labels, every step is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from foundation.config.distillation_cfg import CollectionCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.episode_log import EpisodeLog
from foundation.engines.base import VecEnv, saves_state
from foundation.policies.actors import Policy, PolicyActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.rollout.episodes import CollectionStats, EpisodeTracker
from foundation.rollout.fused import FusedSteps
from foundation.rollout.labelling import LabellingActor
from foundation.rollout.mixture import PolicyMixture, bound_of_labels
from foundation.rollout.position_offset import PositionCorrection
from foundation.rollout.stepper import Stepper
from foundation.teachers.assignment import TeacherAssignment


class Collector:
    """Fill a dataset from one environment.

    Args:
        env: The environment.
        teacher: Labels every step, and acts where the mixture has drawn it.
        student: Acts elsewhere.
        dataset: Takes the transitions.
        teacher_obs: Selects the teacher's observations.
        student_obs: Selects the student's observations.
        cfg: Noise, staggering and the clipping of labels.
        mode: ``steps`` continues where the last epoch stopped; ``episodes`` resets first, with a seed made of
            ``(seed, epoch)``.
        num_episodes: Episodes to finish in an epoch.
        seed: Seed of the resets and of the collector's own randomness.
        label_bound: The environment's or agent config's bound of the actions, if any; labels are clipped to it unless
            ``cfg`` sets another.
        teacher_deterministic: Whether the acting teacher returns its mean; labels are always its mean.
        assignment: Assigns teachers to environments. None: all have the same teacher.
        correction: Removes the teachers' position offsets from the stored observations. None: they are left.
        recorder: Follows the episodes of the transitions, saves and filters them. None: nothing is saved or filtered.
        predicted: Observation group that is stored for the student to predict. None: none.
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
        assignment: TeacherAssignment | None = None,
        correction: PositionCorrection | None = None,
        recorder: EpisodeLog | None = None,
        predicted: str | None = None,
    ):
        self.env = env
        self.dataset = dataset
        self.recorder = recorder or EpisodeLog(dataset)
        self.cfg = cfg or CollectionCfg()
        self.mode = mode
        self.num_episodes = num_episodes
        self.seed = seed
        # Every environment contributes the same number of episodes: those that end first are the short ones, whose
        # mean return is not that of the policy.
        self.rounds = math.ceil(num_episodes / env.num_envs)
        self.mixture = PolicyMixture(
            teacher,
            self.cfg,
            env.num_envs,
            env.num_actions,
            seed=seed,
            device=env.device,
            teacher_deterministic=teacher_deterministic,
            choices=getattr(student, "choices", ()),
        )
        self.teacher = PolicyActor(teacher, teacher_obs)
        self.student = PolicyActor(student, student_obs)
        self.actor = LabellingActor(
            self.teacher,
            self.student,
            self.mixture,
            dataset,
            label_bound=bound_of_labels(self.cfg, label_bound),
            assignment=assignment,
            correction=correction,
            predicted=predicted,
        )
        self.tracker = EpisodeTracker(
            env.num_envs, dataset.chunk_steps, env.device, int(env.max_episode_length), self.actor.episode_labels
        )
        self.stepper = Stepper(env, self.actor, [self.tracker])
        self.fused = FusedSteps(env, self.actor, self.tracker)
        self._beta: float | None = None

    @torch.no_grad()
    def collect(self, epoch: int, beta: float, poll: Callable[[], None] | None = None) -> CollectionStats:
        """Run one epoch's rollouts.

        Args:
            epoch: Number of the epoch; with the seed it seeds the resets in ``episodes`` mode.
            beta: Probability that the teacher acts in an episode.
            poll: Called once per chunk; may raise to abandon the epoch.

        Returns:
            Statistics of the finished whole episodes and the chunks written.

        Raises:
            UserError: If the teacher's labels, the observations or the rewards are not finite.
        """
        self._begin(epoch, beta)
        self.recorder.begin(epoch)
        self.dataset.begin_epoch()
        self.tracker.begin()
        ended = 0
        slots: list[int] = []
        logs: list[Mapping[str, Any]] = []
        wanted = self.rounds * self.env.num_envs if self.mode == "episodes" else self.num_episodes
        for _ in range(self._most_chunks()):
            if poll is not None:
                poll()
            slot = self._collect_chunk(beta)
            self.recorder.chunk(slot, self.tracker.chunk(), epoch)
            ended = self.tracker.drain()
            # A small buffer is overwritten within the epoch: a chunk's place counts once, where it was written last.
            slots = [kept for kept in slots if kept != slot] + [slot]
            logs.append(self.stepper.extras.get("log") or {})
            if ended >= wanted:
                self.recorder.end(epoch)
                return self.tracker.stats(slots, [*logs, self.mixture.log()])
        raise UserError(
            f"Only {ended} of {wanted} episodes ended within {self.env.max_episode_length} env steps each: check the "
            "environment's time-outs."
        )

    def restart(self) -> None:
        """Make the next collection begin with a reset, because another rollout has used the environment."""
        self.stepper.obs = None

    def _begin(self, epoch: int, beta: float) -> None:
        if self.mode == "episodes" or self.stepper.obs is None:
            # The seed of the reset depends on the epoch, so that no two epochs begin alike, and on nothing else in the
            # run, so that a resumed run repeats it. The factor is prime: epochs of neighbouring seeds do not coincide.
            self.stepper.reset((self.seed * 1_000_003 + epoch) % (2**31))
            self.tracker.restart(self.rounds if self.mode == "episodes" else math.inf)
            if self.mode == "steps" and self.cfg.staggered:
                self._stagger()
            self.mixture.begin_episodes(self.mixture.everywhere, beta)
        elif beta != self._beta and beta in (0.0, 1.0):
            # A phase begins in every environment at once; episodes that the other policy began enter no statistic.
            self.mixture.all_by(beta == 1.0)
            self.tracker.cut()
        self._beta = beta

    def _stagger(self) -> None:
        """Start the environments at different times of their episodes, so that ends come evenly."""
        lengths = torch.randint(
            int(self.env.max_episode_length),
            (self.env.num_envs,),
            generator=self.mixture.generator,
            device=self.env.device,
        )
        # Only the clock moves: the states are those of a reset, which is why these episodes count for no statistic.
        self.env.episode_length_buf = lengths.to(self.env.episode_length_buf.dtype)
        self.stepper.obs = self.env.get_observations()
        self.tracker.cut()

    def _collect_chunk(self, beta: float) -> int:
        # A chunk is committed after the check: one with NaN is overwritten by the next, and never learned from.
        slot = self.actor.begin_chunk(beta)
        stepper = self.stepper
        if stepper.obs is not None and self.fused.fits(stepper.obs):
            stepper.obs, stepper.extras = self.fused.run(stepper.obs, self.dataset.chunk_steps)
        else:
            stepper.run(self.dataset.chunk_steps)
        self.actor.finish_chunk()
        self._check_finite(slot)
        self.dataset.commit_chunk()
        return slot

    @torch.no_grad()
    def fit_noise(self, slots: list[int]) -> None:
        """Fit DART's noise to the errors that the student, having learned, still makes on some chunks' states."""
        if self.cfg.dart_alpha == 0.0 or not slots:
            return
        # Noise with the size and correlation of the student's errors leads the teacher to the states that the student
        # will reach (Laskey et al. 2017).
        self.mixture.fit_noise(torch.cat([self._student_errors(slot) for slot in slots]))

    def _student_errors(self, slot: int) -> torch.Tensor:
        """Return student less teacher on a chunk. Shape: (chunk_steps, num_envs, num_actions)."""
        dataset = self.dataset
        device = self.env.device
        batch = dataset.chunk_batch(slot)
        resets = None if batch.resets is None else batch.resets.to(device)
        # From the stored memory on, not from zeros: a chunk may begin in the middle of an episode.
        state = None if batch.state is None else batch.state.to(device)
        output, _ = self.student.policy.sequence(batch.obs.to(device).float(), state, resets)
        return output.mean - batch.targets.mean.to(device).float()

    def _check_finite(self, slot: int) -> None:
        """Stop on NaN or infinity before the chunk counts (one host sync per chunk)."""
        self._check_images(slot)
        rows = self.dataset.rows[slot]
        returns = self.tracker.chunk()["returns"]
        if bool(torch.isfinite(rows.sum() + returns.sum())):  # NaN and infinity survive a sum: one pass suffices
            return
        finite = torch.isfinite(rows)
        if bool(finite.all() & torch.isfinite(returns).all()):  # finite numbers, too large to be summed
            return
        # NaN spreads from the teacher to the environment and back: the first step with any shows where it came from.
        steps = (~finite).any(dim=-1).any(dim=-1).nonzero()
        if len(steps) == 0:
            raise UserError("The environment returned NaN or infinite rewards.")
        first = finite[int(steps[0])]
        room = ""
        if self.dataset.dtype == torch.float16:
            room = ", and that no number is beyond 65504, the largest of dataset.dtype=float16"
        if "obs" in self.dataset.columns and not bool(first[:, self.dataset.columns["obs"]].all()):
            groups = ", ".join(self.student.selector.groups)
            raise UserError(
                f"The environment returned NaN or infinite observations (group {groups}): check its reset{room}."
            )
        targets = [name for name in self.dataset.columns if name != "obs"]
        name = next(name for name in targets if not bool(first[:, self.dataset.columns[name]].all()))
        raise UserError(
            f"The teacher's output '{name}' is NaN or infinite: check its normaliser and its observation groups "
            f"({', '.join(self.teacher.selector.groups)}){room}."
        )

    def _check_images(self, slot: int) -> None:
        """Stop on images that are not finite; bytes always are."""
        for name in self.dataset.images:
            image = self.dataset.typed[name][slot]
            if image.is_floating_point() and not bool(torch.isfinite(image).all()):
                raise UserError(
                    f"The environment returned images that are NaN or infinite (column {name}, {image.dtype}): check "
                    "its camera; a depth of float16 must be at most 65504."
                )

    def _most_chunks(self) -> int:
        """Return the number of chunks after which all episodes must have ended, even by time-out."""
        steps = (self.rounds + 1) * (int(self.env.max_episode_length) + 1)
        return 1 + math.ceil(steps / self.dataset.chunk_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, the environment's own state included where it can give it."""
        state: dict[str, Any] = {**self.mixture.state_dict(), "beta": self._beta, "begun": self.stepper.obs is not None}
        state["recorder"] = self.recorder.state_dict()
        # Epochs of whole episodes begin with a reset: there is nothing in progress that a resumed run would need.
        if self.mode == "steps" and self.stepper.obs is not None and saves_state(self.env):
            state["env"] = self.env.state_dict()
            state["tracker"] = self.tracker.state_dict()
            state["resets"] = self.actor.resets.clone()
            state["student_state"] = self.student.state
            state["teacher_state"] = self.teacher.state
        return state

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore what :meth:`state_dict` returned.

        Returns:
            Whether the rollouts continue exactly where they stopped.
        """
        self.mixture.load_state_dict(state)
        self.recorder.load_state_dict(state.get("recorder", {}))
        self._beta = state["beta"]
        if self.mode == "episodes" or not state["begun"]:
            return True
        if "env" not in state or not saves_state(self.env):
            return False
        self.env.load_state_dict(state["env"])
        self.tracker.load_state_dict(state["tracker"])
        self.actor.resets.copy_(state["resets"])
        for actor, name in ((self.student, "student_state"), (self.teacher, "teacher_state")):
            memory = state[name]
            actor.state = None if memory is None else memory.to(self.env.device)
        self.stepper.obs = self.env.get_observations()
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
        dataset: Takes the transitions.
        num_episodes: Episodes to finish.
        student: Acts in the other episodes.
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
