"""Losses against closed forms, worked values and ``torch.distributions``."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import (
    Beta,
    Categorical,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from foundation.core.errors import UserError
from foundation.learning.losses import LOSSES, LossParams, loss_spec
from foundation.policies.output import PolicyOutput

DEFAULT = LossParams()


def outputs(*, steps: int = 0, std: bool = True, logits: bool = False, seed: int = 0) -> PolicyOutput:
    generator = torch.Generator().manual_seed(seed)
    lead = (steps, 5) if steps else (5,)

    def draw(size: int) -> torch.Tensor:
        return torch.randn(*lead, size, generator=generator, dtype=torch.float64)

    output = PolicyOutput(draw(3), draw(3).exp() if std else None, draw(1), draw(6) * 2.0 if logits else None, draw(7))
    return output._replace(saliency=draw(5).abs(), estimate=draw(3))


def squashed(seed: int) -> tuple[PolicyOutput, TransformedDistribution]:
    """A Gaussian before tanh, as a policy gives it and as torch.distributions has it."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_std = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64).unbind()
    before = Normal(mean, (0.5 * log_std).exp())
    output = PolicyOutput(mean.tanh(), before.scale, pre_tanh=torch.cat([mean, before.scale], dim=-1))
    return output, TransformedDistribution(before, TanhTransform())


def beta(seed: int) -> tuple[PolicyOutput, Beta]:
    """A Beta distribution on [-1, 1], as a policy gives it; that of torch.distributions is on [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    alpha, other = (1.0 + 4.0 * torch.rand(2, 5, 3, generator=generator, dtype=torch.float64)).unbind()
    distribution = Beta(alpha, other)
    mean, std = 2.0 * distribution.mean - 1.0, 2.0 * distribution.stddev
    return PolicyOutput(mean, std, concentration=torch.cat([alpha, other], dim=-1)), distribution


def call(name: str, student: PolicyOutput, teacher: PolicyOutput, params: LossParams = DEFAULT) -> torch.Tensor:
    return loss_spec(name).function(student, teacher, params)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("steps", [0, 4])
def test_every_loss_gives_one_finite_value_per_sample(name, steps):
    """A loss keeps the leading shape, of rows or of sequences, and has a finite gradient."""
    student, teacher = outputs(steps=steps, logits=True, seed=1), outputs(steps=steps, logits=True, seed=2)
    student = PolicyOutput(*(None if field is None else field.requires_grad_() for field in student))
    values = call(name, student, teacher)
    assert values.shape == teacher.mean.shape[:-1]
    values.sum().backward()
    gradients = [field.grad for field in student if field is not None and field.grad is not None]
    assert gradients and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def normal(output: PolicyOutput) -> Independent:
    """The distribution of a Gaussian policy's actions."""
    assert output.std is not None
    return Independent(Normal(output.mean, output.std), 1)


def mean_of(power: int, field: str) -> Callable[[PolicyOutput, PolicyOutput], torch.Tensor]:
    """The mean over a field's columns of the absolute error to a power."""
    return lambda s, t: (getattr(s, field) - getattr(t, field)).abs().pow(power).mean(-1)


def huber_by_cases(student: PolicyOutput, teacher: PolicyOutput) -> torch.Tensor:
    """Half the square up to an error of 1, and from there on a line of slope 1."""
    error = (student.mean - teacher.mean).abs()
    return torch.where(error < 1.0, 0.5 * error**2, error - 0.5).mean(-1)


def centred_q(output: PolicyOutput) -> torch.Tensor:
    """Q-values less their mean over the choices."""
    assert output.logits is not None
    return output.logits - output.logits.sum(-1, keepdim=True) / output.logits.shape[-1]


