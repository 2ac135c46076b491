"""Policies as ``torch.export`` writes them, ``.pt2``: any number of environments, memory in and out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray
from foundation.deploy.program import Program
from foundation.export.torch_step import ProgramStep, initial_state

FACTS = "foundation.json"
"""Name of the archive's extra file, which holds the description and the initial memory."""

Tensors = tuple[torch.Tensor, ...]
Step = Callable[[Tensors], Tensors]
"""From (obs,) to (actions,), or from (obs, state) to (actions, state)."""


def write_torch_export(file: BinaryIO, program: Program, description: Description) -> None:
    """Write a policy whose module is called as ``actions = module(obs)``, or ``actions, state = module(obs, state)``.

    Args:
        file: Stream to write to.
        program: The policy's operations.
        description: Its inputs and outputs; saved in the archive as an extra file.
    """
    facts = {
        "description": description.as_dict(),
        "initial_state": [float(number) for number in program.initial_state],
    }
    with warnings.catch_warnings():
        # It warns of a weight that is a view of another; none is taken for more than it is.
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(to_exported_program(program), file, extra_files={FACTS: json.dumps(facts)})


@torch.no_grad()
def to_exported_program(program: Program, num_envs: int | None = None) -> ExportedProgram:
    """Return the program as PyTorch exports it.

    Args:
        program: The policy's operations.
        num_envs: Number of environments that it is for. None: any.
    """
    rows = 3 if num_envs is None else num_envs
    step = ProgramStep(program, "a torch.export program").eval()
    inputs: Tensors = (torch.zeros(rows, program.num_obs),)
    module: nn.Module = _Memoryless(step)
    if program.state_size:
        inputs = (*inputs, initial_state(program, rows))
        module = step
    # Any size: a range that began at 2 would refuse the one environment of a robot.
    varying = None if num_envs is not None else tuple({0: Dim.DYNAMIC} for _ in inputs)
    return torch.export.export(module, inputs, dynamic_shapes=varying)


class _Memoryless(nn.Module):
    """A step of a policy without memory: observation in, action out."""

    def __init__(self, step: ProgramStep) -> None:
        super().__init__()
        self.inner = step

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.inner(obs, obs[:, :0])[0]


class Replayed:
    """What is called with its memory, as what a golden sequence is replayed by."""

    def __init__(self, step: Step, initial: FloatArray, one_by_one: bool = False) -> None:
        """Begin an episode.

        Args:
            step: From observation and memory, where there is one, to action and memory.
            initial: The memory at the start of an episode. Shape: (state_size,).
            one_by_one: Whether it takes one environment at a time.
        """
        self._step = step
        self._initial = torch.from_numpy(initial.copy())
        self._one_by_one = one_by_one
        self._state = self._initial.unsqueeze(0)

    @torch.no_grad()
    def step(self, obs: FloatArray) -> FloatArray:
        """Act. Shape: (num_envs, num_obs) to (num_envs, num_actions)."""
        self._take(len(obs))
        inputs: Tensors = (torch.from_numpy(obs),)
        if len(self._initial):
            inputs = (*inputs, self._state)
        if self._one_by_one:
            each = [self._step(tuple(part[row : row + 1].clone() for part in inputs)) for row in range(len(obs))]
            outputs = tuple(torch.cat([one[place] for one in each]) for place in range(len(each[0])))
        else:
            outputs = self._step(inputs)
        if len(self._initial):
            self._state = outputs[1]
        return outputs[0].numpy()

    def reset(self, mask: NDArray[numpy.bool_] | None = None) -> None:
        """Begin new episodes where ``mask``, or everywhere."""
        self._take(len(self._state) if mask is None else len(mask))
        begins = torch.ones(len(self._state), 1, dtype=torch.bool)
        if mask is not None:
            begins = torch.from_numpy(mask).unsqueeze(1)
        self._state = torch.where(begins, self._initial, self._state)

    def _take(self, num_envs: int) -> None:
        if len(self._state) != num_envs:
            self._state = self._initial.repeat(num_envs, 1)


def read_torch_export(path: Path) -> Replayed:
    """Load a file that :func:`write_torch_export` wrote.

    Args:
        path: The file.
    """
    extra = {FACTS: ""}
    try:
        module = torch.export.load(path, extra_files=extra).module()
        facts = json.loads(extra[FACTS])
        initial = numpy.array(facts["initial_state"], numpy.float32)
    except Exception as error:  # a corrupt archive fails in any of the ways of zip files, JSON and PyTorch
        raise UserError(f"'{path}' is not a torch.export file that foundation wrote: {one_line(error)}") from error

    def step(inputs: Tensors) -> Tensors:
        outputs = module(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return Replayed(step, initial)
