"""Limits on an ONNX file, checked before protobuf parses it: two bytes of the file can become a hundred in memory."""

from __future__ import annotations

from typing import Any

from foundation.core.protobuf import BYTES, WireField, wire_fields

_MAX_FIELDS = 200_000
"""Fields of all messages together; a large policy has a few thousand."""
_MAX_INTEGERS = 8 << 20
"""Bytes of integers that are packed, each of which may become eight."""
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
        self.fields = _MAX_FIELDS
        self.integers = _MAX_INTEGERS
        self.todo: list[tuple[int, int, Any]] = []
        self.known: dict[str, dict[int, tuple[Any, bool]]] = {}

    def check(self, descriptor: object) -> None:
        """Look at all of it."""
        self.todo.append((0, len(self.content), descriptor))
        while self.todo:
            place, end, kind = self.todo.pop()
            inner = self._inner(kind)
            for part in wire_fields(self.content, place, end):
                self.fields -= 1
                if self.fields < 0:
                    raise ValueError(f"it has more than {_MAX_FIELDS} fields, many more than a policy")
                if part.kind == BYTES:
                    self._enter(part, *inner.get(part.number, (None, False)))

    def _inner(self, kind: Any) -> dict[int, tuple[Any, bool]]:
        """Return the message that each field holds, and whether it holds integers, by the field's number."""
        if kind.full_name not in self.known:
            self.known[kind.full_name] = {f.number: (f.message_type, f.type in _INTEGERS) for f in kind.fields}
        return self.known[kind.full_name]

    def _enter(self, part: WireField, message: Any, integers: bool) -> None:
        """Leave the message that a field holds for later, or count its integers."""
        if message is not None:
            self.todo.append((part.start, part.stop, message))
        elif integers:
            self.integers -= part.stop - part.start
            if self.integers < 0:
                raise ValueError(f"it has more than {_MAX_INTEGERS >> 20} MiB of integers, more than a policy")
