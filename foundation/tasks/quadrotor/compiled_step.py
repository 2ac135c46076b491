"""One step of the task on rows, for a compiler: physics, reward, terminations, statistics, resets, observations.

``torch_env`` does the same with blocks, which is what eager torch likes (see ``sim.rows``). The formulas are those of
``mdp``; the numbers are the same to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics, RowParams, row_params, step_rows
from foundation.tasks.quadrotor.sim.rows import Rows, norm


class StepSettings(NamedTuple):
    """What does not change from step to step."""

    params: RowParams
    """The fleet."""
    limits: torch.Tensor
    """Of position, velocity and body rates. Shape: (9, num_envs)."""
    weights: tuple[float, ...]
    """Of the reward's terms, in the order of ``mdp.REWARD_TERMS``."""
    dt: float
    """Time step of the integrator [s]."""
    decimation: int
    """Integrator steps per action."""
    max_length: int
    """Steps of an episode that is not cut short."""
    window: int
    """Steps of the last second of an episode."""
    seconds: float
    """Length that summed rewards are divided by [s]."""


class StepState(NamedTuple):
    """What a step changes."""

    state: torch.Tensor
    """Packed simulator state. Shape: (17, num_envs)."""
    action: torch.Tensor
    """Last applied action. Shape: (4, num_envs)."""
    length: torch.Tensor
    """Steps of the running episodes. Shape: (num_envs,)."""
    sums: torch.Tensor
    """Of the reward's terms, the distance and the steps. Shape: (7, num_envs)."""
    log: torch.Tensor
    """Means over the episodes that ended last, in the order of ``episode_stats.POINT_CTRL.tags``. Shape: (11,)."""
    forces: torch.Tensor | None = None
    """Constant force [N] and torque [N m] of the running episodes, where there are any. Shape: (6, num_envs)."""


class StepResult(NamedTuple):
    """What a step gives."""

    policy: torch.Tensor
    """Shape: (num_envs, 26)."""
    l2f: torch.Tensor
    """Shape: (num_envs, 22)."""
    reward: torch.Tensor
    dones: torch.Tensor
    """As integers. Shape: (num_envs,)."""
    time_outs: torch.Tensor
    position_error: torch.Tensor
    """Mean distance over the last second of the episode [m]. Shape: (num_envs,)."""
    total_distance: torch.Tensor
    """Sum of the distances up to this step, for the ring of the last second. Shape: (num_envs,)."""


