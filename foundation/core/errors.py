"""Errors that are the user's to mend: one clear line, never a traceback."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from foundation.core.text import printable

_LONGEST_NAME = 200
"""Letters of an unknown name that are compared: the time that it takes grows with their square."""


class UserError(Exception):
    """Error of the user's, in one line: what is wrong, where, and what to do.

    Commands print it as ``error: <message>`` on stderr and exit with code 2. Whatever a file's values bring into the
    message, it is one line that can be printed.
    """

    def __init__(self, message: object = "") -> None:
        """Take the message; what cannot be printed in it is escaped, and it is cut off after some length."""
        super().__init__(printable(str(message)))


def suggest(name: str, valid: Iterable[str], limit: int = 12, *, ordered: bool = False) -> str:
    """Answer an unknown name with the nearest valid ones.

    Args:
        name: What the user typed.
        valid: Every name that would have been accepted.
        limit: How many names to list when none is near.
        ordered: List them as they come, such as the newest first, and not by the alphabet.

    Returns:
        A sentence such as ``Did you mean 'kl'?`` or ``Valid are: huber, kl, mse.``.
    """
    names = list(dict.fromkeys(valid))
    names = names if ordered else sorted(names)
    near = difflib.get_close_matches(name[:_LONGEST_NAME], names, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    if not names:
        return "There are none."
    end = ", ..." if len(names) > limit else "."
    return f"Valid are: {', '.join(names[:limit])}{end}"


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever values of a file run into, where they are taken apart, into one line that names the file.

    Args:
        what: What is read, such as ``the state in 'checkpoint_latest.pt'``.

    Raises:
        UserError: In the place of any error that is not the user's already.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, OSError) as error:
        text = " ".join(str(error)[:2000].split())[:160]
        raise UserError(f"{what} is corrupt or incomplete: {type(error).__name__} {text}.") from error


class RunInterrupted(Exception):  # noqa: N818 (a request, not an error)
    """The user asked a run to stop (Ctrl-C or SIGTERM); what was finished is saved."""
