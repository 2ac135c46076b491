"""Policies of 8-bit weights: small, clean, and close to the float policy, in flight too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import onnx
import pytest
import torch

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.export.bundle import make_bundle
from foundation.export.c_int8 import int8_body, quantise_rows
from foundation.export.formats import compile_c, export, find_compiler
from foundation.learning.rounded_weights import RoundedWeights
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.students import make_student, student_cfg_class
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import bundle_of_student, save_student  # noqa: E402
from test_flight import EPISODES, POLICIES, SEED, ExportedActor, environment  # noqa: E402

STRICT = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wconversion", "-Wshadow"]
CASES = {
    "mlp": ("mlp", {}),
    "tanh": ("mlp", {"activation": "tanh"}),
    "relu": ("mlp", {"activation": "relu", "hidden_dims": [32]}),
    "sigmoid": ("mlp", {"activation": "sigmoid"}),
    "gru": ("gru", {"learn_initial_state": True}),
    "lstm": ("lstm", {"num_layers": 2, "learn_initial_state": True}),
    "history": ("history", {"length": 3}),
    "tcn": ("tcn", {}),
}


def bundle(case: str, folder: Path, size: int = 22):
    """Return a new student's bundle; 22 observations and 4 actions make the GRU one of 2,084 parameters."""
    torch.manual_seed(0)
    name, options = CASES[case]
    student = make_student(student_cfg_class(name)(**options), size, 4)
    student.normalizer.update(torch.randn(200, size) * 3 + 1)
    path = save_student(student.requires_grad_(False).eval(), folder / f"{case}.pt", clip_actions=1.0)
    return make_bundle(load_policy(path, Overrides()), "policy")


@pytest.mark.parametrize("case", CASES)
def test_both_formats_stand_8_bits(case, tmp_path):
    """Integers in C and onnxruntime's dynamic 8 bits give a student's actions to 0.05 over the golden sequence."""
    for done in export(bundle(case, tmp_path), tmp_path / "exported", ["c_int8", "onnx_int8"]):
        assert done.check is not None
        assert done.check.difference is not None
        assert done.check.difference <= 0.05


@pytest.mark.parametrize("case", ["mlp", "tanh", "relu", "gru", "lstm"])
def test_far_from_the_golden_sequence(case, tmp_path):
    """Ten times as far out as the golden sequence, where an episode may begin, integers act as the policy.

    Its weights are rounded before, so that the integers alone make the difference.
    """
    torch.manual_seed(0)
    name, options = CASES[case]
    student = make_student(student_cfg_class(name)(**options), 22, 4).requires_grad_(False).eval()
    student.normalizer.update(torch.randn(200, 22) * 3 + 1)
    RoundedWeights(student)
    made = make_bundle(load_policy(save_student(student, tmp_path / "student.pt"), Overrides()), "policy")
    (done,) = export(made, tmp_path / "exported", ["c_int8"])
    library = tmp_path / "policy_int8.so"
    compile_c(str(find_compiler()), done.files[1], library, shared=True)
    obs = 10 * made.golden.obs
    state = student.initial_state(obs.shape[1])
    policy = Policy(library)
    for rows in obs:
        output, state = student.step(torch.from_numpy(rows), state)
        expected = output.mean.numpy()
        assert numpy.abs(policy.step(rows) - expected).max() <= 2e-3 * max(1.0, numpy.abs(expected).max())


@pytest.mark.parametrize("case", ["gru", "lstm"])
def test_memory_does_not_drift(case, tmp_path):
    """Over an episode of 1,000 steps without a reset, integers stay as close to the policy as over a short one."""
    made = bundle(case, tmp_path)
    (done,) = export(made, tmp_path / "exported", ["c_int8"])
    library = tmp_path / "policy_int8.so"
    compile_c(str(find_compiler()), done.files[1], library, shared=True)
    policy = Policy(library)
    obs = numpy.random.default_rng(1).normal(1, 3, (1000, 1, 22)).cumsum(0).clip(-8, 10).astype(numpy.float32)
    state = made.network.initial_state(1)
    with torch.no_grad():
        for row in obs:
            output, state = made.network.step(torch.from_numpy(row), state)
            assert numpy.abs(policy.step(row) - output.mean.clamp(-1, 1).numpy()).max() <= 0.05


@pytest.mark.parametrize("case", ["gru", "lstm"])
def test_the_model_of_8_bits_has_no_float_layer(case, tmp_path):
    """Products of recurrent layers are those of 8 bits too; several robots do not change each other's actions."""
    made = bundle(case, tmp_path)
    (done,) = export(made, tmp_path / "exported", ["onnx_int8"])
    graph = onnx.load(done.files[0]).graph
    assert not {node.op_type for node in graph.node} & {"GRU", "LSTM", "Gemm", "MatMul"}
    assert all(len(part.dims) < 2 or part.data_type == onnx.TensorProto.INT8 for part in graph.initializer)
    together, alone = Policy(done.files[0]), Policy(done.files[0])
    for rows in numpy.random.default_rng(0).normal(1, 3, (8, 3, 22)).astype(numpy.float32):
        assert numpy.array_equal(together.step(rows * [[1], [1], [9]])[0], alone.step(rows[0]))


