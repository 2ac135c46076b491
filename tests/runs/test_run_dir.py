"""The folder of a run."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.runs.run_dir import RunDir


def make_runs(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def test_the_folder_is_named_by_time_and_run_name(tmp_path: Path) -> None:
    """``<root>/<experiment>/<YYYY-MM-DD_HH-MM-SS>_<run_name>``, as Isaac Lab names it."""
    run = RunDir.create(tmp_path / "logs" / "distillation", "quad", "try")
    assert run.path.parent == tmp_path / "logs" / "distillation" / "quad"
    assert len(run.name) == len("2025-01-31_23-59-59_try") and run.name.endswith("_try")
    assert run.experiment_name == "quad"


def test_runs_that_start_in_the_same_second_do_not_share_a_folder(tmp_path: Path) -> None:
    """Twenty runs at once have twenty folders, and the newest by name is the last one made."""
    runs = [RunDir.create(tmp_path, "quad") for _ in range(20)]
    assert len({run.path for run in runs}) == 20
    assert RunDir.find(tmp_path, "quad").path == runs[-1].path


def test_the_newest_run_is_found(tmp_path: Path) -> None:
    """Newest by its time, across experiments unless one is named, among those that match ``load_run``."""
    make_runs(tmp_path, "a/2025-01-02_00-00-00", "a/2025-01-10_00-00-00_x", "b/2025-01-03_00-00-00", "b/notes", "c")
    assert RunDir.find(tmp_path).name == "2025-01-10_00-00-00_x"
    assert RunDir.find(tmp_path, "b").name == "2025-01-03_00-00-00"
    assert RunDir.find(tmp_path, "a", "2025-01-02_00-00-00").name == "2025-01-02_00-00-00"
    assert RunDir.find(tmp_path, None, ".*_x").name == "2025-01-10_00-00-00_x"
    assert RunDir.find(tmp_path, None, str(tmp_path / "b" / "notes")).name == "notes"


@pytest.mark.parametrize(
    ("experiment", "load_run", "says"),
    [
        ("c", None, "no run found in .*c. Valid are: a, bell."),
        ("bel", None, "no run found in .*bel. Did you mean 'bell'?"),
        ("a", "2024.*", "2025-01-02"),
        ("a", "2024.*", "/a matches '2024.*'. Valid are: 2025-01-02_00-00-00."),
        ("a", "(", "regular expression"),
    ],
)
def test_a_run_that_is_not_there_is_named(tmp_path: Path, experiment: str, load_run: str | None, says: str) -> None:
    """No run, no match and a bad pattern are one-line errors, with the experiments or runs that there are."""
    make_runs(tmp_path, "a/2025-01-02_00-00-00", "bell/2025-01-03_00-00-00", "c")
    with pytest.raises(UserError, match=says.replace("(", r"\(").replace("?", r"\?")):
        RunDir.find(tmp_path, experiment, load_run)


def test_where_no_run_was_ever_begun_it_is_said_so(tmp_path: Path) -> None:
    """An experiment's name has no nearest one where there is no experiment."""
    for experiment in (None, "a"):
        with pytest.raises(UserError, match=r"no run found in .*\. Start one first\."):
            RunDir.find(tmp_path, experiment)


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    """``model_1000000`` is after ``model_999999``, though before it as text."""
    run = RunDir(tmp_path)
    for name in ("model_999999.pt", "model_1000000.pt", "model_9.pt", "best_student.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert run.checkpoint_path(r"model_.*\.pt").name == "model_1000000.pt"
    assert run.checkpoint_path("model_9.pt").name == "model_9.pt"
    assert [p.name for p in run.checkpoints()][1:] == ["model_9.pt", "model_999999.pt", "model_1000000.pt"]
    with pytest.raises(UserError, match="best_student"):
        run.checkpoint_path("best_studnet.pt")


def test_shards_are_ordered_by_epoch(tmp_path: Path) -> None:
    """The dataset's shards come back in the order of their epochs, past a million too."""
    run = RunDir(tmp_path)
    epochs = (3, 1_000_000, 20, 999_999)
    run.dataset_dir.mkdir()
    for epoch in epochs:
        run.shard_path(epoch).touch()
    assert run.shards() == [run.shard_path(epoch) for epoch in sorted(epochs)]


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    """What is saved is what is loaded, and no temporary file is left."""
    run = RunDir.create(tmp_path, "quad")
    run.save_checkpoint("best_student.pt", {"epoch": 3, "model_state_dict": {"w": torch.arange(3.0)}})
    loaded = run.load_checkpoint("best_student.pt")
    assert loaded["epoch"] == 3 and torch.equal(loaded["model_state_dict"]["w"], torch.arange(3.0))
    assert [p.name for p in run.path.iterdir()] == ["best_student.pt"]


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fills up mid-write, the error names the file, the last good one stays, nothing else is left."""
    run = RunDir.create(tmp_path, "quad")
    run.save_checkpoint("best_student.pt", {"epoch": 1})
    full_disk(monkeypatch)
    with pytest.raises(UserError, match=r"best_student\.pt.*[Nn]o space"):
        run.save_checkpoint("best_student.pt", {"epoch": 2})
    with pytest.raises(UserError, match="No space"):
        run.write_summary({"a": 1})
    with pytest.raises(UserError, match="No space"):
        run.save_params({"a": 1})
    monkeypatch.undo()
    assert run.load_checkpoint("best_student.pt")["epoch"] == 1
    assert [p.name for p in run.path.rglob("*") if p.is_file()] == ["best_student.pt"]


def test_a_clock_that_was_set_back_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The new run gets a folder of its own, and the run that counts as the newest is named; nothing without one."""
    (tmp_path / "quad" / "2999-01-01_00-00-00_b").mkdir(parents=True)
    run = RunDir.create(tmp_path, "quad", "b")
    assert RunDir.find(tmp_path, "quad").name == "2999-01-01_00-00-00_b" != run.name
    assert f"{run.name} is older by its name than 2999-01-01_00-00-00_b, as the clock was set back" in caplog.text
    caplog.clear()
    for _ in range(3):  # at once: named by the seconds that follow
        RunDir.create(tmp_path, "other")
    assert caplog.text == ""


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    """A file where the log folder should be is one clear line."""
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match="cannot make the run's folder"):
        RunDir.create(tmp_path / "logs", "quad")


