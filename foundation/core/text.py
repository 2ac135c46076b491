"""Text for messages: one line, short, printable, whatever a file holds."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxdict = 6
_REPR.maxlist = 8
_REPR.maxtuple = 8
_REPR.maxset = 8
_REPR.maxstring = 80
_REPR.maxother = 80
_REPR.maxlong = 40


def one_line(error: BaseException | str, most: int = 160) -> str:
    """Return the text of an exception (or its kind, where it has none) in one short line that can be printed."""
    text = str(error) if isinstance(error, str) else _text_of(error)
    return shorten(" ".join(text[: 8 * most].split()), most) or type(error).__name__


def shorten(text: str, most: int = 80) -> str:
    """Return text with its end left out where it is longer; what cannot be printed is escaped."""
    short = text if len(text) <= most else text[: most - 3] + "..."
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


def printable(text: str, most: int = 4000) -> str:
    """Return text in one line, cut off after some length: letters that cannot be printed are escaped one by one."""
    short = text if len(text) <= most else text[: most - 3] + "..."
    if short.isprintable():
        return short
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in short)


def quoted(value: object, most: int = 80) -> str:
    """Return a value as Python writes it, looked at only as far as is shown: lists of lists are not expanded."""
    return shorten(_REPR.repr(value), most)


def plain_task(task: str) -> str:
    """Return a gym id without the package before it and without ``-Play``: a task and its variant for playing."""
    return task.rpartition(":")[2].replace("-Play-", "-")


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the error of a file's own making, such as one that holds an integer of 5,000 digits
        return ""
