"""Damaged HDF5 and ONNX policies: refused in one clear line or loaded right; none executes anything.

An ONNX file has no checksums, so that a flipped bit of a weight is another valid model: "right" is there what
onnxruntime makes of the same corrupt file. An rl-tools file is checked against its own example.
"""

from __future__ import annotations

import random
import subprocess
import sys

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from l2f_flights import PUBLISHED
from onnx import TensorProto, helper, numpy_helper

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

WATCHED = torch.randn(4, 22, generator=torch.Generator().manual_seed(1))


def truncate(content, rng):
    """Cut the end off."""
    return content[: rng.randrange(len(content))]


def flip_bits(content, rng):
    """Flip one to three bits."""
    corrupt = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        corrupt[rng.randrange(len(corrupt))] ^= 1 << rng.randrange(8)
    return bytes(corrupt)


def flip_structure(content, rng):
    """Flip bits of what is not the example, the larger part of the file: names, shapes, addresses, weights."""
    corrupt = bytearray(content)
    for _ in range(rng.choice((1, 2, 4))):
        corrupt[rng.randrange(28_000)] ^= 1 << rng.randrange(8)
    return bytes(corrupt)


def answers(path):
    """Return the actions of two steps."""
    teacher = TeacherPolicyWrapper(path)
    return torch.stack([teacher.act(WATCHED), teacher.act(WATCHED * 0.5)])


def refused(error, path):
    """Check that a refusal is one line that names the file."""
    line = str(error)
    assert "\n" not in line and path.name in line and len(line) < 700, line


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("damage", [truncate, flip_bits, flip_structure], ids=lambda d: d.__name__)
def test_damaged_hdf5_bytes(damage, seed, tmp_path):
    """A truncated or bit-flipped rl-tools file is refused, or acts as the original to the example's tolerance."""
    path, rng = tmp_path / "checkpoint.h5", random.Random(f"{damage.__name__}{seed}")
    path.write_bytes(damage(PUBLISHED.read_bytes(), rng))
    try:
        got = answers(path)
    except UserError as error:
        refused(error, path)
    else:
        assert damage is not truncate
        assert torch.allclose(got, answers(PUBLISHED), atol=2e-3)


def members(file):
    """Return the path of every group and data set of the policy."""
    found = []
    file.visit(found.append)
    return [name for name in found if name != "example"]


def rename(file, rng):
    """Give something another name."""
    key = rng.choice(members(file))
    file.move(key, key + rng.choice(("x", "_", "2")))


def reshape(file, rng):
    """Change a data set's shape."""
    key = rng.choice([name for name in members(file) if isinstance(file[name], h5py.Dataset)])
    value = file[key][()]
    choices = [value.reshape(-1)[:-1], np.stack([value, value]), np.append(value, np.float32(0))]
    if value.ndim > 1:
        choices += [value[:-1], value[..., :-1], np.swapaxes(value, -1, -2)]
    del file[key]
    file[key] = rng.choice(choices)


def poison(file, rng):
    """Write a number that is none."""
    key = rng.choice([name for name in members(file) if isinstance(file[name], h5py.Dataset)])
    value = file[key][()]
    value.reshape(-1)[rng.randrange(value.size)] = rng.choice((np.nan, np.inf, -np.inf))
    file[key][...] = value


def retype(file, rng):
    """Put something of another kind in the place of something."""
    key = rng.choice(members(file))
    del file[key]
    file[key] = rng.choice((b"text", 3, np.array([b"a", b"b"]), 1.5, [True, False]))


def relabel(file, rng):
    """Change what a layer says of itself."""
    group = file[rng.choice(["actor", *(f"actor/layers/{i}" for i in range(3))])]
    name = rng.choice(("type", "activation_function"))
    group.attrs[name] = rng.choice(("", "dense", "gru", "RELU", "TANH", "sequential", b"\xff", 7, [1, 2], "IDENTITY"))


def drop(file, rng):
    """Take something away."""
    del file[rng.choice(members(file))]


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("change", [rename, reshape, poison, retype, relabel, drop], ids=lambda c: c.__name__)
def test_changed_hdf5_content(change, seed, tmp_path):
    """Renamed, reshaped, poisoned, retyped, relabelled or missing parts are refused, or the policy acts the same."""
    path, rng = tmp_path / "checkpoint.h5", random.Random(f"{change.__name__}{seed}")
    path.write_bytes(PUBLISHED.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file, rng)
    try:
        got = answers(path)
    except UserError as error:
        refused(error, path)
    else:
        assert torch.equal(got, answers(PUBLISHED))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A recurrent policy as an ONNX model."""
    rng = np.random.default_rng(0)
    shapes = {
        "mean": (1, 22), "std": (1, 22), "w": (1, 18, 22), "r": (1, 18, 6), "b": (1, 36), "w0": (8, 6), "b0": (8,),
        "w1": (3, 8), "b1": (3,),
    }  # fmt: skip
    weights = {name: (rng.normal(size=shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}
    weights["std"] = np.abs(weights["std"]) + 0.5
    nodes = [
        helper.make_node("Sub", ["obs", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Unsqueeze", ["normal", "axes"], ["x"]),
        helper.make_node("GRU", ["x", "w", "r", "b", "", "h_in"], ["y", "h_out"], hidden_size=6, linear_before_reset=1),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
        helper.make_node("Gemm", ["z", "w0", "b0"], ["hidden"], transB=1),
        helper.make_node("Elu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w1", "b1"], ["actions"], transB=1),
    ]
    weights |= {"axes": np.array([0], np.int64), "shape": np.array([1, 6], np.int64)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "policy",
        [value("obs", TensorProto.FLOAT, [1, 22]), value("h_in", TensorProto.FLOAT, [1, 1, 6])],
        [value("actions", TensorProto.FLOAT, [1, 3]), value("h_out", TensorProto.FLOAT, [1, 1, 6])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("model") / "policy.onnx"
    onnx.save(made, path)
    return path


def runtime_answers(path):
    """Return what onnxruntime makes of two steps, or None if it refuses the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        rows = []
        for row in WATCHED:
            memory, actions = np.zeros((1, 1, 6), np.float32), []
            for scale in (1.0, 0.5):
                given = dict(zip(names, (scale * row[None].numpy(), memory), strict=True))
                action, memory = session.run(None, given)
                actions.append(action.reshape(-1))
            rows.append(np.stack(actions))
        return torch.from_numpy(np.stack(rows, axis=1))
    except Exception:  # a corrupt file
        return None


