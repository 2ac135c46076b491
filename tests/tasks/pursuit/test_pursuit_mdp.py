"""The formulas of chasing and evading, by hand, in closed form and by other means."""

from __future__ import annotations

import math

import pytest
import torch

from foundation.tasks.pursuit import mdp
from foundation.tasks.pursuit.layout import make_layout
from foundation.tasks.quadrotor import mdp as vehicle_mdp


def _column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_reward_by_hand():
    """0.5 m apart, yawed 60 degrees, one motor changed by 0.2, ended: each term is its weight times its quantity."""
    half = math.radians(30)
    terms = vehicle_mdp.reward_terms(
        torch.tensor([0.5], dtype=torch.float64),
        _column(math.cos(half), 0, 0, math.sin(half)),
        _column(0.6, 0.6, 0.6, 0.8),
        _column(0.6, 0.6, 0.6, 0.6),
        torch.tensor([True]),
        _column(1.5, -1.0, -0.1, -1.0, -100.0),
    )
    assert terms[:, 0].tolist() == pytest.approx([1.5, -0.5, -0.1 * 2 * math.pi / 3, -0.2, -100.0], rel=1e-12)


def test_observations_by_hand():
    """Turned by 90 degrees about z, the body's x is the world's y: every column, by different numbers."""
    s = math.sqrt(0.5)
    groups = mdp.observations(
        _column(1.0, 2.0, 3.0),
        _column(4.0, 5.0, 6.0),
        _column(7.0, 8.0, 9.0),
        _column(s, 0.0, 0.0, s),
        _column(0.1, 0.2, 0.3, 0.4),
        _column(0.5, 0.6, 0.7, 0.8),
        _column(1.5, 1.0, 2.75),
        _column(4.5, 4.0, 7.0),
        mdp.task_columns("evade", 1, "cpu").double(),
    )
    turn = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    own = [2.0, -1.0, 3.0, *turn, 5.0, -4.0, 6.0, 7.0, 8.0, 9.0, 0.1, 0.2, 0.3, 0.4]
    expected = [*own, 1.0, 0.5, 0.25, 1.0, 0.5, -1.0, 0.0, 1.0]
    assert groups["deployable"][0].tolist() == pytest.approx(expected, abs=1e-12)
    assert groups["policy"][0].tolist() == pytest.approx([*expected, 0.0, 0.2, 0.4, 0.6], abs=1e-12)


def test_the_layout_describes_the_columns():
    """The fields of each group have its size, and the relative position begins where it is declared."""
    layout = make_layout()
    assert sum(field.size for field in layout["deployable"]) == mdp.DEPLOYABLE_SIZE
    assert sum(field.size for field in layout["policy"]) == mdp.POLICY_SIZE
    names = [field.name for field in layout["policy"] for _ in range(field.size)]
    assert names.index("relative_position") == mdp.RELATIVE_POSITION
    assert names.index("orientation") == mdp.ROTATION_FIELDS["policy"]


def test_a_lissajous_curve_moves_at_its_velocity():
    """The velocity is the derivative of the position (autograd), which stays within the amplitude."""
    generator = torch.Generator().manual_seed(0)
    amplitude, pulse, offset = torch.rand(3, 3, 200, generator=generator, dtype=torch.float64)
    time = torch.rand(200, generator=generator, dtype=torch.float64).requires_grad_()
    body = mdp.lissajous(pulse * time + offset, amplitude, pulse)
    for axis in range(3):
        (slope,) = torch.autograd.grad(body[axis].sum(), time, retain_graph=True)
        torch.testing.assert_close(slope, body[3 + axis].detach())
    assert (body[:3].abs() <= amplitude).all()


def test_langevin_stays_in_its_stationary_distribution():
    """After 3 s from the stationary start, position and velocity have its deviations, and they are uncorrelated."""
    generator = torch.Generator().manual_seed(1)
    speed, pulse, damping = 0.4, 1.3, 0.8
    count = 40_000
    body = mdp.langevin_start(torch.randn(6, count, generator=generator), speed, pulse)
    for _ in range(300):
        body = mdp.langevin(body, torch.randn(3, count, generator=generator), speed, pulse, damping, 0.01)
    assert body[:3].std(1).tolist() == pytest.approx([speed / pulse] * 3, rel=0.015)
    assert body[3:].std(1).tolist() == pytest.approx([speed] * 3, rel=0.015)
    assert torch.corrcoef(body)[:3, 3:].abs().max() < 0.02
    assert body.mean(1).abs().max() < 0.01


def test_langevin_without_noise_is_a_damped_oscillator():
    """With s = 0 it follows x0 e^(-g t / 2) (cos + ...) to the step's error."""
    pulse, damping, dt = 2.0, 0.5, 1e-4
    body = torch.zeros(6, 1, dtype=torch.float64)
    body[0] = 1.0
    for _ in range(10_000):
        body = mdp.langevin(body, torch.zeros(3, 1, dtype=torch.float64), 0.0, pulse, damping, dt)
    rate = math.sqrt(pulse**2 - damping**2 / 4)
    expected = math.exp(-damping / 2) * (math.cos(rate) + damping / (2 * rate) * math.sin(rate))
    assert body[0].item() == pytest.approx(expected, abs=2e-4)
    assert body[1:3].abs().max() == 0.0


def test_a_pursuer_respects_its_bounds_and_arrives():
    """Neither speed nor acceleration is above the bound, and a vehicle at rest is reached; nothing is NaN at it."""
    generator = torch.Generator().manual_seed(2)
    vehicle = torch.randn(3, 50, generator=generator)
    still = torch.zeros(3, 50)
    body = torch.zeros(6, 50)
    speed = torch.rand(50, generator=generator) + 0.5
    closest = torch.full((50,), math.inf)
    for _ in range(800):
        after = mdp.pursue(body, vehicle, still, speed, 3.0, 0.1, 0.2, 0.01)
        assert ((after[3:] - body[3:]).norm(dim=0) <= 3.0 * 0.01 + 1e-6).all()
        assert (after[3:].norm(dim=0) <= speed + 1e-5).all()
        torch.testing.assert_close(after[:3], body[:3] + 0.01 * after[3:])
        body = after
        closest = torch.minimum(closest, (body[:3] - vehicle).norm(dim=0))
    assert closest.max() < 0.05
    at_target = mdp.pursue(torch.zeros(6, 1), torch.zeros(3, 1), torch.zeros(3, 1), speed[:1], 3.0, 0.1, 0.2, 0.01)
    assert at_target.isfinite().all()


def test_directions_are_uniform_on_the_sphere():
    """Unit length; each component has mean 0 and variance 1/3."""
    uniform = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(3))
    drawn = vehicle_mdp.direction(uniform)
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(100_000))
    assert drawn.mean(1).abs().max() < 0.01
    assert drawn.var(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.005)
