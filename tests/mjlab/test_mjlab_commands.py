"""The commands on mjlab's tasks, each in a process of its own, as a user types them; and mjlab's own beside them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mjlab.envs import ManagerBasedRlEnv
from mjlab.rl import MjlabOnPolicyRunner, RslRlVecEnvWrapper
from mjlab.scripts import play
from mjlab.tasks.registry import load_env_cfg, load_rl_cfg
from mjlab_envs import CARTPOLE, GO1, ROOT, run_command, the_run
from safetensors.torch import load_file

from foundation.cli.command import run_command as run_main
from foundation.config.env_state import EnvState
from foundation.core.files import load_checkpoint
from foundation.rsl_rl import train
from foundation.teachers import TeacherPolicyWrapper

TEACHER = ROOT / "foundation" / "assets" / "teachers" / "mjlab_cartpole" / "model.pt"
CPU = ["--device", "cpu"]
SHORT = ["env.episode_length_s=2.0"]


def their_runner(folder: Path) -> tuple[MjlabOnPolicyRunner, RslRlVecEnvWrapper]:
    """Make mjlab's own runner of Cartpole-Balance, as its ``play`` does."""
    cfg = load_env_cfg(CARTPOLE, play=True)
    cfg.scene.num_envs = 4
    env = RslRlVecEnvWrapper(ManagerBasedRlEnv(cfg=cfg, device="cpu"))
    return MjlabOnPolicyRunner(env, asdict(load_rl_cfg(CARTPOLE)), str(folder), "cpu"), env


@pytest.fixture(scope="module")
def two_teachers(tmp_path_factory) -> Path:
    """A folder with a task of two skills and a teacher for each: the shipped one, and one that acts the other way.

    They have been trained for 10 and for 5000 env steps, by the counter that mjlab's runner writes.
    """
    folder = tmp_path_factory.mktemp("two_teachers")
    shutil.copy(Path(__file__).parent / "two_poles.py", folder)
    shutil.copytree(TEACHER.parent / "params", folder / "teachers" / "params")
    checkpoint = load_checkpoint(TEACHER)
    for name, steps, sign in (("left", 10, 1.0), ("right", 5000, -1.0)):
        actor = dict(checkpoint["actor_state_dict"])
        last = max(key for key in actor if key.startswith("mlp.")).split(".")[1]
        for part in ("weight", "bias"):
            actor[f"mlp.{last}.{part}"] = sign * actor[f"mlp.{last}.{part}"]
        infos = {"env_state": {"common_step_counter": steps}}
        torch.save({**checkpoint, "actor_state_dict": actor, "infos": infos}, folder / "teachers" / f"{name}.pt")
    return folder


TWO_POLES = ["--task", "two_poles:Test-Two-Poles", *CPU, "--num_envs", 4]


def test_an_integer_group_chooses_the_teacher_and_its_curriculum_goes_on(two_teachers):
    """Every label is that of the teacher that a group of integers names, in the stage of their training."""
    few = ["--num_episodes", 4, "--n_epochs", 2, "--num_eval_episodes", 4, "distill.final_eval_episodes=4"]
    expert = ["distill.teacher.expert=skill", "distill.student.obs_groups=[actor,skill]", "distill.teacher.check=false"]
    done = run_command(
        two_teachers, "distillation.py", *TWO_POLES, "--teacher_checkpoint", "teachers", *few, *expert,
        "--save_dataset", "labels", "--epoch_teacher_forcing", 1,
    )  # fmt: skip
    assert "the curriculum goes on after 5000 env steps" in done.stderr  # the later one's
    index = json.loads((two_teachers / "labels" / "dataset.json").read_text())
    teachers = [TeacherPolicyWrapper(two_teachers / "teachers" / f"{name}.pt") for name in ("left", "right")]
    chosen = []
    for entry in index["files"]:
        stored = load_file(two_teachers / "labels" / entry["file"])
        obs, labels = (stored["rows"][..., slice(*index["columns"][key])].flatten(0, 2) for key in ("obs", "mean"))
        skill = obs[:, 5].long()
        expected = torch.stack([teacher.act(obs[:, :5]) for teacher in teachers])[skill, torch.arange(len(skill))]
        assert torch.allclose(labels, expected, atol=1e-5)
        assert torch.equal(stored["teacher_index"].flatten().long(), skill)
        assert set(stored["episode_length"].tolist()) == {20}  # a second, where the first stage has two
        chosen.append(skill)
    assert 0.2 < torch.cat(chosen).float().mean() < 0.8
    run = the_run(two_teachers, "distillation")
    student = load_checkpoint(run / "final_student.pt")
    steps = json.loads((run / "summary.json").read_text())["env_steps"] // 4
    assert student["env_state"] == {"common_step_counter": 5000 + steps}  # what was measured in between does not count


