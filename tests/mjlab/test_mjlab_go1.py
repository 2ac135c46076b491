"""Go1's velocity task: a smoke run, and a teacher whose joints are in the order of another simulator."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mjlab_envs import GO1, open_env, run_command, the_run

from foundation.rollout.joints import fit_joints
from foundation.teachers import TeacherPolicyWrapper

LEGS = ("FR", "FL", "RR", "RL")
HERE = [f"{leg}_{part}_joint" for leg in LEGS for part in ("hip", "thigh", "calf")]
"""The order of the model: leg by leg, as MuJoCo walks down the tree."""
BY_PART = [f"{leg}_{part}_joint" for part in ("hip", "thigh", "calf") for leg in ("FL", "FR", "RL", "RR")]
"""The same joints, all hips first, as PhysX orders them."""
CROUCH = {"hip": 0.0, "thigh": 0.3, "calf": -0.6}
"""Angles that the teacher holds, from the default pose [rad]."""
SCALE = {"hip": 0.3728, "thigh": 0.3728, "calf": 0.2485}
"""The task's scale of actions [rad]."""
FEW = ["--num_envs", 8, "--num_episodes", 8, "--n_epochs", 2, "--epoch_teacher_forcing", 1]
FEW += ["--num_eval_episodes", 8, "distill.final_eval_episodes=8", "--device", "cpu", "--seed", 3]
FEW += ["--cpu_graphs", "env.episode_length_s=2.0"]


def write_crouching(folder: Path, order: Sequence[str]) -> Path:
    """Write a teacher that holds a crouch: action = (c - (q - c) / 2) / scale for each joint, in its own order."""
    parts = [name.split("_")[1] for name in order]
    held = torch.tensor([CROUCH[part] for part in parts])
    scale = torch.tensor([SCALE[part] for part in parts])
    first = torch.zeros(24, 48)  # linear and angular velocity, gravity, then q: relu(q) and relu(-q)
    for index in range(12):
        first[index, 9 + index] = 1.0
        first[12 + index, 9 + index] = -1.0
    gain = torch.diag(-0.5 / scale)
    actor = {
        "actor.0.weight": first,
        "actor.0.bias": torch.zeros(24),
        "actor.2.weight": torch.cat([gain, -gain], dim=1),
        "actor.2.bias": 1.5 * held / scale,
    }
    path = folder / "model.pt"
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "agent.yaml").write_text("policy:\n  activation: relu\n")
    torch.save({"model_state_dict": actor | {"std": torch.full((12,), 0.1)}, "iter": 1, "infos": None}, path)
    return path


def test_the_managers_name_the_joints_and_the_teacher_is_permuted(tmp_path: Path) -> None:
    """On the environment's own observations the permuted teacher acts as one of the environment's order."""
    native = TeacherPolicyWrapper(write_crouching(tmp_path / "here", HERE))
    other = TeacherPolicyWrapper(write_crouching(tmp_path / "by_part", BY_PART), joint_order=BY_PART)
    with open_env(GO1, num_envs=4) as env:
        assert fit_joints(native, env, GO1, ["actor"]) == []
        obs = env.get_observations()["actor"]
        for _ in range(3):
            obs = env.step(torch.rand(4, 12) - 0.5)[0]["actor"]
        unpermuted = other.act(obs)
        (line,) = fit_joints(other, env, GO1, ["actor"])
    assert "10 of 12 joints" in line and "FL_hip_joint 0 -> 3" in line
    torch.testing.assert_close(other.act(obs), native.act(obs))
    assert (unpermuted - native.act(obs)).abs().max() > 1.0


def test_a_teacher_of_another_order_teaches(tmp_path: Path) -> None:
    """With its order it teaches, in a run of 8 environments and two epochs that takes less than 5 minutes."""
    path = write_crouching(tmp_path / "teacher", BY_PART)
    order = f"distill.teacher.joint_order=[{','.join(BY_PART)}]"
    begun = time.monotonic()
    done = run_command(tmp_path, "distillation.py", "--task", GO1, "--teacher_checkpoint", path, *FEW, order)
    assert time.monotonic() - begun < 300
    assert "10 of 12 joints of the policy are moved" in done.stdout
    run = the_run(tmp_path, "distillation")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher_return"] > 2.0 * summary["baselines"]["random"]["mean_return"]
    saved = torch.load(run / "best_student.pt", weights_only=True)
    assert saved["joint_order"] == HERE


def test_without_its_order_it_is_refused(tmp_path: Path) -> None:
    """Taken for one of this order it falls: the run stops, and the message names the order of the joints."""
    path = write_crouching(tmp_path / "teacher", BY_PART)
    done = run_command(tmp_path, "distillation.py", "--task", GO1, "--teacher_checkpoint", path, *FEW, expect=2)
    said = re.sub(r"\s+", " ", done.stderr)
    assert "The teacher's mean return" in said
    assert "the order of its joints (distill.teacher.joint_order=[...]; here it is FR_hip_joint, FR_thigh" in said


def test_training_smoke(tmp_path: Path) -> None:
    """Two iterations of PPO on 8 environments; the checkpoint states the order of the joints."""
    run_command(tmp_path, "train.py", "--task", GO1, "--num_envs", 8, "--max_iterations", 2, "--device", "cpu")
    checkpoints = sorted(the_run(tmp_path, "rsl_rl").glob("model_*.pt"))
    assert TeacherPolicyWrapper(checkpoints[-1]).info.joint_order == HERE


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([*BY_PART[:-1], "RR_calf"], "no joint 'RR_calf'. Did you mean 'RR_calf_joint'"),
        (BY_PART[1:], "lacks FL_hip_joint"),
    ],
)
def test_bad_orders(tmp_path: Path, order: list[str], message: str) -> None:
    """One line that names the joint, before the first step."""
    path = write_crouching(tmp_path / "teacher", BY_PART)
    typed = f"distill.teacher.joint_order=[{','.join(order)}]"
    done = run_command(tmp_path, "distillation.py", "--task", GO1, "--teacher_checkpoint", path, *FEW, typed, expect=2)
    assert message in done.stderr
