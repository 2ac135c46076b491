"""Errors that are the user's to mend: one line, whatever a file's values bring into it."""

from __future__ import annotations

import pickle

import pytest

from foundation.core.errors import UserError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("plain", "plain"),
        ("größer als ±5", "größer als ±5"),
        ("'a\n\n b' is not known", r"'a\n\n b' is not known"),
        ("a\x1b[2Jb\0\r", r"a\x1b[2Jb\x00\r"),
        ("half \ud800, last \U0010ffff, \ufeff", r"half \ud800, last \U0010ffff, \ufeff"),
        ("x" * 10_000, "x" * 3997 + "..."),
    ],
)
def test_a_message_is_one_line(message, shown):
    """Line ends, control characters and halves of characters are escaped, long ones cut off; the rest stays."""
    assert str(UserError(message)) == shown
    assert str(pickle.loads(pickle.dumps(UserError(message)))) == shown
