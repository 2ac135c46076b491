"""play.py: what it finds, what it measures, what it writes, and what it refuses."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest
import torch

from foundation.cli.command import Interrupt, run_command
from foundation.cli.played_policy import PlayedPolicy, find_checkpoint
from foundation.engines.base import Engine
from foundation.rsl_rl import play
from foundation.students import make_student, student_cfg_class
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

STUDENT = "run/best_student.pt"
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Run in an empty folder: logs/ is looked for there."""
    monkeypatch.chdir(tmp_path)


def save_student(folder: str, name: str = "mlp", group: str = "policy", num_obs: int = 26, **rest) -> Path:
    """Write an untrained student's checkpoint; its last layer is biased so that it plays about one action."""
    torch.manual_seed(0)
    student = make_student(student_cfg_class(name)(name=name), num_obs, 4)
    with torch.no_grad():
        student.mean.weight.mul_(0.1)
        student.mean.bias.fill_(0.6)
    path = Path(folder) / "best_student.pt"
    path.parent.mkdir(parents=True)
    saved = {"student": student.describe(), "model_state_dict": student.state_dict(), "obs_groups": [group]}
    torch.save({**saved, "obs_slice": None, "clip_actions": None, "task": TASK, "epoch": 1, **rest}, path)
    return path


def run(*argv: str, code: int = 0) -> dict:
    """Run the command with ``--json`` and return what it wrote."""
    assert run_command(play.main, [*argv, "--device", "cpu", "--json", "out/play.json"]) == code
    path = Path("out/play.json")
    return json.loads(path.read_text()) if path.exists() else {}


def first_episodes(seed: int, num_envs: int, act) -> tuple[list[float], list[int]]:
    """Step the environment by hand until each one's first episode has ended."""
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = num_envs
    env = QuadcopterPointCtrlEnv(cfg)
    obs = env.reset(seed)
    returns, lengths, ended = [0.0] * num_envs, [0] * num_envs, [False] * num_envs
    while not all(ended):
        obs, rewards, dones, _ = env.step(act(obs))
        for i in range(num_envs):
            if not ended[i]:
                returns[i] += float(rewards[i])
                lengths[i] += 1
                ended[i] = bool(dones[i])
    return returns, lengths


def test_zero_actions_score_what_stepping_by_hand_scores(capsys):
    """The first episode of each environment from the seed's initial states, and no other."""
    figures = run("--task", TASK, "--agent", "zero", "--num_episodes", "6", "--seed", "3")
    returns, lengths = first_episodes(3, 6, lambda obs: torch.zeros(6, 4))
    assert figures["num_episodes"] == figures["num_envs"] == 6
    assert figures["return"]["mean"] == pytest.approx(sum(returns) / 6, abs=1e-3)
    assert figures["length"]["mean"] == pytest.approx(sum(lengths) / 6)
    assert "parameters" not in figures and "inference_us" not in figures
    shown = capsys.readouterr().out
    assert "length [steps]" in shown and "position error [cm]" in shown and "zero actions" in shown


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_a_student_is_rebuilt_from_its_checkpoint_alone(name):
    """Architecture, observation groups and task come from the file; the episodes are the student's own."""
    path = save_student("somewhere", name, "deployable", 22)
    figures = run("--checkpoint", str(path), "--num_episodes", "5")
    student = make_student(student_cfg_class(name)(name=name), 22, 4)
    student.load_state_dict(torch.load(path, weights_only=True)["model_state_dict"])
    state = [student.initial_state(5)]

    def act(obs):
        output, state[0] = student.step(obs["deployable"], state[0])
        return output.mean

    with torch.no_grad():
        returns, _ = first_episodes(42, 5, act)
    assert figures["task"] == TASK
    assert figures["return"]["mean"] == pytest.approx(sum(returns) / 5, rel=1e-3)
    assert figures["parameters"] == sum(parameter.numel() for parameter in student.parameters())
    assert set(figures["inference_us"]) == {"5", "1"}
    assert all(0.0 < value < 1e5 for value in figures["inference_us"].values())


