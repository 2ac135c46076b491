"""Low-rank adapters: no change at the start, the base stays, the sums are what is saved."""

from __future__ import annotations

import pytest
import torch
from finetune_toys import NEW, check_resumed_is_whole, config, make_runner, states_of, write_student
from torch import nn

from foundation.config.finetune_cfg import AdaptersCfg, FinetuneCfg, HeadsCfg, ProgressiveCfg, check_finetune
from foundation.core.errors import UserError
from foundation.ppo.adapters import add_adapters, load_merged, merged_state_dict
from foundation.students import StudentPolicy
from foundation.teachers import TeacherPolicyWrapper

STUDENTS = [
    ("mlp", {"hidden_dims": [8, 6]}),
    ("mlp", {"hidden_dims": [8], "state_dependent_std": True, "value_head": True}),
    ("gru", {"encoder_dims": [6], "hidden_size": 4, "hidden_dims": [5]}),
    ("lstm", {"encoder_dims": [], "hidden_size": 4}),
]


@pytest.mark.parametrize(("name", "options"), STUDENTS)
def test_training_changes_each_layer_by_the_rank_and_nothing_else(name, options, tmp_path):
    """The start is the policy to the bit; the saved difference of each dense layer has rank 2, of others none."""
    start = write_student(tmp_path / "s.pt", name, **options)
    runner = make_runner(tmp_path / "run", config(start, adapters=AdaptersCfg(rank=2)))
    obs = states_of(NEW).unflatten(0, (5, 10))
    assert torch.equal(runner.student.sequence(obs)[0].mean, TeacherPolicyWrapper(start).sequence(obs)[0].mean)
    runner.run()
    saved = torch.load(tmp_path / "run" / "final_student.pt", weights_only=True)
    before = torch.load(start, weights_only=True)
    assert saved["student"] == before["student"]
    changes = {key: value - before["model_state_dict"][key] for key, value in saved["model_state_dict"].items()}
    dense = {key for key, module in runner.student.named_modules() if isinstance(module, nn.Linear)} - {"value"}
    for key, change in changes.items():
        if key.removesuffix(".weight") in dense:
            rank = torch.linalg.matrix_rank(change.double(), atol=1e-6, rtol=0.0)
            assert change.abs().max() > 0 and rank <= 2, key
        else:
            assert torch.equal(change, torch.zeros_like(change)) == (key != "log_std"), key
    policy = TeacherPolicyWrapper(tmp_path / "run" / "final_student.pt")
    assert torch.equal(policy.sequence(obs)[0].mean, runner.student.sequence(obs)[0].mean)


def test_the_gradient_of_the_factors_is_that_of_the_weight_by_the_product_rule():
    """D up = scale * G down', d down = scale * up' G, with G the gradient of the merged weight."""
    student = StudentPolicy(3, 2, [], stochastic=True)
    add_adapters(student, AdaptersCfg(rank=2, scale=0.5), seed=0)
    addition = student.mean.parametrizations.weight[0]
    with torch.no_grad():
        addition.up.normal_()
    obs = torch.randn(7, 3)
    student(obs).square().sum().backward()
    by_weight = 2.0 * student(obs).T @ student.normalizer(obs)
    torch.testing.assert_close(addition.up.grad, 0.5 * by_weight @ addition.down.T)
    torch.testing.assert_close(addition.down.grad, 0.5 * addition.up.T @ by_weight)
    assert student.mean.parametrizations.weight.original.grad is None and student.mean.bias.grad is None
    merged = merged_state_dict(student)["mean.weight"]
    torch.testing.assert_close(
        merged, student.mean.parametrizations.weight.original + 0.5 * addition.up @ addition.down
    )
    other = StudentPolicy(3, 2, [], stochastic=True)
    add_adapters(other, AdaptersCfg(rank=1), seed=1)
    load_merged(other, merged_state_dict(student))
    assert torch.equal(other(obs), student(obs))


def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_bits(tmp_path):
    """The factors and not only their sums are resumed."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    values = {"kl_coef": 0.5, "max_iterations": 5, "adapters": AdaptersCfg(rank=2)}
    check_resumed_is_whole(tmp_path, config(start, **values))
    with pytest.raises(UserError, match="has other adapters"):
        make_runner(tmp_path / "half", config(start, kl_coef=0.5)).resume()


BAD = [
    ({"adapters": AdaptersCfg(rank=0)}, "finetune.adapters.rank is 0: it must be at least 1"),
    ({"adapters": AdaptersCfg(rank=2, scale=0.0)}, "finetune.adapters.scale is 0"),
    ({"adapters": AdaptersCfg(by_task=True)}, "give finetune.adapters.rank=8"),
    ({"adapters": AdaptersCfg(rank=2)}, "give --checkpoint PATH"),
    ({"heads": HeadsCfg(layers=-1)}, "finetune.heads.layers is -1"),
    ({"heads": HeadsCfg(layers=0), "adapters": AdaptersCfg(rank=2)}, "give one of them"),
    ({"progressive": ProgressiveCfg(init="random")}, "finetune.progressive.init is 'random'"),
    ({"task_columns": [3, 3]}, "it must be [a, b] with 0 <= a < b"),
]


@pytest.mark.parametrize(("values", "says"), BAD)
def test_settings_that_cannot_work_are_one_line(values, says):
    """The line names the key, the value, and what is allowed."""
    with pytest.raises(UserError) as error:
        check_finetune(FinetuneCfg(**values))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_rank_above_a_layers_size_is_one_line(tmp_path):
    """It names the layer and the largest rank."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    with pytest.raises(UserError, match=r"rank is 5, and the layer 'body.0' has 4 inputs .* at most 4"):
        make_runner(tmp_path / "run", config(start, adapters=AdaptersCfg(rank=5)))
