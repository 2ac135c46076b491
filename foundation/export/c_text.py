"""Pieces of C text: names, numbers, arrays, comments."""

from __future__ import annotations

import re

import numpy
from numpy.typing import NDArray

from foundation.deploy.golden import FloatArray


def c_name(name: str) -> str:
    """Return a name that C accepts: letters, digits and underscores, not beginning with a digit."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).lower() or "policy"
    return plain if plain[0].isalpha() else f"policy_{plain.lstrip('_')}"


def c_float(value: float | numpy.float32) -> str:
    """Return a literal that is read as the same float32."""
    return f"{numpy.float32(value)!s}f"  # NumPy writes the shortest text that is read as the same number


def float_array(name: str, values: FloatArray) -> str:
    """Return the definition of a constant array of float32."""
    return _array("float", name, [c_float(value) for value in values.reshape(-1)], 8)


def int_array(name: str, values: NDArray[numpy.floating] | NDArray[numpy.integer], kind: str) -> str:
    """Return the definition of a constant array of integers of a type, such as ``int8_t``."""
    return _array(kind, name, [str(int(value)) for value in values.reshape(-1)], 24)


def _array(kind: str, name: str, numbers: list[str], per_line: int) -> str:
    lines = [", ".join(numbers[start : start + per_line]) for start in range(0, len(numbers), per_line)]
    body = ",\n    ".join(lines)
    return f"static const {kind} {name}[{len(numbers)}] = {{\n    {body}}};\n"


def comment(text: str) -> str:
    """Return text that cannot end a comment: C joins lines at a backslash, which ``??/`` stands for too."""
    plain = "".join(sign if sign.isprintable() and sign != "\\" else " " for sign in text)
    return plain.replace("??", "? ?").replace("*/", "* /").replace("/*", "/ *")
