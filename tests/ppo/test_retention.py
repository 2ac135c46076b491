"""What keeps a policy: the KL against torch's own, coefficients over the iterations, ends, several teachers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from toy_env import REGULATOR_GAIN, LinearTeacher

from foundation.config.distillation_cfg import LossCfg, ScheduleCfg
from foundation.config.finetune_cfg import FinetuneCfg, KlCfg, RetainedTeacherCfg, check_finetune
from foundation.core.errors import UserError
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.ppo.consolidation import Consolidation, fisher_diagonal
from foundation.ppo.ppo import Transitions
from foundation.ppo.retention import FrozenTeacher, Retention, policy_kl
from foundation.students import StudentPolicy
from foundation.students.gru import GRUStudent, GRUStudentCfg

BATCH = 64


def outputs(seed: int, std: float) -> PolicyOutput:
    """A batch of random distributions."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(BATCH, 3, generator=generator)
    return PolicyOutput(mean, std * (1.0 + torch.rand(BATCH, 3, generator=generator)))


def batch(**targets: PolicyOutput) -> Transitions:
    """A flat minibatch of which only the teachers' outputs matter."""
    nothing = torch.zeros(BATCH)
    return Transitions(*([nothing] * 10), targets=targets)


def retention(teachers: dict[str, float], iterations: int = 100, **values: Any) -> Retention:
    """Terms with linear teachers of some names and weights."""
    selector = ObsSelector(["policy"])
    frozen = [FrozenTeacher(name, LinearTeacher(REGULATOR_GAIN), selector, weight) for name, weight in teachers.items()]
    return Retention(FinetuneCfg(**values), frozen, iterations)


@pytest.mark.parametrize("direction", ["teacher_policy", "policy_teacher"])
def test_the_kl_is_torchs_own_of_independent_gaussians(direction):
    """Both directions, on every state of the batch, to 1e-5."""
    policy, teacher = outputs(0, 0.5), outputs(1, 0.2)
    p, q = (Independent(Normal(o.mean, o.std), 1) for o in (policy, teacher))
    expected = kl_divergence(q, p) if direction == "teacher_policy" else kl_divergence(p, q)
    torch.testing.assert_close(policy_kl(policy, teacher, direction), expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_stated_sum():
    """(1 - alpha) * PPO + alpha * mse + kl_coef * KL, by hand on one batch."""
    policy, teacher = outputs(0, 0.5), outputs(1, 0.2)
    terms = retention({"teacher1": 1.0}, alpha=0.25, kl_coef=3.0)
    terms.begin(0)
    found = terms.combine(torch.tensor(7.0), batch(teacher1=teacher), policy)
    mse = (policy.mean - teacher.mean).square().mean()
    kl = policy_kl(policy, teacher, "teacher_policy").mean()
    assert found.item() == pytest.approx(float(0.75 * 7.0 + 0.25 * mse + 3.0 * kl), rel=1e-6)


def test_several_teachers_count_by_their_weights():
    """KL terms are added up, distillation terms averaged, each with its teacher's own coefficient."""
    policy, one, two = outputs(0, 0.5), outputs(1, 0.2), outputs(2, 0.3)
    terms = retention({"teacher1": 1.0, "teacher2": 3.0}, alpha=0.5, kl_coef=1.0)
    both = batch(teacher1=one, teacher2=two)
    kls = [policy_kl(policy, teacher, "teacher_policy").mean() for teacher in (one, two)]
    errors = [(policy.mean - teacher.mean).square().mean() for teacher in (one, two)]
    assert terms.divergence(both, policy).item() == pytest.approx(float(kls[0] + 3.0 * kls[1]), rel=1e-6)
    assert terms.distillation(both, policy).item() == pytest.approx(float((errors[0] + 3.0 * errors[1]) / 4), rel=1e-6)


def test_kl_coef_and_kl_decay_are_the_factor_per_iteration():
    """``kl_coef=2, kl_decay=0.9``: 2 * 0.9 ** iteration."""
    terms = retention({"teacher1": 1.0}, kl_coef=2.0, kl_decay=0.9)
    for iteration in (0, 1, 5):
        terms.begin(iteration)
        assert terms.kl_coef == pytest.approx(2.0 * 0.9**iteration)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleCfg("constant", 0.5), [0.5, 0.5, 0.5]),
        (ScheduleCfg("linear", 1.0, 0.0), [1.0, 0.5, 0.0]),
        (ScheduleCfg("cosine", 1.0, 0.0), [1.0, 0.5, 0.0]),
        (ScheduleCfg("exponential", 1.0, 0.01), [1.0, 0.1, 0.01]),
        (ScheduleCfg("piecewise", points=[[0, 1.0], [50, 0.2], [100, 0.2]]), [1.0, 0.2, 0.2]),
    ],
)
def test_coefficients_follow_schedules(schedule, expected):
    """At the first, the middle and the last iteration in which the actor learns."""
    terms = retention({"teacher1": 1.0}, iterations=101, alpha=schedule, kl_coef=schedule)
    for iteration, value in zip((0, 50, 100), expected, strict=True):
        terms.begin(iteration)
        assert terms.alpha == pytest.approx(value) and terms.kl_coef == pytest.approx(value)


