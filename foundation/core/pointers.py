"""Pointers in place of files that were not fetched: Git LFS's text, git-annex's links, links to nothing."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from foundation.core.archives import check_regular
from foundation.core.errors import UserError
from foundation.core.text import shorten

_LFS = re.compile(rb"version https?://(git-lfs|hawser|git-media)\b")
"""How the text begins that Git LFS leaves, under each of the names that it has had."""
_ANNEX = re.compile(rb"(\A|/|\\)annex[/\\]objects[/\\]")
"""What git-annex's links lead to, and what the text holds that it leaves where there are no links."""
_LONGEST_POINTER = 256
"""Bytes within which a pointer is known."""


def refuse_pointer(file: str | os.PathLike[str]) -> None:
    """Refuse a few lines of text, or a link to nothing, that stand in the place of a file.

    Args:
        file: Any path. One where nothing is at all is left to who reads it.

    Raises:
        UserError: With the command that fetches the file, where there is one.
    """
    path = Path(file)
    try:
        check_regular(path)
        lost = os.readlink(path) if path.is_symlink() and not path.exists() else ""
        head = lost.encode(errors="replace")
        if not lost:
            with path.open("rb") as stream:
                head = stream.read(_LONGEST_POINTER)
    except (OSError, ValueError):
        return  # reading the file raises the error
    if _LFS.match(head):
        raise UserError(f"'{file}' is a Git LFS pointer, not the file itself: run 'git lfs pull' in its repository.")
    if _ANNEX.search(head) and (lost or head.startswith((b"/annex", b"annex", b"\\annex"))):
        name = shlex.quote(path.name)
        raise UserError(f"'{file}' is a git-annex pointer, not the file itself: run 'git annex get {name}' beside it.")
    if lost:
        raise UserError(f"'{file}' is a link to '{shorten(lost)}', which does not exist. Copy the file itself here.")
