"""rl-tools checkpoints, ``checkpoint.h5``: a chain of layers under ``actor``, and an example to check it against."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from foundation.checkpoints.reading.assembler import CHECKPOINT, finish
from foundation.checkpoints.reading.hdf5_file import HDF5_MAGIC, Hdf5Group, open_hdf5
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, logger, report_unknown
from foundation.core.errors import UserError
from foundation.core.plain_json import parse_json
from foundation.core.text import shorten
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.distribution import Deterministic, Gaussian, SquashedGaussian
from foundation.policies.rnn import RecurrentCore
from foundation.policies.scaling import Clip, FastTanh, Standardize

EXAMPLE_TOLERANCE = 1e-4
"""Largest difference from the file's own example, absolute and of the example's largest number."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "IDENTITY": nn.Identity,
    "RELU": nn.ReLU,
    "GELU": nn.GELU,
    "TANH": nn.Tanh,
    "FAST_TANH": FastTanh,
    "SIGMOID": nn.Sigmoid,
}
_TRAINING_STATE = {
    "pre_activations", "output", "post_activation", "n_pre_pre_activation", "pre_squashing", "noise",
    "log_probabilities", "log_alpha",
}  # fmt: skip
_L2F_PREFIX = ["Position", "OrientationRotationMatrix", "LinearVelocity"]
_DEPTH = 4


def recognise_file(path: Path, head: bytes) -> bool:
    """Return whether a file is in this format."""
    return head.startswith(HDF5_MAGIC)


