"""Policies as TorchScript, as Isaac Lab's and unitree's runners load them: ``forward(obs)`` and ``reset()``."""

from __future__ import annotations

import json
import warnings
from typing import BinaryIO

import torch
from torch import nn

from foundation.deploy.description import Description
from foundation.deploy.program import Program
from foundation.export.torch_step import ProgramStep, initial_state

DESCRIPTION = "foundation.json"
"""Name of the extra file of the archive that holds the description."""


def write_torchscript(file: BinaryIO, program: Program, description: Description) -> None:
    """Write a policy whose memory is inside.

    ``forward(obs)`` takes (num_envs, num_obs) or (num_obs,) and remembers; the memory is reset when the number of
    environments changes, by ``reset()``, and by ``reset_envs(mask)`` for some of them.

    Args:
        file: Stream to write to.
        program: The policy's operations.
        description: Its inputs and outputs; saved in the archive as an extra file.
    """
    with warnings.catch_warnings():
        # PyTorch deprecates TorchScript for torch.export, but the runners of Isaac Lab and unitree load TorchScript.
        warnings.simplefilter("ignore", DeprecationWarning)
        module = to_torchscript(program)
        extra = {DESCRIPTION: json.dumps(description.as_dict())}
        file.write(module.save_to_buffer(_extra_files=extra))


@torch.no_grad()
def to_torchscript(program: Program) -> torch.jit.ScriptModule:
    """Return the module; see :func:`write_torchscript`."""
    step = ProgramStep(program, "TorchScript").eval()
    state = initial_state(program, 3)
    traced = torch.jit.trace(step, (torch.zeros(3, program.num_obs), state), check_trace=False)
    assert isinstance(traced, nn.Module)
    return torch.jit.script(_Exported(traced, state[0].clone()).eval())


class _Exported(nn.Module):
    """A traced step with its memory."""

    def __init__(self, core: nn.Module, initial: torch.Tensor) -> None:
        super().__init__()
        self.core = core
        # Declared here and not in the class body: TorchScript cannot read annotations that are strings.
        self.initial: torch.Tensor
        self.state: torch.Tensor
        self.register_buffer("initial", initial)
        self.register_buffer("state", initial.unsqueeze(0).clone())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        rows = obs if obs.dim() == 2 else obs.reshape(1, -1)
        if self.state.shape[0] != rows.shape[0]:
            self.state = self.initial.repeat(rows.shape[0], 1)
        actions, state = self.core(rows, self.state)
        self.state = state
        return actions if obs.dim() == 2 else actions.reshape(-1)

    @torch.jit.export
    def reset(self) -> None:
        self.state = self.initial.repeat(self.state.shape[0], 1)

    @torch.jit.export
    def reset_envs(self, mask: torch.Tensor) -> None:
        if self.state.shape[0] != mask.shape[0]:
            self.state = self.initial.repeat(mask.shape[0], 1)
        self.state = torch.where(mask.reshape(-1, 1), self.initial, self.state)
