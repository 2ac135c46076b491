"""The dataset of a run: how large its rows are, what it begins with, and what follows the rows that come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foundation.dataset.build import CollectedData, build_dataset
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.episode_log import EpisodeLog
from foundation.policies.actors import PolicyActor

if TYPE_CHECKING:
    from foundation.runs.runner import DistillationRunner


def make_run_dataset(runner: DistillationRunner) -> tuple[DistillationDataset, EpisodeLog]:
    """Build the dataset of a run, with the rows that it begins with (``--dataset``).

    Args:
        runner: Its student, learner, environment and observation groups are there.

    Returns:
        The dataset, and what saves (``--save_dataset``) and filters its rows.
    """
    cfg, student, env = runner.cfg, runner.student, runner.env
    describe = getattr(runner.teacher, "describe", None)
    memory = student.initial_state(1, env.device) if student.state_size else None
    data = CollectedData(
        obs=runner.student_obs,
        num_obs=runner.num_obs,
        targets=probe_outputs(runner),
        num_envs=env.num_envs,
        max_episode_length=int(env.max_episode_length),
        device=torch.device(env.device),
        mode=runner.mode,
        sequence_length=runner.sequence_length,
        initial_state=None if memory is None else memory.detach(),
        num_teachers=runner.teachers.num_assigned,
        run=f"{runner.run_dir.experiment_name}/{runner.run_dir.name}",
        teacher=None if describe is None else describe(),
        label_bound=runner.label_bound,
    )
    dataset, log = build_dataset(cfg, data)
    if cfg.student.obs_normalization and cfg.student.init_checkpoint is None:
        for slot in range(dataset.num_chunks):
            runner.learner.fit_normalizer(dataset.chunk_obs(slot))
    return dataset, log


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
