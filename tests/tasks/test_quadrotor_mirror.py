"""The quadrotor's mirror symmetry against the simulator, which knows nothing of it."""

from __future__ import annotations

import pytest
import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.mdp import observations
from foundation.tasks.quadrotor.mirror import left_right
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics, QuadrotorState, pack, unpack
from foundation.tasks.quadrotor.sim.vehicles import crazyflie

ACROSS = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).unsqueeze(1)
MOTORS = [3, 2, 1, 0]


def random_flight(num: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Random states and actions in float64. Shapes: (17, num) and (4, num)."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> torch.Tensor:
        return torch.randn(size, num, generator=generator, dtype=torch.float64)

    quaternion = draw(4)
    state = QuadrotorState(
        draw(3), draw(3), 5.0 * draw(3), quaternion / quaternion.norm(dim=0), torch.rand(4, num, generator=generator)
    )
    return pack(QuadrotorState(*(part.double() for part in state))), draw(4).clamp(-1.0, 1.0)


def reflected(state: torch.Tensor) -> torch.Tensor:
    """Reflect a world at its plane of x and z: vectors at y, axial ones at x and z; a rotation keeps w and y."""
    parts = unpack(state)
    turn = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).unsqueeze(1)
    return pack(
        QuadrotorState(
            parts.position * ACROSS,
            parts.velocity * ACROSS,
            parts.body_rates * -ACROSS,
            parts.quaternion * turn,
            parts.rotor_speeds[MOTORS],
        )
    )


def seen(state: torch.Tensor, action: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = unpack(state)
    return observations(parts.position, parts.velocity, parts.body_rates, parts.quaternion, action, parts.rotor_speeds)


def test_the_mirrored_state_and_action_step_to_the_mirrored_next_state():
    """50 random steps of the simulator in float64, for 64 vehicles: both worlds stay mirror images to 1e-9."""
    dynamics = QuadrotorDynamics(crazyflie(), 0.01)
    state, action = random_flight()
    other = reflected(state)
    for _ in range(50):
        obs, image = seen(state, action), seen(other, action[MOTORS])
        mirrored, command = left_right(obs, action.T)
        assert torch.equal(command, action[MOTORS].T)
        for name in ("policy", "deployable", "l2f"):
            torch.testing.assert_close(mirrored[name], image[name], atol=1e-9, rtol=1e-9)
        state, other = dynamics.step(state, action), dynamics.step(other, action[MOTORS])
        torch.testing.assert_close(reflected(state), other, atol=1e-9, rtol=1e-9)
        action = action.roll(1, dims=1)


def test_another_mirror_would_be_found_out():
    """With two motors exchanged wrongly the worlds part: the test can fail."""
    dynamics = QuadrotorDynamics(crazyflie(), 0.01)
    state, action = random_flight()
    after = dynamics.step(reflected(state), action[[2, 3, 0, 1]])
    assert (after - reflected(dynamics.step(state, action))).abs().max() > 1e-3


def test_twice_is_nothing_and_other_groups_are_refused():
    """Each group comes back to the bit; a group of another task is named with the ones that there are."""
    state, action = random_flight()
    obs = seen(state, action)
    again, back = left_right(*left_right(obs, action.T))
    assert torch.equal(back, action.T) and all(torch.equal(again[name], obs[name]) for name in obs)
    with pytest.raises(UserError, match=r"no observation group 'polcy'. Did you mean 'policy'"):
        left_right({"polcy": obs["policy"]}, action.T)
