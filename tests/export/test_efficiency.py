"""Cost of a policy: counts by hand, and that times are of what was asked for."""

from __future__ import annotations

import pytest
from tiny_runs import write_teacher

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.export import efficiency
from foundation.export.efficiency import efficiency_figures, time_steps


def test_parameters_bytes_and_operations_of_a_small_network(tmp_path):
    """26-24-24-4: weights 26*24 + 24*24 + 24*4, biases 24 + 24 + 4, and a deviation for each of four actions."""
    network = load_policy(write_teacher(tmp_path / "model.pt"), Overrides()).network
    figures = efficiency_figures(network, [1, 32, 1], steps=5)
    products = 26 * 24 + 24 * 24 + 24 * 4
    assert figures["flops"] == 2 * products
    assert figures["parameters"] in (products + 52, products + 56)
    assert figures["bytes"] == 4 * figures["parameters"]
    times = [name for name in figures if "_us_" in name]
    assert times == ["p50_us_batch_1", "p99_us_batch_1", "p50_us_batch_32", "p99_us_batch_32"]
    assert all(0.0 < figures[f"p50_us_batch_{n}"] <= figures[f"p99_us_batch_{n}"] for n in (1, 32))


@pytest.mark.parametrize("steps", [1, 7])
def test_the_first_steps_are_not_timed(steps):
    """So many calls more than times."""
    calls = []
    assert len(time_steps(lambda: calls.append(0), steps, 3)) == steps
    assert len(calls) == steps + 3


def test_energy_is_the_counters_difference_by_the_steps(tmp_path, monkeypatch):
    """5,000 uJ in five steps are 1,000 a step; a counter that has begun anew in between tells nothing."""
    counter = iter([1000, 6000, 900_000, 20])
    monkeypatch.setattr(efficiency, "read_energy", lambda: next(counter))
    network = load_policy(write_teacher(tmp_path / "model.pt"), Overrides()).network
    figures = efficiency_figures(network, [1, 8], steps=5)
    assert figures["energy_uj_batch_1"] == 1000.0
    assert "energy_uj_batch_8" not in figures


def test_energy_is_unknown_where_the_machine_does_not_tell(tmp_path, monkeypatch):
    """The counter's number; None without a counter, and where it is not a number."""
    file = tmp_path / "energy_uj"
    monkeypatch.setattr(efficiency, "ENERGY", file)
    assert efficiency.read_energy() is None
    file.write_text("123456\n")
    assert efficiency.read_energy() == 123456
    file.write_text("no number")
    assert efficiency.read_energy() is None
