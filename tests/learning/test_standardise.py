"""Values, features and Q-values on one scale: closed forms, finite differences, and what a whole fit reaches."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg, LossCfg, OptimizerCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import Batch, BufferSpec, DistillationDataset
from foundation.dataset.moments import moments_of, target_sums
from foundation.learning.learner import Learner
from foundation.learning.losses import LOSSES, LossParams
from foundation.learning.objective import forward
from foundation.learning.standardise import Standardiser
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy

GAIN = torch.tensor([[1.0, 0.5], [-0.5, 0.25], [0.0, -1.0]])
FEATURES = torch.tensor([[100.0, 0.0, 0.0, 1.0], [0.0, 0.01, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0]])
"""A unit of large numbers, one of small ones, one that is always 5, one of order 1."""


def filled(chunks: int = 4, window: int = 1, value_scale: float = 100.0, seed: int = 0) -> DistillationDataset:
    """Values of mean 300 and spread ``value_scale``; features of very different sizes."""
    targets = {"mean": 2, "value": 1, "features": 4}
    dataset = DistillationDataset(BufferSpec(3, 8, 10_000, targets, chunk_steps=8, sequence_length=window), seed=seed)
    generator = torch.Generator().manual_seed(1)
    for _ in range(chunks):
        dataset.begin_chunk()
        for step in range(8):
            obs = torch.randn(8, 3, generator=generator)
            value = 300.0 + value_scale * obs[:, :1]
            features = obs @ FEATURES + torch.tensor([0.0, 0.0, 5.0, 0.0])
            target = PolicyOutput(obs @ GAIN, value=value, features=features)
            dataset.write(step, obs, target, torch.full((8,), step == 0))
        dataset.commit_chunk()
    return dataset


def make(auxiliary: dict[str, float], ema: float | None = None, seed: int = 0, **options) -> Learner:
    torch.manual_seed(seed)
    optimizer = OptimizerCfg(ema_decay=ema, **options)
    cfg = DistillationCfg(batch_size=32, learning_rate=1e-2, n_epochs=40, optimizer=optimizer)
    cfg.loss = LossCfg("mse", auxiliary=auxiliary)
    learner = Learner(StudentPolicy(3, 2, hidden_dims=(32,), value_head="feature" not in auxiliary), cfg, 1)
    teacher = PolicyOutput(torch.zeros(1, 2), value=torch.zeros(1, 1), features=torch.zeros(1, 4))
    learner.prepare(learner.student.step(torch.zeros(1, 3))[0], teacher)
    return learner


def fitted(learner: Learner, dataset: DistillationDataset, epochs: int) -> list[dict[str, float]]:
    return [learner.learn(dataset, 256, epoch).terms for epoch in range(epochs)]


def test_moments_are_those_of_the_rows_that_are_learned_from():
    """Mean and deviation of the stored values (NumPy), those of weight 0 left out."""
    dataset = DistillationDataset(BufferSpec(1, 4, 64, {"mean": 1, "value": 1}, chunk_steps=4, weighted=True))
    stored = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(3)) * 7.0 + 40.0
    for chunk in stored:
        slot = dataset.begin_chunk()
        for step, value in enumerate(chunk.unsqueeze(-1)):
            dataset.write(step, value, PolicyOutput(value, value=value), torch.zeros(4, dtype=torch.bool))
        assert dataset.weights is not None
        dataset.weights[slot, :, 0] = 0.0
        dataset.commit_chunk()
    used = stored[..., 1:].double().numpy()
    mean, std = moments_of([target_sums(dataset, "value")])
    assert mean.item() == pytest.approx(used.mean(), rel=1e-12)
    assert std.item() == pytest.approx(used.std(), rel=1e-12)


def test_the_value_loss_is_in_units_of_the_teachers_spread():
    """Off by 50 where the teacher's values are 200 and 400, of spread 100: 0.25, and 0.5 for the absolute error."""
    scale = Standardiser(["value"])
    scale.mean["value"], scale.scale["value"] = torch.tensor([300.0]), torch.tensor([100.0])
    teacher = scale(PolicyOutput(torch.zeros(2, 1), value=torch.tensor([[200.0], [400.0]])))
    student = scale(PolicyOutput(torch.zeros(2, 1), value=torch.tensor([[250.0], [350.0]])))
    assert LOSSES["value"].function(student, teacher, LossParams()).tolist() == [0.25, 0.25]
    assert LOSSES["value_l1"].function(student, teacher, LossParams()).tolist() == [0.5, 0.5]


