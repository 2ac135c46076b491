"""play.py with policies of other formats: what it says of them, and that the published RAPTOR policy flies here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from l2f_flights import PUBLISHED

from foundation.cli.command import run_command
from foundation.core.files import atomic_torch_save
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.rsl_rl import play, teacher_info
from foundation.students import StudentPolicy
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.teachers import TeacherPolicyWrapper

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_the_published_policy_hovers():
    """On the Crazyflie it survives nine flights of ten and hovers with the constant 5.3 cm that are known of it."""
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = 256
    env = QuadcopterPointCtrlEnv(cfg)
    obs, teacher = env.reset(seed=3), TeacherPolicyWrapper(PUBLISHED)
    actor = PolicyActor(teacher, teacher_selector(teacher, obs, teacher.obs_groups))
    alive, total = torch.ones(256, dtype=torch.bool), torch.zeros(256)
    late = torch.zeros(256, 3)
    for step in range(450):
        obs, rewards, dones, _ = env.step(actor.act(obs))
        actor.reset(dones.bool())
        total += rewards * alive
        alive &= ~dones.bool()
        if step >= 350:
            late += obs["l2f"][:, :3] / 100
    assert alive.float().mean() > 0.9
    offset = late[alive].norm(dim=-1)
    assert offset.median() == pytest.approx(0.0526, abs=0.002)
    assert total[alive].mean() > 560  # of 675 at the target without moving


def test_play_measures_it(tmp_path):
    """``play.py --checkpoint checkpoint.h5`` takes its group and its 2,084 parameters from the file."""
    argv = [
        "--task",
        TASK,
        "--checkpoint",
        str(PUBLISHED),
        "--num_episodes",
        "48",
        "--device",
        "cpu",
        "--json",
        "out.json",
    ]
    assert run_command(play.main, argv) == 0
    figures = json.loads(Path("out.json").read_text())
    assert figures["parameters"] == 2084 and "rl-tools HDF5, gru 16 x 1: 22 (l2f) -> [16] -> 4" in figures["policy"]
    assert figures["return"]["mean"] > 450


def test_describe_prints_what_teacher_info_prints(capsys):
    """``--describe`` reads the checkpoint, says what was understood, and starts no simulator, whatever the format."""
    student = StudentPolicy(26, 4)
    saved = {"model_state_dict": student.state_dict(), "student": student.describe(), "task": TASK}
    atomic_torch_save(saved, Path("best_student.pt"))
    for path in (PUBLISHED, Path("best_student.pt")):
        assert run_command(teacher_info.main, [str(path)]) == 0
        told = capsys.readouterr().out
        assert run_command(play.main, ["--checkpoint", str(path), "--describe"]) == 0
        assert capsys.readouterr().out == told and "recurrence" in told


def test_text_of_a_checkpoint_is_described_as_it_is(capsys):
    """Brackets of a name are no markup of the table, which would swallow them or end in a traceback."""
    student = StudentPolicy(26, 4)
    term = {"name": "[/b]a[b]c", "group": "policy", "columns": list(range(26)), "unit": "[red]", "frame": ""}
    derived = {"s": {"settings": {"from": "policy", "drop": ["[/x]"]}, "terms": [term]}}
    saved = {"model_state_dict": student.state_dict(), "student": student.describe(), "obs_groups": ["s"]}
    atomic_torch_save({**saved, "task": TASK, "derived_groups": derived}, Path("best_student.pt"))
    assert run_command(play.main, ["--checkpoint", "best_student.pt", "--describe"]) == 0
    told = capsys.readouterr().out
    assert "[/b]a[b]c" in told and "[red]" in told and "[/x]" in told


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--checkpoint", str(PUBLISHED)], "does not name the task that it was trained on: give --task"),
        (["--task", TASK, "--agent", "zero", "--describe"], "no checkpoint to --describe"),
        (["--checkpoint", str(PUBLISHED), "--descrieb"], "--describe"),
    ],
)
def test_bad_input_is_one_line(argv, words, capsys):
    """A file that names no task, and a flag that cannot be, are one line and exit code 2."""
    assert run_command(play.main, argv) == 2
    shown = capsys.readouterr().err
    assert words in shown and len([line for line in shown.splitlines() if line.startswith("error")]) == 1
