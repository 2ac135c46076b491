"""Losses against closed forms, worked values and ``torch.distributions``."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from foundation.core.errors import UserError
from foundation.learning.losses import LOSSES, LossParams, loss_spec
from foundation.policies.output import PolicyOutput

DEFAULT = LossParams()


def outputs(*, steps: int = 0, std: bool = True, logits: bool = False, seed: int = 0) -> PolicyOutput:
    generator = torch.Generator().manual_seed(seed)
    lead = (steps, 5) if steps else (5,)

    def draw(size: int) -> torch.Tensor:
        return torch.randn(*lead, size, generator=generator, dtype=torch.float64)

    return PolicyOutput(draw(3), draw(3).exp() if std else None, draw(1), draw(6) * 2.0 if logits else None, draw(7))


def call(name: str, student: PolicyOutput, teacher: PolicyOutput, params: LossParams = DEFAULT) -> torch.Tensor:
    return loss_spec(name).function(student, teacher, params)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("steps", [0, 4])
def test_every_loss_gives_one_finite_value_per_sample(name, steps):
    """A loss keeps the leading shape, of rows or of sequences, and has a finite gradient."""
    student, teacher = outputs(steps=steps, logits=True, seed=1), outputs(steps=steps, logits=True, seed=2)
    student = PolicyOutput(*(field.requires_grad_() for field in student if field is not None))
    values = call(name, student, teacher)
    assert values.shape == teacher.mean.shape[:-1]
    values.sum().backward()
    gradients = [field.grad for field in student if field is not None and field.grad is not None]
    assert gradients and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.parametrize("name", ["mse", "huber", "kl", "q_mse", "value", "value_l1", "feature"])
@pytest.mark.parametrize("logits", [False, True])
def test_distances_are_zero_at_the_teacher_and_positive_elsewhere(name, logits):
    """What measures a distance vanishes where student and teacher agree."""
    if name == "q_mse" and not logits:
        logits = True
    teacher, student = outputs(logits=logits, seed=3), outputs(logits=logits, seed=4)
    assert torch.allclose(call(name, teacher, teacher), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert bool((call(name, student, teacher) > 0.0).all())


def test_mse_and_huber_by_hand():
    """Errors 0.5 and 3: mse (0.25 + 9) / 2; Huber (0.125 + 2.5) / 2 with delta 1, (0.125 + 4.5) / 2 with delta 4."""
    student, teacher = PolicyOutput(torch.tensor([[0.5, 3.0]])), PolicyOutput(torch.zeros(1, 2))
    assert call("mse", student, teacher).tolist() == [4.625]
    assert call("huber", student, teacher).tolist() == [1.3125]
    assert call("huber", student, teacher, LossParams(huber_delta=4.0)).tolist() == [2.3125]


def test_gaussian_kl_has_its_worked_value():
    """KL(N(0, 1) || N(1, 2)) = ln 2 + (1 + 1) / 8 - 1 / 2 = 0.4431472, from teacher to student."""
    teacher = PolicyOutput(torch.zeros(1, 1), torch.ones(1, 1))
    student = PolicyOutput(torch.ones(1, 1), torch.full((1, 1), 2.0))
    assert call("kl", student, teacher).item() == pytest.approx(0.4431472, abs=1e-6)
    assert call("kl", teacher, student).item() == pytest.approx(-math.log(2) + (4 + 1) / 2 - 0.5, abs=1e-6)


def test_gaussian_kl_and_nll_agree_with_torch_distributions():
    """Diagonal Gaussians: the sum over actions, with the teacher first."""
    student, teacher = outputs(seed=5), outputs(seed=6)
    assert student.std is not None and teacher.std is not None
    p = Independent(Normal(teacher.mean, teacher.std), 1)
    q = Independent(Normal(student.mean, student.std), 1)
    assert torch.allclose(call("kl", student, teacher), kl_divergence(p, q))
    assert torch.allclose(call("nll", student, teacher), -q.log_prob(teacher.mean))


@pytest.mark.parametrize(("temperature", "tempered"), [(1.0, 1.0), (0.5, 1.0), (2.0, 2.0)])
def test_discrete_kl_and_cross_entropy_agree_with_torch_distributions(temperature, tempered):
    """softmax(Q_T / tau) against the student's softmax; the two losses differ by the teacher's entropy."""
    student, teacher = outputs(logits=True, seed=7), outputs(logits=True, seed=8)
    assert student.logits is not None and teacher.logits is not None
    params = LossParams(temperature=temperature, student_temperature=tempered)
    p, q = Categorical(logits=teacher.logits / temperature), Categorical(logits=student.logits / tempered)
    expected = kl_divergence(p, q)
    assert torch.allclose(call("kl", student, teacher, params), expected)
    assert torch.allclose(call("soft_cross_entropy", student, teacher, params), expected + p.entropy())


def test_temperature_has_its_worked_value():
    """softmax([1, 0] / 0.5) = [0.8807971, 0.1192029]; against a uniform student the cross-entropy is ln 2."""
    teacher = PolicyOutput(torch.zeros(1, 1), logits=torch.tensor([[1.0, 0.0]]))
    student = PolicyOutput(torch.zeros(1, 1), logits=torch.tensor([[0.0, 0.0]]))
    params = LossParams(temperature=0.5)
    assert call("soft_cross_entropy", student, teacher, params).item() == pytest.approx(math.log(2.0))
    entropy = -(0.8807971 * math.log(0.8807971) + 0.1192029 * math.log(0.1192029))
    assert call("kl", student, teacher, params).item() == pytest.approx(math.log(2.0) - entropy, abs=1e-6)


def test_discrete_nll_is_the_cross_entropy_of_the_best_action():
    """Only the teacher's argmax counts (Rusu et al. 2015, eq. 1)."""
    teacher = PolicyOutput(torch.zeros(2, 1), logits=torch.tensor([[0.1, 3.0, -1.0], [2.0, 0.0, 1.9]]))
    student = PolicyOutput(torch.zeros(2, 1), logits=torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))
    expected = torch.nn.functional.cross_entropy(student.logits, torch.tensor([1, 0]), reduction="none")  # type: ignore
    assert torch.allclose(call("nll", student, teacher), expected)


