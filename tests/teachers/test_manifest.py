"""What ``--teacher_checkpoint`` may mean, and the manifest that names many teachers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foundation.cli.cli_args import CommandParser, add_distillation_args, distillation_flags, parse_command
from foundation.core.errors import UserError
from foundation.teachers.manifest import TeacherEntry, find_teachers, is_one_file, read_manifest, write_manifest


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return paths


def test_a_manifest_survives_being_written_read_and_moved(tmp_path):
    """Every field comes back, and paths are relative: the whole tree may be moved."""
    a, b = touch(tmp_path / "set", "teachers/a.pt", "teachers/b.pt")
    va, vb = touch(tmp_path / "set", "vehicles/a.json", "vehicles/b.json")
    entries = [TeacherEntry("a", a, va, 640.5, 0.004), TeacherEntry("b", b, vb, -3.0, 1.0, "failed")]
    write_manifest(tmp_path / "set" / "teachers" / "teachers.yaml", entries, "Task-v0")
    (tmp_path / "set").rename(tmp_path / "moved")
    found = read_manifest(tmp_path / "moved" / "teachers" / "teachers.yaml")
    assert [(e.name, e.mean_return, e.terminated, e.status) for e in found] == [
        ("a", 640.5, 0.004, "ok"),
        ("b", -3.0, 1.0, "failed"),
    ]
    moved = [tmp_path / "moved" / "teachers" / "a.pt", tmp_path / "moved" / "vehicles" / "a.json"]
    assert [path.resolve() for path in (found[0].checkpoint, found[0].vehicle)] == moved


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("taks: Task-v0", "has 'taks'. Did you mean 'task'?"),
        ("task: [1]", "'task' must be a gym id"),
        ("3: 4", "has '3'"),
    ],
)
def test_what_a_manifest_may_say_is_closed(tmp_path, text, says):
    """A misspelt key would be silently without effect; its nearest name is given."""
    (a,) = touch(tmp_path, "a.pt")
    manifest = tmp_path / "teachers.yaml"
    write_manifest(manifest, [TeacherEntry("a", a)], "Task-v0")
    assert read_manifest(manifest)[0].task == "Task-v0"
    manifest.write_text(manifest.read_text().replace("task: Task-v0", text))
    with pytest.raises(UserError, match=re.escape(says)):
        read_manifest(manifest)


@pytest.mark.parametrize("spec", ["{0}/a.pt,{0}/b.pt", "{0}/?.pt", "{0}", ["{0}/a.pt", "{0}/b.pt"]])
def test_files_globs_and_folders_name_the_same_teachers(tmp_path, spec):
    """Commas, a glob, a folder and several values are the same two teachers in the same order."""
    touch(tmp_path, "a.pt", "b.pt", "notes.txt")
    spec = [part.format(tmp_path) for part in spec] if isinstance(spec, list) else spec.format(tmp_path)
    assert [entry.name for entry in find_teachers(spec)] == ["a", "b"]
    assert not is_one_file(spec)


def test_names_are_unique(tmp_path):
    """Equal file names take their folder's name; where folders are named alike too, a number."""
    files = touch(tmp_path, "x/model.pt", "y/model.pt")
    assert [e.name for e in find_teachers([str(f) for f in files])] == ["x_model", "y_model"]
    alike = touch(tmp_path, "a/run/model.pt", "b/run/model.pt")
    assert len({e.name for e in find_teachers([str(f) for f in alike])}) == 2


@pytest.mark.parametrize(
    "spec", [["{0}/a.pt", "{0}/a.pt"], "{0}/a.pt,{0}/a.pt", ["{0}/*.pt", "{0}/b.pt"], ["{0}", "{0}/x/../b.pt"]]
)
def test_the_same_file_twice_is_refused(tmp_path, spec):
    """A file that comes twice, by whatever path, glob or folder, is no second teacher: one line names it."""
    touch(tmp_path, "a.pt", "b.pt", "x/c.pt")
    given = spec.format(tmp_path) if isinstance(spec, str) else [part.format(tmp_path) for part in spec]
    with pytest.raises(UserError, match=r"--teacher_checkpoint names the teacher '.*[ab]\.pt' twice: leave it out"):
        find_teachers(given)


def test_one_checkpoint_may_fly_two_vehicles_but_not_one_twice(tmp_path):
    """A manifest may name a checkpoint for each of two vehicles; with the same vehicle twice it is refused."""
    (a,), (light, heavy) = touch(tmp_path, "a.pt"), touch(tmp_path, "light.json", "heavy.json")
    manifest = tmp_path / "teachers.yaml"
    write_manifest(manifest, [TeacherEntry("one", a, light), TeacherEntry("two", a, heavy)], "Task-v0")
    assert [(e.name, e.vehicle) for e in find_teachers(str(manifest))] == [("one", light), ("two", heavy)]
    with pytest.raises(UserError, match=r"'.*a\.pt' twice for the vehicle '.*light\.json'"):
        find_teachers([str(manifest), str(tmp_path)])
    write_manifest(manifest, [TeacherEntry("one", a, light), TeacherEntry("two", a, light)], "Task-v0")
    with pytest.raises(UserError, match=r"teachers\.yaml' names the teacher '.*a\.pt' twice for the vehicle"):
        read_manifest(manifest)


