"""Exported files in their own runtimes against ``policy.step``: 150 steps, resets of part of the environments."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy
import onnx
import onnxruntime
import pytest
import torch

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.deploy.numpy_policy import KINDS
from foundation.export import c_operations, onnx_file, torch_step
from foundation.export.bundle import make_bundle
from foundation.export.formats import FORMATS, check_formats, compile_c, export, find_compiler
from foundation.export.program import kind_of
from foundation.export.torch_export import read_torch_export
from foundation.policies import layers
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.distribution import Deterministic

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import (  # noqa: E402
    ACTIVATIONS,
    ENVS,
    NUM_ACTIONS,
    NUM_OBS,
    STUDENTS,
    bundle_of,
    bundle_of_student,
    fly,
    student,
    teachers,
)

TOLERANCE = 1e-5
STRICT = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wconversion", "-Wshadow"]
DATA = HERE.parent / "checkpoints"


def written(bundle, folder, *formats):
    """Export, and return the first file of each format."""
    return [done.files[0] for done in export(bundle, folder, formats)]


def by_onnxruntime(path, flight):
    """Replay with onnxruntime alone, as a user would who has read the metadata."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["foundation"])
    initial = numpy.array(facts["initial_state"], numpy.float32)
    start = {
        part["input"]: numpy.stack([initial[a : a + size] for a, size in part["columns"]])[:, None]
        for part in facts["memory"]
    }
    memory = {name: numpy.repeat(value, ENVS, axis=1) for name, value in start.items()}
    actions = []
    for obs, resets in zip(flight.obs, flight.resets, strict=True):
        memory = {name: numpy.where(resets[None, :, None], start[name], value) for name, value in memory.items()}
        action, *after = session.run(None, {"obs": obs, **memory})
        memory = dict(zip(memory, after, strict=True))
        actions.append(action)
    return numpy.stack(actions)


def by_torchscript(path, flight):
    """Replay with PyTorch alone."""
    module = torch.jit.load(str(path))
    actions = []
    for obs, resets in zip(torch.from_numpy(flight.obs), torch.from_numpy(flight.resets), strict=True):
        module.reset_envs(resets)
        actions.append(module(obs).numpy())
    return numpy.stack(actions)


