"""Bad input: one clear line, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from small_teacher import SMALL, TASK, write_teacher

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "foundation" / "rsl_rl" / "distillation.py"
GOOD = ["--task", TASK, "--teacher_checkpoint", "good.pt"]


@dataclass
class Case:
    """A command line and what its one line of error has to say."""

    name: str
    argv: list[str]
    says: list[str]
    full_disk: bool = False
    keeps: tuple[str, ...] = ()
    """Files that a run which had begun leaves behind; none may be left otherwise."""
    setup: dict[str, str] = field(default_factory=dict)


def teacher_case(name: str, *says: str) -> Case:
    return Case(f"teacher {name}", ["--task", TASK, "--teacher_checkpoint", f"{name}.pt", *SMALL], [name, *says])


def good_case(name: str, argv: list[str], *says: str) -> Case:
    return Case(name, [*GOOD, *SMALL, *argv], list(says))


RUNNING = ("best_student.pt", "checkpoint_latest.pt")

CASES = [
    Case("no task", [], ["--task"]),
    Case("no teacher", ["--task", TASK], ["--teacher_checkpoint"]),
    teacher_case("missing"),
    teacher_case("empty"),
    teacher_case("truncated"),
    teacher_case("text"),
    teacher_case("bare_pickle"),
    teacher_case("with_objects"),
    teacher_case("folder"),
    teacher_case("other_dict"),
    teacher_case("not_finite", "NaN"),
    Case(
        "teacher input size",
        ["--task", TASK, "--teacher_checkpoint", "inputs_22.pt", *SMALL],
        ["22", "policy (26)", "deployable (22)", "distill.teacher.obs_groups"],
    ),
    Case("teacher output size", ["--task", TASK, "--teacher_checkpoint", "outputs_3.pt", *SMALL], ["3 actions", "4"]),
    Case("unknown task", ["--task", "Isaac-Quadcopter-Point-Ctl-v0", *GOOD[2:]], [f"'{TASK}'"]),
    Case("task of no module", ["--task", "no_such_package:Task-v0", *GOOD[2:]], ["no_such_package"]),
    Case("task of a relative module", ["--task", ".here:Task-v0", *GOOD[2:]], ["'.here' is not the full"]),
    good_case("engine of no module", ["--engine", ":Engine"], "engine ':Engine'", "cannot be imported"),
    good_case("loss of a relative module", ["distill.loss.name=.here:loss"], "'.here:loss' cannot be imported"),
    good_case("student of no module", ["distill.student.name=:Student"], "student ':Student' cannot be imported"),
    good_case("unknown flag", ["--num_env", "3"], "--num_env'", "'--num_envs'"),
    good_case("a name with a line break", ["--run_name", "a\nb"], "--run_name", "'a\\nb'", "plain name"),
    good_case("a blank as a name", ["--experiment_name", " "], "--experiment_name", "blank text"),
    good_case("a path of nothing", ["distill.student.init_checkpoint="], "init_checkpoint is ''", "must be a path"),
    good_case("no image group", ["distill.augment_images.groups=[]"], "at least one image group"),
    good_case("a history without end", ["student=history", "distill.student.length=1000000"], "from 1 to 10000 steps"),
    good_case("a flag of nothing", ["--dataset", ""], "--dataset", "leave it out"),
    good_case("a huge integer", ["eval_interval=99999999999999999999"], "eval_interval", "at most 9007199254740992"),
    good_case("an endless episode", ["env.episode_length_s=inf"], "env.episode_length_s", "at most"),
    good_case("another kind of device", ["--device", "xpu:7"], "xpu:7", "--device cpu"),
    good_case("abbreviated flag", ["--learning", "3"], "--learning'", "'--learning_rate'"),
    good_case("flag without value", ["--run_name"], "--run_name"),
    good_case("unknown engine", ["--engine", "torhc"], "'torch'"),
    good_case("unknown distill key", ["distill.bach_size=3"], "distill.bach_size", "'batch_size'"),
    good_case("unknown env key", ["env.scene.num_env=3"], "env.scene.num_env", "'num_envs'"),
    good_case("unknown agent key", ["agent.max_iteration=3"], "agent.max_iteration", "'max_iterations'"),
    good_case("unknown bare key", ["scen.num_envs=3"], "scen", "'scene'"),
    good_case("key to add", ["+env.scene.num_envs=3"], "env.scene.num_envs=3"),
    good_case("not an override", ["scene"], "'scene'"),
    good_case("unknown loss", ["loss=msee"], "msee", "'mse'"),
    good_case("unknown student", ["student=gruu"], "gruu", "'gru'"),
    good_case("unknown experiment", ["experiment=fats"], "fats", "'fast'"),
    good_case("wrong type of a flag", ["--num_envs", "many"], "--num_envs", "'many'"),
    good_case("wrong type of an env key", ["env.scene.num_envs=many"], "env.scene.num_envs", "'many'"),
    good_case("wrong type of a distill key", ["distill.student.hidden_dims=64"], "hidden_dims", "64"),
    good_case("num_envs", ["--num_envs", "0"], "--num_envs", "0", "at least 1"),
    good_case("batch_size", ["--batch_size", "-1"], "--batch_size", "-1", "at least 1"),
    good_case("learning_rate", ["--learning_rate", "nan"], "learning_rate", "nan"),
    good_case("n_epochs", ["--n_epochs", "0"], "--n_epochs", "at least 1"),
    good_case("epoch_teacher_forcing", ["--epoch_teacher_forcing", "-1"], "--epoch_teacher_forcing", "at least 0"),
    good_case("patience", ["distill.early_stopping.patience=0"], "distill.early_stopping.patience", "at least 1"),
    good_case("precision", ["distill.optimizer.precision=bfloat"], "optimizer.precision", "'bfloat16'"),
    good_case("float16 on the CPU", ["distill.optimizer.precision=float16"], "float16", "cpu", "bfloat16"),
    good_case("no updates", ["distill.optimizer.updates_per_epoch=0"], "optimizer.updates_per_epoch", "at least 1"),
    good_case("compile what", ["distill.optimizer.compile=perhaps"], "optimizer.compile", "'perhaps'"),
    good_case("driver per what", ["distill.collection.beta_per=steps"], "beta_per", "'step'"),
    good_case("negative noise", ["distill.collection.dart_alpha=-1"], "distill.collection.dart_alpha", "0 or more"),
    good_case(
        "student without a std", ["distill.collection.student_deterministic=false"], "distill.student.stochastic"
    ),
    good_case(
        "bound of labels that are not clipped",
        ["distill.collection.clip_labels=false", "distill.collection.label_bound=1"],
        "collection.label_bound",
    ),
    good_case(
        "schedule of steps without points", ["distill.collection.beta={kind: step}"], "distill.collection.beta.points"
    ),
    good_case("a file's name is interpolated", ["run_name=${nwo:%Y}"], "run_name=${nwo:%Y}"),
    good_case("a seed of the environment", ["env.seed=-1"], "env.seed is -1", "at least 0"),
    good_case("a bound that is text", ["agent.clip_actions=wide"], "agent.clip_actions", "'wide'"),
    good_case("a bound near zero", ["distill.collection.label_bound=1e-45"], "label_bound is 1e-45"),
    good_case("an optimiser that is a number", ["agent.algorithm.optimizer=2"], "agent.algorithm.optimizer is '2'"),
    good_case("a switch with a value", ["--shuffle", "True"], "--no-shuffle"),
    Case(
        "the teacher as Isaac Lab names it",
        ["--task", TASK, "--load_run", "2026-01-01_00-00-00", "--checkpoint", "model_9.pt"],
        ["the teacher is named by --teacher_checkpoint PATH", "--load_run and --checkpoint", "--resume"],
    ),
    Case(
        "the teacher as Isaac Lab names it, by path",
        ["--task", TASK, "--checkpoint", "good.pt"],
        ["--teacher_checkpoint good.pt"],
    ),
    good_case("a run that is not resumed", ["--load_run", "2026-01-01_00-00-00"], "--resume"),
    good_case("logger", ["--logger", "tensorbord"], "'tensorboard'"),
    good_case("logger that is not installed", ["--logger", "neptune"], "pip install neptune"),
    good_case("cuda", ["--device", "cuda:63"], "cuda:63", "cpu"),
    good_case("experiment name", ["--experiment_name", "../up"], "--experiment_name"),
    good_case("resume nothing", ["--resume"], "no run"),
    good_case("checkpoint without resume", ["--checkpoint", "x.pt"], "--resume"),
    good_case("student group", ["distill.student.obs_groups=[depoyable]"], "depoyable", "'deployable'"),
    good_case(
        "student group twice", ["distill.student.obs_groups=[policy,policy]"], "names each observation group once"
    ),
    good_case(
        "estimates of nothing", ["distill.student.num_estimates=2"], "num_estimates is set by the run", "feed: true"
    ),
    good_case("a student of another command", ["student=by_task"], "finetune.py makes", "choose another"),
    good_case(
        "layers without end", ["student=gru", "distill.student.num_layers=1000000"], "num_layers", "1000 at most"
    ),
    good_case("loss the teacher cannot serve", ["loss=q_mse"], "q_mse"),
    good_case("dataset beyond its budget", ["distill.dataset.size=100000000000"], "GB", "dataset.size"),
    good_case("teacher too weak", ["--teacher_min_return", "600"], "--teacher_min_return 600"),
    good_case(
        "teacher no better than chance",
        ["distill.teacher.check=true", "--num_eval_episodes", "64"],
        *("not above that of random actions", "groups", "order", "normaliser", "activation", "scale", "check=false"),
    ),
    Case("log folder", [*GOOD, *SMALL], ["logs", "folder"], setup={"logs": "a file is in the way"}),
    Case("full disk", [*GOOD, *SMALL], ["checkpoint_latest.pt", "No space left"], full_disk=True, keeps=RUNNING),
    Case(
        "NaN of the environment", ["--task", "odd_tasks:Odd-Nan-v0", *GOOD[2:], *SMALL], ["environment", "observations"]
    ),
    Case("NaN of the teacher", ["--task", TASK, "--teacher_checkpoint", "overflowing.pt", *SMALL], ["teacher"]),
    Case(
        "NaN of the loss",
        [*GOOD, *SMALL, "distill.optimizer.lr_schedule={kind: piecewise, points: [[0, 1], [1, 1e34]]}", "batch_size=4"],
        ["loss"],
        keeps=RUNNING,
    ),
]


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch was_executed",))


def write_teachers(folder: Path) -> None:
    """Write the good teacher and all bad ones."""
    good = write_teacher(folder / "good.pt").read_bytes()
    write_teacher(folder / "inputs_22.pt", num_obs=22)
    write_teacher(folder / "outputs_3.pt", num_actions=3)
    write_teacher(folder / "overflowing.pt", scale=1e30)
    (folder / "empty.pt").touch()
    (folder / "truncated.pt").write_bytes(good[: len(good) // 2])
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "bare_pickle.pt").write_bytes(pickle.dumps(Evil()))
    (folder / "folder.pt").mkdir()
    torch.save({"model_state_dict": {"w": torch.ones(2)}}, folder / "other_dict.pt")
    with_objects = io.BytesIO()
    torch.save({"model_state_dict": {}, "cfg": Evil()}, with_objects)
    (folder / "with_objects.pt").write_bytes(with_objects.getvalue())
    spoiled = torch.load(folder / "good.pt", weights_only=True)
    spoiled["model_state_dict"]["actor.0.weight"][0, 0] = float("nan")
    torch.save(spoiled, folder / "not_finite.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all cases, each in a folder of its own."""
    base = tmp_path_factory.mktemp("bad_input")
    jobs = []
    for number, case in enumerate(CASES):
        folder = base / str(number)
        folder.mkdir()
        write_teachers(folder)
        for name, text in case.setup.items():
            (folder / name).write_text(text)
        jobs.append({"argv": case.argv, "cwd": str(folder), "full_disk": case.full_disk})
    (base / "cases.json").write_text(json.dumps(jobs))
    driver = Path(__file__).with_name("cli_driver.py")
    command = [sys.executable, str(driver), str(base / "cases.json"), str(base / "results.json")]
    paths = os.pathsep.join([str(ROOT), str(driver.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    outcome = json.loads((base / "results.json").read_text())
    return {
        case.name: {**result, "cwd": base / str(i)} for i, (case, result) in enumerate(zip(CASES, outcome, strict=True))
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_one_line(case: Case, results: dict[str, Any]) -> None:
    """Exit code 2, exactly one ``error:`` line that says what is needed, no traceback, nothing half-written."""
    result = results[case.name]
    assert "Traceback" not in result["out"] + result["err"], result["err"]
    errors = [line for line in result["err"].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result["err"]
    assert result["code"] == 2
    for words in case.says:
        assert words in errors[0]
    left = [name for name in result["left"] if (result["cwd"] / name).is_file()]
    if not case.keeps:
        assert not result["left"], "nothing is written before the input is known to be good"
    for name in case.keeps:
        assert any(path.endswith(name) for path in left)
    for name in left:
        assert ".tmp" not in name
        if name.endswith(".pt"):
            torch.load(result["cwd"] / name, weights_only=True)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--num_envz", "3"], "'--num_envs'"),
        (["--num_envs", "0"], "at least 1"),
        (["--task", TASK, "--teacher_checkpoint", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_the_command_itself_behaves_like_that(argv: list[str], says: str, tmp_path: Path) -> None:
    """The same through a shell's eyes: a real process, its exit status and its streams."""
    done = subprocess.run([sys.executable, str(SCRIPT), *argv], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not list(tmp_path.iterdir())
