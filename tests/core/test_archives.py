"""Small files that ask for gigabytes, or for ever, are refused in one line before there is memory for them."""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.checkpoints.reading.scaling import load_moments
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint, load_json, load_yaml
from foundation.students import StudentPolicy, student_cfg_class, student_names

MORE = 600 << 20
"""Memory that a refusal may take [B]; what is asked for here is from one gigabyte to a million."""


@pytest.fixture(autouse=True)
def little_memory_and_time() -> Iterator[None]:
    """Let an allocation of gigabytes fail, and interrupt what takes more than a minute."""

    def too_long(*_: Any) -> None:
        raise AssertionError("it takes too long")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def refused(call: Any, path: Path, *words: str) -> None:
    """Assert one short line that names the file and has the words, and that memory was not what ran out."""
    with pytest.raises(UserError) as caught:
        call(path)
    line = str(caught.value)
    assert "\n" not in line and path.name in line and len(line) < 700
    for word in words:
        assert word in line
    error: BaseException | None = caught.value
    while error is not None:
        assert not isinstance(error, MemoryError) and "allocate" not in str(error)
        error = error.__cause__


def policy(path: Path) -> Any:
    return load_policy(path, Overrides())


def write_pt(path: Path, data: bytes, storages: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive as ``torch.save`` does, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
        archive.writestr("a/version", "3\n")
    return path


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.called = function, given

    def __reduce__(self) -> Any:
        return self.called


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def tensor_pickle(size: tuple, stride: tuple, count: int, offset: int = 0) -> bytes:
    """The pickle of ``{"model_state_dict": {"0.weight": tensor}}``, of any claims."""

    class Out(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if obj == "STORAGE" else None

    stream = io.BytesIO()
    call = Call(torch._utils._rebuild_tensor_v2, "STORAGE", offset, size, stride, False, OrderedDict())
    Out(stream, 2).dump({"model_state_dict": {"0.weight": call}})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (((2_000_000_000,), (0,), 4), "stretched"),
        (((1 << 20, 1 << 20), (0, 0), 4), "stretched"),
        (((40_000, 40_000), (1, 1), 100_000), "corrupt"),
        (((10,), (1,), 4), "reaches beyond"),
        (((4,), (1,), 4, 1), "reaches beyond"),
        (((4,), (1 << 60,), 4), "no sound shape"),
        (((-1,), (1,), 4), "no sound shape"),
        (((4,), (1,), 1 << 33), "does not hold"),
    ],
)
def test_tensors_that_claim_more_than_there_is(claims, words, tmp_path):
    """Stride 0, overlapping strides, sizes beyond the storage and storages beyond the record."""
    path = write_pt(tmp_path / "model_1.pt", tensor_pickle(*claims), {"0": bytes(16)})
    refused(load_checkpoint, path, words)
    refused(policy, path, words)


def test_sound_views_are_read(tmp_path):
    """Transposed, offset, shared and (small) expanded tensors, parameters and scalars load to the bit."""
    base = torch.randn(40, 30)
    values = {
        "a": base, "b": base.T, "c": base[3:, 2], "d": torch.ones(1).expand(1000), "e": torch.nn.Parameter(base[:2]),
        "f": torch.tensor(3), "g": torch.empty(0, 5), "h": torch.ones(3).bfloat16(),
    }  # fmt: skip
    torch.save({"model": values, "iter": 3, "obs": [1.5, None, "x"]}, tmp_path / "sound.pt")
    read = load_checkpoint(tmp_path / "sound.pt")["model"]
    for name, value in values.items():
        assert torch.equal(read[name], value) and read[name].dtype == value.dtype


