"""The dataset of a run: how large its rows are, what it begins with, and what follows the rows that come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foundation.dataset.build import connect, make_dataset, open_saved
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.episode_log import ChunkRecorder
from foundation.policies.actors import PolicyActor

if TYPE_CHECKING:
    from foundation.runs.runner import DistillationRunner


def make_run_dataset(runner: DistillationRunner) -> tuple[DistillationDataset, ChunkRecorder]:
    """Build the dataset of a run, with the rows that it begins with (``--dataset``).

    Args:
        runner: Its student, learner, environment and observation groups are there.

    Returns:
        The dataset, and what saves (``--save_dataset``) and filters its rows.
    """
    cfg, student = runner.cfg, runner.student
    targets = probe_outputs(runner)
    saved = open_saved(cfg, runner.student_obs, targets, runner.teachers.num_assigned)
    dataset = make_dataset(
        cfg,
        runner.env,
        runner.num_obs,
        targets,
        mode=runner.mode,
        window_steps=runner.sequence_length,
        state_size=student.state_size,
        num_teachers=runner.teachers.num_assigned,
        saved=saved,
    )
    memory = student.initial_state(1, runner.env.device) if student.state_size else None
    recorder = connect(
        cfg,
        dataset,
        saved,
        runner.student_obs,
        run=f"{runner.run_dir.experiment_name}/{runner.run_dir.name}",
        teacher=runner.teacher,
        label_bound=runner.label_bound,
        initial_state=None if memory is None else memory.detach(),
    )
    if cfg.student.obs_normalization and cfg.student.init_checkpoint is None:
        for slot in range(dataset.num_chunks):
            runner.learner.fit_normalizer(dataset.chunk_obs(slot))
    return dataset, recorder


@torch.no_grad()
def probe_outputs(runner: DistillationRunner) -> dict[str, int]:
    """Ask teacher and student once for their outputs: which are there and wanted, and how large."""
    obs = runner.env.get_observations()
    wanted = runner.learner.target_fields()
    runner.teachers.ask_for(wanted)
    teacher = PolicyActor(runner.teacher, runner.teacher_obs).output(runner.teacher_obs(obs))
    student = PolicyActor(runner.student, runner.student_obs).output(runner.student_obs(obs))
    runner.learner.prepare(student, teacher)
    if runner.cfg.dataset.save is not None:
        wanted = wanted | {"std"}  # for students and losses to come
    return {name: value.shape[-1] for name, value in teacher._asdict().items() if name in wanted and value is not None}
