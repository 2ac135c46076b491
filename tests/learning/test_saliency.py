"""Saliency and attention transfer: gradients by hand, and a student that learns what to look at."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.transition import Batch
from foundation.learning.held_out import held_out_loss
from foundation.learning.learner import Learner
from foundation.learning.losses import LossParams, loss_spec
from foundation.learning.objective import RunFacts
from foundation.learning.saliency import SalientTeacher, action_saliency, shared_columns
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy, make_student, student_cfg_class

EVERY = torch.arange(3)


def linear(weight: torch.Tensor, **options) -> StudentPolicy:
    """A policy without hidden layers: its mean, or its scores, are weight @ obs."""
    policy = StudentPolicy(weight.shape[1], 1 if "num_choices" in options else weight.shape[0], (), **options)
    with torch.no_grad():
        policy.mean.weight.copy_(weight)
    return policy


def test_the_saliency_of_a_linear_policy_is_the_norm_of_its_columns():
    """Columns (3, 4), (0, 1) and (0, 0) have norms 5, 1 and 0, for each observation alike."""
    policy = linear(torch.tensor([[3.0, 0.0, 0.0], [4.0, 1.0, 0.0]]))
    output, _ = SalientTeacher(policy, EVERY).step(torch.randn(4, 3), None)
    assert torch.allclose(output.saliency, torch.tensor([5.0, 1.0, 0.0]).expand(4, 3), atol=1e-5)
    together, _ = SalientTeacher(policy, EVERY[[2, 0]]).sequence(torch.randn(2, 4, 3), None, None)
    assert together.saliency.shape == (2, 4, 2)
    assert torch.allclose(together.saliency, torch.tensor([0.0, 5.0]).expand(2, 4, 2), atol=1e-5)


def test_what_all_choices_have_in_common_is_not_salient():
    """Scores (a + b, a - b): the first observation changes both alike, only the second one decides."""
    policy = linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), num_choices=2)
    output, _ = SalientTeacher(policy, torch.arange(2)).step(torch.randn(4, 2), None)
    assert torch.allclose(output.saliency, torch.tensor([0.0, 2.0**0.5]).expand(4, 2), atol=1e-5)


def test_the_saliency_of_a_network_is_that_of_finite_differences():
    """The norm over actions of central differences, in float64."""
    torch.manual_seed(0)
    policy = StudentPolicy(3, 2, (16,), activation="tanh").double()
    obs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    found = action_saliency(policy.step(obs)[0], obs, EVERY, create_graph=False)
    for column in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[column] = 1e-6
        slope = (policy(obs + step) - policy(obs - step)) / 2e-6
        assert torch.allclose(found[:, column], slope.norm(dim=-1), atol=1e-7)


def test_attention_is_the_distance_of_directions():
    """(3, 4) and (6, 8) look at the same; (1, 0) and (0, 1) at nothing in common: 2."""
    params = LossParams()
    maps = [PolicyOutput(torch.zeros(1, 1), saliency=torch.tensor([pair])) for pair in ([3.0, 4.0], [6.0, 8.0])]
    assert loss_spec("attention").function(maps[0], maps[1], params).item() == pytest.approx(0.0, abs=1e-12)
    maps = [PolicyOutput(torch.zeros(1, 1), saliency=torch.tensor([pair])) for pair in ([1.0, 0.0], [0.0, 1.0])]
    assert loss_spec("attention").function(maps[0], maps[1], params).item() == pytest.approx(2.0)


def made(auxiliary: float = 1.0) -> tuple[Learner, StudentPolicy, DistillationDataset]:
    """A learner and its teacher of three observations, of which the first is 100 times as wide as the others."""
    torch.manual_seed(0)
    teacher = StudentPolicy(3, 2, (16,), activation="tanh").requires_grad_(False)
    salient = SalientTeacher(teacher, EVERY)
    cfg = DistillationCfg(batch_size=64, learning_rate=1e-2, loss=LossCfg("mse", auxiliary={"attention": auxiliary}))
    learner = Learner(StudentPolicy(3, 2, (16,)), cfg, 1)
    dataset = DistillationDataset(BufferSpec(3, 64, 10_000, {"mean": 2, "saliency": 3}, chunk_steps=8))
    for _ in range(8):
        dataset.begin_chunk()
        for step in range(8):
            obs = torch.randn(64, 3) * torch.tensor([1.0, 0.5, 2.0])
            dataset.write(step, obs, salient.step(obs, None)[0], torch.zeros(64, dtype=torch.bool))
        dataset.commit_chunk()
    learner.fit_normalizer(dataset.chunk_obs(0))
    student, label = learner.student.step(torch.zeros(1, 3))[0], salient.step(torch.zeros(1, 3), None)[0]
    learner.prepare(student, label, RunFacts(shared_columns=EVERY))
    return learner, teacher, dataset


def test_the_student_learns_to_look_where_the_teacher_looks():
    """The held-out attention error falls more than five times; the teacher has no gradient and does not change."""
    learner, teacher, dataset = made()
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    before = held_out_loss(learner, dataset, 0)
    for epoch in range(30):
        learner.learn(dataset, 1024, epoch)
    after = held_out_loss(learner, dataset, 29)
    assert after["attention"] < before["attention"] / 5.0 and after["mse"] < before["mse"] / 5.0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(kept[name], value) for name, value in teacher.state_dict().items())


def test_the_gradient_of_attention_is_that_of_finite_differences():
    """Second derivatives of the student, in float64, for weights of both layers."""
    learner, _, dataset = made()
    student = learner.student.double()
    rows = dataset.rows[0, 0].double()
    targets = PolicyOutput(**{name: rows[:, part] for name, part in dataset.columns.items() if name != "obs"})
    batch = Batch(rows[:, dataset.columns["obs"]], targets)

    def loss() -> torch.Tensor:
        objective = learner.objective
        return objective.per_sample(objective.outputs(student, batch), targets, objective.loss_params(0))[1].mean()

    loss().backward()
    for parameter in (student.mean.weight, student.body[0].weight):
        assert parameter.grad is not None
        flat = parameter.data.view(-1)
        for index in range(0, len(flat), 7):
            kept = flat[index].item()
            flat[index] = kept + 1e-6
            above = loss().item()
            flat[index] = kept - 1e-6
            below = loss().item()
            flat[index] = kept
            assert parameter.grad.view(-1)[index].item() == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-8)


def test_the_observations_that_both_see_are_those_of_the_groups_in_common():
    """Groups in another order, a cut of them, and none in common."""
    obs = TensorDict({"a": torch.zeros(2, 2), "b": torch.zeros(2, 3), "c": torch.zeros(2, 1)}, [2])
    own, theirs = shared_columns(ObsSelector(["b", "c"]), ObsSelector(["a", "b"]), obs, torch.device("cpu"))
    assert own.tolist() == [0, 1, 2] and theirs.tolist() == [2, 3, 4]
    own, theirs = shared_columns(ObsSelector(["a", "b"], [1, 4]), ObsSelector(["b", "a"]), obs, torch.device("cpu"))
    assert own.tolist() == [0, 1, 2] and theirs.tolist() == [4, 0, 1]
    with pytest.raises(UserError, match="the student reads c while the teacher reads a, b: give them a group in"):
        shared_columns(ObsSelector(["c"]), ObsSelector(["a", "b"]), obs, torch.device("cpu"))


def test_policies_without_a_saliency_are_refused():
    """A student with memory, a run without its teacher, a teacher that gives no gradient: one line each."""
    cfg = DistillationCfg(loss=LossCfg("mse", auxiliary={"attention": 0.1}))
    label = PolicyOutput(torch.zeros(1, 2), saliency=torch.zeros(1, 3))
    for student, words in ((make_student(student_cfg_class("gru")(), 3, 2), "without memory"),
                           (StudentPolicy(3, 2), "--offline has none")):  # fmt: skip
        learner = Learner(student, cfg, 1)
        with pytest.raises(UserError, match=words):
            learner.prepare(student.step(torch.zeros(1, 3))[0], label)

    class Fixed(StudentPolicy):
        def run(self, obs, state, resets, sequence):
            return PolicyOutput(torch.zeros(len(obs), 2)), None

    with pytest.raises(UserError, match=r"reads the gradient of the teacher's action .* this teacher has none"):
        SalientTeacher(Fixed(3, 2), EVERY).step(torch.zeros(1, 3), None)
