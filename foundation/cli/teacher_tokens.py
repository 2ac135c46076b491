"""Settings of a teacher's checkpoint on a command line: ``distill.teacher.<key>=<value>``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from foundation.core.errors import UserError

TEACHER = "distill.teacher."
"""Prefix of the overrides that are about the policy's checkpoint."""

DERIVED = ("obs.", "distill.obs.")
"""Prefixes of the overrides that are about the observation groups that are made for a policy."""


def said_of_teacher(tokens: Sequence[str]) -> dict[str, Any]:
    """Return the settings ``distill.teacher.<key>=<value>`` of the checkpoint.

    Args:
        tokens: As they were typed.
    """
    said = {}
    for token in tokens:
        key, found, value = token.partition("=")
        name = key.removeprefix("distill.").removeprefix("teacher.")
        if not found and Path(token).exists():
            raise UserError(
                f"'{token}' is one checkpoint too many: give one (a pattern that the shell expands may be more)"
            )
        if not found or not name.isidentifier():
            raise UserError(f"'{token}' is not understood: write distill.teacher.<key>=<value>, such as strict=false")
        try:
            said[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"'{token}': its value cannot be read; put text in quotes") from error
    return said
