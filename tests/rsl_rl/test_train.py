"""train.py as a user types it, on the built-in task."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rsl_rl_versions import ROOT, VERSIONS, run_with, version_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foundation.cli.command import run_command
from foundation.engines.torch import TorchEngine
from foundation.rsl_rl.train import main

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
TRAIN = ROOT / "foundation" / "rsl_rl" / "train.py"
SMALL = ["--num_envs", "16", "agent.num_steps_per_env=8", "agent.actor.hidden_dims=[16,16]",
         "agent.critic.hidden_dims=[16,16]", "agent.num_eval_episodes=8", "--device", "cpu"]  # fmt: skip
DISTIL = ["--num_envs", "16", "agent.num_steps_per_env=8", "agent.teacher.hidden_dims=[16,16]",
          "agent.student.hidden_dims=[8]", "agent.num_eval_episodes=8", "--device", "cpu"]  # fmt: skip

DRIVER = """
import sys
from foundation.cli.command import run_command
from foundation.rsl_rl.train import main
for line in sys.argv[1:]:
    code = run_command(main, ["--task", "Isaac-Quadcopter-Point-Ctrl-v0", *line.split()])
    assert code == 0, (line, code)
"""


@pytest.fixture(autouse=True)
def fresh_log_handlers():
    """Let each test's own stderr take the log lines."""
    logging.getLogger("foundation").handlers.clear()


def newest(folder: Path, experiment: str) -> Path:
    return sorted((folder / "logs" / "rsl_rl" / experiment).iterdir())[-1]


