"""A differentiable rollout of many vehicles for many policies, on single rows: one loop when it is compiled.

It is what ``differentiable.py`` is, with what a fleet needs: speeds that suit large vehicles, which begin metres away
but may not pass the task's limit of velocity; limits that are felt when passed, not only before; gradients that fade
with the distance in time, without which one vehicle in a thousand that tumbles outweighs all the others; and forces
that change with the episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.sim.quadrotor import ROTORS, RowParams, row_params, step_rows
from foundation.tasks.quadrotor.sim.rows import compile_rows
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv


@dataclass
class FleetRolloutCfg:
    """Settings of the smooth reward and of the gradient."""

    barrier: float = 500.0
    """Weight of the squared excess of a limit's share ``barrier_start``, in units of the limit."""
    barrier_start: float = 0.5
    """Share of a limit (position, velocity) beyond which it is felt: early, so that a student that flies less well than
    its teacher has room to do so."""
    limit_slack: float = 2.0
    """Multiple of the limits at which an episode is given up. Above 1, passing a limit costs, and has a gradient."""
    overdrive: float = 1.0
    """Weight of the excess of an action over [-1, 1], where the vehicle gives no gradient."""
    softness: float = 0.005
    """See :func:`foundation.tasks.quadrotor.mdp.smooth_reward`."""
    tail: float = 30.0
    """Weight of the guess at what follows the horizon, in steps."""
    look_ahead: float = 0.3
    """The guess: where the present velocity leads within this time [s], or from afar in what the way takes."""
    cruise_speed: float = 0.7
    """Speed at which to fly from afar, as a share of the velocity limit."""
    acceleration: float = 5.0
    """What a vehicle may be thought to accelerate and brake with from afar [m/s^2]."""
    gradient_decay: float = 0.98
    """What of a gradient passes from one step to the one before it."""
    max_gradient: float = 5000.0
    """Norm above which the gradient of one environment's reward by its state is scaled down."""
    episode_steps: int = 250
    """Length of an episode; shorter than the task's, so that catching a start is practised more."""
    motor_noise: float = 0.1
    """Standard deviation of the noise on the observed motor speeds (2u - 1), so that a policy does not lean on what a
    vehicle without motor-speed sensors cannot know."""


class _Constants(NamedTuple):
    """What :func:`_advance` takes besides the state."""

    params: RowParams
    limits: torch.Tensor
    weights: tuple[float, ...]
    dt: float
    cfg: FleetRolloutCfg


