"""Joints and bodies that the columns of observations and actions belong to, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class JointBlock(NamedTuple):
    """Columns that follow each other: a number for each of some joints or bodies, perhaps for several steps."""

    names: tuple[str, ...]
    """Joint or body of each column of one step; "" for a column that belongs to none."""
    frames: int = 1
    """Steps side by side, each with all names."""
    part: str = ""
    """Name of the block where it is a part of a term that was cut out by place, which has other joints elsewhere."""

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.frames * len(self.names)


@dataclass(frozen=True)
class JointColumns:
    """The order of joints and bodies in an environment."""

    actions: tuple[str, ...]
    """Joint of each action; "" for one that drives none."""
    groups: dict[str, list[JointBlock]]
    """Observation group -> its columns. Groups whose columns have no names are left out."""

    @property
    def names(self) -> list[str]:
        """All names, those of the actions first."""
        blocks = [block.names for blocks in self.groups.values() for block in blocks]
        return [name for name in dict.fromkeys([*self.actions, *sum(blocks, ())]) if name]
