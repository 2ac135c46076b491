"""TensorBoard's event files, read without it: against files that TensorBoard's own writer wrote."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from torch.utils.tensorboard.writer import SummaryWriter

from foundation.core.errors import UserError
from foundation.report import event_file
from foundation.report.event_file import masked_crc, read_scalars


def write(folder: Path, values: dict[int, float], name: str = "") -> Path:
    """Write one event file, and return it."""
    before = set(folder.glob("*"))
    writer = SummaryWriter(str(folder), filename_suffix=name)
    for step, value in values.items():
        writer.add_scalar("evaluation/mean_return", value, step)
        writer.add_scalar("other/é", -value, step)
    writer.add_text("text", "no scalar", 0)
    writer.close()
    (made,) = set(folder.glob("*")) - before
    return made


def test_the_scalars_that_were_written_are_read(tmp_path):
    """Every tag with its steps and values, in float32; what is no scalar is left out."""
    write(tmp_path, {1: 0.5, 2: -1.25, 300: 1e6})
    curves = read_scalars(tmp_path)
    assert set(curves) == {"evaluation/mean_return", "other/é"}
    assert curves["evaluation/mean_return"] == ([1.0, 2.0, 300.0], [0.5, -1.25, 1e6])
    assert curves["other/é"].values == [-0.5, 1.25, -1e6]


def test_a_resumed_run_takes_the_place_of_what_it_repeats(tmp_path):
    """From the later file's first step on, as TensorBoard shows it."""
    first = write(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
    first.rename(tmp_path / "events.out.tfevents.0000000001.a")
    write(tmp_path, {2: 20.0, 3: 30.0})
    assert read_scalars(tmp_path)["evaluation/mean_return"] == ([1.0, 2.0, 3.0], [1.0, 20.0, 30.0])


def test_a_file_that_was_cut_off_gives_what_is_whole(tmp_path):
    """A run that was killed leaves half a record at the end."""
    path = write(tmp_path, {step: float(step) for step in range(1, 20)})
    path.write_bytes(path.read_bytes()[:-200])
    steps = read_scalars(tmp_path)["evaluation/mean_return"].steps
    assert 0 < len(steps) < 19 and steps == [float(step) for step in range(1, len(steps) + 1)]


@pytest.mark.parametrize("content", [b"\x07" * 400, b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_named(tmp_path, content):
    """One line with the path, whatever is in the file."""
    path = tmp_path / "events.out.tfevents.1.x"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"events\.out\.tfevents\.1\.x' is corrupt, or no event file"):
        read_scalars(tmp_path)


def test_flipped_bytes_never_end_in_a_traceback(tmp_path):
    """Wherever a byte is changed, the file is read or refused by a user's error."""
    path = write(tmp_path, {1: 0.5, 2: 1.0})
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            read_scalars(tmp_path)
        except UserError:
            refused += 1
    assert refused > 0


def record(body: bytes) -> bytes:
    """Frame a record as TensorFlow does; readers here do not check the second checksum."""
    head = struct.pack("<Q", len(body))
    return head + struct.pack("<I", masked_crc(head)) + body + bytes(4)


@pytest.mark.parametrize(
    "body",
    [
        b"\x2a\x00" * 300,  # empty summaries
        b"\x2a\x09\x0a\x07\x15" + bytes(4) + b"\x0a\x00",
        b"\x10\x01" * 300,  # the step, again and again
    ],
)
def test_no_more_parts_are_looked_at_than_a_run_writes(tmp_path, monkeypatch, body):
    """However small the parts of a file are, reading it ends: in records, summaries, values or steps."""
    monkeypatch.setattr(event_file, "_MAX_FIELDS", 500)
    (tmp_path / "events.out.tfevents.1").write_bytes(record(body) * 100)
    with pytest.raises(UserError, match="more than 500 parts"):
        read_scalars(tmp_path)


@pytest.mark.parametrize(("name", "said"), [("_MAX_SCALARS", "more than 5 scalars"), ("_MAX_TAGS", "more than 5 tags")])
def test_no_more_scalars_and_tags_are_kept_than_a_run_writes(tmp_path, monkeypatch, name, said):
    """Python's numbers take far more memory than the file."""
    monkeypatch.setattr(event_file, name, 5)
    values = [b"\x2a\x0a\x0a\x08\x15" + bytes(4) + b"\x0a\x01" + bytes([65 + number]) for number in range(9)]
    (tmp_path / "events.out.tfevents.1").write_bytes(b"".join(map(record, values)))
    with pytest.raises(UserError, match=said):
        read_scalars(tmp_path)


@pytest.mark.parametrize("target", ["", "/dev/zero"])
def test_a_pipe_or_a_device_is_not_read(tmp_path, target):
    """It may never end: a named pipe, and a link to a device."""
    path = tmp_path / "events.out.tfevents.1"
    os.mkfifo(path) if not target else path.symlink_to(target)
    with pytest.raises(UserError, match="a pipe or a device"):
        read_scalars(tmp_path)


def test_the_checksum_is_that_of_rfc_3720():
    """Appendix B.4: 32 bytes of zeros have the CRC-32C 0x8A9136AA; masked as TensorFlow's records are."""
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