@pytest.mark.parametrize("names", [("../up", ""), ("a/b", ""), ("..", ""), ("", ""), ("quad", "a/b"), ("quad", "..")])
def test_names_cannot_leave_the_log_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    """Experiment and run names are plain names."""
    with pytest.raises(UserError, match="plain name"):
        RunDir.create(tmp_path / "logs", *names)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\nb", r"'a\\nb': it must be a plain name, without line breaks"),
        ("a\tb", "without line breaks"),
        ("\x1b[31mred", "without line breaks"),
        ("a\udcffb", "without line breaks"),
        ("a\0b", "without line breaks"),
        (" ", "without blanks at its ends"),
        ("a ", "without blanks at its ends"),
        ("ü" * 101, "of at most 200 bytes, it has 202"),
    ],
)
@pytest.mark.parametrize("flag", ["experiment_name", "run_name"])
def test_a_name_that_no_line_can_show_is_refused(flag: str, name: str, says: str, tmp_path: Path) -> None:
    """It would break every line that names the run; nothing is made."""
    names = {"experiment_name": "quad", flag: name}
    with pytest.raises(UserError, match=f"--{flag} is .*{says}"):
        RunDir.create(tmp_path / "logs", **names)
    assert not (tmp_path / "logs").exists()


def test_names_in_any_language_are_plain(tmp_path: Path) -> None:
    """Letters of other alphabets, blanks inside, brackets: whatever can be printed."""
    assert RunDir.create(tmp_path, "größe 3", "lr=1e-3 [a]").name.endswith("_lr=1e-3 [a]")


def test_folders_made_for_a_run_that_cannot_be_made_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full once the experiment's folder is there leaves neither it nor ``logs``."""
    made = Path.mkdir

    def mkdir(self: Path, *args: object, **kwargs: object) -> None:
        if self.parent.name == "quad":
            raise OSError(errno.ENOSPC, "No space left on device")
        made(self, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserError, match=r"cannot make the run's folder in .*quad: No space left on device"):
        RunDir.create(tmp_path / "logs", "quad")
    assert list(tmp_path.iterdir()) == []


class Odd:
    """Something that no YAML knows."""

    def __init__(self) -> None:
        self.value = 3
        self._private = 4