def same_as_runtime(path):
    """Check that a file that may be corrupt is refused in one line, or acts as onnxruntime says."""
    try:
        got = answers(path)
    except UserError as error:
        refused(error, path)
        return False
    wanted = runtime_answers(path)
    assert wanted is None or torch.allclose(got, wanted, atol=1e-4, rtol=1e-4, equal_nan=True)
    return True


def test_undamaged_originals(model):
    """The originals load, so that a refusal below is one of the damage."""
    assert same_as_runtime(model) and torch.isfinite(answers(PUBLISHED)).all()


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("damage", [truncate, flip_bits], ids=lambda d: d.__name__)
def test_damaged_onnx_bytes(model, damage, seed, tmp_path):
    """A truncated ONNX file is refused; a bit-flipped one is refused, or acts as onnxruntime says of that very file."""
    path, rng = tmp_path / "policy.onnx", random.Random(f"{damage.__name__}{seed}")
    path.write_bytes(damage(model.read_bytes(), rng))
    loaded = same_as_runtime(path)
    assert not (loaded and damage is truncate)


def rename_name(graph, rng):
    """Misspell a name that a node uses."""
    node = rng.choice(graph.node)
    names = node.input if rng.random() < 0.7 else node.output
    names[rng.randrange(len(names))] += "x"


def swap_operator(graph, rng):
    """Make a node something else."""
    rng.choice(graph.node).op_type = rng.choice(("Tanh", "LSTM", "Loop", "PyOp", "Gemm", "Identity", "", "Concat"))


def foreign_domain(graph, rng):
    """Make a node one of a custom library."""
    rng.choice(graph.node).domain = rng.choice(("com.example", "ai.onnx.contrib", "ai.onnx.ml"))


def reshape_weight(graph, rng):
    """Change a weight's shape."""
    tensor = rng.choice(graph.initializer)
    value = numpy_helper.to_array(tensor)
    changed = rng.choice((value.reshape(-1)[:-1], np.stack([value, value]), np.append(value, value[:1]), value.T))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))


def poison_weight(graph, rng):
    """Write a number that is none into a weight."""
    tensor = rng.choice([t for t in graph.initializer if t.data_type == TensorProto.FLOAT])
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[rng.randrange(value.size)] = rng.choice((np.nan, np.inf, -np.inf))
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def change_attribute(graph, rng):
    """Change a number or a text that a node carries."""
    node = rng.choice([n for n in graph.node if n.attribute])
    attribute = rng.choice(node.attribute)
    value = rng.choice((0, -1, 3, 1 << 40, 0.5, "reverse", [1, 2], [0.5]))
    attribute.CopyFrom(helper.make_attribute(attribute.name, value))


def drop_part(graph, rng):
    """Take a node, a weight, an input or an output away."""
    part = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    del part[rng.randrange(len(part))]


CHANGES = (rename_name, swap_operator, foreign_domain, reshape_weight, poison_weight, change_attribute, drop_part)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_changed_onnx_content(model, change, seed, tmp_path):
    """Renamed, reshaped, poisoned or missing parts are refused, or the file acts as onnxruntime says of it."""
    path, rng = tmp_path / "policy.onnx", random.Random(f"{change.__name__}{seed}")
    corrupt = onnx.load(model)
    change(corrupt.graph, rng)
    path.write_bytes(corrupt.SerializeToString())
    loaded = same_as_runtime(path)
    assert not (loaded and change in (foreign_domain, poison_weight))


def test_reading_runs_nothing(model, tmp_path):
    """No library is loaded by name, nothing unpickled, and no process started but the one that HDF5 is read in."""
    script = (
        "import sys, torch, onnx, h5py, pickle\n"
        "from foundation.teachers import TeacherPolicyWrapper\n"
        f"TeacherPolicyWrapper({str(model)!r}); TeacherPolicyWrapper({str(PUBLISHED)!r})\n"
        "seen = []\n"
        "watched = ('subprocess.', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'ctypes.dlopen', 'pickle.')\n"
        "import foundation.checkpoints.reading.hdf5_file as hdf5\n"
        "hdf5._idle.pop().kill()\n"
        "own = [sys.executable, '-I', '-S', hdf5.hdf5_process.__file__]\n"
        "def watch(event, args):\n"
        "    if event.startswith(watched) and not (event == 'subprocess.Popen' and args[1] == own):\n"
        "        seen.append(event)\n"
        "sys.addaudithook(watch)\n"
        f"TeacherPolicyWrapper({str(model)!r}); TeacherPolicyWrapper({str(PUBLISHED)!r})\n"
        "sys.exit(', '.join(seen) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
