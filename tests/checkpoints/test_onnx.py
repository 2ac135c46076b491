"""Exported ONNX policies: against the library that exported them, and against onnxruntime."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from rsl_rl_cases import CASES, NUM_ENVS, NUM_STEPS  # noqa: E402
from written_once import of_release  # noqa: E402

CASE = {case.name: case for case in CASES}
FILES = [
    *(("3.0.1", name, f"policy_{opset}") for name in ("normalized", "tanh", "gru_2", "lstm_1", "distilled_gru")
      for opset in (11, 18)),
    *(("4.0.1", name, "policy") for name in ("gru_1", "heteroscedastic")),
    *(("5.5.1", n, "policy") for n in ("two_groups", "swish", "gru_2", "lstm_2", "heteroscedastic", "beta")),
]  # fmt: skip
"""Release, case, file: Isaac Lab's exporter of RSL-RL 3 policies in two operator sets, and RSL-RL's own."""
each = pytest.mark.parametrize(("version", "name", "file"), FILES, ids=lambda part: part)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function of the folder of a release's exports."""
    return partial(of_release, tmp_path_factory, "write_onnx_policies.py")


class Runtime:
    """The file run by onnxruntime, one environment at a time: the batch is fixed to 1."""

    def __init__(self, path, num_envs):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        memory = self.session.get_inputs()[1:]
        self.state = [{i.name: np.zeros(i.shape, np.float32) for i in memory} for _ in range(num_envs)]

    def act(self, obs):
        """Return every environment's action."""
        actions = []
        for row, state in zip(obs.numpy(), self.state, strict=True):
            action, *after = self.session.run(None, {"obs": row[None], **state})
            state.update(zip(state, after, strict=True))
            actions.append(action[0])
        return torch.from_numpy(np.stack(actions))

    def reset(self, dones):
        """Forget."""
        for done, state in zip(dones, self.state, strict=True):
            if done:
                state.update({name: np.zeros_like(value) for name, value in state.items()})


@each
def test_same_actions_as_library_and_runtime(written, version, name, file):
    """Over 20 steps with resets of part of 6 envs, actions equal the release's own and onnxruntime's to 1e-5."""
    place = written(version) / name
    expected, path = torch.load(place / "expected.pt"), place / "exported" / f"{file}.onnx"
    teacher, runtime = TeacherPolicyWrapper(path), Runtime(path, NUM_ENVS)
    for step in range(NUM_STEPS):
        obs = TensorDict({group: values[step] for group, values in expected["obs"].items()}, batch_size=[NUM_ENVS])
        actions = teacher.act(obs)
        assert (actions - expected["actions"][step]).abs().max() <= 1e-5, step
        assert (actions - runtime.act(teacher.select(obs))).abs().max() <= 1e-5, step
        teacher.reset(expected["dones"][step])
        runtime.reset(expected["dones"][step])


@each
def test_what_is_told(written, version, name, file):
    """Sizes, activation, normaliser, memory and groups are read from the file and the config beside it."""
    case, teacher = CASE[name], TeacherPolicyWrapper(written(version) / name / "exported" / f"{file}.onnx")
    told = teacher.describe()
    assert told["format"] == "ONNX export" and teacher.hidden_dims == list(case.hidden_dims)
    assert told["activation"] == case.activation and told["obs_normalization"] == case.normalized
    assert teacher.obs_groups == list(case.actor_groups) and not teacher.has_std and not teacher.has_value
    memory = "none" if case.rnn is None else f"{case.rnn[0]} {case.rnn[1]} x {case.rnn[2]}"
    assert told["recurrence"] == memory and (teacher.state_size > 0) == (case.rnn is not None)
    if case.rnn is None:
        sizes = [teacher.num_obs, *case.hidden_dims, teacher.num_actions * (2 if name[:4] in ("hete", "beta") else 1)]
        assert teacher.num_parameters == sum(i * o + o for i, o in pairwise(sizes))


@each
def test_a_step_stays_on_its_device(written, version, name, file):
    """A step neither reads numbers back to the host nor mixes devices: it works where tensors have no numbers."""
    teacher = TeacherPolicyWrapper(written(version) / name / "exported" / f"{file}.onnx").to("meta")
    state = teacher.initial_state(5, "meta")
    for _ in range(2):
        output, state = teacher.step(torch.empty(5, teacher.num_obs, device="meta"), state)
    assert output.mean.shape == (5, teacher.num_actions) and output.mean.is_meta


