"""The quadrotor's step on single rows, for a compiler: ``sim.quadrotor`` written out by components.

Every quantity is a tensor of one number per environment, so that ``torch.compile`` makes the whole step ONE loop over
the environments, without a matrix product or a buffer in between. Eagerly it would be slow. Vehicles whose rotors all
point along z and whose inertia is diagonal only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics

Rows = Sequence[torch.Tensor]


_CPU_OPTIONS = {
    "max_fusion_size": 10_000,
    "cpp.max_horizontal_fusion_size": 10_000,
    "cpp_wrapper": True,
    "size_asserts": False,
}
"""One loop instead of many, called from C++: with the compiler's defaults a step of few environments takes twice as
long."""


def compile_rows(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compile a function of rows for the sizes that it is called with.

    Raises:
        UserError: If that needs a C++ compiler and there is none.
    """
    options = None
    if device.type == "cpu":
        if not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name):
            raise UserError(
                "a compiled simulator (env.compile=true, --compile) needs a C++ compiler on the CPU: install g++, or "
                "leave it out"
            )
        options = _CPU_OPTIONS
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


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
    position, velocity, rates, quaternion = state[0:3], state[3:6], list(state[6:9]), list(state[9:13])
    stages, speeds = _rotor_stages(params, state[13:], actions)
    wrench = [_mix(params, thrust) for thrust in stages]
    if push is not None:
        wrench = [[w[0], *(a + b for a, b in zip(w[1:], push, strict=True))] for w in wrench]
    gyroscopic = params.gyroscopic.unbind()
    spin = rates + quaternion
    points, slopes = [spin], []
    for stage, ahead in enumerate((0.5 * dt, 0.5 * dt, dt, 0.0)):
        slopes.append(_spin_rates(points[-1], wrench[stage][1:], gyroscopic))
        if stage < 3:
            points.append([s + ahead * k for s, k in zip(spin, slopes[-1], strict=True)])
    after = [s + (dt / 6) * (a + d + 2.0 * (b + c)) for s, a, b, c, d in zip(spin, *slopes, strict=True)]
    accelerations = [_along_z(point[3:], w[0]) for point, w in zip(points, wrench, strict=True)]
    out = []
    for i, (a, b, c, _) in enumerate(zip(*accelerations, strict=True)):
        out.append((position[i] + drift[0][i] + (dt * dt / 6) * (a + b + c)) + dt * velocity[i])
    for i, (a, b, c, d) in enumerate(zip(*accelerations, strict=True)):
        out.append(velocity[i] + drift[1][i] + (dt / 6) * (a + 2.0 * (b + c) + d))
    w, x, y, z = after[3:]
    scale = (w * w + x * x + y * y + z * z).rsqrt()
    return [*out, *after[:3], *(q * scale for q in after[3:]), *(u.clamp(0.0, 1.0) for u in speeds)]


def _rotor_stages(params: RowParams, rotors: Rows, actions: Rows) -> tuple[list[list[torch.Tensor]], list]:
    """Return the rotors' thrusts at the four stages of RK4, and their speeds at the end of the step."""
    stages: list[list[torch.Tensor]] = [[], [], [], []]
    ends = []
    for i, (speed, action) in enumerate(zip(rotors, actions, strict=True)):
        error = params.target[0, i] + params.target[1, i] * action - speed
        h = torch.where(error >= 0, params.lag[0, i], params.lag[1, i])
        c0, c1, c2 = params.thrust[:, i].unbind()
        h2 = h * h
        h3 = h2 * h
        shares = (None, h / 2, h / 2 - h2 / 4, h - h2 / 2 + h3 / 4)
        for stage, share in zip(stages, shares, strict=True):
            u = speed if share is None else speed + share * error
            stage.append(c0 + u * (c1 + c2 * u))
        ends.append(speed + (h - h2 / 2 + h3 / 6 - h2 * h2 / 24) * error)
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
    p, q, r, w, x, y, z = spin
    turn = [q * r, r * p, p * q]
    return [
        *(a + g * t for a, g, t in zip(angular, gyroscopic, turn, strict=True)),
        0.5 * (-x * p - y * q - z * r),
        0.5 * (w * p + y * r - z * q),
        0.5 * (w * q + z * p - x * r),
        0.5 * (w * r + x * q - y * p),
    ]


def _along_z(quaternion: Rows, acceleration: torch.Tensor) -> list[torch.Tensor]:
    """Turn an acceleration along the body's z into the world (3 rows)."""
    w, x, y, z = quaternion
    return [
        2.0 * (x * z + w * y) * acceleration,
        2.0 * (y * z - w * x) * acceleration,
        (1.0 - 2.0 * (x * x + y * y)) * acceleration,
    ]


def rotation_by_rows(quaternion: Rows) -> list[torch.Tensor]:
    """Return the nine entries of R, body to world, row-major."""
    w, x, y, z = quaternion
    return [
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    ]  # fmt: skip
