"""An ONNX graph as a policy: run for one environment at a time and mapped over all of them."""

from __future__ import annotations

import math

import torch
from torch import nn

from foundation.checkpoints.onnx.bounded import Bounded
from foundation.checkpoints.onnx.file import OnnxGraph, OnnxNode
from foundation.checkpoints.onnx.ops import OPERATORS, ROWWISE
from foundation.core.archives import ROOM
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork

_LAYERS = ("Gemm", "MatMul", "GRU", "LSTM", "Conv")


class OnnxNetwork(PolicyNetwork):
    """A policy with the interface that students have. Exporters fix the batch to 1; here every row is such a batch."""

    def __init__(self, graph: OnnxGraph, observations: list[str], action: str, states: dict[str, str]) -> None:
        """Prepare the graph: what does not depend on the inputs is computed once.

        Args:
            graph: The computation.
            observations: Inputs whose numbers, flattened and in this order, are one observation.
            action: The output that is the action.
            states: Output that is the next step's value of each input that remembers.
        """
        super().__init__()
        self._dtypes = graph.dtypes
        self._observations = [(name, [abs(size) for size in graph.inputs[name]]) for name in observations]
        self._states = [(name, [abs(size) for size in graph.inputs[name]]) for name in states]
        self._outputs = [action, *states.values()]
        self.num_obs = sum(math.prod(shape) for _, shape in self._observations)
        self.state_size = sum(math.prod(shape) for _, shape in self._states)
        begun = [
            graph.initial.get(name, torch.zeros([abs(size) for size in graph.inputs[name]])).reshape(-1)
            for name in states
        ]
        self._initial: torch.Tensor
        self.register_buffer("_initial", torch.cat(begun) if begun else torch.zeros(0))
        self._small: dict[str, torch.Tensor] = {}
        self._names: dict[str, str] = {}
        self._nodes = self._fold(graph)
        constants = self._constants()
        self._rowwise = not states and len(observations) == 1
        self._rowwise &= all(_is_rowwise(node, constants) for node in self._nodes)
        self._rowwise &= len(self._observations[0][1]) == 2
        self.num_actions = self._one(torch.zeros(self.num_obs), torch.zeros(self.state_size))[0].numel()
        self.requires_grad_(False).eval()

    def _fold(self, graph: OnnxGraph) -> list[OnnxNode]:
        """Compute every node that depends on constants and shapes alone, and keep what the others need."""
        known = dict(graph.constants)
        shapes = self._observations + self._states
        left: list[OnnxNode] = []
        with Bounded(ROOM + 4 * sum(value.nbytes for value in known.values())):
            trial = known | {name: torch.zeros(shape, dtype=self._dtypes[name]) for name, shape in shapes}
            for node in graph.nodes:
                results = _run(node, trial)
                trial.update(results)
                if node.kind == "Shape" or all(name in known or not name for name in node.inputs):
                    known.update(results)
                else:
                    left.append(node)
        wanted = {name for node in left for name in node.inputs} | set(self._outputs)
        weights = {name for node in left if node.kind in _LAYERS for name in node.inputs}
        for index, name in enumerate(sorted(wanted & set(known))):
            value = known[name]
            if value.is_floating_point() and name in weights:
                self._names[name] = f"weight_{index}"
                self.register_parameter(f"weight_{index}", nn.Parameter(value))
            elif value.is_floating_point() or value.dtype == torch.bool:
                self._names[name] = f"constant_{index}"
                self.register_buffer(f"constant_{index}", value)
            else:  # shapes and indices are read by the host
                self._small[name] = value
        return left

    def _constants(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, buffer) for name, buffer in self._names.items()} | self._small

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the memory at the start of an episode. Shape: (num_envs, state_size)."""
        return self._initial.to(device=device).repeat(num_envs, 1) if self.state_size else None

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        if not self.state_size:
            return PolicyOutput(mean=self._rows(obs.flatten(0, -2)).unflatten(0, obs.shape[:-1])), state
        if sequence:
            return self.run_steps(obs, state, resets)
        assert state is not None
        mean, after = torch.vmap(self._one)(obs, state)
        return PolicyOutput(mean=mean), after

    def _rows(self, obs: torch.Tensor) -> torch.Tensor:
        if self._rowwise:
            name = self._observations[0][0]
            return self._values({name: obs.to(self._dtypes[name])})[0].float()
        return torch.vmap(lambda row: self._one(row, row.new_zeros(0))[0])(obs)

    def _one(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Act in one environment. Shape of obs: (num_obs,), of state: (state_size,)."""
        values = self._cut(obs, self._observations) | self._cut(state, self._states)
        action, *after = self._values(values)
        flat = [value.reshape(-1).float() for value in after]
        return action.reshape(-1).float(), torch.cat(flat) if flat else state

    def _cut(self, flat: torch.Tensor, places: list[tuple[str, list[int]]]) -> dict[str, torch.Tensor]:
        parts = flat.split([math.prod(shape) for _, shape in places]) if places else ()
        return {
            name: part.reshape(shape).to(self._dtypes[name]) for (name, shape), part in zip(places, parts, strict=True)
        }

    def _values(self, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        values = self._constants() | values
        for node in self._nodes:
            values.update(_run(node, values))
        return [values[name] for name in self._outputs]


def _is_rowwise(node: OnnxNode, constants: dict[str, torch.Tensor]) -> bool:
    """Return whether a node does the same to a batch of rows as to each row."""
    if node.kind not in ROWWISE or node.attributes.get("transA"):
        return False
    if node.kind in ("Gemm", "MatMul"):
        if node.inputs[0] in constants or node.inputs[1] not in constants or constants[node.inputs[1]].dim() != 2:
            return False
        rest = node.inputs[2:]
    else:
        rest = node.inputs
    shapes = [constants[name].shape for name in rest if name in constants]
    return all(len(shape) < 2 or (len(shape) == 2 and shape[0] == 1) for shape in shapes)


def _run(node: OnnxNode, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = OPERATORS[node.kind](node.attributes, [values[name] if name else None for name in node.inputs])
    results = result if isinstance(result, list) else [result]
    return dict(zip(node.outputs, results, strict=False))