ORACLES: dict[str, Callable[[PolicyOutput, PolicyOutput], torch.Tensor]] = {
    "mse": mean_of(2, "mean"),
    "huber": huber_by_cases,
    "kl": lambda s, t: kl_divergence(normal(t), normal(s)),
    "nll": lambda s, t: -normal(s).log_prob(t.mean),
    "soft_cross_entropy": lambda s, t: torch.nn.functional.cross_entropy(
        s.logits, t.logits.softmax(-1), reduction="none"
    ),
    "q_mse": mean_of(2, "logits"),
    "advantage_mse": lambda s, t: (centred_q(s) - centred_q(t)).square().mean(-1),
    "value": mean_of(2, "value"),
    "value_l1": mean_of(1, "value"),
    "feature": mean_of(2, "features"),
    "attention": lambda s, t: 2.0 - 2.0 * torch.cosine_similarity(s.saliency, t.saliency, dim=-1),
    "predict": mean_of(2, "estimate"),
}
"""Every loss with its default parameters, worked out without it. A new loss has its own here."""


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_its_closed_form(name):
    """With default parameters each agrees with its formula, or torch.distributions, to 1e-6."""
    discrete = "logits" in LOSSES[name].student
    student, teacher = (outputs(logits=discrete, seed=seed) for seed in (11, 12))
    assert torch.allclose(call(name, student, teacher), ORACLES[name](student, teacher), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", ["mse", "huber", "kl", "q_mse", "value", "value_l1", "feature", "attention"])
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
    expected = F.cross_entropy(student.logits, torch.tensor([1, 0]), reduction="none")  # type: ignore
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
    assert loss_spec("foundation.learning.losses.divergence:kl") is LOSSES["kl"]


def test_reverse_kl_is_the_kl_with_both_exchanged():
    """KL(student || teacher) by torch.distributions, for Gaussians and for choices."""
    reverse = LossParams(direction="reverse", temperature=2.0)
    student, teacher = outputs(seed=5), outputs(seed=6)
    p, q = (Independent(Normal(one.mean, one.std), 1) for one in (teacher, student))
    assert torch.allclose(call("kl", student, teacher, reverse), kl_divergence(q, p), atol=1e-6)
    student, teacher = outputs(logits=True, seed=7), outputs(logits=True, seed=8)
    assert student.logits is not None and teacher.logits is not None
    p, q = Categorical(logits=teacher.logits / 2.0), Categorical(logits=student.logits)
    assert torch.allclose(call("kl", student, teacher, reverse), kl_divergence(q, p), atol=1e-6)


def test_jensen_shannon_of_choices_is_exact():
    """The mean of both divergences from the even mixture, by torch.distributions; symmetric, and at most ln 2."""
    params = LossParams(direction="jensen_shannon", temperature=0.5)
    student, teacher = outputs(logits=True, seed=7), outputs(logits=True, seed=8)
    assert student.logits is not None and teacher.logits is not None
    p, q = Categorical(logits=teacher.logits / 0.5), Categorical(logits=student.logits)
    mixture = Categorical(probs=0.5 * (p.probs + q.probs))
    expected = 0.5 * (kl_divergence(p, mixture) + kl_divergence(q, mixture))
    found = call("kl", student, teacher, params)
    assert torch.allclose(found, expected, atol=1e-6)
    assert bool((found <= math.log(2.0)).all())


def integrated_js(p: Normal, q: Normal) -> float:
    """The Jensen-Shannon divergence of two Gaussians of one action, by the trapezoidal rule on a fine grid."""
    grid = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
    log_p, log_q = p.log_prob(grid), q.log_prob(grid)
    log_mixture = torch.logaddexp(log_p, log_q) - math.log(2.0)
    integrand = 0.5 * (log_p.exp() * (log_p - log_mixture) + log_q.exp() * (log_q - log_mixture))
    return torch.trapezoid(integrand, grid).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(
    ("mean", "std"), [(0.7, 0.5), (0.0, 1.0), (-3.0, 2.0), (0.4, 0.2), (1.0, 4.0), (5.0, 0.3), (0.0, 0.25)]
)
def test_jensen_shannon_of_gaussians_is_the_integral(mean, std, smoothing):
    """Against a teacher of N(0, 1), each with the same noise or without: the integral of the densities, to 1e-6."""
    params = LossParams(direction="jensen_shannon", smoothing=smoothing)
    student, teacher = PolicyOutput(double(mean), double(std)), PolicyOutput(double(0.0), double(1.0))
    widths = (math.hypot(1.0, smoothing), math.hypot(std, smoothing))
    expected = integrated_js(*(Normal(*double(at, width)[0]) for at, width in zip((0.0, mean), widths, strict=True)))
    assert call("kl", student, teacher, params).item() == pytest.approx(expected, abs=1e-6)
    assert call("kl", teacher, student, params).item() == pytest.approx(expected, abs=1e-6)


def double(*values: float) -> torch.Tensor:
    """One sample in float64. Shape: (1, len(values))."""
    return torch.tensor([values], dtype=torch.float64)


def test_jensen_shannon_of_several_actions_is_the_sum_over_them():
    """Of two actions the sum of both divergences, and of one that agrees nothing."""
    params = LossParams(direction="jensen_shannon")
    one = integrated_js(Normal(*double(0.0, 1.0)[0]), Normal(*double(0.7, 0.5)[0]))
    student, teacher = (
        PolicyOutput(double(0.7, 0.0), double(0.5, 1.0)),
        PolicyOutput(double(0.0, 0.0), double(1.0, 1.0)),
    )
    assert call("kl", student, teacher, params).item() == pytest.approx(one, abs=1e-6)
    assert call("kl", teacher, teacher, params).item() == pytest.approx(0.0, abs=1e-12)
    student = PolicyOutput(double(0.7, 0.7), double(0.5, 0.5))
    assert call("kl", student, teacher, params).item() == pytest.approx(2.0 * one, abs=1e-6)


def test_jensen_shannon_of_many_actions_has_a_gradient_where_both_are_far_apart():
    """Twelve actions off by two deviations each: of one action's mean the gradient is that without the others."""
    params = LossParams(direction="jensen_shannon")
    gradients = []
    for count in (1, 12):
        mean = torch.full((1, count), 2.0, dtype=torch.float64, requires_grad=True)
        ones = torch.ones(1, count, dtype=torch.float64)
        call("kl", PolicyOutput(mean, ones), PolicyOutput(0.0 * ones, ones), params).sum().backward()
        assert mean.grad is not None
        gradients.append(mean.grad[0, 0].item())
    assert gradients[0] > 0.1 and gradients[1] == pytest.approx(gradients[0], rel=1e-12)


def test_noise_gives_jensen_shannon_a_gradient_where_narrow_gaussians_overlap_nowhere():
    """N(0, 0.03) and N(1, 0.03), thirty deviations apart: a gradient with noise alone, towards the teacher."""
    gradients = []
    for smoothing in (0.0, 1.0):
        mean = double(1.0).requires_grad_()
        params = LossParams(direction="jensen_shannon", smoothing=smoothing)
        call("kl", PolicyOutput(mean, double(0.03)), PolicyOutput(double(0.0), double(0.03)), params).backward()
        assert mean.grad is not None
        gradients.append(mean.grad.item())
    assert abs(gradients[0]) < 1e-12 and gradients[1] > 0.1


def test_the_advantages_are_what_the_choices_differ_by():
    """Q-values off by a constant have the right advantages: q_mse 4, advantage_mse 0; worked by hand for [1, -1]."""
    teacher = PolicyOutput(torch.zeros(1, 1), logits=torch.tensor([[1.0, 3.0]]))
    shifted = PolicyOutput(torch.zeros(1, 1), logits=torch.tensor([[3.0, 5.0]]))
    other = PolicyOutput(torch.zeros(1, 1), logits=torch.tensor([[2.0, 2.0]]))
    assert call("q_mse", shifted, teacher).item() == 4.0
    assert call("advantage_mse", shifted, teacher).item() == 0.0
    assert call("advantage_mse", other, teacher).item() == 1.0


def test_drawn_labels_have_the_teachers_distribution():
    """The mean NLL over many draws is the cross-entropy of both distributions, for Gaussians and for choices."""
    torch.manual_seed(0)
    params = LossParams(labels="sampled", temperature=2.0)
    ones = torch.ones(200_000, 1, dtype=torch.float64)
    teacher, student = PolicyOutput(0.3 * ones, 0.5 * ones), PolicyOutput(0.0 * ones, 0.8 * ones)
    p, q = Normal(0.3, 0.5), Normal(0.0, 0.8)
    expected = kl_divergence(p, q) + p.entropy()
    assert call("nll", student, teacher, params).mean().item() == pytest.approx(float(expected), abs=0.01)
    logits, other = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 0.5, 0.0]).double()
    teacher = PolicyOutput(ones, logits=logits.expand(200_000, 3))
    student = PolicyOutput(ones, logits=other.expand(200_000, 3))
    p, q = Categorical(logits=logits / 2.0), Categorical(logits=other)
    expected = kl_divergence(p, q) + p.entropy()
    assert call("nll", student, teacher, params).mean().item() == pytest.approx(float(expected), abs=0.01)