def test_deflated_records(tmp_path):
    """A megabyte that unpacks to 200, in the pickle and in a storage, of one record or of a hundred."""
    for number, (name, records) in enumerate([("data.pkl", 1), ("data/0", 1), ("data/0", 100)]):
        path = tmp_path / f"bomb_{number}.pt"
        zeros = bytes(1 << 20)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for index in range(records):
                with archive.open(f"a/{name}{index or ''}", "w") as stream:
                    for _ in range(200 // records):
                        stream.write(zeros)
            if name != "data.pkl":
                archive.writestr("a/data.pkl", pickled({}))
        refused(load_checkpoint, path, "would unpack to")


def doubled(levels: int, make: Any, start: Any) -> Any:
    for _ in range(levels):
        start = make(start)
    return start


def test_pickles_that_hold_themselves_or_grow(tmp_path):
    """Doubled mappings and lists, cycles, keys that take for ever to hash, memory by a call, huge integers, depth."""
    cycle: dict[str, Any] = {}
    cycle["me"] = cycle
    cases = {
        "too many values": {"a": doubled(60, lambda x: {"l": x, "r": x}, {"v": 1})},
        "hold each other": {"a": doubled(60, lambda x: [x, x], [1])},
        "nested": cycle,
        "bytearray": {"a": Call(bytearray, 1 << 40)},
        "torch._tensor.Tensor": {"a": Call(torch.Tensor, 1 << 40)},
        "64 bits": {"epoch": 10**30},
        "steps": {"a": [[] for _ in range(600_000)]},
        "set": {"a": {1, 2}},
        "os.system": {"a": Call(os.system, "true")},
    }
    for words, value in cases.items():
        refused(load_checkpoint, write_pt(tmp_path / "x.pt", pickled(value), {}), words.split(".")[-1])
    twice = b"q\x01h\x01\x86"  # a pair of what is on top
    key = b"\x80\x02}K\x01" + twice * 60 + b"K\x01s."
    refused(load_checkpoint, write_pt(tmp_path / "x.pt", key, {}), "key of type tuple")
    chain = b"\x80\x02X\x01\x00\x00\x00a" + b"".join(
        [b"c_codecs\nencode\n", b"X\x01\x00\x00\x00a", b"X\x03\x00\x00\x00hex", b"\x86R"]
    )
    refused(load_checkpoint, write_pt(tmp_path / "x.pt", chain + b".", {}), "encodes")
    flat = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    refused(load_checkpoint, write_pt(tmp_path / "x.pt", flat, {}))


def test_pipes_and_devices(tmp_path):
    """A FIFO and ``/dev/zero``, also behind a link, are named and not read, whatever reads them."""
    fifo, zero = tmp_path / "fifo.pt", tmp_path / "zero.pt"
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    kernel = tmp_path / "kernel.pt"
    kernel.symlink_to("/proc/kmsg")  # looks like a regular file of no bytes; reading it waits for a message
    for path in (fifo, zero, kernel):
        for call in (load_checkpoint, policy, load_yaml, load_json):
            refused(call, path, "pipe or a device")


YAML_BOMBS = {
    "aliases of a long text": f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 400)}]\n",
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)
    ),
    "merges": "a: &a {x: 1}\n" + "".join(
        f"k{n}: &k{n} {{<<: [{p}, {p}], y{n}: 1}}\n" for n, p in enumerate(["*a"] + [f"*k{n}" for n in range(40)])
    ),
    "itself": "a: &a [*a]",
    "levels": "[" * 500,
    "flow": "{a: " * 5000,
    "values": "- a\n" * 60_000,
    "larger": "a: " + "x" * (3 << 20),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML_BOMBS)
def test_yaml_bombs(name, tmp_path):
    """Aliases, merge keys, cycles, depth and length are refused in one short line, by each of the readers."""
    path = tmp_path / "params" / "agent.yaml"
    path.parent.mkdir()
    path.write_text(YAML_BOMBS[name])
    refused(load_yaml, path)
    torch.save({"actor_state_dict": {}}, tmp_path / "model_1.pt")
    refused(lambda p: load_policy(tmp_path / "model_1.pt", Overrides()), path)