def test_without_a_checkpoint_the_newest_runs_best_student_is_played():
    """Newest by the time in the folder's name; ``--load_run`` and ``--experiment_name`` choose another."""
    old = save_student("logs/distillation/a/2026-01-01_00-00-00")
    new = save_student("logs/distillation/b/2026-01-02_00-00-00_named")
    assert run("--num_episodes", "1")["checkpoint"] == str(new)
    assert run("--num_episodes", "1", "--experiment_name", "a")["checkpoint"] == str(old)
    assert run("--num_episodes", "1", "--load_run", ".*named")["checkpoint"] == str(new)
    assert run("--num_episodes", "1", "--load_run", "2026-01-01_00-00-00")["checkpoint"] == str(old)


def test_without_a_checkpoint_the_newest_run_of_the_typed_task_is_played(capsys):
    """Newer runs of other tasks are passed by; the variant for playing is the same task; the choice is logged."""
    other = {"task": "Acrobot-v1"}
    save_student("logs/distillation/a/2026-01-01_00-00-00")
    mine = save_student("logs/distillation/a/2026-01-02_00-00-00")
    save_student("logs/distillation/b/2026-01-03_00-00-00", **other)
    for task in (TASK, TASK.replace("-v0", "-Play-v0")):
        assert run("--task", task, "--num_episodes", "1")["checkpoint"] == str(mine)
        assert f"the newest student of {task}: {mine}" in capsys.readouterr().err
    assert run("--num_episodes", "1", "--task", TASK, "--checkpoint", "best_student.pt")["checkpoint"] == str(mine)


def test_a_task_that_is_named_as_one_of_several_comes_before_the_typed_one():
    """``distill.teacher.head=NAME`` is the student of that task, which is then played in another one."""
    mine = save_student("logs/distillation/a/2026-01-01_00-00-00", task="Acrobot-v1")
    save_student("logs/distillation/a/2026-01-02_00-00-00")
    args = argparse.Namespace(task=TASK, checkpoint=None, experiment_name=None, load_run=None)
    assert find_checkpoint(args, "Acrobot-v1") == Path(mine)
    assert find_checkpoint(args) != Path(mine)


