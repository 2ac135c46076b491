"""Bare state_dicts and exports whose outputs the user names, against the network that wrote them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

OBS, CHOICES = 6, 3


def network() -> nn.Sequential:
    """Return a small Q-network."""
    return nn.Sequential(nn.Linear(OBS, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, CHOICES))


class Named(nn.Module):
    """The same by attributes, as users write it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(OBS, 8), nn.Linear(8, 5), nn.Linear(5, CHOICES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


@pytest.mark.parametrize("make", [network, Named])
@pytest.mark.parametrize("entry", [None, "q_network", "model_state_dict"])
def test_a_q_network_is_read(make, entry, tmp_path):
    """The Q-values are those of the module that was saved, the action is the best choice, and a draw is that too."""
    torch.manual_seed(0)
    q = make()
    weights = q.state_dict()
    torch.save(weights if entry is None else {entry: weights, "epoch": 3}, tmp_path / "q.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "q.pt", outputs="q_values", activation="relu")
    obs = torch.randn(50, OBS)
    output = teacher.output(obs)
    assert torch.allclose(output.logits, q(obs), atol=1e-6)
    assert torch.equal(output.mean, q(obs).argmax(-1, keepdim=True).float())
    assert torch.equal(teacher.sample(output), output.mean)
    assert (teacher.num_choices, teacher.num_actions, teacher.num_obs) == (CHOICES, 1, OBS)


def test_logits_are_drawn_from_and_means_are_actions(tmp_path):
    """As logits the outputs are a categorical distribution; as means they are continuous actions."""
    torch.manual_seed(0)
    q = network()
    torch.save(q.state_dict(), tmp_path / "q.pt")
    obs = torch.randn(1, OBS)
    policy = TeacherPolicyWrapper(tmp_path / "q.pt", outputs="logits", activation="relu")
    drawn = policy.sample(policy.output(obs.expand(20_000, -1))).long().flatten()
    share = torch.bincount(drawn, minlength=CHOICES) / len(drawn)
    assert torch.allclose(share, q(obs)[0].softmax(-1), atol=0.02)
    policy = TeacherPolicyWrapper(tmp_path / "q.pt", outputs="mean", activation="relu")
    assert torch.allclose(policy.act(obs), q(obs), atol=1e-6) and policy.num_choices is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, r"\(6 -> 8 -> 5 -> 3\): give distill\.teacher\.outputs=q_values\|logits\|mean and --teacher_activation"),
        ({"activation": "relu"}, r"give distill\.teacher\.outputs=q_values\|logits\|mean\. Export"),
        ({"outputs": "q_values"}, r"give --teacher_activation relu"),
        ({"outputs": "q"}, r"distill\.teacher\.outputs must be q_values, logits or mean, got 'q'"),
    ],
)
def test_nothing_is_guessed(given, says, tmp_path):
    """The meaning of the outputs and the activation are asked for, in one line."""
    torch.save(network().state_dict(), tmp_path / "q.pt")
    with pytest.raises(UserError, match=says) as error:
        TeacherPolicyWrapper(tmp_path / "q.pt", **given)
    assert "\n" not in str(error.value)


def test_a_categorical_fork_of_rsl_rl(tmp_path):
    """An actor without deviation in RSL-RL's layout gives logits where the user says so."""
    actor = network()
    weights = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    torch.save({"model_state_dict": weights, "iter": 1}, tmp_path / "model_1.pt")
    obs = torch.randn(5, OBS)
    policy = TeacherPolicyWrapper(tmp_path / "model_1.pt", outputs="logits", activation="relu")
    assert torch.allclose(policy.output(obs).logits, actor(obs), atol=1e-6)
    assert policy.num_choices == CHOICES


def test_a_deviation_contradicts_choices(tmp_path):
    """A file whose actions are Gaussian is not read as Q-values."""
    weights = {f"actor.{name}": value for name, value in network().state_dict().items()}
    torch.save({"model_state_dict": weights | {"std": torch.ones(CHOICES)}}, tmp_path / "model_1.pt")
    with pytest.raises(UserError, match=r"states its outputs itself \(gaussian\).*leave it out"):
        TeacherPolicyWrapper(tmp_path / "model_1.pt", outputs="q_values", activation="relu")


@pytest.mark.parametrize("as_is", [False, True])
def test_an_exported_q_network(as_is, tmp_path):
    """A TorchScript export, read by its layers or run as it is, gives Q-values where the user says so."""
    torch.manual_seed(1)
    q = network()
    torch.jit.script(q).save(str(tmp_path / "policy.pt"))
    policy = TeacherPolicyWrapper(tmp_path / "policy.pt", outputs="q_values", run_as_is=as_is)
    obs = torch.randn(7, 4, OBS)
    output, _ = policy.sequence(obs)
    assert torch.allclose(output.logits, q(obs), atol=1e-6)
    assert torch.equal(output.mean, q(obs).argmax(-1, keepdim=True).float())
    assert policy.num_choices == CHOICES
