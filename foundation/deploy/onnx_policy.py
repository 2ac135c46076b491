"""ONNX models that this project has exported, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy

from foundation.core.errors import UserError
from foundation.core.plain_json import parse_json
from foundation.core.text import one_line
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray
from foundation.deploy.onnx_graph import check_model
from foundation.deploy.shapes import Shape

METADATA = "foundation"
"""Key of the model's metadata under which description and memory are, as JSON."""


@dataclass(frozen=True)
class OnnxMemory:
    """An input that remembers, the output that is its next value, and the columns of the state that it holds."""

    name: str
    after: str
    columns: tuple[tuple[int, int], ...]
    """Start and size of each of its layers; its shape is (layers, num_envs, size)."""


class OnnxRuntime:
    """A session of onnxruntime on one thread: a policy's step is too short for more.

    A model of 8 bits rounds its inputs by the largest of the whole batch. So that robots do not depend on each other,
    each is computed alone there.
    """

    def __init__(self, path: Path) -> None:
        """Open the model.

        Args:
            path: The file.
        """
        try:
            import onnxruntime  # an optional package
        except ImportError:
            raise UserError(f"'{path}' is run by the package onnxruntime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            content = path.read_bytes()
            inputs = check_model(content)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"'{path}' is not an ONNX model that foundation has exported: {one_line(error)}. Export it again, or "
                "run it by onnxruntime itself."
            ) from error
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            texts = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime raises an error type of its own for each kind
            raise UserError(f"'{path}' cannot be run by onnxruntime: {one_line(error)}. Export it again.") from error
        if METADATA not in texts:
            raise UserError(f"'{path}' has no description of its policy: it was not written by foundation's export.py")
        try:
            values = parse_json(texts[METADATA])
            self.description = Description.from_dict(values["description"], f"'{path}'")
            self.initial_state: FloatArray = numpy.array(values["initial_state"], numpy.float32).reshape(-1)
            self._memories = [
                OnnxMemory(part["input"], part["output"], tuple((start, size) for start, size in part["columns"]))
                for part in values["memory"]
            ]
            self._outputs = ["actions", *(memory.after for memory in self._memories)]
            self._one_by_one = b"DynamicQuantizeLinear" in content
            self._check_inputs(inputs)
            self._try()
        except UserError:
            raise
        except Exception as error:  # a corrupt description fails in any of Python's, NumPy's and onnxruntime's ways
            raise UserError(f"'{path}' has corrupt metadata: {one_line(error)}. Export it again.") from error

    def _check_inputs(self, inputs: Mapping[str, Shape]) -> None:
        """Compare what is described with the model's inputs, given for one environment, before arrays are made."""
        described: dict[str, Shape] = {"obs": (1, self.description.num_obs)}
        columns: list[int] = []
        for memory in self._memories:
            size = memory.columns[0][1]
            described[memory.name] = (len(memory.columns), 1, size)
            columns += [column for start, length in memory.columns for column in range(start, start + length)[:size]]
            if any(length != size for _, length in memory.columns):
                raise ValueError(f"'{memory.name}' has layers of several sizes")
        if described != inputs or sorted(columns) != list(range(self.initial_state.size)):
            raise ValueError(f"it describes the inputs {described}, not {dict(inputs)}")

    def _try(self) -> None:
        """Act once, in two environments, to see that the model is the one that is described."""
        described = self.description
        obs = numpy.zeros((2, described.num_obs), numpy.float32)
        actions, state = self.run(obs, numpy.tile(self.initial_state, (2, 1)))
        expected = (2, described.num_actions), (2, described.state_size)
        if (actions.shape, state.shape) != expected:
            raise ValueError(f"it gives shapes {actions.shape} and {state.shape}, not {expected}")

    def run(self, obs: FloatArray, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return actions and the next state. Shapes: (num_envs, num_obs) and (num_envs, state_size)."""
        if not self._one_by_one or len(obs) == 1:
            return self._run(obs, state)
        robots = [self._run(obs[env, None], state[env, None]) for env in range(len(obs))]
        return numpy.concatenate([actions for actions, _ in robots]), numpy.concatenate([after for _, after in robots])

    def _run(self, obs: FloatArray, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        feed = {"obs": obs}
        for memory in self._memories:
            feed[memory.name] = numpy.stack([state[:, start : start + size] for start, size in memory.columns])
        actions, *kept = (numpy.asarray(value) for value in self._session.run(self._outputs, feed))
        after = numpy.empty_like(state)
        for memory, layers in zip(self._memories, kept, strict=True):
            for (start, size), layer in zip(memory.columns, layers, strict=True):
                after[:, start : start + size] = layer
        return actions, after
