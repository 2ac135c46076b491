"""``torch.compile`` of the student's losses, and what happens where nothing can compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from foundation.policies.rnn import RecurrentCore

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], student: nn.Module) -> Callable[..., Any]:
    """Compile a function of the student; one line and the function as it is where that fails.

    Recurrent layers stay as they are: over time they are kernels or loops of their own, that a compiler would unroll.

    Args:
        function: Called with tensors of the same shapes every time.
        student: What it calls.
    """
    for module in student.modules():
        if isinstance(module, RecurrentCore):
            module.sequence = torch.compiler.disable(module.sequence)  # type: ignore[method-assign]
    return _Compiled(function)


class _Compiled:
    """Compiles at the first call, when the shapes are known."""

    def __init__(self, function: Callable[..., Any]):
        self.eager = function
        self.call: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.call is not None:
            return self.call(*args)
        try:
            call = torch.compile(self.eager, dynamic=False)
            result = call(*args)
        except Exception as error:  # compilers fail in many ways; what is wrong with the function fails again below
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("distill.optimizer.compile: cannot compile here (%s); going on without.", reason)
            call, result = self.eager, self.eager(*args)
        self.call = call
        return result
