"""``finetune.py`` from its command line: a run, resumed, played, exported, taught from; mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import NUM_ACTIONS, TASK, differing, write_teacher

from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.rsl_rl import distillation, export, finetune, play
from foundation.runs.run_dir import RunDir
from foundation.students import StudentPolicy

SMALL = ["--device", "cpu", "--num_envs", "8", "env.episode_length_s=0.4", "num_steps_per_env=8"]
FEW = ["--max_iterations", "4", "--num_eval_episodes", "8", "--final_eval_episodes", "8", "--eval_interval", "2"]


@pytest.fixture
def student(tmp_path, monkeypatch) -> Path:
    """An untrained student of the deployable observations, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDir, "lock", lambda run: None)  # the run to go on with was this process too
    torch.manual_seed(0)
    policy = StudentPolicy(22, NUM_ACTIONS, (8,))
    with torch.no_grad():
        policy.mean.bias.fill_(0.6)
    values = {"student": policy.describe(), "model_state_dict": policy.state_dict(), "task": TASK}
    torch.save(values | {"obs_groups": ["deployable"], "obs_slice": None, "clip_actions": 1.0}, tmp_path / "s.pt")
    return tmp_path / "s.pt"


def run_of(folder: Path, command: str = "finetune") -> Path:
    """The newest run under a working folder."""
    return sorted((folder / "logs" / command).glob("*/*"))[-1]


