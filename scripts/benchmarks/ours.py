"""This project's ``DistillationRunner`` with ``experiment=fast``, its clock bare of evaluation, logging and saving."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import HIDDEN_DIMS, LABEL_BOUND, STUDENT_GROUP, TASK, TEACHER_GROUP, Clock, make_env, timed
from benchmarks.snapshots import BudgetSpentError, SnapshotRecorder, Trace, Weights
from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.runs.runner import DistillationRunner
from foundation.students import make_student, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper


class TimedRunner(DistillationRunner):
    """The loop itself: RSL-RL's runner without a log folder evaluates, logs and saves nothing either."""

    def evaluate(self, *_: Any) -> None:
        """Measure nothing: the race measures its snapshots afterwards."""

    def log(self, *_: Any) -> None:
        """Show nothing: it would be timed."""

    def save(self, *_: Any) -> None:
        """Save nothing: it would be timed."""


class NoRunDir:
    """A run's folder that takes nothing."""

    dataset_dir = None
    path = None
    experiment_name = name = "benchmark"

    def shard_path(self, epoch: int) -> None:
        """Return nowhere."""

    def writing(self) -> AbstractContextManager[None]:
        """Let everything be written; nothing is."""
        return nullcontext()


def settings(values: Mapping[str, Any]) -> Any:
    """Return ``experiment=fast`` for this benchmark's student, with some values changed.

    Args:
        values: Dotted fields of the distillation config; ``experiment`` and ``student`` choose other presets.
    """
    changes = dict(values)
    groups = {"experiment": changes.pop("experiment", "fast"), "student": changes.pop("student", "mlp")}
    flags: dict[str, Any] = {
        "task": TASK,
        "teacher.obs_groups": [TEACHER_GROUP],
        "student.obs_groups": [STUDENT_GROUP],
        **({"student.hidden_dims": list(HIDDEN_DIMS)} if groups["student"] == "mlp" else {}),
        "student.obs_normalization": True,
        "dataset.disk_gb": 0.0,
        **changes,
    }
    return resolve_distillation_cfg(Overrides(groups=groups), flags, student_cfg_class=student_cfg_class)


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return the same text for the same configuration, and another for another."""
    text = json.dumps(asdict(settings(values)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(values: Mapping[str, Any], teacher: Path, device: str, seed: int) -> tuple[TimedRunner, Any]:
    """Build environment and runner.

    Args:
        values: Changes to ``experiment=fast``.
        teacher: The teacher's checkpoint.
        device: Torch device.
        seed: Seed of everything.
    """
    cfg = settings({**values, "seed": seed, "device": device})
    env = make_env(cfg.num_envs or 512, device, seed)
    runner = TimedRunner(
        env,
        TeacherPolicyWrapper(str(teacher), device=device),
        cfg,
        NoRunDir(),
        make_eval_env=lambda num_envs: make_env(num_envs, device, seed),
        label_bound=LABEL_BOUND,
    )
    return runner, env


def train(values: Mapping[str, Any], teacher: Path, device: str, seed: int, budget: float, name: str = "ours") -> Trace:
    """Train until the epochs or the budget are over.

    Args:
        values: Changes to ``experiment=fast``.
        teacher: The teacher's checkpoint.
        device: Torch device.
        seed: Seed of everything.
        budget: Training time [s].
        name: Name of the setting.
    """
    trace, clock = Trace(name, seed, budget), Clock(device)
    with timed() as trace.startup:
        runner, env = build(values, teacher, device, seed)
    recorder = SnapshotRecorder(trace, clock, runner.learner.policy.state_dict, lambda: env.env_steps)
    runner.learner.optimizer.register_step_post_hook(recorder)
    clock.start()
    try:
        for epoch in range(runner.cfg.n_epochs):
            runner.run_epoch(epoch)
        clock.pause()
        recorder.take()
    except BudgetSpentError:
        pass
    return trace


def actor(
    weights: Weights, num_obs: int, num_actions: int, device: str, values: Mapping[str, Any] | None = None
) -> PolicyActor:
    """Build the deterministic student of some weights; ``values`` are the changes that it was trained with."""
    student = make_student(settings(values or {}).student, num_obs, num_actions).to(device)
    student.load_state_dict(weights)
    return PolicyActor(student.eval(), ObsSelector([STUDENT_GROUP]))
