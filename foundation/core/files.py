"""Write files that are never half-written, and read files without running anything in them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from foundation.core.archives import (
    ArchiveError,
    ForeignObjectError,
    check_members,
    check_regular,
    check_torch_archive,
    check_tree,
    size_of,
)
from foundation.core.errors import UserError
from foundation.core.plain_json import parse_json
from foundation.core.pointers import refuse_pointer
from foundation.core.text import one_line

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_MAX_YAML = 2 << 20
_MAX_JSON = 16 << 20
"""Largest files of text [B]."""
_MAX_YAML_NODES = 50_000
_LETTERS_OF_A_NODE = 256
"""A longer text counts for more than one value: an alias of it is as short as any."""
_DEEPEST_YAML = 64
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _Plain:
    """Stands in for a NumPy scalar or its type in a checkpoint, such as the best return: kept out, never built."""

    def __init__(self, *_: object) -> None:
        """Forget what is given."""

    def __setstate__(self, state: object) -> None:
        """Forget what is given."""


# rl_games keeps NumPy scalars beside the weights. Their names stand for an inert class, so that nothing of NumPy runs.
_NUMPY_SCALARS: list[Any] = [
    *((_Plain, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (_Plain, "numpy.dtype"),
    *((_Plain, f"numpy.dtypes.{kind}DType") for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
]


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], None], within: Path | None = None) -> None:
    """Write a file so that it is there whole or not at all, whatever kills the process.

    Args:
        path: Where the file is to be; its folder is created when missing.
        write: Called with the open binary file; what it writes replaces the old content at once.
        within: The folder that the file, or the file's folder, is in. It is never created: a run's folder that is
            renamed at this moment is not to come into being again. None: all folders are created.
    """
    target = Path(path)
    temporary: str | None = None
    _refuse_to_replace(target)
    try:
        if target.parent != within:
            target.parent.mkdir(parents=within is None, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.fchmod(handle, 0o666 & ~_umask())
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free space or choose another folder." if full else "Choose another folder."
        raise UserError(f"cannot write '{target}': {error.strerror or error}. {advice}") from error
    except RuntimeError as error:  # torch's zip writer reports a full disk so, and may hide the OSError
        if not _is_write_failure(error):
            raise
        reason = _system_error(error) or one_line(error)
        raise UserError(f"cannot write '{target}': {reason}. Free space or choose another folder.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _refuse_to_replace(target: Path) -> None:
    """Refuse a pipe or a device, such as ``/dev/null``: a file would take its place, for every program."""
    try:
        check_regular(target)
        if target.parent.resolve() == Path("/dev"):  # links there too, such as /dev/stdout
            raise ArchiveError("it is in the folder of the devices")
    except ArchiveError as error:
        raise UserError(f"cannot write '{target}': {error}. Give the path of a file.") from error
    except (OSError, ValueError, RuntimeError):
        return  # writing the file raises the error


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, within: Path | None = None) -> None:
    """Write content that is at hand through :func:`atomic_write`."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    atomic_write(path, write, within)


