"""Terms with weights, temperatures and parameters of their own, over the epochs."""

from __future__ import annotations

import logging

import pytest
import torch
from linear_teacher import filled

from foundation.config.distillation_cfg import DistillationCfg, LossCfg, ScheduleCfg, TermCfg
from foundation.config.overrides import parse_overrides
from foundation.config.resolve import resolve
from foundation.core.errors import UserError
from foundation.learning.learner import Learner
from foundation.learning.losses import LOSSES, LossParams
from foundation.learning.terms import make_terms
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy, student_cfg_class


def resolved(*tokens: str) -> DistillationCfg:
    return resolve(parse_overrides(tokens), {}, student_cfg_class=student_cfg_class, loss_names=LOSSES).cfg


def test_each_term_has_schedules_of_its_own():
    """Typed as a mapping: weights and temperatures of main and further terms at the first, middle and last epoch."""
    cfg = resolved(
        "n_epochs=3",
        "loss=kl",
        "distill.loss.temperature={kind: linear, start: 5, end: 1}",
        "distill.loss.weight={kind: linear, start: 1, end: 0.5}",
        "distill.loss.auxiliary={soft_cross_entropy: {weight: {kind: linear, start: 1, end: 0}, temperature: 2, "
        "student_temperature: same}, q_mse: 0.25}",
    )
    main, soft, q = make_terms(cfg)
    assert [main.weight(epoch, 3) for epoch in range(3)] == [1.0, 0.75, 0.5]
    assert [soft.weight(epoch, 3) for epoch in range(3)] == [1.0, 0.5, 0.0]
    assert [q.weight(epoch, 3) for epoch in range(3)] == [0.25] * 3
    of_main, of_soft = ([term.params(cfg.loss, epoch, 3) for epoch in range(3)] for term in (main, soft))
    assert [params.temperature for params in of_main] == [5.0, 3.0, 1.0]
    assert [params.student_temperature for params in of_main] == [1.0] * 3
    assert [(params.temperature, params.student_temperature) for params in of_soft] == [(2.0, 2.0)] * 3


def test_a_weight_that_changes_is_that_of_its_epoch():
    """The total of an epoch is the sum of its terms with the weights of that epoch."""
    auxiliary: dict[str, float | TermCfg] = {"huber": TermCfg(ScheduleCfg("linear", 1.0, 0.0))}
    cfg = DistillationCfg(n_epochs=3, batch_size=64, learning_rate=1e-9, loss=LossCfg("mse", 2.0, auxiliary))
    learner = Learner(StudentPolicy(3, 2, hidden_dims=(16,)), cfg, 1)
    dataset = filled(1)
    for epoch, weight in enumerate((1.0, 0.5, 0.0)):
        stats = learner.learn(dataset, 64, epoch)
        assert stats.mean_loss == pytest.approx(2.0 * stats.terms["mse"] + weight * stats.terms["huber"], rel=1e-6)


def test_the_noise_of_jensen_shannon_goes_from_wide_to_narrow():
    """Unless it is set: from 1 to 0.01 over the run, by the same factor in every epoch."""
    found = []
    for smoothing in (None, 0.3):
        cfg = DistillationCfg(n_epochs=3, loss=LossCfg("kl", smoothing=smoothing))
        found.append([make_terms(cfg)[0].params(cfg.loss, epoch, cfg.n_epochs).smoothing for epoch in range(3)])
    assert found == [pytest.approx([1.0, 0.1, 0.01]), [0.3, 0.3, 0.3]]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("distill.loss.temperature=0", r"distill.loss.temperature is 0: it must be a finite number above 0"),
        ("distill.loss.auxiliary={nll: {temperature: 0}}", r"auxiliary.nll.temperature is 0: it must be .* above 0"),
        ("distill.loss.auxiliary={nll: {weight: -1}}", r"auxiliary.nll.weight is -1: it must be a finite number, 0 or"),
        (
            "distill.loss.auxiliary={nll: -1}",
            r"distill.loss.auxiliary.nll is -1: it must be a finite number, 0 or more",
        ),
        ("distill.loss.auxiliary={nll: {wieght: 1}}", r"unknown key 'distill.loss.auxiliary.nll.wieght'.*'weight'"),
        ("distill.loss.layers=[[body.1]]", r"distill.loss.layers is .*: it must be a list of .* pairs"),
        (
            "distill.loss.feature_hints=residual",
            r"distill.loss.layers is \[\]: it must be two pairs or more, of one layer of the teacher",
        ),
        ("distill.loss.smoothing=-1", r"distill.loss.smoothing is -1: it must be a finite number, 0 or more"),
        ("distill.loss.weight=0", r"distill.loss.weight is 0: it must be above 0"),
        ("distill.loss.direction=backward", r"'distill.loss.direction' is 'backward'. .*forward"),
        ("distill.loss.labels=drawn", r"'distill.loss.labels' is 'drawn'. Valid are: mean, sampled"),
        ("distill.loss.auxiliary={mse: 1}", r"'mse' is the main loss already; its weight is distill.loss.weight"),
    ],
)
def test_wrong_settings_are_one_clear_line(token, message):
    """It names the key as it is typed, and what it must be."""
    with pytest.raises(UserError, match=message) as caught:
        resolved(token)
    assert "\n" not in str(caught.value)


