"""Closed forms, symmetries and gradients of the dynamics."""

from __future__ import annotations

import math

import pytest
import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics, clamp_straight_through, unpack
from foundation.tasks.quadrotor.sim.vehicles import crazyflie, sample_vehicles

DT = 0.01


def _rest(num: int, speed: float = 0.0) -> torch.Tensor:
    """Level and at rest, in float64. Shape: (17, num)."""
    state = torch.zeros(17, num, dtype=torch.float64)
    state[9] = 1.0
    state[13:] = speed
    return state


def test_hover_thrust_balances_the_weight():
    """At the rotor speed that solves 4 (c0 + c1 u + c2 u^2) = m g nothing moves; it is u = 0.806."""
    vehicle = crazyflie()
    a, b, c = 0.09223048, 0.01437313, 0.00352526 - 0.0306 * 9.81 / 4
    hover = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert vehicle.hover_speed.item() == pytest.approx(hover, abs=1e-12)
    assert hover == pytest.approx(0.806, abs=1e-3)
    state = _rest(1, hover)
    after = state
    for _ in range(100):
        after = QuadrotorDynamics(vehicle, DT).step(after, torch.full((4, 1), 2 * hover - 1, dtype=torch.float64))
    torch.testing.assert_close(after, state, atol=1e-10, rtol=0)


