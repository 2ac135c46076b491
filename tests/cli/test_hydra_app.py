"""Commands and scripts as Hydra applications: sweeps with every launcher, ``--cfg job``, errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_server import run_script
from small_teacher import SMALL, TASK, write_teacher

from foundation.cli.command import run_command
from foundation.cli.hydra_app import split
from foundation.config.overrides import values_of
from foundation.rsl_rl import distillation, finetune, play, train

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"""
import sys
from foundation.config import hydra_task_config

@hydra_task_config("{TASK}", "rsl_rl_cfg_entry_point")
def main(env_cfg, agent_cfg, cfg):
    with open(f"seen_{{cfg.seed}}_{{cfg.student.name}}.txt", "w") as file:
        file.write(f"{{env_cfg.scene.num_envs}} {{agent_cfg.max_iterations}} {{cfg.run_name}}")
    return cfg.seed

if __name__ == "__main__":
    print("returned", main())
"""
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}
SEEDS = (1, 2)
STUDENTS = {"basic": ("mlp", "gru"), "joblib": ("gru",), "submitit": ("gru",)}
"""Swept with each launcher. Those with processes of their own have one for each seed: starting one takes seconds."""


def python(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder; without a launcher, which starts processes of its own, in a forked one."""
    if argv[0].endswith(".py") and not any("launcher" in word for word in argv):
        return run_script(folder / argv[0], *argv[1:], folder=folder)  # an absolute path stays as it is
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *argv], cwd=folder, capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SCRIPT)
    return tmp_path


def seen(folder: Path) -> dict[str, str]:
    return {path.stem.removeprefix("seen_"): path.read_text() for path in folder.glob("seen_*.txt")}


def test_an_experiment_may_bring_its_sweep() -> None:
    """``--multirun experiment=search_student`` runs over what the file says; what is typed takes the place of a key."""
    own = ["--offline", "--dataset", "data", "experiment=search_student"]
    parser = distillation.build_parser()
    found = {token.partition("=")[0]: token for token in split([*own, "--multirun"], parser, files_sweep=True).sweep}
    assert list(found) == ["student.hidden_dims", "student.activation"]
    assert len(values_of(found["student.hidden_dims"])) == 9 and len(values_of(found["student.activation"])) == 2
    more = ["--multirun", "distill.student.hidden_dims=[2],[3]", "student.activation=relu"]
    typed = split([*own, *more], parser, files_sweep=True)
    assert typed.sweep == ["distill.student.hidden_dims=[2],[3]"] and "student.activation=relu" in typed.own
    assert split(own, parser, files_sweep=True).sweep == []  # a plain run has the student of the defaults


def test_another_commands_experiments_are_not_looked_up_among_those_that_sweep() -> None:
    """``finetune.py --multirun experiment=dagger_to_ppo seed=1,2``: a file of ``configs/finetune``."""
    line = split(["experiment=dagger_to_ppo", "-m", "seed=1,2"], finetune.build_parser(), files_sweep=False)
    assert line.sweep == ["seed=1,2"] and line.own == ["experiment=dagger_to_ppo"]


def test_a_users_script_gets_all_three_configs(script: Path) -> None:
    """Ten lines: env, agent and distillation config with the command line's values, and what it returned comes back."""
    done = python(script, "mine.py", "scene.num_envs=8", "agent.max_iterations=3", "seed=5", "experiment=fast_gru",
                  "run_name=${seed}_${hydra:job.name}")  # fmt: skip
    assert done.stdout == "returned 5\n", done.stderr
    assert seen(script) == {"5_gru": "8 3 5_mine"}
    assert sorted(path.name for path in script.iterdir()) == ["mine.py", "seen_5_gru.txt"], "no outputs/"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "submitit"])
