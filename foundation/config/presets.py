"""Presets of a user's own: a YAML file, found by its path, in the working folder's ``configs/``, or in a package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foundation.core.errors import UserError, suggest
from foundation.core.files import load_yaml
from foundation.core.registry import package_folders
from foundation.core.text import shorten

_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)
_ENDINGS = (".yaml", ".yml")
_GLOBAL = "_global_"
_LONGEST = 200
"""Letters of a file's name; file systems take 255 bytes."""
WORKING_FOLDER = Path("configs")
"""Beside the user: ``experiment=mine`` is ``configs/experiment/mine.yaml``."""


def is_path(group: str, name: str) -> bool:
    """Return whether a choice is written as the path of a file: ``./mine.yaml``, ``~/presets/mine.yaml``.

    A gym id may have a slash in it.
    """
    return name.endswith(_ENDINGS) or ("/" in name and group != "task")


def own_preset(group: str, name: str, builtin: Iterable[str]) -> Path:
    """Find the file of a choice that is no name of the built-in ``configs/``.

    Args:
        group: ``experiment``, ``student``, ...
        name: A path; the name of a file of ``configs/<group>/`` in the working folder; or ``pkg:name`` for
            ``<name>.yaml`` in that package or in its folder of the group's name.
        builtin: Names of the built-in ``configs/``, to suggest.

    Raises:
        UserError: If there is no such file, with the nearest names.
    """
    longest = max(len(part) for part in name.split("/"))
    if longest > _LONGEST:
        raise UserError(f"{group}={shorten(name)}: no file has a name of {longest} letters")
    if is_path(group, name):
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise UserError(f"{group}={name}: there is no such file.{_nearest(name, Path(name).parent, path.parent)}")
    package, colon, own = name.partition(":")
    if not colon:
        path = WORKING_FOLDER / group / f"{name}.yaml"
        if path.is_file():
            return path
        near = [*builtin, *(Path(found).stem for found in _names([path.parent])), *(f"./{n}" for n in _names([Path()]))]
        raise UserError(f"unknown {group} '{name}'. {suggest(name, near)}")
    roots = package_folders(name, group, typed_as=f"{group}=")
    folders = [folder for root in roots for folder in (root / group, root)]
    for folder in folders:
        path = folder / f"{own}.yaml"
        if path.is_file():
            return path
    near = [f"{package}:{Path(found).stem}" for found in _names(folders)]
    raise UserError(f"{group}={name}: the package {package} has no {own}.yaml. {suggest(name, near)}")


def _nearest(name: str, written: Path, folder: Path) -> str:
    """Return `` Did you mean ...?`` for a path, or nothing where its folder has no YAML."""
    near = [str(written / found) for found in _names([folder])]
    return f" {suggest(name, near)}" if near else ""


def _names(folders: Iterable[Path]) -> list[str]:
    return [path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix in _ENDINGS]


def read_preset(group: str, path: Path) -> tuple[dict[str, Any], str]:
    """Read a user's preset.

    Returns:
        Its values, and the part of the config that they set: that of its ``# @package`` line, else the whole config for
        an experiment and the group for any other.
    """
    values = load_yaml(path, as_hydra=True)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{group}={path}: expected keys with values, such as 'n_epochs: 50'")
    header = _PACKAGE.search(path.read_text(encoding="utf-8"))
    if header:
        return values, header[1]
    return values, _GLOBAL if group in ("experiment", "schedule", "task") else group
