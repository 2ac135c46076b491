"""Check of zip archives and pickles before they are read: none may claim more memory than its size accounts for.

A few kilobytes can ask for gigabytes: a deflated record, a tensor that is stretched over one number, a storage that
says it is longer than its record, containers that hold each other. All of these are found by sizes and counts alone.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from foundation.core.text import shorten

ROOM = 64 << 20
"""Bytes that any file may ask for beyond what it holds itself."""
_OF_THE_SYSTEM = (("/", "proc"), ("/", "sys"))
"""Folders whose files look regular and are none: reading the kernel's messages waits for the next one."""
_MAX_MEMBERS = 100_000
_MAX_PICKLE = 16 << 20
_MAX_STEPS = 1_000_000
"""Opcodes of a pickle: each may make an object."""
_MAX_NAMES = 1000
_STRETCHED = 1 << 20
"""Bytes that one tensor may have beyond its storage: a scalar that was expanded."""

_ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "UntypedStorage": 1,
    "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
_VIEWS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
_CALLED = {
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter", "builtins.complex", "_codecs.encode",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
}  # fmt: skip
"""What a checkpoint of plain values calls. The call itself is torch's; here it is only known not to ask for memory."""


class ArchiveError(ValueError):
    """An archive or a pickle asks for more than it holds; the message states for what."""


class ForeignObjectError(ArchiveError):
    """A pickle calls something that is not part of a checkpoint of plain values."""


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that unpacks to more than twice its own size, and some room.

    Args:
        archive: The open archive.
        size: Size of its file [B].
    """
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if len(members) > _MAX_MEMBERS:
        raise ArchiveError(f"it has {len(members)} records")
    if total > 2 * size + ROOM:
        raise ArchiveError(f"its {size >> 10} KiB would unpack to {total >> 20} MiB")


def size_of(file: Path | io.BytesIO) -> int:
    """Return the size of a file, or of content at hand [B]."""
    return file.stat().st_size if isinstance(file, Path) else file.getbuffer().nbytes


_PYTHON_UNPICKLER: Any = pickle._Unpickler
"""The one in Python: the one in C shows nothing before it is built. Its type stubs lack what is used of it."""


class PlainUnpickler(_PYTHON_UNPICKLER):
    """An unpickler that counts what it makes, and hashes nothing but text and numbers.

    A subclass gives ``find_class`` and ``persistent_load``; without, every name is refused.
    """

    def __init__(self, content: bytes) -> None:
        """Take the whole pickle.

        Args:
            content: Its bytes.
        """
        if len(content) > _MAX_PICKLE:
            raise ArchiveError(f"its pickle has {len(content) >> 20} MiB")
        super().__init__(io.BytesIO(content))
        self.dispatch = _Counted(_DISPATCH)

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Refuse a name."""
        raise ForeignObjectError(f"it names '{shorten(module_name)}.{shorten(global_name)}'")

    def persistent_load(self, pid: object) -> Any:
        """Refuse what lies outside of the pickle."""
        raise ArchiveError("it refers to objects outside of itself")

    def get_extension(self, code: int) -> NoReturn:
        """Refuse a name by number."""
        raise ForeignObjectError("it names things by numbers")


class _Counted(dict):
    """The functions of the opcodes, looked up once for each step."""

    left = _MAX_STEPS

    def __getitem__(self, key: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ArchiveError(f"its pickle has more than {_MAX_STEPS} steps")
        return dict.__getitem__(self, key)


def _check_key(key: object) -> None:
    # Hashing a tuple of tuples of tuples, each twice, takes for ever.
    if type(key) not in (str, int, float, bool, bytes, type(None)):
        raise ForeignObjectError(f"it has a key of type {type(key).__name__}")


def _set_item(self: Any) -> None:
    _check_key(self.stack[-2])
    _PYTHON_UNPICKLER.load_setitem(self)


def _set_items(self: Any) -> None:
    for key in self.stack[::2]:
        _check_key(key)
    _PYTHON_UNPICKLER.load_setitems(self)


def _make_dict(self: Any) -> None:
    for key in self.stack[::2]:
        _check_key(key)
    _PYTHON_UNPICKLER.load_dict(self)


def _refuse_set(self: object) -> None:
    raise ForeignObjectError("it has a set")


_DISPATCH: dict[int, Callable[[Any], None]] = _PYTHON_UNPICKLER.dispatch | {
    pickle.SETITEM[0]: _set_item,
    pickle.SETITEMS[0]: _set_items,
    pickle.DICT[0]: _make_dict,
    pickle.EMPTY_SET[0]: _refuse_set,
    pickle.FROZENSET[0]: _refuse_set,
}


class _Storage:
    """A record of numbers: where it is, and how many there are."""

    def __init__(self, key: str, count: int, item_size: int) -> None:
        self.key = key
        self.count = count
        self.item_size = item_size


class _Inert:
    """Stand-in for a name, and for the result of a call of it."""

    name = ""
    checker: Any = None

    def __new__(cls, *given: object, **_: object) -> _Inert:
        """Look at the arguments; nothing is run."""
        kind = cls.name.rpartition(".")[2]
        if cls.name.startswith("torch._utils.") and kind in _VIEWS:
            cls.checker.check_view(*given[:4])
        elif cls.name == "_codecs.encode" and given[1:] not in (("latin1",), ("latin-1",)):
            raise ForeignObjectError("it encodes text")
        elif cls.name not in _CALLED:
            raise ForeignObjectError(f"it calls '{shorten(cls.name)}'")
        elif kind == "_rebuild_from_type_v2" and given and isinstance(given[0], type) and issubclass(given[0], _Inert):
            given[0](*(given[2] if len(given) > 2 and isinstance(given[2], tuple) else ()))
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Forget what is given."""

    def __setstate__(self, state: object) -> None:
        """Forget a state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Forget an entry of what would be a mapping."""

    def append(self, item: object) -> None:
        """Forget an entry of what would be a list."""

    def extend(self, items: object) -> None:
        """Forget entries of what would be a list."""


class TensorChecker(PlainUnpickler):
    """Reads the pickle of a PyTorch archive without making a tensor, and refuses those that ask for too much.

    Args:
        content: The pickle.
        sizes: Size of each record of numbers, by its key [B].
    """

    def __init__(self, content: bytes, sizes: Mapping[str, int]) -> None:
        super().__init__(content)
        self._sizes = sizes
        self._views = Views(sum(sizes.values()))
        self._known: dict[str, Any] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a stand-in for a name."""
        name = f"{module_name}.{global_name}"
        if name not in self._known:
            if len(self._known) >= _MAX_NAMES:
                raise ForeignObjectError(f"it names more than {_MAX_NAMES} classes and functions")
            self._known[name] = type("_Inert", (_Inert,), {"name": name, "checker": self})
        return self._known[name]

    def persistent_load(self, pid: object) -> _Storage:
        """Return a storage's declared type and size, once its record is known to be as long."""
        if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[2], str):
            raise ArchiveError("it refers to objects outside of itself")
        _, kind, key, _, count = pid
        item_size = _ITEM_SIZES.get(getattr(kind, "name", "").rpartition(".")[2])
        if item_size is None or type(count) is not int or count < 0:
            raise ForeignObjectError("it has a storage of an unknown kind")
        if key not in self._sizes or self._sizes[key] < count * item_size:
            raise ArchiveError(f"storage '{shorten(key, 20)}' claims {count} numbers, which the file does not hold")
        return _Storage(key, count, item_size)

    def check_view(self, storage: object, offset: object = 0, size: object = (), stride: object = ()) -> None:
        """Refuse a tensor that reaches beyond its storage, or is stretched over few numbers."""
        if not isinstance(storage, _Storage):
            raise ForeignObjectError("it has a tensor without a storage")
        self._views.check(storage.count, storage.item_size, offset, size, stride)