def lock_folder(path: str | os.PathLike[str], refusal: str) -> int | None:
    """Keep other processes that ask for the same lock out of a folder, until the process ends, however it ends.

    Args:
        path: The folder.
        refusal: The error's text if another process holds it.

    Returns:
        The handle, whose closing frees the folder; None on systems and file systems without locks.

    Raises:
        UserError: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(refusal) from None
        return None
    return handle


def atomic_torch_save(obj: object, path: str | os.PathLike[str], within: Path | None = None) -> None:
    """``torch.save`` through :func:`atomic_write`."""
    atomic_write(path, lambda file: torch.save(obj, file), within)


def load_checkpoint(path: str | os.PathLike[str], map_location: object = "cpu") -> dict[str, Any]:
    """Read a PyTorch checkpoint of tensors and plain values; nothing in it is ever executed.

    Args:
        path: A file that ``torch.save`` wrote in its zip format.
        map_location: Device of the tensors.

    Returns:
        The dict that was saved, checked for damage (CRC of every record) and for weights that are not finite.
    """
    file = Path(path)
    check_torch_zip(file)
    return _load_plain(file, str(file), map_location)


def load_checkpoint_bytes(content: bytes, where: str, map_location: object = "cpu") -> dict[str, Any]:
    """Read a PyTorch checkpoint that lies inside of another file; the same checks as :func:`load_checkpoint`.

    Args:
        content: What ``torch.save`` wrote in its zip format.
        where: What to name in errors.
        map_location: Device of the tensors.
    """
    if content.startswith(_PICKLE_START):
        raise UserError(
            f"'{where}' was saved by a PyTorch older than 1.6, as a pickle, which is never loaded because that could "
            "run code. Load the model where you trust it and save it again with torch >= 1.6."
        )
    if not content.startswith(_ZIP_MAGIC):
        raise UserError(f"'{where}' is not a PyTorch checkpoint (torch.save writes a zip archive), and is not loaded.")
    _check_archive(io.BytesIO(content), where)
    return _load_plain(io.BytesIO(content), where, map_location)


def _load_plain(file: Path | io.BytesIO, where: str, map_location: Any) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            check_torch_archive(archive, size_of(file))
    except ForeignObjectError as error:
        raise UserError(
            f"'{where}' holds Python objects beside tensors, which are never loaded because that could run code "
            f"({error}). Save the state_dicts alone and use that file."
        ) from error
    except Exception as error:  # a corrupt pickle fails in many ways
        raise UserError(f"'{where}' is corrupt: {one_line(error)}. Copy or train it again.") from error
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "weights_only" not in str(error).lower():
            raise UserError(f"'{where}' is corrupt: {one_line(error)}. Copy or train it again.") from error
        raise UserError(
            f"'{where}' holds Python objects beside tensors, which are never loaded because that could run code. "
            "Save the state_dicts alone and use that file."
        ) from error
    except (OSError, MemoryError) as error:
        raise UserError(f"cannot read '{where}': {one_line(error)}.") from error
    except Exception as error:  # a corrupt archive fails in many ways inside torch, all with one meaning
        raise UserError(f"'{where}' cannot be read as a PyTorch checkpoint: {one_line(error)}.") from error
    try:
        check_tree(checkpoint)
    except ArchiveError as error:
        raise UserError(f"'{where}' is corrupt: {error}. Copy or train it again.") from error
    if not isinstance(checkpoint, dict) or not all(isinstance(key, str) for key in checkpoint):
        raise UserError(
            f"'{where}' is not a policy checkpoint: it holds a {type(checkpoint).__name__}, not a dict by name."
        )
    check_finite(checkpoint, where)
    return checkpoint


def archive_names(file: Path) -> list[str]:
    """Return the names in a zip archive; none where it is not a zip archive or corrupt: reading it raises the error."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except Exception:  # BadZipFile, but also struct, zlib, NotImplemented and Unicode errors on corrupt ones
        return []


def check_torch_zip(file: Path) -> None:
    """Refuse, in one line, whatever is not an undamaged PyTorch zip archive."""
    refuse_pointer(file)
    try:
        if file.is_dir():
            best = ("best_student.pt", "best_model.pt")
            there = [path for name in best for path in (file / name, *sorted(file.glob(f"*/{name}"), reverse=True))]
            such = next(filter(Path.exists, there), file / "model_1500.pt")
            raise UserError(f"'{file}' is a folder; give the checkpoint file in it, such as '{such}'.")
        size = file.stat().st_size
        check_regular(file)
        with file.open("rb") as stream:
            head = stream.read(4)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint '{file}' does not exist. Check the path.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read checkpoint '{file}': {one_line(error)}.") from error
    if size == 0:
        raise UserError(f"checkpoint '{file}' is empty (0 bytes). Copy or train it again.")
    if head != _ZIP_MAGIC:
        if head[:1] == _PICKLE_START:
            raise UserError(
                f"'{file}' is a bare pickle (or a PyTorch file older than 1.6), which is never loaded because that "
                "could run code. Save its state_dicts again with torch >= 1.6."
            )
        raise UserError(f"'{file}' is not a PyTorch checkpoint (torch.save writes a zip archive). Check the path.")
    _check_archive(file, str(file))


