"""Speeds that are read from what a run has logged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from torch.utils.tensorboard.writer import SummaryWriter

from foundation.core.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import throughput


def write_run(folder: Path, **settings: object) -> Path:
    """Three epochs: 100, 300 and 200 env steps a second; 4 updates in 2 s, 8 in 1 s, 6 in 2 s."""
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "distillation.yaml").write_text(yaml.safe_dump(settings))
    writer = SummaryWriter(str(folder))
    for epoch, (rate, updates, seconds) in enumerate([(100, 4, 2.0), (300, 8, 1.0), (200, 6, 2.0)]):
        writer.add_scalar("performance/env_steps_per_second", rate, epoch)
        writer.add_scalar("training/updates", updates, epoch)
        writer.add_scalar("performance/learning_seconds", seconds, epoch)
    writer.close()
    return folder


@pytest.mark.parametrize(
    ("settings", "transitions"),
    [
        ({"batch_size": 64}, 64),
        ({"batch_size": None}, 256),
        ({"batch_size": 8, "sequence_length": 16}, 128),
        ({"sequence_length": 50}, 400),
    ],
)
def test_speeds_are_medians_over_the_epochs(tmp_path, settings, transitions):
    """Of 2, 8 and 3 updates a second the median is 3, times the transitions of a minibatch."""
    assert throughput.throughput(write_run(tmp_path / "run", **settings)) == (200.0, 3.0 * transitions)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    """It says what is missing."""
    with pytest.raises(UserError, match="it has no performance/env_steps_per_second"):
        throughput.throughput(tmp_path)
