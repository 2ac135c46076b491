"""Teacher, assistant and small student from one command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import arguments, write_teacher

from foundation.cli.command import run_command
from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.rsl_rl import distillation

STAGES = """
stages:
  - student: {hidden_dims: [16, 16]}
    loss:
      weight: {kind: step, points: [[0, 0.1], [1, 1.0]]}
      auxiliary: {feature: {weight: {kind: step, points: [[0, 1.0], [1, 0.0]]}}}
  - student: {hidden_dims: [4]}
  - student: {hidden_dims: [3], init_checkpoint: null}
    teacher: {checkpoint: "{start}"}
"""


@pytest.mark.slow
def test_each_stage_learns_from_the_student_before_or_from_whom_it_names(monkeypatch, tmp_path, capfd):
    """Teacher of stage 2: the assistant of stage 1; of stage 3: the teacher that was typed. What is done stays."""
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    Path("gap.yaml").write_text(STAGES)
    argv = [*arguments(teacher, n_epochs=2, epoch_teacher_forcing=1), "experiment=./gap.yaml"]
    argv += ["--experiment_name", "gap", "--run_name", "small"]
    assert distillation.main(argv) == 0
    runs = {path.name.rpartition("_")[2]: path for path in Path("logs/distillation/gap").glob("2*")}
    assert sorted(runs) == ["stage1", "stage2", "stage3"]
    params = {name: load_yaml(path / "params" / "distillation.yaml") for name, path in runs.items()}
    teachers = {name: values["teacher"]["checkpoint"] for name, values in params.items()}
    assert [[found] if isinstance(found, str) else found for found in teachers.values()] != []
    paths = {name: str(found[0] if isinstance(found, list) else found) for name, found in teachers.items()}
    assert paths["stage1"] == paths["stage3"] == str(teacher)
    assert paths["stage2"] == str(runs["stage1"] / "best_student.pt")
    sizes = {name: values["student"]["hidden_dims"] for name, values in params.items()}
    assert sizes == {"stage1": [16, 16], "stage2": [4], "stage3": [3]}
    saved = torch.load(runs["stage2"] / "best_student.pt", weights_only=True)
    assert saved["student"]["hidden_dims"] == [4]
    capfd.readouterr()
    assert distillation.main([*argv, "--resume"]) == 0
    out = capfd.readouterr().out
    assert "stage1 is done" in out and "stage3 is done" in out


def test_stages_that_cannot_be_are_one_line(monkeypatch, tmp_path):
    """A stage of a policy that is not there, stages that are no list, two teachers to start from."""
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    Path("bad.yaml").write_text("stages:\n  - teacher: {checkpoint: '{stage7}'}\n")
    with pytest.raises(UserError, match=r"there is no such policy before it; there are: \{start\}"):
        distillation.run([*arguments(teacher), "experiment=./bad.yaml"])
    Path("worse.yaml").write_text("stages: 3\n")
    with pytest.raises(UserError, match="'stages' must be a list of mappings"):
        distillation.run([*arguments(teacher), "experiment=./worse.yaml"])
    with pytest.raises(UserError, match="start from one policy: type --teacher_checkpoint once"):
        distillation.run([*arguments(teacher), "--teacher_checkpoint", str(teacher), "experiment=./bad.yaml"])


@pytest.mark.parametrize("checkpoint", ["[a.pt, b.pt]", "5", "{a: b}"])
def test_the_first_policy_of_a_file_is_one_file(tmp_path, monkeypatch, capsys, checkpoint):
    """A list, a number or a mapping in its place is one line, before a stage is begun."""
    monkeypatch.chdir(tmp_path)
    Path("staged.yaml").write_text(f"teacher:\n  checkpoint: {checkpoint}\nstages:\n  - {{n_epochs: 1}}\n")
    assert run_command(distillation.main, ["experiment=staged.yaml"]) == 2
    assert "teacher.checkpoint must be one file" in capsys.readouterr().err
