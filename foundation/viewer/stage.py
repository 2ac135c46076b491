"""The policies that are watched: each acts in an environment of its own, all from the same initial state."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from foundation.core.errors import UserError
from foundation.engines.base import VecEnv, Viewable, is_viewable
from foundation.engines.perturbed import OBSERVATION_NOISE, PerturbedEnv
from foundation.evaluation.robustness import ColumnSpread
from foundation.policies.actors import Actor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate

HISTORY = 250
"""Env steps that are plotted."""


@dataclass
class Seat:
    """One policy and the environment that it acts in."""

    name: str
    """``teacher``, ``student``, ..."""
    actor: Actor
    env: PerturbedEnv
    index: int = 0
    """Which of the environment's parallel ones is shown."""
    total: float = 0.0
    """Return of the episode so far."""
    has_ended: bool = False
    """Whether it waits for the others' episodes to end."""
    poses: dict[str, list[float]] = field(default_factory=dict)
    """Body -> position [m] and quaternion w, x, y, z."""
    actions: deque[list[float]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    observed: deque[list[float]] = field(default_factory=lambda: deque(maxlen=HISTORY))


class Stage:
    """Steps all policies together. An episode that ends waits for the others; then all begin again.

    Args:
        actors: Policies by name.
        envs: An environment for each policy, or one with as many parallel ones; the latter's initial states differ, and
            an episode that ends there begins anew at once.
        selector: Selects the columns that are plotted, those of the policy that was last named; None: nothing is.
        seed: Seed of the first episode; each further one counts it up.

    Raises:
        UserError: If the task has no geometry.
    """

    def __init__(self, actors: Mapping[str, Actor], envs: Sequence[VecEnv], selector: ObsSelector | None, seed: int):
        self._viewable = [self._checked(env) for env in envs]
        self.envs = [PerturbedEnv(env) for env in envs]
        shared = len(envs) == 1
        self.seats = [
            Seat(name, actor, self.envs[0 if shared else place], place if shared else 0)
            for place, (name, actor) in enumerate(actors.items())
        ]
        self.selector = selector
        self.seed = seed
        self.step_number = 0
        """Env steps of the current episode."""
        self.times: deque[float] = deque(maxlen=HISTORY)
        """Time of each plotted step since the beginning of the episode [s]."""
        self._can_wait = not shared or len(self.seats) == 1
        self._pushes = torch.Generator().manual_seed(seed)

    @staticmethod
    def _checked(env: VecEnv) -> Viewable:
        if not is_viewable(env):
            raise UserError(
                f"--viewer: {type(getattr(env, 'unwrapped', env)).__name__} has no geometry: give it 'view_bodies' "
                "and 'view_poses()' (docs/howto/measure.md)"
            )
        return env

    @property
    def bodies(self) -> Mapping[str, Sequence[tuple]]:
        """What is drawn of each policy: body -> its shapes."""
        return self._viewable[0].view_bodies

    @property
    def can_push(self) -> bool:
        """Whether vehicles can be pushed."""
        return all(callable(getattr(env, "push", None)) for env in self._viewable)

    @property
    def step_dt(self) -> float:
        """Time of one env step [s]; 1/50 where the environment does not say it."""
        return float(getattr(self.envs[0], "step_dt", None) or 0.02)

    def measure_scales(self) -> None:
        """Measure the unit of the noise, the deviation of each observation over an episode of the first policy."""
        spread = ColumnSpread()
        first = self.seats[0]
        evaluate(cast(VecEnv, first.env), first.actor, first.env.num_envs, self.seed, [spread])
        for env in self.envs:
            env.scales = spread.scales()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin the next episode of every policy."""
        for env in self.envs:
            env.reset(self.seed)
        self.seed += 1
        self.step_number = 0
        self.times.clear()
        for seat in self.seats:
            seat.actor.reset()
            seat.total = 0.0
            seat.has_ended = False
            seat.actions.clear()
            seat.observed.clear()
        self._look()

    @torch.no_grad()
    def step(self) -> None:
        """Advance by one env step; where all episodes have ended, begin the next one instead."""
        if all(seat.has_ended for seat in self.seats):
            self.restart()
            return
        self.times.append(self.step_number * self.step_dt)
        for env in self.envs:
            self._advance(env, [seat for seat in self.seats if seat.env is env])
        self.step_number += 1
        self._look()

    def _advance(self, env: PerturbedEnv, seats: Sequence[Seat]) -> None:
        """Step one environment by its policies' actions, unless their episodes have ended."""
        obs = env.get_observations()
        observed = None if self.selector is None else self.selector(obs)
        if all(seat.has_ended for seat in seats):
            for seat in seats:  # the curves go on where they are
                seat.actions.append([float("nan")] * env.num_actions)
                seat.observed.append([float("nan")] * (0 if observed is None else observed[0].numel()))
            return
        acted = [seat.actor.act(obs) for seat in seats]
        actions = acted[0].clone()
        for seat, own in zip(seats, acted, strict=True):
            actions[seat.index] = own[seat.index]
            seat.actions.append(own[seat.index].flatten().tolist())
            seat.observed.append([] if observed is None else observed[seat.index].flatten().tolist())
        _, rewards, dones, _ = env.step(actions)
        for seat in seats:
            seat.total += float(rewards[seat.index])
            ends = bool(dones[seat.index])
            if ends and not self._can_wait:
                seat.total = 0.0
            seat.has_ended = ends and self._can_wait
            seat.actor.reset(dones.bool())

    def _look(self) -> None:
        """Take the poses of all bodies; those of an episode that has ended stay where it ended."""
        for place, env in enumerate(self.envs):
            seats = [seat for seat in self.seats if seat.env is env and not seat.has_ended]
            if seats:
                poses = self._viewable[place].view_poses()
                for seat in seats:
                    seat.poses = {name: pose[seat.index].tolist() for name, pose in poses.items()}

    def push(self, speed: float) -> None:
        """Change the velocity of every vehicle by a speed [m/s] in one random direction, the same for all."""
        direction = torch.randn(3, generator=self._pushes)
        velocity = speed * direction / direction.norm()
        for env, viewable in zip(self.envs, self._viewable, strict=True):
            push = getattr(viewable, "push", None)
            if callable(push):
                push(velocity.to(env.device).expand(env.num_envs, 3))

    def set_noise(self, percent: float) -> None:
        """Set the noise of the observations from the next step on [% of std]; 0 for none."""
        for env in self.envs:
            env.vary(OBSERVATION_NOISE if percent else None, percent)
