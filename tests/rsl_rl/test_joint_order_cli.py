"""A task whose joints are in another order than the teacher's, from the working folder through the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from joint_env import FEET, JOINTS, THEIRS

from foundation.core.errors import UserError
from foundation.rsl_rl import distillation, finetune, play, teacher_info

TASKS = """
from dataclasses import dataclass

import gymnasium
from joint_env import FEET, JOINTS, THEIRS, JointEnv

from foundation.config.agent_cfg import OnPolicyRunnerCfg


@dataclass
class Cfg:
    num_envs: int = 8
    seed: int = 0
    device: str = "cpu"


def here(cfg):
    return JointEnv(cfg.num_envs)


def there(cfg):
    return JointEnv(cfg.num_envs, THEIRS, FEET[::-1])


for name, env in (("Joint-Here-v0", here), ("Joint-There-v0", there)):
    kwargs = {"torch_env_entry_point": env, "env_cfg_entry_point": Cfg, "rsl_rl_cfg_entry_point": OnPolicyRunnerCfg}
    gymnasium.register(id=name, entry_point=env, kwargs=kwargs)
"""
HERE = ["--task", "joint_tasks:Joint-Here-v0", "--device", "cpu"]
THERE = ["--task", "joint_tasks:Joint-There-v0", "--device", "cpu"]
ORDER = f"distill.teacher.joint_order=[{','.join((*JOINTS, *FEET))}]"


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a teacher that brings each joint near 0 in a step, a = -1.2 q / g, in the order of :data:`JOINTS`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "joint_tasks.py").write_text(TASKS)
    sys.modules.pop("joint_tasks", None)
    first = torch.zeros(8, 19)
    first[:4, :4] = torch.eye(4)
    first[4:, :4] = -torch.eye(4)
    gain = torch.diag(-1.2 / torch.tensor([0.1, 0.2, 0.4, 0.8]))
    actor = {"actor.0.weight": first, "actor.0.bias": torch.zeros(8), "actor.2.bias": torch.zeros(4)}
    actor |= {"actor.2.weight": torch.cat([gain, -gain], dim=1), "std": torch.full((4,), 0.1)}
    path = tmp_path / "teacher" / "model.pt"
    (path.parent / "params").mkdir(parents=True)
    (path.parent / "params" / "agent.yaml").write_text("policy:\n  activation: relu\n")
    torch.save({"model_state_dict": actor, "iter": 1, "infos": None}, path)
    return path


def test_from_teacher_to_student_and_back(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its order the teacher is refused; with it it teaches; the student acts in both orders."""
    small = ["--n_epochs", "4", "--num_envs", "8", "--num_episodes", "8", "--num_eval_episodes", "8"]
    small += ["distill.final_eval_episodes=8", "--learning_rate", "0.003", "distill.optimizer.update_ratio=8"]
    command = [*THERE, "--teacher_checkpoint", str(teacher), *small]
    with pytest.raises(UserError, match=r"order of its joints .*here it is hip_left, knee_left, hip_right, knee_right"):
        distillation.main(command)
    assert distillation.main([*command, ORDER]) == 0
    assert "Joint order: 2 of 4 joints of the policy are moved" in capsys.readouterr().out
    (student,) = Path("logs/distillation").glob("*/*/best_student.pt")
    assert torch.load(student, weights_only=True)["joint_order"] == [*THEIRS, *FEET[::-1]]

    returns = []
    for task in (THERE, HERE):
        typed = [
            "--checkpoint",
            str(student),
            "--num_episodes",
            "8",
            "--no-export",
            "--with_teacher",
            "--json",
            "a.json",
        ]
        assert play.main([*task, *typed]) == 0
        figures = json.loads(Path("a.json").read_text())
        returns.append((figures["return"]["mean"], figures["teacher"]["return"]["mean"]))
    assert "knee_left 1 -> 2" in capsys.readouterr().out
    assert returns[0] == pytest.approx(returns[1], rel=1e-4)

    assert teacher_info.main([str(student), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["joint_order"] == [*THEIRS, *FEET[::-1]]
    assert described["joint_order_from"] == f"'{student}'"
    with pytest.raises(UserError, match="has its joints in another order than the task"):
        finetune.main([*HERE, "--checkpoint", str(student), "--max_iterations", "1", "--num_envs", "8"])


def test_teacher_info_shows_a_typed_order(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The order that will be used is in the table, and where it is from."""
    assert teacher_info.main([str(teacher), "distill.teacher.joint_order=[a,b,c,d]"]) == 0
    shown = capsys.readouterr().out
    assert "joint order" in shown and "['a', 'b', 'c', 'd']" in shown and "distill.teacher.joint_order" in shown
