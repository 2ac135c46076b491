"""Derived observation groups in the commands: settings are kept with the student and need not be typed again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import TASK, arguments, run_folder, write_teacher

from foundation.core.errors import UserError
from foundation.rsl_rl import distillation, export, finetune, play, teacher_info

MADE = (
    "obs.student.from=policy",
    "obs.student.drop=[velocity_error,motor_speeds]",
    "obs.student.history=2",
    "obs.student.delay=1",
    "obs.student.noise={body_rates: 0.1}",
    "obs.student.dropout=0.1",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a teacher."""
    monkeypatch.chdir(tmp_path)
    write_teacher(tmp_path / "teacher" / "model.pt")
    return tmp_path


def distil(folder: Path, *more: Any, **flags: Any) -> Path:
    """Distil in a folder; return the run."""
    teacher = folder / "teacher" / "model.pt"
    assert distillation.main(arguments(teacher, *more, **{"n_epochs": 4, "epoch_teacher_forcing": 2, **flags})) == 0
    return run_folder(folder)


def test_settings_are_kept_with_the_student(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """params/, the checkpoint and play.py have them: 19 columns of 26, two steps of each, and noise of its own."""
    run = distil(folder, *MADE)
    saved = yaml.safe_load((run / "params" / "distillation.yaml").read_text())
    assert saved["obs"]["student"]["from"] == "policy"
    assert saved["student"]["obs_groups"] == ["student"]
    checkpoint = torch.load(run / "best_student.pt", weights_only=True)
    assert checkpoint["student"]["num_obs"] == 2 * 19
    group = checkpoint["derived_groups"]["student"]
    assert [term["name"] for term in group["terms"]] == [
        "position_error",
        "orientation",
        "body_rates",
        "previous_action",
    ]
    figures = []
    for more in ([], [], ["obs.student.noise=0", "obs.student.dropout=0"]):
        assert play.main(["--num_episodes", "16", "--no-export", "--json", "out.json", *more]) == 0
        figures.append(json.loads(Path("out.json").read_text())["return"])
    assert figures[0] == figures[1] != figures[2]
    capsys.readouterr()
    assert play.main(["--describe"]) == 0
    assert "policy without velocity_error, motor_speeds" in capsys.readouterr().out


def test_an_export_says_what_the_caller_has_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """deploy.yaml has each term with its history, and who keeps it; delay and noise are not to be added."""
    run = distil(folder, *MADE)
    assert export.main(["--checkpoint", str(run / "best_student.pt"), "--formats", "yaml,npz"]) == 0
    said = yaml.safe_load((run / "exported" / "deploy.yaml").read_text())
    assert said["observations"]["body_rates"] == {
        "size": 6,
        "unit": "rad/s",
        "frame": "body frame: x forward, y left, z up",
        "history_length": 2,
    }
    duties = " ".join(said["observation_duties"])
    assert "keep the last 2 readings of each term side by side, oldest first, 38 numbers" in duties
    assert "delayed readings (1 [env steps])" in duties
    assert "trained with noise, dropout" in duties
    assert "keep the last 2 readings" in capsys.readouterr().out


def test_columns_are_shown_with_names_and_units(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """teacher_info knows them from the task; those of other sizes are an error that names both."""
    teacher = str(folder / "teacher" / "model.pt")
    assert teacher_info.main([teacher, "--task", TASK, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    fields = {field["name"]: (field["size"], field["unit"]) for field in said["observations_fields"]}
    assert fields["velocity_error"] == (3, "m/s")
    assert sum(size for size, _ in fields.values()) == 26
    assert teacher_info.main([teacher, "--task", TASK]) == 0
    assert "12..14" in capsys.readouterr().out


def test_a_dataset_of_other_observations_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A saved dataset names how its observations were made; an offline student has that in its own checkpoint."""
    distil(folder, *MADE, save_dataset="data")
    index = json.loads(Path("data/dataset.json").read_text())
    assert index["derived_groups"]["student"]["settings"]["history"] == 2
    assert distillation.main(["--offline", "--dataset", "data", "--n_epochs", "1", "--experiment_name", "off"]) == 0
    run = next(Path("logs/distillation/off").iterdir())
    checkpoint = torch.load(run / "best_student.pt", weights_only=True)
    assert checkpoint["derived_groups"] == index["derived_groups"]
    teacher = folder / "teacher" / "model.pt"
    with pytest.raises(UserError, match=r"has derived_groups .* they cannot be mixed"):
        distillation.main(arguments(teacher, *MADE[:-1], dataset="data"))
    made = ["obs.student.from=policy"]
    with pytest.raises(UserError, match=r"not with the distill\.obs that was given"):
        distillation.main(["--offline", "--dataset", "data", "--n_epochs", "1", *made])


def test_fine_tuning_goes_on_with_them(folder: Path) -> None:
    """The policy that PPO improves reads what it was distilled on, and so does what comes of it."""
    run = distil(folder, *MADE)
    more = ["--num_envs", "8", "--max_iterations", "1", "agent.num_steps_per_env=4", "env.episode_length_s=0.4"]
    evaluation = ["finetune.num_eval_episodes=8", "finetune.final_eval_episodes=8"]
    assert finetune.main(["--checkpoint", str(run / "best_student.pt"), "--device", "cpu", *more, *evaluation]) == 0
    (tuned,) = Path("logs/finetune").glob("*/*")
    before = torch.load(run / "best_student.pt", weights_only=True)["derived_groups"]
    assert torch.load(tuned / "best_student.pt", weights_only=True)["derived_groups"] == before


def test_a_teacher_that_needs_a_derived_group_says_so(folder: Path) -> None:
    """A student of ours teaches where its group is made again; without it, the message says how it was made."""
    student = distil(folder, *MADE) / "best_student.pt"
    small: dict[str, Any] = {"n_epochs": 1, "epoch_teacher_forcing": 1, "experiment_name": "second"}
    with pytest.raises(
        UserError, match=r"the teacher reads the observation group 'student'.*obs\.student\.from=policy"
    ):
        distillation.main(arguments(student, **small))
    own = ["distill.student.obs_groups=[deployable]", "distill.teacher.obs_groups=[student]"]
    assert distillation.main(arguments(student, *MADE, *own, **small)) == 0


def test_columns_by_place_on_gymnasium(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks without names: columns 0 and 1 of the pendulum, three steps of them."""
    teacher = Path("pendulum.py")
    teacher.write_text("import torch\ndef act(obs: torch.Tensor) -> torch.Tensor:\n    return -obs[:, 2:3]\n")
    small = ["--num_envs", "4", "--num_episodes", "4", "--num_eval_episodes", "4", "--n_epochs", "1"]
    rest = ["env.max_episode_steps=20", "distill.final_eval_episodes=4", "distill.teacher.check=false"]
    made = ["obs.student.from=policy", "obs.student.drop=[2:3]", "obs.student.history=3"]
    given = ["--task", "Pendulum-v1", "--device", "cpu", "--teacher_checkpoint", "pendulum:act"]
    monkeypatch.syspath_prepend(folder)
    assert distillation.main([*given, *small, *rest, *made]) == 0
    checkpoint = torch.load(run_folder(folder) / "best_student.pt", weights_only=True)
    assert checkpoint["student"]["num_obs"] == 6
    assert checkpoint["derived_groups"]["student"]["terms"][0]["name"] == "policy[0:2]"


def test_a_group_that_is_predicted_alone(folder: Path) -> None:
    """It is made for the loss: it is not refused as unread, and the student is not given it either."""
    made = ["obs.motion.from=policy", "obs.motion.keep=[velocity_error]"]
    predict = "distill.loss.auxiliary={predict: {group: motion, weight: 0.1}}"
    assert distillation.main(arguments(folder / "teacher" / "model.pt", *made, predict)) == 0
    checkpoint = torch.load(run_folder(folder) / "best_student.pt", weights_only=True)
    assert "motion" not in checkpoint["obs_groups"]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["obs.student.form=policy"], "unknown key 'distill.obs.student.form'"),
        (["obs.student.from=policy", "obs.student.drop=[velocity]"], "no term 'velocity' in policy. Did you mean"),
        (["obs.student.from=policy", "student.obs_groups=[policy]"], "distill.obs.student has no effect"),
        (["obs.student=policy"], "'distill.obs.student' is 'policy': it must be {from: ..., keep: ..., ...}"),
    ],
)
def test_bad_input(folder: Path, tokens: list[str], message: str) -> None:
    """One line that names the key and what to write."""
    with pytest.raises(UserError, match=re.escape(message)):
        distillation.main(arguments(folder / "teacher" / "model.pt", *tokens))
