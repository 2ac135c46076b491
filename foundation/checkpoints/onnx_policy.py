"""Exported policies, ``policy.onnx``: stateless, recurrent (``h_in``, ``c_in``) and with images."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch

from foundation.checkpoints.onnx.file import OnnxGraph, OnnxNode, is_onnx, read_onnx
from foundation.checkpoints.onnx.network import OnnxNetwork
from foundation.checkpoints.reading.assembler import CHECKPOINT, finish
from foundation.checkpoints.reading.loading import RUN_IT, LoadedPolicy, Source, logger
from foundation.checkpoints.reading.outputs import ScoringNetwork
from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.policies.policy_network import PolicyNetwork

_ACTIVATIONS = {
    "Elu": "elu", "Relu": "relu", "Tanh": "tanh", "Selu": "selu", "LeakyRelu": "lrelu", "Celu": "crelu",
    "Erf": "gelu", "Gelu": "gelu", "Mish": "mish", "Softplus": "softplus", "Sigmoid": "sigmoid",
}  # fmt: skip
_ACTION_NAMES = ("actions", "action", "continuous_actions", "mu", "mean", "output")


_KEEPS_NUMBERS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_ALL_SCORES = "scores of all choices"


def recognise_file(path: Path, head: bytes) -> bool:
    """Return whether a file is in this format."""
    return is_onnx(path, head)


def load_file(source: Source) -> LoadedPolicy:
    """Read the policy."""
    graph = read_onnx(source.path)
    observations, states = _inputs(graph, source.path)
    rest = [name for name in graph.outputs if name not in states.values()]
    if not rest:
        _refuse(source.path, "has no output that could be the action")
    action = next((name for name in _ACTION_NAMES if name in rest), rest[0])
    scores = _scores(graph, action)
    try:
        network: PolicyNetwork = OnnxNetwork(graph, observations, action, states)
        if scores:
            network = _choosing(source, graph, observations, scores, states)
        with torch.no_grad():
            given = torch.zeros(2, network.num_obs)
            output, state = network.step(given, network.initial_state(2))
            shapes_hold = output.mean.shape == (2, network.num_actions) and network.num_actions > 0
            if state is not None:
                shapes_hold &= state.shape == (2, network.state_size)
    except Exception as error:  # a graph that does not fit together fails in any of torch's ways
        text = one_line(error)
        raise UserError(
            f"'{source.path}' is an ONNX model that cannot be run by foundation ({text}). {RUN_IT}."
        ) from error
    if not shapes_hold:
        _refuse(source.path, "gives something else than one action and one memory for each environment")
    others = [name for name in rest if name != action]
    if others:
        logger.info("'%s': output '%s' is the action; %s are not used.", source.path, action, ", ".join(others))
    return _loaded(source, graph, network, observations)


def _scores(graph: OnnxGraph, action: str) -> list[str]:
    """Return the values whose largest element's index is the action, one for each of its choices; empty: none is."""
    makers = {output: node for node in graph.nodes for output in node.outputs}
    found: list[str] = []
    left = [action]
    while left:
        node = makers.get(left.pop(0))
        if node is None:
            return []
        if node.kind == "ArgMax":
            if node.attributes.get("axis", 0) not in (1, -1) or node.attributes.get("select_last_index"):
                return []
            found.append(node.inputs[0])
        elif node.kind == "Concat":
            left += node.inputs
        elif node.kind in _KEEPS_NUMBERS:
            left.append(node.inputs[0])
        else:
            return []
    return found


def _choosing(
    source: Source, graph: OnnxGraph, observations: list[str], scores: list[str], states: dict[str, str]
) -> ScoringNetwork:
    """Return a policy of discrete actions by the scores of its choices."""
    sizes = [OnnxNetwork(graph, observations, name, states).num_actions for name in scores]
    graph.nodes.append(OnnxNode("Concat", scores, [_ALL_SCORES], {"axis": 1}))
    inner = OnnxNetwork(graph, observations, _ALL_SCORES, states)
    return ScoringNetwork(inner, source.overrides.outputs == "q_values", sizes)