@pytest.fixture(scope="module", params=VERSIONS)
def three_runs(request, tmp_path_factory):
    """With one release: two iterations, one more resumed from them, and stock distillation of the result."""
    folder = tmp_path_factory.mktemp(request.param)
    done = run_with(
        request.param, "-c", DRIVER,
        " ".join([*SMALL, "--max_iterations 2 --experiment_name a"]),
        " ".join([*SMALL, "--max_iterations 1 --experiment_name a --resume --run_name again"]),
        " ".join([*DISTIL, "--max_iterations 2 --experiment_name a --agent rsl_rl_distillation_cfg_entry_point"]),
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, again, student = sorted((folder / "logs" / "rsl_rl" / "a").iterdir())
    return {"first": first, "again": again, "student": student, "log": done.stderr}


@pytest.mark.slow
def test_every_release_trains_resumes_and_distils(three_runs):
    """Each release leaves RSL-RL's files, best_model.pt and the parameters; the iteration counter continues."""
    first, again, student = (three_runs[name] for name in ("first", "again", "student"))
    assert again.name.endswith("_again")
    for run, files in ((first, {"model_0.pt", "model_1.pt"}), (again, {"model_2.pt"}), (student, {"model_1.pt"})):
        assert files | {"best_model.pt", "summary.json", "params"} <= {p.name for p in run.iterdir()}
        assert {p.name for p in (run / "params").iterdir()} >= {"env.yaml", "env.pkl", "agent.yaml", "agent.pkl"}
    assert not (again / "model_0.pt").exists()
    before = torch.load(first / "model_1.pt", weights_only=True)["optimizer_state_dict"]["state"]
    after = torch.load(again / "model_2.pt", weights_only=True)["optimizer_state_dict"]["state"]
    steps = [int(state[max(state)]["step"]) for state in (before, after)]
    assert steps[1] * 2 == steps[0] * 3, "the optimiser's step count goes on from two iterations to three"


@pytest.mark.slow
def test_stock_distillation_takes_the_best_teacher(three_runs):
    """Without --checkpoint the distillation run takes best_model.pt of the newest run, and leaves its policy alone."""
    best = torch.load(three_runs["again"] / "best_model.pt", weights_only=True)
    saved = torch.load(three_runs["student"] / "model_1.pt", weights_only=True)
    if "model_state_dict" in best:
        expected = best["model_state_dict"]["actor.0.weight"]
        teacher = saved["model_state_dict"]["teacher.0.weight"]
    else:
        expected, teacher = best["actor_state_dict"]["mlp.0.weight"], saved["teacher_state_dict"]["mlp.0.weight"]
    assert torch.equal(expected, teacher)
    assert f"teacher: {Path('logs') / 'rsl_rl' / 'a' / three_runs['again'].name / 'best_model.pt'}" in three_runs["log"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One small run in this process, with overrides and flags."""
    folder = tmp_path_factory.mktemp("train")
    previous = Path.cwd()
    os.chdir(folder)
    try:
        argv = ["--task", TASK, *SMALL, "--max_iterations", "7", "--seed", "5", "--run_name", "mine", "--headless",
                "agent.eval_interval=2", "env.scene.num_envs=4", "agent.algorithm.gamma=0.9"]  # fmt: skip
        assert run_command(main, argv) == 0
    finally:
        os.chdir(previous)
    return newest(folder, "quadcopter_point_ctrl")


def test_parameters_show_flags_and_overrides(run):
    """Overrides reach the configs, a flag beats an override, and the pickles are the configs themselves."""
    env = yaml.safe_load((run / "params" / "env.yaml").read_text())
    agent = yaml.safe_load((run / "params" / "agent.yaml").read_text())
    assert run.name.endswith("_mine")
    assert (env["scene"]["num_envs"], env["seed"]) == (16, 5)
    assert (agent["seed"], agent["algorithm"]["gamma"], agent["max_iterations"]) == (5, 0.9, 7)
    assert pickle.loads((run / "params" / "agent.pkl").read_bytes()).to_dict() == agent


def test_best_model_is_the_iteration_that_evaluated_best(run):
    """best_model.pt is of the iteration with the highest evaluation/mean_return, re-measured at the end."""
    events = EventAccumulator(str(run))
    events.Reload()
    curve = {e.step: e.value for e in events.Scalars("evaluation/mean_return")}
    assert sorted(curve) == [0, 2, 4, 6]
    best = torch.load(run / "best_model.pt", weights_only=True)
    assert best["iter"] == max(curve, key=lambda step: curve[step])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["iteration"] == best["iter"]
    assert summary["best"]["mean_return"] == pytest.approx(max(curve.values()), rel=1e-5)
    assert {"mean_return", "success_rate", "mean_length"} <= set(summary["fresh"])


def test_reward_terms_reach_tensorboard(run):
    """The task's Episode_Reward/* and RSL-RL's own tags are logged side by side."""
    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert any(tag.startswith("Episode_Reward/") for tag in tags)
    assert {"Loss/learning_rate", "Perf/total_fps", "evaluation/success_rate"} <= set(tags)


def test_same_seed_same_policy_other_seed_another(tmp_path, monkeypatch):
    """Two runs of one seed end with bit-identical networks; another seed differs."""
    monkeypatch.chdir(tmp_path)
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        argv = ["--task", TASK, *SMALL, "--max_iterations", "2", "--seed", str(seed), "--experiment_name", name]
        assert run_command(main, argv) == 0
        weights.append(torch.load(newest(tmp_path, name) / "model_1.pt", weights_only=True)["actor_state_dict"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not torch.equal(weights[0]["mlp.0.weight"], weights[2]["mlp.0.weight"])


def test_engine_with_one_environment(tmp_path, monkeypatch):
    """Where a process can hold one environment only, best_model.pt is chosen by the training return."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TorchEngine, "envs_per_process", 1)
    argv = ["--task", TASK, *SMALL, "--max_iterations", "12", "agent.eval_interval=1", "--experiment_name", "one"]
    assert run_command(main, argv) == 0
    run = newest(tmp_path, "one")
    events = EventAccumulator(str(run))
    events.Reload()
    measured, trained = (
        {e.step: e.value for e in events.Scalars(tag)} for tag in ("evaluation/mean_return", "Train/mean_reward")
    )
    assert measured == pytest.approx(trained, rel=1e-5)
    best = torch.load(run / "best_model.pt", weights_only=True)
    assert best["iter"] == max(trained, key=lambda step: trained[step])


WRONG = {
    "no task": ([], "--task"),
    "unknown task": (["--task", "Isaac-Quadcopter-Point-Control-v0"], TASK),
    "unknown flag": (["--task", TASK, "--num_env", "4"], "--num_envs"),
    "no environments": (["--task", TASK, "--num_envs", "0"], "num_envs"),
    "no iterations": (["--task", TASK, "agent.max_iterations=0"], "max_iterations"),
    "text for a number": (["--task", TASK, "--max_iterations", "many"], "max_iterations"),
    "unknown env key": (["--task", TASK, "env.scene.num_env=4"], "num_envs"),
    "unknown agent key": (["--task", TASK, "agent.algorithm.learnign_rate=1e-3"], "learning_rate"),
    "wrong type": (["--task", TASK, "agent.algorithm.gamma=high"], "gamma"),
    "learning rate nan": (["--task", TASK, "agent.algorithm.learning_rate=nan"], "learning_rate"),
    "unknown agent entry point": (["--task", TASK, "--agent", "rsl_rl_cfg_entry"], "rsl_rl_cfg_entry_point"),
    "unknown runner": (["--task", TASK, "agent.class_name=OnPolicyRuner"], "OnPolicyRunner"),
    "unknown group": (["--task", TASK, "agent.obs_groups={actor:[polcy],critic:[policy]}"], "polcy"),
    "unknown logger": (["--task", TASK, "--logger", "tensorbord"], "tensorboard"),
    "unknown engine": (["--task", TASK, "--engine", "torchh"], "torch"),
    "no such device": (["--task", TASK, "--device", "cuda:77"], "cuda:77"),
    "nothing to resume": (["--task", TASK, "--resume"], "no run found"),
    "checkpoint without resume": (["--task", TASK, "--checkpoint", "model_0.pt"], "--resume"),
    "missing checkpoint": (["--task", TASK, "--resume", "--checkpoint", "./no.pt"], "no.pt"),
    "empty checkpoint": (["--task", TASK, "--resume", "--checkpoint", "./empty.pt"], "empty.pt"),
    "foreign checkpoint": (["--task", TASK, "--resume", "--checkpoint", "./foreign.pt"], "foreign.pt"),
    "no teacher": (["--task", TASK, "--agent", "rsl_rl_distillation_cfg_entry_point"], "--checkpoint"),
    "name with slash": (["--task", TASK, "--experiment_name", "../out"], "experiment_name"),
    "distributed alone": (["--task", TASK, "--distributed"], "torchrun"),
    "init_output of wrong size": (["--task", TASK, "agent.actor.init_output=[0.1,0.2]"], "init_output"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case, tmp_path, monkeypatch, capfd):
    """A user's mistake ends with code 2 and one line that names the remedy; no run is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pt").touch()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    argv, hint = WRONG[case]
    assert run_command(main, argv + (["--num_envs", "4"] if "--num_envs" not in argv and argv else [])) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and hint in lines[0], lines
    assert not list(tmp_path.glob("logs/rsl_rl/*/*"))


def test_import_has_no_side_effects(tmp_path):
    """Importing the command parses nothing and imports neither torch nor RSL-RL; --help exits with 0."""
    code = (
        "import sys; sys.argv = ['x', '--nonsense']; import foundation.rsl_rl.train; "
        "print([m for m in ('torch', 'rsl_rl') if m in sys.modules])"
    )
    assert run_with(VERSIONS[-1], "-c", code, cwd=tmp_path).stdout.strip() == "[]"
    shown = run_with(VERSIONS[-1], TRAIN, "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--max_iterations" in shown.stdout and "--agent" in shown.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits(number, tmp_path):
    """Ctrl-C or SIGTERM ends a run within seconds, with a checkpoint that --resume could take."""
    argv = [sys.executable, str(TRAIN), "--task", TASK, *SMALL, "--max_iterations", "100000"]
    process = subprocess.Popen(argv, cwd=tmp_path, env=version_env(VERSIONS[-1]), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("logs/rsl_rl/*/*/best_model.pt")) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(timeout=60) == 128 + number
        assert time.monotonic() - sent < 15  # five seconds on an idle machine
    finally:
        process.kill()
    last = sorted(tmp_path.glob("logs/rsl_rl/*/*/model_*.pt"), key=lambda p: int(p.stem.partition("_")[2]))[-1]
    assert torch.load(last, weights_only=True)["iter"] == int(last.stem.partition("_")[2])


def student_file(folder: Path) -> Path:
    """What makes a file a student of distillation.py."""
    path = folder / "best_student.pt"
    torch.save({"student": {"name": "mlp"}, "model_state_dict": {}, "distillation": {}, "task": TASK}, path)
    return path


@pytest.mark.parametrize(
    "flags",
    [
        ["--resume", "--checkpoint", "{path}"],
        ["--checkpoint", "{path}"],
        ["--resume", "--load_run", "{folder}", "--checkpoint", "best_student.pt"],
        ["--resume", "--load_run", "{folder}", "--checkpoint", "best*"],
    ],
)
def test_a_student_is_named_and_what_can_be_done_with_it(flags, tmp_path, monkeypatch, capsys):
    """PPO cannot go on with one: the line says so, before any folder is made, and names the command to type instead."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    path = student_file(folder)
    typed = [flag.format(path=path, folder=folder) for flag in flags]
    assert run_command(main, ["--task", TASK, *SMALL, *typed]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} is a student of distillation.py" in error
    assert f"finetune.py --task {TASK} --checkpoint {path};" in error
    assert f"distill.student.init_checkpoint={path}" in error and "--formats rsl_rl" in error
    assert not (tmp_path / "logs").exists()


def test_what_was_typed_is_interpolated_checked_and_named_where_a_flag_beats_it(tmp_path, monkeypatch, capsys):
    """Run names may hold ``${...}``, a seed below zero is refused, and ``--device`` says what it beats."""
    monkeypatch.chdir(tmp_path)
    small = ["--task", TASK, *SMALL, "--max_iterations", "1", "agent.eval_interval=0"]
    argv = [*small, "--run_name", "s${agent.seed}_${now:%Y}", "env.sim.device=cuda:7", "agent.seed=8"]
    assert run_command(main, argv) == 0
    assert newest(tmp_path, "quadcopter_point_ctrl").name.endswith(f"_s8_{time.strftime('%Y')}")
    assert "--device cpu beats env.sim.device=cuda:7" in capsys.readouterr().err
    for token, says in (("env.seed=-1", "env.seed is -1"), ("agent.algorithm.optimizer=2", "optimizer is '2'")):
        assert run_command(main, [*small, token]) == 2
        assert says in capsys.readouterr().err


ODD_DTYPE = """
import gymnasium, torch
from foundation.config.agent_cfg import OnPolicyRunnerCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

class WholeEnv(QuadcopterPointCtrlEnv):
    def get_observations(self):
        obs = super().get_observations().clone()
        obs["policy"] = obs["policy"].to(torch.int64)
        return obs

own = dict(gymnasium.spec("Isaac-Quadcopter-Point-Ctrl-v0").kwargs, torch_env_entry_point="whole_task:WholeEnv")
gymnasium.register(id="Whole-v0", entry_point="whole_task:WholeEnv", kwargs=own)
"""


def test_observations_that_rsl_rl_cannot_compute_on_are_named(tmp_path, monkeypatch, capsys):
    """Integers: one line with the method, the group and what to return, and not RSL-RL's traceback; no folder stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "whole_task.py").write_text(ODD_DTYPE)
    assert run_command(main, ["--task", "whole_task:Whole-v0", *SMALL, "--max_iterations", "1"]) == 2
    error = capsys.readouterr().err
    assert "WholeEnv.get_observations() returned group 'policy' of torch.int64" in error
    assert "return policy.float() there" in error and "Traceback" not in error
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["agent.algorithm.num_mini_batches=-1"], "agent.algorithm.num_mini_batches must be at least 1, it is -1"),
        (["agent.algorithm.num_learning_epochs=0"], "agent.algorithm.num_learning_epochs must be at least 1"),
        (["agent.algorithm.gamma=-1"], "agent.algorithm.gamma must be from 0 to 1, it is -1"),
        (["agent.algorithm.lam=1.5"], "agent.algorithm.lam must be from 0 to 1, it is 1.5"),
        (["agent.algorithm.clip_param=-1"], "agent.algorithm.clip_param must be above 0"),
        (["agent.algorithm.max_grad_norm=0"], "agent.algorithm.max_grad_norm must be above 0"),
        (["agent.algorithm.desired_kl=-1"], "agent.algorithm.desired_kl must be above 0"),
        (["agent.algorithm.num_mini_batches=1000000"], "num_mini_batches is 1000000: it must be at most"),
        (["agent.num_steps_per_env=2000000000"], "agent.num_steps_per_env=2000000000 in"),
        (["agent.num_steps_per_env=9000000000000"], "agent.num_steps_per_env must be at most 2147483647"),
        (["--max_iterations", "9000000000000000"], "is too large: it must be at most 2147483647"),
        (["env.scene=null"], "env.scene=null"),
        (["env.init=null"], "env.init=null: this task needs it"),
        (["env.episode_length_s=inf"], "env.episode_length_s must be at most"),
    ],
)
def test_numbers_that_cannot_be_meant_are_one_line(argv, says, tmp_path, monkeypatch, capsys):
    """RSL-RL would train nothing, something else or for ever, and say so nowhere; no folder stays."""
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["--task", TASK, *SMALL, *argv]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
