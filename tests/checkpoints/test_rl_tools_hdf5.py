"""rl-tools' HDF5 checkpoints: the published RAPTOR policy against its own package, and files of every layer."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from l2f_flights import PUBLISHED, flight, recorded_and_live
from numpy_policy import check_layers

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

GATES = ("weights_input", "weights_hidden", "biases_input", "biases_hidden")


@recorded_and_live
def test_published_policy_acts_as_its_own_package(source):
    """Over 30 steps with resets of part of the envs, actions equal the package's own NumPy inference to 1e-5."""
    teacher, flown = TeacherPolicyWrapper(PUBLISHED), flight("raptor_policy", source)
    assert flown["obs"].shape == (30, 6, 22) and flown["dones"].any()
    for step, (obs, expected, dones) in enumerate(zip(flown["obs"], flown["actions"], flown["dones"], strict=True)):
        assert np.abs(teacher.act(torch.from_numpy(obs)).numpy() - expected).max() <= 1e-5, step
        teacher.reset(torch.from_numpy(dones))


@pytest.mark.l2f
def test_the_shipped_file_is_the_published_one():
    """What the tests read as the published policy is, byte for byte, the file of the package."""
    foundation_policy = importlib.import_module("foundation_policy")
    installed = Path(foundation_policy.__file__).parent / "blob" / "checkpoint.h5"
    assert PUBLISHED.read_bytes() == installed.read_bytes()


def test_published_policy_is_described():
    """Its sizes, its 2,084 parameters, its observation group and the check against its example are told."""
    teacher = TeacherPolicyWrapper(PUBLISHED)
    told = teacher.describe()
    assert teacher.num_parameters == 2084 and (teacher.num_obs, teacher.num_actions) == (22, 4)
    assert teacher.hidden_dims == [16] and teacher.state_size == 16 and teacher.obs_groups == ["l2f"]
    assert told["format"] == "rl-tools HDF5" and told["recurrence"] == "gru 16 x 1" and told["activation"] == "relu"
    assert told["checked_against_example"] is True and told["distribution"] == "deterministic"


def test_typed_layers_of_the_published_policy():
    """Computed by NumPy from the typed layers, with its learned initial state, it acts as it does."""
    layers = check_layers(TeacherPolicyWrapper(PUBLISHED))
    assert [layer.size for layer in layers if layer.memory] == [16]


def test_sequence_is_step_repeated():
    """One call over a sequence with resets inside gives what single steps give, to 1e-6."""
    teacher, obs = TeacherPolicyWrapper(PUBLISHED), torch.randn(12, 5, 22)
    resets = torch.rand(12, 5) < 0.2
    output, final = teacher.sequence(obs, None, resets)
    state = teacher.initial_state(5)
    for step in range(12):
        state = teacher.reset_state(state, resets[step])
        single, state = teacher.step(obs[step], state)
        assert torch.allclose(single.mean, output.mean[step], atol=1e-6)
    assert torch.allclose(state, final, atol=1e-6)


def test_a_step_stays_on_its_device():
    """A step neither reads numbers back to the host nor mixes devices: it works where tensors have no numbers."""
    teacher = TeacherPolicyWrapper(PUBLISHED).to("meta")
    state = teacher.initial_state(5, "meta")
    for _ in range(2):
        output, state = teacher.step(torch.empty(5, 22, device="meta"), state)
        state = teacher.reset_state(state, torch.empty(5, dtype=torch.bool, device="meta"))
    assert output.mean.shape == (5, 4) and output.mean.is_meta


def sigmoid(x):
    """Return the logistic function."""
    return 1 / (1 + np.exp(-x))


def fast_tanh(x):
    """Return rl-tools' approximation of tanh."""
    x = np.clip(x, -3, 3)
    return x * (27 + x**2) / (27 + 9 * x**2)


ACTIVATIONS = {
    "IDENTITY": lambda x: x,
    "RELU": lambda x: np.maximum(x, 0),
    "TANH": np.tanh,
    "FAST_TANH": fast_tanh,
    "SIGMOID": sigmoid,
}


