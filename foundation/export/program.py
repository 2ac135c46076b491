"""Compile a policy's typed layers to the plain program that all writers read."""

from __future__ import annotations

import dataclasses
import re

import numpy
import torch

from foundation.core.errors import UserError
from foundation.deploy.golden import FloatArray
from foundation.deploy.program import Memory, Operation, Option, Program
from foundation.policies.layers import Layer
from foundation.policies.policy_network import PolicyNetwork

_BASE = {field.name for field in dataclasses.fields(Layer)}
_RENAMED = {("recurrent", "kind"): "cell", ("global_pool", "kind"): "pooling"}
"""Settings whose names an operation has already."""


def program_of(policy: PolicyNetwork, clip: float | None = None) -> Program:
    """Return what a policy computes of an observation, the deterministic action alone.

    Args:
        policy: A student or a teacher.
        clip: Bound of its actions. None: as the policy gives them.
    """
    layers = policy.layers()
    operations: list[Operation] = []
    columns = 0
    for layer in layers.needed_for("mean"):
        operation = _operation(layer, columns)
        columns += sum(memory.size for memory in operation.memory)
        operations.append(operation)
    output = layers.outputs["mean"]
    if clip is not None:
        bounds = {"low": numpy.array(-clip, numpy.float32), "high": numpy.array(clip, numpy.float32)}
        shape = layers.shape(output)
        operations.append(Operation(kind="clamp", name="action_clip", inputs=(output,), shape=shape, arrays=bounds))
        output = "action_clip"
    return Program(num_obs=policy.num_obs, operations=tuple(operations), output=output)


def kind_of(layer: type[Layer]) -> str:
    """Return the name of a layer's operation: ``layer_norm`` for ``LayerNorm``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", layer.__name__).lower()


def _operation(layer: Layer, first_column: int) -> Operation:
    """Return a layer's operation; its memory begins at a column, as the critic's is left out."""
    kind = kind_of(type(layer))
    arrays: dict[str, FloatArray] = {}
    options: dict[str, Option] = {}
    for field in dataclasses.fields(layer):
        if field.name in _BASE:
            continue
        value = getattr(layer, field.name)
        name = _RENAMED.get((kind, field.name), field.name)
        if isinstance(value, torch.Tensor):
            arrays[name] = _array(value, layer.name)
        elif field.name == "constants":
            options |= {key: float(number) for key, number in value.items()}
        else:
            options[name] = value
    memory: list[Memory] = []
    for part in layer.memory:
        memory.append(Memory(start=first_column, initial=_array(part.initial, layer.name)))
        first_column += part.size
    return Operation(
        kind=kind,
        name=layer.name,
        inputs=layer.inputs,
        shape=layer.shape,
        memory=tuple(memory),
        arrays=arrays,
        options=options,
    )


def _array(value: torch.Tensor, name: str) -> FloatArray:
    array = numpy.ascontiguousarray(value.detach().float().cpu().numpy())
    if not numpy.isfinite(array).all():
        # An open bound is written as the largest number: C, JSON and ONNX have no portable infinity.
        if numpy.isnan(array).any():
            raise UserError(f"the policy's layer '{name}' has weights that are not numbers: it cannot be exported.")
        array = numpy.nan_to_num(array)
    return array
