"""TorchScript policies run by PyTorch in evaluation mode, their hidden memory read out and set from outside."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
"""Shapes in which a policy may take its observations: (num_rows, num_obs), (num_obs,) or (1, num_rows, num_obs)."""
_MAX_SIZES = 64
_MAX_OUTPUTS = 64


class ScriptNetwork(ForeignNetwork):
    """A TorchScript module. What it remembers is inside of it, or passed in and returned, or both."""

    def __init__(
        self, content: bytes, sizes: list[int], form: str, inside: list[Memory], signature: _Signature
    ) -> None:
        """Keep the archive: it is loaded onto the device of the observations.

        Args:
            content: The archive.
            sizes: Number of observations of each argument that is observed.
            form: Shape in which it takes them, a key of ``_FORMS``.
            inside: Tensors in it that change as it acts, by ``path.name``.
            signature: Its arguments.
        """
        super().__init__(dict(zip(signature.observed, sizes, strict=True)), [*inside, *signature.memories])
        self._content = content
        self._form = form
        self._num_inside = len(inside)
        self._signature = signature
        self._module: Any = None
        self._device: torch.device | None = None
        self.num_parameters = sum(parameter.numel() for parameter in _load(content, torch.device("cpu")).parameters())

    def _on(self, device: torch.device) -> Any:
        if device != self._device:
            module = _load(self._content, device)
            if not self._num_inside:  # nothing in it changes: its weights may become constants
                with contextlib.suppress(RuntimeError):
                    module = torch.jit.freeze(module)
            self._module = module
            self._device = device
        return self._module

    def call(self, obs: torch.Tensor, before: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Put the memory into the module, run it, and take the memory out again. Shapes as in the base."""
        module = self._on(obs.device)
        given = [memory.outward(rows) for memory, rows in zip(self.memories, before, strict=True)]
        inside = self.memories[: self._num_inside]
        for memory, value in zip(inside, given, strict=False):
            holder, name = _place(module, memory.name)
            setattr(holder, name, value.clone())
        parts = obs.split(list(self.inputs.values()), dim=-1)
        action, left = _outputs(module(*self._signature.arguments(self._form, parts, given[self._num_inside :])))
        after = [getattr(*_place(module, memory.name)).clone() for memory in inside]
        answers = iter(left)
        for memory, rows in zip(self.memories[self._num_inside :], before[self._num_inside :], strict=True):
            after.append(rows if memory.counts else next(answers))
        flat = [
            value if memory.counts else memory.inward(value) for memory, value in zip(self.memories, after, strict=True)
        ]
        return rows_of(action, obs.shape[0]), flat