class PureStep:
    """:func:`advance` as a function of tensors alone, in one order.

    Args:
        settings: Of the environment.
    """

    def __init__(self, settings: StepSettings):
        self._settings = settings
        self._constants = (*settings.params, settings.limits)

    def inputs(
        self, before: StepState, initial: torch.Tensor, forces: torch.Tensor | None, second_ago: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Put what a step begins with in order (see :func:`advance`)."""
        pushes = () if forces is None or before.forces is None else (before.forces, forces)
        return (*self._constants, *before[:5], initial, second_ago, *pushes)

    def __call__(self, actions: torch.Tensor, *inputs: torch.Tensor) -> tuple[StepState, StepResult]:
        """Advance (see :func:`advance`)."""
        *params, limits = inputs[: len(self._constants)]
        state, action, length, sums, log, initial, second_ago, *pushes = inputs[len(self._constants) :]
        settings = self._settings._replace(params=RowParams(*params), limits=limits)
        pushed, forces = pushes or (None, None)
        before = StepState(state, action, length, sums, log, pushed)
        return advance(settings, before, actions, initial, forces, second_ago)

    def flat(self, actions: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Advance, and return the result's fields and then the state's: what is compiled."""
        after, result = self(actions, *inputs)
        return (*result, *(part for part in after if part is not None))


def unflatten(flat: Sequence[torch.Tensor]) -> tuple[StepState, StepResult]:
    """Return what :meth:`PureStep.flat` has flattened."""
    count = len(StepResult._fields)
    return StepState(*flat[count:]), StepResult(*flat[:count])


def step_settings(
    cfg: Any, dynamics: QuadrotorDynamics, limits: torch.Tensor, weights: torch.Tensor, max_length: int
) -> StepSettings:
    """Lay out what the compiled step needs of an environment (see :class:`StepSettings`)."""
    window = max(1, round(1.0 / (cfg.sim.dt * cfg.decimation)))
    numbers = (cfg.sim.dt, cfg.decimation, max_length, window, cfg.episode_length_s)
    return StepSettings(row_params(dynamics), limits, tuple(weights.flatten().tolist()), *numbers)


def advance(
    settings: StepSettings,
    before: StepState,
    actions: torch.Tensor,
    initial: torch.Tensor,
    forces: torch.Tensor | None,
    second_ago: torch.Tensor,
) -> tuple[StepState, StepResult]:
    """Advance every environment by one action; those that end begin a new episode.

    Args:
        settings: Constants.
        before: The state before the step.
        actions: Not yet clamped. Shape: (num_envs, 4).
        initial: Where environments that end begin anew. Shape: (17, num_envs).
        forces: What pushes those from then on. Shape: (6, num_envs).
        second_ago: ``total_distance`` of a second ago. Shape: (num_envs,).

    Returns:
        The state after the step, and the step's results.
    """
    action = list(actions.clamp(-1.0, 1.0).unbind(1))
    previous = before.action.unbind()
    state = _integrate(settings, before, action)
    exceeded = _exceeded(state, settings.limits.unbind())
    terminated = exceeded[0] | exceeded[1] | exceeded[2]
    distance = norm(state[:3])
    parts = mdp.reward_parts(distance, state[9:13], action, previous, terminated)
    terms = [weight * part for weight, part in zip(settings.weights, parts, strict=True)]
    reward = terms[0] + terms[1] + terms[2] + terms[3] + terms[4]
    length = before.length + 1
    time_outs = (length >= settings.max_length) & ~terminated
    dones = terminated | time_outs
    sums = [a + b for a, b in zip(before.sums.unbind(), [*terms, distance, torch.ones_like(distance)], strict=True)]
    total = sums[5]
    steps = sums[6]
    error = (total - torch.where(steps > settings.window, second_ago, 0.0)) / steps.clamp(max=float(settings.window))
    log = _log([*(s / settings.seconds for s in sums[:5]), *exceeded, time_outs, error, steps], dones, before.log)

    begun = initial.unbind()
    state = [torch.where(dones, a, b) for a, b in zip(begun, state, strict=True)]
    action = [torch.where(dones, a * 2.0 - 1.0, b) for a, b in zip(begun[13:], action, strict=True)]
    after = StepState(
        torch.stack(state),
        torch.stack(action),
        torch.where(dones, 0, length),
        torch.stack([torch.where(dones, 0.0, s) for s in sums]),
        log,
        None if forces is None or before.forces is None else torch.where(dones, forces, before.forces),
    )
    groups = mdp.observations(state[:3], state[3:6], state[6:9], state[9:13], action, state[13:])
    return after, StepResult(groups["policy"], groups["l2f"], reward, dones.to(torch.long), time_outs, error, total)


def _integrate(settings: StepSettings, before: StepState, action: Rows) -> list[torch.Tensor]:
    params = settings.params
    dt = settings.dt
    acceleration = list(params.gravity.unbind())
    push = None
    if before.forces is not None:
        force = before.forces[:3].unbind()
        torque = before.forces[3:].unbind()
        acceleration = [g + f / params.mass for g, f in zip(acceleration, force, strict=True)]
        push = [i * t for i, t in zip(params.inverse_inertia.unbind(), torque, strict=True)]
    drift = [[0.5 * dt**2 * a for a in acceleration], [dt * a for a in acceleration]]
    state = list(before.state.unbind())
    for _ in range(settings.decimation):
        state = step_rows(params, dt, state, action, drift, push)
    return state


def _exceeded(state: Rows, limits: Rows) -> list[torch.Tensor]:
    beyond = [row.abs() > limit for row, limit in zip(state[:9], limits, strict=True)]
    return [beyond[i] | beyond[i + 1] | beyond[i + 2] for i in (0, 3, 6)]


def _log(rows: Rows, dones: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    """Average the rows over the episodes that ended, or keep the last averages."""
    sums = torch.stack([torch.where(dones, row.to(torch.float32), 0.0).sum() for row in rows])
    count = dones.sum()
    return torch.where(count > 0, sums / count.clamp(min=1), log)
