"""The task's configuration as tensors, the same for every engine: vehicles, limits, ranges, weights and noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams, crazyflie, load_vehicles

NUM_ROTORS = 4


def assign_vehicles(
    names: str | list[str] | None, num_envs: int, device: torch.device | str
) -> tuple[VehicleParams, torch.Tensor]:
    """Give every environment its vehicle: environment i flies vehicle ``i % number``.

    Args:
        names: ``env.vehicles``; None is the Crazyflie.
        num_envs: Number of environments.
        device: Where the parameters go.

    Returns:
        One vehicle per environment in float32, and which one it is, shape (num_envs,).
    """
    fleet = crazyflie() if names is None else load_vehicles(names)
    if fleet.num_rotors != NUM_ROTORS:
        raise UserError(f"env.vehicles: this task flies vehicles with {NUM_ROTORS} rotors, not {fleet.num_rotors}")
    index = torch.arange(num_envs) % fleet.num_vehicles
    return fleet.select(index).to(device, torch.float32), index.to(device)


class TaskTensors(NamedTuple):
    """What the functions of ``mdp`` take besides the state."""

    limits: torch.Tensor
    """Beyond which an episode ends: position, velocity, body rates. Shape: (9, num_envs)."""
    ranges: mdp.InitialRanges
    """Where episodes begin."""
    weights: torch.Tensor
    """Of the reward's terms. Shape: (5, 1)."""
    noise: dict[str, torch.Tensor]
    """Observation group -> standard deviation of its noise, (22,); groups without noise are absent."""


def task_tensors(cfg: Any, vehicles: VehicleParams) -> TaskTensors:
    """Lay out a configuration (of any engine's class) for the given vehicles, on their device."""
    mass = vehicles.mass
    limits = cfg.terminations
    init = cfg.init
    ones = torch.ones_like(mass)
    arms = vehicles.arm_length if cfg.vehicles is not None else None
    reach = ones * limits.position if arms is None else arms * limits.position_arms
    speed = limits.velocity if arms is None else limits.velocity_vehicles
    rows = [reach, ones * speed, ones * limits.body_rate]
    ranges = mdp.InitialRanges(
        position=ones * init.position if arms is None else arms * init.position_arms,
        max_angle=init.max_angle,
        max_velocity=init.max_velocity,
        max_body_rate=init.max_body_rate,
        rotor_speed=(float(init.rotor_speed[0]), float(init.rotor_speed[1])),
        at_target=init.at_target,
    )
    parts = {"deployable": cfg.observation_noise.deployable, "l2f": cfg.observation_noise.l2f}
    scales = {group: mdp.noise_scale(mdp.noise_columns(**vars(part)), mass.device) for group, part in parts.items()}
    return TaskTensors(
        torch.stack(rows).repeat_interleave(3, 0),
        ranges,
        mdp.reward_weights(**vars(cfg.rewards), dtype=mass.dtype, device=mass.device),
        {group: scale for group, scale in scales.items() if scale is not None},
    )


def is_disturbed(vehicles: VehicleParams) -> bool:
    """Return whether any vehicle is pushed by a force or torque that is drawn per episode."""
    v = vehicles
    return any(bool((x != 0).any()) for x in (v.force_mean, v.force_std, v.torque_mean, v.torque_std))
