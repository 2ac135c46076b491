"""play.py --robustness: what it measures, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import TASK, write_teacher

from foundation.cli.command import run_command
from foundation.rsl_rl import play, report
from foundation.students import make_student, student_cfg_class

SHORT = "env.episode_length_s=0.3"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Run in an empty folder: logs/ is looked for there."""
    monkeypatch.chdir(tmp_path)


def save_student(teacher: str | None) -> Path:
    """Write an untrained student as a run does, beside a summary."""
    torch.manual_seed(0)
    student = make_student(student_cfg_class("mlp")(name="mlp"), 26, 4)
    folder = Path("run")
    folder.mkdir()
    settings = {"checkpoint": teacher, "obs_groups": ["policy"], "strict": True, "obs_slice": None}
    saved = {"student": student.describe(), "model_state_dict": student.state_dict(), "obs_groups": ["policy"]}
    rest = {"obs_slice": None, "clip_actions": None, "task": TASK, "epoch": 1, "distillation": {"teacher": settings}}
    torch.save({**saved, **rest}, folder / "best_student.pt")
    (folder / "summary.json").write_text('{"task": "x"}\n')
    return folder / "best_student.pt"


def run(*argv: str) -> int:
    common = ["--checkpoint", "run/best_student.pt", "--device", "cpu", "--num_episodes", "8", "--no-export", SHORT]
    return run_command(play.main, [*common[:-1], *argv, common[-1]])


def test_student_and_teacher_are_measured_and_the_files_are_left(capsys):
    """Curves with intervals and the picture lie beside the student, worst case and area in its run's summary."""
    save_student(str(write_teacher(Path("teacher/model.pt"))))
    assert (
        run("--robustness", "--perturbation", "mass=-20,20", "--perturbation", "action_delay=1", "--json", "o.json")
        == 0
    )
    plain = json.loads(Path("run/robustness.json").read_text())
    assert [curve["name"] for curve in plain["curves"]] == ["mass", "action_delay"]
    mass = plain["curves"][0]
    assert mass["values"] == [-20.0, 0.0, 20.0] and set(mass["points"]) == {"teacher", "student"}
    assert all(point["return_interval"] > 0 for point in mass["points"]["student"])
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["task"] == "x"
    worst = summary["robustness"]["quantities"]["mass"]["policies"]["student"]
    returns = [point["mean_return"] for point in mass["points"]["student"]]
    assert worst["worst_return"] == min(returns)
    assert worst["area_return"] == pytest.approx((returns[0] + 2 * returns[1] + returns[2]) / 4)
    assert json.loads(Path("o.json").read_text())["robustness"] == summary["robustness"]
    assert Path("run/robustness.svg").read_text().startswith("<svg xmlns=")
    shown = capsys.readouterr().out
    assert "mass [%]" in shown and "Not varied" not in shown


def test_a_student_whose_teacher_is_gone_is_measured_alone(caplog):
    """One line says so, and names the flag that gives a teacher."""
    save_student("nowhere/teacher.pt")
    caplog.set_level("WARNING", "foundation.play")
    assert run("--robustness", "--perturbation", "push=1") == 0
    plain = json.loads(Path("run/robustness.json").read_text())
    assert set(plain["curves"][0]["points"]) == {"policy"}