def run_with_kl(terms: Retention, kls: list[float]) -> list[float]:
    """Run iterations whose KL is what is given; return the coefficients that were used."""
    used = []
    for iteration, kl in enumerate(kls):
        terms.begin(iteration)
        used.append(terms.kl_coef)
        if terms.kl_coef:
            shift = math.sqrt(2.0 * kl)  # of one of the means, in units of the deviation 1
            policy = PolicyOutput(torch.zeros(BATCH, 1), torch.ones(BATCH, 1))
            teacher = PolicyOutput(torch.full((BATCH, 1), shift), torch.ones(BATCH, 1))
            terms.combine(torch.zeros(()), batch(teacher1=teacher), policy)
        terms.end()
    return used


def test_the_kl_term_ends_for_good_below_a_threshold():
    """It was above first, so that a policy which begins at its teacher is retained; it does not come back."""
    terms = retention({"teacher1": 1.0}, kl_coef=1.0, kl=KlCfg(off_below=0.1))
    assert run_with_kl(terms, [0.0, 0.5, 0.05, 0.5, 0.5]) == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_kl_term_ends_after_an_iteration():
    """``off_after=2``: two iterations with it, none afterwards."""
    terms = retention({"teacher1": 1.0}, kl_coef=1.0, kl=KlCfg(off_after=2))
    assert run_with_kl(terms, [0.5] * 4) == [1.0, 1.0, 0.0, 0.0]


def test_the_coefficient_is_adapted_to_a_target():
    """Doubled above 1.5 times the target, halved below two thirds of it, left between."""
    terms = retention({"teacher1": 1.0}, kl_coef=1.0, kl=KlCfg(target=0.1))
    assert run_with_kl(terms, [0.2, 0.2, 0.1, 0.01, 0.1]) == [1.0, 2.0, 4.0, 4.0, 2.0]


def test_its_state_can_be_saved_and_restored():
    """A resumed run goes on with the adapted coefficient, and what is off stays off."""
    terms = retention({"teacher1": 1.0}, kl_coef=1.0, kl=KlCfg(target=0.1, off_below=0.005))
    run_with_kl(terms, [0.2, 0.2])
    other = retention({"teacher1": 1.0}, kl_coef=1.0, kl=KlCfg(target=0.1, off_below=0.005))
    other.load_state_dict(terms.state_dict())
    assert run_with_kl(other, [0.001, 0.5]) == [4.0, 0.0]


def test_the_policy_as_it_is_becomes_a_teacher():
    """``set_teacher`` freezes a copy: the policy moves on, the teacher does not; one of the same name is replaced."""
    student = StudentPolicy(2, 2, [8], stochastic=True)
    terms = retention({}, kl_coef=1.0)
    teacher = terms.set_teacher("stage1", student, ObsSelector(["policy"]))
    obs = torch.randn(5, 4, 2)
    before = student.sequence(obs)[0].mean.clone()
    with torch.no_grad():
        student.mean.bias.add_(1.0)
    none = torch.zeros(5, 4, dtype=torch.bool)
    assert torch.equal(teacher.label(obs, none, none[0]).mean, before)
    terms.set_teacher("stage1", student, ObsSelector(["policy"]))
    assert [other.name for other in terms.teachers] == ["stage1"]
    assert torch.equal(terms.teachers[0].label(obs, none, none[0]).mean, student.sequence(obs)[0].mean)


def test_a_teacher_with_memory_goes_on_over_rollouts_and_forgets_at_an_episodes_end():
    """Two rollouts labelled one after the other are the labels of one long rollout."""
    student = GRUStudent(GRUStudentCfg(stochastic=True), 2, 2)
    teacher = FrozenTeacher.of_student("t", student, ObsSelector(["policy"]))
    obs = torch.randn(12, 4, 2)
    ends = torch.zeros(12, 4, dtype=torch.bool)
    ends[4, 1] = ends[5, 2] = True
    resets = torch.cat([torch.zeros(1, 4, dtype=torch.bool), ends[:-1]])
    whole = student.sequence(obs, None, resets)[0].mean
    halves = [teacher.label(obs[a : a + 6], resets[a : a + 6], ends[a + 5]).mean for a in (0, 6)]
    torch.testing.assert_close(torch.cat(halves), whole)


