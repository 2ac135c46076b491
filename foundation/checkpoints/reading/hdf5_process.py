"""The program that opens untrusted HDF5 files, in a process of its own with bounded memory and time.

libhdf5 allocates as much as a file asks for before anything can be checked. So this script runs in a process of its
own. It imports NumPy and h5py alone, and answers each line of JSON on its input by one line of JSON on its output,
followed by the numbers of a data set where one was asked for.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, NoReturn

MAX_TEXT = 1 << 20
"""Largest attribute, and most text of the names in a group [B]."""
MAX_NAMES = 10_000
"""Members of a group."""
_FILTERS = {1, 2, 3}  # deflate, shuffle, Fletcher's checksum: those that HDF5 itself brings along


class RefusalError(Exception):
    """What is wrong with the file."""


class Hdf5Reader:
    """Answers requests about one open file, whose groups are known by numbers: 0 is the root."""

    def __init__(self, h5py: ModuleType, output: BinaryIO) -> None:
        """Keep the library, which can be imported only once its path is known.

        Args:
            h5py: The library.
            output: Where numbers are written.
        """
        self._h5py = h5py
        self._output = output
        self._file: Any = None
        self._groups: list[Any] = []
        self._left = 0

    def answer(self, request: dict[str, Any]) -> bool:
        """Write the answer to a request. Returns whether the file can still be read."""
        numbers = b""
        sound = True
        functions: dict[str, Callable[..., Any]] = {
            "open": self._open, "close": self._close, "names": self._names, "attribute": self._attribute,
            "group": self._group, "numbers": self._numbers,
        }  # fmt: skip
        try:
            reply: dict[str, Any] = {"value": functions[request.pop("do")](**request)}
            if not isinstance(reply["value"], str | int | list | None):
                numbers = reply["value"]
                reply["value"] = {"shape": numbers.shape, "bytes": numbers.nbytes}
        except RefusalError as refusal:
            reply = {"refused": str(refusal)}
        except Exception as error:  # h5py raises many kinds of errors for a corrupt file
            text = " ".join(str(error)[:1000].split())[:200]
            reply = {"corrupt": text or type(error).__name__}
            sound = False
        self._output.write(json.dumps(reply).encode() + b"\n")
        self._output.write(numbers)
        self._output.flush()
        return sound

    def _open(self, path: str, budget: int, memory: int, seconds: int) -> None:
        _limit(memory, seconds)
        self._left = budget
        self._file = self._h5py.File(path, "r")
        self._groups = [self._file]

    def _close(self) -> None:
        self._groups = []
        self._file.close()

    def _names(self, group: int) -> list[str]:
        found = self._groups[group]
        if len(found) > MAX_NAMES:
            raise RefusalError(f"'{_name(found)}' has {len(found)} members")
        names: list[str] = []
        left = MAX_TEXT
        for name in found:
            names.append(str(name))
            left -= len(names[-1])
            if left < 0:
                raise RefusalError(f"'{_name(found)}' has members with names of more than {MAX_TEXT} letters")
        return names

    def _attribute(self, group: int, name: str) -> str | None:
        attributes = self._groups[group].attrs
        if name not in attributes:
            return None
        found = attributes.get_id(name)
        if math.prod(found.shape or ()) * found.dtype.itemsize > MAX_TEXT:
            raise RefusalError(f"'{_name(self._groups[group])}' has an attribute '{name}' of shape {found.shape}")
        value = attributes.get(name)
        if value is None:
            return None
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        if len(text) > MAX_TEXT:
            raise RefusalError(f"'{_name(self._groups[group])}' has an attribute '{name}' of {len(text)} letters")
        return text

    def _group(self, group: int, name: str) -> int:
        found = self._member(group, name)
        if not isinstance(found, self._h5py.Group):
            raise RefusalError(f"'{_name(self._groups[group])}/{name}' is not a group")
        self._groups.append(found)
        return len(self._groups) - 1

    def _numbers(self, group: int, name: str) -> Any:
        """Return a data set as an array of float32."""
        found = self._member(group, name)
        where = f"'{_name(self._groups[group])}/{name}'"
        if not isinstance(found, self._h5py.Dataset) or found.dtype.kind not in "fiu" or found.size is None:
            raise RefusalError(f"{where} is not a data set of numbers")
        plist = found.id.get_create_plist()
        filters = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
        if found.is_virtual or found.external or filters - _FILTERS:
            raise RefusalError(f"{where} is stored outside the file or by a filter that is not HDF5's own")
        if not filters and found.id.get_storage_size() < found.nbytes:
            raise RefusalError(f"{where} claims {found.size} numbers, which the file does not hold")
        # A chunk may be larger than its data set, and is unpacked as a whole; float32 is made of what is unpacked.
        self._left -= max(found.nbytes, math.prod(found.chunks or ()) * found.dtype.itemsize) + 4 * found.size
        if self._left < 0:
            raise RefusalError(f"{where} and those before it unpack to far more than the file's size")
        return found[()].astype("<f4", order="C")

    def _member(self, group: int, name: str) -> Any:
        """Return a member that is linked directly: other links may lead out of the file."""
        holder = self._groups[group]
        link = holder.get(name, getlink=True)
        if link is None:
            raise RefusalError(f"it lacks '{_name(holder)}/{name}'")
        if not isinstance(link, self._h5py.HardLink):
            raise RefusalError(f"'{_name(holder)}/{name}' leads elsewhere")
        return holder[name]


def _name(group: Any) -> str:
    return str(group.name).strip("/")


def _limit(memory: int, seconds: int) -> None:
    """Bound what this process may use from now on, where the system can.

    Args:
        memory: Bytes beyond what it has.
        seconds: Time on the processor beyond what it has used.
    """
    try:
        import resource
    except ImportError:  # Windows: the caller's clock is all there is
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = [(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)]
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            limits.append((resource.RLIMIT_AS, int(file.read().split()[0]) * resource.getpagesize() + memory))
    except OSError:  # no Linux
        limits.append((resource.RLIMIT_DATA, memory + (1 << 30)))
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    stream = sys.stdin.buffer
    output = sys.stdout.buffer
    sys.path[:] = json.loads(stream.readline())
    import h5py

    reader = Hdf5Reader(h5py, output)
    for line in stream:
        if not reader.answer(json.loads(line)):
            break
    sys.exit(0)


if __name__ == "__main__":
    _main()
