"""Perturbations of what a policy sees and does, at the boundary of any engine's environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError, suggest
from foundation.engines.base import EnvCapabilities, Quantity, VecEnv, is_perturbable
from foundation.engines.video import EnvWrapper

OBSERVATION_NOISE = "observation_noise"
OBSERVATION_BIAS = "observation_bias"
OBSERVATION_DROPOUT = "observation_dropout"
ACTION_DELAY = "action_delay"
ACTION_LOSS = "action_loss"

BOUNDARY: dict[str, Quantity] = {
    OBSERVATION_NOISE: Quantity("% of std", 0.0, (2.0, 5.0, 10.0, 20.0, 40.0)),
    OBSERVATION_BIAS: Quantity("% of std", 0.0, (2.0, 5.0, 10.0, 20.0, 40.0)),
    OBSERVATION_DROPOUT: Quantity("% of steps", 0.0, (5.0, 10.0, 25.0, 50.0, 75.0)),
    ACTION_DELAY: Quantity("steps", 0.0, (1.0, 2.0, 3.0, 5.0)),
    ACTION_LOSS: Quantity("% of steps", 0.0, (5.0, 10.0, 25.0, 50.0, 75.0)),
}
"""Quantities that every engine has, as they are applied outside the simulation."""
SIMULATION = ("mass", "inertia", "gravity", "push", "control_rate")
"""Quantities that a simulation usually has."""

Scales = Mapping[str, torch.Tensor]
"""Observation group -> standard deviation of each column. Shape of each: (group_size,)."""


class PerturbedEnv(EnvWrapper):
    """Vary one quantity of an environment at a time: its sensors and actuators here, the rest in its simulation.

    - ``observation_noise``: Gaussian noise of that deviation, new at each step.
    - ``observation_bias``: an offset of that size, its sign drawn for each column and episode.
    - ``observation_dropout``: an observation does not arrive, with that probability; the last one that did stands.
    - ``action_delay``: an action takes effect so many steps later. An episode's first action fills the time before.
    - ``action_loss``: an action is lost, with that probability; the last one that arrived stands.

    A policy knows what it has commanded: columns that the environment declares to be its last action
    (``action_fields``) have neither noise nor bias, and hold what was given where another action arrived.

    The first observation and the first action of an episode always arrive. Random numbers come from a generator of this
    wrapper's own, so that a seed gives teacher and student the same perturbations. Integer observations, as
    images are, have neither noise nor bias.

    Args:
        env: The environment.
        scales: Unit of noise and bias. Groups without an entry have neither.
    """

    def __init__(self, env: VecEnv, scales: Scales | None = None):
        super().__init__(env)
        declared = EnvCapabilities.of(env)
        self._action_columns = {
            group: slice(first, first + env.num_actions) for group, first in declared.action_fields.items()
        }
        bounds = declared.action_range or ((-1.0, 1.0),) * env.num_actions
        self._bounds = torch.tensor(bounds, device=torch.device(env.device)).T
        self._scales: Scales = {}
        self.scales = scales or {}
        self.quantities: dict[str, Quantity] = dict(BOUNDARY)
        if is_perturbable(env):
            self.quantities |= declared.perturbations
        device = torch.device(env.device)
        self._generator = torch.Generator(device)
        self._delay = 0
        self._active: dict[str, float] = {}
        self._begins = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        """Whether the next action is an episode's first. Shape: (num_envs,)."""
        self._queue: list[torch.Tensor] = []
        """Actions on their way, the oldest first."""
        self._action: torch.Tensor | None = None
        """Last action that arrived."""
        self._seen: TensorDict | None = None
        """Last observations that arrived."""
        self._signs: dict[str, torch.Tensor] = {}

    @property
    def scales(self) -> Scales:
        """Unit of noise and bias by group; 0 where a column is the policy's own last action."""
        return self._scales

    @scales.setter
    def scales(self, scales: Scales) -> None:
        copies = {name: scale.clone() for name, scale in scales.items()}
        for name in copies.keys() & self._action_columns.keys():
            copies[name][self._action_columns[name]] = 0.0
        self._scales = copies

    def vary(self, name: str | None, value: float = 0.0) -> None:
        """Set one quantity from the next :meth:`reset` on; all others are nominal.

        Args:
            name: The quantity. None: all are nominal.
            value: Its value, in the unit of ``quantities``.

        Raises:
            UserError: If the environment cannot vary it, or not to this value.
        """
        if name is not None and name not in self.quantities:
            raise UserError(
                f"--perturbation {name}: this environment cannot vary it. {suggest(name, sorted(self.quantities))}"
            )
        self._active = {}
        self._delay = 0
        if name in BOUNDARY:
            _check(name, value)
            self._active = {name: value}
            self._delay = int(value) if name == ACTION_DELAY else 0
        perturb = getattr(self.env, "perturb", None)
        if callable(perturb):
            perturb({} if name is None or name in BOUNDARY else {name: value})

    # -- stepping -----------------------------------------------------------------------------------------------------

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment; the seed is that of the perturbations too."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self._begins = torch.ones_like(self._begins)
        self._queue = []
        self._action = None
        self._seen = None
        self._signs = {}
        return self._observe(self.env.reset(seed))

    def get_observations(self) -> TensorDict:
        """Return the observations of the last step or reset, perturbed as they were."""
        return self.env.get_observations() if self._seen is None else self._seen

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Advance the environment by the actions that arrive. Shape: (num_envs, num_actions)."""
        given = actions
        obs, rewards, dones, extras = self.env.step(self._arriving(actions))
        self._begins = dones.bool()
        if self._delay or ACTION_LOSS in self._active:
            obs = self._with_commands(obs, given)
        return self._observe(obs), rewards, dones, extras

    def _arriving(self, actions: torch.Tensor) -> torch.Tensor:
        first = self._begins.unsqueeze(1)
        if self._delay:
            self._queue = [torch.where(first, actions, waiting) for waiting in self._queue]
            self._queue += [actions] * (self._delay + 1 - len(self._queue))
            actions = self._queue.pop(0)
        if ACTION_LOSS in self._active:
            if self._action is not None:
                arrives = first | ~self._drawn(self._active[ACTION_LOSS])
                actions = torch.where(arrives, actions, self._action)
            self._action = actions
        return actions

    def _with_commands(self, obs: TensorDict, actions: torch.Tensor) -> TensorDict:
        """Write what the policy gave over what arrived, but where a new episode has begun."""
        groups: dict[str, Any] = dict(obs.items())
        low, high = self._bounds
        for name, columns in self._action_columns.items():
            group = groups[name].clone()
            arrived = group[:, columns]
            group[:, columns] = torch.where(self._begins.unsqueeze(1), arrived, actions.clamp(low, high).to(arrived))
            groups[name] = group
        return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)

    def _observe(self, obs: TensorDict) -> TensorDict:
        """Return what the policy sees of observations, each group (num_envs, ...)."""
        if OBSERVATION_NOISE in self._active:
            share = self._active[OBSERVATION_NOISE] / 100.0
            obs = self._shifted(obs, lambda name, group: share * self._normal(group))
        elif OBSERVATION_BIAS in self._active:
            share = self._active[OBSERVATION_BIAS] / 100.0
            obs = self._shifted(obs, lambda name, group: share * self._sign(name, group))
        elif OBSERVATION_DROPOUT in self._active:
            obs = self._held(obs)
        self._seen = obs
        return obs

    def _shifted(self, obs: TensorDict, draw: Callable[[str, torch.Tensor], torch.Tensor]) -> TensorDict:
        """Add what is drawn, in units of the scales, to each group that has one."""
        groups: dict[str, Any] = dict(obs.items())
        for name, scale in self.scales.items():
            group = groups.get(name)
            if isinstance(group, torch.Tensor) and group.is_floating_point():
                groups[name] = group + draw(name, group) * scale.to(group)
        return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)

    def _held(self, obs: TensorDict) -> TensorDict:
        """Keep the last observations where new ones do not arrive; those of a new episode do."""
        if self._seen is None:
            return obs.clone()  # some environments write the next observations into the same tensors
        lost = self._drawn(self._active[OBSERVATION_DROPOUT]).squeeze(1) & ~self._begins
        groups: dict[str, Any] = dict(obs.items())
        for name, group in groups.items():
            last: Any = self._seen[name]
            groups[name] = torch.where(lost.view(-1, *[1] * (group.ndim - 1)), last, group)
        return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)

    def _drawn(self, percent: float) -> torch.Tensor:
        """Return whether an event of a probability [%] happens. Shape: (num_envs, 1)."""
        shape = (len(self._begins), 1)
        uniform = torch.rand(shape, generator=self._generator, device=self._generator.device)
        return uniform < percent / 100.0

    def _normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self._generator, device=like.device, dtype=like.dtype)

    def _sign(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return the signs of a group's biases, drawn again where an episode begins; +1 or -1 in each place."""
        uniform = torch.rand(like.shape, generator=self._generator, device=like.device)
        drawn = (uniform < 0.5).to(like.dtype) * 2.0 - 1.0
        if name in self._signs:
            begins = self._begins.view(-1, *[1] * (like.ndim - 1))
            drawn = torch.where(begins, drawn, self._signs[name])
        self._signs[name] = drawn
        return drawn


def _check(name: str, value: float) -> None:
    """Refuse a value that a quantity cannot have."""
    is_share = name in (OBSERVATION_DROPOUT, ACTION_LOSS)
    if not (math.isfinite(value) and value >= 0.0) or (is_share and value > 100.0):
        most = "0 to 100" if is_share else "0 or more"
        raise UserError(f"--perturbation {name}={value:g}: expected {most} [{BOUNDARY[name].unit}]")
    if name == ACTION_DELAY and value != int(value):
        raise UserError(f"--perturbation {name}={value:g}: expected an integer number of steps")