def test_a_damaged_summary_is_refused_before_the_first_episode(capsys):
    """The figures belong into it: one line names the file and what is wrong with it."""
    save_student(None)
    Path("run/summary.json").write_text('{"task": ')
    assert run("--robustness") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "run/summary.json' is not readable JSON" in said and "Mend or remove it" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--robustness", "--perturbation", "wind"], "--perturbation wind: this environment cannot vary it"),
        (["--robustness", "--perturbation", "mass=heavy"], "--perturbation mass=heavy: expected NAME=NUMBER"),
        (["--perturbation", "mass"], "--perturbation mass has no effect without --robustness"),
    ],
)
def test_bad_input_is_one_line(argv, said, capsys):
    """It names what was typed and what to do, before an episode was run: no table is shown."""
    save_student(None)
    assert run(*argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err.splitlines()[-1]
    assert "return" not in shown.out


def test_similarity_is_measured_on_the_states_of_both(capsys):
    """Figures go to the summary, the observations that explain the errors by name and unit to a file of their own."""
    save_student(str(write_teacher(Path("teacher/model.pt"))))
    assert run("--similarity") == 0
    plain = json.loads(Path("run/similarity.json").read_text())
    assert [one["states"] for one in plain["states"]] == ["teacher", "student"]
    names = {column["name"] for one in plain["states"] for column in one["columns"]}
    units = ("[m]", "[m/s]", "[rad/s]")
    dimensionless = ("orientation", "previous action", "motor speeds")
    assert names and all(name.endswith(units) or name.startswith(dimensionless) for name in names)
    summary = json.loads(Path("run/summary.json").read_text())["similarity"]
    assert summary["student"] == plain["states"][1]["figures"]
    assert summary["student"]["action_rmse"] > 0.0
    efficiency = json.loads(Path("run/summary.json").read_text())["efficiency"]
    # [64, 64] and [24, 24], each with 26 observations and 4 actions: two operations for each weight.
    assert efficiency["student"]["flops"] == 2 * (26 * 64 + 64 * 64 + 64 * 4)
    assert efficiency["teacher"]["flops"] == 2 * (26 * 24 + 24 * 24 + 24 * 4)
    assert {"p50_us_batch_1", "p99_us_batch_8"} <= efficiency["student"].keys()
    returns = [episode["total"] for episode in plain["states"][1]["episodes"]]
    assert returns == sorted(returns) and len(returns) == 4
    assert "states of" in capsys.readouterr().out


def test_the_course_of_the_training_is_measured_from_the_checkpoints_that_were_kept(capsys):
    """Each epoch has the figures of its own student: epoch 2 is the best one here, epoch 1 another."""
    best = save_student(str(write_teacher(Path("teacher/model.pt"))))
    saved = torch.load(best, weights_only=True)
    torch.save(saved | {"epoch": 2}, "run/checkpoint_epoch_2.pt")
    weights = {name: torch.zeros_like(value) for name, value in saved["model_state_dict"].items()}
    torch.save(saved | {"model_state_dict": weights}, "run/checkpoint_epoch_1.pt")
    assert run("--similarity") == 0
    plain = json.loads(Path("run/similarity.json").read_text())
    assert [one["epoch"] for one in plain["training"]] == [1, 2]
    last = {one["states"]: one["figures"] for one in plain["states"]}
    assert plain["training"][1]["states"] == last
    assert plain["training"][0]["states"]["teacher"] != last["teacher"]
    assert "Over the training" in capsys.readouterr().out


def test_without_a_teacher_there_is_no_similarity(capsys):
    """One line that names the flag which gives one."""
    save_student(None)
    assert run("--similarity") == 2
    assert "--teacher FILE names one" in capsys.readouterr().err.splitlines()[-1]


def test_weights_beyond_all_measure_are_measured(capsys):
    """Actions of 1e30 are clamped by the environment; their squared error overflows, and is null in the files."""
    best = save_student(str(write_teacher(Path("teacher/model.pt"))))
    saved = torch.load(best, weights_only=True)
    weights = saved["model_state_dict"]
    (last,) = (name for name in weights if name.endswith("bias") and weights[name].shape == (4,))
    torch.save(saved | {"model_state_dict": weights | {last: torch.full((4,), 1e30)}}, best)
    assert run("--similarity", "--robustness", "--perturbation", "mass=20") == 0
    plain = json.loads(Path("run/similarity.json").read_text())
    assert [one["figures"]["action_rmse"] for one in plain["states"]] == [None, None]
    assert [one["columns"] for one in plain["states"]] == [[], []]
    assert run_command(report.main, ["run"]) == 0
    assert Path("run/report.html").stat().st_size < 2e6