def quantile(student: PolicyOutput, target: PolicyOutput, params: LossParams, *, level: float = 0.5) -> torch.Tensor:
    """A loss with a parameter of its own."""
    error = target.mean - student.mean
    return torch.maximum(level * error, (level - 1.0) * error).mean(dim=-1)


def test_parameters_of_one_term_are_its_own():
    """``auxiliary.NAME.params`` reaches that term alone; an unknown name is refused with the known ones."""
    name = f"{__name__}:quantile"
    cfg = DistillationCfg(loss=LossCfg("mse", auxiliary={name: TermCfg(0.5, params={"level": 0.9})}))
    _, own = make_terms(cfg)
    student, target = PolicyOutput(torch.zeros(1, 1)), PolicyOutput(torch.ones(1, 1))
    params = own.params(cfg.loss, 0, 1)
    assert own.spec.function(student, target, params).item() == pytest.approx(0.9)
    assert quantile(student, target, params).item() == pytest.approx(0.5)
    cfg = DistillationCfg(loss=LossCfg("mse", auxiliary={name: TermCfg(0.5, params={"levle": 0.9})}))
    with pytest.raises(UserError, match=r"params.levle.*Did you mean 'level'"):
        make_terms(cfg)


def test_the_warning_of_scale_compares_every_pair(caplog):
    """Of three terms one is tiny: it is named with its figure, though the others are alike."""
    cfg = DistillationCfg(batch_size=64, learning_rate=1e-9, loss=LossCfg("mse", auxiliary={"huber": 1.0, "nll": 1e-7}))
    learner = Learner(StudentPolicy(3, 2, hidden_dims=(16,), stochastic=True), cfg, 1)
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            learner.learn(filled(1), 64, epoch)
    [line] = [record.getMessage() for record in caplog.records if "learns little of" in record.getMessage()]
    assert "and 'nll' " in line and line.endswith("or raise distill.loss.auxiliary.nll.")


def test_a_loss_of_choices_for_continuous_actions_is_refused():
    """q_mse with a task of numbers: one line that names losses which fit."""
    for name in ("q_mse", "advantage_mse", "soft_cross_entropy"):
        learner = Learner(StudentPolicy(2, 1), DistillationCfg(loss=LossCfg(name)), 1)
        with pytest.raises(UserError, match=rf"Loss '{name}' compares the values of discrete actions.*use loss=mse"):
            learner.prepare(learner.student.step(torch.zeros(1, 2))[0], PolicyOutput(torch.zeros(1, 1)))


def test_kl_with_a_deterministic_teacher_is_refused():
    """One line: what is missing, and what to use."""
    learner = Learner(StudentPolicy(2, 1, stochastic=True), DistillationCfg(loss=LossCfg("kl")), 1)
    student = learner.student.step(torch.zeros(1, 2))[0]
    with pytest.raises(UserError, match=r"Loss 'kl' needs the teacher's std, which this teacher does not have"):
        learner.prepare(student, PolicyOutput(torch.zeros(1, 1)))
    learner = Learner(StudentPolicy(2, 1, stochastic=True), DistillationCfg(loss=LossCfg("nll", labels="sampled")), 1)
    with pytest.raises(UserError, match=r"Loss 'nll' needs the teacher's std"):
        learner.prepare(student, PolicyOutput(torch.zeros(1, 1)))
