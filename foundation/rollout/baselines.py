"""Baselines of a task, zero actions, random actions and the teacher, and a student's return in proportion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict

from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.policies.actors import Actor, RandomActor, SplitActor, ZeroActor
from foundation.rollout.evaluate import EvaluationResult, evaluate


def measure_baselines(
    env: VecEnv,
    teacher: Actor | None,
    num_episodes: int,
    seed: int,
    *,
    shared_rollout: bool,
    poll: Callable[[], None] | None = None,
    teacher_of: Callable[[TensorDict], torch.Tensor] | None = None,
    num_teachers: int = 1,
) -> dict[str, EvaluationResult]:
    """Measure teacher, zero and random actions.

    Args:
        env: The evaluation environment.
        teacher: The teacher's actor; None to leave the teacher out.
        num_episodes: Episodes of each; in a shared rollout, of all of them together.
        seed: Seed of the resets, the same for all.
        shared_rollout: Run all in one rollout, each in its share of the environments: faster where an environment is
            slow to step, but from different initial states. Not done where a share of the environments would not have
            every teacher.
        poll: Called every ``SYNC_INTERVAL`` env steps; may raise to stop.
        teacher_of: With many teachers, maps observations to the teacher that each environment follows.
        num_teachers: Number of those teachers.

    Returns:
        ``teacher``, ``zero`` and ``random``.
    """
    declared = EnvCapabilities.of(env)
    actors: dict[str, Actor] = {
        **({} if teacher is None else {"teacher": teacher}),
        "zero": ZeroActor(env.num_actions),
        "random": RandomActor(env.num_actions, seed, env.device, declared.action_choices, declared.action_range),
    }
    if not shared_rollout or env.num_envs < len(actors) * num_teachers:
        return {
            name: evaluate(env, actor, num_episodes, seed, poll=poll, role=name, teacher_of=teacher_of)
            for name, actor in actors.items()
        }
    split = SplitActor(list(actors.values()), env.num_envs)
    result = evaluate(env, split, num_episodes, seed, poll=poll, role=next(iter(actors)), teacher_of=teacher_of)
    each = len(result.returns) // env.num_envs
    parts = (slice(each * block.start, each * block.stop) for block in split.blocks)
    return {name: result.part(part) for name, part in zip(actors, parts, strict=True)}


def ratio_interval(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Return the half-width of the 95 % confidence interval of the ratio of two mean returns.

    By the delta method for a ratio of means of pairs: the variance of ``s - r t`` over ``n mean(t)^2``, where ``s`` and
    ``t`` begin in the same initial state (Cochran 1977, Sampling Techniques, chapter 6).

    Args:
        student: Returns, one for each initial state. Shape: (num_episodes,).
        teacher: Returns from the same initial states, of a positive mean. Shape: (num_episodes,).

    Returns:
        Infinity where there are fewer than two episodes.
    """
    if len(student) < 2:
        return math.inf
    s = student.double()
    t = teacher.double()
    residual = s - s.mean() / t.mean() * t
    return 1.96 * float(residual.std() / t.mean().abs()) / math.sqrt(len(s))


MIN_SCORE = 1e-3
"""Normalised scores below count as this much in a geometric mean: students that fail in one task still differ."""


def geometric_mean(normalized: Sequence[float]) -> float:
    """Return the geometric mean of normalised scores of several tasks (Rusu et al. 2015, sec. 5.3)."""
    return math.exp(sum(math.log(max(score, MIN_SCORE)) for score in normalized) / len(normalized))


def scores(student: float, teacher: float, random: float) -> dict[str, float]:
    """Put a student's mean return in proportion.

    Returns:
        ``return_ratio`` = student / teacher where the teacher's return is positive, and ``normalized_score`` =
        (student - random) / (teacher - random) where the teacher beats random.
    """
    out: dict[str, float] = {}
    if teacher > 0.0:
        out["return_ratio"] = student / teacher
    if teacher > random:
        out["normalized_score"] = (student - random) / (teacher - random)
    return out
