"""The examples of CONTRIBUTING.md and examples/ work as they stand, each a file that nothing else knows of."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_server import run_script

from foundation.core.errors import UserError
from foundation.learning.losses import LossParams, loss_spec, with_own_params
from foundation.policies.output import PolicyOutput
from foundation.students import make_student, student_cfg_class

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = ["--device", "cpu", "--num_envs", "8"]
SHORT = ["--n_epochs", "1", "--num_episodes", "8", "--num_eval_episodes", "8", "--final_eval_episodes", "8"]


def blocks(title: str) -> list[tuple[str, str]]:
    """Return language and text of each code block of a section."""
    section = re.search(rf"^### {re.escape(title)}$(.*?)(?=^##+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None, title
    return [(match[1], match[2]) for match in BLOCK.finditer(section[1])]


def lay_out(title: str, folder: Path, clone: Path) -> list[list[str]]:
    """Write a section's files, and return its commands as lists of words."""
    commands = []
    for language, text in blocks(title):
        if language == "bash":
            commands += [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
        else:
            name = text.splitlines()[0].removeprefix("# ")
            (clone / name if name.startswith("foundation/") else folder / name).write_text(text, encoding="utf-8")
    assert commands, title
    return commands


def run(words: list[str], folder: Path, clone: Path, *more: str) -> str:
    """Run one command of the page in a folder, with more arguments that make it short."""
    assert words[0] == "python"
    words = [word.replace("CLONE", str(clone)).replace("TEACHER", str(TEACHER)) for word in words[1:]]
    words = [str(path) for word in words for path in (sorted(folder.glob(word)) if "*" in word else [word])]
    if words[0].startswith(str(ROOT / "foundation")):
        done = run_script(*words, *more, folder=folder)
    else:  # a program of the page's own, or the commands of a clone
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, *words, *more], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def summary(folder: Path) -> dict:
    return json.loads(next(folder.rglob("summary.json")).read_text())


def test_a_loss_with_a_parameter(tmp_path: Path) -> None:
    """``loss=own_loss:pinball distill.loss.params.level=0.9`` trains."""
    (command,) = lay_out("A loss, with a parameter", tmp_path, ROOT)
    run(command, tmp_path, ROOT, *SMALL, *SHORT, "env.episode_length_s=0.5")
    assert summary(tmp_path)["best_epoch"] == 1


def test_a_student(tmp_path: Path) -> None:
    """``student=own_student:NormedStudent distill.student.width=64`` trains, and plays once its module is typed."""
    distil, play = lay_out("A student", tmp_path, ROOT)
    run(distil, tmp_path, ROOT, *SMALL, *SHORT, "env.episode_length_s=0.5")
    run(play, tmp_path, ROOT, "--device", "cpu", "--json", "played.json")
    assert json.loads((tmp_path / "played.json").read_text())["num_episodes"] == 8
    checkpoint = torch.load(next(tmp_path.rglob("best_student.pt")), weights_only=True)
    assert checkpoint["model_state_dict"]["body.0.weight"].shape == (64, 26)


