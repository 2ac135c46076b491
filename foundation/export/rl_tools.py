"""Policies as rl-tools' HDF5 checkpoints, which ``foundation-policy`` and rl-tools' own readers load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy

from foundation.core.errors import UserError
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.numpy_policy import NumpyProgram
from foundation.deploy.program import Memory, Operation, Program

_ACTIVATIONS = {
    "identity": "IDENTITY", "relu": "RELU", "gelu": "GELU", "tanh": "TANH", "fast_tanh": "FAST_TANH",
    "sigmoid": "SIGMOID",
}  # fmt: skip


def write_rl_tools(path: Path, program: Program, golden: Golden, name: str) -> None:
    """Write a policy as ``path``.

    rl-tools knows dense and GRU layers in a row. A normaliser becomes part of the layer that reads it, and the bound of
    the actions is left to the caller.

    Args:
        path: The file.
        program: The policy's operations.
        golden: Its observations are those of the file's own example.
        name: Of the policy.
    """
    try:
        import h5py  # an optional package
    except ImportError:
        raise UserError("HDF5 files are written by the package h5py: pip install -e '.[raptor]'") from None
    layers = layer_chain(program)
    steps = golden.obs[:, :2]
    with h5py.File(path, "w") as file:
        actor = file.create_group("actor")
        actor.attrs["type"] = "sequential"
        actor.attrs["checkpoint_name"] = name
        actor.attrs["meta"] = json.dumps({"environment": {"name": "foundation", "observation": name}})
        group = actor.create_group("layers")
        for index, (operation, activation) in enumerate(layers):
            layer = group.create_group(str(index))
            layer.attrs["type"] = "gru" if operation.kind == "recurrent" else "dense"
            if operation.kind == "dense":
                layer.attrs["activation_function"] = activation
            for key, values in layer_parameters(operation).items():
                layer.create_group(key)["parameters"] = values
        example = file.create_group("example")
        example["input"] = steps
        example["output"] = example_actions(program, steps)


def layer_chain(program: Program) -> list[tuple[Operation, str]]:
    """Return the layers with the activation after each; everything else is folded into them, or refused."""
    layers: list[tuple[Operation, str]] = []
    before: Operation | None = None  # a normaliser that the next layer takes in
    last = "obs"
    for operation in program.operations:
        if operation.inputs != (last,):
            raise UserError(f"rl-tools' layers are in a row; layer '{operation.name}' is not. Choose another format.")
        last = operation.name
        if operation.name == program.output and operation.kind == "clamp":
            continue
        if operation.kind == "normalize" and before is None and not layers:
            before = operation
        elif operation.options.get("blocks") == 1 or operation.options.get("cell") == "gru":
            layers.append((_folded(operation, before), "IDENTITY"))
            before = None
        elif operation.kind == "activation" and layers and layers[-1][1] == "IDENTITY":
            layers[-1] = (layers[-1][0], _activation(operation, layers[-1][0]))
        else:
            raise UserError(f"rl-tools has no layer '{operation.name}' ({operation.kind}). Choose another format.")
    if not layers:
        raise UserError("rl-tools' policies have at least one layer. Choose another format.")
    return layers


def _activation(operation: Operation, layer: Operation) -> str:
    name = operation.text("function")
    if name not in _ACTIVATIONS or layer.kind != "dense":
        known = ", ".join(sorted(set(_ACTIVATIONS) - {"identity"}))
        raise UserError(
            f"rl-tools has no activation '{name}' after a {layer.kind} layer: it has {known} after dense ones. "
            "Choose another format."
        )
    return _ACTIVATIONS[name]


def _folded(operation: Operation, normalizer: Operation | None) -> Operation:
    """Return a layer that reads what a normaliser reads."""
    if normalizer is None:
        return operation
    weight, bias = ("weight_ih", "bias_ih") if operation.kind == "recurrent" else ("weight", "bias")
    mean, scale = (normalizer.arrays[key].astype(numpy.float64) for key in ("mean", "scale"))
    scaled = operation.arrays[weight].astype(numpy.float64) * scale
    shifted = operation.arrays[bias].astype(numpy.float64) - scaled @ mean
    arrays = {**operation.arrays, weight: scaled.astype(numpy.float32), bias: shifted.astype(numpy.float32)}
    return Operation(
        kind=operation.kind,
        name=operation.name,
        inputs=operation.inputs,
        shape=operation.shape,
        memory=operation.memory,
        arrays=arrays,
        options=operation.options,
    )


def layer_parameters(operation: Operation) -> dict[str, FloatArray]:
    """Return a layer's arrays under rl-tools' names."""
    arrays = operation.arrays
    if operation.kind == "dense":
        return {"weights": arrays["weight"], "biases": arrays["bias"][None]}
    memory: Memory = operation.memory[0]
    return {
        "weights_input": arrays["weight_ih"],
        "weights_hidden": arrays["weight_hh"],
        "biases_input": arrays["bias_ih"],
        "biases_hidden": arrays["bias_hh"],
        "initial_hidden_state": memory.initial,
    }


def example_actions(program: Program, obs: FloatArray) -> FloatArray:
    """Return the actions of one episode in each environment, without the bound that rl-tools does not know."""
    last = program.operations[-1]
    if last.kind == "clamp" and last.name == program.output:
        program = Program(num_obs=program.num_obs, operations=program.operations[:-1], output=last.inputs[0])
    runner = NumpyProgram(program)
    state = numpy.tile(program.initial_state, (obs.shape[1], 1))
    actions: list[FloatArray] = []
    for given in obs:
        action, state = runner.run(given, state)
        actions.append(action)
    return numpy.stack(actions)
