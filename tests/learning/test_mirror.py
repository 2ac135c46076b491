"""Augmentation by a mirror: minibatches with their image, labels of every kind, and functions that are none."""

from __future__ import annotations

import pytest
import torch
from linear_teacher import filled

from foundation.config.distillation_cfg import DatasetCfg, DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.dataset.transition import Batch
from foundation.learning.learner import Learner
from foundation.learning.mirror import Mirror
from foundation.learning.objective import RunFacts
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy, make_student, student_cfg_class

SIGNS = torch.tensor([1.0, -1.0, 1.0])


def exchange(obs, actions):
    """Change the sign of the second observation; exchange the two actions and their signs."""
    return {"policy": obs["policy"] * SIGNS.to(obs["policy"])}, -actions.flip(-1)


def choices(obs, actions):
    """Exchange the choices 0 and 2 of three."""
    return {"policy": obs["policy"] * SIGNS}, 2.0 - actions


def cut(obs, actions):
    """Lose a column."""
    return {"policy": obs["policy"][:, 1:]}, actions


def cut_actions(obs, actions):
    """Lose an action."""
    return obs, actions[:, :1]


def nothing(obs, actions):
    """Lose the group."""
    return {}, actions


def turn(obs, actions):
    """A shift of the columns: three times is nothing, twice is not."""
    return {"policy": obs["policy"].roll(1, dims=-1)}, actions


def scale(obs, actions):
    """Exchange two actions of different units."""
    return obs, actions.flip(-1) * torch.tensor([2.0, 0.5])


def fail(obs, actions):
    """Ask for a group that is not there."""
    return {"policy": obs["camera"]}, actions


def mirror(function, teacher: PolicyOutput) -> Mirror:
    return Mirror(f"{__name__}:{function.__name__}", {"policy": 3}, teacher)


def test_a_minibatch_has_its_image_beside_it():
    """Means by hand; deviations without signs; alphas and betas exchanged with the sign; values as they are."""
    mean, std = torch.tensor([[0.1, 0.7]]), torch.tensor([[0.2, 0.3]])
    wide = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    targets = PolicyOutput(mean, std, torch.tensor([[5.0]]), pre_tanh=torch.cat([mean, std], -1), concentration=wide)
    batch = Batch(torch.tensor([[1.0, 2.0, 3.0]]), targets, torch.tensor([0.5]))
    found = mirror(exchange, targets).doubled(batch)
    assert found.obs.tolist() == [[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]]
    assert torch.allclose(found.targets.mean, torch.tensor([[0.1, 0.7], [-0.7, -0.1]]))
    assert torch.allclose(found.targets.std, torch.tensor([[0.2, 0.3], [0.3, 0.2]]))
    assert found.targets.value.tolist() == [[5.0], [5.0]] and found.weights.tolist() == [0.5, 0.5]
    assert torch.allclose(found.targets.pre_tanh[1], torch.tensor([-0.7, -0.1, 0.3, 0.2]))
    assert torch.allclose(found.targets.concentration[1], torch.tensor([4.0, 3.0, 2.0, 1.0]))


def test_choices_are_exchanged_with_their_values():
    """The Q-value of a choice in a state is that of its counterpart in the mirrored state."""
    targets = PolicyOutput(torch.tensor([[0.0]]), logits=torch.tensor([[9.0, 5.0, 1.0]]))
    found = mirror(choices, targets).doubled(Batch(torch.ones(1, 3), targets))
    assert found.targets.logits.tolist() == [[9.0, 5.0, 1.0], [1.0, 5.0, 9.0]]
    assert found.targets.mean.tolist() == [[0.0], [2.0]]


def test_a_mirrored_sequence_keeps_its_steps():
    """Sequences stand side by side: (steps, 2 * batch), with the resets of the original."""
    targets = PolicyOutput(torch.randn(4, 2, 2))
    resets = torch.zeros(4, 2, dtype=torch.bool)
    found = mirror(exchange, targets).doubled(Batch(torch.randn(4, 2, 3), targets, resets=resets))
    assert found.obs.shape == (4, 4, 3) and found.resets.shape == (4, 4)
    assert torch.equal(found.obs[:, 2:, 1], -found.obs[:, :2, 1])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (cut, r"changes shapes: group 'policy' was \(2, 3\) and is \(2, 2\)"),
        (cut_actions, r"changes shapes: the actions were \(2, 2\) and are \(2, 1\)"),
        (nothing, "changes shapes: group 'policy' was .* and is nothing"),
        (turn, "is no mirror: done twice it changes policy"),
        (scale, "must exchange actions and change their signs"),
        (fail, "fails: .*camera"),
    ],
)
def test_what_is_no_mirror_is_one_line(function, words):
    """It names the function and what is wrong with it."""
    with pytest.raises(UserError, match=rf"distill.augment={__name__}:{function.__name__} {words}") as caught:
        mirror(function, PolicyOutput(torch.zeros(1, 2)))
    assert "\n" not in str(caught.value)


def test_the_student_learns_the_symmetry():
    """Of a teacher that breaks it, the symmetric part is learned: student and mirrored student agree."""
    torch.manual_seed(0)
    cfg = DistillationCfg(batch_size=64, learning_rate=1e-2, augment=f"{__name__}:exchange")
    learner = Learner(StudentPolicy(3, 2, hidden_dims=(32,)), cfg, 1)
    learner.prepare(
        learner.student.step(torch.zeros(1, 3))[0], PolicyOutput(torch.zeros(1, 2)), RunFacts({"policy": 3})
    )
    dataset = filled(8)
    for epoch in range(60):
        learner.learn(dataset, 512, epoch)
    obs = dataset.rows[:8, ..., :3].reshape(-1, 3)
    with torch.no_grad():
        mirrored, expected = exchange({"policy": obs}, learner.student(obs))
        difference = (learner.student(mirrored["policy"]) - expected).square().mean().sqrt()
        spread = expected.std()
    assert difference < 0.1 * spread


def test_what_cannot_be_mirrored_is_refused():
    """Features, a cut of the observations, and stored memory: one line each."""
    name = f"{__name__}:exchange"
    teacher = PolicyOutput(torch.zeros(1, 2), features=torch.zeros(1, 4))

    def prepare(cfg: DistillationCfg, student=None, length: int = 1) -> None:
        learner = Learner(student or StudentPolicy(3, 2), cfg, length)
        learner.prepare(learner.student.step(torch.zeros(1, 3), None)[0], teacher, RunFacts({"policy": 3}))

    with pytest.raises(UserError, match="cannot mirror what loss 'feature' reads"):
        prepare(DistillationCfg(augment=name, loss=LossCfg("mse", auxiliary={"feature": 0.1})))
    cfg = DistillationCfg(augment=name)
    cfg.student.obs_slice = [0, 3]
    with pytest.raises(UserError, match=r"unset distill.student.obs_slice"):
        prepare(cfg)
    gru = make_student(student_cfg_class("gru")(), 3, 2)
    with pytest.raises(UserError, match=r"set distill.dataset.sequence_start=zero"):
        prepare(DistillationCfg(augment=name), gru, 10)
    prepare(DistillationCfg(augment=name, dataset=DatasetCfg(sequence_start="zero")), gru, 10)
