"""Lower precision and compilation of the student while it learns."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from foundation.core.distributed import ALONE, Ranks
from foundation.core.errors import UserError
from foundation.policies.output import PolicyOutput
from foundation.policies.rnn import RecurrentCore

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Type that the student's products are computed in, by ``optimizer.precision``."""


class Precision:
    """Computes the student in the chosen precision. Weights, losses and the optimiser stay float32.

    Args:
        name: A key of :data:`AUTOCAST`.
        device: Where the student is.
        ranks: The processes that learn together: each takes the same step, along the mean of their gradients.

    Raises:
        UserError: For float16 without CUDA, whose gradients would vanish.
    """

    def __init__(self, name: str, device: torch.device, ranks: Ranks = ALONE):
        if name == "float16" and device.type != "cuda":
            raise UserError(
                f"distill.optimizer.precision=float16 needs a CUDA device, and this is {device}: take bfloat16"
            )
        self.dtype = AUTOCAST[name]
        self.device = device
        self.ranks = ranks
        self.scaler = torch.amp.GradScaler("cuda") if name == "float16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the student's forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def full(self, output: PolicyOutput) -> PolicyOutput:
        """Return the outputs in float32, for the losses."""
        if self.dtype is None:
            return output
        return PolicyOutput(output.mean.float(), *(None if field is None else field.float() for field in output[1:]))

    def step(
        self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, clipped: nn.Module, norm: float | None
    ) -> None:
        """Take one step of the optimiser; with float16, none where a gradient has overflowed.

        Args:
            loss: What is minimised.
            optimizer: Its gradients are cleared first.
            clipped: The module whose gradients are clipped together.
            norm: To this norm; None clips nothing.
        """
        optimizer.zero_grad(set_to_none=True)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.ranks.average_gradients(optimizer)
        if norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(clipped.parameters(), norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale of the gradients, which an exact resume needs; empty without one."""
        return {} if self.scaler is None else {"gradient_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if self.scaler is not None and "gradient_scaler" in state:
            self.scaler.load_state_dict(state["gradient_scaler"])


logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], student: nn.Module, ranks: Ranks = ALONE) -> Callable[..., Any]:
    """Compile a function of the student; one line and the function as it is where that fails.

    Recurrent layers stay as they are: over time they are kernels or loops of their own, that a compiler would unroll.

    Args:
        function: Called with tensors of the same shapes every time.
        student: What it calls.
        ranks: The processes that it averages over; what waits for them is not compiled.
    """
    if ranks.world_size > 1:
        ranks.mean_ = torch.compiler.disable(ranks.mean_)  # type: ignore[method-assign]
    for module in student.modules():
        if isinstance(module, RecurrentCore):
            module.sequence = torch.compiler.disable(module.sequence)  # type: ignore[method-assign]
    return _Compiled(function)


class _Compiled:
    """Compiles at the first call, when the shapes are known."""

    def __init__(self, function: Callable[..., Any]):
        self.eager = function
        self.call: Callable[..., Any] | None = None

    def __call__(self, *args: object) -> Any:
        if self.call is not None:
            return self.call(*args)
        try:
            call = torch.compile(self.eager, dynamic=False)
            result = call(*args)
        except Exception as error:  # compilers fail in many ways; what is wrong with the function fails again below
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("distill.optimizer.compile: cannot compile here (%s); continuing without.", reason)
            call = self.eager
            result = self.eager(*args)
        self.call = call
        return result
