"""Features of several named layers: what is compared, what learns, and names that are none."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.learning.held_out import held_out_loss
from foundation.learning.learner import Learner
from foundation.learning.objective import RunFacts
from foundation.policies.actor_critic import ActorCritic
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy, make_student, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

LAYERS = [["body.1", "actor.1"], ["body.3", "actor.3"]]


def teacher_of(tmp_path, sizes=(12, 10)) -> TeacherPolicyWrapper:
    """An RSL-RL policy 3-12-10-2 with random weights, read from a checkpoint."""
    torch.manual_seed(3)
    layers = {}
    widths = [3, *sizes, 2]
    for index, (before, after) in enumerate(pairwise(widths)):
        layers[f"actor.{2 * index}.weight"] = torch.randn(after, before) / before**0.5
        layers[f"actor.{2 * index}.bias"] = torch.randn(after) * 0.1
    layers["std"] = torch.full((2,), 0.3)
    atomic_torch_save({"model_state_dict": layers, "iter": 1, "infos": None}, tmp_path / "model_1.pt")
    return TeacherPolicyWrapper(tmp_path / "model_1.pt", activation="elu")


def test_tapped_layers_are_the_ones_that_are_computed(tmp_path):
    """Side by side in the order asked for, equal to running the layers by hand; the actions do not change."""
    teacher = teacher_of(tmp_path)
    assert isinstance(teacher.policy, ActorCritic)
    obs = torch.randn(5, 3)
    before = teacher.step(obs)[0]
    teacher.policy.tap(["actor.3", "actor.0"], "key")
    assert teacher.policy.tapped_sizes() == [10, 12]
    output = teacher.step(obs)[0]
    first = teacher.policy.actor.layers[0](obs)
    last = teacher.policy.actor.layers[3](teacher.policy.actor.layers[2](teacher.policy.actor.layers[1](first)))
    assert torch.equal(output.features, torch.cat([last, first], dim=-1))
    assert torch.equal(output.mean, before.mean) and torch.equal(last, before.features)


@pytest.mark.parametrize("name", ["gru", "tcn", "history", "mlp"])
def test_every_student_has_layers_to_tap(name):
    """Steps and sequences give the same tapped features, memory or not; the last layer is the untapped features."""
    student = make_student(student_cfg_class(name)(), 3, 2)
    names = list(student.named_layers())
    obs = torch.randn(4, 2, 3)
    plain = student.sequence(obs)[0]
    student.tap(names, "key")
    sizes = student.tapped_sizes()
    tapped = student.sequence(obs)[0]
    assert tapped.features.shape == (4, 2, sum(sizes)) and torch.equal(tapped.mean, plain.mean)
    assert torch.equal(tapped.features[..., -sizes[-1] :], plain.features)


def learner_of(teacher: TeacherPolicyWrapper, distance: str) -> Learner:
    torch.manual_seed(0)
    loss = LossCfg("mse", auxiliary={"feature": 0.5}, layers=LAYERS, feature_distance=distance)  # type: ignore[arg-type]
    learner = Learner(StudentPolicy(3, 2, (8, 6)), DistillationCfg(batch_size=64, learning_rate=1e-2, loss=loss), 1)
    teacher.policy.tap([theirs for _, theirs in LAYERS], "key")
    facts = RunFacts(layer_sizes=teacher.policy.tapped_sizes())
    learner.prepare(learner.student.step(torch.zeros(1, 3))[0], teacher.step(torch.zeros(1, 3))[0], facts)
    return learner


def filled(teacher: TeacherPolicyWrapper, num_features: int = 22) -> DistillationDataset:
    dataset = DistillationDataset(BufferSpec(3, 64, 10_000, {"mean": 2, "features": num_features}, chunk_steps=8))
    for _ in range(4):
        dataset.begin_chunk()
        for step in range(8):
            obs = torch.randn(64, 3)
            dataset.write(step, obs, teacher.step(obs)[0], torch.zeros(64, dtype=torch.bool))
        dataset.commit_chunk()
    return dataset


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_several_layers_are_learned_each_through_its_adapter(distance, tmp_path):
    """The held-out error falls more than five times; the teacher has no gradient."""
    teacher = teacher_of(tmp_path)
    learner, dataset = learner_of(teacher, distance), filled(teacher)
    learner.learn(dataset, 64, 0)
    before = held_out_loss(learner, dataset, 0)["feature"]
    for epoch in range(1, 60):
        learner.learn(dataset, 2048, epoch)
    assert held_out_loss(learner, dataset, 59)["feature"] < before / 5.0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_of_several_layers_by_hand(tmp_path):
    """The mean over layers of the mean squared error per dimension, each in units of its own spread."""
    teacher = teacher_of(tmp_path)
    learner, dataset = learner_of(teacher, "l2"), filled(teacher)
    learner.objective.standardiser.fit(dataset)
    rows = dataset.rows[0].flatten(0, 1)
    targets = PolicyOutput(rows[:, 3:5], features=rows[:, 5:])
    output = learner.student.step(rows[:, :3])[0]
    found = learner.objective.per_sample(output, targets, learner.objective.loss_params(0))[1]
    parts = []
    tapped = learner.student.body
    for depth, columns, adapter in ((2, slice(0, 12), 0), (4, slice(12, 22), 1)):
        hidden = tapped[:depth](learner.student.normalizer(rows[:, :3]))
        error = learner.objective.adapter.layers[adapter](hidden) - targets.features[:, columns]
        parts.append((error / learner.objective.standardiser.scale["features"][columns]).square().mean(-1))
    assert torch.allclose(found, (parts[0] + parts[1]) / 2.0, rtol=1e-4, atol=1e-5)


def test_a_restored_learner_goes_on_bit_for_bit(tmp_path):
    """Several adapters are saved and restored with the rest."""
    teacher = teacher_of(tmp_path)
    first, second = learner_of(teacher, "l2"), learner_of(teacher, "l2")
    dataset = filled(teacher)
    first.learn(dataset, 512, 0)
    second.load_state_dict(*copy.deepcopy((first.policy.state_dict(), first.state_dict())))
    state = dataset.generator.get_state()
    first.learn(dataset, 512, 1)
    dataset.generator.set_state(state)
    dataset._cursor = 0
    second.learn(dataset, 512, 1)
    for one, two in zip(first.student.parameters(), second.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_layers_that_are_none_are_refused(tmp_path):
    """Of the student and of the teacher: the nearest names. Without the loss, and of unknown sizes: one line."""
    loss = LossCfg("mse", auxiliary={"feature": 0.5}, layers=[["body.11", "actor.1"]])
    with pytest.raises(UserError, match=r"distill.loss.layers: there is no layer 'body.11'\. Did you mean 'body.1'"):
        Learner(StudentPolicy(3, 2, (8, 6)), DistillationCfg(loss=loss), 1)
    with pytest.raises(UserError, match=r"of the teacher: there is no layer 'actr.1'\. Did you mean 'actor.1'"):
        teacher_of(tmp_path).policy.tap(["actr.1"], "distill.loss.layers, of the teacher")
    with pytest.raises(UserError, match=r"distill.loss.layers is for loss feature: add"):
        Learner(StudentPolicy(3, 2, (8, 6)), DistillationCfg(loss=LossCfg("mse", layers=LAYERS)), 1)
    loss = LossCfg("mse", auxiliary={"feature": 0.5}, layers=LAYERS)
    learner = Learner(StudentPolicy(3, 2, (8, 6)), DistillationCfg(loss=loss), 1)
    with pytest.raises(UserError, match="names 2 layers, and the teacher's features are of one"):
        target = PolicyOutput(torch.zeros(1, 2), features=torch.zeros(1, 22))
        learner.prepare(learner.student.step(torch.zeros(1, 3))[0], target)


def test_residual_hints_by_hand(tmp_path):
    """The first layer predicts the teacher's, the second what that leaves, without a gradient for the first."""
    teacher = teacher_of(tmp_path)
    teacher.policy.tap(["actor.3", "actor.3"], "key")
    dataset = filled(teacher, 20)
    layers = [["body.1", "actor.3"], ["body.3", "actor.3"]]
    loss = LossCfg("mse", auxiliary={"feature": 1.0}, layers=layers, feature_hints="residual")
    cfg = DistillationCfg(batch_size=64, learning_rate=1e-2, loss=loss)
    learner = Learner(StudentPolicy(3, 2, (2, 2)), cfg, 1)
    facts = RunFacts(layer_sizes=teacher.policy.tapped_sizes())
    learner.prepare(learner.student.step(torch.zeros(1, 3))[0], teacher.step(torch.zeros(1, 3))[0], facts)
    learner.learn(dataset, 2048, 0)
    rows = dataset.rows[0].flatten(0, 1)
    output = learner.student.step(rows[:, :3])[0]
    standardiser = learner.objective.standardiser
    mean, scale = standardiser.mean["features"][:10], standardiser.scale["features"][:10]
    own = (learner.objective.adapter(output.features).unflatten(-1, (2, 10)) - mean) / scale
    wanted = (rows[:, 5:15] - mean) / scale
    first = (own[:, 0] - wanted).square().mean(-1)
    both = (own[:, 0] + own[:, 1] - wanted).square().mean(-1)
    targets = PolicyOutput(rows[:, 3:5], features=rows[:, 5:])
    found = learner.objective.per_sample(output, targets, learner.objective.loss_params(0))[1]
    assert torch.allclose(found, (first + both) / 2.0, rtol=1e-3, atol=1e-4)
    alone = torch.autograd.grad(first.mean(), learner.objective.adapter.layers[0].weight, retain_graph=True)[0]
    of_loss = torch.autograd.grad(2.0 * found.mean(), learner.objective.adapter.layers[0].weight)[0]
    assert torch.allclose(of_loss, alone, rtol=1e-3, atol=1e-5)
