"""ONNX policies run by onnxruntime on the CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch

from foundation.checkpoints.as_is.network import COUNTERS, ForeignNetwork, Memory, rows_of
from foundation.checkpoints.onnx.file import load_model
from foundation.core.errors import UserError

_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool,
}  # fmt: skip
_ACTIONS = ("actions", "action", "continuous_actions", "mu", "mean", "output")


class OnnxRuntimeNetwork(ForeignNetwork):
    """A session of onnxruntime. Its observations are its inputs, flattened and one after the other."""

    def __init__(
        self, session: Any, observations: dict[str, list[int]], action: str, memories: list[Memory], states: list[str]
    ) -> None:
        """Keep the session.

        Args:
            session: An ``onnxruntime.InferenceSession``.
            observations: Shape of each input that is observed, without the dimension of environments.
            action: The output that is the action.
            memories: Inputs that remember or count.
            states: The output that is the next value of each memory that does not count, in order.
        """
        super().__init__({name: math.prod(shape) for name, shape in observations.items()}, memories)
        self.session = session
        self._observations = observations
        self._outputs = [action, *states]
        self._types = {given.name: _TYPES[given.type] for given in session.get_inputs()}

    def call(self, obs: torch.Tensor, before: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the session. Shapes as in the base."""
        parts = obs.cpu().split([math.prod(shape) for shape in self._observations.values()], dim=-1)
        feed = {
            name: part.reshape(obs.shape[0], *shape).to(self._types[name]).contiguous().numpy()
            for (name, shape), part in zip(self._observations.items(), parts, strict=True)
        }
        for memory, rows in zip(self.memories, before, strict=True):
            feed[memory.name] = memory.outward(rows.cpu()).contiguous().numpy()
        action, *left = (torch.from_numpy(numpy.array(value)) for value in self.session.run(self._outputs, feed))
        answers = iter(left)
        after = [
            rows if memory.counts else memory.inward(next(answers))
            for memory, rows in zip(self.memories, before, strict=True)
        ]
        return rows_of(action, obs.shape[0]), after


