"""A file's names import nothing: only what the user has typed, or the program has imported, is looked up."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import yaml
from small_teacher import TASK
from tensordict import TensorDict

from foundation.cli.parser import OneLineParser
from foundation.config.typing_fit import import_attribute
from foundation.core.errors import UserError
from foundation.core.registry import (
    UntypedNameError,
    may_import,
    note_typed,
    refuse_untyped_names,
    resolve_attribute,
    resolve_module,
)
from foundation.engines import engine_class, select_engine
from foundation.learning.losses import loss_spec
from foundation.rsl_rl import distillation, play, teacher_info
from foundation.students import StudentPolicy, student_cfg_class, student_from_description
from foundation.tasks import resolve_task
from foundation.teachers.assignment import make_choice

MODULE = "logs_of_others.evil"
CODE = f"""
import pathlib
pathlib.Path(__file__).with_suffix('.ran').touch()
import gymnasium
from foundation.engines.torch import TorchEngine
from foundation.students import StudentPolicy
class Student(StudentPolicy):
    pass
class Engine(TorchEngine):
    pass
def loss(student, teacher, params):
    return (student.mean - teacher.mean).abs().mean(-1)
def expert(obs):
    return obs["policy"][:, 0]
gymnasium.registry.setdefault("Evil-v0", gymnasium.registry["{TASK}"])
"""


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Put a module on the path that leaves a mark when it is run; return whether it did."""
    folder = tmp_path / MODULE.partition(".")[0]
    folder.mkdir()
    (folder / "evil.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda: (folder / "evil.ran").exists()


def describe(name: str) -> dict[str, Any]:
    return {**StudentPolicy(26, 4).describe(), "name": name}


def choose(name: str) -> Any:
    return make_choice(name, TensorDict({"policy": torch.zeros(2, 1)}, batch_size=[2]))


RESOLVERS = {
    "Evil-v0 (task)": resolve_task,
    "Evil-v0": select_engine,
    "Engine": engine_class,
    "loss": loss_spec,
    "expert": choose,
    "Student": student_cfg_class,
    "Student (file)": lambda name: student_from_description(describe(name)),
    "loss (value)": import_attribute,
}


@pytest.mark.parametrize("case", RESOLVERS)
def test_a_name_is_looked_up_only_once_it_is_typed(case, ran, typed):
    """Wherever ``pkg.module:Attr`` is accepted: untyped it is one line that says what to type, and nothing runs."""
    name = f"{MODULE}:{case.partition(' ')[0]}"
    with pytest.raises(UntypedNameError, match=f"--import {MODULE} if you trust it") as caught:
        RESOLVERS[case](name)
    assert not ran() and "\n" not in str(caught.value)
    typed(name)
    assert RESOLVERS[case](name) is not None
    assert ran()


def test_a_typed_name_trusts_its_module_alone(typed):
    """A neighbour in the same package stays untyped; so does a module that only begins alike."""
    typed("--task", "their.tasks:Id-v0", "student=their.students:Wide")
    assert may_import("their.tasks") and may_import("their.students")
    assert not may_import("their") and not may_import("their.tasks.evil") and not may_import("their.task")


def test_a_file_may_name_what_is_loaded_but_nothing_of_python_itself():
    """A loaded package's function is found; ``os:system`` is loaded too, and is not."""
    assert resolve_attribute("torch.nn.functional:l1_loss", "loss") is torch.nn.functional.l1_loss
    for name in ("os:system", "subprocess:Popen", "builtins:exec", "importlib:import_module", "antigravity:x"):
        with pytest.raises(UntypedNameError):
            resolve_attribute(name, "loss")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "name", ["", ":", "x", ":x", "x:", ".a:b", "a..b:c", "a\0b:c", "a/b:c", "\ud800:x", "a" * 9999 + ":b"]
)
def test_what_is_no_name_is_one_short_line(name):
    """Whatever text stands there: one line, that can be printed, and is not as long as the text."""
    with pytest.raises(UserError) as caught:
        resolve_attribute(name, "loss", trusted=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_devices_and_paths_are_no_names(typed):
    """``cuda:0`` and addresses on the command line trust nothing."""
    typed("cuda:0", "http://x", "C:\\a", "a:0", "--device=cuda:1")
    assert not may_import("cuda") and not may_import("http")


def test_overrides_of_a_received_run_are_looked_through(typed):
    """A token or a value that holds a name is refused before an engine could resolve it."""
    for values in ({"tokens": ["env.x.func=evil.mod:f"]}, {"env": {"a": [{"class_type": "evil.mod:C"}]}}):
        with pytest.raises(UntypedNameError, match=r"params: 'evil\.mod:[fC]'"):
            refuse_untyped_names(values, "params")
    refuse_untyped_names({"tokens": ["env.sim.device=cuda:0", "scene.num_envs=3"], "env": {"a": 1.0}}, "params")
    typed("env.x.func=evil.mod:f")
    refuse_untyped_names({"tokens": ["env.x.func=evil.mod:f"]}, "params")


def test_import_is_a_flag_of_every_command(ran):
    """``--import pkg.module`` imports it at once; a module that is not there is one line."""
    for command in (play, distillation, teacher_info):
        parser: OneLineParser = command.build_parser()
        with pytest.raises(UserError, match="--import no_such_module: cannot be imported"):
            parser.parse_known_args(["x", "--import", "no_such_module"])
    play.build_parser().parse_known_args(["--import", MODULE])
    assert ran() and may_import(MODULE)
    assert resolve_module(f"{MODULE}:loss", "loss").__name__ == MODULE


def save_student(path, **changes):
    student = StudentPolicy(26, 4)
    content = {"student": student.describe(), "model_state_dict": student.state_dict(), "obs_groups": ["policy"]}
    torch.save(content | {"task": TASK, "epoch": 1} | changes, path)


def test_playing_a_received_student_imports_nothing(ran, tmp_path):
    """Neither its task nor its class is imported by ``play.py``; typed, both are, and it flies."""
    save_student(tmp_path / "task.pt", task=f"{MODULE}:Evil-v0")
    save_student(tmp_path / "class.pt", student=describe(f"{MODULE}:Student"))
    short = ["--num_episodes", "1", "--num_envs", "1"]
    with pytest.raises(UntypedNameError, match=f"give --task {MODULE}:Evil-v0 or --import"):
        play.main(["--checkpoint", str(tmp_path / "task.pt"), *short])
    with pytest.raises(UserError, match=f"give student={MODULE}:Student or --import"):
        play.main(["--checkpoint", str(tmp_path / "class.pt"), *short])
    assert not ran()
    assert play.main(["--checkpoint", str(tmp_path / "class.pt"), f"student={MODULE}:Student", *short]) == 0
    assert play.main(["--checkpoint", str(tmp_path / "task.pt"), "--task", f"{MODULE}:Evil-v0", *short]) == 0
    assert ran()


@pytest.mark.parametrize(
    ("values", "file"),
    [
        ({"task": f"{MODULE}:Evil-v0"}, "distillation"),
        ({"engine": f"{MODULE}:Engine"}, "distillation"),
        ({"student": {"name": f"{MODULE}:Student"}}, "distillation"),
        ({"tokens": [f"env.func={MODULE}:loss"]}, "overrides"),
    ],
)
def test_resuming_a_received_run_imports_nothing(values, file, ran, tmp_path):
    """Task, engine, student and overrides of a run that others made: one line each, and nothing runs."""
    params = tmp_path / "logs/distillation/theirs/2026-01-01_00-00-00/params"
    params.mkdir(parents=True)
    (params / "distillation.yaml").write_text(yaml.safe_dump({"task": TASK}))
    (params / f"{file}.yaml").write_text(yaml.safe_dump({"task": TASK} | values if file != "overrides" else values))
    with pytest.raises(UserError, match="if you trust it"):
        distillation.main(["--resume", "--teacher_checkpoint", "x.pt"])
    assert not ran()


def test_note_typed_reads_words_anywhere():
    """Flags with ``=``, overrides, lists and keys of mappings are all words that the user typed."""
    note_typed(["--task=a.b:X", "distill.loss.auxiliary={c.d:f: 0.5}", "x=[e.f:g,h:i]"])
    assert all(may_import(name) for name in ("a.b", "c.d", "e.f", "h"))
