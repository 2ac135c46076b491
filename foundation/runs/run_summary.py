"""The figures that a run is quoted by: its best student and its teacher, on seeds that no choice was made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foundation.policies.actors import PolicyActor
from foundation.rollout.baselines import ratio_interval, scores
from foundation.rollout.evaluate import evaluate
from foundation.runs.run_state import BEST

if TYPE_CHECKING:
    from foundation.runs.runner import DistillationRunner

FINAL_SEED = 2_000_003


def final_summary(runner: DistillationRunner) -> dict[str, Any]:
    """Measure the best student and the teacher on fresh seeds, the same for both.

    Args:
        runner: A run whose ``best_student.pt`` is written. Its policy holds the best student's weights afterwards.

    Returns:
        Plain values for ``summary.json``, the stages' seconds left out.
    """
    cfg, policy = runner.cfg, runner.learner.policy
    best = runner.run_dir.load_checkpoint(BEST, map_location=str(runner.env.device))
    policy.load_state_dict(best["model_state_dict"])
    episodes = cfg.num_eval_episodes if runner.make_eval_env is None else cfg.final_eval_episodes
    runner.reporter.last_measurement(episodes, cheap=runner.make_eval_env is not None)
    env, seed = runner.eval_env(episodes), cfg.seed + FINAL_SEED
    teachers = runner.teachers
    actor = PolicyActor(policy, runner.student_obs)
    measured = evaluate(env, actor, episodes, seed, poll=runner.poll, teacher_of=teachers.teacher_of)
    teachers.evaluated(measured)
    # The ratio that is quoted rests on as many episodes of the teacher, from the same initial states.
    actor = PolicyActor(runner.teacher, runner.teacher_obs)
    judged = evaluate(env, actor, episodes, seed, poll=runner.poll, who="teacher", teacher_of=teachers.teacher_of)
    teachers.record("teacher", judged)
    student = measured.summary()
    teacher = judged.summary()
    ratio = scores(student["mean_return"], teacher["mean_return"], runner.baselines["random"]["mean_return"])
    if "return_ratio" in ratio:
        ratio["return_ratio_interval_95"] = ratio_interval(measured.returns, judged.returns)
    return {
        "task": cfg.task,
        "best_epoch": runner.best_epoch + 1,
        "teacher": teacher | {"return_interval_95": judged.return_interval},
        "student": student | {"return_interval_95": measured.return_interval},
        "teacher_return": teacher["mean_return"],
        "best_student_return": student["mean_return"],
        **ratio,
        "success_rate": student.get("success_rate"),
        "position_error": student.get("position_error"),
        "final_eval_episodes": len(measured.returns),
        "baselines": runner.baselines,
        **teachers.summary(),
        "epochs": runner.epoch,
        "stopped_early": runner.epoch < cfg.n_epochs,
        "env_steps": runner.env_steps,
        "dataset_rows": len(runner.dataset) if runner.rows_before is None else runner.rows_before,
        "parameters": {
            "student": sum(p.numel() for p in policy.parameters()),
            "teacher": sum(p.numel() for p in runner.teacher.parameters()),
        },
    }