def load_file(source: Source) -> LoadedPolicy:
    """Read the policy, and raise if its actions differ from the file's own example."""
    with open_hdf5(source.path) as root:
        if "actor" not in root.names():
            shown = ", ".join(sorted(root.names())[:6]) or "nothing"
            raise UserError(f"'{source.path}' is an HDF5 file but no policy of rl-tools: it holds {shown}, no 'actor'.")
        actor = root.group("actor")
        reader = _Reader(source)
        reader.read(actor, _DEPTH)
        network = reader.network()
        checked = _check_example(network, root, str(source.path))
        if reader.guessed and not checked:
            raise UserError(f"'{source.path}': layer '{reader.guessed}' has no type and no example shows what it does.")
        meta = _meta(actor)
    activations = dict.fromkeys(name for _, name in reader.dense[:-1])
    return finish(
        source,
        "rl-tools HDF5",
        network,
        (", ".join(activations) or "identity", CHECKPOINT),
        hidden_dims=reader.hidden_dims,
        distribution=reader.distribution,
        obs_groups=_obs_groups(meta, network.num_obs),
        obs_normalization=any(isinstance(layer, Standardize) for layer in reader.layers),
        recurrence=reader.recurrence,
        more={
            "output_activation": reader.dense[-1][1],
            "checked_against_example": checked,
            "environment": _text(meta.get("name")),
            "observation": _text(meta.get("observation")),
        },
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class _Reader:
    """Turns the groups of a file into layers, checking that each fits the one before."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.layers: list[nn.Module] = []
        self.distribution = Deterministic()
        self.num_obs = self.width = 0
        self.dense: list[tuple[int, str]] = []
        self.guessed = ""

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the dense layers but the last."""
        return [width for width, _ in self.dense[:-1]]

    def read(self, group: Hdf5Group, depth: int) -> None:
        """Append the layers of a group."""
        kind = group.attribute("type")
        if self.distribution.name == "squashed gaussian" or depth == 0:
            self._refuse(group, "has layers where none can be")
        if kind is None and not group.names():  # rl-tools writes nothing at all for the sampling layer of TD3
            kind = "td3_sampling"
            self.guessed = group.name
        read = {
            "sequential": self._sequential,
            "mlp": self._mlp,
            "dense": self._dense,
            "gru": self._gru,
            "standardize": self._standardize,
            "sample_and_squash": self._sample_and_squash,
            "td3_sampling": self._td3_sampling,
        }.get(str(kind))
        if read is None:
            self._refuse(group, f"is of type '{shorten(str(kind))}', which is not known")
        read(group, depth)

    def _sequential(self, group: Hdf5Group, depth: int) -> None:
        self._only(group, {"layers"})
        layers = group.group("layers")
        names = layers.names()
        if not names or set(names) != {str(index) for index in range(len(names))}:
            self._refuse(layers, f"has layers {sorted(names)[:6]}, not 0, 1, 2, ...")
        for index in range(len(names)):
            self.read(layers.group(str(index)), depth - 1)

    def _mlp(self, group: Hdf5Group, depth: int) -> None:
        old = [name for name in group.names() if name.startswith("hidden_layer_")]
        self._only(group, {"input_layer", "hidden_layers", "output_layer", "log_std", *old})
        holder, prefix = (group, "hidden_layer_") if old else (group.group("hidden_layers"), "")
        hidden = old or holder.names()
        stated = group.attribute("num_layers")
        if stated is not None and str(stated) != str(len(hidden) + 2):
            self._refuse(group, f"states {shorten(str(stated), 20)} layers and has {len(hidden) + 2}")
        for layer in (
            group.group("input_layer"),
            *(holder.group(f"{prefix}{index}") for index in range(len(hidden))),
            group.group("output_layer"),
        ):
            self.read(layer, depth - 1)
        if "log_std" in group.names():
            self.distribution = Gaussian(self._vector(group, "log_std", self.width).exp())

    def _dense(self, group: Hdf5Group, depth: int) -> None:
        self._only(group, {"weights", "biases"})
        weight = self._matrix(group, "weights")
        name = str(group.attribute("activation_function"))
        if name not in _ACTIVATIONS:
            self._refuse(group, f"has the activation function '{shorten(name)}', which is not known")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": self._vector(group, "biases", weight.shape[0])})
        self._append(group, layer, *reversed(weight.shape))
        self.dense.append((weight.shape[0], name.lower()))
        if name != "IDENTITY":
            self.layers.append(_ACTIVATIONS[name]())

    def _gru(self, group: Hdf5Group, depth: int) -> None:
        names = ("weights_input", "weights_hidden", "biases_input", "biases_hidden")
        self._only(group, {*names, "initial_hidden_state"})
        weights = self._matrix(group, "weights_input"), self._matrix(group, "weights_hidden")
        size = weights[1].shape[1]
        if weights[0].shape[0] != 3 * size or weights[1].shape[0] != 3 * size:
            self._refuse(group, f"has weights {list(weights[0].shape)} and {list(weights[1].shape)}, not three gates")
        core = RecurrentCore("gru", weights[0].shape[1], size, learn_initial_state=True)
        biases = (self._vector(group, name, 3 * size) for name in names[2:])
        keys = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        core.rnn.load_state_dict(dict(zip(keys, (*weights, *biases), strict=True)))
        assert core.initial is not None
        with torch.no_grad():
            core.initial.copy_(self._vector(group, "initial_hidden_state", size))
        self._append(group, core, weights[0].shape[1], size)

    def _standardize(self, group: Hdf5Group, depth: int) -> None:
        self._only(group, {"mean", "precision"})
        mean = self._vector(group, "mean", None)
        precision = self._vector(group, "precision", mean.shape[0])
        self._append(group, Standardize(mean, precision), mean.shape[0], mean.shape[0])

    def _sample_and_squash(self, group: Hdf5Group, depth: int) -> None:
        self._only(group, set())
        if self.width % 2 or not self.layers:
            self._refuse(group, f"makes actions of an odd number of means and standard deviations, {self.width}")
        self.distribution = SquashedGaussian()

    def _td3_sampling(self, group: Hdf5Group, depth: int) -> None:
        self._append(group, Clip(-1.0, 1.0), self.width, self.width)

    def _append(self, group: Hdf5Group, layer: nn.Module, num_in: int, num_out: int) -> None:
        if self.layers and num_in != self.width:
            self._refuse(group, f"expects {num_in} inputs and the layer before it gives {self.width}")
        if isinstance(self.distribution, Gaussian):
            self._refuse(group, "comes after the standard deviation of the actions")
        if not self.layers:
            self.num_obs = num_in
        self.layers.append(layer)
        self.width = num_out

    def _matrix(self, group: Hdf5Group, name: str) -> torch.Tensor:
        value = group.group(name).tensor("parameters")
        if value.dim() != 2 or 0 in value.shape:
            self._refuse(group, f"has '{name}' of shape {list(value.shape)}, not a matrix")
        return value

    def _vector(self, group: Hdf5Group, name: str, size: int | None) -> torch.Tensor:
        value = group.group(name).tensor("parameters")
        if value.numel() != max(value.shape, default=0) or value.numel() != (size or value.numel()):
            self._refuse(group, f"has '{name}' of shape {list(value.shape)}, not {size or 'a row of'} numbers")
        return value.reshape(-1)

    def _only(self, group: Hdf5Group, known: set[str]) -> None:
        unknown = sorted(set(group.names()) - known - _TRAINING_STATE)
        names = [f"{group.name}/{name}" for name in unknown]
        report_unknown(names, f"'{self.source.path}'", self.source.overrides.strict)

    def _refuse(self, group: Hdf5Group, what: str) -> NoReturn:
        raise UserError(f"'{self.source.path}': '{group.name}' {what}. Is the file of another version, or corrupt?")

    def network(self) -> ActorCritic:
        """Return the policy."""
        if not self.dense:
            raise UserError(f"'{self.source.path}' has no dense layer, so that it is no policy. Is it corrupt?")
        return ActorCritic(Trunk(self.layers), self.distribution)

    @property
    def recurrence(self) -> str:
        """The recurrent layers, to be shown."""
        cores = [layer for layer in self.layers if isinstance(layer, RecurrentCore)]
        return ", ".join(f"gru {core.hidden_size} x 1" for core in cores) or "none"


def _check_example(network: ActorCritic, root: Hdf5Group, path: str) -> bool:
    """Refuse a policy that does not give the file's example output for its example input."""
    if "example" not in root.names():
        logger.warning("'%s' carries no example to check its policy against.", path)
        return False
    example = root.group("example")
    if "inputs" in example.names():  # newer files number their examples
        inputs = example.group("inputs")
        outputs = example.group("outputs")
        names = inputs.names()
        if not names or set(names) != set(outputs.names()):
            raise UserError(
                f"'{path}': its examples have inputs {names[:6]} and outputs {outputs.names()[:6]}. Damaged?"
            )
        pairs = [(inputs.tensor(name), outputs.tensor(name)) for name in names]
    else:
        pairs = [(example.tensor("input"), example.tensor("output"))]
    for given, expected in pairs:
        _compare(network, given, expected, path)
    return True


def _compare(network: ActorCritic, given: torch.Tensor, expected: torch.Tensor, path: str) -> None:
    if given.dim() == 2:
        given = given.unsqueeze(0)
        expected = expected.unsqueeze(0)
    if given.dim() != 3 or expected.shape != (*given.shape[:2], network.num_actions) or 0 in given.shape:
        raise UserError(f"'{path}': its example has shapes {list(given.shape)} and {list(expected.shape)}. Damaged?")
    if given.shape[2] != network.num_obs:
        raise UserError(
            f"'{path}': its example has {given.shape[2]} inputs and its network {network.num_obs}. Damaged?"
        )
    with torch.no_grad():
        difference = float((network.sequence(given)[0].mean - expected).abs().max())
    if not difference <= EXAMPLE_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"'{path}': its policy differs from the file's own example by {difference:.2g}, so that it is corrupt or "
            "has a layer that is not understood. Use another checkpoint of that run."
        )


def _meta(actor: Hdf5Group) -> dict[str, Any]:
    """Return the description of the environment in the file."""
    try:
        meta = parse_json(str(actor.attribute("meta")))["environment"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _obs_groups(meta: dict[str, Any], num_obs: int) -> list[str] | None:
    """Return our group in which the observation of a policy trained in rl-tools' l2f lies, if there is one."""
    parts = str(meta.get("observation")).split(".")
    known = parts[:3] == _L2F_PREFIX and parts[3:4] and parts[3].startswith("AngularVelocity")
    return ["l2f"] if known and parts[4:] == ["ActionHistory(1)"] and num_obs == 22 else None
