"""Read the modules and weights of a TorchScript archive without running any of its code.

``torch.jit.load`` would run what the archive brings along; here its ``data.pkl`` is read with a closed list of names,
so that a module becomes a plain :class:`Node` and a tensor is built from its bytes.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from foundation.core.archives import ArchiveError, PlainUnpickler, Views, check_tree
from foundation.core.errors import UserError
from foundation.core.files import archive_names, check_finite, check_torch_zip
from foundation.core.text import one_line

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_CODE = 1 << 20
"""Largest file of code that is looked at [B]."""
_MAX_NAMES = 10_000
_MAX_NODES = 20_000
_DEEPEST = 50
_LISTS = ("build_intlist", "build_floatlist", "build_doublelist", "build_boollist", "build_tensorlist")


class Node:
    """A module of the archive: its class's name and its attributes, nothing that could run."""

    kind = ""
    """Name of the module's class, such as ``Linear``."""
    of_torch = False
    """Whether the class is PyTorch's own."""
    code = ""
    """Text of the class, for looking at; it is never run. Empty: the archive has none."""

    values: dict[str, Any]
    """Attributes: tensors, plain values, and further nodes."""

    def __new__(cls, *_: object) -> Node:
        """Begin without attributes: a pickle makes objects without ``__init__``, and may give them no state."""
        node = object.__new__(cls)
        node.values = {}
        return node

    def __setstate__(self, state: object) -> None:
        self.values = dict(state) if isinstance(state, dict) else {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of this module itself, by name."""
        return {name: value for name, value in self.values.items() if isinstance(value, torch.Tensor)}


def is_script(path: Path, head: bytes) -> bool:
    """Return whether a file is a TorchScript archive."""
    return head.startswith(b"PK\x03\x04") and any(n.endswith("/constants.pkl") for n in archive_names(path))


def read_script(path: Path) -> Node:
    """Return the archive's root module.

    Args:
        path: A file that ``torch.jit.save`` wrote.
    """
    check_torch_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            record = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = _Reader(archive, record.removesuffix("data.pkl")).load()
    except Exception as error:  # whatever a corrupt or hostile archive runs into means the same
        text = one_line(error)
        raise UserError(f"'{path}' cannot be read as a TorchScript policy: {text}. Export it again.") from error
    if not isinstance(root, Node):
        raise UserError(f"'{path}' is a TorchScript archive, but not of a module. Export the policy again.")
    _check_nodes(root, str(path))
    return root


class _Reader(PlainUnpickler):
    """An unpickler that knows tensors, plain lists and inert modules, and refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.read(f"{root}data.pkl"))
        self._archive = archive
        self._root = root
        self._views = Views(sum(member.file_size for member in archive.infolist()))
        self._storages: dict[str, torch.Tensor] = {}
        self._named = 0
        names = archive.namelist()
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian archives are not read")

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what a name stands for, from a closed list."""
        self._named += 1
        if self._named > _MAX_NAMES:
            raise ArchiveError(f"it names more than {_MAX_NAMES} classes and functions")
        if module_name.split(".")[0] == "__torch__":
            of_torch = module_name.startswith("__torch__.torch.nn.modules.")
            code = self._class_text(module_name, global_name)
            return type("Node", (Node,), {"kind": global_name, "of_torch": of_torch, "code": code})
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._build_tensor
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module_name == "torch" and global_name in _DTYPES:
            return _DTYPES[global_name]
        if module_name == "torch.jit._pickle" and global_name in _LISTS:
            return list
        if (module_name, global_name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        raise pickle.UnpicklingError(f"it names '{module_name}.{global_name}', which is not part of a policy")

    def _class_text(self, module_name: str, class_name: str) -> str:
        """Return a class's text among the archive's code."""
        member = f"{self._root}code/{module_name.replace('.', '/')}.py"
        if member not in self._archive.NameToInfo or self._archive.getinfo(member).file_size > _MAX_CODE:
            return ""
        text = self._archive.read(member).decode(errors="replace")
        _, found, rest = f"\n{text}".partition(f"\nclass {class_name}(Module):\n")
        return re.split(r"\n(?=\S)", rest, maxsplit=1)[0] if found else ""

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Return a storage's content as a flat tensor."""
        _, dtype, key, *_ = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]

    def _build_tensor(self, storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
        self._views.check(storage.numel(), storage.element_size(), offset, size, stride)
        return torch.as_strided(storage, size, stride, offset).clone()


def _untagged(value: object, _type: str) -> Any:
    return value


def _check_nodes(root: Node, where: str) -> None:
    """Refuse weights that are not finite, and modules that hold each other, so that going through them would not end.

    Args:
        root: The root module.
        where: The file.
    """
    todo: list[tuple[Node, str, int]] = [(root, "", 0)]
    met = 0
    while todo:
        node, prefix, depth = todo.pop()
        met += 1 + len(node.values)
        if met > _MAX_NODES or depth > _DEEPEST or not all(isinstance(name, str) for name in node.values):
            raise UserError(f"'{where}' has modules that hold each other, or too many. Export it again.")
        try:
            check_tree([value for value in node.values.values() if not isinstance(value, Node)], depth=_DEEPEST)
        except ArchiveError as error:
            raise UserError(f"'{where}' is corrupt: {error}. Export it again.") from error
        check_finite({f"{prefix}{name}": tensor for name, tensor in node.tensors().items()}, where)
        inner = [(name, value) for name, value in node.values.items() if isinstance(value, Node)]
        todo += [(value, f"{prefix}{name}.", depth + 1) for name, value in inner]