def test_each_dimension_of_the_features_counts_by_its_own_spread():
    """Spreads 4, 2, 0: their root mean square is sqrt(20 / 3); what never varies is divided by a tenth of that."""
    dataset = DistillationDataset(BufferSpec(1, 2, 2, {"mean": 1, "features": 3}, chunk_steps=1))
    dataset.begin_chunk()
    features = torch.tensor([[1.0, -2.0, 7.0], [9.0, 2.0, 7.0]])
    dataset.write(0, torch.zeros(2, 1), PolicyOutput(torch.zeros(2, 1), features=features), torch.ones(2).bool())
    dataset.commit_chunk()
    scale = Standardiser(["features"])
    scale.fit(dataset)
    assert scale.mean["features"].tolist() == [5.0, 0.0, 7.0]
    assert scale.scale["features"].tolist() == pytest.approx([4.0, 2.0, 0.1 * (20.0 / 3.0) ** 0.5])


def test_a_target_that_never_varies_keeps_its_unit():
    """Values that are all 7 have no spread to be divided by."""
    dataset = DistillationDataset(BufferSpec(1, 2, 2, {"mean": 1, "value": 1}, chunk_steps=1))
    dataset.begin_chunk()
    target = PolicyOutput(torch.zeros(2, 1), value=torch.full((2, 1), 7.0))
    dataset.write(0, torch.zeros(2, 1), target, torch.ones(2).bool())
    dataset.commit_chunk()
    scale = Standardiser(["value"])
    scale.fit(dataset)
    assert scale.scale["value"].item() == 1.0