def test_a_student_is_fine_tuned_resumed_played_exported_and_teaches(student, tmp_path, capsys):
    """The task and the observations come from the checkpoint; each command takes the result as it is."""
    argv = ["--checkpoint", str(student), *SMALL, *FEW, "--kl_coef", "0.5", "--critic_warmup_iterations", "1"]
    assert finetune.main([*argv, "--run_name", "first"]) == 0
    run = run_of(tmp_path)
    assert {path.name for path in run.glob("*.pt")} == {
        "start_student.pt",
        "best_student.pt",
        "final_student.pt",
        "checkpoint_latest.pt",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert summary["critic_warmup_iterations"] == 1 and summary["env_steps"] == 4 * 8 * 8
    assert load_yaml(run / "params" / "finetune.yaml")["kl_coef"] == 0.5
    for typed, says in ((["--init_std", "0.3"], "--init_std is 0.3"), (["--run_name", "x"], "--run_name is 'x'")):
        with pytest.raises(UserError, match=f"{says}, .*(run began with|goes on in)"):
            finetune.main(["--resume", "--load_run", run.name, *typed])
    assert finetune.main(["--resume", "--load_run", run.name, "--max_iterations", "5"]) == 0
    assert "after iteration 4 (exact, but max_iterations is 5, was 4)" in capsys.readouterr().out
    best = run / "best_student.pt"
    small = ["--device", "cpu", "--num_envs", "8", "--num_episodes", "8", "env.episode_length_s=0.4"]
    assert play.main(["--load_run", run.name, *small]) == 0
    assert export.main(["--checkpoint", str(best), "--formats", "rsl_rl", "--output", str(tmp_path / "out")]) == 0
    taught = ["--task", TASK, "--teacher_checkpoint", str(best), "--n_epochs", "1", "--num_episodes", "8", *SMALL[:5]]
    taught += ["distill.student.obs_groups=[deployable]", "distill.teacher.check=false", "--num_eval_episodes", "8"]
    assert distillation.main([*taught, "--final_eval_episodes", "8"]) == 0
    stage = ["--checkpoint", str(best), "--teacher_checkpoint", str(best), str(student), *SMALL, *FEW]
    assert finetune.main([*stage, "--alpha", "0.5", "finetune.teacher.weights.teacher2=0.5"]) == 0


def test_a_whole_run_and_one_that_was_killed_half_way_end_with_the_same_bits(student, tmp_path):
    """What is on disk after an iteration is all that going on needs: a copy of it is resumed to the same end."""
    argv = ["--checkpoint", str(student), *SMALL, *FEW, "--critic_warmup_iterations", "1", "--save_interval", "2"]
    assert finetune.main([*argv, "--run_name", "a"]) == 0
    whole = run_of(tmp_path)
    checkpoint = whole / "checkpoint_epoch_2.pt"
    kept = {name: (whole / name).read_bytes() for name in ("final_student.pt", "checkpoint_latest.pt")}
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    (whole / "checkpoint_latest.pt").write_bytes(checkpoint.read_bytes())
    assert finetune.main(["--resume", "--load_run", whole.name]) == 0
    for name in kept:
        assert not differing(tmp_path / name, whole / name), name


def test_a_run_with_a_teacher_from_scratch_by_its_preset(tmp_path, monkeypatch):
    """``experiment=dagger_to_ppo`` sets the schedule of alpha and the fresh actor; flags beat it."""
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    argv = ["--task", TASK, "--teacher_checkpoint", str(teacher), *SMALL, *FEW, "experiment=dagger_to_ppo"]
    assert finetune.main([*argv, "student.hidden_dims=[16]"]) == 0
    values = load_yaml(run_of(tmp_path) / "params" / "finetune.yaml")
    assert values["alpha"]["kind"] == "linear" and values["max_iterations"] == 4
    assert values["student"]["hidden_dims"] == [16] and values["loss"]["name"] == "huber"


def test_the_preset_for_a_policy_that_is_good_already(student, tmp_path, capsys):
    """``experiment=polish`` sets PPO's rollouts and steps in the agent config, too; what is typed beats it."""
    typed = ["experiment=polish", "agent.num_steps_per_env=64", "--init_std", "0.03", "--cfg", "job"]
    assert finetune.main(["--checkpoint", str(student), *typed]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    agent, own = shown["agent"], shown["finetune"]
    assert (agent["algorithm"]["lam"], agent["algorithm"]["schedule"], agent["num_steps_per_env"]) == (1.0, "fixed", 64)
    assert (own["critic"]["warmup_iterations"], own["learning_rate"], own["actor"]["init_std"]) == (15, 3e-5, 0.03)


BAD = [
    (["--checkpoint", "missing.pt"], "--checkpoint: 'missing.pt' does not exist"),
    (["--checkpoint", "{s}", "--teacher_checkpoint", "gone.pt"], "--teacher_checkpoint: 'gone.pt' does not exist"),
    (["--checkpoint", "{s}", "--alpha", "2"], "--alpha is 2: it must be from 0 to 1"),
    (["--checkpoint", "{s}", "kl_coef={{kind: linear, start: 1.0, end: -1.0}}"], "finetune.kl_coef.end is -1"),
    (["--checkpoint", "{s}", "finetune.aplha=1"], "Did you mean 'alpha'?"),
    (["--checkpoint", "{s}", "--kl_cof", "1"], "unknown flag '--kl_cof'. Did you mean '--kl_coef'"),
    (["--checkpoint", "{s}", "finetune.actor.obs_groups=[policy]"], "The policy expects 22 observations"),
    (["--checkpoint", "{s}", "--teacher_checkpoint", "{s}", "--kl_coef", "1"], "teacher1 is deterministic"),
    (["--checkpoint", "{s}", "--load_run", "x"], "add --resume"),
    (["--checkpoint", "{s}", "experiment=dager_to_ppo"], "unknown experiment 'dager_to_ppo'"),
    (["--task", TASK], "no policy to start from: give --checkpoint PATH"),
    (["--checkpoint", "{s}", "replay.dataset=nowhere"], "nowhere"),
    (["--checkpoint", "{s}", "agent.algorithm.num_mini_batches=0"], "num_mini_batches must be at least 1"),
]


@pytest.mark.parametrize(("argv", "says"), BAD)
def test_a_mistake_is_one_line_and_leaves_no_run(argv, says, student, tmp_path):
    """The line says what is wrong and what to type; no folder is left behind."""
    typed = [word.format(s=student) for word in argv]
    with pytest.raises(UserError) as error:
        finetune.main([*typed, *SMALL, *FEW])
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "logs").rglob("*.pt")) if (tmp_path / "logs").exists() else True


def test_the_configs_of_a_command_line_are_shown_without_a_run(student, tmp_path, capsys):
    """``--cfg job`` prints env, agent and finetune, what was typed put in."""
    assert finetune.main(["--checkpoint", str(student), "kl.off_after=7", "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    assert "finetune:" in out and "off_after: 7" in out and not (tmp_path / "logs").exists()


def test_an_old_task_is_replayed_and_its_weights_held_back(student, tmp_path):
    """A dataset that ``distillation.py --save_dataset`` wrote for the same observations is replayed; EWC uses it."""
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    collect = ["--task", TASK, "--teacher_checkpoint", str(teacher), "--n_epochs", "2", "--num_episodes", "16"]
    collect += [*SMALL[:5], "distill.student.obs_groups=[deployable]", "distill.teacher.check=false"]
    collect += ["--num_eval_episodes", "8", "--final_eval_episodes", "8", "--save_dataset", str(tmp_path / "old")]
    assert distillation.main(collect) == 0
    argv = ["--checkpoint", str(student), *SMALL, *FEW, f"replay.dataset={tmp_path / 'old'}", "replay.batch_size=32"]
    assert (
        finetune.main([*argv, "finetune.ewc.coef=1.0", "finetune.ewc.samples=16", "--critic_warmup_iterations", "0"])
        == 0
    )
    assert (run_of(tmp_path) / "summary.json").exists()
