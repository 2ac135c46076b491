"""A preset of the user's own is chosen by its path or by its package, and ranks as one of ``configs/`` does."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foundation.config.overrides import parse_overrides
from foundation.config.resolve import Resolved, resolve
from foundation.core.errors import UserError
from foundation.learning.losses import LOSSES
from foundation.students import student_cfg_class


def resolved(*tokens: str, **flags: Any) -> Resolved:
    return resolve(parse_overrides(tokens), flags, student_cfg_class=student_cfg_class, loss_names=LOSSES)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def package(here: Path, monkeypatch: pytest.MonkeyPatch, typed: Any) -> Path:
    """A package with presets, in the working folder; its name was typed."""
    folder = here / "preset_pkg"
    (folder / "student").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "preset_pkg", raising=False)
    typed("preset_pkg:fast")
    return folder


@pytest.mark.parametrize("header", ["", "# @package _global_\n"])
def test_an_experiment_by_its_path(here: Path, header: str) -> None:
    """Its values count, with the student that it chooses; keys that are typed beat it; its origin is the path."""
    text = "defaults:\n  - override /student: gru\nn_epochs: 7\nbatch_size: 12\nloss: {name: huber}\n"
    (here / "mine.yaml").write_text(header + text)
    result = resolved("experiment=./mine.yaml", "n_epochs=8")
    cfg = result.cfg
    assert (cfg.n_epochs, cfg.batch_size, cfg.loss.name, cfg.student.name) == (8, 12, "huber", "gru")
    assert result.choices["student"].chosen == "experiment=./mine.yaml"
    assert resolved(f"experiment={here / 'mine.yaml'}", "loss=kl").cfg.loss.name == "kl"


def test_numbers_are_written_as_in_configs(here: Path) -> None:
    """``1e-3`` is a number, as it is in a file of Hydra's; in quotes it is text."""
    (here / "mine.yaml").write_text("learning_rate: 1e-3\nrun_name: '1e-3'\noptimizer: {weight_decay: 2.5E+1}\n")
    cfg = resolved("experiment=./mine.yaml").cfg
    assert (cfg.learning_rate, cfg.run_name, cfg.optimizer.weight_decay) == (0.001, "1e-3", 25.0)


def test_a_file_named_as_a_built_in_one_is_not_it(here: Path) -> None:
    """``./fast.yaml`` is the user's, ``fast`` ours; one after the other in one process."""
    (here / "fast.yaml").write_text("n_epochs: 3\n")
    assert resolved("experiment=./fast.yaml").cfg.n_epochs == 3
    assert resolved("experiment=fast").cfg.n_epochs == 300
    (here / "fast.yaml").write_text("batch_size: 5\n")
    again = resolved("experiment=./fast.yaml").cfg
    assert (again.n_epochs, again.batch_size) == (100, 5)


def test_every_group_takes_a_file_and_beats_the_experiment(here: Path) -> None:
    """Student, loss, schedule and dataset by their paths, beside ``experiment=fast``; the header may be left out."""
    (here / "student.yaml").write_text("name: gru\nhidden_size: 9\n")
    (here / "loss.yaml").write_text("name: huber\nhuber_delta: 0.5\n")
    (here / "schedule.yaml").write_text("collection: {beta: {kind: cosine, start: 0.75, end: 0.0, epochs: 2}}\n")
    (here / "dataset.yaml").write_text("dtype: float16\n")
    groups = ("student", "loss", "schedule", "dataset")
    cfg = resolved("experiment=fast", *[f"{group}=./{group}.yaml" for group in groups]).cfg
    assert (cfg.student.name, cfg.student.hidden_size) == ("gru", 9)  # pyright: ignore[reportAttributeAccessIssue]
    assert (cfg.loss.name, cfg.loss.huber_delta, cfg.dataset.dtype, cfg.n_epochs) == ("huber", 0.5, "float16", 300)
    assert cfg.collection.beta is not None and (cfg.collection.beta.kind, cfg.collection.beta.start) == ("cosine", 0.75)


def test_a_loss_by_its_path_is_the_main_loss_too(here: Path) -> None:
    """As with ``loss=kl``, a file's auxiliary kl gives way to the kl of the typed file."""
    (here / "loss.yaml").write_text("name: kl\n")
    (here / "mine.yaml").write_text("loss: {name: mse, auxiliary: {kl: 0.5, value: 0.25}}\n")
    loss = resolved("experiment=./mine.yaml", "loss=./loss.yaml").cfg.loss
    assert (loss.name, loss.auxiliary) == ("kl", {"value": 0.25})