@pytest.mark.parametrize("name", ["gru_2", "lstm_2", "beta"])
def test_sequence_is_step_repeated(written, name):
    """One call over a sequence with resets inside gives what single steps give."""
    teacher = TeacherPolicyWrapper(written("5.5.1") / name / "exported" / "policy.onnx")
    obs, resets = torch.randn(9, 4, teacher.num_obs), torch.rand(9, 4) < 0.3
    output, final = teacher.sequence(obs, None, resets)
    state = teacher.initial_state(4)
    for step in range(9):
        state = teacher.reset_state(state, resets[step])
        single, state = teacher.step(obs[step], state)
        assert torch.allclose(single.mean, output.mean[step], atol=1e-6)
    assert state is None or torch.allclose(state, final, atol=1e-6)


def save(path, nodes, weights=None, inputs=None, outputs=None, opset=18, **options):
    """Write a small model; its observation has 6 numbers."""
    inputs = {"obs": [1, 6]} if inputs is None else inputs
    outputs = {"actions": [None, None]} if outputs is None else outputs
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, **options)
    onnx.save(model, path)
    return path


def node(kind, *inputs, to="actions", **attributes):
    """Return a node."""
    return helper.make_node(kind, list(inputs), [to], **attributes)


RNG = np.random.default_rng(0)
ROW, MATRIX = RNG.normal(size=6).astype(np.float32), RNG.normal(size=(6, 6)).astype(np.float32)
KERNEL = RNG.normal(size=(2, 1, 2, 2)).astype(np.float32)


def ints(*values):
    """Return shapes, axes, indices."""
    return np.array(values, np.int64)