def test_yaml_with_aliases_as_isaac_lab_writes_them(tmp_path):
    """A few aliases and a merge stay what they are."""
    path = tmp_path / "env.yaml"
    path.write_text("a: &id001 [1, 2]\nb: *id001\nc: &m {x: 1}\nd: {<<: *m, y: !!python/tuple [3, 4]}\n")
    assert load_yaml(path) == {"a": [1, 2], "b": [1, 2], "c": {"x": 1}, "d": {"x": 1, "y": [3, 4]}}


@pytest.mark.parametrize(
    "text",
    [
        "!!timestamp x", "!!int ''", "!!bool maybe", "!!float a", "!!binary é", "!!omap x", "!!set [a]", "!!pairs x",
        "? [a]\n: b", "!!python/object/apply:os.system [true]\n: x", "a: !!int 0x", "2001-13-45", "a: 1:99999:9e9",
        "\x00", "&a", "*a", "%YAML 9.9\n---\na", "a: 0b", "!!merge x", "<<: 3", "!!null [a]", "!!value x", "!<x> [",
        "i: " + "9" * 6000,
    ],
)  # fmt: skip
def test_yaml_tags_with_bad_scalars(text, tmp_path):
    """Whatever YAML's own code runs into: plain values, or one line."""
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    try:
        load_yaml(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize("name", student_names())
@pytest.mark.parametrize("change", ["wide", "deep", "obs"])
def test_a_description_is_compared_before_it_is_built(name, change, tmp_path):
    """Layers of 60,000 by 60,000, or 300,000 of them, that the weights do not have: refused by name."""
    from foundation.students import make_student

    student = make_student(student_cfg_class(name)(name=name), 26, 4)
    described = student.describe()
    key = next(key for key in ("channels", "encoder_dims", "hidden_dims") if described.get(key))
    described |= {
        "wide": {key: [60_000, 60_000]},
        "deep": {key: [8] * 300_000},
        "obs": {"num_obs": 1 << 40},
    }[change]
    content = {"student": described, "model_state_dict": student.state_dict()}
    torch.save(content, tmp_path / "best_student.pt")
    refused(policy, tmp_path / "best_student.pt", "do not fit", "num_obs" if change == "obs" else key)


def test_memory_of_a_student_is_bounded(tmp_path):
    """A TCN of thirty dilated layers of one channel remembers 2^30 steps: refused before the first step."""
    from foundation.students import make_student

    cfg = student_cfg_class("tcn")(name="tcn", channels=[1] * 20, hidden_dims=[1])
    student = make_student(cfg, 8, 1)
    torch.save({"student": student.describe(), "model_state_dict": student.state_dict()}, tmp_path / "s.pt")
    refused(policy, tmp_path / "s.pt", "remembers")


def test_statistics_that_claim_more_than_there_is(tmp_path):
    """An ``.npy`` of 10^12 numbers in an ``.npz``, and a deflated one of gigabytes."""
    head = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("mean", "var", "epsilon", "clip_obs"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00"[:8] + head.getvalue()[8:] + bytes(8))
    refused(lambda p: load_moments(p, 3), tmp_path / "a.npz", "an array of shape")
    numpy.savez(tmp_path / "b.npz", mean=numpy.ones(3), var=numpy.ones(3), epsilon=1e-8, clip_obs=10.0)
    assert load_moments(tmp_path / "b.npz", 3)[3] == 10.0


def test_scripts_that_claim_more_than_there_is(tmp_path):
    """A TorchScript archive whose tensor is stretched over one number is refused as a checkpoint is."""
    model = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2)))
    torch.jit.save(model, str(tmp_path / "policy.pt"))
    policy(tmp_path / "policy.pt")
    out = tmp_path / "stretched.pt"
    with zipfile.ZipFile(tmp_path / "policy.pt") as archive, zipfile.ZipFile(out, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):  # the bias: shape (2,), strides (1,)
                changed = content.replace(b"(K\x02t(K\x01t", b"(J\xff\xff\xff\x7ft(K\x00t", 1)
                assert changed != content
                content = changed
            copy.writestr(name, content)
    refused(policy, out, "stretched")