def test_a_student_is_played_in_the_stage_that_it_was_distilled_in(two_teachers):
    """play.py goes on from the student's curriculum; without one, zero actions see the first stage."""
    few = ["--num_episodes", 4, "--json", "figures.json"]
    lengths = []
    for what in (["--checkpoint", "teachers/right.pt"], ["--agent", "zero"]):
        run_command(two_teachers, "play.py", *TWO_POLES, *few, *what)
        lengths.append(json.loads((two_teachers / "figures.json").read_text())["length"]["mean"])
    assert lengths == [20.0, 40.0]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Path:
    """A folder with a run that has distilled the shipped teacher, on short episodes."""
    folder = tmp_path_factory.mktemp("distilled")
    few = ["--num_envs", 16, "--num_episodes", 16, "--num_eval_episodes", 16, "distill.final_eval_episodes=16"]
    few += ["distill.student.obs_normalization=false"]  # Cartpole's own config has none, and mjlab's play goes by that
    few += ["--n_epochs", 8, "--epoch_teacher_forcing", 2, "--learning_rate", 3e-3, "distill.optimizer.update_ratio=8"]
    done = run_command(
        folder, "distillation.py", "--task", CARTPOLE, "--teacher_checkpoint", TEACHER, *CPU, *few, *SHORT
    )
    assert "engine 'mjlab' can run Mjlab-Cartpole-Balance" in done.stderr
    assert "Teacher observation groups: actor 5" in done.stdout
    return folder


def test_the_shipped_teacher_is_distilled_and_played(distilled):
    """Found by the task's name: the student has the teacher's return, on groups that the task's config names."""
    run = the_run(distilled, "distillation")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["return_ratio"] > 0.99
    assert summary["baselines"]["random"]["mean_return"] < 0.7 * summary["teacher_return"]
    video = ["--video", "--video_length", 10]
    run_command(distilled, "play.py", *CPU, *SHORT, *video, "--num_episodes", 8, "--json", "figures.json")
    figures = json.loads((distilled / "figures.json").read_text())
    assert (figures["engine"], figures["num_envs"]) == ("mjlab", 8)
    assert figures["return"]["mean"] == pytest.approx(summary["teacher_return"], rel=0.02)
    clips = list(run.rglob("rl-video-step-0.mp4"))
    assert len(clips) == 1 and clips[0].stat().st_size > 1000


def test_a_student_is_trained_on(distilled):
    """finetune.py goes on from a student of mjlab's task, with the task's critic group."""
    student = the_run(distilled, "distillation") / "best_student.pt"
    few = ["--num_envs", 8, "--max_iterations", 1, "--checkpoint", student, "--task", CARTPOLE]
    done = run_command(distilled, "finetune.py", *CPU, *SHORT, *few)
    assert "obs=5 (actor)" in done.stdout and "obs=5 (critic)" in done.stdout


def test_a_student_in_rsl_rls_layout_is_played_by_mjlabs_play(distilled, tmp_path, monkeypatch):
    """What export.py writes acts in mjlab's own ``play`` as the student does; only the window is left out."""
    student = the_run(distilled, "distillation") / "best_student.pt"
    run_command(tmp_path, "export.py", "--checkpoint", student, "--formats", "rsl_rl", "--output", tmp_path / "out")
    written = next((tmp_path / "out").rglob("model_0.pt"))
    expected = TeacherPolicyWrapper(student)
    seen = []

    class Window:
        def __init__(self, env, policy, **options):
            self.env, self.policy = env, policy

        def run(self):
            obs = self.env.get_observations()
            for _ in range(20):
                with torch.inference_mode():
                    actions = self.policy(obs)
                    seen.append((actions - expected.act(obs["actor"])).abs().max())
                    obs = self.env.step(actions)[0]

    monkeypatch.setattr(play, "ViserPlayViewer", Window)
    play.run_play(CARTPOLE, play.PlayConfig(checkpoint_file=str(written), viewer="viser", num_envs=4, device="cpu"))
    assert len(seen) == 20 and max(seen) < 1e-6


def test_a_checkpoint_of_mjlabs_own_training_is_read(tmp_path):
    """Its command trains, its files stay as they are: architecture, groups and actions are understood."""
    few = ["--env.scene.num-envs", 8, "--agent.max-iterations", 1, "--agent.logger", "tensorboard"]
    run_command(tmp_path, "mjlab.scripts.train", CARTPOLE, *few, "--gpu-ids", "None")
    run = the_run(tmp_path, "rsl_rl")
    checkpoint = run / "model_0.pt"
    teacher = TeacherPolicyWrapper(checkpoint)
    assert (teacher.num_obs, teacher.num_actions, teacher.obs_groups) == (5, 1, ["actor"])
    assert teacher.info.env_state == EnvState(load_rl_cfg(CARTPOLE).num_steps_per_env)  # of one iteration
    runner, env = their_runner(tmp_path / "theirs")
    runner.load(str(checkpoint), load_cfg={"actor": True}, strict=True, map_location="cpu")
    obs = env.get_observations()
    expected = runner.get_inference_policy(device="cpu")(obs)
    assert torch.allclose(teacher.act(obs["actor"]), expected, atol=1e-6)
    described = run_command(tmp_path, "teacher_info.py", checkpoint).stdout
    assert "elu" in described and "actor" in described


