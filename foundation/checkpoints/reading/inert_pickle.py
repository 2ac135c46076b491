"""Read plain values and numeric arrays out of a pickle without running or importing anything that it names.

Every name in the file becomes an inert stand-in, which remembers what it was called with and the state that it was
given. Arrays and scalars of NumPy are built here from their bytes, once their type and size are checked.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

import numpy

from foundation.core.archives import check_regular
from foundation.core.pointers import refuse_pointer

_MAX_BYTES = 16 << 20
"""Largest file that is read [B]; statistics of a hundred thousand observations take 2 MB."""
_MAX_STEPS = 100_000
"""Most opcodes: each may make an object, whose memory is then bounded too."""
_MAX_NAMES = 500
_MAX_DIMENSIONS = 8

_KINDS = "fiub"
"""NumPy's kinds of types that are read: floating, signed, unsigned, boolean."""
_RECONSTRUCTOR = {"copyreg._reconstructor", "copy_reg._reconstructor"}
_RECONSTRUCT = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_SCALAR = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_FROM_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}


class Inert:
    """Stand-in for whatever a pickle names: a class, what a call of it gives, or what a function returns."""

    name = ""
    """Full name, such as ``numpy.dtype``."""
    given: tuple[Any, ...] = ()
    """What it was called with."""
    state: Any = None
    """The state that the pickle sets on it."""

    def __new__(cls, *given: object, **_: object) -> Inert:
        """Remember the arguments; nothing is run."""
        made = object.__new__(cls)
        made.given = given
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Forget what is given: ``__new__`` has kept it."""

    def __call__(self, *_: object, **__: object) -> Inert:
        """Return a further stand-in."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        """Remember the state."""
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Forget an entry of what would be a mapping."""

    def append(self, item: object) -> None:
        """Forget an entry of what would be a list."""

    def add(self, item: object) -> None:
        """Forget an entry of what would be a set."""

    @property
    def kind(self) -> str:
        """Full name of the class of the object that this stands for; protocols 0 and 1 name it in a call."""
        made = self.given[0] if self.name in _RECONSTRUCTOR and self.given else None
        return made.name if isinstance(made, type) and issubclass(made, Inert) else self.name

    def attribute(self, name: str) -> Any:
        """Return an attribute of the object that this stands for, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def read_inert(path: Path) -> Any:
    """Return what a pickle holds: plain values, and :class:`Inert` objects in the place of all others.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is too large or asks for more than it holds.
        pickle.UnpicklingError: If it is not a whole pickle.
    """
    check_regular(path)
    refuse_pointer(path)
    with path.open("rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
    _check_opcodes(content)
    return _Reader(io.BytesIO(content)).load()


def as_array(value: object) -> numpy.ndarray:
    """Return a stand-in's array, or a number, as float64.

    Raises:
        ValueError: If it is neither, or not what its size says.
    """
    if isinstance(value, bool | int | float):
        return numpy.array(float(value))
    if not isinstance(value, Inert):
        _refuse(f"a number was expected, got a {type(value).__name__}")
    if value.name in _SCALAR and len(value.given) == 2:
        return _from_bytes(value.given[0], value.given[1], (), fortran=False)
    if value.name in _RECONSTRUCT and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, fortran, content = value.state
        return _from_bytes(kind, content, shape, fortran is True)
    if value.name in _FROM_BUFFER and len(value.given) == 4:
        content, kind, shape, order = value.given
        return _from_bytes(kind, content, shape, order == "F")
    _refuse(f"numbers were expected, got '{value.name[:80]}'")


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing: every name is a stand-in."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._known: dict[str, type[Inert]] = {}

    def find_class(self, module_name: str, global_name: str) -> type[Inert]:
        """Return a stand-in for a name."""
        name = f"{module_name}.{global_name}"
        if name not in self._known:
            if len(self._known) >= _MAX_NAMES:
                raise pickle.UnpicklingError(f"it names more than {_MAX_NAMES} classes and functions")
            self._known[name] = type("Inert", (Inert,), {"name": name})
        return self._known[name]

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse what lies outside of the file."""
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def _check_opcodes(content: bytes) -> None:
    """Refuse a pickle that asks for memory beyond its own size, before anything is built.

    ``pickletools`` checks that every text and byte string is there in full. An index of the memo is all that may be
    huge: the C unpickler allocates a table up to the largest.
    """
    for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if step >= _MAX_STEPS:
            raise ValueError(f"it has more than {_MAX_STEPS} steps")
        if "PUT" in opcode.name and isinstance(argument, int) and argument > _MAX_STEPS:
            raise ValueError(f"it numbers its objects up to {argument}")


def _from_bytes(kind: object, content: object, shape: object, fortran: bool) -> numpy.ndarray:
    if isinstance(content, Inert) and content.name == "_codecs.encode" and content.given[1:] == ("latin1",):
        content = str(content.given[0]).encode("latin1")  # how protocol 2 writes bytes
    if not isinstance(content, bytes | bytearray):
        _refuse("an array has no content")
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        _refuse("an array has no shape")
    if not all(type(size) is int and 0 <= size <= _MAX_BYTES for size in shape):
        _refuse(f"an array has the shape {str(shape)[:80]}")
    dtype = _dtype(kind)
    if math.prod(shape) * dtype.itemsize != len(content):
        _refuse(f"an array of shape {str(shape)[:80]} has {len(content)} bytes")
    flat = numpy.frombuffer(content, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").astype(numpy.float64)


def _dtype(kind: object) -> numpy.dtype:
    """Return a plain numeric type: ``numpy.dtype("f8", False, True)`` with a state that says its byte order."""
    if not isinstance(kind, Inert) or kind.name != "numpy.dtype" or not kind.given:
        _refuse("an array has no type")
    code = kind.given[0]
    if not isinstance(code, str) or len(code) != 2 or code[0] not in _KINDS or code[1] not in "1248":
        _refuse(f"an array is of the type {str(code)[:40]!r}, not of plain numbers")
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "="
    return numpy.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
