"""Policies for ExecuTorch, ``.pte``: one robot, memory in and out, portable kernels."""

# ExecuTorch need not be installed, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import BinaryIO

import torch

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.deploy.description import Description
from foundation.deploy.program import Program
from foundation.export.torch_export import Replayed, Tensors, to_exported_program

INSTALL = "format 'executorch' is written and run by the package executorch: pip install executorch"


def write_executorch(file: BinaryIO, program: Program, description: Description) -> None:
    """Write a policy whose method ``forward`` takes ``obs`` (1, num_obs) and, where it has one, ``state``.

    Its methods ``initial_state`` (1, state_size) and ``description`` (JSON) return what a program needs to begin.

    Args:
        file: Stream to write to.
        program: The policy's operations.
        description: Its inputs and outputs.
    """
    try:
        from executorch.exir import to_edge_transform_and_lower  # an optional package
    except ImportError:
        raise UserError(INSTALL) from None
    constants: dict[str, torch.Tensor | str] = {"description": json.dumps(description.as_dict())}
    if program.state_size:
        constants["initial_state"] = torch.from_numpy(program.initial_state.copy()).unsqueeze(0)
    exported = to_exported_program(program, num_envs=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecations
            lowered = to_edge_transform_and_lower(exported, constant_methods=constants).to_executorch()
    except Exception as error:  # an operator without a portable kernel fails in any of ExecuTorch's ways
        raise UserError(f"ExecuTorch has no kernel for a layer of this policy: {one_line(error)}") from error
    file.write(lowered.buffer)


def read_executorch(path: Path) -> Replayed:
    """Load a file that :func:`write_executorch` wrote, by ExecuTorch's own runtime.

    Args:
        path: The file.
    """
    try:
        from executorch.runtime import Runtime  # an optional package
    except ImportError:
        raise UserError(INSTALL) from None
    try:
        program = Runtime.get().load_program(path)
        forward = program.load_method("forward")
        initial = torch.zeros(0)
        if "initial_state" in program.method_names:
            initial = program.load_method("initial_state").execute([])[0].reshape(-1).clone()
    except Exception as error:  # a corrupt program fails in any of ExecuTorch's ways
        raise UserError(f"'{path}' cannot be run by ExecuTorch: {one_line(error)}") from error

    def step(inputs: Tensors) -> Tensors:
        # The runtime writes into the same memory at each call.
        return tuple(output.clone() for output in forward.execute(list(inputs)))

    return Replayed(step, initial.numpy(), one_by_one=True)
