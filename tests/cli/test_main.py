"""The console command ``foundation``: the documented scripts under one name."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from foundation.cli import main
from foundation.cli.command import run_command
from foundation.core import program

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "train": "train.py",
    "distill": "distillation.py",
    "finetune": "finetune.py",
    "play": "play.py",
    "export": "export.py",
    "report": "report.py",
    "info": "teacher_info.py",
}


def console(*argv: str) -> subprocess.CompletedProcess[str]:
    """Type ``foundation ...``."""
    code = "import sys; from foundation.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)


def options(help_text: str) -> str:
    """The part of a help text that does not name the command."""
    return help_text[help_text.index("options:") :]


def test_the_package_installs_the_command():
    """``pyproject.toml`` names the function that is tested here."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"foundation": f"{main.__name__}:{main.main.__name__}"}


def test_help_lists_every_command_in_one_line_each_and_at_once():
    """``foundation --help`` takes less than half a second, the best of three, and knows every documented script."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = console("--help")
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(SCRIPTS)
    assert min(seconds) < 0.5
    assert set(main.COMMANDS) == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_has_the_flags_of_its_script(name):
    """The two help texts differ in nothing but the name to type."""
    done = console(name, "--help")
    script = ROOT / "foundation" / "rsl_rl" / SCRIPTS[name]
    own = subprocess.run([sys.executable, str(script), "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: foundation {name} ")
    assert own.stdout.startswith(f"usage: {SCRIPTS[name]} ")
    named = options(done.stdout).replace("foundation distill takes", "distillation.py takes")
    assert " ".join(named.split()) == " ".join(options(own.stdout).split())


@pytest.mark.parametrize(("columns", "least", "most"), [("80", 70, 78), ("200", 100, 110)])
@pytest.mark.parametrize("name", ["distill", "export"])
def test_help_is_as_wide_as_the_terminal(name, columns, least, most, monkeypatch):
    """No line of the help is wider than the terminal, nor than can be read; nothing is lost where it is narrow."""
    monkeypatch.setenv("COLUMNS", columns)
    shown = console(name, "--help").stdout
    lines = [line for line in shown.splitlines() if " | --no-" not in line]  # both names of a switch are one word
    assert least < max(map(len, lines)) <= most
    monkeypatch.delenv("COLUMNS")
    piped = console(name, "--help").stdout
    assert max(map(len, piped.splitlines())) <= 110
    assert "".join(shown.split()) == "".join(piped.split())


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["distil"], "error: unknown command 'distil'. Did you mean 'distill'?"),
        (
            ["evaluate"],
            "error: unknown command 'evaluate'. Valid are: distill, export, finetune, info, play, report, train.",
        ),
        (
            ["--task", "X"],
            "error: unknown command '--task'. Valid are: distill, export, finetune, info, play, report, train.",
        ),
        (["play", "--chekpoint", "x"], "error: unknown flag '--chekpoint'. Did you mean '--checkpoint'?"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(argv, line, monkeypatch, capsys, tmp_path):
    """Of a command or of one of its flags; the exit code is that of a user's mistake."""
    monkeypatch.chdir(tmp_path)
    assert run_command(main.dispatch, argv) == 2
    assert capsys.readouterr().err.strip() == line


def test_messages_print_what_their_reader_types(monkeypatch):
    """The scripts' own names, or the console command where that was typed."""
    monkeypatch.setitem(program._started, "by_console", False)
    assert [program.command_name(script) for script in SCRIPTS.values()] == list(SCRIPTS.values())
    program.note_console()
    assert [program.command_name(script) for script in SCRIPTS.values()] == [f"foundation {name}" for name in SCRIPTS]


def test_version():
    """``foundation --version`` is the package's."""
    done = console("--version")
    assert done.stdout == f"foundation {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}\n"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["help", "info"], 0, "--activation NAME"),
        (["help", "nosuch"], 2, "unknown command 'nosuch'"),
        (["--version", "x"], 2, "--version stands alone here, got 'x' behind it"),
        (["--help", "train"], 2, "foundation COMMAND --help"),
    ],
)
def test_help_takes_a_command_and_what_stands_alone_says_so(argv, code, says):
    """Nothing behind a flag is left out without a word."""
    done = console(*argv)
    assert done.returncode == code and says in done.stdout + done.stderr, done.stderr
