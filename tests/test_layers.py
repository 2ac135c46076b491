"""The package's layers: who may import whom, and what importing must not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "foundation"

DIRECTLY_BELOW: dict[str, set[str]] = {
    "core": set(),
    "accel": {"core"},
    "deploy": {"core"},  # runs on a robot: NumPy and nothing else
    "config": {"core"},
    "policies": {"config", "accel"},
    "students": {"policies"},
    "checkpoints": {"students"},  # a student's checkpoint can teach in its turn
    "teachers": {"checkpoints"},
    "dataset": {"teachers"},
    "rollout": {"dataset", "engines"},
    "learning": {"rollout"},
    "evaluation": {"learning"},
    "export": {"learning", "deploy"},
    "tasks": {"config", "deploy", "accel"},
    "tasks.quadrotor.training": {"tasks", "learning"},
    "engines": {"tasks"},
    "runs": {"evaluation", "export"},
    "ppo": {"runs"},
    "report": {"runs"},
    "viewer": {"evaluation"},
    "cli": {"ppo", "report", "viewer"},
    "rsl_rl": {"cli"},
}
"""Rooms, low to high, each with those directly below it; it may import these and all that is below them."""


def below(room: str) -> set[str]:
    """Everything a room may import."""
    direct = DIRECTLY_BELOW[room]
    return direct.union(*(below(other) for other in direct))


def room_of(dotted: str) -> str:
    """The room of a module of the package, given without the leading ``foundation.``: the longest known name."""
    parts = dotted.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in DIRECTLY_BELOW), parts[0])


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every ``foundation.*`` import, those inside functions and for type checkers alone too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        yield from imports_of(node)


def violations(path: Path, source: str) -> list[str]:
    """The imports of one file that go up or sideways."""
    room = room_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    found = []
    for line, name in imports_of(ast.parse(source)):
        package, _, rest = name.partition(".")
        if package != "foundation" or not rest:
            continue
        target = room_of(rest)
        if target not in below(room) | {room}:
            found.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} imports {target}")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_room_is_known() -> None:
    """A new folder or file at the package's root has to be given its place in the layers."""
    rooms = {room_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts)) for path in FILES}
    assert rooms <= set(DIRECTLY_BELOW), f"without a layer: {rooms - set(DIRECTLY_BELOW)}"


def test_imports_follow_the_layers() -> None:
    """No module imports one of its own layer's neighbours or of a higher layer."""
    found = [line for path in FILES for line in violations(path, path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("where", "source", "caught"),
    [
        ("config/x.py", "import foundation.students", True),
        ("config/x.py", "def f():\n    from foundation.runs.runner import X", True),
        ("policies/x.py", "from foundation.students import y", True),
        ("teachers/x.py", "from foundation.dataset.dataset import D", True),
        ("policies/x.py", "from foundation import tasks", True),
        ("rsl_rl/x.py", "from foundation.engines import select_engine", False),
        ("dataset/x.py", "if TYPE_CHECKING:\n    from foundation.runs.runner import R", True),
        ("tasks/x.py", "import torch\nfrom foundation.core.errors import UserError", False),
        ("tasks/x.py", "from foundation.policies.mlp import MLP", True),
        ("tasks/quadrotor/training/x.py", "from foundation.policies.mlp import MLP", False),
    ],
)
def test_the_check_itself_catches_what_it_should(where: str, source: str, caught: bool) -> None:
    """Upward imports are found at module level, in functions and through ``from foundation import``."""
    assert bool(violations(PACKAGE / where, source)) is caught


def test_importing_the_package_is_light() -> None:
    """``import foundation`` and the command line's building blocks need neither torch, hydra nor gymnasium."""
    script = (
        "import sys, foundation, foundation.cli.cli_args, foundation.rsl_rl.distillation\n"
        "heavy = {'torch', 'hydra', 'gymnasium', 'tensordict', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_runnable_script_shadows_a_library() -> None:
    """``foundation/`` itself holds no script: run from there, ``foundation/rsl_rl`` would hide the library rsl_rl."""
    scripts = [path for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert not scripts
    beside = {path.stem for path in (PACKAGE / "rsl_rl").glob("*.py")} - {"__init__"}
    assert not beside & set(sys.stdlib_module_names)