class Writer:
    """Writes layers as rl-tools does, and runs them in NumPy as its documentation says."""

    def __init__(self, path: Path, seed: int = 0):
        self.file, self.rng, self.run, self.count = h5py.File(path, "w"), np.random.default_rng(seed), [], 0
        self.actor = self.file.create_group("actor")
        self.actor.attrs["type"] = "sequential"
        self.layers = self.actor.create_group("layers")

    def values(self, group, name, *shape):
        """Write random parameters and return them."""
        value = (self.rng.normal(size=shape) * 0.5).astype(np.float32)
        group.create_group(name)["parameters"] = value
        return value

    def next(self, kind):
        """Return the next layer's group."""
        group = self.layers.create_group(str(self.count))
        if kind:
            group.attrs["type"] = kind
        self.count += 1
        return group

    def dense(self, num_in, num_out, activation="IDENTITY", group=None):
        """Add a dense layer."""
        group = self.next("dense") if group is None else group
        group.attrs["type"], group.attrs["activation_function"] = "dense", activation
        weights, biases = self.values(group, "weights", num_out, num_in), self.values(group, "biases", 1, num_out)
        self.run.append(lambda x: ACTIVATIONS[activation](x @ weights.T + biases))

    def mlp(self, sizes, activation, log_std=None, old=False):
        """Add a perceptron of rl-tools' own kind."""
        group = self.next("mlp")
        group.attrs["num_layers"] = str(len(sizes) - 1)
        holder = group if old else group.create_group("hidden_layers")
        for index, (num_in, num_out) in enumerate(pairwise(sizes)):
            first, last = index == 0, index == len(sizes) - 2
            name = f"hidden_layer_{index - 1}" if old else str(index - 1)
            layer = (group if first or last else holder).create_group(
                "input_layer" if first else "output_layer" if last else name
            )
            self.dense(num_in, num_out, "IDENTITY" if last else activation, layer)
        if log_std is not None:
            group.create_group("log_std")["parameters"] = np.array([log_std], np.float32)

    def gru(self, num_in, size):
        """Add a GRU with a learned initial state."""
        group = self.next("gru")
        shapes = ((3 * size, num_in), (3 * size, size), (3 * size,), (3 * size,))
        wi, wh, bi, bh = (self.values(group, name, *shape) for name, shape in zip(GATES, shapes, strict=True))
        initial = self.values(group, "initial_hidden_state", size)

        def run(sequence):
            hidden, outputs = np.tile(initial, (sequence.shape[1], 1)), []
            for x in sequence:
                gi, gh = x @ wi.T + bi, hidden @ wh.T + bh
                r, z = (sigmoid(gi[:, s] + gh[:, s]) for s in (slice(size), slice(size, 2 * size)))
                candidate = np.tanh(gi[:, 2 * size :] + r * gh[:, 2 * size :])
                hidden = z * hidden + (1 - z) * candidate
                outputs.append(hidden)
            return np.stack(outputs)

        self.run.append(run)

    def standardize(self, size):
        """Add a normaliser, one of whose columns was constant."""
        group = self.next("standardize")
        mean = self.values(group, "mean", size)
        precision = np.abs(self.rng.normal(size=size)).astype(np.float32) + 0.5
        precision[0] = 0
        group.create_group("precision")["parameters"] = precision
        self.run.append(lambda x: (x - mean) * np.where(precision == 0, 1, precision))

    def squash(self):
        """Add SAC's sampling."""
        self.next("sample_and_squash")
        self.run.append(lambda x: np.tanh(np.split(x, 2, axis=-1)[0]))

    def clip(self):
        """Add TD3's sampling, of which rl-tools writes nothing."""
        self.next(None)
        self.run.append(lambda x: np.clip(x, -1, 1))

    def finish(self, num_in, example=True):
        """Write the example and close the file; return example input and output."""
        given = self.rng.normal(size=(7, 3, num_in)).astype(np.float32)
        value = given
        for run in self.run:
            value = run(value)
        if example:
            self.file.create_group("example")
            self.file["example/input"], self.file["example/output"] = given, value.astype(np.float32)
        self.file.close()
        return torch.from_numpy(given), torch.from_numpy(value.astype(np.float32))


