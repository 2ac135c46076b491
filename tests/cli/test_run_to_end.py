"""Which run is resumed, and that it keeps its own folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from foundation.cli.run_to_end import find_resumed, refuse_new_names
from foundation.core.errors import UserError
from foundation.runs.run_dir import RunDir

NAMES = ("2026-01-01_00-00-00", "2026-01-02_00-00-00_b")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of one experiment, each with a checkpoint."""
    for name in NAMES:
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "checkpoint_latest.pt").touch()
    return tmp_path


def find(root: Path, **given: str) -> RunDir:
    flags = {"checkpoint": None, "load_run": None, "experiment_name": None} | given
    return find_resumed(argparse.Namespace(**flags), root)


def test_a_checkpoints_path_names_the_run(runs: Path) -> None:
    """Alone, and with the name or the path of the same run."""
    file = str(runs / "mine" / NAMES[0] / "checkpoint_latest.pt")
    assert find(runs).name == NAMES[1]
    assert find(runs, checkpoint=file).name == NAMES[0]
    assert find(runs, checkpoint=file, load_run=NAMES[0]).name == NAMES[0]
    assert find(runs, checkpoint=file, load_run=str(runs / "mine" / NAMES[0])).name == NAMES[0]


def test_a_checkpoint_of_one_run_and_the_name_of_another_are_refused(runs: Path) -> None:
    """And neither of them is ignored."""
    file = str(runs / "mine" / NAMES[0] / "checkpoint_latest.pt")
    with pytest.raises(
        UserError, match=f"--checkpoint is a file of the run .*{NAMES[0]}, and --load_run is '{NAMES[1]}'"
    ):
        find(runs, checkpoint=file, load_run=NAMES[1])


def test_names_of_a_new_folder_are_refused_for_a_run_that_has_its_own(runs: Path) -> None:
    """Those that the run has may be typed again, also where its folder was moved to another experiment."""
    run = find(runs)
    saved = {"experiment_name": "before", "run_name": "b"}
    refuse_new_names(run, saved, "mine", "b")
    refuse_new_names(run, saved, "before", "b")
    refuse_new_names(run, {"experiment_name": "before"}, "before", "")
    with pytest.raises(
        UserError, match=r"--run_name is 'c', which names the folder of a new run.*leave --run_name out"
    ):
        refuse_new_names(run, saved, "before", "c")
    with pytest.raises(UserError, match=r"--experiment_name is 'other', .* --resume goes on in .*: leave"):
        refuse_new_names(run, saved, "other", "b")