def load_onnx(path: Path, said: list[int]) -> OnnxRuntimeNetwork:
    """Find out what an ONNX policy reads and remembers.

    Args:
        path: The model.
        said: Number of observations of each input, where the user has set it, else empty.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"'{path}' is run as it is by the package onnxruntime: pip install -e '.[export]' in the clone's folder"
        ) from error
    model = load_model(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # threads that wait leave the CPU to others

    def prepared(proto: Any) -> tuple[OnnxRuntimeNetwork, str | None]:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        network = _network(path, session, said)
        network.num_parameters = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.dims)
        return network, network.prepare()

    try:
        network, wrong = prepared(model)
        if wrong is None and not network.batched:
            network = _together(model, network, prepared)
    except UserError:
        raise
    except Exception as error:  # onnxruntime raises an error type of its own for each kind
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"'{path}' cannot be run by onnxruntime: {text}. Export it again.") from error
    if wrong is not None:
        _refuse(path, wrong)
    return network


def _together(model: Any, alone: OnnxRuntimeNetwork, prepared: Any) -> OnnxRuntimeNetwork:
    """Return the policy for all environments at once, where the model fixes their number to 1 but works for any."""
    opened = type(model)()
    opened.CopyFrom(model)
    axes = {memory.name: memory.axis for memory in alone.memories}
    for value in [*opened.graph.input, *opened.graph.output]:
        shape = value.type.tensor_type.shape
        axis = axes.get(value.name, 0)
        if axis is not None and len(shape.dim) > axis:
            shape.dim[axis].dim_param = "num_envs"
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    del opened.graph.value_info[:]
    try:
        network, wrong = prepared(opened)
    except Exception:  # the graph itself fixes the number
        return alone
    return network if wrong is None and network.batched else alone


def _network(path: Path, session: Any, said: list[int]) -> OnnxRuntimeNetwork:
    inputs = {given.name: _shape(given.shape) for given in session.get_inputs()}
    types = {given.name: given.type for given in session.get_inputs()}
    for name, kind in types.items():
        if kind not in _TYPES:
            _refuse(path, f"has the input '{name}' of type {kind}, which is not understood")
    outputs = {given.name: _shape(given.shape) for given in session.get_outputs()}
    counters = [name for name in inputs if name.lower() in COUNTERS]
    states = _states({name: shape for name, shape in inputs.items() if name not in counters}, outputs)
    rest = [name for name in outputs if name not in states.values()]
    if not rest:
        _refuse(path, "has no output that could be the action")
    action = next((name for name in _ACTIONS if name in rest), rest[0])
    memories = [_counter(name, inputs[name], _TYPES[types[name]]) for name in counters]
    memories += [_memory(path, name, inputs[name], _TYPES[types[name]]) for name in states]
    observed = {name: shape for name, shape in inputs.items() if name not in counters and name not in states}
    return OnnxRuntimeNetwork(session, _sizes(path, observed, said), action, memories, list(states.values()))


def _sizes(path: Path, observed: dict[str, list[int]], said: list[int]) -> dict[str, list[int]]:
    """Return the shape of each input that is observed, without the dimension of environments."""
    if not observed or not all(observed.values()):
        _refuse(path, "has no input that could be the observation")
    shapes = {name: shape[1:] if len(shape) > 1 else shape for name, shape in observed.items()}
    names = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())
    if said and len(said) == len(shapes):
        for (name, shape), size in zip(shapes.items(), said, strict=True):
            if shape == [-1]:
                shapes[name] = [size]
            elif math.prod(shape) != size:
                _refuse(path, f"reads {names}, which does not go with the sizes {said} that are said")
    elif len(said) > 1:
        _refuse(path, f"reads {names}, and {len(said)} sizes are given: {said}")
    open_ones = [name for name, shape in shapes.items() if -1 in shape]
    if open_ones and len(shapes) == 1:
        _refuse(path, f"leaves open how much it reads of '{open_ones[0]}'. Set distill.teacher.num_obs=N")
    if open_ones:
        sizes = ",".join(f"N{index + 1}" for index in range(len(shapes)))
        _refuse(path, f"reads {names}, -1 for sizes left open. Set 'distill.teacher.input_sizes=[{sizes}]'")
    return shapes


def _counter(name: str, shape: list[int], dtype: torch.dtype) -> Memory:
    numbers = max(1, abs(math.prod(shape[1:])))
    return Memory(name, torch.zeros([numbers] if len(shape) > 1 else []), 0, counts=True, dtype=dtype)


def _memory(path: Path, name: str, shape: list[int], dtype: torch.dtype) -> Memory:
    axis = _axis(shape)
    own = [size for index, size in enumerate(shape) if index != axis]
    if -1 in own:
        _refuse(path, f"has a memory '{name}' of shape {shape}, whose size is left open")
    return Memory(name, torch.zeros(own), axis, dtype=dtype)


def _shape(dims: list[Any]) -> list[int]:
    return [size if isinstance(size, int) and size > 0 else -1 for size in dims]


def _axis(shape: list[int]) -> int | None:
    """Return where a memory has the dimension of environments: where its size is open, else where it is 1."""
    if -1 in shape:
        return shape.index(-1)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    usual = 1 if len(shape) == 3 else 0  # recurrent layers: (layers, environments, units)
    if usual in ones:
        return usual
    return ones[0] if ones else None


def _states(inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> dict[str, str]:
    """Return the output that is the next step's value of each input that remembers.

    They are recognised by their names (``h_in`` and ``h_out``, ``hidden`` and ``next_hidden``), or because they are the
    only pair of one shape.
    """
    states: dict[str, str] = {}
    for name, shape in inputs.items():
        found = [other for other in outputs if other != name and _belong(name, other) and _alike(outputs[other], shape)]
        if len(found) == 1:
            states[name] = found[0]
    left = {name: shape for name, shape in inputs.items() if name not in states}
    free = {name: shape for name, shape in outputs.items() if name not in states.values()}
    if len(left) > 1 and len(free) > 1:
        for name, shape in list(left.items())[1:]:  # the first is the observation, and the first output the action
            same = [other for other in list(free)[1:] if _alike(free[other], shape) and len(shape) > 1]
            if len(same) == 1:
                states[name] = same[0]
                del free[same[0]]
    return {name: states[name] for name in inputs if name in states}


def _alike(one: list[int], other: list[int]) -> bool:
    """Return whether two shapes may be the same; -1 stands for any size."""
    return len(one) == len(other) and all(-1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def _belong(name: str, other: str) -> bool:
    """Return whether two names differ in no more than what says before and after."""
    marks = (
        "_in",
        "_out",
        "in_",
        "out_",
        "next_",
        "_next",
        "new_",
        "_new",
        "prev_",
        "_prev",
        "0",
        "n",
        "_t",
        "_t1",
        ".1",
    )
    stems = []
    for given in (name.lower(), other.lower()):
        stem = {given}
        for mark in marks:
            stem |= {given.removeprefix(mark), given.removesuffix(mark)}
        stems.append(stem)
    return bool(stems[0] & stems[1] - {""})


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"'{path}' {what}.")
