"""What an installed ``foundation`` is, wherever a program is run."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.{kind}(sys.argv[1])"
USE = """
import site, sys
site.addsitedir(sys.argv[1])  # the install, .pth files included
sys.path.append(sys.argv[2])  # its dependencies, without the .pth of this clone's own install
from foundation import StudentPolicy
import foundation
StudentPolicy(22, 4)
print(foundation.__file__)
"""


def install(clone: Path, kind: str, into: Path) -> None:
    """Build a wheel as pip does, and unpack it."""
    wheels = into.with_name(f"{into.name}-wheel")
    wheels.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind), str(wheels)], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)


def clone_in(folder: Path) -> Path:
    """A clone named ``foundation``, as ``git clone`` makes it."""
    clone = folder / "foundation"
    clone.mkdir()
    for name in ("foundation", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        (clone / name).symlink_to(ROOT / name)
    return clone


def test_a_clone_named_foundation_does_not_hide_its_editable_install(tmp_path: Path) -> None:
    """In the folder that the clone lies in, ``from foundation import StudentPolicy`` finds the package in the clone."""
    clone = clone_in(tmp_path)
    install(clone, "build_editable", tmp_path / "site")
    used = subprocess.run(
        [sys.executable, "-S", "-c", USE, str(tmp_path / "site"), sysconfig.get_path("purelib")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout.strip() == str(clone / "foundation" / "__init__.py")


def test_a_wheel_has_the_package_and_its_files_and_nothing_else(tmp_path: Path) -> None:
    """Modules, presets and the shipped teacher; no tests, no scripts."""
    install(clone_in(tmp_path), "build_wheel", tmp_path / "site")
    top = {path.name for path in (tmp_path / "site").iterdir()}
    assert top == {"foundation", "foundation-0.1.0.dist-info"}
    for name in ("py.typed", "configs/distillation.yaml", "assets/teachers/point_ctrl/model.pt", "cli/parser.py"):
        assert (tmp_path / "site" / "foundation" / name).is_file(), name
