"""The parameters of vehicles, as batched tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class VehicleParams:
    """Parameters of many vehicles, components first, vehicles last."""

    mass: torch.Tensor
    """[kg]. Shape: (num_vehicles,)."""
    inertia: torch.Tensor
    """Body frame [kg m^2]. Shape: (3, 3, num_vehicles)."""
    rotor_positions: torch.Tensor
    """Body frame [m]. Shape: (num_rotors, 3, num_vehicles)."""
    thrust_directions: torch.Tensor
    """Unit vectors, body frame. Shape: (num_rotors, 3, num_vehicles)."""
    torque_directions: torch.Tensor
    """Unit vectors, body frame. Shape: (num_rotors, 3, num_vehicles)."""
    thrust_coefficients: torch.Tensor
    """c0, c1, c2 of c0 + c1 u + c2 u^2 [N]. Shape: (3, num_rotors, num_vehicles)."""
    torque_constants: torch.Tensor
    """Reaction torque over thrust [m]. Shape: (num_rotors, num_vehicles)."""
    time_constant_rising: torch.Tensor
    """[s]. Shape: (num_rotors, num_vehicles)."""
    time_constant_falling: torch.Tensor
    """[s]. Shape: (num_rotors, num_vehicles)."""
    gravity: torch.Tensor
    """World frame [m/s^2]. Shape: (3, num_vehicles)."""
    action_min: torch.Tensor
    """Rotor speed at command -1. Shape: (num_vehicles,)."""
    action_max: torch.Tensor
    """Rotor speed at command 1. Shape: (num_vehicles,)."""
    force_mean: torch.Tensor
    """Mean of each component of a force that is drawn per episode, world frame [N]. Shape: (num_vehicles,)."""
    force_std: torch.Tensor
    """Its standard deviation [N]. Shape: (num_vehicles,)."""
    torque_mean: torch.Tensor
    """Mean of each component of a torque that is drawn per episode, body frame [N m]. Shape: (num_vehicles,)."""
    torque_std: torch.Tensor
    """Its standard deviation [N m]. Shape: (num_vehicles,)."""

    @property
    def num_vehicles(self) -> int:
        """Number of vehicles."""
        return self.mass.shape[-1]

    @property
    def num_rotors(self) -> int:
        """Rotors of each vehicle."""
        return self.torque_constants.shape[0]

    @property
    def arm_length(self) -> torch.Tensor:
        """Mean distance of the rotors from the centre of mass [m]. Shape: (num_vehicles,)."""
        return torch.linalg.vector_norm(self.rotor_positions, dim=1).mean(0)

    @property
    def max_thrust(self) -> torch.Tensor:
        """Thrust of all rotors at full speed [N]. Shape: (num_vehicles,)."""
        return self.thrust_coefficients.sum((0, 1))

    @property
    def hover_speed(self) -> torch.Tensor:
        """Rotor speed at which equal thrust of all rotors carries the weight. Shape: (num_vehicles,)."""
        c0, c1, c2 = self.thrust_coefficients.sum(1)
        weight = self.mass * torch.linalg.vector_norm(self.gravity, dim=0)
        root = (c1.square() + 4 * c2 * (weight - c0)).clamp(min=0).sqrt()
        return torch.where(c2 > 0, (root - c1) / (2 * c2.clamp(min=1e-12)), (weight - c0) / c1.clamp(min=1e-12))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VehicleParams:
        """Copy to a device and type."""
        return VehicleParams(**{f.name: getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(self)})

    def select(self, index: torch.Tensor) -> VehicleParams:
        """Take vehicles by number. Shape of ``index``: (num_selected,)."""
        return VehicleParams(**{f.name: getattr(self, f.name)[..., index].contiguous() for f in fields(self)})

    @staticmethod
    def stack(vehicles: list[VehicleParams]) -> VehicleParams:
        """Join vehicles with the same number of rotors."""
        return VehicleParams(
            **{f.name: torch.cat([getattr(v, f.name) for v in vehicles], -1) for f in fields(VehicleParams)}
        )
