"""``foundation.deploy``: a user's program without PyTorch, its memory, and one clear line for what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import onnx
import pytest
import torch

from foundation.core.errors import UserError
from foundation.deploy import Description, Field, Golden, Policy
from foundation.export.formats import export

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import ENVS, NUM_ACTIONS, NUM_OBS, STUDENTS, bundle_of_student, fly, student  # noqa: E402

FILES = ("policy.npz", "policy.onnx", "policy.so")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a GRU student in every format that ``Policy`` runs."""
    place = tmp_path_factory.mktemp("exported")
    list(export(bundle_of_student("gru-2-layers", place), place, ["npz", "onnx", "so"]))
    return place


@pytest.mark.parametrize("file", FILES)
def test_no_torch_is_imported(file, folder):
    """A program that steps a policy imports neither PyTorch nor anything else of this project's requirements."""
    script = (
        "import sys\n"
        "for name in ('torch', 'tensordict', 'hydra', 'omegaconf', 'gymnasium', 'yaml'):\n"
        "    sys.modules[name] = None\n"  # importing it is an ImportError
        "from foundation.deploy import Policy\n"
        f"policy = Policy({str(folder / file)!r})\n"
        f"print(policy.step([0.5] * {NUM_OBS}).shape, policy.check() < 1e-5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[0] == f"({NUM_ACTIONS},) True", done.stderr


@pytest.mark.parametrize("file", FILES)
def test_one_robot_and_many(file, folder):
    """One observation gives one action; a batch is as many robots, each with a memory of its own."""
    flight = fly(student("gru-2-layers"), steps=20)
    many, one = Policy(folder / file), Policy(folder / file)
    for step, (obs, resets) in enumerate(zip(flight.obs, flight.resets, strict=True)):
        many.reset(resets)
        if resets[2]:
            one.reset()
        actions, alone = many.step(obs), one.step(obs[2])
        assert alone.shape == (NUM_ACTIONS,)
        assert actions.dtype == numpy.float32
        assert numpy.abs(actions - flight.actions[step]).max() <= 1e-5
        assert numpy.abs(alone - actions[2]).max() <= 1e-6


@pytest.mark.parametrize("file", FILES)
def test_observations_that_are_wrong(file, folder):
    """Sizes and NaN are named, with the observation's name and column; the memory stays what it was."""
    policy, untouched = Policy(folder / file), Policy(folder / file)
    obs = numpy.full((ENVS, NUM_OBS), 0.3, numpy.float32)
    assert numpy.array_equal(policy.step(obs), untouched.step(obs))
    wrong = obs.copy()
    wrong[1, 4] = numpy.nan
    with pytest.raises(UserError, match=r"observation 'policy\[4\]' \(column 4\) is nan"):
        policy.step(wrong)
    with pytest.raises(UserError, match=rf"reads {NUM_OBS} observations and was given an array of shape \(2, 3\)"):
        policy.step(numpy.zeros((2, 3)))
    with pytest.raises(UserError, match=f"remembers {ENVS} environments and was given 1"):
        policy.step(obs[0])
    with pytest.raises(UserError, match="mask of 2 entries"):
        policy.reset([True, False])
    assert numpy.array_equal(policy.step(obs), untouched.step(obs))


def test_a_step_does_not_touch_what_it_is_given(folder):
    """Observations and actions of earlier steps stay as they are."""
    policy = Policy(folder / "policy.npz")
    obs = numpy.ones((2, NUM_OBS), numpy.float32)
    first = policy.step(obs)
    kept = first.copy()
    policy.step(obs)
    assert (obs == 1).all()
    assert numpy.array_equal(first, kept)


def test_files_that_are_wrong(folder, tmp_path):
    """A file of another kind, a missing one, a folder and another's library are each one line."""
    (tmp_path / "policy.txt").write_text("")
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "kernel.npz").symlink_to("/proc/kmsg")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.npz").write_bytes(b"")
    numpy.savez(tmp_path / "other.npz", weights=numpy.zeros(3))
    (tmp_path / "bad.so").write_bytes(b"no library")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    source = tmp_path / "other.c"
    source.write_text("int nothing(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "other.so"), str(source)], check=True)
    for name, said in (
        ("policy.txt", "ends in .npz, .onnx, .so"),
        ("missing.npz", "does not exist"),
        ("folder.npz", "is no file"),
        ("pipe.npz", "is a pipe or a device"),
        ("kernel.npz", "is a pipe or a device"),
        ("empty.npz", "is corrupt or no NumPy archive"),
        ("other.npz", "is no exported policy: it lacks 'description'"),
        ("bad.so", "cannot be loaded"),
        ("other.so", "no policy that foundation exported"),
        ("bad.onnx", "is not an ONNX model that foundation has exported"),
    ):
        with pytest.raises(UserError, match=said):
            Policy(tmp_path / name)


def _rewritten(source: Path, target: Path, change) -> Path:
    """Write an archive again with ``change(name, array)`` in place of each array; None leaves it out."""
    with numpy.load(source) as archive:
        arrays = {name: change(name, archive[name]) for name in archive.files}
    numpy.savez(target, **{name: array for name, array in arrays.items() if array is not None})
    return target


def _edited(array, old: str, new: str):
    return numpy.frombuffer(array.tobytes().replace(old.encode(), new.encode()), numpy.uint8)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("program", lambda a: _edited(a, '"dense"', '"dence"')),
        ("program", lambda a: _edited(a, '"cell": "gru"', '"cell": "gnu"')),
        ("program", lambda a: _edited(a, '"inputs": ["obs"]', '"inputs": ["abs"]')),
        ("program", lambda a: a[:-20]),
        ("program", lambda a: _edited(a, '"memory": [0]', '"memory": [5]')),
        ("description", lambda a: _edited(a, f'"num_obs": {NUM_OBS}', '"num_obs": 8')),
        ("description", lambda a: _edited(a, '"description_version": 1', '"description_version": 2')),
        ("description", lambda a: _edited(a, '"state_size"', '"state_sized"')),
        ("1.weight", lambda a: None),
        ("1.weight_ih", lambda a: a.T.copy()),
        ("1.weight_ih", lambda a: a.astype(numpy.float64)),
        ("1.bias_ih", lambda a: numpy.where(a == a[0], numpy.nan, a)),
        ("golden_obs", lambda a: a[0]),
        ("golden_actions", lambda a: None),
    ],
)
def test_a_damaged_archive_is_one_line(folder, tmp_path, name, change):
    """Whatever is changed in an archive, reading it or checking it is one line that names the file."""
    with numpy.load(folder / "policy.npz") as archive:
        if name not in archive.files:
            pytest.skip("this policy has no such array")
    path = _rewritten(folder / "policy.npz", tmp_path / "policy.npz", lambda n, a: change(a) if n == name else a)
    with pytest.raises(UserError, match=r"policy\.npz'") as caught:
        Policy(path).check()
    assert "\n" not in str(caught.value)


