"""Stages in one file: each begins from the one before, earlier ones can be teachers, done ones are not run again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import NUM_ACTIONS, TASK

from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.rsl_rl import finetune
from foundation.runs.run_dir import RunDir
from foundation.students import StudentPolicy

SMALL = ["--device", "cpu", "--num_envs", "8", "env.episode_length_s=0.2", "agent.num_steps_per_env=4"]
FEW = ["--num_eval_episodes", "8", "--final_eval_episodes", "8", "--critic_warmup_iterations", "0"]
STAGES = f"""
task: {TASK}
max_iterations: 2
stages:
  - alpha: 0.0
  - kl_coef: 1.0
  - max_iterations: 1
    alpha: 0.5
    teacher:
      checkpoint: ["{{start}}", "{{stage1}}"]
"""


@pytest.fixture
def student(tmp_path, monkeypatch) -> Path:
    """An untrained student, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    policy = StudentPolicy(26, NUM_ACTIONS, (8,))
    values = {"student": policy.describe(), "model_state_dict": policy.state_dict(), "task": TASK}
    torch.save(values | {"obs_groups": ["policy"], "obs_slice": None, "clip_actions": 1.0}, tmp_path / "s.pt")
    return tmp_path / "s.pt"


def runs() -> dict[str, Path]:
    """The runs of the stages by their names."""
    return {path.name.rpartition("_")[2]: path for path in Path("logs/finetune/curriculum").glob("2*")}


def test_three_stages_from_one_command_and_resumed(student, tmp_path, capfd):
    """Each stage's checkpoint is the best of the one before; ``--resume`` runs those alone that are not done."""
    Path("three.yaml").write_text(STAGES)
    argv = ["experiment=./three.yaml", *SMALL, *FEW]
    assert finetune.main([*argv, "--checkpoint", str(student)]) == 0
    found = runs()
    assert sorted(found) == ["stage1", "stage2", "stage3"]
    params = {name: load_yaml(path / "params" / "finetune.yaml") for name, path in found.items()}
    assert params["stage1"]["checkpoint"] == str(student) and params["stage1"]["max_iterations"] == 2
    assert params["stage2"]["checkpoint"] == str(found["stage1"] / "best_student.pt")
    assert params["stage2"]["kl_coef"] == 1.0 and params["stage3"]["kl_coef"] == 0.0
    assert params["stage3"]["teacher"]["checkpoint"] == [str(student), str(found["stage1"] / "best_student.pt")]
    (found["stage3"] / "summary.json").unlink()
    capfd.readouterr()
    assert finetune.main([*argv, "--checkpoint", str(student), "--resume"]) == 0
    out = capfd.readouterr().out
    assert "stage1 is done" in out and "stage2 is done" in out and "Resuming" in out
    assert runs() == found and (found["stage3"] / "summary.json").exists()


def test_a_stage_that_names_what_is_not_there_is_one_line(student):
    """The line lists the policies there are before it; a stage that fails ends the command with its code."""
    Path("bad.yaml").write_text("stages:\n  - teacher: {checkpoint: '{stage7}'}\n    alpha: 1.0\n")
    with pytest.raises(UserError, match=r"there is no such policy before it; there are: \{start\}"):
        finetune.main(["experiment=./bad.yaml", "--checkpoint", str(student)])
    Path("worse.yaml").write_text("stages: 3\n")
    with pytest.raises(UserError, match="'stages' must be a list of mappings"):
        finetune.main(["experiment=./worse.yaml", "--checkpoint", str(student)])
    Path("later.yaml").write_text("stages:\n  - alpha: 0.5\n  - max_iteration: 3\n    env: {any: 1}\n")
    with pytest.raises(UserError, match=r"stage2: unknown key 'max_iteration'. Did you mean 'max_iterations'"):
        finetune.main(["experiment=./later.yaml", "--checkpoint", str(student)])
    assert not Path("logs/finetune/curriculum").exists(), "the first stage must not begin"
    Path("fails.yaml").write_text("stages:\n  - alpha: 7\n")
    assert finetune.main(["experiment=./fails.yaml", "--checkpoint", str(student)]) == 2
    assert not RunDir(Path("logs/finetune/curriculum")).checkpoints()


@pytest.mark.parametrize(
    "stage",
    ["task: named_by_a_file:Id-v0", "teacher: {checkpoint: 'named_by_a_file:function'}\n    alpha: 1.0"],
    ids=["task", "teacher"],
)
def test_what_a_stage_names_is_not_imported(student: Path, stage: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A received file of stages runs no code: a module that it names has to be typed."""
    Path("named_by_a_file.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    Path("received.yaml").write_text(f"stages:\n  - {stage}\n")
    argv = ["experiment=./received.yaml", *SMALL, *FEW, "--checkpoint", str(student)]
    assert finetune.main(argv) == 2
    error = capfd.readouterr().err
    assert "named_by_a_file" in error and "Traceback" not in error
    assert not Path("ran").exists()
