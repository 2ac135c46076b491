"""TorchScript policies run by PyTorch, in evaluation mode, with what they remember taken out of them and put back."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from foundation.checkpoints.as_is.network import COUNTERS, ForeignNetwork, Memory, rows_of
from foundation.checkpoints.reading.loading import logger
from foundation.checkpoints.reading.script_archive import Node, read_script
from foundation.core.errors import UserError

_ACTIONS = ("actions", "action", "mu", "mean")
_FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda obs: obs,
    "one row": lambda obs: obs[0],
    "steps": lambda obs: obs.unsqueeze(0),
}
"""How a policy may want its observations: (num_rows, num_obs), (num_obs,) or (1, num_rows, num_obs)."""
_MOST_SIZES = 64


class ScriptNetwork(ForeignNetwork):
    """A TorchScript module. What it remembers is inside of it, or passed in and returned, or both."""

    def __init__(self, content: bytes, num_obs: int, form: str, inside: list[Memory], outside: list[Memory]) -> None:
        """Keep the archive: it is loaded onto the device of the observations.

        Args:
            content: The archive.
            num_obs: Number of observations.
            form: How it wants them.
            inside: Tensors in it that change as it acts, by ``path.name``.
            outside: Its further arguments, in order.
        """
        super().__init__(num_obs, [*inside, *outside])
        self._content, self._form, self._num_inside = content, form, len(inside)
        self._module: Any = None
        self._device: torch.device | None = None
        self.num_parameters = sum(parameter.numel() for parameter in _load(content, torch.device("cpu")).parameters())

    def _on(self, device: torch.device) -> Any:
        if device != self._device:
            module = _load(self._content, device)
            if not self._num_inside:  # nothing in it changes: its weights may become constants
                with contextlib.suppress(RuntimeError):
                    module = torch.jit.freeze(module)
            self._module, self._device = module, device
        return self._module

    def call(self, obs: torch.Tensor, before: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Put the memory into the module, run it, and take the memory out again. Shapes as in the base."""
        module = self._on(obs.device)
        given = [memory.outward(rows) for memory, rows in zip(self.memories, before, strict=True)]
        inside = self.memories[: self._num_inside]
        for memory, value in zip(inside, given, strict=False):
            holder, name = _place(module, memory.name)
            setattr(holder, name, value.clone())
        action, left = _outputs(module(_FORMS[self._form](obs), *given[self._num_inside :]))
        after = [getattr(*_place(module, memory.name)).clone() for memory in inside]
        answers = iter(left)
        for memory, rows in zip(self.memories[self._num_inside :], before[self._num_inside :], strict=True):
            after.append(rows if memory.counts else next(answers))
        flat = [
            value if memory.counts else memory.inward(value) for memory, value in zip(self.memories, after, strict=True)
        ]
        return rows_of(action, obs.shape[0]), flat


def load_script(path: Path, num_obs: int | None) -> ScriptNetwork:
    """Find out what a TorchScript policy reads and remembers.

    Args:
        path: The archive.
        num_obs: Number of observations, where the user says it.
    """
    content = path.read_bytes()
    try:
        return _find(path, content, _named_tensors(path, content), num_obs)
    except UserError:
        raise
    except Exception as error:  # TorchScript raises whatever the file's own code runs into
        text = " ".join(str(error).split())[-160:] or type(error).__name__
        raise UserError(f"'{path}' cannot be run by TorchScript: {text}. Export it again.") from error


