"""One-line errors for modules that cannot be imported: the place in the user's code, and what to do."""

from __future__ import annotations

import importlib.util
import sysconfig
import traceback
from pathlib import Path

from foundation.core.text import one_line, shorten

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED_AS = {
    "cv2": "opencv-python",
    "git": "GitPython",
    "h5py": "h5py",
    "PIL": "pillow",
    "pxr": "usd-core",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Modules whose package has another name."""
_SIMULATOR = ("isaacsim", "omni", "carb", "usdrt")


def explain(error: ImportError | SyntaxError, sought: str = "") -> str:
    """Return why an import failed.

    Args:
        error: As the import raised it.
        sought: The module that the user asked for, which is not explained if it is the missing one itself.
    """
    if isinstance(error, SyntaxError):
        text = f": {error.text.strip()}" if error.text else ""
        place = f"{_shown(error.filename)}, line {error.lineno}: " if error.filename else ""
        return f"{place}{type(error).__name__}: {one_line(str(error.msg))}{shorten(text, 60)}"
    place = users_place(error)
    where = f"{place}: " if place else ""
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and name:
        if place is None and (sought == name or sought.startswith(f"{name}.")):
            return f"{one_line(error)} (neither installed nor in the working folder)"
        return where + _missing(name)
    if "partially initialized module" in str(error) or "circular import" in str(error):
        return f"{where}circular import: {one_line(str(error).partition(' (')[0])} while it is still being imported"
    return where + one_line(error)


def _missing(name: str) -> str:
    top, _, rest = name.partition(".")
    if rest and _is_there(top):
        return f"'{top}' has no module '{rest}'"
    if top in _SIMULATOR:
        return f"'{top}' is a part of Isaac Sim, which is not installed or not started"
    if top.startswith("isaaclab"):
        return f"Isaac Lab's '{top}' is not installed here (README, section Installation)"
    package = _INSTALLED_AS.get(top, top)
    return f"the Python package '{top}' is not installed: pip install {package}"


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def users_place(error: BaseException) -> str | None:
    """Return the user's innermost line behind an error, as ``own_task.py, line 3``; None where none of theirs is."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{_shown(places[-1].filename)}, line {places[-1].lineno}" if places else None


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    if path.is_relative_to(_PACKAGE) or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    roots = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return not any(path.is_relative_to(Path(root).resolve()) for root in roots)


def _shown(filename: str) -> str:
    """Return a path, from the working folder where it lies in it."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