def test_params_are_readable_by_anyone(tmp_path: Path) -> None:
    """Whatever the configs hold, ``yaml.safe_load`` reads the files, and ``env.pkl`` unpickles."""
    run = RunDir(tmp_path)
    env = {
        "joints": (1, 2),
        "ids": slice(None),
        "func": os.path.join,
        "cls": Odd,
        "odd": Odd(),
        "tensor": torch.ones(2),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "lambda": lambda x: x,
        "inf": float("inf"),
        3: None,
    }
    run.save_params(env, {"seed": 1}, DistillationCfg(task="T"))
    text = yaml.safe_load((tmp_path / "params" / "env.yaml").read_text())
    assert text["joints"] == [1, 2] and text["ids"] == "slice(None, None, None)" and text["odd"] == {"value": 3}
    assert text["func"].endswith(":join") and text["cls"].endswith(":Odd")
    assert text["tensor"] == [1.0, 1.0] and text["dtype"] == "torch.float32" and text["device"] == "cpu"
    assert text["inf"] == float("inf") and text[3] is None
    assert run.load_params() == dataclasses.asdict(DistillationCfg(task="T"))
    assert pickle.loads((tmp_path / "params" / "env.pkl").read_bytes())["joints"] == [1, 2]
    assert pickle.loads((tmp_path / "params" / "agent.pkl").read_bytes()) == {"seed": 1}
    assert sorted(p.name for p in run.params_dir.iterdir()) == [
        "agent.pkl",
        "agent.yaml",
        "distillation.yaml",
        "env.pkl",
        "env.yaml",
    ]


def test_configs_that_contain_themselves_are_still_written(tmp_path: Path) -> None:
    """A cycle ends as text instead of never."""
    odd = Odd()
    odd.value = odd  # a config that refers to itself
    RunDir(tmp_path).save_params(env_cfg={"odd": odd})
    assert yaml.safe_load((tmp_path / "params" / "env.yaml").read_text())["odd"]["value"]


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    """NaN and infinities become null; tensors become numbers."""
    RunDir(tmp_path).write_summary({"a": float("nan"), "b": [float("inf"), torch.tensor(2.0)], "c": {"d": 1}})

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": None, "b": [None, 2.0], "c": {"d": 1}}


def test_two_processes_cannot_write_to_one_run(tmp_path: Path) -> None:
    """A run that another process holds is refused; it is free again as soon as that process is gone."""
    script = (
        "import sys; from foundation.runs.run_dir import RunDir; RunDir(sys.argv[1]).lock()\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdin is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process"):
            RunDir(tmp_path).lock()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    (tmp_path / ".best_student.pt.abc.tmp").touch()
    run = RunDir(tmp_path)
    run.lock()
    assert not list(tmp_path.iterdir()), "what a killed writer left behind is removed"
    run.unlock()


