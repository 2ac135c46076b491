"""Deterministic episodes: every environment is reset, the first ``n`` episodes of each count and no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import VecEnv
from foundation.policies.actors import Actor
from foundation.rollout.episodes import CollectionStats
from foundation.teachers.assignment import TEACHER

SYNC_INTERVAL = 25
"""Env steps between two looks at whether every episode has ended (one host sync each)."""


@dataclass
class EvaluationResult:
    """Episodes, one entry each, ordered by environment."""

    returns: torch.Tensor
    """Sum of rewards. Shape: (num_episodes,)."""
    lengths: torch.Tensor
    """Length [env steps]. Shape: (num_episodes,)."""
    success: torch.Tensor | None
    """The task's own hook, else "ended by time-out"; None where neither is known. Shape: (num_episodes,)."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """The task's ``extras["episode_metrics"]``. Each (num_episodes,)."""
    env_steps: int = 0
    """Transitions simulated."""
    teacher: torch.Tensor | None = None
    """With many teachers, the one that each episode's environment followed at its end. Shape: (num_episodes,)."""

    @classmethod
    def of(cls, collected: CollectionStats) -> EvaluationResult:
        """Take the episodes of a collection in which the student acted alone."""
        metrics = dict(collected.metrics)
        success, teacher = metrics.pop("success", collected.time_outs), collected.teacher
        success = None if success is None else success.bool()
        return cls(collected.returns, collected.lengths, success, metrics, collected.env_steps, teacher)

    def part(self, block: slice) -> EvaluationResult:
        """Return some of the episodes."""
        metrics = {name: values[block] for name, values in self.metrics.items()}
        teacher = None if self.teacher is None else self.teacher[block]
        success = None if self.success is None else self.success[block]
        return EvaluationResult(self.returns[block], self.lengths[block], success, metrics, self.env_steps, teacher)

    @property
    def mean_return(self) -> float:
        """Mean return."""
        return float(self.returns.double().mean())

    @property
    def return_interval(self) -> float:
        """Half-width of the 95 % confidence interval of the mean return (normal approximation)."""
        if len(self.returns) < 2:
            return math.inf
        return 1.96 * float(self.returns.double().std()) / math.sqrt(len(self.returns))

    def summary(self) -> dict[str, float]:
        """Return plain numbers for logs and reports; ``success_rate`` only where success is known."""
        out = {
            "mean_return": self.mean_return,
            "std_return": float(self.returns.double().std(correction=0)),
            "mean_length": float(self.lengths.double().mean()),
        }
        if self.success is not None:
            out["success_rate"] = float(self.success.double().mean())
        out.update({name: float(values.double().mean()) for name, values in self.metrics.items()})
        return out


