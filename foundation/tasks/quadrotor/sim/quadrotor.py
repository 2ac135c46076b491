"""Batched quadrotor dynamics: a rigid body and first-order rotors, integrated by RK4 as rl-tools' l2f simulator does.

The state is ONE tensor, components first and environments last, so that every slice is contiguous and an operation
touches all environments at once::

    position [m] (3) | velocity [m/s] (3) | body rates [rad/s] (3) | quaternion (4) | rotor speeds [0, 1] (num_rotors)

Position and velocity are in the world frame, rates in the body frame, the quaternion is (w, x, y, z), body to world.

The rotors obey u' = (target - u) / tau with a constant target, so all four RK4 stages of them are polynomials in
dt/tau and are computed at once; position and velocity do not enter the forces, so their four stages collapse into
weighted sums of the stages' accelerations. Only rates and quaternion are stepped stage by stage. The result is RK4 over
the whole state, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.rotation import contract, normalize, rotation_rows
from foundation.tasks.quadrotor.sim.rows import Rows, bilinear
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams

POSITION = slice(0, 3)
VELOCITY = slice(3, 6)
BODY_RATES = slice(6, 9)
QUATERNION = slice(9, 13)
ROTORS = slice(13, None)


_BODY_Z = (2, 5, 8)
"""Entries of R, row-major, that turn the body's z into the world."""
_EULER_PRODUCTS = ((1, 2), (2, 0), (0, 1))
"""Which body rates multiply in Euler's equations: Jx wx' = (Jy - Jz) wy wz + torque, and so on in a circle."""
_QUATERNION_RATE_TERMS: tuple[tuple[tuple[float, int, int], ...], ...] = (
    ((-1, 1, 0), (-1, 2, 1), (-1, 3, 2)),
    ((1, 0, 0), (1, 2, 2), (-1, 3, 1)),
    ((1, 0, 1), (1, 3, 0), (-1, 1, 2)),
    ((1, 0, 2), (1, 1, 1), (-1, 2, 0)),
)
"""2 q' of the quaternion (w, x, y, z): for each row (sign, index into q, index into the body rates)."""


class QuadrotorState(NamedTuple):
    """Named views of a packed state."""

    position: torch.Tensor
    """World frame [m]. Shape: (3, num_envs)."""
    velocity: torch.Tensor
    """World frame [m/s]. Shape: (3, num_envs)."""
    body_rates: torch.Tensor
    """Body frame [rad/s]. Shape: (3, num_envs)."""
    quaternion: torch.Tensor
    """(w, x, y, z), body to world. Shape: (4, num_envs)."""
    rotor_speeds: torch.Tensor
    """In [0, 1]. Shape: (num_rotors, num_envs)."""


def unpack(state: torch.Tensor) -> QuadrotorState:
    """Name the parts of a packed state, as views. Shape: (13 + num_rotors, num_envs)."""
    return QuadrotorState(state[POSITION], state[VELOCITY], state[BODY_RATES], state[QUATERNION], state[ROTORS])


def pack(state: QuadrotorState) -> torch.Tensor:
    """Copy named parts into a packed state. Shape: (13 + num_rotors, num_envs)."""
    return torch.cat(tuple(state))


class _StraightThroughClamp(torch.autograd.Function):
    """Clamp to [-1, 1] whose gradient is the identity, so that a saturated command still learns."""

    @staticmethod
    def forward(ctx, value):
        return value.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


def clamp_straight_through(actions: torch.Tensor) -> torch.Tensor:
    """Clamp to [-1, 1], with the gradient of the identity."""
    return _StraightThroughClamp.apply(actions)  # pyright: ignore[reportReturnType]