def test_a_run_that_looks_resumable_has_all_that_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any rename: where ``distillation.yaml`` is there, ``overrides.yaml`` is too."""

    class Killed(BaseException):
        pass

    for deadly in range(1, 7):
        run = RunDir(tmp_path / str(deadly))
        renames = 0
        replace = os.replace

        def dying(source: Any, target: Any, deadly: int = deadly, replace: Any = replace) -> None:
            nonlocal renames
            renames += 1
            if renames == deadly:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            with pytest.raises(Killed):
                run.save_params({"a": 1}, {"b": 2}, DistillationCfg(), {"tokens": ["env.a=1"]})
        assert (run.params_dir / "overrides.yaml").exists() >= (run.params_dir / "distillation.yaml").exists()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model_*.pt", "model_100.pt"),
        ("model_?.pt", "model_9.pt"),
        ("*_1?.pt", "model_10.pt"),
        ("*.pt", "model_100.pt"),
        ("model_1*.pt", "model_100.pt"),
        (r"model_\d*\.pt", "model_100.pt"),
        (r"model_\d\.pt", "model_9.pt"),
        ("model_.*.pt", "model_100.pt"),
        ("model_9", "model_9.pt"),
        ("latest", "model_100.pt"),
    ],
)
def test_latest_shell_patterns_and_regular_expressions_find_a_checkpoint(
    pattern: str, expected: str, tmp_path: Path
) -> None:
    """All of them by number, not by text: model_100 is newer than model_99 and model_9."""
    for number in (9, 10, 99, 100):
        torch.save({}, tmp_path / f"model_{number}.pt")
    torch.save({}, tmp_path / "best_model.pt")
    assert RunDir(tmp_path).checkpoint_path(pattern).name == expected


def test_latest_of_a_distillation_run_is_its_last_epoch(tmp_path: Path) -> None:
    """``checkpoint_latest.pt`` is written after every epoch, the others now and then."""
    for name in ("checkpoint_epoch_10", "checkpoint_latest", "best_student", "final_student"):
        torch.save({}, tmp_path / f"{name}.pt")
    assert RunDir(tmp_path).checkpoint_path("latest").name == "checkpoint_latest.pt"
    with pytest.raises(UserError, match="no checkpoint"):
        RunDir(tmp_path / "empty").checkpoint_path("latest")


@pytest.mark.parametrize(
    ("load_run", "expected"),
    [("*_b", "2025-01-02_00-00-00_b"), ("2025-01-01_*-00", "2025-01-01_00-00-00"), (".*_b", "2025-01-02_00-00-00_b")],
)
def test_runs_are_found_by_shell_patterns_too(load_run: str, expected: str, tmp_path: Path) -> None:
    """``*_b`` is no regular expression, and ``2025-01-01_*-00`` is one that means something else."""
    make_runs(tmp_path, "a/2025-01-01_00-00-00", "a/2025-01-02_00-00-00_b")
    assert RunDir.find(tmp_path, "a", load_run).name == expected


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_folder_that_has_gone_while_its_run_goes_on_is_not_made_again(how: str, tmp_path: Path) -> None:
    """Checkpoints, parameters and the summary are refused in one line; no half run appears under the old name."""
    run = RunDir.create(tmp_path, "quad")
    run.save_checkpoint("best_student.pt", {"epoch": 1})
    if how == "removed":
        shutil.rmtree(run.path)
    else:
        run.path.rename(tmp_path / "elsewhere")
    if how == "replaced":
        run.path.mkdir()
    for write in (
        lambda: run.save_checkpoint("best_student.pt", {"epoch": 2}),
        lambda: run.save_params({"a": 1}),
        lambda: run.write_summary({"a": 1}),
    ):
        with pytest.raises(UserError, match="was removed or renamed while the run was going on") as caught:
            write()
        assert "\n" not in str(caught.value)
    run.discard_if_empty()
    assert run.path.exists() is (how == "replaced")
    assert not run.path.exists() or not list(run.path.iterdir())


def test_of_several_runs_the_newest_with_the_file_is_found(tmp_path: Path) -> None:
    """``play.py`` passes over a run that was stopped before it had a student, unless no run has one."""
    make_runs(tmp_path / "quad", "2026-01-01_00-00-00", "2026-01-02_00-00-00")
    assert RunDir.find(tmp_path, with_file="best_student.pt").name == "2026-01-02_00-00-00"
    (tmp_path / "quad" / "2026-01-01_00-00-00" / "best_student.pt").touch()
    assert RunDir.find(tmp_path, with_file="best_student.pt").name == "2026-01-01_00-00-00"
    assert RunDir.find(tmp_path).name == "2026-01-02_00-00-00"


def test_the_runs_that_there_are_are_listed_from_the_newest_on(tmp_path: Path) -> None:
    """Of many runs five are named: the last ones, not the first ones."""
    make_runs(tmp_path / "quad", *(f"2026-01-{day:02d}_00-00-00" for day in range(1, 10)))
    with pytest.raises(UserError) as caught:
        RunDir.find(tmp_path, load_run="x")
    newest = ", ".join(f"2026-01-{day:02d}_00-00-00" for day in (9, 8, 7, 6, 5))
    assert f"Valid are: {newest}, ..." in str(caught.value)


def test_a_run_that_fails_meanwhile_takes_no_folder_away_from_another(tmp_path, monkeypatch):
    """The experiment's folder, gone again because it was empty, is made anew; nothing is raised."""
    make = Path.mkdir
    taken: list[Path] = []

    def mkdir(self: Path, *args, **options) -> None:
        if self.name.startswith("20") and not taken:
            taken.append(self)
            self.parent.rmdir()
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    run = RunDir.create(tmp_path / "logs", "experiment")
    assert taken and run.path.is_dir()


def test_a_folder_without_a_runs_config_is_called_what_it_is(tmp_path):
    """No run at all, a run of the other command, or a run that stopped before it began."""
    with pytest.raises(UserError, match=r"is not the folder of a run, which has params/finetune\.yaml"):
        RunDir(tmp_path).load_params("finetune")
    run = tmp_path / "2026-01-01_00-00-00"
    run.mkdir()
    with pytest.raises(UserError, match="that run stopped before it began"):
        RunDir(run).load_params("distillation")
    (run / "params").mkdir()
    (run / "params" / "finetune.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"is a run of .*finetune.*: resume it by that"):
        RunDir(run).load_params("distillation")
