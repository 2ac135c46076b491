"""The mean wrench of first-order rotors, against fine numerical integration."""

from __future__ import annotations

import torch

from foundation.tasks.quadrotor.rotor_wrench import RotorWrench
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles


def test_the_mean_wrench_is_the_integral_of_the_rotors_answer():
    """Force, torque and final speed agree with 2000 midpoint steps of u' = (target - u) / tau over the step."""
    params, dt, fine = sample_vehicles(5, seed=2), 0.01, 2000
    generator = torch.Generator().manual_seed(0)
    speeds = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    actions = torch.rand(4, 5, generator=generator, dtype=torch.float64) * 2 - 1
    end, wrench = RotorWrench(params, dt).step(speeds, actions)

    target = params.action_min + (params.action_max - params.action_min) * (actions + 1) / 2
    tau = torch.where(target >= speeds, params.time_constant_rising, params.time_constant_falling)
    u, force, torque = speeds.clone(), torch.zeros(3, 5).double(), torch.zeros(3, 5).double()
    c0, c1, c2 = params.thrust_coefficients
    for _ in range(fine):
        middle = u + 0.5 * dt / fine * (target - u) / tau
        thrust = c0 + c1 * middle + c2 * middle**2
        for i in range(4):
            pull = thrust[i] * params.thrust_directions[i]
            force += pull / fine
            reaction = params.torque_constants[i] * thrust[i] * params.torque_directions[i]
            torque += (torch.linalg.cross(params.rotor_positions[i], pull, dim=0) + reaction) / fine
        u = u + dt / fine * (target - middle) / tau
    torch.testing.assert_close(end, u, atol=1e-7, rtol=0)
    torch.testing.assert_close(wrench.force, force, atol=0, rtol=1e-6)
    torch.testing.assert_close(wrench.torque, torque, atol=1e-9, rtol=1e-5)


def test_speeds_stay_within_bounds_and_hold_at_their_target():
    """A rotor at its commanded speed stays there, and its wrench is the thrust polynomial's."""
    params = sample_vehicles(3, seed=1)
    speeds = torch.full((4, 3), 0.5, dtype=torch.float64)
    end, wrench = RotorWrench(params, 0.002).step(speeds, torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(end, speeds)
    c0, c1, c2 = params.thrust_coefficients
    torch.testing.assert_close(wrench.force[2], (c0 + 0.5 * c1 + 0.25 * c2).sum(0))
