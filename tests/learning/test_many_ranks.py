"""Learning in several processes equals learning in one on the union of their data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_teacher import GAIN, filled
from ranks import on_ranks

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import ALONE, Ranks
from foundation.dataset.moments import moments_of, target_sums
from foundation.dataset.transition import Batch
from foundation.learning.learner import Learner
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy, make_student, student_cfg_class

SAMPLES = 48
STEPS = 6
"""Of a sequence."""
CASES = ("plain", "weighted", "gru")


def config(case: str) -> DistillationCfg:
    """Return a config with everything that acts on a gradient: momentum by Adam, decay, clipping."""
    cfg = DistillationCfg(learning_rate=1e-2, n_epochs=10)
    cfg.optimizer.max_grad_norm = 0.5
    cfg.optimizer.weight_decay = 1e-3
    cfg.dataset.burn_in = 2 if case == "gru" else 0
    cfg.optimizer.compile = case == "compiled"
    return cfg


def learner_of(case: str, ranks: Ranks, seed: int) -> Learner:
    """Return a learner whose student's weights are drawn by a seed."""
    torch.manual_seed(seed)
    if case == "gru":
        cfg = student_cfg_class("gru")()
        cfg.hidden_size = 5
        student = make_student(cfg, 3, 2)
    else:
        student = StudentPolicy(3, 2, hidden_dims=(16,))
    learner = Learner(student, config(case), STEPS if case == "gru" else 1, ranks)
    obs = torch.zeros(1, 3)
    learner.prepare(student.step(obs, student.initial_state(1, "cpu"))[0], PolicyOutput(obs @ GAIN))
    return learner


def batches(case: str) -> list[Batch]:
    """Return three batches of all processes together, other numbers in each."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(3):
        shape = (STEPS, SAMPLES) if case == "gru" else (SAMPLES,)
        obs = torch.randn(*shape, 3, generator=generator)
        weighted = case in ("weighted", "compiled")
        weights = torch.rand(shape, generator=generator).square() if weighted else None
        resets = torch.rand(shape, generator=generator) < 0.2 if case == "gru" else None
        target = PolicyOutput(obs @ GAIN + 0.1 * torch.randn(*shape, 2, generator=generator))
        found.append(Batch(obs, target, weights, resets, None))
    return found


def part_of(batch: Batch, rank: int, world_size: int) -> Batch:
    """Return a process's part of a batch: its neighbours in the last dimension but that of the numbers."""
    each = SAMPLES // world_size
    own = slice(rank * each, (rank + 1) * each)
    return Batch(
        batch.obs[..., own, :],
        PolicyOutput(batch.targets.mean[..., own, :]),
        None if batch.weights is None else batch.weights[..., own],
        None if batch.resets is None else batch.resets[..., own],
        None,
    )


def steps(ranks: Ranks, case: str) -> dict[str, Any]:
    """Take three steps; return the losses and the student after them, which began with weights of the rank."""
    if case == "compiled":  # traced and differentiated by the compiler, without the minute of C++
        torch.compile = functools.partial(torch.compile, backend="aot_eager")  # in a process of the test's own
    learner = learner_of(case, ranks, seed=ranks.rank)
    params = learner.objective.loss_params(0)
    parts = [part_of(batch, ranks.rank, ranks.world_size) for batch in batches(case)]
    losses = torch.cat([learner._update(part, params, [1.0]) for part in parts])
    return {"losses": ranks.mean_(losses), **learner.student.state_dict()}


def check_steps(number: int, case: str, folder: Path) -> None:
    """Compare processes with each other, bit for bit, and with one process to 1e-6."""
    results = on_ranks(steps, number, folder, case)
    alone = steps(ALONE, "weighted" if case == "compiled" else case)
    start = learner_of(case, ALONE, seed=0).student.state_dict()
    assert any((alone[name] - start[name]).abs().max() > 1e-3 for name in start if "weight" in name)
    for name, expected in alone.items():
        for result in results:
            assert torch.equal(result[name], results[0][name]), name
        torch.testing.assert_close(results[0][name], expected, rtol=0.0, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_step_of_one(case: str, tmp_path: Path) -> None:
    """Halves of a batch in two processes: three steps as those of one process on the whole, to 1e-6."""
    check_steps(2, case, tmp_path)


@pytest.mark.slow
def test_two_compiled_processes_take_the_step_of_one_that_is_not(tmp_path: Path) -> None:
    """With ``optimizer.compile``, and weights of samples that count over both: the sum is not compiled away."""
    check_steps(2, "compiled", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_four_processes_take_the_step_of_one(case: str, tmp_path: Path) -> None:
    """The same with quarters."""
    check_steps(4, case, tmp_path)


def observations() -> list[list[torch.Tensor]]:
    """Return the observations of two processes: other numbers of parts, sizes, means and spreads."""
    generator = torch.Generator().manual_seed(5)

    def draw(rows: int, mean: float, std: float) -> torch.Tensor:
        values = mean + std * torch.randn(rows, 3, generator=generator)
        values[:, 2] = 4.0  # never varies
        return values

    return [[draw(7, 0.0, 1.0), draw(100, 5.0, 0.1)], [draw(31, -3.0, 4.0)]]


def fit(ranks: Ranks) -> dict[str, Any]:
    """Fit the normaliser twice, then look at observations of which one column varies in the last process alone."""
    learner = learner_of("plain", ranks, seed=0)
    for _ in range(2):
        learner.fit_normalizer_to(observations()[ranks.rank])
    fitted = {name: tensor.clone() for name, tensor in learner.student.normalizer.state_dict().items()}
    dataset = filled(1)
    dataset.rows[0, :, :, 2] = 4.0 if ranks.is_first else 400.0
    learner.watch_normalizer(dataset, [])
    learner.watch_normalizer(dataset, [0])
    return {"fitted": fitted, "watched": learner.student.normalizer.state_dict()}


def test_the_normaliser_is_that_of_all_observations(tmp_path: Path) -> None:
    """Mean and variance of the union, the same bits in both; a column that varies in one is rescaled in both."""
    first, second = on_ranks(fit, 2, tmp_path)
    rows = torch.cat([part for parts in observations() for part in parts]).double()
    for name in ("mean", "var", "count"):
        assert torch.equal(first["fitted"][name], second["fitted"][name])
        assert torch.equal(first["watched"][name], second["watched"][name])
    assert first["fitted"]["count"] == 2 * len(rows)
    torch.testing.assert_close(first["fitted"]["mean"], rows.mean(0).float())
    expected = rows.var(0, correction=0).float()
    expected[2] = ObsNormalizer(3).placeholder
    torch.testing.assert_close(first["fitted"]["var"], expected)
    assert first["watched"]["var"][2] == pytest.approx(396.0**2)


def test_moments_of_several_datasets_are_those_of_their_union() -> None:
    """Mean and standard deviation of a target over datasets of other sizes, an empty one among them."""
    datasets = [filled(chunks) for chunks in (1, 0, 3)]
    datasets[2].rows[:3] += 2.0
    mean, std = moments_of([target_sums(dataset, "mean") for dataset in datasets])
    values = torch.cat([dataset.column("mean")[: dataset.num_chunks].flatten(0, 2) for dataset in datasets]).double()
    torch.testing.assert_close(mean, values.mean(0))
    torch.testing.assert_close(std, values.std(0, correction=0))
