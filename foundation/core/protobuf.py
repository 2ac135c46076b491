"""The fields of a protobuf message, found in its bytes without making objects of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5


@dataclass(frozen=True, slots=True)
class WireField:
    """One field."""

    number: int
    """Its number in the message."""
    kind: int
    """``VARINT``, ``BYTES``, ``FIXED32`` or ``FIXED64``."""
    value: int
    """The integer of a varint, else 0."""
    start: int
    """Where its content begins."""
    stop: int
    """Where its content ends."""


def wire_fields(content: bytes, place: int, end: int) -> Iterator[WireField]:
    """Yield the fields of one message.

    Args:
        content: What the message lies in.
        place: Where it begins.
        end: Where it ends.

    Raises:
        ValueError: If it is cut off or no message at all.
    """
    while place < end:
        tag, place = read_varint(content, place, end)
        kind = tag & 7
        start = place
        value = 0
        if kind == VARINT:
            value, place = read_varint(content, place, end)
        elif kind in (FIXED32, FIXED64):
            place += 4 if kind == FIXED32 else 8
        elif kind == BYTES:
            length, start = read_varint(content, place, end)
            place = start + length
        else:
            raise ValueError(f"it has a field of the unknown kind {kind}")
        if place > end:
            raise ValueError("a field is longer than what holds it")
        yield WireField(tag >> 3, kind, value, start, place)


def read_varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, and where it ends."""
    value = shift = 0
    while place < end and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a number is cut off")
