"""Policies that were exported as C and compiled into a shared library.

Loading a library runs its code: load those alone that you have compiled.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray

ABI = 1
"""Version of the functions that the library offers."""


class SharedLibrary:
    """The functions of ``student.c``, called once for each environment."""

    def __init__(self, path: Path) -> None:
        """Load the library.

        Args:
            path: The file.
        """
        try:
            library = ctypes.CDLL(str(path.resolve()))
        except OSError as error:
            raise UserError(f"'{path}' cannot be loaded: {one_line(error)}. Compile it on this machine.") from error
        self._step = _function(library, path, "step", ctypes.c_int)
        reset = _function(library, path, "reset", None)
        version = _function(library, path, "abi", ctypes.c_int)()
        if version != ABI:
            raise UserError(f"'{path}' was exported by another version of foundation. Export it again.")
        text = _function(library, path, "description", ctypes.c_char_p)()
        size = _function(library, path, "bytes", ctypes.c_size_t)()
        try:
            self.description = Description.from_dict(json.loads(text), f"'{path}'")
        except ValueError as error:
            raise UserError(f"'{path}' has a corrupt description: {one_line(error)}. Export it again.") from error
        # The policy's structure begins with its memory; what follows is work space.
        self._policy = (ctypes.c_float * (size // ctypes.sizeof(ctypes.c_float)))()
        self._memory = numpy.ctypeslib.as_array(self._policy)[: self.description.state_size]
        reset(self._policy)
        self.initial_state: FloatArray = self._memory.copy()
        # Arrays of their own, whose addresses are asked for once: asking takes longer than a step.
        self._obs = numpy.zeros(self.description.num_obs, numpy.float32)
        self._actions = numpy.zeros(self.description.num_actions, numpy.float32)
        self._arguments = self._policy, _pointer(self._obs), _pointer(self._actions)

    def run(self, obs: FloatArray, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return actions and the next state. Shapes: (num_envs, num_obs) and (num_envs, state_size)."""
        actions = numpy.empty((len(obs), self.description.num_actions), numpy.float32)
        after = numpy.empty_like(state)
        for env in range(len(obs)):
            self._memory[:] = state[env]
            self._obs[:] = obs[env]
            if self._step(*self._arguments):
                raise UserError(f"the policy '{self.description.name}' computed an action that is not finite")
            actions[env] = self._actions
            after[env] = self._memory
        return actions, after


def _function(library: ctypes.CDLL, path: Path, name: str, result: type | None) -> ctypes._NamedFuncPointer:
    try:
        function = library[f"foundation_policy_{name}"]
    except AttributeError:
        raise UserError(
            f"'{path}' is no policy that foundation exported: it lacks 'foundation_policy_{name}'"
        ) from None
    function.restype = result
    return function


def _pointer(row: FloatArray) -> ctypes.c_void_p:
    return row.ctypes.data_as(ctypes.c_void_p)