@pytest.mark.parametrize("name", ["value", "value_l1", "feature"])
def test_gradients_are_those_of_finite_differences(name):
    """In float64, through standardisation, adapter and student, for every parameter that the term reaches."""
    learner = make({name: 1.0})
    dataset = filled(1)
    learner.objective.standardiser.fit(dataset)
    for moments in (learner.objective.standardiser.mean, learner.objective.standardiser.scale):
        moments.update({field: tensor.double() for field, tensor in moments.items()})
    student = learner.student.double()
    modules = [student] if learner.objective.adapter is None else [student, learner.objective.adapter.double()]
    rows = dataset.rows[0].flatten(0, 1).double()
    targets = PolicyOutput(**{field: rows[:, part] for field, part in dataset.columns.items() if field != "obs"})
    batch = Batch(rows[:, dataset.columns["obs"]], targets)

    def loss() -> torch.Tensor:
        objective = learner.objective
        return objective.per_sample(forward(student, batch), targets, objective.loss_params(0))[1].mean()

    loss().backward()
    reached = 0
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if parameter.grad is None:
            continue
        reached += 1
        flat = parameter.data.view(-1)
        for index in range(0, len(flat), max(1, len(flat) // 5)):
            kept = flat[index].item()
            step = 1e-6 * max(1.0, abs(kept))
            flat[index] = kept + step
            above = loss().item()
            flat[index] = kept - step
            below = loss().item()
            flat[index] = kept
            slope = (above - below) / (2.0 * step)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert reached == 4  # the body's weight and bias, and those of the value head or the adapter


def test_the_gradient_of_a_value_loss_is_that_of_standardised_values():
    """One step of SGD by hand, a value head that predicts (V - mean) / spread; afterwards it predicts V."""
    dataset = filled(chunks=1)
    learner = make({"value": 0.5}, name="sgd")
    rows = dataset.rows[0].flatten(0, 1)
    obs, value = rows[:, :3], rows[:, dataset.columns["value"]]
    mean, spread = value.mean(), value.std(correction=0)
    reference = copy.deepcopy(learner.student)
    output = reference.step(obs)[0]
    loss = (output.mean - obs @ GAIN).square().mean() + 0.5 * (output.value - (value - mean) / spread).square().mean()
    loss.backward()
    learner.cfg.batch_size = 64
    stats = learner.learn(dataset, 32, 0)
    assert stats.num_updates == 2  # the default ratio; both updates see every row
    assert stats.terms["value"] > 0.0
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 1e-2 * parameter.grad
            parameter.grad = None
    output = reference.step(obs)[0]
    loss = (output.mean - obs @ GAIN).square().mean() + 0.5 * (output.value - (value - mean) / spread).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 1e-2 * parameter.grad
    predicted, expected = learner.student.step(obs)[0], reference.step(obs)[0]
    assert torch.allclose(predicted.mean, expected.mean, atol=1e-5)
    assert torch.allclose(predicted.value, mean + spread * expected.value, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("auxiliary", [{"value": 0.5}, {"value_l1": 0.5}, {"feature": 0.5}])
def test_an_auxiliary_term_of_large_numbers_does_not_harm_the_actions(auxiliary, ema):
    """Values around 300 and features of sizes 0.01 to 100: the action error is that without them, theirs falls."""
    dataset = filled(8)
    alone, learner = make({}, ema), make(auxiliary, ema)
    without, terms = fitted(alone, filled(8), 40), fitted(learner, dataset, 40)
    [name] = auxiliary
    assert terms[-1]["mse"] < max(2.0 * without[-1]["mse"], 1e-3 * without[0]["mse"])
    assert terms[-1][name] < terms[0][name] / (5.0 if name != "value_l1" else 3.0)
    if "feature" not in auxiliary:
        obs = dataset.rows[0].flatten(0, 1)
        error = learner.policy.step(obs[:, :3])[0].value - obs[:, dataset.columns["value"]]
        assert error.square().mean().sqrt() < 30.0  # own units; a constant prediction is off by 100


def test_predictions_stay_what_they_were_where_moments_are_fitted_anew():
    """Values of a tenth of the size come in: with no step of the optimiser the head predicts what it did (PopArt)."""
    learner = make({"value": 0.5})
    fitted(learner, filled(2), 2)
    obs = torch.randn(16, 3)
    before = learner.student.step(obs)[0].value
    scale = learner.objective.standardiser.scale["value"].clone()
    learner.cfg.learning_rate = 0.0
    learner.learn(filled(4, value_scale=10.0), 64, 2)
    assert learner.objective.standardiser.scale["value"] < 0.2 * scale
    after = learner.student.step(obs)[0].value
    assert before is not None and after is not None
    assert torch.allclose(before, after, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("auxiliary", [{"value": 0.5}, {"feature": 0.5}])
def test_a_restored_learner_goes_on_bit_for_bit(auxiliary):
    """Moments, value head and adapter are saved: five epochs at once are two and three with a restart between."""
    whole = make(auxiliary, 0.9)
    fitted(whole, filled(4), 5)
    first, dataset = make(auxiliary, 0.9), filled(4)
    fitted(first, dataset, 2)
    second = make(auxiliary, 0.9, seed=7)
    second.load_state_dict(*copy.deepcopy((first.policy.state_dict(), first.state_dict())))
    for epoch in range(2, 5):
        second.learn(dataset, 256, epoch)
    for one, two in ((whole.policy, second.policy), (whole.student, second.student)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_abandoned_epoch_leaves_the_head_in_the_teachers_units():
    """Ctrl-C in the middle of an epoch: the value head predicts returns, not standardised numbers."""
    learner, dataset = make({"value": 0.5}), filled(4)
    fitted(learner, dataset, 10)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(dataset, 256, 10, stop)
    rows = dataset.rows[0].flatten(0, 1)
    value = learner.student.step(rows[:, :3])[0].value
    assert value is not None and abs(value.mean().item() - 300.0) < 50.0


@pytest.mark.parametrize("name", ["value", "value_l1", "feature"])
def test_a_main_loss_that_trains_no_actions_is_refused(name):
    """It would leave the action head as it began; the line says what to type."""
    cfg = DistillationCfg(loss=LossCfg(name, auxiliary={"mse": 1.0}))
    with pytest.raises(UserError, match=rf"loss={name} trains no actions.*loss=mse distill.loss.auxiliary={{{name}:"):
        Learner(StudentPolicy(3, 2, value_head=True), cfg, 1)


@pytest.mark.parametrize(("weight", "warned"), [(1.0, False), (1e6, True)])
def test_a_term_a_hundred_times_the_others_warns_once(weight, warned, caplog):
    """The line names the term and the key to lower."""
    learner = make({"value": weight})
    with caplog.at_level(logging.WARNING):
        fitted(learner, filled(2), 2)
    found = [record.getMessage() for record in caplog.records if "learns little of" in record.getMessage()]
    assert len(found) == int(warned)
    if warned:
        assert "loss term 'value'" in found[0] and "'mse'" in found[0]
        assert "Lower distill.loss.auxiliary.value or raise distill.loss.weight." in found[0]


Q_GAIN = torch.tensor([[1.0, 0.5, -1.0], [-0.5, 0.25, 0.5], [0.0, -1.0, 1.0]])


def choices(chunks: int = 4, size: float = 100.0, spread: float = 5.0) -> DistillationDataset:
    """Q-values of three choices: around ``size``, ``spread`` wide, and 0.5 times that apart from each other."""
    dataset = DistillationDataset(BufferSpec(3, 8, 10_000, {"mean": 1, "logits": 3}, chunk_steps=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(chunks):
        dataset.begin_chunk()
        for step in range(8):
            obs = torch.randn(8, 3, generator=generator)
            q = size + spread * (obs[:, :1] + 0.5 * obs @ Q_GAIN)
            target = PolicyOutput(q.argmax(-1, keepdim=True).float(), logits=q)
            dataset.write(step, obs, target, torch.full((8,), step == 0))
        dataset.commit_chunk()
    return dataset


def chooser(loss: LossCfg, ema: float | None = None, seed: int = 0, **options) -> Learner:
    torch.manual_seed(seed)
    optimizer = OptimizerCfg(ema_decay=ema, **options)
    cfg = DistillationCfg(batch_size=32, learning_rate=1e-2, n_epochs=40, optimizer=optimizer, loss=loss)
    return Learner(StudentPolicy(3, 1, hidden_dims=(32,), num_choices=3), cfg, 1)


def test_q_values_of_all_choices_are_divided_by_one_number():
    """So that they stay comparable: the root of the mean of the three variances, by NumPy; q_mse is divided by it."""
    dataset = choices(1)
    q = dataset.rows[0].flatten(0, 1)[:, dataset.columns["logits"]]
    scale = Standardiser(["logits"])
    scale.fit(dataset)
    spread = q.double().numpy().var(axis=0).mean() ** 0.5
    assert scale.scale["logits"].tolist() == pytest.approx([spread] * 3, rel=1e-6)
    learner = chooser(LossCfg("q_mse"))
    learner.objective.standardiser.fit(dataset)
    student, teacher = (PolicyOutput(torch.zeros(64, 1), logits=values) for values in (q + torch.arange(3.0), q))
    [found] = learner.objective.per_sample(student, teacher, learner.objective.loss_params(0))
    assert found.tolist() == pytest.approx([5.0 / 3.0 / spread**2] * 64, rel=1e-3)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("name", ["q_mse", "advantage_mse"])
def test_a_fresh_network_learns_which_of_large_q_values_is_the_largest(name, ema):
    """Q-values around 1000 that differ by a few: the choices agree, and the student's outputs are in real units."""
    learner, dataset = chooser(LossCfg(name), ema), choices(8, size=1000.0)
    fitted(learner, dataset, 40)
    rows = dataset.rows[:8].flatten(0, 2)
    obs, q = rows[:, :3], rows[:, dataset.columns["logits"]]
    output = learner.policy.step(obs)[0]
    assert output.logits is not None
    assert (output.logits.argmax(-1) == q.argmax(-1)).float().mean() > 0.95
    if name == "q_mse":
        assert (output.logits - q).square().mean().sqrt() < 1.0  # a constant is off by 7


def test_q_values_beside_a_loss_that_reads_the_choices_leave_these_in_their_own_units():
    """``kl`` has the value that it has alone; ``q_mse`` beside it is in units of the spread."""
    dataset = choices(1)
    rows = dataset.rows[0].flatten(0, 1)
    targets = PolicyOutput(rows[:, dataset.columns["mean"]], logits=rows[:, dataset.columns["logits"]])
    batch = Batch(rows[:, :3], targets)
    learner = chooser(LossCfg("kl", auxiliary={"q_mse": 0.1}), name="sgd")
    learner.cfg.learning_rate = 0.0
    before = copy.deepcopy(learner.student.state_dict())
    learner.learn(dataset, 32, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.student.state_dict().items())
    output = forward(learner.student, batch)
    kl, q_mse = learner.objective.per_sample(output, targets, learner.objective.loss_params(0))
    expected = LOSSES["kl"].function(output, targets, LossParams())
    assert torch.equal(kl, expected)
    raw = LOSSES["q_mse"].function(output, targets, LossParams())
    assert torch.allclose(q_mse, raw / learner.objective.standardiser.scale["logits"][0].square(), rtol=1e-4)


@pytest.mark.parametrize("auxiliary", [{}, {"advantage_mse": 1.0}])
def test_a_restored_learner_of_q_values_goes_on_bit_for_bit(auxiliary):
    """Five epochs at once are two and three with a restart between, with the averaged student too."""
    loss = LossCfg("q_mse", auxiliary=auxiliary)
    whole = chooser(loss, 0.9)
    fitted(whole, choices(), 5)
    first, dataset = chooser(loss, 0.9), choices()
    fitted(first, dataset, 2)
    second = chooser(loss, 0.9, seed=7)
    second.load_state_dict(*copy.deepcopy((first.policy.state_dict(), first.state_dict())))
    for epoch in range(2, 5):
        second.learn(dataset, 256, epoch)
    for one, two in ((whole.policy, second.policy), (whole.student, second.student)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
