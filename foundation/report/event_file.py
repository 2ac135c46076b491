"""TensorBoard's event files, read without TensorBoard: the scalars of a run by tag."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from foundation.core.archives import check_regular
from foundation.core.errors import UserError
from foundation.core.protobuf import BYTES, FIXED32, VARINT, WireField, wire_fields

PATTERN = "events.out.tfevents.*"
_MAX_BYTES = 256 << 20
"""Largest event file that is read [B]."""
_MAX_SCALARS = 300_000
"""Most scalars that are kept of a folder: as Python's numbers they take far more memory than in the files."""
_MAX_TAGS = 10_000
_MAX_FIELDS = 4_000_000
"""Most parts of a file that are looked at, some ten seconds of them: a scalar has about ten."""
_FIELDS_OF_A_RECORD = 5
"""What a record counts for, as its checksum is computed."""
_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8


class Curve(NamedTuple):
    """Values of one tag."""

    steps: list[float]
    values: list[float]


def read_scalars(folder: Path) -> dict[str, Curve]:
    """Read the scalars of a run's event files, the oldest first.

    A later file, as a resumed run writes, takes the place of what an earlier one has from its first step on. A record
    that is cut off at the end of a file, as where a run was killed, is left out.

    Args:
        folder: The run's folder.

    Raises:
        UserError: If a file is no event file, or corrupt, or holds more than any run writes; names it.
    """
    curves: dict[str, Curve] = {}
    count = 0
    for path in sorted(folder.glob(PATTERN)):
        found: dict[str, Curve] = {}
        try:
            check_regular(path)
            if path.stat().st_size > _MAX_BYTES:
                raise UserError(f"'{path}' has more than {_MAX_BYTES >> 20} MB: no run of ours writes so much")
            for tag, step, value in _EventFile(path.read_bytes()).scalars():
                count += 1
                if count > _MAX_SCALARS or len(found) > _MAX_TAGS:
                    most = f"{_MAX_SCALARS} scalars" if count > _MAX_SCALARS else f"{_MAX_TAGS} tags"
                    raise UserError(f"'{path}': there are more than {most}: no run of ours writes so many")
                curve = found.setdefault(tag, Curve([], []))
                curve.steps.append(float(step))
                curve.values.append(value)
        except (ValueError, struct.error, OSError) as error:
            raise UserError(f"'{path}' is corrupt, or no event file of TensorBoard: {error}") from error
        for tag, curve in found.items():
            before = curves.get(tag, Curve([], []))
            kept = [i for i, step in enumerate(before.steps) if step < curve.steps[0]]
            curves[tag] = Curve(
                [before.steps[i] for i in kept] + curve.steps, [before.values[i] for i in kept] + curve.values
            )
    return curves


class _EventFile:
    """The content of an event file, of which no more is looked at than a run writes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._left = _MAX_FIELDS

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        """Yield (tag, step, value) of every scalar."""
        for start, stop in _records(self.content):
            self._take(_FIELDS_OF_A_RECORD)
            step = 0
            for field in self._fields(start, stop):
                if field.number == 2 and field.kind == VARINT:
                    step = field.value
            for summary in self._fields(start, stop):  # again, as the step may come behind
                if summary.number != 5 or summary.kind != BYTES:
                    continue
                for field in self._fields(summary.start, summary.stop):
                    if field.number == 1 and field.kind == BYTES:
                        tag, value = self._value(field.start, field.stop)
                        if value is not None:
                            yield tag, step, value

    def _value(self, start: int, stop: int) -> tuple[str, float | None]:
        """Return tag and number of one value of a summary; None for what is no scalar."""
        tag = ""
        value = None
        for field in self._fields(start, stop):
            if field.number == 1 and field.kind == BYTES:
                tag = self.content[field.start : field.stop].decode("utf-8", "replace")
            elif field.number == 2 and field.kind == FIXED32:
                (value,) = struct.unpack("<f", self.content[field.start : field.stop])
        return tag, value

    def _fields(self, start: int, stop: int) -> Iterator[WireField]:
        for field in wire_fields(self.content, start, stop):
            self._take(1)
            yield field

    def _take(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise ValueError(f"it has more than {_MAX_FIELDS} parts, and no run of ours writes so many")


def _records(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each record begins and ends: an eight-byte length, its checksum, the record, its checksum."""
    place = 0
    while place + 12 <= len(content):
        header = content[place : place + 8]
        length, checksum = struct.unpack("<QI", content[place : place + 12])
        if masked_crc(header) != checksum:
            raise ValueError(f"the checksum of the record at byte {place} is wrong")
        start = place + 12
        stop = start + length
        if stop + 4 > len(content):
            return
        yield start, stop
        place = stop + 4


def masked_crc(data: bytes) -> int:
    """Return the checksum of TensorFlow's record files: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