class QuadrotorDynamics:
    """One time step of many quadrotors, each with its own parameters.

    Everything that does not change from step to step is folded into constants here: mass, inertia, rotor places and
    directions into one mixing matrix per vehicle, time constants into the RK4 polynomials of the rotor lag.
    """

    def __init__(self, params: VehicleParams, dt: float):
        """Fold the parameters of ``params`` (one vehicle per environment) for a time step ``dt`` [s]."""
        fastest = torch.minimum(params.time_constant_rising, params.time_constant_falling).min().item()
        if fastest < dt:
            raise UserError(
                f"a rotor time constant of {fastest:g} s is shorter than the time step {dt:g} s: lower sim.dt "
                "(and raise decimation)"
            )
        self.dt = dt
        self.num_rotors = params.num_rotors
        self.dtype = params.mass.dtype
        self.device = params.mass.device
        self.lag = torch.stack([dt / params.time_constant_rising, dt / params.time_constant_falling])
        self._lag_rising, self._lag_falling = (
            torch.stack([torch.zeros_like(h), *_lag_shares(h, h**3, h**4)], dim=1) for h in self.lag
        )
        self.thrust = [c.unsqueeze(1).contiguous() for c in params.thrust_coefficients]
        span = params.action_max - params.action_min
        self.target_scale = (0.5 * span).expand(self.num_rotors, -1).contiguous()
        self.target_offset = (params.action_min + 0.5 * span).expand(self.num_rotors, -1).contiguous()
        self.axial = bool((params.thrust_directions[:, :2] == 0).all())
        off_diagonal = params.inertia.clone()
        off_diagonal.diagonal(dim1=0, dim2=1).zero_()
        self.diagonal = bool((off_diagonal == 0).all())
        self._inertia = params.inertia
        self.inverse_inertia = torch.linalg.inv(params.inertia.permute(2, 0, 1)).permute(1, 2, 0).contiguous()
        self.mixing = self._fold_mixing(params)
        self._rate_matrix, self.rate_scale = self._fold_rates()
        self.gravity = params.gravity
        self.mass = params.mass
        self.drift = self._fold_drift(params.gravity)
        self._quadrature = torch.tensor(
            [[dt * dt / 6] * 3 + [0.0], [dt / 6, dt / 3, dt / 3, dt / 6]], dtype=self.dtype, device=self.device
        )

    def _fold_mixing(self, params: VehicleParams) -> list[torch.Tensor]:
        """Map rotor thrust to body acceleration, angular acceleration and four zeros for the quaternion's rows.

        Returns:
            One tensor per rotor. Shape: (1 or 3, then 3 and 4; 1; num_envs).
        """
        mixing = []
        for i in range(self.num_rotors):
            direction = params.thrust_directions[i]
            torque = torch.linalg.cross(params.rotor_positions[i], direction, dim=0)
            torque = torque + params.torque_constants[i] * params.torque_directions[i]
            angular = (self.inverse_inertia * torque.unsqueeze(0)).sum(1)
            linear = direction / params.mass
            rows = [linear[2:] if self.axial else linear, angular, torch.zeros_like(params.gravity[:1]).expand(4, -1)]
            mixing.append(torch.cat(rows).unsqueeze(1).contiguous())
        return mixing

    def _fold_rates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Give (rates, quaternion)' = scale * (matrix @ outer((rates, quaternion), rates)) + angular acceleration.

        Returns:
            Matrix, shape (7, 21), and scale, shape (7, num_envs).
        """
        matrix = torch.zeros(7, 7, 3, dtype=self.dtype, device=self.device)
        if self.diagonal:
            for row, (i, j) in enumerate(_EULER_PRODUCTS):
                matrix[row, i, j] = 1.0
        for row, entries in enumerate(_QUATERNION_RATE_TERMS):
            for sign, i, j in entries:
                matrix[3 + row, 3 + i, j] = sign
        moments = self._inertia.diagonal(dim1=0, dim2=1).T
        gyroscopic = (moments.roll(-1, 0) - moments.roll(-2, 0)) / moments
        scale = torch.cat([gyroscopic, torch.full_like(gyroscopic[:1], 0.5).expand(4, -1)])
        return matrix.view(7, 21), scale.contiguous()

    def _fold_drift(self, acceleration: torch.Tensor) -> torch.Tensor:
        """Give the change of (position, velocity) by a constant acceleration [m/s^2]. Shape: (2, 3, num_envs)."""
        return torch.stack([0.5 * self.dt**2 * acceleration, self.dt * acceleration])

    def disturb(self, force: torch.Tensor, torque: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn constant outer forces into what :meth:`step` takes.

        Args:
            force: World frame [N]. Shape: (3, num_envs).
            torque: Body frame [N m]. Shape: (3, num_envs).

        Returns:
            Drift, shape (2, 3, num_envs), and angular acceleration [rad/s^2], shape (3, num_envs).
        """
        drift = self._fold_drift(self.gravity + force / self.mass)
        return drift, (self.inverse_inertia * torque.unsqueeze(0)).sum(1)

    def _rates(self, spin: torch.Tensor, angular: torch.Tensor) -> torch.Tensor:
        """Differentiate (rates, quaternion). Shape: (7, num_envs), both in and out."""
        products = (spin.unsqueeze(1) * spin[:3].unsqueeze(0)).view(21, -1)
        change = torch.addcmul(angular, self.rate_scale, contract(self._rate_matrix, products))
        if self.diagonal:
            return change
        rates = spin[:3]
        momentum = (self._inertia * rates.unsqueeze(0)).sum(1)
        torque = torch.linalg.cross(rates, momentum, dim=0)
        gyroscopic = (self.inverse_inertia * torque.unsqueeze(0)).sum(1)
        return torch.cat([change[:3] - gyroscopic, change[3:]])

    def step(
        self,
        state: torch.Tensor,
        actions: torch.Tensor,
        disturbance: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Advance by one time step. Pure, and differentiable in ``state`` and ``actions``.

        Args:
            state: Packed state. Shape: (13 + num_rotors, num_envs).
            actions: Motor commands in [-1, 1], already clamped. Shape: (num_rotors, num_envs).
            disturbance: What :meth:`disturb` returned.

        Returns:
            The next packed state. Shape: (13 + num_rotors, num_envs).
        """
        dt = self.dt
        rotors = state[ROTORS]
        error = torch.addcmul(self.target_offset, self.target_scale, actions) - rotors
        # The sign of the error cannot change within a step (tau >= dt), so one choice serves all stages.
        lag = torch.where((error >= 0).unsqueeze(1), self._lag_rising, self._lag_falling)
        speeds = torch.addcmul(rotors.unsqueeze(1), lag, error.unsqueeze(1))
        c0, c1, c2 = self.thrust
        thrust = torch.addcmul(c0, speeds, torch.addcmul(c1, c2, speeds))
        wrench = self.mixing[0] * thrust[0]
        for i in range(1, self.num_rotors):
            wrench = torch.addcmul(wrench, self.mixing[i], thrust[i])
        linear = 1 if self.axial else 3
        angular = wrench[linear:]
        drift = self.drift
        if disturbance is not None:
            drift = disturbance[0]
            quaternion_rows = torch.zeros_like(drift[0, :1]).expand(4, -1)
            angular = angular + torch.cat([disturbance[1], quaternion_rows]).unsqueeze(1)

        spin = state[6:13]
        k1 = self._rates(spin, angular[:, 0])
        spin2 = torch.add(spin, k1, alpha=0.5 * dt)
        k2 = self._rates(spin2, angular[:, 1])
        spin3 = torch.add(spin, k2, alpha=0.5 * dt)
        k3 = self._rates(spin3, angular[:, 2])
        spin4 = torch.add(spin, k3, alpha=dt)
        k4 = self._rates(spin4, angular[:, 3])
        spin_next = torch.add(spin, torch.add(k1 + k4, k2 + k3, alpha=2.0), alpha=dt / 6)

        stages = torch.stack([spin[3:], spin2[3:], spin3[3:], spin4[3:]], dim=1)
        acceleration = self._world_acceleration(stages, wrench[:linear, :4])
        change = drift + self._weigh_stages(acceleration)
        velocity = state[VELOCITY]
        return torch.cat(
            [
                torch.add(state[POSITION] + change[0], velocity, alpha=dt),
                velocity + change[1],
                spin_next[:3],
                normalize(spin_next[3:]),
                speeds[:, 4].clamp(0.0, 1.0),
            ]
        )

    def _weigh_stages(self, acceleration: torch.Tensor) -> torch.Tensor:
        """Sum the stages to the change of (position, velocity). Shape: (3, 4, num_envs) to (2, 3, num_envs)."""
        if acceleration.is_cuda:  # Not a matrix product there, see rotation.contract.
            return (self._quadrature[:, None, :, None] * acceleration).sum(2)
        return torch.matmul(self._quadrature, acceleration).transpose(0, 1)

    def _world_acceleration(self, quaternions: torch.Tensor, body: torch.Tensor) -> torch.Tensor:
        """Rotate the body-frame accelerations of the four stages into the world.

        Args:
            quaternions: Unnormalised, as the stages have them. Shape: (4, 4, num_envs).
            body: z alone or x, y, z [m/s^2]. Shape: (1 or 3, 4, num_envs).

        Returns:
            Shape: (3, 4, num_envs).
        """
        flat = quaternions.view(4, -1)
        if self.axial:
            return rotation_rows(flat, _BODY_Z).view(3, *body.shape[1:]) * body
        return (rotation_rows(flat).view(3, 3, *body.shape[1:]) * body.unsqueeze(0)).sum(1)


def _lag_shares(h: torch.Tensor, h3: torch.Tensor, h4: torch.Tensor) -> list[torch.Tensor]:
    """Return how much of the rotors' error is made up at the last three RK4 stages and at the end of the step.

    At the first stage it is nothing.

    Args:
        h: Time step over time constant, of any shape.
        h3: Its third power. A compiler vectorises products but not ``h**3``; eagerly the two differ in the last bit.
        h4: Its fourth power.

    Returns:
        Four tensors of the same shape.
    """
    h2 = h * h
    return [h / 2, h / 2 - h2 / 4, h - h2 / 2 + h3 / 4, h - h2 / 2 + h3 / 6 - h4 / 24]


# -- the same step on rows, for a compiler --------------------------------------------------------------------------


class RowParams(NamedTuple):
    """A fleet's constants, one tensor per row. All of shape (num_envs,) after ``unbind``."""

    target: torch.Tensor
    """Offset and scale of each rotor's command. Shape: (2, num_rotors, num_envs)."""
    lag: torch.Tensor
    """Time step over time constant, rising and falling. Shape: (2, num_rotors, num_envs)."""
    thrust: torch.Tensor
    """Coefficients. Shape: (3, num_rotors, num_envs)."""
    mixing: torch.Tensor
    """Thrust to acceleration along z and angular accelerations. Shape: (num_rotors, 4, num_envs)."""
    gyroscopic: torch.Tensor
    """Of Euler's equations. Shape: (3, num_envs)."""
    gravity: torch.Tensor
    """[m/s^2]. Shape: (3, num_envs)."""
    mass: torch.Tensor
    """[kg]. Shape: (num_envs,)."""
    inverse_inertia: torch.Tensor
    """Diagonal. Shape: (3, num_envs)."""


def row_params(dynamics: QuadrotorDynamics) -> RowParams:
    """Take the constants of a fleet.

    Raises:
        UserError: If a rotor is tilted or an inertia is not diagonal.
    """
    if not (dynamics.axial and dynamics.diagonal):
        raise UserError(
            "a vehicle has a tilted rotor or an inertia that is not diagonal: it can neither be compiled "
            "(env.compile=false) nor trained through the simulator in a fleet"
        )
    return RowParams(
        torch.stack([dynamics.target_offset, dynamics.target_scale]),
        dynamics.lag,
        torch.stack([c[:, 0].expand(dynamics.num_rotors, -1) for c in dynamics.thrust]),
        torch.stack([m[:4, 0] for m in dynamics.mixing]),
        dynamics.rate_scale[:3].contiguous(),
        dynamics.gravity.expand(3, dynamics.mass.shape[0]).contiguous(),
        dynamics.mass.contiguous(),
        dynamics.inverse_inertia.diagonal(dim1=0, dim2=1).T.contiguous(),
    )


def step_rows(
    params: RowParams, dt: float, state: Rows, actions: Rows, drift: Sequence[Rows], push: Rows | None = None
) -> list[torch.Tensor]:
    """Advance by one time step, as ``QuadrotorDynamics.step`` does, to rounding.

    Args:
        params: The fleet.
        dt: Time step [s].
        state: The rows of a packed state.
        actions: Commands in [-1, 1], one row per rotor.
        drift: Changes of position (3) and of velocity (3) by gravity and constant forces.
        push: Angular acceleration by a constant torque (3).

    Returns:
        The rows of the next packed state.
    """
    position = state[0:3]
    velocity = state[3:6]
    rates = list(state[6:9])
    quaternion = list(state[9:13])
    stages, speeds = _rotor_stages(params, state[13:], actions)
    wrench = [_mix(params, thrust) for thrust in stages]
    if push is not None:
        wrench = [[w[0], *(a + b for a, b in zip(w[1:], push, strict=True))] for w in wrench]
    gyroscopic = params.gyroscopic.unbind()
    spin = rates + quaternion
    points = [spin]
    slopes = []
    for stage, ahead in enumerate((0.5 * dt, 0.5 * dt, dt, 0.0)):
        slopes.append(_spin_rates(points[-1], wrench[stage][1:], gyroscopic))
        if stage < 3:
            points.append([s + ahead * k for s, k in zip(spin, slopes[-1], strict=True)])
    after = [s + (dt / 6) * (a + d + 2.0 * (b + c)) for s, a, b, c, d in zip(spin, *slopes, strict=True)]
    accelerations = [
        [entry * w[0] for entry in rotation_rows(point[3:], _BODY_Z)] for point, w in zip(points, wrench, strict=True)
    ]
    out = []
    for i, (a, b, c, _) in enumerate(zip(*accelerations, strict=True)):
        out.append((position[i] + drift[0][i] + (dt * dt / 6) * (a + b + c)) + dt * velocity[i])
    for i, (a, b, c, d) in enumerate(zip(*accelerations, strict=True)):
        out.append(velocity[i] + drift[1][i] + (dt / 6) * (a + 2.0 * (b + c) + d))
    w, x, y, z = after[3:]
    scale = (w * w + x * x + y * y + z * z).rsqrt()
    return [*out, *after[:3], *(q * scale for q in after[3:]), *(u.clamp(0.0, 1.0) for u in speeds)]


def _rotor_stages(
    params: RowParams, rotors: Rows, actions: Rows
) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Return the rotors' thrusts at the four stages of RK4, and their speeds at the end of the step."""
    stages: list[list[torch.Tensor]] = [[], [], [], []]
    ends = []
    for i, (speed, action) in enumerate(zip(rotors, actions, strict=True)):
        error = params.target[0, i] + params.target[1, i] * action - speed
        h = torch.where(error >= 0, params.lag[0, i], params.lag[1, i])
        h2 = h * h
        *shares, end = _lag_shares(h, h2 * h, h2 * h2)
        c0, c1, c2 = params.thrust[:, i].unbind()
        for stage, u in zip(stages, [speed, *(speed + share * error for share in shares)], strict=True):
            stage.append(c0 + u * (c1 + c2 * u))
        ends.append(speed + end * error)
    return stages, ends


def _mix(params: RowParams, thrust: Rows) -> list[torch.Tensor]:
    """Sum the rotors to the acceleration along z and the angular accelerations (4 rows)."""
    rows = []
    for row in range(4):
        total = params.mixing[0, row] * thrust[0]
        for i in range(1, len(thrust)):
            total = total + params.mixing[i, row] * thrust[i]
        rows.append(total)
    return rows


def _spin_rates(spin: Rows, angular: Rows, gyroscopic: Rows) -> list[torch.Tensor]:
    """Differentiate rates (3) and quaternion (4)."""
    rates = spin[:3]
    quaternion = spin[3:]
    turn = [rates[i] * rates[j] for i, j in _EULER_PRODUCTS]
    angular_rates = [a + g * t for a, g, t in zip(angular, gyroscopic, turn, strict=True)]
    return [*angular_rates, *(0.5 * bilinear(terms, quaternion, rates) for terms in _QUATERNION_RATE_TERMS)]