IMAGE = [node("Reshape", "obs", "shape", to="image")]
MODELS = {
    "clip": ([node("Clip", "obs", "low", "high")], {"low": np.float32(-0.5), "high": np.float32(0.3)}),
    "open clip": ([node("Clip", "obs", "", "high")], {"high": np.float32(0.3)}),
    "matmul": ([node("MatMul", "obs", "w", to="x"), node("Add", "x", "b")], {"w": MATRIX, "b": ROW}),
    "gemm scaled": ([node("Gemm", "obs", "w", "b", alpha=0.5, beta=2.0)], {"w": MATRIX, "b": ROW}),
    "gemm transposed": ([node("Gemm", "w", "obs", transB=1, to="y"), node("Transpose", "y", perm=[1, 0])],
                        {"w": MATRIX}),
    "concat": ([node("Concat", "obs", "b", "obs", axis=1)], {"b": ROW[None]}),
    "split": ([helper.make_node("Split", ["obs", "s"], ["l", "r"], axis=1), node("Concat", "r", "l", axis=-1)],
              {"s": ints(2, 4)}),
    "gather": ([node("Gather", "obs", "i", axis=1)], {"i": ints(4, 0, -1)}),
    "gather one": ([node("Gather", "obs", "i", axis=0, to="x"), node("Unsqueeze", "x", "axes")],
                   {"i": np.int64(0), "axes": ints(0)}),
    "slice": ([node("Slice", "obs", "s", "e", "a", "t")], {"s": ints(5), "e": ints(-7), "a": ints(1), "t": ints(-2)}),
    "shape": ([node("Shape", "obs", to="n"), node("ConstantOfShape", "n", to="z"), node("Add", "obs", "z")], {}),
    "expand": ([node("Expand", "b", "n", to="e"), node("Mul", "obs", "e")], {"b": ROW[:1], "n": ints(1, 6)}),
    "where": ([node("Greater", "obs", "b", to="c"), node("Where", "c", "obs", "b")], {"b": ROW}),
    "mean": ([node("ReduceMean", "obs", "a", to="m"), node("Sub", "obs", "m")], {"a": ints(1)}),
    "norm": ([node("ReduceSum", "obs", to="m"), node("Softmax", "obs", to="p"), node("Mul", "p", "m")], {}),
    "layer norm": ([node("LayerNormalization", "obs", "w", "b", axis=-1)], {"w": ROW, "b": ROW + 1}),
    "unary": ([node("Abs", "obs", to="1"), node("Sqrt", "1", to="2"), node("Exp", "2", to="3"),
               node("Log", "3", to="4"), node("Neg", "4", to="5"), node("Erf", "5", to="6"),
               node("Softsign", "6", to="7"), node("HardSwish", "7", to="8"),
               node("HardSigmoid", "8", to="9"), node("Sin", "9")], {}),
    "pow": ([node("Pow", "obs", "p", to="x"), node("Reciprocal", "x")], {"p": np.float32(2)}),
    "extremes": ([node("Max", "obs", "b", "z", to="x"), node("Min", "x", "b")], {"b": ROW, "z": np.float32(0)}),
    "per row": ([node("Reshape", "obs", "shape", to="m"), node("Add", "m", "c", to="s"), node("Flatten", "s", axis=0)],
                {"shape": ints(3, 2), "c": ROW.reshape(3, 2)}),
    "pad": ([node("Pad", "obs", "p", "v")], {"p": ints(0, 2, 0, 1), "v": np.float32(0.5)}),
    "pad of an image": ([*IMAGE, node("Pad", "image", "p", to="y", mode="reflect"), node("Flatten", "y")],
                        {"shape": ints(1, 1, 2, 3), "p": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
    "convolution": ([*IMAGE, node("Conv", "image", "k", to="y", pads=[1, 0, 0, 1]),
                     node("MaxPool", "y", to="p", kernel_shape=[2, 2], pads=[0, 1, 1, 0]), node("Flatten", "p")],
                    {"shape": ints(1, 1, 2, 3), "k": KERNEL}),
    "pooling": ([*IMAGE, node("AveragePool", "image", kernel_shape=[1, 2], to="a"), node("Flatten", "a")],
                {"shape": ints(1, 1, 2, 3)}),
    "batch norm": ([node("Reshape", "obs", "shape", to="image"),
                    node("BatchNormalization", "image", "w", "b", "m", "v", to="y"),
                    node("GlobalAveragePool", "y", to="p"), node("Flatten", "p")],
                   {"shape": ints(1, 3, 1, 2), **{n: np.abs(ROW[:3]) + 0.5 for n in "wbmv"}}),
    "constants": ([node("Constant", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], to="c"), node("Mul", "obs", "c")], {}),
    "cast": ([helper.make_node("Cast", ["obs"], ["d"], to=11),
              helper.make_node("Cast", ["d"], ["actions"], to=1)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_operators(name, tmp_path):
    """Each operator gives for five envs at once what onnxruntime gives for each of them."""
    nodes, weights = MODELS[name]
    path = save(tmp_path / "policy.onnx", nodes, weights)
    teacher, obs = TeacherPolicyWrapper(path), torch.randn(5, 6)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = np.stack([session.run(None, {"obs": row[None].numpy()})[0].reshape(-1) for row in obs])
    assert np.abs(teacher.act(obs).numpy() - wanted).max() <= 1e-5


@pytest.mark.parametrize("before_reset", [0, 1])
def test_gru_without_biases(before_reset, tmp_path):
    """Both kinds of reset gates, without biases, over steps, against onnxruntime."""
    weights = {"w": RNG.normal(size=(1, 12, 6)), "r": RNG.normal(size=(1, 12, 4)), "axes": ints(0)}
    weights = {key: value.astype(np.float32) if key != "axes" else value for key, value in weights.items()}
    gru = helper.make_node(
        "GRU", ["x", "w", "r", "", "", "h_in"], ["y", "h_out"], hidden_size=4, linear_before_reset=before_reset
    )
    nodes = [node("Unsqueeze", "obs", "axes", to="x"), gru, node("Squeeze", "y", to="actions")]
    shapes = {"obs": [1, 6], "h_in": [1, 1, 4]}
    path = save(tmp_path / "policy.onnx", nodes, weights, shapes, {"actions": [4], "h_out": [1, 1, 4]})
    teacher = TeacherPolicyWrapper(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    memory = [np.zeros((1, 1, 4), np.float32) for _ in range(3)]
    for _ in range(5):
        obs = torch.randn(3, 6)
        wanted = []
        for index, row in enumerate(obs):
            action, memory[index] = session.run(None, {"obs": row[None].numpy(), "h_in": memory[index]})
            wanted.append(action)
        assert np.abs(teacher.act(obs).numpy() - np.stack(wanted)).max() <= 1e-5


TANH = [node("Tanh", "obs")]
REFUSED = {
    "unknown operator": (dict(nodes=[node("Einsum", "obs", equation="ij->ij")]), "operator 'Einsum'"),
    "two observations": (dict(nodes=TANH, inputs={"obs": [1, 6], "time_step": [1, 1]}), "one of them, flat"),
    "unknown memory": (dict(nodes=TANH, inputs={"obs": [1, 6], "past": [1, 1, 4]}), "neither an observation nor"),
    "memory that is not written": (dict(nodes=TANH, inputs={"obs": [1, 6], "h_in": [1, 1, 4]}), "neither"),
    "several envs": (dict(nodes=TANH, inputs={"obs": [4, 6]}), "for several environments at once"),
    "open size": (dict(nodes=TANH, inputs={"obs": [1, None]}), "left open"),
    "nan": (dict(nodes=[node("Add", "obs", "b")], weights={"b": ROW * np.nan}), "NaN"),
    "shapes": (dict(nodes=[node("Add", "obs", "b")], weights={"b": ROW[:4]}), "cannot be run"),
    "order": (dict(nodes=[node("Tanh", "x"), node("Tanh", "obs", to="x")]), "not an undamaged ONNX model"),
    "huge": (dict(nodes=[node("ConstantOfShape", "n", to="z"), node("Add", "obs", "z")],
                  weights={"n": ints(1 << 40, 6)}), "too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name, tmp_path):
    """Unknown operators, inputs, shapes and weights that are not finite: one line that names the file and the cause."""
    options, words = REFUSED[name]
    path = save(tmp_path / "policy.onnx", **options)
    with pytest.raises(UserError, match=words) as caught:
        TeacherPolicyWrapper(path)
    assert "\n" not in str(caught.value) and "policy.onnx" in str(caught.value)


@pytest.mark.parametrize("name", ["actions", "continuous_actions", "mean"])
def test_the_action_is_told_from_a_value_before_it(name, tmp_path):
    """Among several outputs the action is known by its name, wherever it stands."""
    nodes = [node("ReduceSum", "obs", to="value"), node("Tanh", "obs", to=name)]
    path = save(tmp_path / "policy.onnx", nodes, outputs={"value": [1, 1], name: [1, 6]})
    obs = torch.randn(3, 6)
    assert torch.allclose(TeacherPolicyWrapper(path).act(obs), obs.tanh())


def test_a_counter_of_whole_numbers_can_be_run_as_it_is(tmp_path):
    """A policy with a counter beside its observation is not read, and the advice names what runs it."""
    path = save(tmp_path / "policy.onnx", TANH, inputs={"obs": [1, 6]})
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("time_step", TensorProto.INT64, [1, 1]))
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"'time_step'.*distill\.teacher\.run_as_is=true"):
        TeacherPolicyWrapper(path)


def test_an_inner_graph_is_refused(tmp_path):
    """A model that branches is refused by the operator's name."""
    branch = helper.make_graph([node("Tanh", "obs", to="y")], "b", [], [helper.make_empty_tensor_value_info("y")])
    condition = helper.make_node("If", ["c"], ["actions"], then_branch=branch, else_branch=branch)
    path = save(tmp_path / "policy.onnx", [condition], {"c": np.array(True)})
    with pytest.raises(UserError, match="operator 'If' with an inner graph"):
        TeacherPolicyWrapper(path)


def move(path, location, **more):
    """Let the first weight of a model lie in another file."""
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, location, **more)
    weight.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("location", "more", "words"),
    [
        ("../weights.bin", {}, "no plain file in its own folder"),
        ("/etc/hostname", {}, "no plain file in its own folder"),
        ("link.bin", {}, "no plain file in its own folder"),
        ("missing.bin", {}, "not beside it: copy both files"),
        ("weights.bin", {"offset": 8}, "not an undamaged ONNX model"),
        ("weights.bin", {"offset": 4, "length": 24}, "reads beyond the end of 'weights.bin'"),
        ("weights.bin", {"offset": 1 << 40}, "reads beyond the end of 'weights.bin'"),
    ],
)
def test_weights_beside_the_file(location, more, words, tmp_path):
    """Weights are read from the model's own folder only, and only as many as there are."""
    folder = tmp_path / "inner"
    folder.mkdir()
    path = save(folder / "policy.onnx", [node("Add", "obs", "b")], {"b": ROW})
    for place in (folder, tmp_path):
        (place / "weights.bin").write_bytes(ROW.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    move(path, "weights.bin")
    assert torch.allclose(TeacherPolicyWrapper(path).act(torch.zeros(2, 6)), torch.from_numpy(ROW).expand(2, 6))
    path = save(folder / "policy.onnx", [node("Add", "obs", "b")], {"b": ROW})
    move(path, location, **more)
    with pytest.raises(UserError, match=words):
        TeacherPolicyWrapper(path)


def test_a_file_of_another_kind(tmp_path):
    """A missing, an empty and a foreign file named .onnx are told apart."""
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("hello")
    shutil.copy(save(tmp_path / "policy.onnx", TANH), tmp_path / "policy.bin")
    for name, words in (("none.onnx", "does not exist"), ("empty.onnx", "is empty"), ("text.onnx", "ONNX")):
        with pytest.raises(UserError, match=words):
            TeacherPolicyWrapper(tmp_path / name)
    assert TeacherPolicyWrapper(tmp_path / "policy.bin").num_obs == 6


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    """Where the package onnx is missing, one line says what to install."""
    path = save(tmp_path / "policy.onnx", TANH)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs the package onnx: pip install -e '\.\[export\]'"):
        TeacherPolicyWrapper(path)