CHAINS = {
    "td3": lambda w: [w.standardize(5), w.dense(5, 8, "RELU"), w.dense(8, 8, "FAST_TANH"), w.dense(8, 2), w.clip()],
    "sac": lambda w: [w.dense(5, 8, "TANH"), w.dense(8, 4), w.squash()],
    "sac_gru": lambda w: [w.dense(5, 8, "RELU"), w.gru(8, 6), w.gru(6, 4), w.dense(4, 4), w.squash()],
    "ppo": lambda w: [w.standardize(5), w.mlp([5, 8, 7, 6, 2], "FAST_TANH", [-0.5, 0.25])],
    "old_mlp": lambda w: [w.mlp([5, 8, 7, 6, 4], "SIGMOID", old=True), w.squash()],
    "tanh_output": lambda w: [w.dense(5, 8, "SIGMOID"), w.dense(8, 2, "TANH")],
}


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_every_layer(name, example, tmp_path, caplog):
    """Each kind of layer gives what NumPy gives, to 1e-5, with an example in the file or (warned of) without."""
    writer = Writer(tmp_path / "checkpoint.h5")
    CHAINS[name](writer)
    given, expected = writer.finish(5, example)
    if name == "td3" and not example:
        with pytest.raises(UserError, match=r"'actor/layers/4' has no type"):
            TeacherPolicyWrapper(tmp_path / "checkpoint.h5")
        return
    teacher = TeacherPolicyWrapper(tmp_path / "checkpoint.h5")
    steps = torch.stack([teacher.act(obs) for obs in given])
    assert (steps - expected).abs().max() <= 1e-5 and teacher.num_actions == 2
    check_layers(teacher)
    assert ("no example" in caplog.text) is not example


def test_deviations(tmp_path):
    """PPO's deviation is exp(log_std); SAC's draws have the spread of a squashed Gaussian."""
    writer = Writer(tmp_path / "ppo.h5")
    CHAINS["ppo"](writer)
    given, _ = writer.finish(5)
    output = TeacherPolicyWrapper(tmp_path / "ppo.h5").output(given[0])
    assert torch.allclose(output.std, torch.tensor([-0.5, 0.25]).exp().expand(3, 2))
    writer = Writer(tmp_path / "sac.h5")
    writer.dense(5, 4)
    raw = writer.run[0]
    writer.squash()
    given, _ = writer.finish(5)
    teacher = TeacherPolicyWrapper(tmp_path / "sac.h5")
    obs = given[0, :1]
    draws = teacher.act(obs.expand(100_000, 5), deterministic=False, generator=torch.Generator().manual_seed(0))
    mean, log_std = torch.from_numpy(raw(obs.numpy())).chunk(2, dim=-1)
    wanted = (mean + log_std.exp() * torch.randn(100_000, 2)).tanh()
    assert torch.allclose(draws.mean(0), wanted.mean(0), atol=0.01)
    assert torch.allclose(draws.std(0), wanted.std(0), atol=0.01)
    assert torch.allclose(teacher.output(obs).std, log_std.exp() * (1 - mean.tanh() ** 2), rtol=1e-4)


def spoil(path, key, change):
    """Replace one entry of a copy of the published file."""
    shutil.copy(PUBLISHED, path)
    with h5py.File(path, "r+") as file:
        change(file, key)
    return path


def replace(function):
    """Return a change of one data set."""

    def change(file, key):
        value = function(file[key][()])
        del file[key]
        file[key] = value

    return change


def relabel(**attributes):
    """Return a change of a group's attributes."""
    return lambda file, key: file[key].attrs.update(attributes)


def replace_by_group(other):
    """Return a change that links a group to another one that holds it: a circle."""

    def change(file, key):
        del file[key]
        file[key] = file[other]

    return change