def by_torch_export(path, flight):
    """Replay with PyTorch alone, as a user would who has read the extra file."""
    extra = {"foundation.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    start = torch.tensor(json.loads(extra["foundation.json"])["initial_state"], dtype=torch.float32)
    state = start.repeat(ENVS, 1)
    actions = []
    for obs, resets in zip(torch.from_numpy(flight.obs), torch.from_numpy(flight.resets), strict=True):
        if len(start):
            action, state = module(obs, torch.where(resets[:, None], start, state))
        else:
            action = module(obs)
        actions.append(action.numpy())
    return numpy.stack(actions)


def by_policy(path, flight):
    """Replay with ``foundation.deploy``."""
    policy = Policy(path)
    actions = []
    for obs, resets in zip(flight.obs, flight.resets, strict=True):
        policy.reset(resets)
        actions.append(policy.step(obs))
    return numpy.stack(actions)


def check(bundle, network, folder, clip=None, formats=("onnx", "torchscript", "npz", "so"), steps=150):
    """Every runtime gives the policy's actions, to 1e-5 in units of the largest one where that is above 1."""
    flight = fly(network, clip, steps)
    limit = TOLERANCE * max(1.0, float(numpy.abs(flight.actions).max()))
    runs = {
        "onnx": by_onnxruntime, "torchscript": by_torchscript, "torch_export": by_torch_export, "npz": by_policy,
        "so": by_policy,
    }  # fmt: skip
    for name, path in zip(formats, written(bundle, folder, *formats), strict=True):
        difference = numpy.abs(runs[name](path, flight) - flight.actions).max()
        assert difference <= limit, (name, difference)
        if name == "onnx":
            assert numpy.abs(by_policy(path, flight) - flight.actions).max() <= limit


@pytest.mark.parametrize("case", STUDENTS)
def test_students_in_every_runtime(case, tmp_path):
    """onnxruntime, TorchScript, NumPy and compiled C equal a student's steps to 1e-5."""
    check(bundle_of_student(case, tmp_path), student(case), tmp_path / "exported")


@pytest.mark.parametrize("case", STUDENTS)
def test_a_robot_alone_acts_as_among_many(case, tmp_path):
    """NumPy computes one robot by other calls than a batch, and gives the same actions."""
    bundle = bundle_of_student(case, tmp_path)
    (path,) = written(bundle, tmp_path, "npz")
    policy = Policy(path)
    for obs, begins, expected in zip(
        bundle.golden.obs[:, 1], bundle.golden.resets[:, 1], bundle.golden.actions[:, 1], strict=True
    ):
        policy.reset([begins])
        assert numpy.abs(policy.step(obs) - expected).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("normalized", [True, False], ids=["normalized", "plain"])
@pytest.mark.parametrize(
    "case",
    ["mlp", "gaussian", "tanh", "gru", "gru-2-layers", "lstm", "history", "tcn", "cnn", "cnn-of-frames", "cnn-impala"],
)
def test_500_steps_in_every_runtime(case, normalized, tmp_path):
    """With and without a normaliser, 500 steps with resets of part of the environments: no runtime drifts from 1e-5."""
    bundle = bundle_of_student(case, tmp_path, normalized=normalized)
    moments = [op.arrays["mean"] for op in bundle.program.operations if op.kind == "normalize"]
    assert any(mean.any() for mean in moments) == normalized  # a normaliser that is not fitted is the identity
    formats = ("onnx", "torchscript", "torch_export", "npz", "so")
    check(bundle, student(case, normalized), tmp_path / "exported", formats=formats, steps=500)


@pytest.mark.parametrize("case", teachers())
def test_teachers_in_every_runtime(case, tmp_path):
    """Policies of other libraries' shapes too, images and a critic with a memory of its own among them."""
    network = teachers()[case]
    check(bundle_of(network, tmp_path), network, tmp_path / "exported", steps=40 if case == "images" else 150)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, tmp_path, monkeypatch):
    """Every activation is the same function in every runtime."""
    monkeypatch.setitem(STUDENTS, activation, ("mlp", {"activation": activation, "hidden_dims": [8, 8]}))
    check(bundle_of_student(activation, tmp_path), student(activation), tmp_path / "exported", steps=20)


def test_actions_are_bounded_as_in_training(tmp_path):
    """A policy whose actions are clipped outside of it gives clipped ones once exported."""
    network = student("mlp")
    clip = float(numpy.abs(fly(network).actions).max()) / 4
    bundle = bundle_of_student("mlp", tmp_path, clip_actions=clip)
    assert bundle.description.action_clip == clip
    check(bundle, network, tmp_path / "exported", clip)


