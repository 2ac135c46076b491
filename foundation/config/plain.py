"""Any config object as plain dicts, lists, numbers and text, so that YAML and JSON can hold it."""

from __future__ import annotations

import dataclasses
import enum
import keyword
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

_MAX_DEPTH = 24


def to_plain(value: object, _depth: int = 0) -> Any:
    """Convert a config, however nested, to what ``yaml.safe_dump`` and ``json.dump`` accept.

    Tuples become lists, callables and classes ``"module:name"``, slices and unknown objects text. Private fields
    (``_x``) are left out.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # Isaac Lab has text that is a subclass of str
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if _depth > _MAX_DEPTH:
        return str(value)
    if isinstance(value, Mapping):
        return {_plain_key(k): to_plain(v, _depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(v, _depth + 1) for v in value]
    return _plain_object(value, _depth)


def key_of(name: str) -> str:
    """Return the key of a field in files and on the command line: ``from`` of ``from_``, which Python cannot name."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def field_of(key: str) -> str:
    """Return the name of the field that a key sets (see :func:`key_of`)."""
    return f"{key}_" if keyword.iskeyword(key) else key


def _plain_key(key: object) -> Any:
    return key if isinstance(key, (str, int, float, bool)) or key is None else str(key)


def _plain_object(value: object, depth: int) -> Any:
    if isinstance(value, (slice, PurePath)):
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    to_list = getattr(value, "tolist", None)  # arrays and tensors
    if to_list is not None:
        return to_plain(to_list(), depth + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        names += [n for n in getattr(value, "__dict__", {}) if n not in names]
    elif type(value).__module__.partition(".")[0] in ("torch", "numpy", "builtins"):
        return str(value)
    elif getattr(value, "__dict__", None):
        names = list(vars(value))
    else:
        return str(value)
    return {key_of(n): to_plain(getattr(value, n, None), depth + 1) for n in names if not n.startswith("_")}


def finite(value: object) -> Any:
    """Replace NaN and infinities by None, which JSON can hold. ``value`` is plain (:func:`to_plain`)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value


def changed_leaves(values: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """List what differs in nested mappings, by dotted names; a mapping that stands for nothing is one value.

    Args:
        values: The values.
        default: What they are compared with.
        prefix: Begins each name.
    """
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        known = default.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping) and known:
            found += changed_leaves(value, known, f"{prefix}{key}.")
        elif value != known:
            found.append((f"{prefix}{key}", value))
    return found