def test_a_squashed_student_has_the_likelihood_and_divergence_of_torch_distributions():
    """-log p of an action in (-1, 1), with the slope of tanh; a bijection changes no divergence."""
    (student, own), (teacher, wanted) = squashed(1), squashed(2)
    label = PolicyOutput(teacher.mean.clamp(-0.99, 0.99))
    assert torch.allclose(call("nll", student, label), -own.log_prob(label.mean).sum(-1), atol=1e-6)
    for direction, pair in (("forward", (wanted, own)), ("reverse", (own, wanted))):
        expected = kl_divergence(pair[0].base_dist, pair[1].base_dist).sum(-1)
        assert torch.allclose(call("kl", student, teacher, LossParams(direction=direction)), expected, atol=1e-6)


def test_a_beta_student_has_the_likelihood_and_divergence_of_torch_distributions():
    """-log p of an action in (-1, 1), whose density is half of that on (0, 1)."""
    (student, own), (teacher, wanted) = beta(1), beta(2)
    expected = -(own.log_prob((teacher.mean + 1.0) / 2.0) - math.log(2.0)).sum(-1)
    assert torch.allclose(call("nll", student, teacher), expected, atol=1e-6)
    for direction, (p, q) in (("forward", (wanted, own)), ("reverse", (own, wanted))):
        found = call("kl", student, teacher, LossParams(direction=direction))
        assert torch.allclose(found, kl_divergence(p, q).sum(-1), atol=1e-6)


