"""Students written as RSL-RL checkpoints, read by the real RSL-RL and by ourselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foundation.core.errors import UserError
from foundation.export.rsl_rl import to_rsl_rl, write_rsl_rl
from foundation.students import StudentPolicy, make_student, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent

from rsl_rl_versions import run_with  # noqa: E402

STEPS, ENVS, OBS, ACTIONS = 12, 6, 9, 3


def students(layout):
    """Return students of every kind that a layout can hold, by name."""
    torch.manual_seed(0)
    recurrent = {"encoder_dims": [], "hidden_dims": [12], "activation": "tanh"}
    found = {
        "plain": StudentPolicy(OBS, ACTIONS, (16,), "silu", obs_normalization=False),
        "normalized": StudentPolicy(OBS, ACTIONS),
        "gaussian": StudentPolicy(OBS, ACTIONS, (16, 8), "relu", stochastic=True, value_head=True),
        "gru": make_student(student_cfg_class("gru")(num_layers=2, **recurrent), OBS, ACTIONS),
        "lstm": make_student(student_cfg_class("lstm")(stochastic=True, **recurrent), OBS, ACTIONS),
    }
    if layout == "5":
        found["dependent"] = StudentPolicy(OBS, ACTIONS, stochastic=True, state_dependent_std=True)
    for name, student in found.items():
        if name != "plain":
            student.normalizer.update(torch.randn(100, OBS) * 2 + 1)
    return found


def expected(student):
    """Return observations, resets and the student's own actions."""
    obs, dones = torch.randn(STEPS, ENVS, OBS), torch.rand(STEPS, ENVS) < 0.2
    resets = torch.cat([torch.zeros_like(dones[:1]), dones[:-1]])
    return {"obs": obs, "dones": dones, "actions": student.sequence(obs, None, resets)[0].mean.detach()}


@pytest.mark.parametrize("version", ["3.0.1", "5.5.1"])
def test_the_real_runner_flies_and_trains_it(version, tmp_path):
    """RSL-RL's own OnPolicyRunner loads the file, gives the student's actions to 1e-5, and trains on from there."""
    kinds = students(version[0])
    for name, student in kinds.items():
        place = tmp_path / "runs" / name
        write_rsl_rl(student, place / "model_0.pt", version[0], ["a", "b"])
        torch.save(expected(student), place / "expected.pt")
    done = run_with(version, HERE / "fly_exported_student.py", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "runs" / "report.json").read_text())
    assert set(report) == set(kinds)
    for name, seen in report.items():
        assert seen["worst"] <= 1e-5, name
        assert seen["moved"] > 0, name


@pytest.mark.parametrize("layout", ["3", "5"])
def test_we_read_it_back(layout, tmp_path):
    """Read back as a teacher it acts alike, with the same deviation and value, groups and activation."""
    for name, student in students(layout).items():
        path = tmp_path / name / "model_0.pt"
        write_rsl_rl(student, path, layout, ["a", "b"], std=0.25)
        teacher = TeacherPolicyWrapper(path)
        told = expected(student)
        obs = told["obs"][0]
        own, output = student.step(obs)[0], teacher.output(obs)
        assert torch.allclose(output.mean, own.mean, atol=1e-6), name
        std = torch.full_like(own.mean, 0.25) if own.std is None else own.std
        value = torch.zeros(ENVS, 1) if own.value is None else own.value
        assert torch.allclose(output.std, std, atol=1e-6) and torch.allclose(output.value, value, atol=1e-6)
        assert teacher.obs_groups == ["a", "b"]


def test_what_rsl_rl_cannot_hold_is_refused():
    """Students that RSL-RL has no network for, and unknown layouts, are refused with what would do."""
    for name in ("history", "tcn", "gru"):
        with pytest.raises(UserError, match="encoder_dims"):
            to_rsl_rl(make_student(student_cfg_class(name)(), OBS, ACTIONS))
    with pytest.raises(UserError, match="hidden_dims"):
        to_rsl_rl(StudentPolicy(OBS, ACTIONS, ()))
    with pytest.raises(UserError, match="'5'"):
        to_rsl_rl(StudentPolicy(OBS, ACTIONS, stochastic=True, state_dependent_std=True), "3")
    with pytest.raises(UserError, match="3, 5"):
        to_rsl_rl(StudentPolicy(OBS, ACTIONS), "x")
