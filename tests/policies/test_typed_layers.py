"""Typed layers: what an exporter goes through computes what the policy computes."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import torch
from numpy_policy import NumpyPolicy, check_layers
from torch import nn

from foundation.core.errors import UserError
from foundation.policies import layers as kinds
from foundation.policies.distribution import Beta, Choices, Gaussian, Heteroscedastic, ShapedActions, SquashedGaussian
from foundation.policies.layers import OBS, Dense, Layers, Recurrent, Window
from foundation.policies.mlp import activation_names, resolve_activation
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.scaling import Factor
from foundation.students import make_student, student_cfg_class, student_names

OBS_SIZE, ACTIONS = 7, 3
OPTIONS = (
    {},
    {"stochastic": True, "value_head": True},
    {"stochastic": True, "state_dependent_std": True, "activation": "gelu"},
    {"distribution": "tanh"},
    {"num_layers": 2, "learn_initial_state": True, "hidden_dims": [8], "encoder_dims": []},
    {"length": 1},
    {"kernel_size": 3, "channels": [6, 5], "hidden_dims": []},
)


def students():
    """Return every student with every set of options that it has."""
    found = []
    torch.manual_seed(0)
    for name in student_names():
        cfg_class = student_cfg_class(name)
        known = {field.name for field in dataclasses.fields(cfg_class)}
        for index, options in enumerate(OPTIONS):
            if set(options) <= known:
                student = make_student(cfg_class(**options), OBS_SIZE, ACTIONS)
                with torch.no_grad():
                    for parameter in student.parameters():
                        parameter.normal_(0.0, 0.3)
                student.normalizer.update(torch.randn(200, OBS_SIZE) * 3 + 1)
                found.append(pytest.param(student, id=f"{name}-{index}"))
    return found


@pytest.mark.parametrize("student", students())
def test_students(student):
    """Every student's layers equal its steps in all outputs and in the state, resets of part of the envs included."""
    check_layers(student)


def test_a_discrete_student():
    """The action of a discrete student is the index of the best of its logits."""
    student = make_student(student_cfg_class("gru")(num_choices=4), OBS_SIZE, 1)
    layers = check_layers(student)
    assert layers.outputs["mean"] == "choice" and layers.outputs["logits"] == "mean"


def test_what_an_exporter_reads_of_a_student():
    """RAPTOR's student is a normaliser, 22-16, GRU 16 and 16-4: kinds, sizes, names and the columns of its state."""
    student = make_student(student_cfg_class("gru")(value_head=True), 22, 4)
    layers = student.layers()
    acting = layers.needed_for("mean")
    assert [type(layer).__name__ for layer in acting] == ["Normalize", "Dense", "Activation", "Recurrent", "Dense"]
    assert [layer.size for layer in acting] == [22, 16, 16, 16, 4]
    assert [layer.name for layer in acting] == ["normalizer", "encoder.0", "encoder.1", "core.0", "mean"]
    assert len(layers) == 6 and layers.state_size == 16
    recurrent = acting[3]
    assert isinstance(recurrent, Recurrent) and [(m.start, m.size) for m in recurrent.memory] == [(0, 16)]
    dense = acting[1]
    assert isinstance(dense, Dense) and torch.equal(dense.weight, student.state_dict()["encoder.0.weight"])


def test_an_lstms_columns():
    """Two LSTM layers share the state as RecurrentCore packs it: h of both, then c of both."""
    layers = make_student(student_cfg_class("lstm")(num_layers=2, hidden_size=3), 5, 2).layers()
    columns = [[(m.start, m.size) for m in layer.memory] for layer in layers if layer.memory]
    assert columns == [[(0, 3), (6, 3)], [(3, 3), (9, 3)]]


def test_a_windows_columns():
    """A history of 4 steps remembers 3 observations and gives 4."""
    layers = make_student(student_cfg_class("history")(length=4), 5, 2).layers()
    (window,) = [layer for layer in layers if isinstance(layer, Window)]
    assert (window.size, window.memory[0].size, layers.state_size) == (20, 15, 15)


@pytest.mark.parametrize("name", activation_names())
def test_activations(name):
    """Every activation that a config may name has its formula, with PyTorch's constants."""
    layers = Layers(6)
    layers.outputs["mean"] = layers.module(resolve_activation(name), OBS, "activation")
    obs = torch.randn(50, 6) * 3
    found = NumpyPolicy(layers).step(obs, numpy.zeros((50, 0)))[0]["mean"]
    assert numpy.abs(resolve_activation(name)(obs).numpy() - found).max() <= 1e-5


@pytest.mark.parametrize(
    "distribution",
    [
        Gaussian(torch.tensor([0.5, 2.0])),
        Heteroscedastic(True, (0.1, 3.0)),
        Heteroscedastic(False, (0.1, 3.0)),
        Heteroscedastic(None, (0.1, 3.0)),
        Beta((-2.0, 4.0)),
        SquashedGaussian((-2.0, 1.0)),
        Choices(q_values=True),
        ShapedActions(
            Gaussian(torch.tensor([0.5, 2.0])),
            nn.Sequential(nn.Hardtanh(-2.0, 2.0), Factor(0.7), nn.Tanh()),
            (torch.tensor([-0.5, -1.0]), torch.tensor([0.5, 0.2])),
            torch.tensor([2.0, 3.0]),
            torch.tensor([-1.0, 1.0]),
        ),
    ],
    ids=lambda distribution: distribution.name,
)
def test_distributions(distribution):
    """Mean and deviation of every distribution, squashed, clipped and brought to a range too."""
    raw = torch.randn(30, 2 * distribution.outputs_per_action) * 2
    layers = Layers(raw.shape[1])
    layers.set_moments(distribution.list_layers(layers, OBS))
    found = NumpyPolicy(layers).step(raw, numpy.zeros((30, 0)))[0]
    mean, std = distribution(raw)
    assert numpy.abs(mean.numpy() - found["mean"]).max() <= 1e-5
    assert ("std" in found) == (std is not None)
    if std is not None:
        assert numpy.abs(std.numpy() - found["std"]).max() <= 1e-5


def test_a_module_of_an_unknown_kind_is_named():
    """A layer that has no typed form is refused with its name, class and what to add."""
    with pytest.raises(UserError, match=r"'body.1' is a Softmax.*list_layers"):
        Layers(3).module(nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=-1)), OBS, "body")


def test_a_policy_that_cannot_be_listed_says_so():
    """A policy without known layers, such as one that its own runtime runs, is refused."""
    policy = PolicyNetwork()
    policy.num_obs = 3
    with pytest.raises(UserError, match="layers of a PolicyNetwork are not known"):
        policy.layers()


def test_every_kind_of_layer_says_what_it_computes():
    """Each typed layer has a formula of its own in its docstring."""
    found = [kind for kind in vars(kinds).values() if isinstance(kind, type) and issubclass(kind, kinds.Layer)]
    assert len(found) > 15 and all("__doc__" in vars(kind) and kind.__doc__ for kind in found)