def test_free_fall_is_a_parabola():
    """Without thrust (c = 0) a vehicle falls by g t^2 / 2 and keeps its rates about a principal axis."""
    vehicle = crazyflie()
    vehicle.thrust_coefficients.zero_()
    dynamics = QuadrotorDynamics(vehicle, DT)
    state = _rest(1)
    state[3:6, 0] = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    state[8] = 5.0
    for _ in range(50):
        state = dynamics.step(state, torch.zeros(4, 1, dtype=torch.float64))
    s = unpack(state)
    t = 0.5
    expected = torch.tensor([0.3 * t, -0.2 * t, t - 9.81 * t * t / 2], dtype=torch.float64)
    torch.testing.assert_close(s.position[:, 0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(s.body_rates[:, 0], torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64))
    # A turn by 5 rad/s * 0.5 s about z.
    yaw = torch.tensor([math.cos(1.25), 0, 0, math.sin(1.25)], dtype=torch.float64)
    torch.testing.assert_close(s.quaternion[:, 0], yaw, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("start", "target", "tau"), [(0.1, 0.9, 0.0554545), (0.9, 0.1, 0.2493939)])
def test_rotors_follow_an_exponential(start, target, tau):
    """A rotor's error decays as exp(-t / tau), with the time constant of the direction."""
    dynamics = QuadrotorDynamics(crazyflie(), DT)
    state = _rest(1, start)
    command = torch.full((4, 1), 2 * target - 1, dtype=torch.float64)
    for _ in range(20):
        state = dynamics.step(state, command)
    expected = target + (start - target) * math.exp(-0.2 / tau)
    torch.testing.assert_close(state[13:, 0], torch.full((4,), expected, dtype=torch.float64), atol=5e-6, rtol=0)


def test_a_torque_free_body_keeps_energy_and_momentum():
    """Tumbling freely, kinetic energy and world-frame angular momentum stay, also with products of inertia."""
    vehicle = crazyflie()
    vehicle.thrust_coefficients.zero_()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    vehicle.inertia = (turn @ vehicle.inertia[..., 0] @ turn.T).unsqueeze(-1)
    dynamics = QuadrotorDynamics(vehicle, DT)
    assert not dynamics.diagonal
    state = _rest(1)
    state[6:9, 0] = torch.tensor([1.0, 2.0, -1.5])

    def invariants(x):
        s, inertia = unpack(x), vehicle.inertia[..., 0]
        momentum = inertia @ s.body_rates[:, 0]
        w, v = s.quaternion[0, 0], s.quaternion[1:, 0]
        turned = momentum + 2 * torch.linalg.cross(v, torch.linalg.cross(v, momentum) + w * momentum)
        return torch.cat([turned, (s.body_rates[:, 0] @ momentum).unsqueeze(0)])

    before = invariants(state)
    for _ in range(100):
        state = dynamics.step(state, torch.zeros(4, 1, dtype=torch.float64))
    torch.testing.assert_close(invariants(state), before, atol=0, rtol=2e-5)


def test_tilted_rotors_take_the_general_path_and_agree_with_the_axial_one():
    """Turning the whole vehicle in its body frame changes nothing seen from the world."""
    straight, turned = crazyflie(), crazyflie()
    angle = 0.7
    turn = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    for name in ("rotor_positions", "thrust_directions", "torque_directions"):
        setattr(turned, name, (getattr(turned, name)[..., 0] @ turn.T).unsqueeze(-1))
    turned.inertia = (turn @ turned.inertia[..., 0] @ turn.T).unsqueeze(-1)
    plain, general = QuadrotorDynamics(straight, DT), QuadrotorDynamics(turned, DT)
    assert plain.axial
    assert not general.axial
    a = b = _rest(1, 0.5)
    # The turned body's frame is the plain one's by R_y(-angle): q_b = q * conj(turn).
    b = b.clone()
    b[9, 0], b[11, 0] = math.cos(angle / 2), -math.sin(angle / 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        action = torch.rand(4, 1, generator=generator, dtype=torch.float64) * 2 - 1
        a, b = plain.step(a, action), general.step(b, action)
    torch.testing.assert_close(a[:6], b[:6], atol=1e-6, rtol=0)
    torch.testing.assert_close(turn @ a[6:9], b[6:9], atol=1e-6, rtol=0)


def test_yaw_follows_the_reaction_torque():
    """Rotors 1 and 3 (torque direction -z) faster than 2 and 4 turn the body about -z by their torque over Jzz."""
    dynamics = QuadrotorDynamics(crazyflie(), DT)
    state = _rest(1)
    state[13:, 0] = torch.tensor([0.8, 0.6, 0.8, 0.6], dtype=torch.float64)
    command = (2 * state[13:] - 1).clone()
    after = dynamics.step(state, command)
    thrust = [0.00352526 + 0.01437313 * u + 0.09223048 * u * u for u in (0.8, 0.6)]
    expected = -4.665e-3 * 2 * (thrust[0] - thrust[1]) / 1.745951732253285e-05 * DT
    assert after[8, 0].item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(after[6:8, 0], torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_constant_force_and_torque_act_as_newton_says():
    """A disturbance accelerates by F/m in the world frame and by torque/J in the body frame."""
    vehicle = crazyflie()
    vehicle.thrust_coefficients.zero_()
    dynamics = QuadrotorDynamics(vehicle, DT)
    force = torch.tensor([[0.01], [0.0], [0.02]], dtype=torch.float64)
    torque = torch.tensor([[0.0], [0.0], [1e-6]], dtype=torch.float64)
    disturbance = dynamics.disturb(force, torque)
    state = _rest(1)
    for _ in range(10):
        state = dynamics.step(state, torch.zeros(4, 1, dtype=torch.float64), disturbance)
    assert state[3, 0].item() == pytest.approx(0.1 * 0.01 / 0.0306, rel=1e-9)
    assert state[2, 0].item() == pytest.approx(0.5 * 0.01 * (0.02 / 0.0306 - 9.81), rel=1e-9)
    assert state[8, 0].item() == pytest.approx(0.1 * 1e-6 / 1.745951732253285e-05, rel=1e-9)


@pytest.mark.parametrize("kind", ["crazyflie", "sampled"])
def test_gradients_equal_finite_differences(kind):
    """In float64 the step's derivatives by state and action equal finite differences."""
    vehicles = crazyflie(3) if kind == "crazyflie" else sample_vehicles(3, seed=5)
    dynamics = QuadrotorDynamics(vehicles, DT)
    generator = torch.Generator().manual_seed(2)
    state = torch.randn(17, 3, generator=generator, dtype=torch.float64)
    state[9:13] /= torch.linalg.vector_norm(state[9:13], dim=0)
    state[13:] = 0.3 + 0.4 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
    action = torch.rand(4, 3, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    state.requires_grad_()
    action.requires_grad_()
    assert torch.autograd.gradcheck(dynamics.step, (state, action), eps=1e-6, atol=1e-5, rtol=1e-5)


def test_the_cuda_form_of_the_quadrature_is_the_same():
    """The elementwise sum over RK4 stages that CUDA takes equals the matrix product of the CPU."""

    class Pretend(torch.Tensor):
        @property
        def is_cuda(self):
            return True

    dynamics = QuadrotorDynamics(crazyflie(5), DT)
    acceleration = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = dynamics._weigh_stages(acceleration.as_subclass(Pretend))
    torch.testing.assert_close(torch.Tensor.double(other), dynamics._weigh_stages(acceleration))
    first, second = 1e-4 / 6, 1e-2 / 6
    expected = torch.stack([first * acceleration[:, :3].sum(1), second * (acceleration[:, [0, 1, 1, 2, 2, 3]]).sum(1)])
    torch.testing.assert_close(dynamics._weigh_stages(acceleration), expected)


def test_vehicles_do_not_mix():
    """A step of many vehicles equals the steps of each alone."""
    vehicles = sample_vehicles(5, seed=1)
    together = QuadrotorDynamics(vehicles, DT)
    generator = torch.Generator().manual_seed(3)
    state = _rest(5, 0.4) + 0.01 * torch.randn(17, 5, generator=generator, dtype=torch.float64)
    action = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    out = together.step(state, action)
    for i in range(5):
        alone = QuadrotorDynamics(vehicles.select(torch.tensor([i])), DT)
        torch.testing.assert_close(alone.step(state[:, i : i + 1], action[:, i : i + 1])[:, 0], out[:, i])


def test_straight_through_clamp():
    """Values are clamped, gradients are not."""
    x = torch.tensor([-3.0, 0.2, 2.0], requires_grad=True)
    y = clamp_straight_through(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx([-1.0, 0.2, 1.0])
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_time_step_longer_than_the_rotors_is_refused():
    """With dt beyond a rotor's time constant the stages would overshoot; the message says what to lower."""
    with pytest.raises(UserError, match=r"sim\.dt"):
        QuadrotorDynamics(crazyflie(), 0.06)
