"""``scripts/measure_code.py`` counts what it says it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_code.py"

FILES = {
    "__init__.py": "",
    "low.py": "X = 1  # why\n# a line\n\ndef f(a: Any, b: int, runner: Any):\n    from pkg import high\n    return a\n",
    "high.py": (
        "from pkg.low import X\nfrom pkg import left\n\nY = 1 if X else (2 if X > 1 else 3)\na, b = 1, 2\n"
        "Z = X  # type: ignore\n"
    ),
    "left.py": "if TYPE_CHECKING:\n    from pkg.right import R\n",
    "right.py": "from .left import L\n",
    "one.py": "import pkg.two\n",
    "two.py": "from . import one\n",
}


def test_each_figure_against_a_package_counted_by_hand(tmp_path: Path) -> None:
    """Files, lines, circles, Any, imports in functions, ternaries, tuples and comments of a package of seven files."""
    package = tmp_path / "pkg"
    package.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    done = subprocess.run([sys.executable, SCRIPT, package], capture_output=True, text=True, check=True)
    table = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:])
    assert table == {
        "files": "6",
        "lines": "17",
        "lines a file, median / largest": "2 / 6",
        "lines a function, median / largest": "3 / 3",
        "files with one importer": "5",  # all but left, which high and right import
        "circles of imports": "1",
        "circles, with imports in functions and for types": "3",
        "parameters typed Any": "2 (66.7 %)",
        "parameters `runner: Any`": "1",
        "imports inside functions": "1",
        "nested ternaries": "1",
        "tuple assignments per 1000 lines": "58.8",
        "comments per 100 lines": "11.8",
        "type: ignore, noqa": "1",
    }


def test_columns_have_titles_and_a_folder_above_the_package_is_refused(tmp_path: Path) -> None:
    """``before=FOLDER`` heads its column; a folder without ``__init__.py`` would show no imports, and is one line."""
    package = tmp_path / "pkg"
    package.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    words = [sys.executable, SCRIPT, f"before={package}", f"after={package}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "| | before | after |"
    assert done.stdout.splitlines()[2] == "| files | 6 | 6 |"
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "__init__.py" in done.stderr


def test_an_unknown_package_is_one_line(tmp_path: Path) -> None:
    """What is neither a folder nor installed is named."""
    done = subprocess.run([sys.executable, SCRIPT, "nobody_has_this"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nobody_has_this" in done.stderr