def test_hdf5_of_many_packed_layers(tmp_path):
    """Thirty data sets of 64 MB each that gzip to nothing, and a chunk far larger than its data set."""
    h5py = pytest.importorskip("h5py")
    for name, chunks, shape in (("sets", (1 << 20,), (1 << 24,)), ("chunk", (1 << 28,), (4,))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            layers = file.create_group("actor/layers")
            file["actor"].attrs["type"] = "sequential"
            for index in range(30 if name == "sets" else 1):
                layer = layers.create_group(str(index))
                layer.attrs["type"], layer.attrs["activation_function"] = "dense", "RELU"
                options = {"chunks": chunks, "maxshape": (None,), "compression": "gzip", "dtype": "f4"}
                for part in ("weights", "biases"):
                    layer.create_group(part).create_dataset("parameters", shape, **options)
        refused(policy, tmp_path / f"{name}.h5", "unpack to far more")


def onnx_model(nodes: list[Any], num_obs: int, constants: dict[str, Any]) -> bytes:
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "g",
        [helper.make_tensor_value_info("obs", kind, [1, num_obs])],
        [helper.make_tensor_value_info("actions", kind, ["rows", "columns"])],
        [onnx.numpy_helper.from_array(numpy.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


ROW = numpy.ones((1, 60_000), "float32")
ONNX = {
    "outer product": ([("MatMul", ["c", "r"], ["p"]), ("ReduceMean", ["p"], ["actions"])], 4, {"c": ROW.T, "r": ROW}),
    "broadcast": ([("Add", ["c", "r"], ["p"]), ("ReduceMean", ["p"], ["actions"])], 4, {"c": ROW.T, "r": ROW}),
    "concat": (
        [("Concat", [f"x{n}" if n else "obs"] * 2, [f"x{n + 1}"], {"axis": 1}) for n in range(34)]
        + [("ReduceMean", ["x34"], ["actions"])],
        4,
        {},
    ),
    "input": ([("ReduceMean", ["obs"], ["actions"])], 1_000_000_000, {}),
    "slices": (
        [("Concat", [f"x{n}" if n else "obs"] * 2, [f"x{n + 1}"], {"axis": 1}) for n in range(18)]
        + [("Slice", ["x18", "s", "e", "a", "t"], ["y"]), ("ReduceMean", ["y"], ["actions"])],
        4,
        {"s": numpy.array([0]), "e": numpy.array([1 << 30]), "a": numpy.array([1]), "t": numpy.array([2])},
    ),
    "nodes": ([("Neg", [f"x{n}" if n else "obs"], [f"x{n + 1}"]) for n in range(5000)], 4, {}),
    "expand": (
        [("Expand", ["obs", "s"], ["y"]), ("Exp", ["y"], ["actions"])],
        1,
        {"s": numpy.array([1 << 13, 1 << 14])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX)
def test_graphs_that_grow(name, tmp_path):
    """Products, broadcasts, doubled Concats, inputs of 10^9 and slices by the million are told before they are made."""
    pytest.importorskip("onnx")
    (tmp_path / "policy.onnx").write_bytes(onnx_model(*ONNX[name]))
    refused(policy, tmp_path / "policy.onnx", "operators" if name == "nodes" else "too large")


def wire_number(value: int) -> bytes:
    """A number as protobuf writes it."""
    return bytes([value & 127 | 128]) + wire_number(value >> 7) if value > 127 else bytes([value])


def wire_field(number: int, content: bytes) -> bytes:
    return wire_number(number << 3 | 2) + wire_number(len(content)) + content


MANY = 4_000_000
WIRE = {  # numbers of ModelProto (7: graph), GraphProto (1: node, 5: initializer), NodeProto (1: input, 5: attribute)
    "empty nodes": (wire_field(7, wire_field(1, b"") * MANY), "fields"),
    "empty weights": (wire_field(7, wire_field(5, b"") * MANY), "fields"),
    "empty inputs of a node": (wire_field(7, wire_field(1, wire_field(1, b"") * MANY)), "fields"),
    "empty attributes": (wire_field(7, wire_field(1, wire_field(5, b"") * MANY)), "fields"),
    "empty properties": (wire_field(14, b"") * MANY, "fields"),
    "unknown fields": (wire_field(99, b"") * MANY, "fields"),
    "small integers": (wire_field(7, wire_field(5, wire_field(7, b"\1" * 3 * MANY))), "MiB of integers"),
    "groups": ((b"\x0b" * 1000), "kind 3"),
    "longer than the file": (wire_number(7 << 3 | 2) + wire_number(1 << 40), "longer"),
    "longer than its message": (wire_field(7, wire_number(1 << 3 | 2) + wire_number(50)) + bytes(60), "longer"),
    "number without end": (b"\x08" + b"\xff" * 50, "cut off"),
    "cut number": (b"\x08\xff", "cut off"),
    "cut float": (b"\x0d\0\0", "longer"),
}


@pytest.mark.parametrize("name", WIRE)
def test_models_of_many_small_messages(name, tmp_path):
    """Millions of empty messages, which protobuf makes a hundred bytes each of, and fields that end nowhere."""
    pytest.importorskip("onnx")
    sound = onnx_model([("MatMul", ["obs", "w"], ["actions"])], 4, {"w": numpy.ones((4, 2), "float32")})
    more, words = WIRE[name]
    (tmp_path / "policy.onnx").write_bytes(sound + more)
    refused(policy, tmp_path / "policy.onnx", words)
    (tmp_path / "policy.onnx").write_bytes(sound)
    assert policy(tmp_path / "policy.onnx").network.num_obs == 4


def test_json_of_many_small_values(tmp_path):
    """Sixteen MiB of empty lists would be a gigabyte: counted first. A hundred thousand numbers are read."""
    path = tmp_path / "x.json"
    for text in ("[" + "[]," * 5_000_000 + "1]", "[" + "{}," * 5_000_000 + "1]", "[" + "0.1," * 4_000_000 + "1]"):
        path.write_text(text)
        refused(load_json, path, "more than 500000 values")
    path.write_text("[" + "0.5," * 100_000 + "1]")
    assert len(load_json(path)) == 100_001
    model = tmp_path / "model.zip"
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", '{"policy_class": [' + "[]," * 5_000_000 + "1]}")
        archive.writestr("policy.pth", b"")
        archive.writestr("_stable_baselines3_version", "2.9.2")
    refused(policy, model, "more than 500000 values")


@pytest.mark.parametrize("piece", [b"}", b"]", b"K\x01\x85", b"h\x01)R", b"\x8a\x04\1\1\1\1", b"N", b"(t"])
def test_pickles_of_many_small_objects(piece, tmp_path):
    """Three million objects in a pickle that deflates to a few KiB are refused after the first million steps."""
    head = b"\x80\x02}q\x00X\x01\x00\x00\x00accollections\nOrderedDict\nq\x010("
    path = write_pt(tmp_path / "x.pt", head + piece * (3_000_000 // len(piece)) + b"ts.", {}, zipfile.ZIP_DEFLATED)
    refused(load_checkpoint, path)


def test_deflate_is_what_it_claims() -> None:
    """The bombs above are bombs: a megabyte of zeros deflates to a kilobyte."""
    assert len(zlib.compress(bytes(1 << 20), 9)) < 2000


def test_a_students_weights_of_other_names(tmp_path):
    """An entry more, an entry less and an integer as a name are one line each."""
    student = StudentPolicy(5, 2)
    for change in ({"more": torch.ones(2)}, {3: torch.ones(2)}, {"normalizer.mean": torch.ones(4)}):
        weights = dict(student.state_dict()) | change
        torch.save({"student": student.describe(), "model_state_dict": weights}, tmp_path / "s.pt")
        refused(policy, tmp_path / "s.pt")
