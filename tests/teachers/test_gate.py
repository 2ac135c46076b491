"""Targets of several teachers weighted by a gate."""

from __future__ import annotations

import many_teachers
import pytest
import torch

from foundation.config.distillation_cfg import GateCfg
from foundation.core.errors import UserError
from foundation.policies.output import PolicyOutput
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.combine import combine
from foundation.teachers.ensemble import load_ensemble
from foundation.teachers.gate import TeacherGate
from foundation.teachers.manifest import find_teachers


def two(tmp_path, **options):
    return find_teachers([str(many_teachers.write_mlp(tmp_path / f"{n}.pt", s, **options)) for s, n in enumerate("ab")])


def test_weights_are_the_softmax_of_the_values_and_a_low_temperature_takes_the_best():
    """Weights = softmax(values / temperature), by hand; at 0.01 the best teacher has all the weight."""
    gates = [TeacherGate(1, 2, GateCfg(hidden_dims=[], temperature=t)) for t in (2.0, 0.01)]
    for gate in gates:
        gate.network.load_state_dict({"0.weight": torch.tensor([[1.0], [-1.0]]), "0.bias": torch.tensor([0.0, 3.0])})
    obs = torch.tensor([[0.5], [2.5]])
    expected = torch.sigmoid((2.0 * obs - 3.0) / 2.0)
    torch.testing.assert_close(gates[0](obs), torch.cat([expected, 1.0 - expected], dim=1))
    torch.testing.assert_close(gates[1](obs), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_the_target_is_the_weighted_mean_row_by_row():
    """Two teachers, two rows, weights (1/4, 3/4) and (1, 0): mean, mixture deviation and value computed by hand."""
    mean = torch.tensor([[[0.0], [1.0]], [[4.0], [9.0]]])
    output = PolicyOutput(mean, torch.ones(2, 2, 1), value=torch.tensor([[[8.0], [5.0]], [[0.0], [7.0]]]))
    result = combine(output, "gate", gate=torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert result.mean.tolist() == [[3.0], [1.0]]
    torch.testing.assert_close(result.std, torch.tensor([[(1.0 + 0.25 * 9.0 + 0.75 * 1.0) ** 0.5], [1.0]]))
    assert result.value is not None and result.value.tolist() == [[2.0], [5.0]]


def test_before_it_is_fitted_all_count_alike(tmp_path):
    """The gated target of a fresh ensemble is the mean's."""
    entries, obs = two(tmp_path), torch.randn(7, 26)
    torch.testing.assert_close(load_ensemble(entries, mode="gate")(obs), load_ensemble(entries, mode="mean")(obs))


@pytest.mark.parametrize("rnn", [None, "gru"])
def test_every_teacher_remembers_every_row_whoever_counts(tmp_path, rnn):
    """Steps, a sequence with resets, and the formula over teachers asked alone give the same, with a biased gate."""
    entries = two(tmp_path, rnn=rnn)
    ensemble = load_ensemble(entries, mode="gate", gate=GateCfg(hidden_dims=[8], temperature=1.0))
    assert ensemble.gate is not None
    torch.nn.init.normal_(ensemble.gate.network[-1].weight, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    obs, resets = torch.randn(5, 6, 26, generator=generator), torch.rand(5, 6, generator=generator) < 0.3
    together, _ = ensemble.sequence(obs, None, resets)
    singles, states = [TeacherPolicyWrapper(entry.checkpoint) for entry in entries], [None, None]
    for t in range(5):
        alone = []
        for index, single in enumerate(singles):
            state = states[index] if states[index] is not None else single.initial_state(6)
            output, states[index] = single.step(obs[t], single.reset_state(state, resets[t]))
            alone.append(output.mean)
        weights = ensemble.gate(obs[t])
        assert float((weights[:, 0] - 0.5).abs().max()) > 0.05
        wanted = weights[:, :1] * alone[0] + weights[:, 1:] * alone[1]
        torch.testing.assert_close(together.mean[t], wanted, rtol=1e-5, atol=1e-6)


def test_one_teacher_is_refused(tmp_path):
    """A set of one teacher has nothing to weigh, and is told so by name."""
    with pytest.raises(UserError, match="combine=gate weighs several teachers: 'a' is the only one"):
        load_ensemble(two(tmp_path)[:1], mode="gate")
