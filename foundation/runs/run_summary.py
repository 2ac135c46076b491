"""The figures that a run is quoted by: its best student and its teacher, on seeds that no choice was made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foundation.policies.actors import PolicyActor
from foundation.rollout.baselines import scores
from foundation.rollout.evaluate import evaluate
from foundation.runs.run_state import BEST

if TYPE_CHECKING:
    from foundation.runs.runner import DistillationRunner

FINAL_SEED = 2_000_003


def final_summary(runner: DistillationRunner) -> dict[str, Any]:
    """Measure the best student, and where it is cheap the teacher, on fresh seeds.

    Args:
        runner: A run whose ``best_student.pt`` is written. Its policy holds the best student's weights afterwards.

    Returns:
        Plain values for ``summary.json``, the stages' seconds left out.
    """
    cfg, policy = runner.cfg, runner.learner.policy
    best = runner.run_dir.load_checkpoint(BEST, map_location=str(runner.env.device))
    policy.load_state_dict(best["model_state_dict"])
    cheap = runner.make_eval_env is not None
    episodes = cfg.final_eval_episodes if cheap else cfg.num_eval_episodes
    env, seed = runner.eval_env(episodes), cfg.seed + FINAL_SEED
    teachers = runner.teachers
    actor = PolicyActor(policy, runner.student_obs)
    measured = evaluate(env, actor, episodes, seed, poll=runner.poll, teacher_of=teachers.teacher_of)
    teachers.evaluated(measured)
    student, teacher = measured.summary(), runner.baselines["teacher"]
    if cheap:
        actor = PolicyActor(runner.teacher, runner.teacher_obs)
        judged = evaluate(env, actor, episodes, seed, poll=runner.poll, teacher_of=teachers.teacher_of)
        teachers.record("teacher", judged)
        teacher = judged.summary()
    return {
        "task": cfg.task,
        "best_epoch": runner.best_epoch + 1,
        "teacher": teacher,
        "student": student | {"return_interval_95": measured.return_interval},
        "teacher_return": teacher["mean_return"],
        "best_student_return": student["mean_return"],
        **scores(student["mean_return"], teacher["mean_return"], runner.baselines["random"]["mean_return"]),
        "success_rate": student["success_rate"],
        "position_error": student.get("position_error"),
        "final_eval_episodes": len(measured.returns),
        "baselines": runner.baselines,
        **teachers.summary(),
        "epochs": runner.epoch,
        "stopped_early": runner.epoch < cfg.n_epochs,
        "env_steps": runner.env_steps,
        "dataset_rows": len(runner.dataset),
        "parameters": {
            "student": sum(p.numel() for p in policy.parameters()),
            "teacher": sum(p.numel() for p in runner.teacher.parameters()),
        },
    }