def test_presets_of_a_package(package: Path) -> None:
    """``pkg:name`` is ``<name>.yaml`` in the package, or in its folder of the group."""
    (package / "fast.yaml").write_text("n_epochs: 4\n")
    (package / "student" / "small.yaml").write_text("name: gru\nhidden_size: 3\n")
    cfg = resolved("experiment=preset_pkg:fast", "student=preset_pkg:small").cfg
    assert (cfg.n_epochs, cfg.student.name) == (4, "gru")
    assert cfg.student.hidden_size == 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("token", "nearest"),
    [
        ("experiment=fsat", "'fast'"),
        ("experiment=./mein.yaml", "'mine.yaml'"),
        ("student=./nothing/mlp.yaml", "there is no such file"),
        ("task=./mein.yaml", "'mine.yaml'"),
        ("experiment=mine", "./mine.yaml"),
        ("experiment=preset_pkg:fsat", "'preset_pkg:fast'"),
        ("experiment=no_such_package:fast", "no_such_package"),
    ],
)
def test_an_unknown_one_is_one_line_with_the_nearest(package: Path, typed: Any, token: str, nearest: str) -> None:
    """A misspelt name, path or package's preset names what was meant."""
    typed("no_such_package:fast")
    (package / "fast.yaml").write_text("n_epochs: 4\n")
    (package.parent / "mine.yaml").write_text("n_epochs: 4\n")
    with pytest.raises(UserError) as error:
        resolved(token)
    assert nearest in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- 1\n", "just words\n", "n_epoch: 3\n", "n_epochs: [\n", "defaults: [nothing]\n"])
def test_a_file_that_is_no_preset_is_one_line(here: Path, text: str) -> None:
    """No keys, an unknown key, no YAML, a choice that does not exist."""
    (here / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        resolved("experiment=./mine.yaml")
    assert "\n" not in str(error.value)


def test_a_package_that_nobody_typed_is_not_imported(here: Path) -> None:
    """A name that only a file could have brought here runs nothing."""
    (here / "untyped_pkg").mkdir()
    (here / "untyped_pkg" / "__init__.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError):
        resolved("experiment=untyped_pkg:fast")


def test_presets_by_name_in_the_working_folder(here: Path) -> None:
    """``configs/<group>/<name>.yaml`` beside the user; a built-in name stays the built-in one."""
    for group, name, text in (
        ("experiment", "mine", "n_epochs: 4\n"),
        ("experiment", "fast", "n_epochs: 5\n"),
        ("student", "small", "name: gru\nhidden_size: 3\n"),
    ):
        (here / "configs" / group).mkdir(parents=True, exist_ok=True)
        (here / "configs" / group / f"{name}.yaml").write_text(text)
    cfg = resolved("experiment=mine", "student=small").cfg
    assert (cfg.n_epochs, cfg.student.name) == (4, "gru")
    assert cfg.student.hidden_size == 3  # pyright: ignore[reportAttributeAccessIssue]
    assert resolved("experiment=fast").cfg.n_epochs == 300


@pytest.mark.parametrize("choice", ["task.yaml", "./task.yaml", "hover", "preset_pkg:hover"])
def test_a_task_file(package: Path, choice: str) -> None:
    """It names the task and the environment's values, by path, name or package; what is typed beats both."""
    text = "task: Mine-v0\nenv: {episode_length_s: 3.0, scene: {num_envs: 7}}\n"
    for path in (Path("task.yaml"), Path("configs/task/hover.yaml"), package / "task" / "hover.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    result = resolved(f"task={choice}", "experiment=fast")
    assert (result.cfg.task, result.cfg.n_epochs) == ("Mine-v0", 300)
    assert result.env == {"episode_length_s": 3.0, "scene": {"num_envs": 7}}
    assert resolved(f"task={choice}", task="Typed-v0").cfg.task == "Typed-v0"


@pytest.mark.parametrize("name", ["Other-v0", "ALE/Pong-v5", "preset_pkg:Other-v0"])
def test_a_task_that_is_no_file_is_a_gym_id(package: Path, name: str) -> None:
    """An id, one with a slash in it, and one of a package."""
    assert resolved(f"task={name}").cfg.task == name


def test_a_packages_preset_runs_none_of_its_code(here: Path, typed: Any) -> None:
    """The file is read where it lies; the package, and one above it, stay unimported."""
    inner = here / "loud_pkg" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("raise SystemExit('ran')")
    (inner / "fast.yaml").write_text("n_epochs: 4\n")
    typed("loud_pkg.inner:fast")
    assert resolved("experiment=loud_pkg.inner:fast").cfg.n_epochs == 4
    assert "loud_pkg" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "loss: x",
        "loss: {auxiliary: value}",
        "student: [1]",
        "student: mlp",
        "loss: [a, b]",
        "student: {name: [1]}",
    ],
)
def test_a_part_that_is_no_mapping_is_one_line(here: Path, text: str) -> None:
    """Text or a list in the place of settings is refused, also beside a student and a loss that are typed."""
    (here / "mine.yaml").write_text(text)
    for typed in ([], ["student=gru", "loss=kl"]):
        with pytest.raises(UserError) as caught:
            resolved("experiment=./mine.yaml", *typed)
        assert "\n" not in str(caught.value)


def test_an_unknown_name_of_many_letters_is_answered_at_once() -> None:
    """The nearest names are sought by its beginning: comparing 20,000 letters took minutes."""
    begin = time.process_time()
    with pytest.raises(UserError, match="unknown student"):
        resolved("student=" + "x" * 20_000)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("${unknown:1}", "Unsupported interpolation type unknown"),
        ("${", "no viable alternative at input"),
        ("${run_name}", "Recursive interpolation"),
        ("${oc.env:[]}", "str expected, not list"),
        ("${sede}", "no key 'sede' to refer to. Did you mean 'seed'?"),
    ],
)
def test_an_interpolation_that_cannot_be_read_is_one_line(text: str, reason: str) -> None:
    """What was typed and why not, without the names that the configs' library has for it."""
    with pytest.raises(UserError) as error:
        resolved(f"run_name='{text}'")
    assert f"run_name={text}" in str(error.value) and reason in str(error.value)
    assert not any(word in str(error.value) for word in ("full_key", "object_type", "__value__", "\n"))
