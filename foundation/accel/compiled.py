"""Functions of tensors that are compiled for one set of sizes, and called with next to nothing in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from foundation.core.errors import UserError

_ASKED_BY = "a compiled simulator (env.compile=true, --compile)"
_CPU_OPTIONS = {
    "max_fusion_size": 10_000,
    "cpp.max_horizontal_fusion_size": 10_000,
    "cpp_wrapper": True,
    "size_asserts": False,
}
"""One loop instead of many, called from C++: with the compiler's defaults a step of few environments takes twice as
long."""


def compiler_options(device: torch.device) -> dict[str, Any] | None:
    """Return the compiler's options for a device; None for its defaults.

    Raises:
        UserError: If a C++ compiler is needed and there is none.
    """
    if device.type != "cpu":
        return None
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name):
        raise UserError(f"{_ASKED_BY} needs a C++ compiler on the CPU: install g++, or leave it out")
    return _CPU_OPTIONS


class CompiledFunction:
    """A function of tensors, traced and compiled at its first call, or before. It computes no gradients.

    What ``torch.compile`` does at every call takes as long as a step of few environments: it compares the arguments
    with those that it has compiled for, and prepares for gradients. Here the caller answers for the arguments: shapes,
    strides and types of every call are those of the first.

    Args:
        function: Of tensors alone, without branches on their values; returns a sequence of tensors.
        device: Of the tensors.

    Raises:
        UserError: If compiling for this device needs a C++ compiler and there is none.
    """

    def __init__(self, function: Callable[..., Sequence[torch.Tensor]], device: torch.device):
        self._function = function
        self._options = compiler_options(device)
        self._call: Callable[..., Sequence[torch.Tensor]] | None = None

    def __call__(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return what the function returns."""
        if self._call is None:
            self.compile(*tensors)
            assert self._call is not None
        return self._call(*tensors)

    def compile(self, *tensors: torch.Tensor) -> None:
        """Trace and compile for tensors like these, which are neither read nor written.

        Raises:
            UserError: If the C++ compiler does not work.
        """
        self._call = generate_code(trace(self._function, tensors), tensors, self._options)


def trace(function: Callable[..., Sequence[torch.Tensor]], tensors: Sequence[torch.Tensor]) -> torch.fx.GraphModule:
    """Record the operations of a function on tensors of the given sizes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return make_fx(lambda *inputs: function(*inputs), tracing_mode="fake")(*tensors)


def generate_code(
    graph: torch.fx.GraphModule, tensors: Sequence[torch.Tensor], options: dict[str, Any] | None
) -> Callable[..., Sequence[torch.Tensor]]:
    """Compile recorded operations, with the compiler behind ``torch.compile``.

    Raises:
        UserError: If the C++ compiler does not work.
    """
    from torch import _inductor
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        with torch.no_grad():
            made = _inductor.compile(graph, list(tensors), options=options)
    except RuntimeError as error:
        cause = getattr(error, "inner_exception", error)
        if not isinstance(cause, CppCompileError | InvalidCxxCompiler):
            raise
        lines = str(cause).splitlines()
        said = next((line for line in lines if "error:" in line), lines[0])
        raise UserError(f"{_ASKED_BY} needs a C++ compiler that works: {said.strip()}") from error
    return cast(Callable[..., Sequence[torch.Tensor]], made)
