"""Act in an environment and store each step with the teacher's label, step by step or for many steps at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from tensordict import TensorDict

from foundation.dataset.dataset import DistillationDataset
from foundation.policies.actors import PolicyActor
from foundation.policies.output import PolicyOutput
from foundation.rollout.mixture import PolicyMixture
from foundation.rollout.position_offset import PositionCorrection
from foundation.teachers.assignment import BY_TEACHER, TEACHER, TeacherAssignment

BLOCK_ROWS = 4096
"""Transitions that are labelled in one batch, roughly: enough for fast matrix products, few enough for the cache."""
WORTH_ROWS = 256
"""Environments per teacher from which the matrix products of single steps are fast enough on a CPU."""


class LabellingActor:
    """Act with teacher or student, and write each step into the dataset's current chunk before it is executed.

    Args:
        teacher: Labels every step; its memory is carried from chunk to chunk.
        student: Acts in the environments that the mixture has drawn for it.
        mixture: Draws which of the two acts in an environment, and adds noise.
        dataset: Where the transitions are written.
        label_bound: Labels are clipped to [-bound, bound]. None: they are not clipped.
        assignment: Assigns teachers to environments. None: all have the same teacher.
        correction: Removes the teachers' position offsets from the stored observations. None: they are left.
        predicted: Observation group that is stored for the student to predict. None: none.
    """

    def __init__(
        self,
        teacher: PolicyActor,
        student: PolicyActor,
        mixture: PolicyMixture,
        dataset: DistillationDataset,
        *,
        label_bound: float | None = None,
        assignment: TeacherAssignment | None = None,
        correction: PositionCorrection | None = None,
        predicted: str | None = None,
    ):
        self.teacher = teacher
        self.student = student
        self.mixture = mixture
        self.dataset = dataset
        self.label_bound = label_bound
        self.assignment = assignment
        self.correction = correction
        self.predicted = predicted
        self.late = LateLabels(teacher, dataset, self._clip)
        self.resets = torch.ones_like(mixture.everywhere)
        """Whether the next step begins an episode. Shape: (num_envs,)."""
        self.beta = 1.0
        self._index: torch.Tensor | None = None
        self._step = 0
        self._is_late = False

    def begin_chunk(self, beta: float) -> int:
        """Begin the dataset's next chunk and return its index.

        Args:
            beta: Probability that the teacher acts in an episode.
        """
        self.beta = beta
        self._step = 0
        self._is_late = beta == 0.0 and self.late.possible
        self.late.begin()
        return self.dataset.begin_chunk()

    def finish_chunk(self) -> None:
        """Label the steps that have no labels yet, and check the teachers' indices (one host sync).

        Raises:
            UserError: If an index is not that of a teacher.
        """
        if self._is_late:
            self.late.finish(self.resets)
        if self.assignment is not None:
            self.assignment.check()

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Label and store the step, and return the actions to execute. Shape: (num_envs, num_actions)."""
        student_obs = self.student.selector(obs)
        teacher_obs = self.teacher.selector(obs)
        keeps_state = self.dataset.states is not None
        label = None if self._is_late else self.teacher.output(teacher_obs)
        state = self.student.current_state(student_obs) if keeps_state else None
        # Where its memory is stored, the student must follow every step, those in which the teacher acts too.
        student = self.student.output(student_obs) if self.beta < 1.0 or keeps_state else None
        self._index = None if self.assignment is None else self.assignment.index(obs)
        stored = student_obs if self.correction is None else self.correction(student_obs, obs, self._index)
        targets = None if label is None else self._clip(label)
        extra: dict[str, torch.Tensor] = {}
        if self.predicted is not None:
            extra["estimate"] = obs[self.predicted]
            targets = None if targets is None else targets._replace(estimate=obs[self.predicted])
        self.dataset.write(self._step, stored, targets, self.resets, self._index, state, extra)
        if label is None:
            self.late.add(teacher_obs, self.resets)
        self._step += 1
        return self.mixture.actions(label, student, self.beta)

    # -- steps that are computed elsewhere (see ``rollout.fused``) ---------------------------------------------------

    @property
    def shared_by(self) -> str:
        """What each step needs beside the student, where only that acts; empty: nothing."""
        others = {
            "the teacher labels each step at once": not self.late.possible,
            "distill.teacher.expert is asked at every step": self.assignment is not None and self.assignment.choose,
            "actions are drawn, or get noise": not self.mixture.is_plain,
            "positions are corrected": self.correction is not None,
            "the student predicts an observation group": self.predicted is not None,
        }
        return next((reason for reason, holds in others.items() if holds), "")

    def begin_steps(self, obs: TensorDict, num_steps: int) -> Mapping[str, torch.Tensor]:
        """Write what is the same in each of the next steps, and return each episode's labels, (num_envs,)."""
        if self.assignment is not None:
            self._index = self.assignment.index(obs)
            self.dataset.write_index(self._step, num_steps, self._index)
        return self.episode_labels(obs)

    KEPT = ("transitions", "resets", "teacher_obs", "teacher_resets")

    def step_rows(self, teacher_obs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return where the next step is kept, in the order of ``KEPT``.

        Args:
            teacher_obs: Given for their size. Shape: (num_envs, num_obs).
            state: The student's memory before the step, which is stored here. Shape: (num_envs, state_size).
        """
        self.dataset.write_state(self._step, state)
        return (*self.dataset.step_rows(self._step), *self.late.rows(teacher_obs, self.resets))

    def end_step(self) -> None:
        """Count a step that has been written."""
        self._step += 1
        self.late.added()

    @torch.no_grad()
    def relabel(self, most: int) -> int:
        """Label the newest stored transitions anew, by a teacher without memory that reads what the student reads.

        Args:
            most: How many, rounded up to whole chunks.

        Returns:
            How many it were.
        """
        dataset = self.dataset
        chunks = list(itertools.islice(dataset.newest_chunks(), math.ceil(most / dataset.rows_per_chunk)))
        for chunk in chunks:
            obs = dataset.column("obs")[chunk].to(self.resets.device)
            obs = obs.float() if obs.is_floating_point() else obs
            outputs = self.teacher.policy.sequence(obs, None, dataset.resets[chunk].to(obs.device))[0]
            dataset.write_targets(0, self._clip(outputs), chunk)
        return len(chunks) * dataset.rows_per_chunk

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        self.student.reset(dones)
        if dones is None or not self._is_late:
            self.teacher.reset(dones)
        if dones is None:
            self.resets.fill_(True)
            return
        self.resets.copy_(dones)
        if 0.0 < self.beta < 1.0:
            self.mixture.begin_episodes(dones, self.beta)

    def episode_labels(self, obs: TensorDict) -> Mapping[str, torch.Tensor]:
        """Return each environment's teacher, and whether it acted in this step. Each (num_envs,)."""
        return {} if self._index is None else {TEACHER: self._index, BY_TEACHER: self.mixture.teacher_acts}

    def _clip(self, label: PolicyOutput) -> PolicyOutput:
        if self.label_bound is None or label.logits is not None:  # an index has no bound
            return label
        return label._replace(mean=label.mean.clamp(-self.label_bound, self.label_bound))


class LateLabels:
    """Deferred labelling: when the student acts alone, run the teacher on many steps in one batch.

    No action waits for a label then (``beta`` 0). The labels are those of step-by-step labelling to rounding.

    Args:
        teacher: Labels; its memory is carried from batch to batch.
        dataset: Where the labels are written.
        clip: Applied to every output before it is stored.
    """

    def __init__(
        self, teacher: PolicyActor, dataset: DistillationDataset, clip: Callable[[PolicyOutput], PolicyOutput]
    ):
        self.teacher = teacher
        self.dataset = dataset
        self.clip = clip
        self.block_steps = max(1, min(dataset.chunk_steps, BLOCK_ROWS // dataset.num_envs))
        self._obs: torch.Tensor | None = None
        self._resets: torch.Tensor | None = None
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Views of each step of the two, made once."""
        self._first = 0
        self._count = 0

    @property
    def possible(self) -> bool:
        """Whether the teacher can run many steps at once, and that is faster although observations are copied first."""
        few = self.dataset.num_envs < WORTH_ROWS * self.dataset.num_teachers
        return hasattr(self.teacher.policy, "sequence") and (few or self.dataset.compute_device.type != "cpu")

    def begin(self) -> None:
        """Begin a chunk."""
        self._first = 0
        self._count = 0

    def add(self, obs: torch.Tensor, resets: torch.Tensor) -> None:
        """Keep the observations of the chunk's next step, and label the batch if it is full.

        Args:
            obs: The teacher's. Shape: (num_envs, num_obs).
            resets: Whether the step begins an episode. Shape: (num_envs,).
        """
        kept_obs, kept_resets = self.rows(obs, resets)
        kept_obs.copy_(obs)
        kept_resets.copy_(resets)
        self.added()

    def rows(self, obs: torch.Tensor, resets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the next step's observations and resets are kept; they are given for their sizes."""
        if self._obs is None or self._resets is None:
            self._obs = obs.new_empty(self.block_steps, *obs.shape)
            self._resets = resets.new_empty(self.block_steps, *resets.shape)
            self._rows = list(zip(self._obs.unbind(0), self._resets.unbind(0), strict=True))
        return self._rows[self._count]

    def added(self) -> None:
        """Count a step that is kept, and label the batch if it is full."""
        self._count += 1
        if self._count == self.block_steps:
            self.label()

    def finish(self, dones: torch.Tensor) -> None:
        """Label the rest of the chunk, and reset the teacher where its last step ended an episode.

        Args:
            dones: Whether it did. Shape: (num_envs,).
        """
        if self._count:
            self.label()
        self.teacher.reset(dones)

    def label(self) -> None:
        """Label the steps that have no labels yet."""
        assert self._obs is not None and self._resets is not None
        outputs = self.teacher.outputs(self._obs[: self._count], self._resets[: self._count])
        self.dataset.write_targets(self._first, self.clip(outputs))
        self._first += self._count
        self._count = 0
