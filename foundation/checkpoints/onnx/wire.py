"""A model's bytes counted before protobuf makes objects of them: two bytes of a file may become a hundred in memory."""

from __future__ import annotations

from typing import Any

_MOST_FIELDS = 200_000
"""Fields of all messages together; a large policy has a few thousand."""
_MOST_INTEGERS = 8 << 20
"""Bytes of integers that are packed, each of which may become eight."""
_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5
_INTEGERS = {3, 4, 5, 13, 14, 17, 18, 8}
"""Protobuf's types of fields that are varints: int64, uint64, int32, uint32, enum, sint32, sint64, bool."""


def check_wire(content: bytes, descriptor: object) -> None:
    """Refuse what would make too many objects, or is no message at all.

    Args:
        content: A serialised message.
        descriptor: The message's ``google.protobuf.descriptor.Descriptor``.

    Raises:
        ValueError: If it is refused; the message states why.
    """
    _WireCheck(content).check(descriptor)


class _WireCheck:
    """Goes through the fields of a message and of those inside of it, without a call for each level."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.fields = _MOST_FIELDS
        self.integers = _MOST_INTEGERS
        self.todo: list[tuple[int, int, Any]] = []
        self.known: dict[str, dict[int, tuple[Any, bool]]] = {}

    def check(self, descriptor: object) -> None:
        """Look at all of it."""
        self.todo.append((0, len(self.content), descriptor))
        while self.todo:
            place, end, kind = self.todo.pop()
            inner = self._inner(kind)
            while place < end:
                self.fields -= 1
                if self.fields < 0:
                    raise ValueError(f"it has more than {_MOST_FIELDS} fields, many more than a policy")
                place = self._skip(place, end, inner)
            if place != end:
                raise ValueError("a field is longer than what holds it")

    def _inner(self, kind: Any) -> dict[int, tuple[Any, bool]]:
        """Return the message that each field holds, and whether it holds integers, by the field's number."""
        if kind.full_name not in self.known:
            self.known[kind.full_name] = {f.number: (f.message_type, f.type in _INTEGERS) for f in kind.fields}
        return self.known[kind.full_name]

    def _skip(self, place: int, end: int, inner: dict[int, tuple[Any, bool]]) -> int:
        """Return where the field ends that begins at a place; a message in it is left for later."""
        tag, place = _varint(self.content, place, end)
        wire = tag & 7
        if wire == _VARINT:
            return _varint(self.content, place, end)[1]
        if wire in (_FIXED32, _FIXED64):
            return place + (4 if wire == _FIXED32 else 8)
        if wire != _BYTES:
            raise ValueError(f"it has a field of the unknown kind {wire}")
        length, place = _varint(self.content, place, end)
        if place + length > end:
            raise ValueError("a field is longer than what holds it")
        message, integers = inner.get(tag >> 3, (None, False))
        if message is not None:
            self.todo.append((place, place + length, message))
        elif integers:
            self.integers -= length
            if self.integers < 0:
                raise ValueError(f"it has more than {_MOST_INTEGERS >> 20} MiB of integers, more than a policy")
        return place + length


def _varint(content: bytes, place: int, end: int) -> tuple[int, int]:
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