def test_cut_files_are_one_line(folder, tmp_path):
    """An archive or a model that ends early, anywhere, is one line."""
    for file in ("policy.npz", "policy.onnx"):
        content = (folder / file).read_bytes()
        for share in range(1, 10):
            (tmp_path / file).write_bytes(content[: len(content) * share // 10])
            with pytest.raises(UserError, match=file):
                Policy(tmp_path / file)


def test_pickles_are_not_read(folder, tmp_path):
    """An archive with an array of objects, which would run code, is refused."""
    path = tmp_path / "policy.npz"
    with zipfile.ZipFile(folder / "policy.npz") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        numpy.save(tmp_path / "objects.npy", numpy.array([{}], dtype=object), allow_pickle=True)
        new.write(tmp_path / "objects.npy", "objects.npy")
    with pytest.raises(UserError, match="corrupt or no NumPy archive"):
        Policy(path)


@pytest.mark.parametrize("file", FILES)
def test_check_finds_another_policys_weights(file, folder, tmp_path):
    """The golden sequence beside a file fails for a file of other weights."""
    list(export(bundle_of_student("gru", tmp_path), tmp_path, ["npz", "onnx", "so"]))
    assert Policy(tmp_path / file).check() <= 1e-5
    with pytest.raises(UserError, match="differs from its golden sequence by"):
        Policy(tmp_path / file).check(folder / "policy_golden.npz")
    (tmp_path / "policy_golden.npz").unlink()
    if file != "policy.npz":
        with pytest.raises(UserError, match="does not exist"):
            Policy(tmp_path / file).check()


def test_check_sees_what_is_not_finite():
    """An action that is NaN is an infinite difference, not none."""

    class Nan:
        def step(self, obs):
            return numpy.full((len(obs), 1), numpy.nan, numpy.float32)

        def reset(self, mask=None):
            pass

    golden = Golden(
        obs=numpy.zeros((1, 1, 1), numpy.float32),
        resets=numpy.ones((1, 1), numpy.bool_),
        actions=numpy.zeros((1, 1, 1), numpy.float32),
    )
    assert golden.difference(Nan()) == numpy.inf


def test_a_description_survives_json():
    """Every field of a description is the same after JSON."""
    made = Description(
        name="a", num_obs=3, num_actions=2, num_choices=None, state_size=4,
        observations=(Field(name="x", size=2, unit="m", frame="body"), Field(name="y", size=1)),
        actions=(Field(name="u", size=2),), obs_groups=("policy", "extra"), obs_slice=(1, 4), normalized=True,
        action_clip=1.5, action_scale=(0.25, 0.5), action_offset=(0.1, -0.2), control_interval=0.02, task="T",
        format="f", architecture="b", source_sha256="00",
    )  # fmt: skip
    assert Description.from_dict(json.loads(json.dumps(made.as_dict())), "here") == made
    assert [made.column_name(column) for column in range(3)] == ["x[0]", "x[1]", "y[0]"]


@pytest.mark.l2f
@pytest.mark.parametrize("options", [{"activation": "tanh"}, {"activation": "relu", "hidden_dims": [7]}])
def test_foundation_policy_flies_our_hdf5(options, tmp_path, monkeypatch):
    """The package foundation-policy, whose reader checks the file's own example, gives the student's actions."""
    foundation_policy = pytest.importorskip("foundation_policy")
    monkeypatch.setitem(STUDENTS, "raptor", ("gru", options))
    bundle = bundle_of_student("raptor", tmp_path)
    (written,) = export(bundle, tmp_path / "exported", ["rl_tools"])
    policy = foundation_policy.load(str(written.files[0]))
    network = student("raptor")
    obs = torch.randn(50, 3, NUM_OBS)
    with torch.no_grad():
        expected = network.sequence(obs)[0].mean.numpy()
    policy.reset()
    steps = [policy.evaluate_step(row.numpy()) for row in obs]
    assert numpy.abs(numpy.stack(steps) - expected).max() <= 1e-5


def _program(folder: Path, target: Path, operations: list[dict], **arrays) -> Path:
    """Write an archive whose program is another one; its description and golden sequence stay."""
    with numpy.load(folder / "policy.npz") as archive:
        kept = {name: archive[name] for name in archive.files if not name[0].isdigit()}
    text = json.dumps({"output": operations[-1]["name"], "operations": operations})
    kept["program"] = numpy.frombuffer(text.encode(), numpy.uint8)
    numpy.savez(target, **kept, **arrays)
    return target


def _operation(kind: str, name: str, inputs: list[str], shape: list[int], arrays=(), **options) -> dict:
    record = {"kind": kind, "name": name, "inputs": inputs, "shape": shape}
    return record | {"memory": [], "arrays": list(arrays), "options": options}


_DOUBLED = [
    _operation("concatenate", f"v{k}", [f"v{k - 1}" if k else "obs"] * 2, [NUM_OBS << (k + 1)]) for k in range(40)
]
_IMAGE = _operation("columns", "image", ["obs"], [1, 3, 3], start=0)
_LARGE = {"1.weight": numpy.ones((1, 1, 3, 3), numpy.float32), "1.bias": numpy.ones(1, numpy.float32)}
_ODD = {"stride": [1, 1], "dilation": [1, 1], "padding": [20000, 20000], "padding_mode": "circular"}


@pytest.mark.parametrize(
    ("operations", "arrays"),
    [
        (_DOUBLED, {}),
        ([_operation("concatenate", "v", ["obs"] * 100_000, [NUM_ACTIONS])], {}),
        ([_IMAGE, _operation("max_pool", "v", ["image"], [1, 1, 3], kernel=2, stride=1, padding=100_000)], {}),
        ([_IMAGE, _operation("max_pool", "v", ["image"], [1, 1, 3], kernel=2, stride=0, padding=0)], {}),
        ([_IMAGE, _operation("convolution", "v", ["image"], [1, 1, 3], ["weight", "bias"], **_ODD)], _LARGE),
        (
            [_operation("normalize", "v", ["obs"], [NUM_ACTIONS], ["mean", "scale"])],
            {"0.mean": numpy.zeros((60_000, 1), numpy.float32), "0.scale": numpy.zeros((1, 60_000), numpy.float32)},
        ),
    ],
    ids=["doubling", "joined", "padded pool", "pool without steps", "padded convolution", "outer product"],
)
def test_a_program_that_asks_for_memory_is_not_begun(operations, arrays, folder, tmp_path):
    """Shapes are told from weights and settings: a small file cannot ask for gigabytes."""
    path = _program(folder, tmp_path / "large.npz", operations, **arrays)
    code = (
        "import resource, sys\n"
        "import numpy\n"
        "from foundation.deploy import Policy\n"
        "from foundation.core.errors import UserError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))\n"
        "try:\n    Policy(sys.argv[1])\n"
        "except UserError as error:\n    print(error)\n"
    )
    run = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(run, cwd=HERE.parents[1], capture_output=True, text=True, timeout=20, check=False)
    assert "is corrupt or incomplete" in done.stdout, done.stderr
    assert "memory" not in done.stdout.lower()  # nothing was set aside, and failed


_HEADERS = {
    "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
    "wide": "{'descr': '|V2000000000', 'fortran_order': False, 'shape': ()}",
    "open": "{'descr': '<f4', 'fortran_order': False, 'shape': (((((((1,}",
    "text": "{'descr': '<f4', 'fortran_order': False, 'shape': (1,) '''",
    "flag": "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
}


@pytest.mark.parametrize("header", _HEADERS)
def test_an_array_whose_header_lies(header, folder, tmp_path):
    """NumPy sets memory aside by a header, and takes it apart as Python source: what it runs into is one line."""
    text = _HEADERS[header].encode().ljust(117) + b"\n"
    lie = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    for name in ("golden_obs.npy", "description.npy"):
        target = tmp_path / "lie.npz"
        with zipfile.ZipFile(folder / "policy.npz") as source, zipfile.ZipFile(target, "w") as written:
            for member in source.namelist():
                written.writestr(member, lie if member == name else source.read(member))
        with pytest.raises(UserError, match="corrupt"):
            Policy(target)


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_record_that_does_not_unpack(kind, folder, tmp_path):
    """Whatever packed it, and a record that says that it is encrypted."""
    target = tmp_path / "packed.npz"
    with zipfile.ZipFile(folder / "policy.npz") as source, zipfile.ZipFile(target, "w", kind) as written:
        for member in source.namelist():
            written.writestr(member, source.read(member))
    assert Policy(target).check() < 1e-5
    content = bytearray(target.read_bytes())
    content[60:120] = bytes(60)
    target.write_bytes(content)
    with pytest.raises(UserError, match="corrupt"):
        Policy(target)
    encrypted = bytearray((folder / "policy.npz").read_bytes())
    encrypted[6] |= 1
    encrypted[encrypted.find(b"PK\x01\x02") + 8] |= 1
    target.write_bytes(encrypted)
    with pytest.raises(UserError, match="corrupt"):
        Policy(target)


@pytest.mark.parametrize("array", [numpy.array([[["a"]]]), numpy.zeros((2, 4, NUM_OBS), complex)])
def test_a_golden_sequence_that_is_not_of_numbers(array, folder, tmp_path):
    """Text and complex numbers are no observations."""
    target = _rewritten(folder / "policy.npz", tmp_path / "p.npz", lambda n, a: array if n == "golden_obs" else a)
    with pytest.raises(UserError, match="not made of numbers"):
        Policy(target)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["memory"][0].update(input="x"),
        lambda values: values["memory"][0].update(input=["x"]),
        lambda values: values["memory"][0].update(output="a\nb\x1b[2J"),
        lambda values: values["memory"][0].update(columns=[[0, "x"]]),
        lambda values: values["memory"][0].update(columns=[[0, 1]]),
        lambda values: values["memory"].clear(),
        lambda values: values.update(initial_state=[10**400]),
        lambda values: values.update(initial_state=[0.0]),
        lambda values: values["description"].update(num_actions=1, actions=[_FIELD]),
        None,
    ],
)
def test_metadata_of_onnx_that_lies(change, folder, tmp_path):
    """Inputs, columns and sizes that the model does not have are one line when it is read, not at the first step."""
    model = onnx.load(folder / "policy.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == "foundation")
    values = json.loads(entry.value)
    if change is not None:
        change(values)
    entry.value = json.dumps(values) if change is not None else "[" * 100_000
    onnx.save(model, tmp_path / "policy.onnx")
    with pytest.raises(UserError, match="has corrupt metadata") as caught:
        Policy(tmp_path / "policy.onnx")
    assert str(caught.value).isprintable()


_FIELD = {"name": "action", "size": 1, "unit": "", "frame": ""}


def _constants(**values) -> list[onnx.TensorProto]:
    return [onnx.numpy_helper.from_array(numpy.array(value), name) for name, value in values.items()]


_NODE = onnx.helper.make_node
_CUT = [_NODE("Slice", ["large", "from", "to", "axis"], ["actions"])]
_BOUNDS = {"from": [0], "to": [NUM_ACTIONS], "axis": [1], "zero": [0], "one": [1]}
_DOUBLE = [_NODE("Concat", [f"v{k - 1}" if k else "obs"] * 2, [f"v{k}"], axis=1) for k in range(36)]
_BRANCH = onnx.helper.make_graph([_NODE("Identity", ["obs"], ["x"])], "g", [], [])
GRAPHS = {
    "constant of shape": (
        [
            _NODE("ConstantOfShape", ["size"], ["c"]),
            _NODE("ReduceMax", ["c"], ["r"]),
            _NODE("Add", ["obs", "r"], ["large"]),
        ],
        {"size": [600_000_000]},
    ),
    "range": ([_NODE("Range", ["i", "j", "k"], ["large"])], {"i": 0, "j": 10**9, "k": 1}),
    "expanded": ([_NODE("Expand", ["obs", "size"], ["large"])], {"size": [20_000, 1, NUM_OBS]}),
    "tiled": ([_NODE("Tile", ["obs", "size"], ["large"])], {"size": [1, 1 << 28]}),
    "doubling": ([*_DOUBLE, _NODE("Identity", ["v35"], ["large"])], {}),
    "outer product": (
        [_NODE("Add", ["column", "row"], ["o"]), _NODE("Identity", ["obs"], ["large"])],
        {"column": numpy.zeros((20_000, 1), numpy.float32), "row": numpy.zeros((1, 20_000), numpy.float32)},
    ),
    "environments squared": (
        [
            _NODE("Unsqueeze", ["obs", "zero"], ["a"]),
            _NODE("Unsqueeze", ["obs", "one"], ["b"]),
            _NODE("Add", ["a", "b"], ["large"]),
        ],
        {},
    ),
    "padded": ([_NODE("Pad", ["obs", "pads"], ["large"])], {"pads": [0, 0, 0, 1 << 29]}),
    "convolution": (
        [
            _NODE("Reshape", ["obs", "image"], ["i"]),
            _NODE("Conv", ["i", "kernel"], ["c"], pads=[15_000] * 4),
            _NODE("Flatten", ["c"], ["large"]),
        ],
        {"image": [-1, 1, 1, NUM_OBS], "kernel": numpy.ones((1, 1, 1, 1), numpy.float32)},
    ),
    "loop": ([_NODE("Loop", ["i", "", "obs"], ["large"], body=_BRANCH)], {"i": 10**12}),
    "random": ([_NODE("RandomNormal", [], ["large"], shape=[1 << 28])], {}),
    "another domain": ([_NODE("Identity", ["obs"], ["large"], domain="com.microsoft")], {}),
}
"""Operators in front of a cut, and constants: what a kilobyte can ask of onnxruntime."""


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_asks_for_memory_is_not_begun(name, folder, tmp_path):
    """A small ONNX file that asks for gigabytes, or for ever, is one line before onnxruntime opens it."""
    nodes, constants = GRAPHS[name]
    model = onnx.load(folder / "policy.onnx")
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([*nodes, *_CUT])
    model.graph.initializer.extend(_constants(**constants, **_BOUNDS))
    assert len(model.SerializeToString()) < 200_000
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        UserError, match=r"is not an ONNX model that foundation has exported: (its|it has|it computes)"
    ) as caught:
        Policy(tmp_path / "policy.onnx")
    assert str(caught.value).isprintable()


