"""An exported policy of any format behind one small interface, with its memory inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy
from numpy.typing import ArrayLike, NDArray

from foundation.core.archives import ArchiveError, check_regular
from foundation.core.errors import UserError
from foundation.core.pointers import refuse_pointer
from foundation.core.text import shorten
from foundation.deploy.c_policy import SharedLibrary
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.npz_file import read_golden, read_npz
from foundation.deploy.numpy_policy import NumpyProgram
from foundation.deploy.onnx_policy import OnnxRuntime


class Runtime(Protocol):
    """Computes one step of a policy."""

    initial_state: FloatArray
    """The state when an episode begins. Shape: (state_size,)."""

    def run(self, obs: FloatArray, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return actions and the next state. Shapes: (num_envs, num_obs) and (num_envs, state_size)."""
        ...


class Policy:
    """A policy that acts; what it remembers is kept here, one memory for each environment (or robot)."""

    def __init__(self, path: str | Path) -> None:
        """Read the file.

        Args:
            path: ``.npz``, ``.onnx``, or a shared library (``.so``, ``.dylib``, ``.dll``).
        """
        self.path = Path(path)
        open_file = _OPENERS.get(self.path.suffix)
        if open_file is None:
            raise UserError(f"'{path}' cannot be run here: give a file that ends in {', '.join(_OPENERS)}")
        refuse_pointer(self.path)
        wrong = _why_no_file(self.path)
        if wrong is not None:
            raise UserError(f"'{shorten(str(path), 200)}' {wrong}. Check the path.")
        self._runtime, self.description = open_file(self.path)
        self.num_obs = self.description.num_obs
        """Size of the observation."""
        self.num_actions = self.description.num_actions
        """Size of the action."""
        self._shape_of_one = (self.num_obs,)
        self._state: FloatArray | None = None

    def step(self, obs: ArrayLike) -> FloatArray:
        """Act for one step, and remember.

        Args:
            obs: Raw observations: the normaliser is inside. Shape: (num_obs,) or (num_envs, num_obs).

        Returns:
            Actions. Shape: (num_actions,) or (num_envs, num_actions).
        """
        given = numpy.asarray(obs, numpy.float32)
        single = given.shape == self._shape_of_one
        if not single and (given.ndim != 2 or given.shape[1] != self.num_obs or not len(given)):
            raise UserError(
                f"the policy '{self.description.name}' reads {self.num_obs} observations and was given an array of "
                f"shape {given.shape}; ({self.num_obs},) or (num_envs, {self.num_obs}) was expected"
            )
        rows = given[None] if single else given
        # A product is cheap; one that is not finite may have overflowed, so that each number is looked at then.
        flat = given if single else given.reshape(-1)
        if not math.isfinite(flat.dot(flat)) and not numpy.isfinite(rows).all():
            env, column = (int(index) for index in numpy.argwhere(~numpy.isfinite(rows))[0])
            raise UserError(
                f"the observation '{self.description.column_name(column)}' (column {column}) is "
                f"{rows[env, column]}: the policy did not act, and remembers what it did before"
            )
        if self._state is None:
            self._state = numpy.tile(self._runtime.initial_state, (len(rows), 1))
        elif len(self._state) != len(rows):
            raise UserError(
                f"the policy remembers {len(self._state)} environments and was given {len(rows)}: call reset() first"
            )
        actions, self._state = self._runtime.run(rows, self._state)
        return actions[0] if single else actions

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Begin new episodes: forget what was before.

        Args:
            mask: True where an episode begins. Shape: (num_envs,). None: everywhere.
        """
        if mask is None:
            self._state = None
            return
        begins: NDArray[numpy.bool_] = numpy.asarray(mask).astype(numpy.bool_).reshape(-1)
        if self._state is None:
            return
        if len(begins) != len(self._state):
            raise UserError(
                f"reset was given a mask of {len(begins)} entries; the policy remembers {len(self._state)} environments"
            )
        self._state = numpy.where(begins[:, None], self._runtime.initial_state, self._state)

    def check(self, golden: Golden | str | Path | None = None) -> float:
        """Replay the sequence that was recorded when the policy was exported.

        Args:
            golden: The sequence, or its file. None: inside the policy's file, or ``<name>_golden.npz`` beside it, which
                serves ``<name>_int8`` too.

        Returns:
            The largest difference of an action.

        Raises:
            UserError: If it is too large: the file is corrupt, or its runtime computes something else.
        """
        if not isinstance(golden, Golden):
            rounded = self.description.weight_bits is not None
            name = self.path.stem.removesuffix("_int8") if rounded else self.path.stem
            beside = self.path.with_name(f"{name}_golden.npz")
            inside = self.path if self.path.suffix == ".npz" else beside
            golden = read_golden(inside if golden is None else Path(golden))
        if golden.obs.shape[2] != self.num_obs or golden.actions.shape[2] != self.num_actions:
            raise UserError(f"the golden sequence is that of another policy than '{self.path}'. Export it again.")
        difference = golden.difference(self)
        tolerance = golden.tolerance if self.description.weight_bits is None else golden.int8_tolerance
        if not difference <= tolerance:
            raise UserError(
                f"'{self.path}' differs from its golden sequence by {difference:.2g}, more than "
                f"{tolerance:.2g}: it is corrupt, or its runtime computes something else. Export it again."
            )
        return difference


def _why_no_file(path: Path) -> str | None:
    """Return what is wrong with a path, or None where there is a file."""
    try:
        check_regular(path)
        if path.is_file():
            return None
        return "is no file" if path.exists() else "does not exist"
    except ArchiveError as error:
        return f"cannot be read: {error}"
    except (OSError, ValueError):
        return "is no name of a file"


def _open_npz(path: Path) -> tuple[Runtime, Description]:
    program, description, _ = read_npz(path)
    return NumpyProgram(program), description


def _open_onnx(path: Path) -> tuple[Runtime, Description]:
    runtime = OnnxRuntime(path)
    return runtime, runtime.description


def _open_library(path: Path) -> tuple[Runtime, Description]:
    runtime = SharedLibrary(path)
    return runtime, runtime.description


_OPENERS: dict[str, Callable[[Path], tuple[Runtime, Description]]] = {
    ".npz": _open_npz,
    ".onnx": _open_onnx,
    ".so": _open_library,
    ".dylib": _open_library,
    ".dll": _open_library,
}
