"""Name under which this process was started, so that messages print commands as they are typed."""

from __future__ import annotations

_CONSOLE_NAMES = {
    "train.py": "train",
    "distillation.py": "distill",
    "play.py": "play",
    "teacher_info.py": "info",
    "export.py": "export",
    "finetune.py": "finetune",
}
_started = {"by_console": False}


def note_console() -> None:
    """Remember that the console command ``foundation`` was typed, and not a script."""
    _started["by_console"] = True


def command_name(script: str) -> str:
    """Return what to type for a script: its own name, or ``foundation distill`` where that was typed.

    Args:
        script: ``train.py``, ``distillation.py``, ``finetune.py``, ``play.py``, ``teacher_info.py`` or ``export.py``.
    """
    return f"foundation {_CONSOLE_NAMES[script]}" if _started["by_console"] else script
