"""Bounds in a run's params/agent.yaml: two numbers in order, or one line that names them."""

from __future__ import annotations

from pathlib import Path

import many_teachers
import pytest
import torch
import yaml

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper


def teacher(tmp_path: Path, std_range: object) -> TeacherPolicyWrapper:
    """A policy whose deviations are 0.5, beside a config with these bounds of them."""
    path = many_teachers.write_mlp(tmp_path / "model_1.pt", 1)
    saved = torch.load(path)
    saved["model_state_dict"]["std"].fill_(0.5)
    torch.save(saved, path)
    distribution = {"class_name": "GaussianDistribution", "std_range": std_range}
    agent = {"actor": {"activation": "elu", "distribution_cfg": distribution}}
    (tmp_path / "params" / "agent.yaml").write_text(yaml.safe_dump(agent))
    return TeacherPolicyWrapper(path)


@pytest.mark.parametrize(
    ("std_range", "std"),
    [
        ([0.1, 2.0], 0.5),
        ([0.7, 2.0], 0.7),
        (["1e-6", 0.2], 0.2),  # YAML 1.1 reads 1e-6 as text
        ([1, float("inf")], 1.0),
        (None, 0.5),
    ],
)
def test_deviations_are_held_to_the_configs_bounds(tmp_path: Path, std_range: object, std: float) -> None:
    """As RSL-RL's Gaussian clamps them; without bounds they are the file's."""
    output, _ = teacher(tmp_path, std_range).step(torch.zeros(2, 26))
    assert output.std is not None
    torch.testing.assert_close(output.std, torch.full_like(output.std, std))


@pytest.mark.parametrize(
    "std_range",
    [
        "wide",
        3,
        [],
        [1.0],
        [1, 2, 3],
        ["../x", 1],
        [1, None],
        [2, 1],
        [1, 1],
        [float("nan"), 1],
        {"low": 0},
        [[0], [1]],
    ],
)
def test_other_bounds_are_one_line(tmp_path: Path, std_range: object) -> None:
    """Never the default in their place without a word, and no traceback."""
    with pytest.raises(UserError, match=r"agent\.yaml': std_range is .*: it must be \[low, high\] with low < high"):
        teacher(tmp_path, std_range)