def test_a_beta_student_is_floored_at_the_least_deviation():
    """Alphas and betas of 1e6 have a deviation of 0.0007: with min_std=0.1 they count as 49.5, of 0.1."""
    wide = Beta(torch.tensor(49.5), torch.tensor(49.5))
    assert 2.0 * wide.stddev.item() == pytest.approx(0.1, rel=1e-5)
    student = PolicyOutput(torch.zeros(1, 1), concentration=torch.full((1, 2), 1e6))
    found = call("nll", student, PolicyOutput(torch.full((1, 1), 0.2)), LossParams(min_std=0.1))
    assert found.item() == pytest.approx(-wide.log_prob(torch.tensor(0.6)).item() + math.log(2.0), rel=1e-4)


def test_labels_beyond_the_range_of_a_bounded_student_count_as_its_edge():
    """A Gaussian teacher's mean may be 3; the likelihood is finite, and that of 0.999."""
    for student in (squashed(1)[0], beta(1)[0]):
        far, edge = (PolicyOutput(torch.full((5, 3), at, dtype=torch.float64)) for at in (3.0, 0.999))
        assert torch.equal(call("nll", student, far), call("nll", student, edge))
        assert bool(torch.isfinite(call("nll", student, far)).all())


@pytest.mark.parametrize(("make", "word"), [(squashed, "squashed Gaussian"), (beta, "Beta")])
def test_kl_of_two_families_is_refused(make, word):
    """A Gaussian teacher has actions that a bounded student never takes: the line says what to use."""
    with pytest.raises(UserError, match=f"{word}.*use loss=nll, mse or huber, or distill.student.distribution="):
        call("kl", make(1)[0], outputs(seed=2))
    with pytest.raises(UserError, match="jensen_shannon has no form for Beta"):
        call("kl", beta(1)[0], beta(2)[0], LossParams(direction="jensen_shannon"))


GRADIENTS = [
    *((name, LossParams(), "gaussian") for name in ("mse", "huber", "nll", "value", "value_l1", "feature")),
    *((name, LossParams(), "gaussian") for name in ("attention", "predict")),
    *((name, LossParams(temperature=2.0), "choices") for name in ("q_mse", "advantage_mse", "soft_cross_entropy")),
    *(("kl", LossParams(direction=way), family)
      for way in ("forward", "reverse", "jensen_shannon")
      for family in ("gaussian", "choices", "squashed", "beta") if (way, family) != ("jensen_shannon", "beta")),
    *(("nll", LossParams(), family) for family in ("choices", "squashed", "beta")),
    ("feature", LossParams(feature_distance="cosine", layer_sizes=(3, 4)), "gaussian"),
    ("feature", LossParams(layer_sizes=(3, 4)), "gaussian"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params", "family"), GRADIENTS)
def test_gradients_are_those_of_finite_differences(name, params, family):
    """In float64 (``torch.autograd.gradcheck``), with respect to every output of the student that is read."""
    if family in ("squashed", "beta"):
        make = squashed if family == "squashed" else beta
        student, teacher = make(1)[0], make(2)[0]
        field = "pre_tanh" if family == "squashed" else "concentration"
        read = [field]
    else:
        student, teacher = (outputs(logits=family == "choices", seed=seed) for seed in (1, 2))
        read = ["logits"] if family == "choices" else list(LOSSES[name].student)
    values = [getattr(student, field).requires_grad_() for field in read]

    def function(*own: torch.Tensor) -> torch.Tensor:
        return call(name, student._replace(**dict(zip(read, own, strict=True))), teacher, params)

    assert torch.autograd.gradcheck(function, values)


def test_every_loss_is_differentiated():
    """A new loss has its own entry among the gradients."""
    assert {name for name, _, _ in GRADIENTS} == set(LOSSES)