WEIGHT, HIDDEN = "actor/layers/0/weights/parameters", "actor/layers/1/weights_hidden/parameters"
BIAS = "actor/layers/1/biases_hidden/parameters"
SWAP = np.r_[16:32, 0:16, 32:48]


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        (WEIGHT, replace(lambda w: w + 0.01), "differs from the file's own example"),
        (HIDDEN, replace(lambda w: w[SWAP]), "differs from the file's own example"),
        (BIAS, replace(lambda b: b[::-1].copy()), "differs from the file's own example"),
        ("example/output", replace(lambda x: x + 1e-3), "differs from the file's own example by 0.001"),
        (WEIGHT, replace(lambda w: w * np.nan), "NaN"),
        (WEIGHT, replace(lambda w: w[:, :-1]), "its example has 22 inputs and its network 21"),
        (WEIGHT, replace(lambda w: w[:-1]), r"shape \[1, 16\], not 15"),
        (HIDDEN, replace(lambda w: w[:, :-1]), "not three gates"),
        (BIAS, replace(lambda b: b.reshape(3, 16)), "not 48 numbers"),
        (BIAS, replace(lambda b: b.astype("S4")), "not a data set of numbers"),
        ("actor/layers/0", relabel(activation_function="SWISH"), "activation function 'SWISH'"),
        ("actor/layers/0", relabel(activation_function="TANH"), "differs from the file's own example"),
        ("actor/layers/1", relabel(type="lstm"), "type 'lstm', which is not known"),
        ("actor/layers/2", lambda f, k: f.move(k, "actor/layers/3"), "not 0, 1, 2"),
        ("actor/layers/1", lambda f, k: f[k].create_dataset("peephole", data=[1.0]), "peephole"),
        ("actor/layers/1/initial_hidden_state", lambda f, k: f.__delitem__(k), "lacks"),
        ("actor", lambda f, k: f.move(k, "critic"), "no 'actor'"),
        ("actor", lambda f, k: f.__delitem__(k), "no 'actor'"),
        ("actor/layers/0", replace_by_group("actor"), "where none can be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(key, change, words, tmp_path):
    """Changed weights, swapped gates, other layers and shapes: one line that names the file and what is wrong."""
    path = spoil(tmp_path / "checkpoint.h5", key, change)
    with pytest.raises(UserError, match=words) as caught:
        TeacherPolicyWrapper(path)
    assert "\n" not in str(caught.value) and "checkpoint.h5" in str(caught.value)


def test_data_outside_the_file_is_refused(tmp_path):
    """Links to other files and data sets stored elsewhere are not followed."""

    def elsewhere(file, key):
        shape = file[key].shape
        del file[key]
        layout = h5py.VirtualLayout(shape=shape, dtype="f4")
        layout[:] = h5py.VirtualSource(PUBLISHED, key, shape=shape)
        file.create_virtual_dataset(key, layout)

    def link(file, key):
        del file[key]
        file[key] = h5py.ExternalLink(PUBLISHED, key)

    for change, words in ((elsewhere, "outside the file"), (link, "leads elsewhere")):
        with pytest.raises(UserError, match=words):
            TeacherPolicyWrapper(spoil(tmp_path / "checkpoint.h5", WEIGHT, change))


def test_a_shape_that_the_file_does_not_hold_is_refused(tmp_path):
    """A data set that claims more numbers than the file stores is refused before memory is asked for."""

    def huge(file, key):
        del file[key]
        file.create_dataset(key, shape=(1 << 20, 1 << 16), dtype="f4", chunks=(1 << 10, 1 << 10))

    with pytest.raises(UserError, match="which the file does not hold"):
        TeacherPolicyWrapper(spoil(tmp_path / "checkpoint.h5", WEIGHT, huge))


def test_without_h5py_the_extra_is_named(monkeypatch):
    """Where h5py is missing, one line says what to install."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs the package h5py: pip install -e '\.\[raptor\]'"):
        TeacherPolicyWrapper(PUBLISHED)


def test_another_environment_leaves_the_groups_open(tmp_path):
    """Only the observation that our ``l2f`` group has is taken for it."""
    meta = {"environment": {"name": "l2f", "observation": "Position.OrientationQuaternion.LinearVelocity"}}
    path = spoil(tmp_path / "checkpoint.h5", "actor", relabel(meta=json.dumps(meta)))
    assert TeacherPolicyWrapper(path).obs_groups is None
    assert TeacherPolicyWrapper(path, obs_groups=["l2f"]).obs_groups == ["l2f"]


def test_a_long_number_of_layers_is_shortened(tmp_path):
    """Five thousand digits are no part of one line."""
    path = tmp_path / "checkpoint.h5"
    writer = Writer(path)
    CHAINS["ppo"](writer)
    writer.finish(5)
    with h5py.File(path, "r+") as file:
        file["actor/layers/1"].attrs["num_layers"] = "9" * 5000
    with pytest.raises(UserError, match=r"states 9+\.\.\. layers and has 4") as caught:
        TeacherPolicyWrapper(path)
    assert len(str(caught.value)) < 400