def test_a_deterministic_teacher_and_the_kl_are_refused_unless_its_deviation_is_given():
    """The line names the teacher and both ways out; with ``teacher.std`` the KL has that deviation."""
    with pytest.raises(UserError, match=r"teacher1 is deterministic: set finetune.teacher.std=0.1"):
        retention({"teacher1": 1.0}, kl_coef=1.0).check()
    retention({"teacher1": 1.0}, alpha=1.0).check()
    teacher = FrozenTeacher.of_student("t", StudentPolicy(2, 2, [8]), ObsSelector(["policy"]))
    teacher.std = 0.1
    label = teacher.label(torch.randn(5, 4, 2), torch.zeros(5, 4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))
    assert label.std is not None and bool((label.std == 0.1).all())
    Retention(FinetuneCfg(kl_coef=1.0), [teacher], 10).check()


@pytest.mark.parametrize("name", ["value", "feature"])
def test_only_the_actions_distribution_is_distilled(name):
    """The value head is left alone: a loss that is about it is refused."""
    with pytest.raises(UserError, match="is not about the actions' distribution"):
        retention({"teacher1": 1.0}, alpha=0.5, loss=LossCfg(auxiliary={name: 1.0}))


BAD = [
    ({"alpha": 1.5}, "--alpha is 1.5: it must be from 0 to 1"),
    ({"alpha": -0.1}, "--alpha is -0.1: it must be from 0 to 1"),
    ({"alpha": ScheduleCfg("linear", 1.0, -0.5)}, "finetune.alpha.end is -0.5: it must be from 0 to 1"),
    ({"kl_coef": ScheduleCfg("linear", 1.0, -0.5)}, "finetune.kl_coef.end is -0.5: it must be a finite number, 0 or m"),
    ({"kl_coef": -1.0}, "--kl_coef is -1: it must be a finite number, 0 or more"),
    ({"kl_coef": 1.0, "kl_decay": 1.5}, "--kl_decay is 1.5"),
    ({"kl_coef": ScheduleCfg("constant", 1.0), "kl_decay": 0.9}, "give one of them"),
    ({"kl": KlCfg(target=0.1)}, "kl_coef, which is 0"),
    ({"kl_direction": "sideways"}, "--kl_direction is 'sideways'"),
    ({"teacher": RetainedTeacherCfg(weights={"teacher9": 1.0})}, "finetune.teacher.weights.teacher9"),
    ({"alpha": 1.0}, "there is none: give --teacher_checkpoint PATH"),
]


@pytest.mark.parametrize(("values", "says"), BAD)
def test_settings_that_cannot_work_are_one_line(values, says):
    """The line names the flag or key, the value, and what is allowed."""
    with pytest.raises(UserError) as error:
        check_finetune(FinetuneCfg(**values))
    assert says in str(error.value) and "\n" not in str(error.value)


class _OneBatch:
    """A replay of fixed states."""

    def __init__(self, obs: torch.Tensor):
        self.obs = obs

    def draw(self) -> Any:
        return self


def test_the_fisher_information_of_a_gaussians_mean_is_its_closed_form():
    """For mean = bias, the information about the bias is 1 / std ** 2; the penalty is the quadratic form of eq. 3."""
    actor = StudentPolicy(2, 2, [], stochastic=True, init_std=0.5)
    fisher = fisher_diagonal(actor, _OneBatch(torch.randn(4000, 2)), 4000, seed=0)
    assert fisher["mean.bias"].tolist() == pytest.approx([4.0, 4.0], rel=0.1)
    consolidation = Consolidation(actor, {"mean.bias": torch.tensor([4.0, 2.0])})
    assert consolidation.penalty().item() == 0.0
    with torch.no_grad():
        actor.mean.bias.add_(torch.tensor([1.0, 3.0]))
    assert consolidation.penalty().item() == pytest.approx(0.5 * (4.0 * 1.0 + 2.0 * 9.0))


def test_the_kl_of_two_squashed_gaussians_is_that_before_tanh():
    """A bijection changes no divergence; against a distribution of another family it is refused in one line."""
    policy, teacher = outputs(0, 0.5), outputs(1, 0.2)
    squashed = [PolicyOutput(o.mean.tanh(), pre_tanh=torch.cat([o.mean, o.std], dim=-1)) for o in (policy, teacher)]
    found = policy_kl(squashed[0], squashed[1], "teacher_policy")
    torch.testing.assert_close(found, policy_kl(policy, teacher, "teacher_policy"))
    with pytest.raises(UserError, match="compares distributions of one family"):
        policy_kl(squashed[0], teacher, "teacher_policy")