def _named_tensors(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    """Return an archive's tensors by their places, those that are neither parameters nor buffers too."""
    try:
        return dict(_tensors(read_script(path)))
    except UserError as error:  # it holds more than modules and tensors
        logger.info("%s Its parameters and buffers alone are looked at.", error)
        module = _load(content, torch.device("cpu"))
        return dict(module.named_parameters()) | dict(module.named_buffers())


def _find(path: Path, content: bytes, tensors: dict[str, torch.Tensor], num_obs: int | None) -> ScriptNetwork:
    outside = _arguments(path, content)
    sizes = [num_obs] if num_obs is not None else _sizes(tensors)
    fitting = [(form, size) for form in _FORMS for size in sizes if _runs(content, form, size, outside)]
    form = fitting[0][0] if fitting else ""
    found = sorted({size for name, size in fitting if name == form})
    if not found:
        tried = f"{num_obs} observations" if num_obs is not None else f"any of {sizes[:8]} observations"
        _refuse(path, f"does not run with {tried}. Say their number: distill.teacher.num_obs=N")
    if len(found) > 1:
        _refuse(
            path, f"runs with {' or '.join(map(str, found))} observations. Say their number: distill.teacher.num_obs=N"
        )
    inside = _changing(content, tensors, form, found[0], outside)
    wrong: str | None = None
    for axes in _axes(inside):
        for memory, axis in zip(inside, axes, strict=True):
            memory.initial = memory.initial if axis is None else _without(memory, axis)
            memory.axis = axis
        network = ScriptNetwork(content, found[0], form, inside, outside)
        wrong = network.prepare()
        if wrong is None and (network.batched or not inside):
            return network
        inside = _changing(content, tensors, form, found[0], outside)
    for memory in inside:
        memory.axis = None
    network = ScriptNetwork(content, found[0], form, inside, outside)
    wrong = network.prepare()
    if wrong is not None:
        _refuse(path, wrong)
    return network


def _axes(inside: list[Memory]) -> Iterator[list[int | None]]:
    """Yield guesses where the tensors of a module have the dimension of environments: of size 1 as it is saved."""
    candidates = [[axis for axis, size in enumerate(memory.initial.shape) if size == 1] for memory in inside]
    if any(not axes for axes in candidates):
        return
    for choose in (min, max, lambda axes: axes[len(axes) // 2]):
        yield [choose(axes) for axes in candidates]


def _without(memory: Memory, axis: int) -> torch.Tensor:
    return memory.initial.squeeze(axis)


def _load(content: bytes, device: torch.device) -> Any:
    module = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    for parameter in module.parameters():
        parameter.requires_grad = False
    return module


def _arguments(path: Path, content: bytes) -> list[Memory]:
    """Return the arguments of ``forward`` after the first: counters, and the memory of its recurrent layers."""
    module = _load(content, torch.device("cpu"))
    rest = [argument for argument in module.forward.schema.arguments[2:] if not argument.has_default_value()]
    layers = [part for part in module.modules() if hasattr(part, "weight_hh_l0")]
    shapes: list[tuple[int, int]] = []
    for layer in layers:
        gates, size = layer.weight_hh_l0.shape
        count = sum(1 for name, _ in layer.named_parameters() if name.startswith("weight_hh_l"))
        shapes += [(count, size)] * (2 if gates == 4 * size else 1)
    kept = [argument for argument in rest if argument.name.lower() not in COUNTERS]
    if len(kept) != len(shapes) and kept:
        names = ", ".join(f"'{argument.name}'" for argument in kept)
        _refuse(path, f"takes {names} beside the observations, whose shapes are not known. Export it with these inside")
    given = iter(shapes)
    memories = []
    for argument in rest:
        if str(argument.type) != "Tensor":
            _refuse(path, f"takes '{argument.name}' of type {argument.type}. Export it with tensors alone")
        if argument.name.lower() in COUNTERS:
            memories.append(Memory(argument.name, torch.zeros(1), 0, counts=True))
        else:
            layer_count, size = next(given)
            memories.append(Memory(argument.name, torch.zeros(layer_count, size), 1))
    return memories


def _sizes(tensors: dict[str, torch.Tensor]) -> list[int]:
    """Return the sizes that the first dimension of a layer may have, in the order of the file."""
    found: dict[int, None] = {}
    for value in tensors.values():
        if value.dim() == 2 and value.shape[1] > 1:
            found[value.shape[1]] = None
    return list(found)[:_MOST_SIZES]


def _tensors(node: Node, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in node.values.items():
        if isinstance(value, Node):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def _example(size: int, outside: list[Memory]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    obs = 0.5 * torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    return obs, [memory.outward(memory.initial.unsqueeze(0)) for memory in outside]


@torch.no_grad()
def _runs(content: bytes, form: str, size: int, outside: list[Memory]) -> bool:
    """Return whether a module takes observations of a size, in a form."""
    obs, rest = _example(size, outside)
    try:
        _outputs(_load(content, torch.device("cpu"))(_FORMS[form](obs), *rest))
    except Exception:  # TorchScript raises whatever the file's own code runs into
        return False
    return True


@torch.no_grad()
def _changing(
    content: bytes, tensors: dict[str, torch.Tensor], form: str, size: int, outside: list[Memory]
) -> list[Memory]:
    """Return the tensors of a module that are others after it has acted."""
    module = _load(content, torch.device("cpu"))
    _reset(module)
    names = [name for name in tensors if hasattr(*_place(module, name))]
    before = {name: getattr(*_place(module, name)).clone() for name in names}
    obs, rest = _example(size, outside)
    module(_FORMS[form](obs), *rest)
    after = {name: getattr(*_place(module, name)) for name in names}
    changed = [name for name in names if not _same(before[name], after[name])]
    return [Memory(name, before[name], dtype=before[name].dtype) for name in changed]


def _same(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before, after)


def _reset(module: Any) -> None:
    """Bring a module to an episode's start, where it has a method for it that takes nothing."""
    for name in ("reset", "reset_memory"):
        method = getattr(module, name, None)
        if method is not None and len(method.schema.arguments) == 1:
            method()
            return


def _place(module: Any, name: str) -> tuple[Any, str]:
    """Return the submodule that holds a tensor, and the tensor's name in it."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    return module, last


def _outputs(given: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the action, and further outputs in order."""
    if isinstance(given, torch.Tensor):
        return given, []
    if isinstance(given, dict):
        name = next((name for name in _ACTIONS if name in given), next(iter(given)))
        return _outputs((given[name], *(value for key, value in given.items() if key != name)))
    flat: list[torch.Tensor] = []
    for value in given:
        flat += (
            [value] if isinstance(value, torch.Tensor) else [part for part in value if isinstance(part, torch.Tensor)]
        )
    return flat[0], flat[1:]


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"'{path}' {what}.")