def test_a_users_script_is_swept(launcher: str, script: Path) -> None:
    """``--multirun seed=1,2 student=mlp,gru`` is a job for each pair; what is left beside is in ``logs/multirun``.

    The next test is of a script with joblib.
    """
    if launcher != "basic":
        pytest.importorskip(launcher)
    students = STUDENTS[launcher]
    sweep = ["-m", "seed=1,2", f"student={','.join(students)}", "max_iterations=4"]
    done = python(script, "mine.py", *sweep, *LAUNCHERS[launcher])
    assert done.returncode == 0, done.stderr
    assert seen(script) == {f"{seed}_{student}": "512 4 " for seed in SEEDS for student in students}
    assert {path.name for path in script.iterdir() if path.suffix not in (".py", ".txt")} == {"logs"}
    assert [path.name for path in (script / "logs").iterdir()] == ["multirun"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_own_presets_are_swept(launcher: str, script: Path) -> None:
    """By path, by name and by package, and a task's file beside them, in this process and in a launcher's."""
    if launcher != "basic":
        pytest.importorskip(launcher)
    (script / "a.yaml").write_text("student: {name: gru}\nseed: 1\nagent: {max_iterations: 5}\n")
    (script / "configs" / "experiment").mkdir(parents=True)
    (script / "configs" / "experiment" / "b.yaml").write_text("seed: 2\n")
    (script / "own_pkg").mkdir()
    (script / "own_pkg" / "c.yaml").write_text("seed: 3\n")
    (script / "task.yaml").write_text("env: {scene: {num_envs: 9}}\n")
    sweep = ["-m", "experiment=./a.yaml,b,own_pkg:c", "run_name=x,y", "max_iterations=4", "task=task.yaml"]
    done = python(script, "mine.py", *sweep, *LAUNCHERS[launcher])
    assert done.returncode == 0, done.stderr
    assert seen(script).keys() == {"1_gru", "2_mlp", "3_mlp"}
    assert {text[:4] for text in seen(script).values()} == {"9 4 "}
    assert [path.name for path in (script / "logs").iterdir()] == ["multirun"]
    folders = {path.name for path in script.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {"configs", "own_pkg", "logs"}


def test_the_decorator_is_isaac_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters have Isaac Lab's names; a function of two configs gets two, and arguments of its own."""
    from foundation.config import hydra_task_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", "env.scene.num_envs=3"])

    @hydra_task_config(task_name=TASK, agent_cfg_entry_point="rsl_rl_cfg_entry_point")
    def two(env_cfg, agent_cfg):
        return env_cfg.scene.num_envs, agent_cfg.max_iterations

    @hydra_task_config(TASK, "rsl_rl_cfg_entry_point")
    def more(env_cfg, agent_cfg, cfg, word, again=""):
        return env_cfg.scene.num_envs, cfg.task, word, again

    assert two() == (3, 250)
    assert more("a", again="b") == (3, TASK, "a", "b")


def test_a_scripts_configs_are_those_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``seed=`` seeds all three, ``num_envs=`` reaches the scene, and what is typed for one of them beats it."""
    from foundation.cli.hydra_script import load_configs

    monkeypatch.chdir(tmp_path)
    env_cfg, agent_cfg, cfg = load_configs(TASK, "rsl_rl_cfg_entry_point", ["seed=7", "num_envs=5", "device=cpu"])
    assert (env_cfg.seed, agent_cfg.seed, cfg.seed, env_cfg.scene.num_envs, env_cfg.sim.device) == (7, 7, 7, 5, "cpu")
    env_cfg, agent_cfg, cfg = load_configs(TASK, "rsl_rl_cfg_entry_point", ["seed=7", "agent.seed=8", "env.seed=9"])
    assert (env_cfg.seed, agent_cfg.seed, cfg.seed) == (9, 8, 7)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["scene.num_env=3"], "unknown key 'env.scene.num_env'. Did you mean 'num_envs'?"),
        (["distill.bach_size=3"], "Did you mean 'batch_size'?"),
        (["agent.max_iterations=many"], "'agent.max_iterations' is 'many': it must be an integer"),
        (["student=gruu"], "Did you mean 'gru'"),
        (["experiment=fats"], "Did you mean 'fast'"),
        (["seed=1,2"], "add --multirun"),
        (["-m", "seed=1,x"], "'distill.seed' is 'x'"),
        (["-m", "student=mlp,gruu"], "Did you mean 'gru'"),
        (["-m"], "--multirun needs something to run over"),
        (["-m", "experiment=glob(*)"], "write the names, experiment=a,b,c"),
        (["-m", "experiment=fast,./none.yaml"], "experiment=./none.yaml: there is no such file"),
        (["-m", "seed=1,2", "hydra/launcher=joblibb"], "there is no such launcher here. Did you mean 'joblib'"),
        (["-m", "seed=1,2", "hydra/sweeper=basik"], "there is no such sweeper here. Did you mean 'basic'"),
        (["-m", "seed=1,2", "hydra/sweeper=optuna"], "pip install hydra-optuna-sweeper"),
        (["-m", "seed=1,2", "hydra.sweep.dir=/proc/none"], "'hydra.sweep.dir=/proc/none': the folder cannot be made"),
        (["run_name=${sed}"], "Did you mean 'seed'?"),
        (["hydra.run.dir=elsewhere"], "a run's folder is not Hydra's here; "),
        (["--multrun", "seed=1,2"], "Did you mean '--multirun'?"),
        (["--cfg", "jop"], "invalid choice: 'jop'"),
        (["-m", "seed=range(0)"], "override 'seed=range(0)' has no value to run over"),
        (["-m", "seed=range(1000000000)"], "has more than 10000 values"),
        (
            ["--cfg", "job", "--package", "distil"],
            "--package distil: the config has no such part. Did you mean 'distill'?",
        ),
    ],
)
def test_mistakes_in_a_script_are_one_line(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt key, a wrong type, a choice that is not there: exit code 2, one line, and no job has run."""
    from foundation.config import hydra_task_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])

    @hydra_task_config(TASK)
    def main(env_cfg, agent_cfg, cfg):
        raise AssertionError("ran")

    with pytest.raises(SystemExit) as left:
        main()
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert says in error
    assert not list(tmp_path.iterdir())