class Views:
    """Checks that tensors lie inside of their storages, and that all of them together are not far larger.

    Args:
        held: Size of all storages [B].
    """

    def __init__(self, held: int) -> None:
        self._left = 8 * held + ROOM

    def check(self, count: int, item_size: int, offset: Any, size: Any, stride: Any) -> None:
        """Look at one tensor.

        Args:
            count: Numbers in its storage.
            item_size: Size of a number [B].
            offset: Where the tensor begins in the storage.
            size: Its shape.
            stride: Its strides.
        """
        for what in (size, stride):
            if not isinstance(what, tuple | list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in what):
                raise ArchiveError("a tensor has no sound shape")
        if type(offset) is not int or offset < 0 or len(size) != len(stride) or len(size) > 32:
            raise ArchiveError("a tensor has no sound shape")
        numbers = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numbers else 0
        if numbers and last >= count:
            raise ArchiveError(f"a tensor of shape {list(size)} reaches beyond its {count} numbers")
        if numbers > count and numbers * item_size > _STRETCHED:
            raise ArchiveError(f"a tensor of shape {list(size)} is stretched over {count} numbers")
        self._left -= numbers * item_size
        if self._left < 0:
            raise ArchiveError("its tensors together are far larger than the file")


def check_torch_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a PyTorch archive of the zip format that asks for more than it holds.

    Args:
        archive: The open archive, with a ``data.pkl``.
        size: Size of its file [B].

    Raises:
        ArchiveError: If it does; :class:`ForeignObjectError` if it calls what is no part of a checkpoint.
    """
    check_members(archive, size)
    record = next(name for name in archive.namelist() if name.split("/")[-1] == "data.pkl")
    folder = f"{record.removesuffix('data.pkl')}data/"
    sizes = {
        member.filename.removeprefix(folder): member.file_size
        for member in archive.infolist()
        if member.filename.startswith(folder)
    }
    TensorChecker(archive.read(record), sizes).load()


def check_regular(file: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, such as a pipe or a device, also behind a link: reading it may never end.

    Raises:
        ArchiveError: If it is there and is none; for a missing file the error is raised where it is opened.
    """
    path = Path(file)
    try:
        odd = path.exists() and not path.is_file() and not path.is_dir()
        odd = odd or path.resolve().parts[:2] in _OF_THE_SYSTEM
    except (OSError, ValueError):
        return
    except RuntimeError as error:  # Python < 3.13
        raise ArchiveError("it is a link in a loop") from error
    if odd:
        raise ArchiveError("it is a pipe or a device, not a file")


def is_sound_text(text: str) -> bool:
    """Return whether text can be printed and name a file: without zeros and without halves of characters."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_tree(value: object, most: int = 1_000_000, depth: int = 100) -> None:
    """Refuse plain values that hold each other, so that going through them would not end, or numbers without end.

    Args:
        value: Nested mappings, lists and tuples.
        most: Values, each counted as often as it is met.
        depth: Levels of nesting.
    """
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        item, level = todo.pop()
        most -= 1
        if isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
            raise ArchiveError("it has an integer of more than 64 bits")
        if isinstance(item, str) and not is_sound_text(item):
            raise ArchiveError("it has text with a zero or half a character in it")
        if not isinstance(item, Mapping | list | tuple):
            continue
        most -= len(item)
        if most < 0:
            raise ArchiveError("it has too many values, or values that hold each other")
        if level >= depth:
            raise ArchiveError(f"it is nested more than {depth} levels deep")
        inner = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
        todo += [(below, level + 1) for below in inner]
