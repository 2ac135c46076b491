"""Students that learn with 8-bit weights."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn

from foundation.config.distillation_cfg import DistillationCfg, OptimizerCfg
from foundation.config.validate import validate
from foundation.core.errors import UserError
from foundation.export.c_int8 import quantise_rows
from foundation.learning.rounded_weights import RoundedWeights, round_rows


def test_rows_are_those_of_the_export():
    """A rounded row is what the export makes of it, and rounding it again changes nothing: all of it is 8 bits."""
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    rounded = round_rows(weight)
    rows = quantise_rows(weight.numpy())
    assert numpy.allclose(rounded.numpy(), rows.weight * rows.scale[:, None], atol=1e-6)
    assert torch.allclose(round_rows(rounded), rounded, atol=1e-7)
    assert (rounded - weight).abs().max() <= weight.abs().max() / 254 + 1e-6


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_steps_smaller_than_rounding_add_up(kind):
    """Float weights take each step from the gradient at the rounded ones; the module never holds others."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    weights = module.weight.detach().clone()
    rounded = RoundedWeights(module)
    optimizer = kind(module.parameters(), lr=1e-4)
    rounded.follow(optimizer)
    reference = nn.Linear(3, 2)
    reference.load_state_dict({"weight": weights, "bias": module.bias.detach().clone()})
    expected = kind(reference.parameters(), lr=1e-4)
    for _ in range(20):
        # A loss whose gradient does not depend on the weights: both take the same steps.
        for each, by in ((module, optimizer), (reference, expected)):
            by.zero_grad()
            each(torch.ones(1, 3)).sum().backward()
            by.step()
        assert torch.equal(module.weight, round_rows(rounded.weights["weight"]))
    assert torch.allclose(rounded.weights["weight"], reference.weight, atol=1e-6)
    assert not torch.equal(rounded.weights["weight"], weights)
    assert torch.allclose(module.bias, reference.bias)


def test_more_epochs_than_there_are():
    """One line where the epochs do not fit, or the run has no such end."""
    with pytest.raises(UserError, match="int8_epochs"):
        validate(DistillationCfg(n_epochs=5, epoch_teacher_forcing=1, optimizer=OptimizerCfg(int8_epochs=6)))
    with pytest.raises(UserError, match="leave out --multi_task"):
        validate(DistillationCfg(multi_task="tasks.yaml", optimizer=OptimizerCfg(int8_epochs=6)))