def _check_archive(file: Path | io.BytesIO, where: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            check_members(archive, size_of(file))
            corrupt = archive.testzip()
    except Exception as error:  # BadZipFile, but also struct, zlib, NotImplemented and Unicode errors on corrupt ones
        raise UserError(f"'{where}' is truncated or corrupt ({one_line(error)}). Copy or train it again.") from error
    if corrupt is not None:
        raise UserError(f"'{where}' is corrupt: wrong checksum in record '{corrupt}'. Copy or train it again.")
    if not any(name.split("/")[-1] == "data.pkl" for name in names):
        raise UserError(
            f"'{where}' is a zip archive but not a PyTorch checkpoint (no 'data.pkl' in it). Check the path."
        )


def check_finite(values: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are NaN or infinite; the states of optimisers and of interrupted runs are not looked at.

    Args:
        values: A checkpoint or a state_dict.
        where: What to name in the error.
    """
    for name, value in _tensors(values, ""):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise UserError(
                f"'{where}' has an unusual tensor in '{name}' (sparse, quantised or empty); save plain ones."
            )
        if value.is_complex() or (value.is_floating_point() and value.dtype not in _FLOATS):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"'{where}' has {kind} numbers in '{name}', which a policy is not made of; save float32 ones."
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"'{where}' has NaN or infinite numbers in '{name}'. Use an earlier checkpoint of that run."
            )


def load_yaml(path: str | os.PathLike[str], *, as_hydra: bool = False) -> Any:
    """Read YAML that may carry Python tags, as Isaac Lab's ``params/*.yaml`` do, without making any object.

    ``!!python/tuple`` becomes a list; any other tag's scalar a string, its sequence a list, its mapping a dict.

    Args:
        path: The file.
        as_hydra: Read ``1e-3`` as a number, as Hydra does in a file that people write; YAML 1.1 has text there.
    """
    file = Path(path)
    refuse_pointer(file)
    text = read_text(file, _MAX_YAML)
    try:
        values = _construct(_HydraLoader(text) if as_hydra else _PlainLoader(text))
        check_tree(values, _MAX_YAML_NODES, _DEEPEST_YAML)
    except Exception as error:  # besides YAML's own errors: KeyError, AttributeError and others of a tag's scalar
        raise UserError(f"'{file}' is not readable YAML: {one_line(error)}.") from error
    return values


def load_json(path: str | os.PathLike[str], most: int = _MAX_JSON) -> Any:
    """Read JSON: plain values, nested no deeper than anyone writes them by hand.

    Args:
        path: The file.
        most: Largest file that is read [B].
    """
    file = Path(path)
    refuse_pointer(file)
    text = read_text(file, most)
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is not readable JSON: {one_line(error)}.") from error


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """Read a regular file of text, in UTF-8.

    Args:
        path: The file.
        most: Largest file that is read [B].
    """
    file = Path(path)
    try:
        check_regular(file)
        with file.open("rb") as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise ArchiveError(f"it is larger than {most >> 10} KiB")
        return content.decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"'{file}' does not exist. Check the path.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{file}': {one_line(error)}.") from error


def _construct(loader: _PlainLoader) -> Any:
    """Make plain values of YAML, once it is known how many there will be."""
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return how many values a node makes where each alias, and each merged key, is written out."""
    known = counts.get(id(node))
    if known is not None:
        if known < 0:
            raise ArchiveError("it holds itself")
        return known
    counts[id(node)] = -1
    below: list[yaml.Node] = []
    own = 1 + len(node.value) // _LETTERS_OF_A_NODE if isinstance(node, yaml.ScalarNode) else 1
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    total = own + sum(_count_nodes(part, counts) for part in below)
    if total > _MAX_YAML_NODES:
        raise ArchiveError(f"its aliases make more than {_MAX_YAML_NODES} values of it")
    counts[id(node)] = total
    return total


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that reads unknown tags as the plain data under them, and no more than a run's files have."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, if there are not too many already."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MAX_YAML_NODES:
            raise ArchiveError(f"it has more than {_MAX_YAML_NODES} values")
        if self._depth > _DEEPEST_YAML:
            raise ArchiveError(f"it is nested more than {_DEEPEST_YAML} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _construct_plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    text = loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None
    if suffix.startswith(("name:", "module:")):  # !!python/name:torch.nn.ELU '' -> "torch.nn.ELU"
        return suffix.split(":", 1)[1]
    return text


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _construct_plain)


class _HydraLoader(_PlainLoader):
    """Knows numbers with an exponent and no point."""


_HydraLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_PlainLoader.add_multi_constructor("!", _construct_plain)


def _tensors(values: Mapping[str, Any], prefix: str) -> list[tuple[str, torch.Tensor]]:
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            found.append((name, value))
        elif isinstance(value, Mapping) and key != "resume" and "optimizer" not in str(key):
            found += _tensors(value, f"{name}/")
    return found


def _system_error(error: BaseException | None) -> str | None:
    """Return what the system said, if that is behind an error of torch's zip writer."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _is_write_failure(error: RuntimeError) -> bool:
    text = str(error)
    return any(word in text for word in ("file write failed", "unexpected pos", "PytorchStreamWriter", "No space"))


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