def test_q_mse_value_and_feature_by_hand():
    """Squared and absolute errors, averaged over their own columns."""
    student = PolicyOutput(
        torch.zeros(1, 1), value=torch.tensor([[2.0]]), logits=torch.tensor([[1.0, 4.0]]), features=torch.ones(1, 2)
    )
    teacher = PolicyOutput(
        torch.zeros(1, 1), value=torch.tensor([[5.0]]), logits=torch.tensor([[1.0, 2.0]]), features=torch.zeros(1, 2)
    )
    found = {name: call(name, student, teacher).item() for name in ("q_mse", "value", "value_l1", "feature")}
    assert found == {"q_mse": 2.0, "value": 9.0, "value_l1": 3.0, "feature": 1.0}


def test_the_std_is_floored_in_nll_and_kl():
    """A learned std that goes to zero costs no more than its floor, and never gives infinity."""
    teacher = PolicyOutput(torch.tensor([[0.1]]), torch.tensor([[0.0]]))
    student = PolicyOutput(torch.tensor([[0.0]]), torch.tensor([[1e-30]]))
    floored = PolicyOutput(torch.tensor([[0.0]]), torch.tensor([[0.05]]))
    params = LossParams(min_std=0.05)
    for name in ("nll", "kl"):
        assert call(name, student, teacher, params).item() == call(name, floored, teacher, params).item()
    assert call("kl", student, teacher, params).item() == pytest.approx(0.5 * (0.1 / 0.05) ** 2)


def test_an_unknown_loss_names_the_nearest(typed):
    """A misspelt loss is answered with the valid names; a module that is not there with the reason."""
    with pytest.raises(UserError, match=r"Unknown loss 'hubber'\. Did you mean 'huber'\?"):
        loss_spec("hubber")
    typed("loss=no_such_package:loss")
    with pytest.raises(UserError, match="cannot be imported"):
        loss_spec("no_such_package:loss")


def test_a_loss_of_another_package_is_found_by_its_address():
    """``pkg.module:function`` is accepted; ours by its address is ours."""
    assert loss_spec("torch.nn.functional:l1_loss").function is torch.nn.functional.l1_loss
    assert loss_spec("foundation.learning.losses:kl") is LOSSES["kl"]