def test_parts_of_onnx_that_an_export_lacks(folder, tmp_path):
    """Functions, weights in another file or in another form, and inputs of an open size are refused by name."""

    def opened(change) -> str:
        model = onnx.load(folder / "policy.onnx")
        change(model)
        (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="is not an ONNX model that foundation has exported") as caught:
            Policy(tmp_path / "policy.onnx")
        return str(caught.value)

    assert "its model has the field 25" in opened(lambda model: model.functions.add(name="f", domain="x"))
    assert "its tensor has the field 14" in opened(lambda m: setattr(m.graph.initializer[0], "data_location", 1))
    assert "its graph has the field 15" in opened(lambda model: model.graph.sparse_initializer.add())
    assert "which it does not hold" in opened(lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 40))
    dim = lambda model: model.graph.input[0].type.tensor_type.shape.dim[1]  # noqa: E731
    assert "any number of environments" in opened(lambda model: setattr(dim(model), "dim_param", "any"))


def test_sizes_that_only_the_description_says(folder, tmp_path):
    """An observation of a billion numbers that the model does not read is not set aside."""
    model = onnx.load(folder / "policy.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == "foundation")
    values = json.loads(entry.value)
    values["description"].update(num_obs=10**12, observations=[_FIELD | {"size": 10**12}])
    entry.value = json.dumps(values)
    onnx.save(model, tmp_path / "policy.onnx")
    with pytest.raises(UserError, match="it describes the inputs"):
        Policy(tmp_path / "policy.onnx")


@pytest.mark.parametrize("name", ["a\0.npz", "a" * 5000 + ".npz"])
def test_what_is_no_name_of_a_file(name):
    """A zero in it, or too many letters."""
    with pytest.raises(UserError, match=r"does not exist|is no name of a file"):
        Policy(name)
