"""``torch.export``, ExecuTorch and LEAPP: written from one module, each checked by its own runtime."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from foundation.core.errors import UserError
from foundation.export import torch_step
from foundation.export.executorch import read_executorch
from foundation.export.formats import export
from foundation.export.leapp_bundle import read_leapp
from foundation.export.torch_export import read_torch_export
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.distribution import Deterministic

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import NUM_ACTIONS, NUM_OBS, STUDENTS, bundle_of, bundle_of_student, fly, student, teachers  # noqa: E402

needs_executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="needs the package executorch")
needs_leapp = pytest.mark.skipif(find_spec("leapp") is None, reason="needs the package leapp")


def written(bundle, folder, name):
    """Export one format; it was checked, to 1e-5."""
    (done,) = export(bundle, folder, [name])
    assert done.check is not None
    assert done.check.difference is not None
    assert done.check.difference <= 1e-5
    return done.files


def replayed(policy, flight):
    """Return the actions of what was read back over a flight."""
    actions = []
    for obs, resets in zip(flight.obs, flight.resets, strict=True):
        policy.reset(resets)
        actions.append(policy.step(obs))
    return numpy.stack(actions)


def test_torch_export_is_called_with_its_memory(tmp_path):
    """One environment or many: (obs, state) to (actions, state); a policy without memory takes obs alone."""
    (path,) = written(bundle_of_student("gru", tmp_path), tmp_path / "exported", "torch_export")
    assert path.name == "policy.pt2"
    module = torch.export.load(path).module()
    network = student("gru")
    for num_envs in (1, 2, 5):
        obs = torch.randn(num_envs, NUM_OBS)
        state = torch.randn(num_envs, network.state_size)
        actions, after = module(obs, state)
        expected, kept = network.step(obs, state)
        assert torch.allclose(actions, expected.mean, atol=1e-6)
        assert torch.allclose(after, kept, atol=1e-6)
    (path,) = written(bundle_of_student("mlp", tmp_path), tmp_path / "plain", "torch_export")
    assert torch.export.load(path).module()(torch.randn(3, NUM_OBS)).shape == (3, NUM_ACTIONS)


@pytest.mark.parametrize("case", teachers())
def test_torch_export_of_other_libraries_shapes(case, tmp_path):
    """Policies of other libraries' shapes, images among them, give their own actions."""
    network = teachers()[case]
    (path,) = written(bundle_of(network, tmp_path), tmp_path / "exported", "torch_export")
    flight = fly(network, steps=30)
    assert numpy.abs(replayed(read_torch_export(path), flight) - flight.actions).max() <= 1e-5


@needs_executorch
@pytest.mark.slow
@pytest.mark.parametrize("case", STUDENTS)
def test_executorch_runs_every_student(case, tmp_path):
    """ExecuTorch's own runtime gives every student's actions, one robot at a time, with resets."""
    (path,) = written(bundle_of_student(case, tmp_path), tmp_path / "exported", "executorch")
    flight = fly(student(case), steps=40)
    assert numpy.abs(replayed(read_executorch(path), flight) - flight.actions).max() <= 1e-5


@needs_leapp
@pytest.mark.slow
@pytest.mark.parametrize("case", STUDENTS)
def test_leapp_runs_every_student(case, tmp_path):
    """LEAPP's own runtime gives every student's actions, its memory fed back and begun as the policy's."""
    bundle = bundle_of_student(case, tmp_path)
    path = written(bundle, tmp_path / "exported", "leapp")[0]
    flight = fly(student(case), steps=40)
    assert numpy.abs(replayed(read_leapp(path, bundle.program), flight) - flight.actions).max() <= 1e-5


@needs_leapp
def test_a_leapp_bundle_is_whole(tmp_path, capfd):
    """YAML, model and initial memory lie together, name every column, and nothing names this machine or is printed."""
    files = written(bundle_of_student("gru-2-layers", tmp_path, "robot"), tmp_path / "exported", "leapp")
    folder = tmp_path / "exported" / "leapp" / "robot"
    assert [file.name for file in files] == ["robot.yaml", "policy.onnx", "robot_initial_values.safetensors"]
    assert {file.name for file in folder.iterdir()} == {file.name for file in files}
    model = yaml.safe_load(files[0].read_text())["models"]["policy"]
    (names,) = (part["element_names"] for part in model["inputs"] if part["name"] == "obs")
    assert names == [[f"policy[{column}]" for column in range(NUM_OBS)]]
    assert str(tmp_path) not in files[0].read_text()
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("name", "package"), [("executorch", "executorch"), ("leapp", "leapp")])
def test_a_package_that_is_missing_is_said(name, package, tmp_path, monkeypatch):
    """One line says what to install, and nothing is left."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.exir", None)
    with pytest.raises(UserError, match=f"format '{name}' is written and run by .*: pip install {package}$"):
        list(export(bundle_of_student("mlp", tmp_path), tmp_path / "exported", [name]))
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_file_is_one_line(damage, tmp_path):
    """A .pt2 file that is empty, is no archive or ends early is named."""
    (path,) = written(bundle_of_student("gru", tmp_path), tmp_path / "exported", "torch_export")
    path.write_bytes(path.read_bytes()[:3000] if damage is None else damage)
    with pytest.raises(UserError, match=r"policy\.pt2' is not a torch.export file"):
        read_torch_export(path)


def test_a_writer_that_is_wrong_is_caught(tmp_path):
    """Another action than the file's is found, in each of the formats that can be written here."""
    bundle = bundle_of_student("gru", tmp_path)
    bundle.golden.actions[50, 1, 2] += 0.01
    names = ["torch_export", *(name for name in ("executorch", "leapp") if find_spec(name) is not None)]
    for name in names:
        with pytest.raises(UserError, match="gives other actions"):
            list(export(bundle, tmp_path / name, [name]))
        assert not (tmp_path / name).exists()


def test_an_unknown_function_is_named(tmp_path, monkeypatch):
    """An activation that PyTorch's step does not know is named with its layer."""
    network = ActorCritic(Trunk([torch.nn.Linear(NUM_OBS, 3), torch.nn.Mish()]), Deterministic())
    bundle = bundle_of(network, tmp_path)
    monkeypatch.delitem(torch_step._FUNCTIONS, "mish")
    with pytest.raises(UserError, match=r"'actor\.1' \(activation mish\) cannot be written as a torch\.export program"):
        list(export(bundle, tmp_path / "exported", ["torch_export"]))
