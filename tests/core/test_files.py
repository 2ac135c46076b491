"""Files are written whole or not at all, and reading never runs anything."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from foundation.core.errors import UserError
from foundation.core.files import (
    _refuse_to_replace,
    atomic_torch_save,
    atomic_write,
    atomic_write_bytes,
    load_checkpoint,
    load_yaml,
)


class Evil:
    """Creates a marker file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def refused(path, *words):
    """Assert that reading is refused in one line that names the file and has these words; return the line."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    for word in words:
        assert word in line
    return line


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model_1.pt"
    weights = {"0.weight": torch.randn(40, 30), "0.bias": torch.randn(40)}
    atomic_torch_save({"model_state_dict": weights, "iter": 3, "infos": None}, path)
    return path


def test_checkpoint_round_trip(checkpoint):
    """What was saved is read back, to the bit."""
    read = load_checkpoint(checkpoint)
    assert read["iter"] == 3
    assert torch.equal(read["model_state_dict"]["0.weight"], torch.load(checkpoint)["model_state_dict"]["0.weight"])


def test_missing_empty_folder_text(tmp_path):
    """A path that is missing, empty, a folder or no checkpoint is refused by name."""
    refused(tmp_path / "no.pt", "does not exist")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "empty")
    refused(tmp_path, "folder", "model_1500.pt")
    run = tmp_path / "run"
    run.mkdir()
    (run / "best_student.pt").touch()
    refused(run, "folder", "run/best_student.pt'")  # the file that is there
    refused(tmp_path, "folder", "run/best_student.pt'")  # of an experiment's folder that of a run in it
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "not a PyTorch checkpoint")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "a")
    refused(tmp_path / "zip.pt", "not a PyTorch checkpoint")
    atomic_torch_save(torch.zeros(3), tmp_path / "tensor.pt")
    refused(tmp_path / "tensor.pt", "not a dict")


def test_every_truncation_is_refused(checkpoint, tmp_path):
    """A checkpoint cut at any of 40 places is refused."""
    content = checkpoint.read_bytes()
    cut = tmp_path / "cut.pt"
    for size in torch.linspace(1, len(content) - 1, 40).long().tolist():
        cut.write_bytes(content[:size])
        refused(cut)


def test_a_flipped_bit_in_a_weight_is_refused(checkpoint):
    """One flipped bit in a tensor's bytes, which torch.load alone would accept, is seen by its checksum."""
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    content[info.header_offset + 400] ^= 1
    checkpoint.write_bytes(content)
    torch.load(checkpoint)  # torch reads it without a word
    refused(checkpoint, "corrupt", "data/0")


def test_not_finite_weights_are_refused(tmp_path):
    """NaN or infinity in a weight is refused with the weight's name; an optimiser's state is not looked at."""
    for bad in (float("nan"), float("inf")):
        atomic_torch_save({"model_state_dict": {"w": torch.tensor([1.0, bad])}}, tmp_path / "nan.pt")
        refused(tmp_path / "nan.pt", "model_state_dict/w")
    atomic_torch_save({"optimizer_state_dict": {"w": torch.tensor([float("nan")])}}, tmp_path / "ok.pt")
    load_checkpoint(tmp_path / "ok.pt")


def test_pickles_never_run(tmp_path):
    """A bare pickle, an old-format checkpoint and a zip checkpoint with code are refused, and nothing has run."""
    marker = tmp_path / "marker"
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"a": Evil(marker)}))
    refused(tmp_path / "bare.pt", "pickle")
    torch.save({"a": Evil(marker)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "pickle")
    torch.save({"a": Evil(marker)}, tmp_path / "zip.pt")
    refused(tmp_path / "zip.pt", "could run code")
    assert not marker.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)  # the same file is a weapon in other hands
    assert marker.exists()


