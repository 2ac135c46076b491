"""A module of the user's that cannot be imported is answered with its line and what to do."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from foundation.cli.command import run_command
from foundation.core.errors import UserError
from foundation.core.registry import note_typed, resolve_module
from foundation.engines import select_engine

FILES = {
    "theirs/__init__.py": "",
    "theirs/absent.py": "import os\nimport no_such_package_of_anyone\n",
    "theirs/deep.py": "import theirs.absent\n",
    "theirs/renamed.py": "import cv2.nowhere_at_all\n",
    "theirs/name.py": "\n\nfrom json import lods\n",
    "theirs/wrong.py": "x = 1\ndef f(:\n    pass\n",
    "theirs/indent.py": "def f():\nreturn 1\n",
    "theirs/a.py": "from theirs.b import B\nA = 1\n",
    "theirs/b.py": "from theirs.a import A\nB = 1\n",
    "theirs/sub.py": "import theirs.helpers\n",
    "theirs/kit.py": "import omni.client\n",
    "theirs/lab.py": "import isaaclab_tasks_of_nobody\n",
    "theirs/late.py": "def step():\n    import no_such_package_of_anyone\n",
    "theirs/up.py": "from ...above import x\n",
}
CASES = {
    "absent": r"theirs.absent.py, line 2: the Python package 'no_such_package_of_anyone' is not installed: pip install "
    "no_such_package_of_anyone$",
    "deep": r"theirs.absent.py, line 2: the Python package 'no_such_package_of_anyone'",
    "renamed": r"theirs.renamed.py, line 1: .*(pip install opencv-python|'cv2' has no module 'nowhere_at_all')$",
    "name": r"theirs.name.py, line 3: cannot import name 'lods' from 'json'",
    "wrong": r"theirs.wrong.py, line 2: SyntaxError: invalid syntax: def f\(:",
    "indent": r"theirs.indent.py, line 2: IndentationError: expected an indented block .*: return 1",
    "a": r"theirs.b.py, line 1: circular import: cannot import name 'A' from partially initialized module 'theirs.a'",
    "sub": r"theirs.sub.py, line 1: 'theirs' has no module 'helpers'",
    "kit": r"theirs.kit.py, line 1: 'omni' is a part of Isaac Sim",
    "lab": r"theirs.lab.py, line 1: Isaac Lab's 'isaaclab_tasks_of_nobody' is not installed here",
    "up": r"theirs.up.py, line 1: attempted relative import beyond top-level package",
    "not_there": r"No module named 'theirs.not_there' \(neither installed nor in the working folder\)$",
}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Put a package of the user's into the working folder."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.mark.parametrize("module", CASES)
def test_each_kind_of_failed_import_names_line_and_remedy(module, theirs, typed):
    """The innermost line of the user's, and the package to install, not an extra of this package."""
    name = f"theirs.{module}:Task-v0"
    typed("--task", name)
    with pytest.raises(UserError, match=f"^task '{name}' cannot be imported: .*{CASES[module]}") as caught:
        resolve_module(name, "task")
    assert "\n" not in str(caught.value) and "-e ." not in str(caught.value)


def test_no_engine_is_blamed_for_a_broken_module(theirs, typed):
    """With an engine chosen by itself or by name, the answer is why the module fails, and nothing of engines."""
    typed("--task", "theirs.absent:Task-v0")
    for engine in ("auto", "torch"):
        with pytest.raises(UserError, match=r"^task .* cannot be imported: theirs.*pip install"):
            select_engine("theirs.absent:Task-v0", engine)


def test_a_package_that_is_missed_late_is_named_with_the_line_too(theirs, capsys):
    """An import inside a function of the user's fails while the command runs."""

    def main(argv: Any) -> int:
        note_typed(["theirs.late:Env"])
        resolve_module("theirs.late:Env", "task").step()
        return 0

    assert run_command(main, []) == 2
    assert capsys.readouterr().err == (
        "error: theirs/late.py, line 2: the Python package 'no_such_package_of_anyone' is not installed: "
        "pip install no_such_package_of_anyone\n"
    )