def _inputs(graph: OnnxGraph, path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the inputs that are observed, flat one first, and the output that belongs to each that remembers."""
    shapes = graph.inputs
    flat = [name for name, shape in shapes.items() if len(shape) in (1, 2)]
    images = [name for name, shape in shapes.items() if len(shape) == 4]
    memory = [name for name in shapes if name not in flat and name not in images]
    if any(-1 in shape[1:] for shape in shapes.values() if len(shape) != 3):
        _refuse(path, "has an input whose size is left open, so that it is not known what it reads")
    if len(flat) != 1:
        listed = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())
        _refuse(path, f"has the inputs {listed}: one of them, flat, was expected to be the observation")
    states = {}
    for name in memory:
        after = f"{name[: -len('_in')]}_out"
        if not name.endswith("_in") or after not in graph.outputs or len(shapes[name]) != 3:
            _refuse(path, f"has the input '{name}' {shapes[name]}, which is neither an observation nor a memory")
        if any(size == -1 for size in (shapes[name][0], shapes[name][2])) or shapes[name][1] not in (-1, 1):
            _refuse(path, f"has a memory '{name}' of shape {shapes[name]}, not (layers, 1, units)")
        states[name] = after
    if any(shapes[name][0] not in (-1, 1) for name in (*flat, *images) if len(shapes[name]) > 1):
        _refuse(path, "was exported for several environments at once. Export it for one")
    return [*flat, *images], states


def _loaded(source: Source, graph: OnnxGraph, network: PolicyNetwork, observations: list[str]) -> LoadedPolicy:
    groups = source.overrides.obs_groups or source.agent.obs_groups(source.agent.role())
    images = observations[1:]
    dims, activation = _architecture(graph)
    policy = finish(
        source,
        "ONNX export",
        network,
        (activation, CHECKPOINT),
        hidden_dims=dims,
        distribution=network.choices if isinstance(network, ScoringNetwork) else None,
        num_choices=network.num_choices if isinstance(network, ScoringNetwork) else None,
        clip_actions=source.agent.clip_actions(),
        obs_normalization=_normalizes(graph),
        recurrence=_recurrence(graph),
        image_groups=images,
        image_shapes={name: graph.inputs[name][1:] for name in images} or None,
        more={"producer": graph.producer},
        joint_order=graph.joint_names,
    )
    ordered = None if groups is None else [name for name in groups if name not in images] + images
    return policy.with_groups(ordered)


def _architecture(graph: OnnxGraph) -> tuple[list[int], str]:
    """Return the sizes of the dense hidden layers and the activations between them."""
    dense = [index for index, node in enumerate(graph.nodes) if node.kind in ("Gemm", "MatMul")]
    sizes = []
    for index in dense:
        node = graph.nodes[index]
        weight = graph.constants.get(node.inputs[1])
        if weight is not None and weight.dim() == 2:
            sizes.append(weight.shape[0 if node.attributes.get("transB") else 1])
    names: dict[str, None] = {}
    for node in graph.nodes[: dense[-1]] if dense else []:
        used = [
            other.kind for other in graph.nodes if node.outputs[0] in other.inputs and node.inputs[0] in other.inputs
        ]
        if node.kind in _ACTIVATIONS:
            names["swish" if node.kind == "Sigmoid" and "Mul" in used else _ACTIVATIONS[node.kind]] = None
    return sizes[:-1], ", ".join(names) or "identity"


def _normalizes(graph: OnnxGraph) -> bool:
    """Return whether the observation is shifted and scaled before the first layer."""
    layers = ("Gemm", "MatMul", "GRU", "LSTM", "Conv")
    first = next((index for index, node in enumerate(graph.nodes) if node.kind in layers), 0)
    kinds = {node.kind for node in graph.nodes[:first]}
    return "Sub" in kinds and bool(kinds & {"Div", "Mul"})


def _recurrence(graph: OnnxGraph) -> str:
    cells = [node for node in graph.nodes if node.kind in ("GRU", "LSTM")]
    return f"{cells[0].kind.lower()} {cells[0].attributes.get('hidden_size')} x {len(cells)}" if cells else "none"


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"'{path}' {what}. {RUN_IT}.")