def test_atomic_write_keeps_the_old_file(tmp_path):
    """When writing fails half-way, the old content stays and no temporary file is left."""
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left") as caught:
        atomic_write(path, fail)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_pipe_or_a_device_is_never_replaced(tmp_path):
    """A file in the place of ``/dev/null`` would be there for every program: it and what is like it are refused."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(UserError, match=r"cannot write .* a pipe or a device"):
            atomic_write(path, lambda file: file.write(b"x"))
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 2
    for name in ("/dev/null", "/dev/stdout", "/dev/nothing"):  # only asked about: writing is not tried on them
        with pytest.raises(UserError, match=r"cannot write '/dev/.*Give the path of a file"):
            _refuse_to_replace(Path(name))
    _refuse_to_replace(Path("/dev/shm/x"))
    _refuse_to_replace(tmp_path / "new" / "file")


def test_atomic_write_leaves_bugs_alone(tmp_path):
    """An error that is not about the disk comes through as it is, and nothing is left."""
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "file", lambda file: 1 / 0)
    assert os.listdir(tmp_path) == []


def test_full_disk_while_torch_saves(tmp_path):
    """A file-size limit hit inside torch.save, as on a full disk, is one line for the user; the old file stays."""
    path = tmp_path / "model.pt"
    atomic_torch_save({"w": torch.zeros(2)}, path)
    before, old = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.raises(UserError, match="cannot write"):
            atomic_torch_save({"w": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.pt"]


def test_a_folder_that_is_a_file(tmp_path):
    """A path under something that is not a folder is refused by name."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        atomic_write(tmp_path / "file" / "x", lambda file: file.write(b""))


def test_kill_while_writing(tmp_path):
    """A process killed again and again while it rewrites a checkpoint leaves a loadable one."""
    path = tmp_path / "model.pt"
    code = (
        "import sys, torch\nfrom foundation.core.files import atomic_torch_save\n"
        "for i in range(10**9):\n    atomic_torch_save({'w': torch.full((50000,), float(i))}, sys.argv[1])\n"
        "    print(i, flush=True)\n"
    )
    for wait in (3, 11):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(wait):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        values = load_checkpoint(path)["w"]
        assert bool((values == values[0]).all()) and values[0] >= wait - 1


def test_yaml_with_python_tags_makes_no_objects(tmp_path):
    """Isaac Lab's tags become plain data; a tag that would run code does not."""
    marker = tmp_path / "marker"
    (tmp_path / "env.yaml").write_text(
        "a: !!python/tuple [1, 2]\n"
        "b: !!python/object/apply:builtins.slice [null, 3, null]\n"
        f"c: !!python/object/apply:os.mkdir ['{marker}']\n"
        "d: !!python/name:torch.nn.ELU ''\n"
        "e: !!python/object:x.Y {z: 1}\n"
        "f: !custom hello\n"
        "g: {h: .inf}\n"
    )
    data = load_yaml(tmp_path / "env.yaml")
    assert data["a"] == [1, 2] and data["b"] == [None, 3, None]
    assert data["d"] == "torch.nn.ELU" and data["e"] == {"z": 1} and data["f"] == "hello"
    assert data["g"]["h"] == float("inf") and not marker.exists()


@pytest.mark.parametrize("text", ["a: [1, 2", "a: \x00", "\xff\xfe", "{" * 100_000, "a: *b"])
def test_bad_yaml_is_one_line(tmp_path, text):
    """Damaged YAML is refused in one line that names the file."""
    path = tmp_path / "agent.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        load_yaml(tmp_path / "no.yaml")


def test_a_folder_that_is_not_there_is_not_made_for_a_file_of_a_run(tmp_path):
    """Of a run's folder that was renamed in the last moment nothing comes into being again; its subfolders do."""
    run = tmp_path / "run"
    for path in (run / "a.pt", run / "dataset" / "a.pt"):
        with pytest.raises(UserError, match="cannot write"):
            atomic_write_bytes(path, b"x", within=run)
    assert not run.exists()
    run.mkdir()
    for path in (run / "a.pt", run / "dataset" / "a.pt"):
        atomic_write_bytes(path, b"x", within=run)
        assert path.read_bytes() == b"x"
