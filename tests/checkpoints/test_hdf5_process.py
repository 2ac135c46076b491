"""The process that opens HDF5 files: what libhdf5 does with a hostile file stays in it."""

from __future__ import annotations

import os
import resource
import signal
import struct
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from l2f_flights import PUBLISHED

from foundation.checkpoints.reading import hdf5_file
from foundation.checkpoints.reading.hdf5_file import open_hdf5
from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper


@pytest.fixture(autouse=True)
def no_process_before():
    """Begin and end without a process, so that what it used is known once it has ended."""

    def end():
        while hdf5_file._idle:
            hdf5_file._idle.pop().kill()

    end()
    yield
    end()


def sealed(path: Path, kind: str) -> Path:
    """Write an rl-tools file whose ``type`` is a text that says it has 4 GiB."""
    with h5py.File(path, "w", libver=kind) as file:
        actor = file.create_group("actor")
        actor.attrs["type"] = "sequential"
        actor.create_group("layers")
    content = path.read_bytes()
    place = [
        index
        for index in range(len(content) - 16)
        if struct.unpack_from("<I", content, index)[0] == len("sequential")
        and content[struct.unpack_from("<Q", content, index + 4)[0] :][:4] == b"GCOL"
    ]
    assert len(place) == 1
    path.write_bytes(content[: place[0]] + struct.pack("<I", 0xFFFFFFF0) + content[place[0] + 4 :])
    return path


@pytest.mark.parametrize("kind", ["earliest", "latest"])
def test_a_text_that_claims_gigabytes(kind, tmp_path):
    """A file of a few KiB makes libhdf5 ask for 4 GiB: one line, in three seconds, neither process above 600 MB."""
    path = sealed(tmp_path / "text.h5", kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    earlier = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the children of other tests
    start = time.monotonic()
    with pytest.raises(UserError, match="truncated or corrupt") as caught:
        TeacherPolicyWrapper(path)
    assert time.monotonic() - start < 3 and "text.h5" in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(earlier, 600 << 10)


def test_one_process_reads_sound_files(tmp_path):
    """The second file is read by the process that read the first; numbers are those that h5py reads itself."""
    with open_hdf5(PUBLISHED) as root:
        read = root.group("actor").group("layers").group("1").group("weights_hidden").tensor("parameters")
    process = hdf5_file._idle[0]
    with h5py.File(PUBLISHED) as file:
        assert np.array_equal(read.numpy(), file["actor/layers/1/weights_hidden/parameters"][()])
    with h5py.File(tmp_path / "kinds.h5", "w") as file:
        values = np.arange(-6, 6).reshape(3, 4)
        for kind in ("i1", ">i8", "f2", ">f4", "f8"):
            file[kind] = values.astype(kind)
        file["packed"] = values
        file.create_dataset("zipped", data=values, chunks=(2, 2), compression="gzip", shuffle=True, fletcher32=True)
        file["none"], file["one"] = np.zeros((0, 4)), 2.5
    with open_hdf5(tmp_path / "kinds.h5") as root:
        for kind in ("i1", ">i8", "f2", ">f4", "f8", "packed", "zipped"):
            assert torch.equal(root.tensor(kind), torch.arange(-6.0, 6.0).reshape(3, 4))
        assert root.tensor("none").shape == (0, 4) and root.tensor("one").item() == 2.5
    assert hdf5_file._idle == [process]


def test_one_file_may_be_read_inside_of_another():
    """Each open file has its process, and only one of them is kept."""
    with open_hdf5(PUBLISHED) as outer, open_hdf5(PUBLISHED) as inner:
        assert outer.names() == inner.names() and "actor" in outer.names()
    assert len(hdf5_file._idle) == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGXCPU, signal.SIGSTOP])
def test_a_process_that_falls(number, monkeypatch):
    """A crash, the kernel's and the clock's end, and a process that hangs: one line each; the next file is read."""
    monkeypatch.setattr(hdf5_file, "_PATIENCE", 0.2)
    words = "takes too long" if number in (signal.SIGXCPU, signal.SIGSTOP) else "fail .exit code -"
    with pytest.raises(UserError, match=f"checkpoint.h5' .*{words}"), open_hdf5(PUBLISHED) as root:
        os.kill(root._process._process.pid, number)
        for _ in range(100):
            root.names()
    assert not hdf5_file._idle
    assert TeacherPolicyWrapper(PUBLISHED).num_parameters == 2084


def test_a_process_that_was_ended_meanwhile():
    """A process that waits and is ended by someone is replaced."""
    assert TeacherPolicyWrapper(PUBLISHED).num_parameters == 2084
    os.kill(hdf5_file._idle[0]._process.pid, signal.SIGKILL)
    hdf5_file._idle[0]._process.wait()
    assert TeacherPolicyWrapper(PUBLISHED).num_parameters == 2084


def test_limits_go_with_each_file(tmp_path):
    """Seconds on the processor and the size of memory are set anew for each file, by its size."""
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file["numbers"] = np.zeros(10 << 20)
    limits = []
    for path in (PUBLISHED, tmp_path / "large.h5", PUBLISHED):
        with open_hdf5(path) as root:
            pid = root._process._process.pid
            limits.append([resource.prlimit(pid, kind)[0] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)])
    small, large, again = limits
    assert 5 <= small[0] <= 8 and 3 <= large[0] - small[0] <= 6 and again[0] < large[0]
    assert small[1] < 1 << 30 and abs(large[1] - small[1] - 4 * (80 << 20)) < 4 << 20


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({f"{index:05}": 1 for index in range(10_001)}, "has 10001 members"),
        ({f"{index:03}" + "x" * 20_000: 1 for index in range(60)}, "names of more than"),
    ],
)
def test_groups_without_end(members, words, tmp_path):
    """A group of ten thousand members, or of long names, is refused."""
    with h5py.File(tmp_path / "names.h5", "w") as file:
        group = file.create_group("actor")
        for name in members:
            group[name] = h5py.SoftLink("/")
    with open_hdf5(PUBLISHED) as root:
        assert len(root.names()) > 1
    with pytest.raises(UserError, match=words), open_hdf5(tmp_path / "names.h5") as root:
        root.group("actor").names()


def test_the_files_folder_is_no_place_for_modules(tmp_path, monkeypatch):
    """A file named h5py.py beside the checkpoint, in the current folder, is not what the process imports."""
    (tmp_path / "h5py.py").write_text("open('ran', 'w')\nraise SystemExit(3)\n")
    (tmp_path / "json.py").write_text("open('ran', 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert TeacherPolicyWrapper(PUBLISHED).num_parameters == 2084
    assert not (tmp_path / "ran").exists()
