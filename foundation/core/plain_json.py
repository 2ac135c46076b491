"""JSON with limits: the number and depth of its values are checked before any is built."""

from __future__ import annotations

import json
from typing import Any

from foundation.core.archives import ArchiveError, check_tree

_MAX_VALUES = 500_000
_DEEPEST = 64


def parse_json(text: str) -> Any:
    """Return the plain values of JSON, once it is known that there are not too many.

    Args:
        text: The whole of it.

    Raises:
        ValueError: If it is no JSON, or holds too much; RecursionError where it is nested deeper than Python goes.
    """
    if sum(text.count(sign) for sign in ",[{") > _MAX_VALUES:
        raise ArchiveError(f"it has more than {_MAX_VALUES} values")
    values = json.loads(text)
    check_tree(values, len(text) + 1, _DEEPEST)
    return values
