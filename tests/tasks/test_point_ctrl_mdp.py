"""The task's formulas, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.sim.rows import norm

WEIGHTS = mdp.reward_weights(1.5, -1.0, -0.1, -1.0, -100.0, torch.float64, "cpu")


def _column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_reward_by_hand():
    """At (0.3, 0.4, 0) m, yawed 60 degrees, one motor changed by 0.2: 1.5 - 0.5 - 0.2 acos(0.5) - 0.2, and -100."""
    half = math.radians(30)
    terms = mdp.reward_terms(
        norm(_column(0.3, 0.4, 0.0)),
        _column(math.cos(half), 0, 0, math.sin(half)),
        _column(0.6, 0.6, 0.6, 0.8),
        _column(0.6, 0.6, 0.6, 0.6),
        torch.tensor([True]),
        WEIGHTS,
    )
    by_hand = [1.5, -0.5, -0.1 * 2 * math.pi / 3, -0.2, -100.0]
    assert terms[:, 0].tolist() == pytest.approx(by_hand, rel=1e-12)


def test_the_best_reward_is_the_alive_bonus():
    """Level, at the target, with a still command: exactly 1.5."""
    still = _column(0.6, 0.6, 0.6, 0.6)
    zero = torch.tensor([False])
    terms = mdp.reward_terms(norm(_column(0, 0, 0)), _column(1, 0, 0, 0), still, still, zero, WEIGHTS)
    assert terms.sum().item() == 1.5


def test_smooth_reward_stays_near_the_reward_and_has_gradients_at_the_target():
    """Within 0.25 of the exact one where that is smooth; finite gradients at the target, where that one has none."""
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(3, 100, generator=generator, dtype=torch.float64) - 0.5
    quaternion = torch.randn(4, 100, generator=generator, dtype=torch.float64)
    quaternion /= quaternion.norm(dim=0)
    action, before = torch.rand(2, 4, 100, generator=generator, dtype=torch.float64)
    alive = torch.zeros(100, dtype=torch.bool)
    exact = mdp.reward_terms(norm(position), quaternion, action, before, alive, WEIGHTS).sum(0)
    smooth = mdp.smooth_reward(position, quaternion, action, before, WEIGHTS)
    assert (exact - smooth).abs().max() < 0.25
    at_target = [
        _column(0, 0, 0).requires_grad_(),
        _column(1, 0, 0, 0).requires_grad_(),
        _column(0.6, 0.6, 0.6, 0.6).requires_grad_(),
    ]
    mdp.smooth_reward(*at_target, _column(0.6, 0.6, 0.6, 0.6), WEIGHTS).sum().backward()
    for tensor in at_target:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_smooth_reward_gradients_equal_finite_differences():
    """Away from the kinks, in float64."""
    arguments = [
        _column(0.3, -0.2, 0.1).requires_grad_(),
        _column(0.8, 0.3, -0.4, 0.3).requires_grad_(),
        _column(0.6, 0.1, 0.3, 0.2).requires_grad_(),
        _column(0.2, 0.1, 0.0, 0.4).requires_grad_(),
    ]
    assert torch.autograd.gradcheck(lambda *x: mdp.smooth_reward(*x, WEIGHTS), arguments)


def test_terminations_name_the_limit():
    """Any axis beyond a limit counts for that limit alone; on the limit is inside."""
    limits = _column(1, 1, 1, 2, 2, 2, 35, 35, 35)
    cases = {
        (0, 0, -1.01, 0, 0, 0, 0, 0, 0): [True, False, False],
        (1, 1, 1, 2, -2, 2, 35, -35, 35): [False, False, False],
        (0, 0, 0, 0, 2.1, 0, 0, 0, -36): [False, True, True],
    }
    for motion, expected in cases.items():
        assert mdp.terminations(_column(*motion), limits)[:, 0].tolist() == expected


def test_observation_layout():
    """A yaw of +90 degrees: the world's x is the body's -y; every field is where the documentation says."""
    half = math.pi / 4
    groups = mdp.observations(
        _column(1, 2, 3),
        _column(4, 5, 6),
        _column(7, 8, 9),
        _column(math.cos(half), 0, 0, math.sin(half)),
        _column(0.1, 0.2, 0.3, 0.4),
        _column(0.0, 0.25, 0.5, 1.0),
    )
    rotation = [0, -1, 0, 1, 0, 0, 0, 0, 1]
    tail = [7, 8, 9, 0.1, 0.2, 0.3, 0.4]
    policy = [2, -1, 3, *rotation, 5, -4, 6, *tail, -1, -0.5, 0, 1]
    assert groups["policy"][0].tolist() == pytest.approx(policy, abs=1e-12)
    assert groups["deployable"][0].tolist() == pytest.approx(policy[:22], abs=1e-12)
    assert groups["l2f"][0].tolist() == pytest.approx([1, 2, 3, *rotation, 4, 5, 6, *tail], abs=1e-12)
    for group, (start, frame) in mdp.POSITION_FIELDS.items():
        expected = [1, 2, 3] if frame == "world" else [2, -1, 3]
        assert groups[group][0, start : start + 3].tolist() == pytest.approx(expected, abs=1e-12)


def test_initial_states_fill_the_ranges():
    """Positions, tilts and rotor speeds spread over their ranges; a tenth start level at the target."""
    ranges = mdp.InitialRanges(torch.full((20000,), 0.5), math.pi / 2, 0.0, 0.0, (0.0, 0.5), 0.1)
    uniform = torch.rand(mdp.num_uniform(ranges), 20000, generator=torch.Generator().manual_seed(0))
    states = mdp.initial_states(uniform, ranges)
    at_target = (states[:3] == 0).all(0)
    assert at_target.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (states[9, at_target] == 1).all()
    away = states[:, ~at_target]
    assert away[:3].abs().max() <= 0.5
    assert away[:3].std(1).tolist() == pytest.approx([1 / math.sqrt(12)] * 3, abs=0.01)
    angle = 2 * away[9].clamp(max=1).acos()
    assert angle.max() <= math.pi / 2 + 1e-3
    assert angle.mean().item() == pytest.approx(math.pi / 4, abs=0.02)
    assert away[10:13].mean(1).abs().max() < 0.02
    assert (states[3:9] == 0).all()
    assert states[13:].min() >= 0
    assert states[13:].max() <= 0.5
    torch.testing.assert_close(states[9:13].norm(dim=0), torch.ones(20000))


def test_initial_velocities_are_drawn_when_asked_for():
    """With a bound each component is uniform within it, and zero at the target."""
    ranges = mdp.InitialRanges(torch.full((5000,), 0.5), 0.0, 1.0, 2.0, (0.0, 0.5), 0.2)
    uniform = torch.rand(mdp.num_uniform(ranges), 5000, generator=torch.Generator().manual_seed(1))
    states = mdp.initial_states(uniform, ranges)
    still = (states[:3] == 0).all(0)
    assert (states[3:9, still] == 0).all()
    assert 0.95 < states[3:6].abs().max() <= 1
    assert 1.9 < states[6:9].abs().max() <= 2