def test_a_student_with_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that makes ``step`` alone trains on sequences, and forgets where an episode begins."""
    (command,) = lay_out("A student with memory", tmp_path, ROOT)
    run(command, tmp_path, ROOT, *SMALL, *SHORT, "env.episode_length_s=0.5")
    checkpoint = torch.load(next(tmp_path.rglob("best_student.pt")), weights_only=True)
    assert checkpoint["model_state_dict"]["body.0.weight"].shape == (32, 52)
    monkeypatch.syspath_prepend(tmp_path)
    average = importlib.import_module("own_memory").LeakyAverage(1, 0.5)
    x = torch.tensor([8.0, 4.0, 8.0]).view(3, 1, 1)
    resets = torch.tensor([[False], [False], [True]])
    outputs, state = average.sequence(x, torch.tensor([[2.0]]), resets)
    # 0.5 * 2 + 0.5 * 8 = 5, 0.5 * 5 + 0.5 * 4 = 4.5; the third step begins at 0: 0.5 * 8 = 4.
    assert outputs[:, 0].tolist() == [[8.0, 5.0], [4.0, 4.5], [8.0, 4.0]]
    assert state.tolist() == [[4.0]]


@pytest.mark.slow
def test_a_task_with_its_own_groups(tmp_path: Path) -> None:
    """A teacher of two numbers is distilled into a student of one, from a group that the built-in tasks lack."""
    shutil.copy(ROOT / "examples" / "own_task.py", tmp_path)
    train, distil = lay_out("A task, with its own observation groups", tmp_path, ROOT)
    run(train, tmp_path, ROOT, "--device", "cpu", "--max_iterations", "1")
    run(distil, tmp_path, ROOT, *SMALL, *SHORT, "distill.teacher.check=false")
    assert summary(tmp_path)["final_eval_episodes"] == 8
    checkpoint = torch.load(next(tmp_path.rglob("best_student.pt")), weights_only=True)
    assert checkpoint["student"]["num_obs"] == 1


def test_an_engine(tmp_path: Path) -> None:
    """``--engine own_engine:PointEngine`` runs a task that no gym id has."""
    shutil.copy(ROOT / "examples" / "own_task.py", tmp_path)
    (play,) = lay_out("An engine", tmp_path, ROOT)
    run(play, tmp_path, ROOT, *SMALL, "--json", "played.json")
    played = json.loads((tmp_path / "played.json").read_text())
    assert played["num_episodes"] == 8 and played["engine"] == "point"


@pytest.mark.parametrize("in_package", [False, True])
def test_a_checkpoint_format(tmp_path: Path, in_package: bool) -> None:
    """One file is enough for a format to be read, imported or in the package; it acts as its arrays say."""
    clone = ROOT
    (command,) = lay_out("A checkpoint format", tmp_path, clone)
    assert command[-2:] == ["--import", "numpy_mlp"]
    imported = "import numpy_mlp;"
    if in_package:
        clone = tmp_path / "clone"
        shutil.copytree(ROOT / "foundation", clone / "foundation", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "configs", clone / "configs")
        text = (tmp_path / "numpy_mlp.py").read_text(encoding="utf-8")
        assert text.endswith("\n\n\nregister_format(__name__)\n")
        text = text.removesuffix("\n\n\nregister_format(__name__)\n").replace(
            "from foundation.checkpoints import register_format\n", ""
        )
        (clone / "foundation" / "checkpoints" / "numpy_mlp.py").write_text(f"{text}\n", encoding="utf-8")
        command = command[:-2]
        imported = ""
    random = np.random.default_rng(0)
    arrays = {"weight_0": random.normal(size=(5, 3)), "bias_0": random.normal(size=5)}
    arrays |= {"weight_1": random.normal(size=(2, 5)), "bias_1": random.normal(size=2)}
    np.savez(tmp_path / "policy.npz", **arrays)
    described = json.loads(run(command, tmp_path, clone, "--json"))
    assert described["format"] == "NumPy MLP" and described["activation"] == "tanh"
    assert (described["num_obs"], described["hidden_dims"], described["num_actions"]) == (3, [5], 2)
    act = (
        f"import sys; sys.path.insert(0, {str(clone)!r}); {imported} import torch;"
        "from foundation import TeacherPolicyWrapper as T;"
        "print(T('policy.npz').act(torch.tensor([[0.1, -0.2, 0.3]])).tolist())"
    )
    acted = json.loads(run(["python", "-c", act], tmp_path, clone))
    hidden = np.tanh(arrays["weight_0"] @ [0.1, -0.2, 0.3] + arrays["bias_0"])
    assert acted[0] == pytest.approx(list(arrays["weight_1"] @ hidden + arrays["bias_1"]), abs=1e-5)


def write_cleanrl(path: Path, **more: torch.Tensor) -> torch.nn.Sequential:
    """Write an agent as CleanRL saves it, with 3 observations and 2 actions; return its actor."""
    torch.manual_seed(0)
    actor = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    weights = {f"actor_mean.{name}": value for name, value in actor.state_dict().items()}
    weights |= {"actor_logstd": torch.tensor([[0.0, 1.0]]), "critic.0.weight": torch.zeros(1, 3), **more}
    torch.save(weights, path)
    return actor


def test_a_format_of_pytorch_checkpoints(tmp_path: Path) -> None:
    """It acts as its weights say, with exp(actor_logstd) as its standard deviation."""
    (command,) = lay_out("A format of PyTorch checkpoints", tmp_path, ROOT)
    actor = write_cleanrl(tmp_path / "agent.pt")
    described = json.loads(run(command, tmp_path, ROOT, "--json"))
    assert (described["format"], described["num_obs"], described["num_actions"]) == ("CleanRL", 3, 2)
    act = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cleanrl; import torch;"
        "from foundation import TeacherPolicyWrapper as T;"
        "out = T('agent.pt').step(torch.tensor([[0.1, -0.2, 0.3]]))[0];"
        "print([out.mean[0].tolist(), out.std[0].tolist()])"
    )
    mean, std = json.loads(run(["python", "-c", act], tmp_path, ROOT))
    assert mean == pytest.approx(actor(torch.tensor([0.1, -0.2, 0.3])).tolist(), abs=1e-6)
    assert std == pytest.approx([1.0, 2.7182818], abs=1e-6)


@pytest.mark.parametrize(("keys", "code"), [('{"agent"}', 2), ('("agent", "extra")', 0), ("None", 0)])
def test_entries_that_a_format_does_not_read_are_an_error(tmp_path: Path, keys: str, code: int) -> None:
    """``KEYS`` names the entries that are read, in any collection; None reads all of them."""
    lay_out("A format of PyTorch checkpoints", tmp_path, ROOT)
    text = (tmp_path / "cleanrl.py").read_text(encoding="utf-8").replace("KEYS = None", f"KEYS = {keys}")
    text = text.replace("<= checkpoint.keys()", '<= checkpoint["agent"].keys()')
    text = text.replace("Entries(checkpoint, where)", 'Entries(checkpoint["agent"], where)')
    (tmp_path / "cleanrl.py").write_text(text, encoding="utf-8")
    write_cleanrl(tmp_path / "agent.pt")
    weights = torch.load(tmp_path / "agent.pt", weights_only=True)
    torch.save({"agent": weights, "extra": {"scale": torch.ones(3)}}, tmp_path / "agent.pt")
    done = run_script("teacher_info.py", "agent.pt", "--import", "cleanrl", folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert code == 0 or "extra" in done.stderr


def test_an_incomplete_checkpoint_format(tmp_path: Path) -> None:
    """A format without a function that reads it is an error where it registers itself, naming what it must define."""
    (tmp_path / "half.py").write_text("from foundation.checkpoints import register_format\nregister_format(__name__)\n")
    done = run_script("teacher_info.py", "policy.npz", "--import", "half", folder=tmp_path)
    assert done.returncode == 2
    assert "checkpoint format 'half' must define recognise_file and load_file" in done.stderr


def test_a_preset(tmp_path: Path) -> None:
    """``experiment=./mine.yaml`` sets what it says."""
    (command,) = lay_out("A preset", tmp_path, ROOT)
    assert "ema_decay: 0.98" in run(command, tmp_path, ROOT)


def test_a_script_with_the_decorator(tmp_path: Path) -> None:
    """examples/own_script.py gets the configs with what was typed, once for each job of a sweep."""
    script = ["python", str(ROOT / "examples" / "own_script.py")]
    printed = run(script, tmp_path, ROOT, "scene.num_envs=8", "student=gru", "-m", "seed=1,2")
    assert [line for line in printed.splitlines() if line.startswith("8 ")] == ["8 250 gru 1", "8 250 gru 2"]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["own_loss", "own_student"])
def test_examples_are_those_of_the_page(name: str) -> None:
    """The code of examples/ is the code that CONTRIBUTING.md shows."""
    code = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert f"# {name}.py\n{code}" in TEXT


def test_the_example_loss_by_hand(monkeypatch: pytest.MonkeyPatch, typed) -> None:
    """Errors 1 and -2 at level 0.9 cost 0.9 and 0.2; without a level, half of each."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    typed("own_loss:pinball")
    student, target = PolicyOutput(torch.tensor([[0.0, 2.0]])), PolicyOutput(torch.tensor([[1.0, 0.0]]))
    spec = loss_spec("own_loss:pinball")
    (tilted,) = with_own_params([spec], {"level": 0.9})
    assert tilted.function(student, target, LossParams()).item() == pytest.approx((0.9 + 0.2) / 2)
    assert spec.function(student, target, LossParams()).item() == pytest.approx((0.5 + 1.0) / 2)
    with pytest.raises(UserError, match=r"params\.levl: loss=own_loss:pinball has no such .* Did you mean 'level'"):
        with_own_params([spec], {"levl": 0.9})


def test_the_example_student_by_hand(monkeypatch: pytest.MonkeyPatch, typed) -> None:
    """Its action is the head's of tanh((z - mean) / std) with z = W x + b, and a sequence is its steps."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    typed("own_student:NormedStudent")
    name = "own_student:NormedStudent"
    student = make_student(student_cfg_class(name)(name=name, width=5), 3, 2)  # type: ignore[call-arg]
    obs = torch.randn(4, 7, 3)
    z = obs @ student.body[0].weight.T + student.body[0].bias  # type: ignore[index]
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = torch.tanh(z) @ student.mean.weight.T + student.mean.bias
    torch.testing.assert_close(student.sequence(obs)[0].mean, expected)
    torch.testing.assert_close(torch.stack([student.step(x)[0].mean for x in obs]), expected)
