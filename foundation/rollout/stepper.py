"""The loop that steps an environment: an actor chooses the actions, observers follow every env step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.policies.actors import Actor

SYNC_INTERVAL = 25
"""Env steps between two polls, and between two host syncs that ask whether a rollout has ended."""


class Observer:
    """Follows a rollout. It is called at every env step, so that it must not wait for the device."""

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """Take the observations that were acted on and the actions, before the env step.

        Observations must be read here: some environments overwrite them in place.

        Args:
            obs: Observation groups, each (num_envs, group_size).
            actions: Shape: (num_envs, num_actions).
        """

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """Take the results of the env step, before the actor forgets the episodes that ended.

        Args:
            rewards: Shape: (num_envs,).
            dones: Bool. Shape: (num_envs,).
            extras: As :meth:`foundation.engines.base.VecEnv.step` returns it.
        """


class Stepper:
    """Steps an environment with an actor and shows each step to the observers, without a host sync.

    Args:
        env: The environment.
        actor: Chooses the actions of all environments; its ``reset`` is called with the episodes that ended.
        observers: Called in this order.
    """

    def __init__(self, env: VecEnv, actor: Actor, observers: Sequence[Observer] = ()):
        self.env = env
        self.actor = actor
        self.observers = list(observers)
        self.obs: TensorDict | None = None
        """Observations to act on next; None before the first :meth:`reset`."""
        self.extras: dict[str, Any] = {}
        """Extras of the last env step."""

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment, and return its observations."""
        self.obs = self.env.reset(seed)
        self.actor.reset()
        return self.obs

    @torch.no_grad()
    def run(self, num_steps: int, poll: Callable[[], None] | None = None) -> None:
        """Run some env steps in every environment.

        Args:
            num_steps: How many.
            poll: Called every ``SYNC_INTERVAL`` steps, before the first one too; may raise to stop.
        """
        assert self.obs is not None, "reset() comes first"
        for step in range(num_steps):
            if poll is not None and step % SYNC_INTERVAL == 0:
                poll()
            actions = self.actor.act(self.obs)
            # Before the step: many environments write the next observations into the same tensors.
            for observer in self.observers:
                observer.before_step(self.obs, actions)
            self.obs, rewards, dones, self.extras = self.env.step(actions)
            dones = dones.bool()
            for observer in self.observers:
                observer.after_step(rewards, dones, self.extras)
            # Last of all, as observers may ask the actor about the episodes that have just ended. Where nothing is done
            # it is called too: to ask whether any is would wait for the device at every step.
            self.actor.reset(dones)


class FiniteCheck(Observer):
    """Count the env steps before the first NaN or infinity in observations, actions and rewards."""

    def __init__(self, device: torch.device | str):
        self.finite = torch.ones(3, dtype=torch.bool, device=device)
        self.steps = torch.zeros(3, dtype=torch.int64, device=device)
        self._acted: list[torch.Tensor] = []

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        leaves: list[Any] = list(obs.values(include_nested=True, leaves_only=True))
        groups = torch.stack([torch.isfinite(group).all() for group in leaves])
        self._acted = [groups.all(), torch.isfinite(actions).all()]

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """See :class:`Observer`."""
        # Once false it stays false, so that the steps counted are those before the first bad one.
        self.finite &= torch.stack([*self._acted, torch.isfinite(rewards).all()])
        self.steps += self.finite

    def check(self, actor: str) -> None:
        """Raise if anything was not finite (one host sync).

        Args:
            actor: Name of the actor in the message.

        Raises:
            UserError: Naming the source and the step.
        """
        if bool(self.finite.all()):
            return
        # NaN spreads from observations to actions to rewards and on: the earliest is the source.
        source = (
            "environment returned NaN or infinite observations",
            f"{actor} returned NaN or infinite actions",
            "environment returned NaN or infinite rewards",
        )[int(self.steps.argmin())]
        raise UserError(f"The {source} during evaluation (step {int(self.steps.min())}).")


class RealTimePace(Observer):
    """Wait before each env step until it is due, so that a rollout is no faster than the simulated time.

    Args:
        env: Declares in ``step_dt`` the length of its step [s].

    Raises:
        UserError: If it does not.
    """

    def __init__(self, env: VecEnv):
        step_dt = EnvCapabilities.of(env).step_dt
        if not step_dt:
            raise UserError("--real-time: this environment does not declare the length of its step (step_dt)")
        self.step_dt = step_dt
        self._due = time.perf_counter()

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        now = time.perf_counter()
        # A step that came late does not make the following ones hurry by more than one step.
        self._due = max(self._due + self.step_dt, now - self.step_dt)
        time.sleep(max(0.0, self._due - now))
