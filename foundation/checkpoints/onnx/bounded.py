"""Run a graph for the first time with bounded memory: the size of each result is known before it is allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"}
"""Operations that return a Python number; they have no result to measure."""


class Bounded(TorchDispatchMode):
    """A mode in which each operation is first run on the meta device, and raises if the results are too large in sum.

    Args:
        most: Largest sum of the results' sizes [bytes]; results that have been freed count too.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if func.is_view or func._schema.name in _READS:
            return func(*args, **kwargs)
        given, options = pytree.tree_map_only(torch.Tensor, _without_memory, (args, kwargs))
        if "device" in options:
            options["device"] = "meta"
        try:
            results = func(*given, **options)
        except NotImplementedError:  # it depends on values, which the meta device does not have
            return func(*args, **kwargs)
        sizes = [out.untyped_storage().nbytes() for out in pytree.tree_leaves(results) if isinstance(out, torch.Tensor)]
        self.left -= sum(sizes)
        if self.left < 0:
            shape = next((list(out.shape) for out in pytree.tree_leaves(results) if isinstance(out, torch.Tensor)), [])
            raise ValueError(f"its results are too large, {shape} among them")
        return func(*args, **kwargs)


def _without_memory(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