class _Recorder:
    """Keeps what ended, per environment and round, in preallocated tensors."""

    def __init__(self, num_envs: int, rounds: int, device: torch.device | str):
        self.rounds = rounds
        self.count = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.running = torch.zeros(2, num_envs, device=device)
        self.fields: dict[str, torch.Tensor] = {}
        self.shape, self.device = (num_envs, rounds), device

    def add(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        self.running[0] += rewards
        self.running[1] += 1.0
        metrics = dict(extras.get("episode_metrics") or {})
        time_outs = extras.get("time_outs")
        success = metrics.pop("success", time_outs)
        column = self.count.clamp_max(self.rounds - 1).unsqueeze(1)
        counts = dones & (self.count < self.rounds)
        values = {"returns": self.running[0], "lengths": self.running[1], **metrics}
        if success is not None:
            values["success"] = success
        for name, value in values.items():
            store = self.fields.get(name)
            if store is None:
                store = self.fields[name] = torch.zeros(self.shape, device=self.device)
            old = store.gather(1, column)
            store.scatter_(1, column, torch.where(counts.unsqueeze(1), value.unsqueeze(1).to(store.dtype), old))
        self.count += dones
        self.running.masked_fill_(dones, 0.0)

    def done(self) -> bool:
        return bool((self.count >= self.rounds).all())


class Health:
    """Counts the steps before the first NaN or infinity in observations, actions and rewards, without a host sync."""

    def __init__(self, device: torch.device | str):
        self.sound = torch.ones(3, dtype=torch.bool, device=device)
        self.steps = torch.zeros(3, dtype=torch.int64, device=device)

    def add(self, obs: TensorDict, actions: torch.Tensor, rewards: torch.Tensor) -> None:
        """Take what an actor saw and did, and what it got."""
        leaves: list[Any] = list(obs.values(include_nested=True, leaves_only=True))
        groups = torch.stack([torch.isfinite(group).all() for group in leaves])
        now = [groups.all(), torch.isfinite(actions).all(), torch.isfinite(rewards).all()]
        self.sound &= torch.stack(now)
        self.steps += self.sound

    def check(self, who: str) -> None:
        """NaN spreads from observations to actions to rewards and on: what was spoiled first began it."""
        if bool(self.sound.all()):
            return
        culprit = ("environment returned NaN or infinite observations", f"{who} returned NaN or infinite actions")
        culprit += ("environment returned NaN or infinite rewards",)
        raise UserError(f"The {culprit[int(self.steps.argmin())]} during evaluation (step {int(self.steps.min())}).")


@torch.no_grad()
def evaluate(
    env: VecEnv,
    actor: Actor,
    num_episodes: int,
    seed: int,
    on_step: Callable[[TensorDict, torch.Tensor], None] | None = None,
    poll: Callable[[], None] | None = None,
    who: str = "policy",
    teacher_of: Callable[[TensorDict], torch.Tensor] | None = None,
) -> EvaluationResult:
    """Measure an actor.

    Every environment runs the same number of episodes, ``ceil(num_episodes / num_envs)``: counting whichever ends
    first would favour short ones. Global random states are as before afterwards.

    Args:
        env: The environment; it is reset with ``seed``.
        actor: Who acts.
        num_episodes: Episodes wanted; rounded up to a multiple of ``env.num_envs``.
        seed: Seed of the resets: the same seed gives every actor the same initial states.
        on_step: Called with the observations and the actions of every step.
        poll: Called now and then; may raise to stop.
        who: What to call the actor if its actions are not finite.
        teacher_of: With many teachers, says which one each environment follows.

    Returns:
        The episodes.

    Raises:
        UserError: If an environment's episode does not end within ``max_episode_length``, or something is not finite.
    """
    rounds = math.ceil(num_episodes / env.num_envs)
    limit = rounds * (int(env.max_episode_length) + 1)
    with preserved_rng(env.device):
        obs = env.reset(seed)
        actor.reset()
        recorder, health = _Recorder(env.num_envs, rounds, env.device), Health(env.device)
        steps = 0
        while steps < limit:
            actions = actor.act(obs)
            if on_step is not None:
                on_step(obs, actions)
            seen = obs
            obs, rewards, dones, extras = env.step(actions)
            dones = dones.bool()
            health.add(seen, actions, rewards)
            if teacher_of is not None:
                extras = {
                    **extras,
                    "episode_metrics": {**(extras.get("episode_metrics") or {}), TEACHER: teacher_of(seen)},
                }
            recorder.add(rewards, dones, extras)
            actor.reset(dones)
            steps += 1
            if steps % SYNC_INTERVAL == 0:
                if poll is not None:
                    poll()
                if recorder.done():
                    break
        health.check(who)
        if not recorder.done():
            raise UserError(
                f"An episode did not end within max_episode_length={env.max_episode_length} env steps during "
                "evaluation: check the environment's time-outs."
            )
    fields = {name: values.flatten() for name, values in recorder.fields.items()}
    teacher = fields.pop(TEACHER, None)
    success = fields.pop("success", None)
    return EvaluationResult(
        fields.pop("returns"),
        fields.pop("lengths"),
        None if success is None else success.bool(),
        fields,
        steps * env.num_envs,
        None if teacher is None else teacher.long(),
    )


@contextmanager
def preserved_rng(device: torch.device | str) -> Iterator[None]:
    """Restore the global random states of torch on exit, whatever happens inside."""
    cpu = torch.get_rng_state()
    is_cuda = torch.device(device).type == "cuda"
    cuda = torch.cuda.get_rng_state(device) if is_cuda else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