@pytest.mark.parametrize(
    "case",
    [
        "mlp",
        "gru",
        "gru-2-layers",
        "lstm",
        "history",
        "tcn",
        "images",
        "choices",
        "shaped",
        "beta",
        "cnn-of-images-alone",
        "cnn-of-frames",
        "cnn-impala",
    ],
)
def test_c_is_clean_and_tests_itself(case, tmp_path):
    """The C compiles without a warning, prints PASS, and address and undefined-behaviour sanitisers find nothing."""
    bundle = bundle_of_student(case, tmp_path) if case in STUDENTS else bundle_of(teachers()[case], tmp_path)
    folder = tmp_path / "exported"
    written(bundle, folder, "c")
    compiler = find_compiler()
    assert compiler is not None
    test = tmp_path / "test"
    sanitise = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    for file, flags in (("policy_test.c", sanitise), ("policy.c", ["-O2", "-c"])):
        command = [compiler, *STRICT, *flags, file, "-o", str(test), "-lm"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:2000]
        if file == "policy_test.c":
            said = subprocess.run([str(test)], capture_output=True, text=True, check=False)
            assert said.returncode == 0, said.stderr[:2000]
            assert said.stdout.startswith("PASS"), said.stdout
    assert "malloc" not in (folder / "policy.h").read_text()


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.parametrize("case", ["mlp", "gru"])
def test_valgrind_finds_nothing(case, tmp_path):
    """No value that was not set is read, and nothing beside the arrays: valgrind's check of the same program."""
    written(bundle_of_student(case, tmp_path), tmp_path, "c")
    command = [str(find_compiler()), "-std=c99", "-g", "-O1", "policy_test.c", "-o", "test", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    checked = ["valgrind", "-q", "--error-exitcode=9", "./test"]
    said = subprocess.run(checked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[:2000]
    assert said.stdout.startswith("PASS")


def test_the_header_is_cpp_too(tmp_path):
    """A C++ compiler takes the header as it is."""
    written(bundle_of_student("lstm", tmp_path), tmp_path / "exported", "c")
    source = tmp_path / "exported" / "robot.cpp"
    source.write_text('#include "policy.h"\nint main() { policy_state s; policy_reset(&s); return 0; }\n')
    done = subprocess.run(
        ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)], check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("end", ["*/", "*\\\n/", "*??/\n/", "*\\\r\n/", "*\\ \n/", "*\x85/", "/*/", "**//"])
def test_names_of_a_file_are_no_code(end, tmp_path):
    """An observation group of a received checkpoint cannot end the comment that names it: nothing of it is run."""
    ran = tmp_path / "ran"
    begin = end.replace("*", "#").replace("/", "*").replace("#", "/")
    code = f'\n#include <stdlib.h>\nvoid __attribute__((constructor)) f(void) {{ system("touch {ran}"); }}\n'
    bundle = bundle_of_student("mlp", tmp_path, obs_groups=[f"name {end}{code}{begin}"])
    list(export(bundle, tmp_path, ["c", "so"]))
    seen = subprocess.run(["cc", "-std=c99", "-E", "-P", str(tmp_path / "policy.h")], capture_output=True, text=True)
    assert seen.returncode == 0
    assert "touch" not in seen.stdout
    assert not ran.exists()


def test_c_finds_a_wrong_weight(tmp_path):
    """The C program's own test fails once a weight has changed."""
    written(bundle_of_student("gru", tmp_path), tmp_path / "exported", "c")
    header = tmp_path / "exported" / "policy.h"
    text = header.read_text()
    place = text.index("{\n    ", text.index("_weight[")) + len("{\n    ")
    header.write_text(f"{text[:place]}7.5f{text[text.index(',', place) :]}")
    compile_c(str(find_compiler()), tmp_path / "exported" / "policy_test.c", tmp_path / "test")
    said = subprocess.run([str(tmp_path / "test")], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert said.stdout.startswith("FAIL")


def test_c_refuses_what_is_not_finite(tmp_path):
    """An observation that is NaN changes nothing, memory included; the step says 1."""
    written(bundle_of_student("gru", tmp_path), tmp_path / "exported", "c")
    source = tmp_path / "exported" / "nan.c"
    source.write_text(
        '#include <stdio.h>\n#include "policy.h"\nint main(void) {\n    policy_state state, before;\n'
        "    float obs[POLICY_NUM_OBS] = {0.0f}, actions[POLICY_NUM_ACTIONS] = {9.0f};\n    policy_reset(&state);\n"
        "    policy_step(&state, obs, actions);\n    before = state;\n    obs[3] = NAN;\n    actions[0] = 9.0f;\n"
        '    printf("%d ", policy_step(&state, obs, actions));\n'
        '    printf("%d %g", memcmp(&state, &before, sizeof state), (double)actions[0]);\n    return 0;\n}\n'
    )
    compile_c(str(find_compiler()), source, tmp_path / "nan")
    said = subprocess.run([str(tmp_path / "nan")], capture_output=True, text=True, check=False)
    assert said.stdout == "1 0 9"


def test_onnx_has_rsl_rls_names(tmp_path):
    """Recurrent policies have RSL-RL's inputs, any number of environments, and our own reader plays the file."""
    bundle = bundle_of_student("lstm", tmp_path)
    (path,) = written(bundle, tmp_path / "exported", "onnx")
    model = onnx.load(path)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    memory = [2, "num_envs", 16]
    assert shapes == {
        "obs": ["num_envs", NUM_OBS], "h_in": memory, "c_in": memory,
        "actions": ["num_envs", NUM_ACTIONS], "h_out": memory, "c_out": memory,
    }  # fmt: skip


@pytest.mark.parametrize("case", ["mlp", "tanh", "gru", "history", "tcn"])
def test_onnx_is_read_again(case, tmp_path):
    """Our reader of ONNX files gives the student's actions; its memory begins at zero, as these students' does."""
    network = student(case)
    (path,) = written(bundle_of_student(case, tmp_path), tmp_path / "exported", "onnx")
    read = load_policy(path, Overrides()).network
    flight = fly(network, steps=30)
    assert numpy.abs(fly(read, steps=30).actions - flight.actions).max() <= TOLERANCE


def test_torchscript_as_isaac_lab_loads_it(tmp_path):
    """``policy.pt`` has forward(obs) and reset(), takes one observation or many, and moves with ``map_location``."""
    network = student("gru")
    (path,) = written(bundle_of_student("gru", tmp_path), tmp_path / "exported", "torchscript")
    assert path.name == "policy.pt"
    module = torch.jit.load(str(path), map_location="cpu").eval()
    obs = torch.randn(2, NUM_OBS)
    first, state = network.step(obs[:1])
    second = network.step(obs[1:], state)[0]
    for _ in range(2):
        assert torch.allclose(module(obs[0]), first.mean[0], atol=1e-6)
        assert torch.allclose(module(obs[1:]), second.mean, atol=1e-6)
        module.reset()
    assert module(torch.randn(5, NUM_OBS)).shape == (5, NUM_ACTIONS)


PUBLIC = {
    "rl-tools": "published-raptor/checkpoint.h5",
    "sb3": "data/stable-baselines3-2.9.2/ppo/model.zip",
    "sb3-dqn": "data/stable-baselines3-2.9.2/dqn/model.zip",
    "sb3-sde": "data/sb3-contrib-2.9.2/sac_sde/model.zip",
    "sb3-recurrent": "data/sb3-contrib-2.9.2/recurrent_deep/model.zip",
    "rl_games": "data/rl_games-1.6.5/gru_first/nn/case.pth",
    "skrl": "data/skrl-2.1.1/squashed/checkpoints/agent_8.pt",
}


@pytest.mark.parametrize("library", PUBLIC)
def test_policies_that_other_libraries_wrote(library, tmp_path):
    """Whatever can be read can be written: every library's checkpoint to ONNX, TorchScript, NumPy and C."""
    policy = load_policy(DATA / PUBLIC[library], Overrides())
    network = policy.network
    check(make_bundle(policy), network, tmp_path / "exported", policy.info.clip_actions, steps=100)


@pytest.mark.parametrize("format_name", ["so", "onnx", "npz", "torch_export"])
def test_raptor_gives_the_output_of_its_own_example(format_name, tmp_path):
    """The published HDF5 file, written as C and others, gives the outputs that the file itself says it gives."""
    path = DATA / "published-raptor" / "checkpoint.h5"
    with h5py.File(path) as file:
        obs = file["example/input"][()].astype(numpy.float32)
        expected = file["example/output"][()]
    (exported,) = written(make_bundle(load_policy(path, Overrides())), tmp_path / "exported", format_name)
    policy = read_torch_export(exported) if format_name == "torch_export" else Policy(exported)
    policy.reset(numpy.ones(obs.shape[1], bool))
    actions = numpy.stack([policy.step(step) for step in obs])
    assert numpy.abs(expected).max() > 0.1
    assert numpy.abs(actions - expected).max() <= 1e-5


def test_an_unknown_format_names_the_nearest():
    """One line for a typo; several names by commas or spaces."""
    with pytest.raises(UserError, match=r"unknown format 'onxn'. Did you mean 'onnx'\?"):
        check_formats(["c,onxn"])
    assert check_formats(["c,onnx", "npz", "c"]) == ["c", "onnx", "npz"]
    with pytest.raises(UserError, match="names no format"):
        check_formats([","])


def test_an_unsupported_layer_is_named(tmp_path):
    """A layer that no writer knows is named, with the file."""
    network = ActorCritic(Trunk([torch.nn.Linear(NUM_OBS, 3), torch.nn.Softsign()]), Deterministic())
    with pytest.raises(UserError, match=r"made.pt' cannot be exported: .*'actor.1' is a Softsign"):
        bundle_of(network, tmp_path)


def test_a_policy_that_is_only_run_is_refused(tmp_path):
    """TorchScript that is run as it is has no known layers, so that it cannot be written in another format."""
    (path,) = written(bundle_of_student("mlp", tmp_path), tmp_path / "exported", "torchscript")
    policy = load_policy(path, Overrides(run_as_is=True, num_obs=NUM_OBS))
    with pytest.raises(UserError, match="cannot be exported"):
        make_bundle(policy)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    """A format that cannot hold the policy leaves neither files nor an empty folder."""
    with pytest.raises(UserError, match="rl-tools has no activation 'elu'"):
        list(export(bundle_of_student("mlp", tmp_path), tmp_path / "exported", ["rl_tools"]))
    assert not (tmp_path / "exported").exists()


def test_a_folder_that_is_a_file(tmp_path):
    """One line for an output folder that is a file."""
    (tmp_path / "exported").write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        list(export(bundle_of_student("mlp", tmp_path), tmp_path / "exported", ["npz"]))


@pytest.mark.parametrize("missing", ["onnxruntime", "compiler"])
def test_a_missing_runtime_is_said(missing, tmp_path, monkeypatch):
    """A file whose runtime is not installed is written and said not to be checked."""
    if missing == "compiler":
        monkeypatch.setattr("foundation.export.formats.find_compiler", lambda: None)
    else:
        monkeypatch.setattr("foundation.export.formats.find_spec", lambda name: None)
    name = "c" if missing == "compiler" else "onnx"
    (done,) = export(bundle_of_student("mlp", tmp_path), tmp_path / "exported", [name])
    assert done.check is None
    assert "NOT CHECKED" in done.line()
    assert done.files[0].exists()
    if missing == "compiler":
        with pytest.raises(UserError, match="no C compiler"):
            list(export(bundle_of_student("mlp", tmp_path), tmp_path / "exported", ["so"]))


def test_a_writer_that_is_wrong_is_caught(tmp_path, monkeypatch):
    """Every format's check fails where the file does not do what the policy does."""
    for case, names in (("gru", ("onnx", "torchscript", "npz", "c", "so", "rl_tools", "rsl_rl")),):
        monkeypatch.setitem(STUDENTS, case, ("gru", {"encoder_dims": [], "hidden_dims": [4], "activation": "relu"}))
        bundle = bundle_of_student(case, tmp_path)
        bundle.golden.actions[50, 1, 2] += 0.01
        for name in names:
            with pytest.raises(UserError, match=r"differ|golden sequence|actions"):
                list(export(bundle, tmp_path / name, [name]))
            assert not (tmp_path / name).exists()


def test_every_layer_can_be_written():
    """Every typed layer that an action can depend on is known to NumPy, ONNX, PyTorch and C."""
    classes = [kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, layers.Layer)]
    kinds = {kind_of(kind) for kind in classes} - {"layer", "constant", "squashed_std"}  # the last two are deviations
    for known in (KINDS, onnx_file._WRITERS, c_operations.WRITERS, torch_step.KINDS):
        assert kinds == set(known)


def test_every_format_is_tested_here():
    """No format is without its test."""
    float_formats = {"onnx", "torchscript", "npz", "c", "so", "yaml", "rsl_rl", "rl_tools", "px4"}
    of_torch = {"torch_export", "executorch", "leapp"}  # test_torch_formats.py
    assert set(FORMATS) == float_formats | of_torch | {"c_int8", "onnx_int8"}  # test_int8.py