def test_both_check_themselves(tmp_path):
    """Files of 8 bits replay the golden sequence of the float ones, by the tolerance of 8 bits."""
    made = bundle("gru", tmp_path)
    for done in export(made, tmp_path / "exported", ["c_int8", "onnx_int8"]):
        path = done.files[0]
        if done.format == "c_int8":
            path = done.files[1].with_suffix(".so")
            compile_c(str(find_compiler()), done.files[1], path, shared=True)
        policy = Policy(path)
        assert policy.description.weight_bits == 8
        assert 1e-5 < policy.check() <= 0.05


@pytest.mark.parametrize("case", ["mlp", "gru", "lstm", "history", "tcn"])
def test_the_c_is_clean(case, tmp_path):
    """No warning; no float but at both ends; sanitisers and, where there is one, valgrind find nothing."""
    list(export(bundle(case, tmp_path), tmp_path / "exported", ["c_int8"]))
    folder = tmp_path / "exported"
    header = (folder / "policy_int8.h").read_text()
    step = header[header.index("    int32_t *work") :]
    computed = step[step.index("/*", step.index("/*") + 2) : step.rindex("for (int i = 0; i < 4;")]
    assert "float" not in computed
    assert "malloc" not in header
    compiler = str(find_compiler())
    checkers = [(["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], [])]
    if shutil.which("valgrind"):
        checkers.append((["-g", "-O1"], ["valgrind", "-q", "--error-exitcode=9"]))
    for flags, run_by in checkers:
        command = [compiler, *STRICT, *flags, "policy_int8_test.c", "-o", "test", "-lm"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:2000]
        said = subprocess.run([*run_by, "./test"], cwd=folder, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr[:2000]
        assert said.stdout.startswith("PASS")


def test_raptors_gru_is_small(tmp_path):
    """The GRU of 2,084 parameters takes less than 12 KB in float32 and 4 KB in 8 bits, all constant arrays counted."""
    made = bundle("gru", tmp_path)
    body = int8_body(made.program, made.golden, "policy")
    for done in export(made, tmp_path / "exported", ["c", "c_int8"]):
        compile_c(str(find_compiler()), done.files[1], tmp_path / f"{done.format}.so", shared=True)
    assert body.weight_bytes + 4 * made.program.state_size < 4096
    assert 4 * (made.program.num_weights + made.program.state_size) < 12_000


def test_rows_are_rounded_by_their_largest():
    """A row's largest number becomes 127; the others are off by half a step at most; a row of zeros stays one."""
    weight = numpy.array([[1.0, -2.0, 0.3], [0.0, 0.0, 0.0]], numpy.float32)
    rows = quantise_rows(weight)
    assert rows.weight.tolist() == [[64, -127, 19], [0, 0, 0]]
    assert numpy.abs(rows.weight * rows.scale[:, None] - weight).max() <= 1.0 / 127


@pytest.mark.parametrize("name", POLICIES)
def test_integers_fly_as_the_policy(name, tmp_path):
    """Compiled integers fly 64 episodes with 0.98 of the policy's return."""
    path, group = POLICIES[name]
    loaded = load_policy(path, Overrides())
    expected = evaluate(
        environment(QuadcopterPointCtrlEnv), PolicyActor(loaded.network, ObsSelector([group])), EPISODES, SEED
    )
    (done,) = export(make_bundle(loaded), tmp_path / "exported", ["c_int8"])
    library = tmp_path / "policy_int8.so"
    compile_c(str(find_compiler()), done.files[1], library, shared=True)
    flown = evaluate(environment(QuadcopterPointCtrlEnv), ExportedActor(library, group), EPISODES, SEED)
    assert float(flown.returns.mean()) >= 0.98 * float(expected.returns.mean())


def test_each_robot_has_its_memory(tmp_path):
    """The library keeps the integers of several robots apart, and a reset begins one of them anew."""
    (done,) = export(bundle("gru", tmp_path), tmp_path / "exported", ["c_int8"])
    library = tmp_path / "policy_int8.so"
    compile_c(str(find_compiler()), done.files[1], library, shared=True)
    together, alone = Policy(library), Policy(library)
    obs = numpy.random.default_rng(0).normal(1, 3, (8, 2, 22)).astype(numpy.float32)
    expected = [alone.step(row) for row in obs[:, 0]]
    for step, rows in enumerate(obs):
        together.reset([False, step == 4])
        actions = together.step(rows)
        assert numpy.array_equal(actions[0], expected[step])
        if step == 4:
            alone.reset()
            assert numpy.array_equal(actions[1], alone.step(rows[1]))


def test_what_has_no_integers(tmp_path, monkeypatch):
    """Layers and activations that C of 8 bits lacks are named, with the format to take."""
    monkeypatch.setitem(CASES, "gelu", ("mlp", {"activation": "gelu"}))
    for made, said in (
        (bundle("gelu", tmp_path), "activation 'gelu'.*Take format c"),
        (bundle_of_student("discrete", tmp_path), "arg_max.*take format c"),
        (bundle_of_student("cnn", tmp_path), "take format c"),
    ):
        with pytest.raises(UserError, match=said):
            list(export(made, tmp_path / "exported", ["c_int8"]))
        assert not (tmp_path / "exported").exists()