@dataclass(frozen=True)
class _Signature:
    """The arguments of ``forward``, sorted by what they mean."""

    names: list[str]
    """All of them, in order."""
    observed: list[str]
    """Those that are observations."""
    memories: list[Memory]
    """The others, in order."""

    def arguments(self, form: str, parts: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return what to call it with.

        Args:
            form: Shape in which it takes observations, a key of ``_FORMS``.
            parts: Observations of each argument that is observed. Shape: (num_rows, number of its observations).
            given: The others, as it takes them.
        """
        values = dict(zip(self.observed, map(_FORMS[form], parts), strict=True))
        values |= {memory.name: value for memory, value in zip(self.memories, given, strict=True)}
        return [values[name] for name in self.names]

    def to_set(self) -> str:
        """Return what to type where the sizes of what is observed are not known."""
        if len(self.observed) == 1:
            return "distill.teacher.num_obs=N"
        return f"'distill.teacher.input_sizes=[{','.join(f'N_{name}' for name in self.observed)}]'"


def load_script(path: Path, said: list[int]) -> ScriptNetwork:
    """Find out what a TorchScript policy reads and remembers.

    Args:
        path: The archive.
        said: Number of observations of each of its arguments, where the user has set it, else empty.
    """
    content = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration")  # said where flags are set and there is no Intel GPU
            # oneDNN's LSTM reads beyond tensors whose sizes do not fit, where PyTorch's own raises.
            with torch.backends.mkldnn.flags(enabled=False):
                return _find(path, content, _named_tensors(path, content), said)
    except UserError:
        raise
    except Exception as error:  # TorchScript raises whatever the file's own code runs into
        text = " ".join(str(error).split())[-160:] or type(error).__name__
        raise UserError(f"'{path}' cannot be run by TorchScript: {text}. Export it again.") from error


def _named_tensors(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    """Return an archive's tensors by path, also those that are neither parameters nor buffers."""
    try:
        return dict(_tensors(read_script(path)))
    except UserError as error:  # read_script refuses what is neither a module nor a tensor
        logger.info("%s Its parameters and buffers alone are looked at.", error)
        module = _load(content, torch.device("cpu"))
        return dict(module.named_parameters()) | dict(module.named_buffers())


def _find(path: Path, content: bytes, tensors: dict[str, torch.Tensor], said: list[int]) -> ScriptNetwork:
    signature = _signature(path, content, said)
    counted = sum(memory.counts for memory in signature.memories)  # may lie beside the observations in a layer
    sizes = dict.fromkeys(size - less for less in {0, counted} for size in _sizes(tensors) if size > less)
    choices = [said] if said else [[size] for size in sizes]
    fitting = [(form, sizes) for form in _FORMS for sizes in choices if _runs(content, form, sizes, signature)]
    form = fitting[0][0] if fitting else ""
    found = sorted(sizes for name, sizes in fitting if name == form)
    if not found:
        shown = [size for sizes in choices for size in sizes]
        tried = f"{' + '.join(map(str, said))} observations" if said else f"any of {shown[:8]} observations"
        _refuse(path, f"does not run with {tried}. Set {signature.to_set()}")
    if len(found) > 1:
        numbers = " or ".join(str(sizes[0]) for sizes in found)
        _refuse(path, f"runs with {numbers} observations. Set {signature.to_set()}")
    inside = _changing(content, tensors, form, found[0], signature)
    wrong: str | None = None
    for axes in _axes(inside):
        for memory, axis in zip(inside, axes, strict=True):
            memory.initial = memory.initial if axis is None else _without(memory, axis)
            memory.axis = axis
        network = ScriptNetwork(content, found[0], form, inside, signature)
        wrong = network.prepare()
        if wrong is None and (network.batched or not inside):
            return network
        inside = _changing(content, tensors, form, found[0], signature)
    for memory in inside:
        memory.axis = None
    network = ScriptNetwork(content, found[0], form, inside, signature)
    wrong = network.prepare()
    if wrong is not None:
        _refuse(path, wrong)
    return network


def _axes(inside: list[Memory]) -> Iterator[list[int | None]]:
    """Yield candidates for the environment dimension of each tensor of a module, which has size 1 in the file."""
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


def _signature(path: Path, content: bytes, said: list[int]) -> _Signature:
    """Sort the arguments of ``forward``: observations come first, then recurrent states; counters have known names.

    Args:
        path: The archive, for errors.
        content: Its bytes.
        said: Sizes of the observation arguments; empty where the user has not set them.
    """
    module = _load(content, torch.device("cpu"))
    if any(_nested(value.type) for value in module.forward.schema.returns):
        _refuse(path, "returns tuples in tuples in tuples. Export it so that it returns tensors, or a tuple of tensors")
    given = [argument for argument in module.forward.schema.arguments[1:] if not argument.has_default_value()]
    for argument in given:
        if str(argument.type) != "Tensor":
            _refuse(path, f"takes '{argument.name}' of type {argument.type}. Export it with tensors alone")
    names = [argument.name for argument in given]
    own = [name for index, name in enumerate(names) if index == 0 or name.lower() not in COUNTERS]
    shapes = _memory_shapes(module)
    count = len(said) if said else 1
    signature = _Signature(names, own[: max(1, len(own) - len(shapes))], [])
    if len(own) not in (count, count + len(shapes)):
        listed = ", ".join(f"'{name}'" for name in own)
        _refuse(path, f"takes {listed}, not {count} of observations. Set the size of each: {signature.to_set()}")
    remembered = dict(zip(own[count:], shapes, strict=False))
    memories = [
        Memory(name, torch.zeros(remembered[name]), 1)
        if name in remembered
        else Memory(name, torch.zeros(1), 0, counts=True)
        for name in names
        if name not in own[:count]
    ]
    return _Signature(names, own[:count], memories)


def _nested(kind: Any, depth: int = 0) -> bool:
    """Return whether a type nests deeper than an LSTM's output: sixty tuples of the one before are 1e18 tensors."""
    name = kind.kind()
    if name == "TupleType":
        elements = kind.elements()
        return depth > 2 or len(elements) > _MAX_OUTPUTS or any(_nested(element, depth + 1) for element in elements)
    if name in ("ListType", "OptionalType"):
        return depth > 2 or _nested(kind.getElementType(), depth + 1)
    return False


def _memory_shapes(module: Any) -> list[tuple[int, int]]:
    """Return the shape of each state of a module's recurrent layers: (layers, units), an LSTM's twice."""
    shapes: list[tuple[int, int]] = []
    for layer in (part for part in module.modules() if hasattr(part, "weight_hh_l0")):
        gates, size = layer.weight_hh_l0.shape
        count = sum(1 for name, _ in layer.named_parameters() if name.startswith("weight_hh_l"))
        shapes += [(count, size)] * (2 if gates == 4 * size else 1)
    return shapes


def _sizes(tensors: dict[str, torch.Tensor]) -> list[int]:
    """Return the sizes that the first dimension of a layer may have, in the order of the file."""
    found: dict[int, None] = {}
    for value in tensors.values():
        if value.dim() == 2 and value.shape[1] > 1:
            found[value.shape[1]] = None
    return list(found)[:_MAX_SIZES]


def _tensors(node: Node, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in node.values.items():
        if isinstance(value, Node):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def _example(form: str, sizes: list[int], signature: _Signature) -> list[torch.Tensor]:
    obs = 0.5 * torch.randn(1, sum(sizes), generator=torch.Generator().manual_seed(0))
    given = [memory.outward(memory.initial.unsqueeze(0)) for memory in signature.memories]
    return signature.arguments(form, obs.split(sizes, dim=-1), given)


@torch.no_grad()
def _runs(content: bytes, form: str, sizes: list[int], signature: _Signature) -> bool:
    """Return whether a module takes observations of some sizes, in a form."""
    try:
        _outputs(_load(content, torch.device("cpu"))(*_example(form, sizes, signature)))
    except Exception:  # TorchScript raises whatever the file's own code runs into
        return False
    return True


@torch.no_grad()
def _changing(
    content: bytes, tensors: dict[str, torch.Tensor], form: str, sizes: list[int], signature: _Signature
) -> list[Memory]:
    """Return the tensors of a module that have changed after it has acted: its memory."""
    module = _load(content, torch.device("cpu"))
    _reset(module)
    names = [name for name in tensors if hasattr(*_place(module, name))]
    before = {name: getattr(*_place(module, name)).clone() for name in names}
    module(*_example(form, sizes, signature))
    after = {name: getattr(*_place(module, name)) for name in names}
    changed = [name for name in names if not _same(before[name], after[name])]
    return [Memory(name, before[name], dtype=before[name].dtype) for name in changed]


def _same(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape == after.shape and torch.equal(before, after)


def _reset(module: object) -> None:
    """Bring a module to an episode's start, where it has a method for it that takes nothing."""
    for name in ("reset", "reset_memory"):
        method = getattr(module, name, None)
        if method is not None and len(method.schema.arguments) == 1:
            method()
            return


def _place(module: object, name: str) -> tuple[Any, str]:
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
