"""Names that stand for code: ``"pkg.module:Attr"`` wherever a built-in name is accepted, through one resolver.

Importing a module runs it. A module is imported only if the user has typed its name, or the program says that the name
is its own; what a file names (a checkpoint's student, a received run's loss) must have been imported already.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from foundation.core.errors import UserError
from foundation.core.import_errors import explain
from foundation.core.text import shorten

_OWN = __name__.partition(".")[0]
_NAME = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d][\w.-]*")
"""``pkg.module:Attr``, or ``pkg.module:Gym-Id-v0``; not ``cuda:0``."""
_typed: set[str] = set()


class UntypedNameError(UserError):
    """A file names a module that neither the user nor the program has asked for."""


def note_typed(words: Iterable[str]) -> None:
    """Remember the modules that a command line names: from here on, what is in them may be imported.

    Args:
        words: The command line; each ``pkg.module:Attr`` in it counts, wherever it stands in a word. Hydra hands a
            sweep's values on with their colons escaped.
    """
    for word in words:
        _typed.update(match[1] for match in _NAME.finditer(word.replace("\\:", ":")))


def forget_typed() -> None:
    """Forget every command line, as at the start of a process."""
    _typed.clear()


def import_flags() -> str:
    """Return the flags that a later command on this one's files needs: ``" --import pkg.module"`` and so on."""
    return "".join(
        f" --import {name}" for name in sorted(_typed & sys.modules.keys()) if name.partition(".")[0] != _OWN
    )


def import_typed(name: str) -> ModuleType:
    """Import a module by the name that the user typed for it (``--import pkg.module``).

    Raises:
        UserError: If there is no such module.
    """
    _search_working_folder(name)
    try:
        module = import_module(name)
    except (ImportError, SyntaxError) as error:
        raise UserError(f"--import {name}: cannot be imported ({explain(error, name)})") from error
    _typed.add(name)
    return module


def import_module(name: str) -> ModuleType:
    """Import a module: a name that no module can have is an ``ImportError`` too."""
    if not is_module_name(name):
        raise ImportError(f"'{shorten(name)}' is not the full name of a module")
    return importlib.import_module(name)


def is_module_name(name: str) -> bool:
    """Return whether a module could have this name."""
    return all(part.isidentifier() for part in name.split("."))


def may_import(module: str) -> bool:
    """Return whether a module may be imported for a name that a file may hold."""
    if module in _typed or module.partition(".")[0] == _OWN:
        return True
    # What is loaded runs nothing more; but of Python's own modules, no file has a use that is good.
    return module in sys.modules and module.partition(".")[0] not in sys.stdlib_module_names


def resolve_module(name: str, what: str, *, trusted: bool = False, typed_as: str = "") -> ModuleType:
    """Import the module of ``"pkg.module:Attr"``.

    Args:
        name: The whole name.
        what: What it stands for, such as ``student``; begins the message.
        trusted: Whether the name is the program's own (a registered entry point, a config class) and not a file's.
        typed_as: How the user types such a name, beside ``--import``: ``--task``, ``student=``.

    Raises:
        UntypedNameError: If only a file has named the module.
        UserError: If it cannot be imported; the cause is the ``ImportError`` or ``SyntaxError``.
    """
    if not trusted:
        refuse_untyped(name, what, typed_as)
        _search_working_folder(name)
    module = name.rpartition(":")[0]
    try:
        return import_module(module)
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{what} '{shorten(name)}' cannot be imported: {explain(error, module)}") from error


def package_folders(name: str, what: str, *, typed_as: str = "") -> list[Path]:
    """Return the folders of the package of ``"pkg.name:file"``. Nothing is imported: its files are data.

    Raises:
        UntypedNameError: If only a file has named the package.
        UserError: If there is no such package.
    """
    refuse_untyped(name, what, typed_as)
    _search_working_folder(name)
    package = name.rpartition(":")[0]
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top) if is_module_name(package) else None
    except (ImportError, ValueError):
        spec = None
    folders = [Path(root, *inner) for root in (spec.submodule_search_locations if spec else None) or []]
    found = [folder for folder in folders if folder.is_dir()]
    if not found:
        raise UserError(f"{what} '{shorten(name)}': there is no package '{shorten(package)}' here or installed")
    return found


def _search_working_folder(name: str) -> None:
    """Let a typed module be imported from the working folder, after everything that is installed.

    A script's ``sys.path`` begins at the script's own folder, so that a package beside the user would not be found.
    """
    top = name.partition(":")[0].partition(".")[0]
    here = Path.cwd()
    if str(here) not in sys.path and ((here / f"{top}.py").is_file() or (here / top).is_dir()):
        sys.path.append(str(here))


def resolve_attribute(name: str, what: str, *, trusted: bool = False, typed_as: str = "") -> Any:
    """Return what ``"pkg.module:Attr"`` names (see :func:`resolve_module`).

    Raises:
        UserError: If there is no such module or attribute, or the module may not be imported.
    """
    module = resolve_module(name, what, trusted=trusted, typed_as=typed_as)
    attribute = name.rpartition(":")[2]
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise UserError(f"{what} '{shorten(name)}': {module.__name__} has no '{shorten(attribute)}'") from error


def refuse_untyped(name: str, what: str, typed_as: str = "") -> None:
    """Refuse a name whose module may not be imported, and name what to type if it is to be.

    Args:
        name: ``pkg.module:Attr``, or a name without a module.
        what: What it stands for.
        typed_as: How such a name is typed: ``--task``, ``student=``.

    Raises:
        UntypedNameError: If a file alone has named the module.
    """
    module = name.rpartition(":")[0]
    if not is_module_name(module) or may_import(module):
        return
    gap = "" if typed_as.endswith("=") else " "
    ways = [f"{typed_as}{gap}{shorten(name)}"] if typed_as else []
    ways.append(f"--import {shorten(module)}")
    package = shorten(module.partition(".")[0])
    raise UntypedNameError(
        f"{what} '{shorten(name)}' belongs to package '{package}', which is not imported because a file alone names "
        f"it: give {' or '.join(ways)} if you trust it"
    )


def refuse_untyped_names(values: object, where: str) -> None:
    """Refuse plain values of a file that name a module which may not be imported, before anything resolves them.

    Args:
        values: Nested mappings and lists; every text in them that is, or ends in, a ``pkg.module:Attr`` counts.
        where: What to name in the error.

    Raises:
        UntypedNameError: At the first such name.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            refuse_untyped_names([key, value], where)
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_untyped_names(value, where)
    elif isinstance(values, str):
        for match in _NAME.finditer(values):
            refuse_untyped(match[0], f"{where}:")