def test_a_task_without_a_run_is_an_error_that_names_the_tasks_there_are(capsys):
    """In one line; a run or experiment that is named is played all the same."""
    save_student("logs/distillation/a/2026-01-01_00-00-00")
    save_student("logs/distillation/b/2026-01-03_00-00-00", task="Acrobot-v1")
    assert run_command(play.main, ["--task", "CartPole-v1", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"only of Acrobot-v1, {TASK}" in error and "--checkpoint PATH" in error
    named = run("--task", TASK, "--experiment_name", "b", "--num_episodes", "1")
    assert named["checkpoint"] == "logs/distillation/b/2026-01-03_00-00-00/best_student.pt"


def test_a_student_that_names_no_task_may_be_one_of_the_typed_task(capsys):
    """An offline run need not know its task."""
    save_student("logs/distillation/a/2026-01-01_00-00-00")
    mine = save_student("logs/distillation/a/2026-01-02_00-00-00", task=None)
    assert run("--task", TASK, "--num_episodes", "1")["checkpoint"] == str(mine)
    assert f"a student of no named task: {mine}" in capsys.readouterr().err


def test_a_run_of_train_py_is_played_by_its_best_model():
    """RSL-RL's checkpoints need the task; ``best_model.pt`` goes before the last ``model_*.pt``."""
    folder = Path("logs/rsl_rl/quad/2026-01-01_00-00-00")
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "agent.yaml").write_text("policy: {activation: elu}\nobs_groups: {policy: [policy]}\n")
    sizes = [(16, 26), (4, 16)]
    actor = {f"actor.{2 * i}.weight": torch.zeros(out, size) for i, (out, size) in enumerate(sizes)}
    actor |= {f"actor.{2 * i}.bias": torch.full((out,), 0.6) for i, (out, _) in enumerate(sizes)}
    critic = {"critic.0.weight": torch.zeros(1, 26), "critic.0.bias": torch.zeros(1)}
    saved = {"model_state_dict": {"std": torch.ones(4), **actor, **critic}, "iter": 3, "infos": None}
    for name in ("model_9.pt", "model_10.pt"):
        torch.save(saved, folder / name)
    argv = ("--task", TASK, "--experiment_name", "quad", "--num_episodes", "4")
    figures = run(*argv)
    assert figures["checkpoint"].endswith("model_10.pt")
    returns, _ = first_episodes(42, 4, lambda obs: torch.full((4, 4), 0.6))
    assert figures["return"]["mean"] == pytest.approx(sum(returns) / 4, abs=1e-3)
    assert figures["parameters"] == 16 * 26 + 16 + 4 * 16 + 4, "the critic does not act"
    torch.save(saved, folder / "best_model.pt")
    assert run(*argv)["checkpoint"].endswith("best_model.pt")


def test_flags_and_overrides_reach_the_environment():
    """``--num_envs`` beats an override; bare and scoped overrides act; episodes are rounded up to whole rounds."""
    base = ("--task", TASK, "--agent", "random", "--num_episodes", "7")
    assert run(*base)["num_envs"] == 7
    assert run(*base, "scene.num_envs=3")["num_envs"] == 3
    figures = run(*base, "env.scene.num_envs=3", "--num_envs", "4", "env.episode_length_s=0.05")
    assert (figures["num_envs"], figures["num_episodes"]) == (4, 8)
    assert figures["length"] == {"mean": 5.0, "std": 0.0}
    assert figures["success_rate"] == 1.0


def test_the_play_variant_is_a_task():
    """``-Play-v0`` can be asked for with a checkpoint of the task itself."""
    path = save_student("run")
    assert (
        run("--checkpoint", str(path), "--task", TASK.replace("-v0", "-Play-v0"), "--num_episodes", "2")["num_envs"]
        == 2
    )


def test_the_same_seed_gives_the_same_figures_and_another_does_not():
    """Random actions too have a seed."""
    base = ("--task", TASK, "--agent", "random", "--num_episodes", "4", "--seed")
    one, two, other = (run(*base, seed)["return"] for seed in ("1", "1", "2"))
    assert one == two != other


def test_a_video_goes_to_the_runs_folder():
    """One clip, from the first step, under videos/play of the run that was played."""
    path = save_student("logs/distillation/a/2026-01-01_00-00-00")
    run("--num_episodes", "2", "--video", "--video_length", "10", "env.viewer.resolution=[64,64]")
    clips = [clip for clip in path.parent.rglob("*") if clip.is_file() and "videos" in clip.parts]
    assert [clip.relative_to(path.parent).as_posix() for clip in clips] == ["videos/play/rl-video-step-0.mp4"]
    assert clips[0].read_bytes()[4:8] == b"ftyp"


def test_a_video_of_a_policy_without_a_run_goes_under_logs():
    """The package's own folder, where the shipped teacher is, is never written to; nor is there one for no policy."""
    run("--task", TASK, "--agent", "zero", "--num_episodes", "1", "--video", "--video_length", "3",
        "env.viewer.resolution=[64,64]")  # fmt: skip
    assert Path("logs/play/videos/play/rl-video-step-0.mp4").is_file()
    shipped = Path(play.__file__).resolve().parents[1] / "assets" / "teachers" / "point_ctrl" / "model.pt"
    assert PlayedPolicy(TASK, "cpu", checkpoint=shipped).folder == Path("logs/play")


def test_real_time_takes_as_long_as_the_flight():
    """50 steps of 0.01 s take half a second."""
    start = time.perf_counter()
    run("--task", TASK, "--agent", "zero", "--num_episodes", "1", "--real-time", "env.episode_length_s=0.5",
        "env.terminations.position=100", "env.terminations.velocity=100")  # fmt: skip
    assert time.perf_counter() - start >= 0.49


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no run found in logs/distillation: give --checkpoint PATH"),
        (["--checkpoint", "missing.pt"], "'missing.pt' does not exist, and no run found in logs/distillation"),
        (["--chekpoint", STUDENT], "unknown flag '--chekpoint'. Did you mean '--checkpoint'"),
        (["--load_run", "x"], "no run found in logs/distillation"),
        (["--checkpoint", "missing.pt", "--load_run", "x"], "no run found"),
        (["--checkpoint", "./missing.pt"], "checkpoint 'missing.pt' does not exist"),
        (["--checkpoint", "run"], "is a folder"),
        (
            ["--checkpoint", STUDENT, "--task", "Isaac-Quadcopter-Point-v0"],
            "Isaac-Quadcopter-Point-Ctrl-v0",
        ),
        (
            ["--checkpoint", STUDENT, "--task", "Isaac-Quadcopter-Gate-v0"],
            "was trained on 'Isaac-Quadcopter-Point-Ctrl-v0': leave out --task",
        ),
        (
            ["--checkpoint", STUDENT, "--obs_groups", "deployable"],
            "expects 26 observations.*deployable (22)",
        ),
        (
            ["--checkpoint", STUDENT, "--obs_groups", "polcy"],
            "no observation group 'polcy'. Did you mean 'policy'",
        ),
        (["--checkpoint", STUDENT, "--num_episodes", "0"], "at least 1"),
        (["--checkpoint", STUDENT, "--num_envs", "0"], "at least 1"),
        (["--checkpoint", STUDENT, "--num_episode", "3"], "Did you mean '--num_episodes'"),
        (["--checkpoint", STUDENT, "env.scene.num_env=3"], "num_envs"),
        (["--checkpoint", STUDENT, "--device", "cuda:99"], "use --device cpu"),
        (["--checkpoint", STUDENT, "--device", "cup"], "--device cup: not a torch device; use cpu or cuda:0"),
        (["--checkpoint", STUDENT, "--device", "cuda:first"], "--device cuda:first: not a torch device"),
        (["--checkpoint", STUDENT, "--seed", str(2**32)], "--seed: must be between 0 and 4294967295, got 4294967296"),
        (["--checkpoint", STUDENT, "env.vehicles=sampled:many"], "'sampled:many' is not sampled:<number>"),
        (["--checkpoint", STUDENT, "--engine", "torhc"], "Did you mean 'torch'"),
        (["--agent", "zeros", "--task", TASK], "Did you mean 'zero'"),
        (["--agent", "zero"], "needs a task"),
        (["--agent", "random", "--task", TASK, "--checkpoint", STUDENT], "leave --checkpoint"),
        (["--checkpoint", "taskless/best_student.pt"], "does not name the task"),
        (["--agent", "zero", "--task", TASK, "--json", "run"], "give the path of a file"),
        (["--agent", "zero", "--task", TASK, "--json", f"{STUDENT}/play.json"], "give the path of a file"),
        (["--checkpoint", "small/best_student.pt"], "expects 7 observations"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, capsys):
    """No traceback, nothing written, and the way out is in the line."""
    save_student("run")
    save_student("taskless", task=None)
    save_student("small", num_obs=7)
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert run_command(play.main, argv) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("[")]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    for part in message.split(".*"):
        assert part in errors[0]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("own_engine:PointEngine", "Its run used an engine of your own: --engine own_engine:PointEngine"),
        ("torch", "no engine can run it"),
        (["a:b"], "no engine can run it"),
    ],
)
def test_an_engine_that_a_run_names_is_told_and_not_imported(engine, says, tmp_path, capsys):
    """Where no engine has a student's task, the line to type has the engine of its run; its module stays unread."""
    (tmp_path / "own_engine.py").write_text("raise SystemExit('imported')\n")
    path = save_student("run", task="Point")
    (path.parent / "params").mkdir()
    (path.parent / "params/distillation.yaml").write_text(json.dumps({"engine": engine}))
    assert run_command(play.main, ["--checkpoint", str(path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_an_interrupted_play_says_so_and_keeps_no_figures(monkeypatch, capsys):
    """SIGINT while it flies: exit code 130, no JSON."""
    monkeypatch.setattr(Interrupt, "interrupted", lambda self: setattr(self, "signal", 2) or "SIGINT")
    assert run("--task", TASK, "--agent", "zero", "--num_episodes", "2", code=130) == {}
    assert "nothing was measured" in capsys.readouterr().out


def test_the_environment_is_told_where_the_run_is(monkeypatch):
    """Isaac Lab's environments write beside the run (``env_cfg.log_dir``): it is the policy's own folder."""
    told = []
    monkeypatch.setattr(Engine, "set_log_dir", lambda self, env_cfg, path: told.append(Path(path)))
    checkpoint = save_student("run")
    run("--checkpoint", STUDENT, "--num_episodes", "2", "env.episode_length_s=0.1")
    run("--agent", "zero", "--task", TASK, "--num_episodes", "2", "env.episode_length_s=0.1")
    assert told == [checkpoint.resolve().parent, Path("logs/play")]
