"""A sweep ends with a table of its runs, whichever way they ended, and keeps what was done before Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from foundation.cli.cli_args import CommandParser, add_hydra_args
from foundation.cli.command import run_command
from foundation.cli.hydra_app import run_application
from foundation.cli.report_job import find_runs
from foundation.cli.sweep_table import JobResult, read_results, table_lines
from foundation.core.errors import UserError

COMMAND = """
from foundation.core.errors import UserError
from foundation.runs.run_dir import RunDir

def compose_configs(argv):
    return {}

def run(argv):
    seed = int(next(word for word in argv if word.startswith("seed=")).partition("=")[2])
    if seed == 3:
        raise UserError("no teacher 3")
    run = RunDir.create("logs/distillation", "swept", argv[argv.index("--run_name") + 1])
    run.save_checkpoint("best_student.pt", {"epoch": 1})
    if seed == 2:
        return 130
    run.write_summary({"return_ratio": 0.9 + seed / 100, "best_student_return": 20.0 * seed})
    return 0
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what sweeps a command of no simulator: seed 2 is stopped by a signal, seed 3 fails, others are good."""
    (tmp_path / "swept_command.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "swept_command", raising=False)
    parser = CommandParser(prog="swept.py")
    parser.add_argument("--run_name")
    add_hydra_args(parser)
    return lambda *argv: run_command(lambda _: run_application("swept_command", parser, ["-m", *argv]))


def folder_of(seed: int) -> str:
    (path,) = Path("logs/distillation/swept").glob(f"*_seed-{seed}")
    return str(path)


def test_the_runs_of_a_sweep_are_found_from_another_folder(sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """``foundation report SWEEP`` works wherever it is typed, though the sweep names its runs from where it began."""
    sweep("seed=1,4")
    runs = [Path(folder_of(seed)).resolve() for seed in (1, 4)]
    (folder,) = Path("logs/multirun").iterdir()
    folder = folder.resolve()
    monkeypatch.chdir("/")
    assert [path.resolve() for path in find_runs([str(folder)])] == runs


def test_the_table_has_settings_ratio_and_folder_of_each_run(sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs, as their ``summary.json`` has them, and one that failed, whose error is repeated below."""
    assert sweep("seed=1,3,4") == 2
    shown = capsys.readouterr()
    (folder,) = Path("logs/multirun").iterdir()
    lines = shown.out.splitlines()
    start = lines.index(f"Sweep: 2 of 3 jobs done; results in {folder}")
    page = folder / "report.html"
    assert lines[-1] == f"Their curves, and size against score: {page}"
    assert "seed-1" in page.read_text() and "seed-4" in page.read_text() and "seed-3" not in page.read_text()
    assert [line.split() for line in lines[start + 1 : -1]] == [
        ["job", "settings", "return", "ratio", "return", "outcome", "folder"],
        ["0", "seed=1", "91.0", "%", "20", "done", folder_of(1)],
        ["1", "seed=3", "-", "-", "failed", "-"],
        ["2", "seed=4", "94.0", "%", "80", "done", folder_of(4)],
        ["job", "1:", "no", "teacher", "3"],
    ]
    assert shown.err.count("error: no teacher 3") == 1
    assert [result.objective() for result in read_results(folder)][::2] == pytest.approx([0.91, 0.94])


def test_a_signal_ends_the_sweep_and_what_was_done_is_shown(sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """The second of four jobs gets Ctrl-C: exit code 130, a table of two, and two that have not begun."""
    with pytest.raises(SystemExit) as left:
        sweep("seed=1,2,4,5")
    assert left.value.code == 130
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Sweep: 1 of 4 jobs done, 2 not begun; results in logs/multirun/") for line in lines)
    assert lines[-2].split() == ["0", "seed=1", "91.0", "%", "20", "done", folder_of(1)]
    assert lines[-1].split() == ["1", "seed=2", "-", "-", "stopped", folder_of(2)]


def test_a_sweep_in_which_no_job_begins_leaves_no_folder(sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra's own mistakes come first."""
    assert sweep("seed=1,4", "hydra.nothing=1") == 2
    assert "hydra.nothing" in capsys.readouterr().err
    assert not Path("logs").exists()


def test_figures_of_every_command_are_columns_where_they_are_known(tmp_path: Path) -> None:
    """``train.py`` has returns alone; a run that was stopped has none; a sweeper's number of jobs is unknown."""
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"mean_return": 1234.56}, "fresh": None}))
    results = [JobResult(1, ["a=1"], 143, str(tmp_path / "gone")), JobResult(0, ["a=2", "b=3"], 0, str(tmp_path))]
    lines = table_lines(results, None, Path("logs/multirun/x"))
    assert lines[0] == "Sweep: 1 jobs done; results in logs/multirun/x"
    assert lines[1].split() == ["job", "settings", "return", "outcome", "folder"]
    assert lines[2].split() == ["1", "a=1", "-", "stopped", str(tmp_path / "gone")]
    assert lines[3].split() == ["0", "a=2", "b=3", "1235", "done", str(tmp_path)]


def test_a_result_that_was_tampered_with_is_named(tmp_path: Path) -> None:
    """One line, with the file."""
    (tmp_path / "job_0.json").write_text('{"number": 0}')
    with pytest.raises(UserError, match=r"cannot read '.*job_0\.json', which a job of this sweep wrote"):
        read_results(tmp_path)


GOOD = {"number": 0, "settings": [], "code": 0}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        json.dumps({**GOOD, "number": "first"}),
        json.dumps({**GOOD, "folder": [5]}),
        json.dumps({**GOOD, "folder": "a\0b"}),
        json.dumps({**GOOD, "settings": [[1]]}),
        json.dumps({"number": 0}),
        "[]",
    ],
)
def test_a_job_file_of_another_form_is_one_line(tmp_path: Path, content: str) -> None:
    """Too deep, or a value of another type: the file is named, and nothing of it is used."""
    (tmp_path / "job_0.json").write_text(content)
    (tmp_path / "job_1.json").write_text(json.dumps({**GOOD, "number": 1}))
    with pytest.raises(UserError, match=r"cannot read '.*job_0\.json', which a job of this sweep wrote"):
        read_results(tmp_path)


def test_a_job_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """One line, as for a damaged one."""
    os.mkfifo(tmp_path / "job_0.json")
    with pytest.raises(UserError, match="pipe or a device"):
        read_results(tmp_path)


@pytest.mark.parametrize("summary", ["[" * 100_000, json.dumps({"return_ratio": 10**400}), "[]"])
def test_a_damaged_summary_gives_no_figures(tmp_path: Path, summary: str) -> None:
    """The table is printed without them."""
    (tmp_path / "summary.json").write_text(summary)
    assert JobResult(0, [], 0, str(tmp_path)).figures() == {}
