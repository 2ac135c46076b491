"""HDF5 files read with care: plain numbers that lie in the file itself, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from foundation.core.archives import ROOM
from foundation.core.errors import UserError
from foundation.core.files import check_finite
from foundation.core.text import one_line

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_ATTRIBUTE = 1 << 20
"""Largest attribute that is read [B]."""
_FILTERS = {1, 2, 3}  # deflate, shuffle, Fletcher's checksum: those that HDF5 itself brings along


class Hdf5Group:
    """A group of an open file, every access to which is checked."""

    def __init__(self, group: Any, path: str, left: list[int]) -> None:
        """Wrap an ``h5py.Group``.

        Args:
            group: The group.
            path: The file's, for errors.
            left: Bytes that may still be read, in all groups of the file together.
        """
        self._group, self._path, self._left = group, path, left

    @property
    def name(self) -> str:
        """Path inside the file."""
        return str(self._group.name).strip("/")

    def names(self) -> list[str]:
        """Return the names of what the group holds."""
        return [str(name) for name in self._group]

    def attribute(self, name: str) -> str | None:
        """Return an attribute as text, or None."""
        if name in self._group.attrs:
            found = self._group.attrs.get_id(name)
            if math.prod(found.shape or ()) * found.dtype.itemsize > _MOST_ATTRIBUTE:
                self._refuse(f"'{self.name}' has an attribute '{name}' of shape {found.shape}")
        value = self._group.attrs.get(name)
        return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)

    def group(self, name: str) -> Hdf5Group:
        """Return a group inside this one."""
        import h5py

        found = self._own(name)
        if not isinstance(found, h5py.Group):
            self._refuse(f"'{self.name}/{name}' is not a group")
        return Hdf5Group(found, self._path, self._left)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a data set as float32, finite."""
        import h5py

        found = self._own(name)
        where = f"'{self.name}/{name}'"
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu" or found.size is None:
            self._refuse(f"{where} is not a data set of numbers")
        plist = found.id.get_create_plist()
        filters = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
        if found.is_virtual or found.external or filters - _FILTERS:
            self._refuse(f"{where} is stored outside the file or by a filter that is not HDF5's own")
        if not filters and found.id.get_storage_size() < found.nbytes:
            self._refuse(f"{where} says it has {found.size} numbers, which the file does not hold")
        # A chunk may be larger than its data set, and is unpacked as a whole; float32 is made of what is unpacked.
        asked = max(found.nbytes, math.prod(found.chunks or ()) * found.dtype.itemsize) + 4 * found.size
        self._left[0] -= asked
        if self._left[0] < 0:
            self._refuse(f"{where} and those before it unpack to far more than the file's size")
        value = torch.from_numpy(found[()].astype("float32"))
        check_finite({f"{self.name}/{name}": value}, self._path)
        return value

    def _own(self, name: str) -> Any:
        """Return a member that is linked directly: other links may lead out of the file."""
        import h5py

        link = self._group.get(name, getlink=True)
        if link is None:
            self._refuse(f"it lacks '{self.name}/{name}'")
        if not isinstance(link, h5py.HardLink):
            self._refuse(f"'{self.name}/{name}' leads elsewhere")
        return self._group[name]

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"'{self._path}': {what}. Is the file of another version, or damaged?")


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5Group]:
    """Open a file; whatever a damaged one runs into is one line."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"'{path}' is an HDF5 file, which needs the package h5py: pip install -e '.[raptor]' in the clone's folder"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield Hdf5Group(file, str(path), [4 * path.stat().st_size + ROOM])
    except UserError:
        raise
    except Exception as error:  # h5py tells of damage by many kinds of errors
        text = one_line(error)
        raise UserError(f"'{path}' is truncated or damaged ({text}). Copy it again.") from error
