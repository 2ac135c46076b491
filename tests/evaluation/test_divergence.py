"""The Jensen-Shannon divergence against numerical integration, and the probe by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Normal
from toy_env import ConstantStudent, LinearTeacher

from foundation.evaluation.divergence import DivergenceProbe, js_divergence
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput


def integrated(p: Normal, q: Normal) -> float:
    """Integrate 0.5 p log(p/m) + 0.5 q log(q/m) on a fine grid."""
    x = torch.linspace(-60.0, 60.0, 1_200_001, dtype=torch.float64)
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    integrand = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))
    return float(torch.trapezoid(integrand, x))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 1.0), (0.0, 3.0), (2.0, 0.5), (30.0, 1.0)])
def test_it_agrees_with_numerical_integration_in_one_dimension(mean, std):
    """Against N(0, 1), with 40 000 samples: within 1 % of ln 2."""
    p = PolicyOutput(torch.zeros(1, 1), torch.ones(1, 1))
    q = PolicyOutput(torch.full((1, 1), mean), torch.full((1, 1), std))
    exact = integrated(Normal(0.0, 1.0), Normal(mean, std))
    assert float(js_divergence(p, q, 40_000)) == pytest.approx(exact, abs=0.01 * math.log(2.0))


def test_it_is_symmetric_bounded_and_leaves_the_global_generator_alone():
    """Between 0, for equal distributions, and ln 2."""
    generator = torch.Generator().manual_seed(0)
    p = PolicyOutput(torch.randn(50, 4, generator=generator), torch.rand(50, 4, generator=generator) + 0.1)
    q = PolicyOutput(torch.randn(50, 4, generator=generator), torch.rand(50, 4, generator=generator) + 0.1)
    before = torch.get_rng_state()
    values = js_divergence(p, q, 200)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(values, js_divergence(q, p, 200), atol=1e-6)
    assert float(values.min()) >= 0.0 and float(values.max()) <= math.log(2.0) + 1e-6
    assert float(js_divergence(p, p).abs().max()) < 1e-6


class Stochastic(ConstantStudent):
    def step(self, obs, state=None):
        output = super().step(obs)[0]
        return output._replace(std=torch.ones_like(output.mean)), None


def probe(student: ConstantStudent, std: float | None, bound: float | None, interval: int = 2) -> dict[str, float]:
    teacher = LinearTeacher(torch.zeros(3, 2), 2.0, std)
    selector = ObsSelector(["policy"])
    measured = DivergenceProbe(teacher, selector, student, selector, bound, interval)
    obs = TensorDict({"policy": torch.zeros(4, 3)}, batch_size=[4])
    for offset in (0.0, 100.0, 0.0):
        measured.before_step(obs, torch.full((4, 2), 0.5 + offset))
    return measured.summary()


def test_the_error_is_taken_on_every_interval_th_step_and_within_the_bound():
    """Teacher 2, student 0.5: rmse 1.5, and 0.5 where both are clipped to 1. The second step is not looked at."""
    student = ConstantStudent(3, [0.5, 0.5])
    assert probe(student, None, None) == pytest.approx({"action_rmse": 1.5})
    assert probe(student, None, 1.0) == pytest.approx({"action_rmse": 0.5})
    every = math.sqrt((2 * 1.5**2 + 98.5**2) / 3)
    assert probe(student, None, None, interval=1) == pytest.approx({"action_rmse": every})


def test_the_divergence_is_absent_without_two_distributions():
    """It takes a std on both sides; otherwise the entry is not there, rather than zero."""
    with torch.no_grad():
        assert "js_divergence" not in probe(ConstantStudent(3, [0.5, 0.5]), 1.0, None)
        assert "js_divergence" not in probe(Stochastic(3, [0.5, 0.5]), None, None)
        assert 0.0 < probe(Stochastic(3, [0.5, 0.5]), 1.0, None)["js_divergence"] < math.log(2.0)
