"""What a user says about a teacher's checkpoint reaches whoever reads it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from l2f_flights import PUBLISHED
from many_teachers import write_set
from small_teacher import TASK, write_teacher

from foundation.cli.cli_args import distillation_flags, parse_command
from foundation.cli.load_teachers import load_teacher
from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.core.errors import UserError
from foundation.rsl_rl import play, teacher_info
from foundation.rsl_rl.distillation import build_parser
from foundation.students import StudentPolicy, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper


def loaded(*argv: str):
    args, _ = parse_command(build_parser(), ["--task", TASK, "--device", "cpu", *argv])
    cfg = resolve_distillation_cfg(Overrides(), distillation_flags(args), student_cfg_class=student_cfg_class)
    return load_teacher(cfg)


def test_the_activation_of_one_teacher_is_what_the_flag_says(tmp_path):
    """``--teacher_activation`` beats the default, and ``describe`` says where it came from."""
    teacher = loaded("--teacher_checkpoint", str(write_teacher(tmp_path / "t.pt")), "--teacher_activation", "tanh")
    assert teacher.describe()["activation"] == "tanh"


def test_the_activation_of_many_teachers_is_what_the_flag_says(tmp_path):
    """All of a set are read with it."""
    teachers = loaded("--teacher_checkpoint", str(write_set(tmp_path, 2)), "--teacher_activation", "tanh")
    assert "tanh" in str(teachers.describe()).lower()


@pytest.mark.parametrize(
    ("task", "warned"), [("Other-v0", True), (TASK, False), (f"my_package:{TASK.replace('-v0', '-Play-v0')}", False)]
)
def test_teachers_of_another_task_are_told(tmp_path, caplog, monkeypatch, task, warned):
    """One line names the task of the manifest and this one; the variant for playing is the same task."""
    monkeypatch.setattr(logging.getLogger("foundation"), "propagate", True)
    manifest = write_set(tmp_path, 2)
    lines = [f"task: {task}" if line.startswith("task:") else line for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(lines) + "\n")
    loaded("--teacher_checkpoint", str(manifest))
    assert [r.getMessage() for r in caplog.records if "was trained on" in r.getMessage()] == (
        [f"teacher 'quad_0000' was trained on Other-v0, and --task is {TASK}"] if warned else []
    )


def write_fixed(folder: Path, kind: str) -> Path:
    """Write a policy in a format that says its activation itself."""
    if kind == "rl-tools HDF5":
        return PUBLISHED
    policy = StudentPolicy(5, 2, (8,), "elu")
    if kind == "foundation student":
        path = folder / "student.pt"
        torch.save({"student": policy.describe(), "model_state_dict": policy.state_dict()}, path)
        return path
    layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ELU(), torch.nn.Linear(8, 2))
    if kind == "ONNX export":
        path = folder / "policy.onnx"
        options = {"input_names": ["obs"], "output_names": ["actions"], "dynamo": False}
        torch.onnx.export(layers, (torch.zeros(1, 5),), str(path), **options)
        return path
    path = folder / "policy.pt"
    torch.jit.script(layers).save(str(path))
    return path


@pytest.mark.parametrize("kind", ["rl-tools HDF5", "ONNX export", "TorchScript export", "foundation student"])
@pytest.mark.filterwarnings("ignore")
def test_an_activation_that_has_no_effect_is_refused(tmp_path, kind):
    """A file that fixes its activation is read without the flag; with it, one line names the file and the flag."""
    path = str(write_fixed(tmp_path, kind))
    told = loaded("--teacher_checkpoint", path).describe()
    assert told["format"] == kind and told["activation_from"] == "checkpoint"
    with pytest.raises(
        UserError, match=r"fixes its own activation.*'tanh' has no effect.*--teacher_activation"
    ) as error:
        loaded("--teacher_checkpoint", path, "--teacher_activation", "tanh")
    assert path in str(error.value) and told["activation"] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["rl-tools HDF5", "ONNX export", "TorchScript export", "foundation student", "RSL-RL"])
@pytest.mark.parametrize(("name", "value"), [("distribution", "beta"), ("action_range", [-2.0, 3.0])])
@pytest.mark.filterwarnings("ignore")
def test_a_distribution_or_range_that_has_no_effect_is_refused(tmp_path, kind, name, value):
    """Gaussian actions of RSL-RL and what a file states are not changed by what is said of them: one line says so."""
    path = str(write_teacher(tmp_path / "t.pt") if kind == "RSL-RL" else write_fixed(tmp_path, kind))
    with pytest.raises(UserError, match=rf"distill\.teacher\.{name}=.* has no effect: leave it out") as error:
        TeacherPolicyWrapper(path, "cpu", **{name: value})
    assert path in str(error.value) and "\n" not in str(error.value)
    TeacherPolicyWrapper(path, "cpu", **{name: None})


def test_a_distribution_that_agrees_with_the_file_is_taken(tmp_path):
    """Saying what is there already is no mistake."""
    teacher = TeacherPolicyWrapper(str(write_teacher(tmp_path / "t.pt")), "cpu", distribution="gaussian")
    assert teacher.describe()["distribution"] == "gaussian"


def test_an_unknown_activation_names_the_nearest(tmp_path):
    """One line."""
    path = str(write_teacher(tmp_path / "t.pt"))
    with pytest.raises(UserError, match=r"'tanhh'.*tanh"):
        loaded("--teacher_checkpoint", path, "--teacher_activation", "tanhh")


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("distill.teacher.strict=no!", "true or false"),
        ("strict=1", "true or false"),
        ("activation=3", "a name"),
        ("distill.teacher.action_range=[1]", r"\[low,high\]"),
        ("distill.teacher.obs_groups=policy", "group"),
        ("distill.teacher.num_obs=-1", "positive"),
        ("distill.teacher.strct=false", "strict"),
        ("nonsense", "distill.teacher.<key>=<value>"),
        ("distill.teacher.strict={", "quotes"),
    ],
)
def test_what_is_typed_to_teacher_info_is_checked(token, says, tmp_path):
    """A misspelt key or a value of another type is one line."""
    with pytest.raises(UserError, match=says) as refusal:
        teacher_info.main([str(write_teacher(tmp_path / "t.pt")), token])
    assert "\n" not in str(refusal.value)


def test_teacher_info_takes_what_its_refusals_advise(tmp_path, capsys):
    """``distill.teacher.strict=false``, as it is printed, can be typed there."""
    path = write_teacher(tmp_path / "t.pt")
    checkpoint = torch.load(path)
    checkpoint["model_state_dict"]["discriminator.0.weight"] = torch.zeros(3, 3)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"distill\.teacher\.strict=false"):
        teacher_info.main([str(path)])
    assert teacher_info.main([str(path), "distill.teacher.strict=false", "--json"]) == 0
    assert '"num_obs": 26' in capsys.readouterr().out


def test_play_takes_what_is_said_about_a_checkpoint(tmp_path, capsys):
    """``distill.teacher.<key>`` is typed to ``play.py`` as to ``distillation.py``."""
    module = torch.nn.Sequential(torch.nn.Linear(26, 8), torch.nn.LeakyReLU(0.2), torch.nn.Linear(8, 4))
    torch.jit.save(torch.jit.script(module), str(tmp_path / "policy.pt"))
    argv = ["--checkpoint", str(tmp_path / "policy.pt"), "--device", "cpu", "--describe"]
    with pytest.raises(UserError, match=r"distill\.teacher\.run_as_is=true"):
        play.main(argv)
    assert play.main([*argv, "distill.teacher.run_as_is=true"]) == 0
    assert "run as it is" in capsys.readouterr().out