def test_cfg_job_shows_what_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Files, overrides, interpolation and flags, in the order that counts; nothing is run and nothing is left."""
    monkeypatch.chdir(tmp_path)
    argv = ["--task", TASK, "--num_envs", "6", "--seed", "4", "experiment=fast", "loss=kl", "env.scene.num_envs=9"]
    assert run_command(distillation.main, [*argv, "run_name=${now:%d}_${seed}", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert set(shown) == {"env", "agent", "distill"}
    assert (shown["env"]["scene"]["num_envs"], shown["env"]["seed"], shown["distill"]["seed"]) == (6, 4, 4)
    assert (shown["distill"]["loss"]["name"], shown["distill"]["n_epochs"]) == ("kl", 300)
    assert shown["distill"]["run_name"].endswith("_4")
    assert run_command(distillation.main, [*argv, "--cfg", "job", "--package", "distill.student"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "mlp"
    assert run_command(train.main, ["--task", TASK, "--seed", "8", "max_iterations=7", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["agent"]["seed"], shown["agent"]["max_iterations"], shown["env"]["seed"]) == (8, 7, 8)
    assert run_command(play.main, ["--task", TASK, "--agent", "zero", "env.scene.num_envs=3", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["env"]["scene"]["num_envs"] == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--multirun", "seed=1,2", "distill.bach_size=3"], "'batch_size'"),
        (["--multirun", "student=mlp,gru", "scene.num_env=3,4"], "'num_envs'"),
        (["--multirun", "--resume", "seed=1,2"], "leave --resume out"),
        (["seed=1,2"], "add --multirun"),
        (["--cfg", "job", "distill.bach_size=3"], "'batch_size'"),
        (["--cfg", "job", "env.scene.num_envs=many"], "env.scene.num_envs"),
    ],
)
def test_mistakes_are_told_before_any_job_runs(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Every value of a sweep is checked first: one line, exit code 2, no folder."""
    monkeypatch.chdir(tmp_path)
    write_teacher(tmp_path / "t.pt")
    assert run_command(distillation.main, ["--task", TASK, "--teacher_checkpoint", "t.pt", *SMALL, *argv]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and says in error
    assert [path.name for path in tmp_path.iterdir()] == ["t.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_of_runs(launcher: str, tmp_path: Path) -> None:
    """``--multirun seed=1,2 student=mlp,gru`` writes a run for each pair, told apart by its name, and no ``outputs/``.

    Where one student is swept over, the name is of the seed alone.
    """
    if launcher != "basic":
        pytest.importorskip(launcher)
    write_teacher(tmp_path / "t.pt")
    students = STUDENTS[launcher]
    argv = ["--task", TASK, "--teacher_checkpoint", "t.pt", *SMALL, "--experiment_name", "some"]
    command = [str(ROOT / "foundation" / "rsl_rl" / "distillation.py"), *argv, "--multirun", "seed=1,2"]
    done = python(tmp_path, *command, f"student={','.join(students)}", *LAUNCHERS[launcher])
    assert done.returncode == 0, done.stderr + done.stdout
    jobs = {(seed, name) for seed in SEEDS for name in students}
    assert f"Sweep: {len(jobs)} of {len(jobs)} jobs done" in done.stdout
    (page,) = (tmp_path / "logs" / "multirun").glob("*/report.html")
    assert f"size against score: {page.relative_to(tmp_path)}" in done.stdout
    runs = sorted((tmp_path / "logs" / "distillation" / "some").iterdir())
    found = set()
    for run in runs:
        cfg = yaml.safe_load((run / "params" / "distillation.yaml").read_text())
        student = f"_student-{cfg['student']['name']}" if len(students) > 1 else ""
        assert run.name.endswith(f"_seed-{cfg['seed']}{student}")
        assert (run / "final_student.pt").is_file()
        found.add((cfg["seed"], cfg["student"]["name"]))
    assert len(runs) == len(jobs) and found == jobs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "t.pt"]


@pytest.mark.slow
def test_a_job_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    """The second job's teacher is not there: its line is said, the third runs, and the sweep's exit code is 2."""
    write_teacher(tmp_path / "t.pt")
    argv = ["--task", TASK, *SMALL, "--experiment_name", "some", "-m", "distill.teacher.checkpoint=t.pt,gone.pt,./t.pt"]
    done = python(tmp_path, "-m", "foundation.rsl_rl.distillation", *argv)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "gone.pt" in done.stderr and "Traceback" not in done.stderr
    assert len(list((tmp_path / "logs" / "distillation" / "some").iterdir())) == 2
