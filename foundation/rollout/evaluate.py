"""Evaluation: every environment is reset, the first ``n`` episodes of each count and no other."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import VecEnv
from foundation.policies.actors import Actor
from foundation.rollout.episodes import EpisodeTracker, EvaluationResult
from foundation.rollout.stepper import SYNC_INTERVAL, FiniteCheck, Observer, Stepper
from foundation.teachers.assignment import TEACHER


def evaluate(
    env: VecEnv,
    actor: Actor,
    num_episodes: int,
    seed: int,
    observers: Sequence[Observer] = (),
    poll: Callable[[], None] | None = None,
    role: str = "policy",
    teacher_of: Callable[[TensorDict], torch.Tensor] | None = None,
) -> EvaluationResult:
    """Measure an actor.

    Every environment runs the same number of episodes, ``ceil(num_episodes / num_envs)``: counting whichever ends
    first would favour short ones. Global random states are as before afterwards.

    Args:
        env: The environment; it is reset with ``seed``.
        actor: The policy to measure.
        num_episodes: Episodes to run; rounded up to a multiple of ``env.num_envs``.
        seed: Seed of the resets: the same seed gives every actor the same initial states.
        observers: Called at every env step.
        poll: Called every ``SYNC_INTERVAL`` env steps; may raise to stop.
        role: Name of the actor in the message if its actions are not finite.
        teacher_of: With many teachers, maps observations to the teacher that each environment follows.

    Returns:
        The episodes.

    Raises:
        UserError: If an environment's episode does not end within ``max_episode_length``, or something is not finite.
    """
    rounds = math.ceil(num_episodes / env.num_envs)
    limit = rounds * (int(env.max_episode_length) + 1)
    labels = None if teacher_of is None else lambda obs: {TEACHER: teacher_of(obs)}
    episodes = EpisodeTracker(env.num_envs, SYNC_INTERVAL, env.device, labels=labels)
    episodes.restart(rounds)
    finite = FiniteCheck(env.device)
    stepper = Stepper(env, actor, [*observers, finite, episodes])
    ended = 0
    with preserved_rng(env.device):
        stepper.reset(seed)
        for start in range(0, limit, SYNC_INTERVAL):
            stepper.run(min(SYNC_INTERVAL, limit - start), poll)
            ended = episodes.drain()
            if ended == rounds * env.num_envs:
                break
    finite.check(role)
    if ended < rounds * env.num_envs:
        raise UserError(
            f"An episode did not end within max_episode_length={env.max_episode_length} env steps during "
            "evaluation: check the environment's time-outs."
        )
    return episodes.stats(by_env=True)


@contextmanager
def preserved_rng(device: torch.device | str) -> Iterator[None]:
    """Restore the global random states of torch, NumPy and Python on exit: environments may seed all of them."""
    cpu = torch.get_rng_state()
    is_cuda = torch.device(device).type == "cuda"
    cuda = torch.cuda.get_rng_state(device) if is_cuda else None
    numpy = np.random.get_state()
    python = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        np.random.set_state(numpy)
        random.setstate(python)
