"""Argument parsers whose errors are one line that names the nearest flag."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from foundation.core.errors import UserError, suggest
from foundation.core.registry import import_typed, note_typed
from foundation.core.text import quoted

_MAY_BE_EMPTY = ("run_name",)
"""Flags, without their dashes, whose empty value has a meaning: no suffix."""
_SAID = ("true", "false", "on", "off", "yes", "no", "1", "0")
"""Values that users type after a switch."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`UserError`, one line each; flags are not abbreviated."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)
        # argparse alone takes -1e3 for a flag.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-inf|-nan")

    def error(self, message: str) -> NoReturn:
        """Raise the complaint instead of printing the usage and exiting."""
        raise UserError(message.removeprefix("argument "))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write, and raise where that fails: argparse's own would end as if the help had been read."""
        stream = sys.stderr if file is None else file
        if message and stream is not None:  # a process may have been started without one
            print(message, end="", file=stream, flush=True)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] (the stubs have overloads by namespace)
        self, args: Sequence[str] | None = None, namespace: object = None
    ) -> tuple[Any, list[str]]:
        """Parse, and remember the modules that were typed: those of ``--import`` are imported at once."""
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_nul(words)
        note_typed(words)
        known, rest = cast("tuple[argparse.Namespace, list[str]]", super().parse_known_args(words, namespace))
        for module in getattr(known, "import", None) or []:
            import_typed(module)
        return known, rest

    def _refuse_nul(self, words: Sequence[str]) -> None:
        """Complain of a NUL character, which no name, path or value has."""
        for word in words:
            if "\0" in word:
                self.error(f"{quoted(word)} has a NUL character in it: leave it out")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Check the text of a value before its type sees it: ``Path("")`` is the current folder."""
        if arg_string != action.default:  # Isaac Lab's --experience is empty unless it is typed
            self._refuse_blank(action, arg_string)
            if action.type in (None, str, Path):
                self._refuse_control(action, arg_string)
        return super()._get_value(action, arg_string)

    def _refuse_blank(self, action: argparse.Action, text: str) -> None:
        """Complain of a flag that was given nothing, as by a shell's variable that is not set."""
        if text.strip() or (text == "" and action.dest in _MAY_BE_EMPTY):
            return
        name = _name_of(action)
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        what = f" {value}" if action.option_strings else ""
        self.error(f"{name} was given {'a blank' if text else 'an empty'} text: write {name}{what}, or leave it out")

    def _refuse_control(self, action: argparse.Action, text: str) -> None:
        """Complain of a line break, or a terminal's code, in what will be printed and may become a file's name."""
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in text):
            self.error(
                f"{_name_of(action)} is {quoted(text)}: it must be a plain name or path, without line breaks and the "
                "like"
            )

    def flag_names(self) -> list[str]:
        """List every flag that would be accepted."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def refuse_unknown(self, token: str) -> NoReturn:
        """Complain of a flag that does not exist, naming the nearest one."""
        name = token.partition("=")[0]
        self.error(f"unknown flag '{name}'. {suggest(name, self.flag_names())}")

    def refuse_values_of_switches(self, argv: Sequence[str]) -> None:
        """Complain of ``--shuffle True`` and ``--shuffle=True``: a switch takes no value."""
        for token, following in zip(argv, [*argv, ""][1:], strict=True):
            name, equals, value = token.partition("=")
            action = self._option_string_actions.get(name)
            if action is None or action.nargs != 0 or not (equals or following.lower() in _SAID):
                continue
            value = value if equals else following
            off = f"--no-{name[2:]}"
            if off in self._option_string_actions:
                self.error(f"{name} takes no value ('{value}'): write {name} for on, {off} for off")
            self.error(f"{name} takes no value ('{value}'): write {name} alone, or leave it out")

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Read a whole command line.

        Args:
            argv: Arguments without the program's name; None takes the process's own.

        Raises:
            UserError: For an unknown flag or argument, a missing or a wrong value.
        """
        tokens = sys.argv[1:] if argv is None else list(argv)
        flags = tokens[: tokens.index("--")] if "--" in tokens else tokens
        for token in flags:  # first: a misspelt flag is not a missing one
            if token.startswith("--") and token.partition("=")[0] not in self._option_string_actions:
                self.refuse_unknown(token)
        self.refuse_values_of_switches(tokens)
        known, rest = self.parse_known_args(tokens)
        if rest:
            self.error(f"unknown argument '{rest[0]}'")
        return known


class ScriptParser(OneLineParser):
    """The parser of a script: its help is the module's text as it stands."""

    def __init__(self, description: str | None, **kwargs: object):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)


def _name_of(action: argparse.Action) -> str:
    """Return the flag's last name, or what stands for an argument without one."""
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
