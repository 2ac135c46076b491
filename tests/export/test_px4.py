"""The archive for PX4's mc_raptor: read by rl-tools' own C++ reader, and refused where PX4 could not fly it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.export.bundle import make_bundle
from foundation.export.formats import export
from foundation.export.px4 import read_px4
from foundation.students import make_student, student_cfg_class

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import bundle_of_student, randomise, save_student  # noqa: E402

RAPTOR = HERE.parent / "checkpoints" / "published-raptor" / "checkpoint.h5"


def raptor_like(folder: Path, **options) -> Path:
    """Write a student of RAPTOR's architecture with a normaliser and a learned initial state."""
    torch.manual_seed(0)
    network = make_student(student_cfg_class("gru")(learn_initial_state=True, **options), 22, 4)
    randomise(network)
    network.normalizer.update(torch.randn(100, 22) * 2 + 1)
    return save_student(network, folder / "student.pt", obs_groups=["l2f"], clip_actions=1.0)


def archive_of(path: Path, folder: Path) -> Path:
    """Export a policy for PX4."""
    (written,) = export(make_bundle(load_policy(path, Overrides())), folder, ["px4"])
    return written.files[0]


def headers() -> Path | None:
    """Return rl-tools' headers: ``$RL_TOOLS_INCLUDE``, or those of the package rltools."""
    named = os.environ.get("RL_TOOLS_INCLUDE")
    if named:
        return Path(named)
    spec = find_spec("rltools")
    if spec is None or spec.submodule_search_locations is None:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "external" / "rl_tools" / "include"


def replay(reader: Path, archive: Path) -> int:
    """Run rl-tools' reader; return its exit code."""
    return subprocess.run([str(reader), str(archive)], capture_output=True, check=False).returncode


def test_rl_tools_own_reader_replays_the_example(tmp_path):
    """rl-tools' C++ gives the actions of the published policy and of a student of ours; swapped gates are found."""
    include = headers()
    if include is None:
        pytest.skip("needs rl-tools' headers: pip install rltools, or RL_TOOLS_INCLUDE=FOLDER")
    reader = tmp_path / "reader"
    command = ["g++", "-std=c++17", "-O1", f"-I{include}", str(HERE / "px4_reader.cpp"), "-o", str(reader)]
    subprocess.run(command, check=True)
    for name, path in (("raptor", RAPTOR), ("student", raptor_like(tmp_path))):
        archive = archive_of(path, tmp_path / name)
        assert replay(reader, archive) == 0, name
        content = archive.read_bytes()
        place = content.index(b"weights_hidden/parameters/data") // 512 * 512 + 512
        swapped = content[place + 1024 : place + 2048] + content[place : place + 1024]
        archive.write_bytes(content[:place] + swapped + content[place + 2048 :])
        assert replay(reader, archive) == 2, name


def test_the_archive_is_plain(tmp_path):
    """USTAR, short names, float32 in rows, one-dimensional biases, and the example's 5 steps of 2 vehicles."""
    archive = archive_of(raptor_like(tmp_path), tmp_path / "exported")
    with tarfile.open(archive) as read:
        members = read.getmembers()
    assert archive.read_bytes()[257:263] == b"ustar\0"
    assert all(member.isreg() and len(member.name) < 100 for member in members)
    shapes = {name: array.shape for name, array in read_px4(archive).items()}
    layers = "actor/layers/{}/{}/parameters".format
    assert shapes == {
        layers(0, "weights"): (16, 22), layers(0, "biases"): (16,),
        layers(1, "weights_input"): (48, 16), layers(1, "weights_hidden"): (48, 16),
        layers(1, "biases_input"): (48,), layers(1, "biases_hidden"): (48,), layers(1, "initial_hidden_state"): (16,),
        layers(2, "weights"): (4, 16), layers(2, "biases"): (4,),
        "example/input": (5, 2, 22), "example/output": (5, 2, 4),
    }  # fmt: skip


def test_the_example_is_the_students(tmp_path):
    """The archive's example is what the student itself gives, without the bound, from the start of an episode."""
    path = raptor_like(tmp_path)
    read = read_px4(archive_of(path, tmp_path / "exported"))
    network = load_policy(path, Overrides()).network
    with torch.no_grad():
        expected = network.sequence(torch.from_numpy(read["example/input"]))[0].mean.numpy()
    assert numpy.abs(expected).max() > 1.0
    assert numpy.abs(read["example/output"] - expected).max() <= 1e-5


def test_another_architecture_is_refused(tmp_path):
    """One line says what PX4 flies and what the policy is."""
    with pytest.raises(UserError, match=r"flies 22 observations -> dense 16 \(relu\).*this policy is 22 -> dense 16 "):
        archive_of(raptor_like(tmp_path, hidden_size=8), tmp_path / "exported")
    with pytest.raises(UserError, match="rl-tools has no activation 'elu'"):
        list(export(bundle_of_student("mlp", tmp_path), tmp_path / "exported", ["px4"]))
    assert not (tmp_path / "exported").exists()


def test_a_damaged_archive_is_one_line(tmp_path):
    """An archive that ends early is named."""
    archive = archive_of(RAPTOR, tmp_path / "exported")
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"policy\.tar' is corrupt"):
        read_px4(archive)