class FleetRollout:
    """Steps the vehicles of an environment with gradients from the smooth reward to the actions.

    Vehicles, limits, reward weights and initial states (with their forces) are those of ``env``, whose generator it
    draws from; the environment itself is not stepped. Environment ``i`` flies vehicle ``i % number``.
    """

    num_obs = mdp.POLICY_SIZE
    num_actions = 4

    def __init__(
        self,
        env: QuadcopterPointCtrlEnv,
        cfg: FleetRolloutCfg | None = None,
        compiled: bool = False,
        noise_seed: int = 0,
    ):
        """Wrap an environment.

        Args:
            env: What to fly; its rotors along z, its inertia diagonal.
            cfg: Settings.
            compiled: Compile the step, which needs a C++ compiler and half a CPU minute, and pays for many updates.
            noise_seed: Seed of the noise on the motor speeds.
        """
        self.env = env
        self.cfg = cfg or FleetRolloutCfg()
        self.num_envs = env.num_envs
        weights = tuple(env.reward_weights.flatten().tolist())
        self._constants = _Constants(row_params(env.dynamics), env.limits, weights, env.dynamics.dt, self.cfg)
        self._advance = compile_rows(_advance, env.device) if compiled else _advance
        self._noise = torch.Generator(env.device).manual_seed(noise_seed)
        env.reset()
        n = self.num_envs
        steps = self.cfg.episode_steps
        self._state, self._forces = self._take_initial()
        self._action = self._state[ROTORS] * 2.0 - 1.0
        order = torch.randperm(n, generator=env.generator, device=env.device)
        self._age = (torch.arange(n, device=env.device) * steps // n)[order].to(torch.float32)

    def _take_initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw states (17, num_envs) and forces (6, num_envs)."""
        state, forces = self.env.take_initial()
        # Contiguous, as the states after them are: a compiled step is made for one layout.
        state = state.contiguous()
        return state, torch.zeros_like(state[:6]) if forces is None else forces.contiguous()

    def detach(self) -> None:
        """Cut the graph between the past and the future."""
        # They require a gradient, though it is not used, so that the compiled step does not change from step to step.
        self._state, self._action = self._state.detach().requires_grad_(), self._action.detach().requires_grad_()

    def observe(self) -> torch.Tensor:
        """Build the ``policy`` observation, with noise on the motor speeds. Shape: (num_envs, 26)."""
        s = self._state
        groups = mdp.observations(s[0:3], s[3:6], s[6:9], s[9:13], self._action, s[ROTORS])
        policy = groups["policy"]
        known = policy[:, : mdp.DEPLOYABLE_SIZE]
        motors = policy[:, mdp.DEPLOYABLE_SIZE :]
        noise = torch.randn(motors.shape, generator=self._noise, device=motors.device)
        return torch.cat([known, motors + self.cfg.motor_noise * noise], dim=1)

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance, keeping the graph.

        Args:
            actions: Not yet clamped. Shape: (num_envs, 4).

        Returns:
            Smooth reward less the penalties. Shape: (num_envs,).
        """
        initial, forces = self._take_initial()
        before = (self._state, self._action, self._age, self._forces)
        self._state, self._action, self._age, self._forces, reward = self._advance(
            self._constants, before, actions, initial, forces
        )
        for tensor, hook in ((self._state, self._fade_state), (self._action, self._fade)):
            if tensor.requires_grad:
                tensor.register_hook(hook)
        return reward

    def _fade(self, grad: torch.Tensor | None) -> torch.Tensor | None:
        return None if grad is None else grad * self.cfg.gradient_decay

    def _fade_state(self, grad: torch.Tensor | None) -> torch.Tensor | None:
        """Fade a gradient by the states and bound it, each environment's by itself; what is not finite becomes zero."""
        if grad is None:
            return None
        norm = grad.square().sum(0).sqrt()
        share = (self.cfg.max_gradient / norm.clamp(min=1e-9)).clamp(max=1.0)
        return (grad * (self.cfg.gradient_decay * share)).nan_to_num(0.0)

    def terminal_value(self) -> torch.Tensor:
        """Guess the reward of the steps beyond the horizon: the distance that the present motion leads to, for a while.

        From afar the motion that leads to the target is the one at cruise speed, or slower where even a vehicle that
        accelerates half the way and brakes for the other half would not reach it. Shape: (num_envs,).
        """
        s = self._state
        cfg = self.cfg
        position = s[0:3]
        velocity = s[3:6]
        far = position.detach().square().sum(0).sqrt()
        cruise = far / (cfg.cruise_speed * self.env.limits[3])
        time = torch.maximum(cruise, (far / cfg.acceleration).sqrt()).clamp(min=cfg.look_ahead)
        distance = ((position + time * velocity).square().sum(0) + cfg.softness**2).sqrt()
        up = 1.0 - 2.0 * (s[10].square() + s[11].square())
        spin = (s[6:9].square().sum(0) + 1e-2).sqrt()
        return cfg.tail * self._constants.weights[1] * (distance + 0.1 * (1.0 - up) + 0.002 * spin)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next."""
        tensors = {name: getattr(self, name).detach().cpu().clone() for name in self._TENSORS}
        return {"tensors": tensors, "noise": self._noise.get_state(), "env": self.env.state_dict()}

    _TENSORS = ("_state", "_action", "_age", "_forces")

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self.env.load_state_dict(saved["env"])
        for name, value in saved["tensors"].items():
            setattr(self, name, value.to(self.env.device).clone())
        self._noise.set_state(saved["noise"].cpu())


def _advance(
    constants: _Constants,
    before: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    actions: torch.Tensor,
    initial: torch.Tensor,
    new_forces: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Advance by one action; return state, action, age, forces and reward (see :class:`FleetRollout`)."""
    state, previous, age, forces = before
    params, limits, weights, dt, cfg = constants
    raw = actions.unbind(1)
    action = [a.clamp(-1.0, 1.0) for a in raw]
    pushes = forces.unbind()
    outer = [g + f / params.mass for g, f in zip(params.gravity.unbind(), pushes[:3], strict=True)]
    push = [i * t for i, t in zip(params.inverse_inertia.unbind(), pushes[3:], strict=True)]
    drift = [[0.5 * dt**2 * a for a in outer], [dt * a for a in outer]]
    after = step_rows(params, dt, state.unbind(), action, drift, push)
    reward = mdp.smooth_reward(after[:3], after[9:13], action, previous.unbind(), weights, cfg.softness)
    given_up = age + 1.0 >= cfg.episode_steps
    for i, (row, limit) in enumerate(zip(after[:9], limits.unbind(), strict=True)):
        if i < 6:
            excess = (row.abs() / limit - cfg.barrier_start).clamp(min=0.0)
            reward = reward - cfg.barrier * excess * excess
        given_up = given_up | (row.detach().abs() > limit * cfg.limit_slack)
    for row in raw:
        excess = (row.abs() - 1.0).clamp(min=0.0)
        reward = reward - cfg.overdrive * ((1.0 + excess * excess).sqrt() - 1.0)
    begun = initial.unbind()
    next_state = torch.stack([torch.where(given_up, a, b) for a, b in zip(begun, after, strict=True)])
    started = [a * 2.0 - 1.0 for a in begun[13:]]
    next_action = torch.stack([torch.where(given_up, a, b) for a, b in zip(started, action, strict=True)])
    next_forces = torch.where(given_up, new_forces, forces)
    return next_state, next_action, torch.where(given_up, 0.0, age + 1.0), next_forces, reward
