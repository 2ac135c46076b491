"""Facts about this process: how it was started, so that messages show commands as they are typed, and its runs."""

from __future__ import annotations

from pathlib import Path

_CONSOLE_NAMES = {
    "train.py": "train",
    "distillation.py": "distill",
    "play.py": "play",
    "teacher_info.py": "info",
    "export.py": "export",
    "finetune.py": "finetune",
    "report.py": "report",
}
_started = {"by_console": False}
_run_folders: list[Path] = []


def note_console() -> None:
    """Remember that the console command ``foundation`` was typed, and not a script."""
    _started["by_console"] = True


def command_name(script: str) -> str:
    """Return what to type for a script: its own name, or ``foundation distill`` where that was typed.

    Args:
        script: ``train.py``, ``distillation.py``, ``finetune.py``, ``play.py``, ``teacher_info.py`` or ``export.py``.
    """
    return f"foundation {_CONSOLE_NAMES[script]}" if _started["by_console"] else script


def note_run_folder(path: Path) -> None:
    """Remember the folder of a run that this process has begun."""
    _run_folders.append(path)


def run_folders() -> list[Path]:
    """Return the folders of the runs that this process has begun, the first one first."""
    return list(_run_folders)
