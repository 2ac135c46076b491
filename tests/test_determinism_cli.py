"""The same command twice gives the same student, bit for bit; another seed gives another."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_server import CommandServer, shared
from tiny_runs import arguments, differing, run_folder, write_teacher


@pytest.fixture(scope="module")
def server() -> CommandServer:
    return shared()


VARIANTS = {
    "mlp": [],
    "gru": ["student=gru", "student.hidden_size=12"],
    "compiled": ["env.compile=true", "distill.optimizer.compile=true"],
    "noisy": ["collection.noise_std=0.1", "collection.epsilon=0.1", "--no-teacher_deterministic"],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_seed_decides_everything(variant: str, server: CommandServer, tmp_path: Path) -> None:
    """Twice seed 7 and once seed 8: two students alike in every bit of every tensor, and one that is not."""
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    students = []
    for folder, seed in (("first", 7), ("second", 7), ("other", 8)):
        argv = arguments(teacher, *VARIANTS[variant], seed=seed, n_epochs=4, epoch_teacher_forcing=2)
        command = server.run(argv, tmp_path / folder)
        assert command.code == 0, command.text
        students.append(run_folder(tmp_path / folder) / "final_student.pt")
    first, second, other = students
    assert differing(first, second) == []
    assert "model_state_dict/normalizer.mean" in differing(first, other)
    assert any("weight" in name for name in differing(first, other))