def test_ppo_trains_and_resumes(tmp_path):
    """train.py runs RSL-RL's PPO with the task's own settings, with graphs and overrides, and goes on where it was."""
    few = ["--task", CARTPOLE, "--num_envs", 8, "--max_iterations", 2, *CPU, "agent.num_steps_per_env=8"]
    done = run_command(
        tmp_path, "train.py", *few, "--cpu_graphs", "episode_length_s=1.0", "agent.actor.activation=relu"
    )
    assert "CPU graphs are on" in done.stderr
    run = the_run(tmp_path, "rsl_rl")
    assert (run / "best_model.pt").is_file()
    assert re.search(r"activation: relu", (run / "params" / "agent.yaml").read_text())
    assert re.search(r"episode_length_s: 1.0", (run / "params" / "env.yaml").read_text())
    again = run_command(tmp_path, "train.py", *few, "--resume", "agent.actor.activation=relu")
    assert "Learning iteration 2/" in again.stdout
    assert "the curriculum goes on after 16 env steps" in again.stderr
    newest = max((tmp_path / "logs" / "rsl_rl").glob("*/*"), key=lambda folder: folder.name)
    resumed = newest / "model_3.pt"
    runner, env = their_runner(tmp_path / "theirs")
    runner.load(str(resumed), load_cfg={"critic": True}, strict=True, map_location="cpu")
    assert env.unwrapped.common_step_counter == 32  # mjlab's own runner goes on from it, too


def test_go1_trains_and_teaches(tmp_path):
    """Velocity tracking on a flat floor: eight robots, an iteration of PPO, two epochs of distillation."""
    few = ["--task", GO1, "--num_envs", 8, *CPU, "env.episode_length_s=1.0"]
    run_command(tmp_path, "train.py", *few, "--max_iterations", 1, "agent.num_steps_per_env=8")
    teacher = next(the_run(tmp_path, "rsl_rl").glob("best_model.pt"))
    distil = ["--n_epochs", 2, "--epoch_teacher_forcing", 1, "--num_episodes", 8, "--num_eval_episodes", 8]
    distil += ["distill.final_eval_episodes=8", "distill.teacher.check=false", "--teacher_checkpoint", teacher]
    done = run_command(tmp_path, "distillation.py", *few, *distil)
    assert "actions=12" in done.stdout
    assert (the_run(tmp_path, "distillation") / "best_student.pt").is_file()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--task", "Mjlab-Cartpole-Balnce"], r"Did you mean 'Mjlab-Cartpole-Balance'"),
        (["--engine", "mjlab", "--task", "Mjlab-Cartpole-Balnce"], r"does not know it. Did you mean 'Mjlab-Cartpole-B"),
        (["--engine", "mjlab", "--task", "Isaac-Quadcopter-Point-Ctrl-v0"], r"does not know it. Valid are: Mjlab-"),
        (["--task", CARTPOLE, "env.scene.num_env=8"], r"unknown key 'env.scene.num_env'. Did you mean 'num_envs'\?"),
        (["--task", CARTPOLE, "env.rewards.smooth_rewrd.weight=2"], r"Did you mean 'smooth_reward'\?"),
        (["--task", CARTPOLE, "env.scene.num_envs=0"], r"env.scene.num_envs must be at least 1, it is 0"),
        (["--task", CARTPOLE, "env.episode_length_s=0.0"], r"env.episode_length_s must be positive"),
        (
            ["--task", CARTPOLE, "--agent", "other_cfg_entry_point"],
            r"tasks have one agent config; leave it out",
        ),
        (["--task", "Mjlab-Tracking-Flat-Unitree-G1"], r"give env.commands.motion.motion_file=PATH"),
    ],
)
def test_a_mistake_is_one_line(tokens, message, tmp_path, monkeypatch, capsys):
    """Misspelt ids and keys, another engine's task and impossible sizes: exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert run_main(train.main, [*tokens, *CPU, "--max_iterations", "1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and re.search(message, last), last
    assert not list(tmp_path.rglob("*"))


def test_a_teacher_of_other_sizes_is_one_line(distilled, tmp_path):
    """A teacher of Cartpole on Go1: both sizes, and the groups that there are."""
    done = run_command(
        tmp_path, "distillation.py", "--task", GO1, "--num_envs", 2, "--teacher_checkpoint", TEACHER, *CPU, expect=2
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: The teacher expects 5 observations, but distill.teacher.obs_groups=['actor'] gives 48"
    )
    assert "actor (48), critic (72)" in last