@pytest.mark.parametrize(
    "names",
    [
        ("model_0.pt", "model_50.pt", "best_model.pt"),
        ("checkpoint_epoch_10.pt", "checkpoint_latest.pt", "best_student.pt", "final_student.pt"),
        ("agent_1000.pt", "agent_2000.pt", "best_agent.pt"),
        ("rl_model_1000_steps.zip", "rl_model_2000_steps.zip", "best_model.zip"),
    ],
)
def test_the_folder_of_one_run_is_not_many_teachers(tmp_path, names):
    """What a library leaves of one policy is refused, unless each is named; beside another file it is a set."""
    touch(tmp_path, *names)
    with pytest.raises(UserError, match="is the folder of one training run"):
        find_teachers(str(tmp_path))
    assert len(find_teachers([str(tmp_path / name) for name in names])) == len(names)
    touch(tmp_path, "walker.pt")
    assert len(find_teachers(str(tmp_path))) == len(names) + 1


@pytest.mark.parametrize("spec", ["", [""], ","])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, spec):
    """A shell variable that is not set does not name whatever lies there."""
    touch(tmp_path, "a.pt")
    monkeypatch.chdir(tmp_path)
    assert not is_one_file(spec)
    with pytest.raises(UserError, match="names no teacher"):
        find_teachers(spec)


def test_folders_in_a_folder_are_no_teachers(tmp_path):
    """Whatever they are called, as where a glob names them."""
    touch(tmp_path, "a.pt", "folder.pt/b.pt")
    for spec in (str(tmp_path), f"{tmp_path}/*.pt"):
        assert [entry.name for entry in find_teachers(spec)] == ["a"]


def test_a_name_is_text(tmp_path):
    """A list, say, is no name."""
    touch(tmp_path, "a.pt")
    manifest = tmp_path / "teachers.yaml"
    manifest.write_text("format: foundation-teachers-1\nteachers: [{checkpoint: a.pt, name: [x]}]\n")
    with pytest.raises(UserError, match="'name' must be text"):
        read_manifest(manifest)


def test_vehicles_for_some_teachers_only_are_refused(tmp_path):
    """A manifest with vehicles beside a checkpoint without: environment i would fly another teacher's vehicle."""
    (a, b), (vehicle,) = touch(tmp_path, "a.pt", "b.pt"), touch(tmp_path, "v.json")
    manifest = tmp_path / "set" / "teachers.yaml"
    write_manifest(manifest, [TeacherEntry("a", a, vehicle)], "Task-v0")
    with pytest.raises(UserError, match="--teacher_checkpoint: teacher 'b' has no vehicle, others have"):
        find_teachers([str(manifest), str(b)])


@pytest.mark.parametrize(
    ("typed", "teachers", "tokens"),
    [
        (["a.pt", "student=gru"], "a.pt", ["student=gru"]),
        (["a.pt", "b.pt", "env.x=1", "c=2"], ["a.pt", "b.pt"], ["env.x=1", "c=2"]),
        (["a.pt", "b.pt", "--n_epochs", "3", "c=2"], ["a.pt", "b.pt"], ["c=2"]),
        (["a.pt", "--teacher_checkpoint", "b.pt", "~c"], ["a.pt", "b.pt"], ["~c"]),
    ],
)
def test_several_teachers_leave_overrides_alone(typed, teachers, tokens):
    """Values behind the flag are teachers until one looks like an override or a flag; a single one stays a text."""
    parser = CommandParser()
    add_distillation_args(parser)
    args, rest = parse_command(parser, ["--teacher_checkpoint", *typed])
    assert distillation_flags(args)["teacher.checkpoint"] == teachers
    assert rest == tokens


def test_one_file_is_one_teacher_even_with_odd_characters(tmp_path):
    """A path that exists is one file, whatever a glob would make of it; a folder and a manifest are not."""
    (file,) = touch(tmp_path, "run[1],a.pt")
    assert is_one_file(str(file))
    assert is_one_file("missing.pt")
    assert not is_one_file(str(tmp_path)) and not is_one_file("teachers.yaml") and not is_one_file("a.pt,b.pt")


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "x"])
def test_a_name_that_is_too_long(name):
    """A specification that no file can have as its name is one line."""
    with pytest.raises(UserError, match="--teacher_checkpoint"):
        find_teachers(name)
