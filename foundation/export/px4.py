"""Policies as the archive that PX4's module ``mc_raptor`` loads from the SD card: ``raptor/policy.tar``.

A plain USTAR archive, each tensor a folder of ``meta`` (text) and ``data`` (float32, row by row), as rl-tools reads it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy
from numpy.typing import NDArray

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.program import Operation, Program
from foundation.export.rl_tools import example_actions, layer_chain, layer_parameters

SIZES = (22, 16, 16, 4)
"""Observations, dense units (ReLU), GRU units, actions: PX4's module is compiled for these."""
EXAMPLE_STEPS = 5
EXAMPLE_ENVS = 2
"""The module replays so many steps of so many vehicles when it starts."""
_LONGEST_NAME = 99
"""PX4's reader takes no longer name of a member."""


def write_px4(file: BinaryIO, program: Program, golden: Golden, name: str) -> None:
    """Write a policy.

    Args:
        file: Where to.
        program: Its operations.
        golden: Its observations are those of the archive's own example.
        name: Of the policy.
    """
    layers = layer_chain(program)
    _check_architecture(layers)
    obs = golden.obs[:EXAMPLE_STEPS, :EXAMPLE_ENVS]
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "actor/meta", f"checkpoint_name: {name[:60]}\ntype: sequential\n".encode())
        for index, (operation, activation) in enumerate(layers):
            place = f"actor/layers/{index}"
            for key, values in layer_parameters(operation).items():
                flat = key.startswith(("biases", "initial"))
                _add_tensor(archive, f"{place}/{key}/parameters", values.reshape(-1) if flat else values)
            kind = "gru" if operation.kind == "recurrent" else "dense"
            said = f"activation_function: {activation}\n" if kind == "dense" else ""
            _add(archive, f"{place}/meta", f"{said}type: {kind}\n".encode())
        _add_tensor(archive, "example/input", obs)
        _add_tensor(archive, "example/output", example_actions(program, obs))


def read_px4(path: Path) -> Mapping[str, FloatArray]:
    """Return the archive's tensors by name.

    Args:
        path: The archive.
    """
    try:
        with tarfile.open(path) as archive:
            members = {member.name: _content(archive, member) for member in archive.getmembers()}
        found = {}
        for name, text in members.items():
            if name.endswith("/meta") and b"type: tensor" in text:
                stated = dict(line.split(": ") for line in text.decode().splitlines())
                shape = [int(stated[f"dim_{axis}"]) for axis in range(int(stated["num_dims"]))]
                data = numpy.frombuffer(members[f"{name.removesuffix('meta')}data"], "<f4")
                found[name.removesuffix("/meta")] = data.reshape(shape).astype(numpy.float32)
        return found
    except (tarfile.TarError, LookupError, ValueError, OSError) as error:
        raise UserError(f"'{path}' is corrupt or no archive of PX4: {one_line(error)}. Export it again.") from error


class ArchivedPolicy:
    """The network that PX4's module computes, from the tensors of its archive."""

    def __init__(self, tensors: Mapping[str, FloatArray], clip: float | None) -> None:
        """Take the layers' tensors.

        Args:
            tensors: As :func:`read_px4` gave them.
            clip: Bound of the actions.
        """
        self._layers = [
            {key.split("/")[3]: array for key, array in tensors.items() if key.startswith(f"actor/layers/{index}/")}
            for index in range(3)
        ]
        self._clip = numpy.inf if clip is None else clip
        self._state: FloatArray | None = None

    def step(self, obs: FloatArray) -> FloatArray:
        """Act. Shape: (num_envs, num_obs) to (num_envs, num_actions)."""
        dense, gru, last = self._layers
        hidden = self._state
        if hidden is None:
            hidden = numpy.tile(gru["initial_hidden_state"], (len(obs), 1))
        x = numpy.maximum(obs @ dense["weights"].T + dense["biases"], 0)
        given = x @ gru["weights_input"].T + gru["biases_input"]
        kept = hidden @ gru["weights_hidden"].T + gru["biases_hidden"]
        size = hidden.shape[1]
        reset, update = (1 / (1 + numpy.exp(-(given + kept)[:, i * size : (i + 1) * size])) for i in range(2))
        candidate = numpy.tanh(given[:, 2 * size :] + reset * kept[:, 2 * size :])
        self._state = ((1 - update) * candidate + update * hidden).astype(numpy.float32)
        return numpy.clip(self._state @ last["weights"].T + last["biases"], -self._clip, self._clip)

    def reset(self, mask: NDArray[numpy.bool_] | None = None) -> None:
        """Begin new episodes where ``mask``, or everywhere."""
        if mask is None or self._state is None:
            self._state = None
        else:
            self._state = numpy.where(mask[:, None], self._layers[1]["initial_hidden_state"], self._state)


def _check_architecture(layers: list[tuple[Operation, str]]) -> None:
    kinds = [(operation.kind, activation) for operation, activation in layers]
    sizes = [operation.size for operation, _ in layers]
    first = layers[0][0]
    num_obs = first.arrays["weight"].shape[1] if first.kind == "dense" else 0
    expected = [("dense", "RELU"), ("recurrent", "IDENTITY"), ("dense", "IDENTITY")]
    if kinds != expected or (num_obs, *sizes) != SIZES:
        found = " -> ".join(f"{kind} {size}" for (kind, _), size in zip(kinds, sizes, strict=True))
        raise UserError(
            f"PX4's module flies 22 observations -> dense 16 (relu) -> gru 16 -> dense 4 alone; this policy is "
            f"{num_obs} -> {found}. Distil a student=gru with encoder_dims=[16], hidden_size=16, hidden_dims=[]."
        )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _add_tensor(archive: tarfile.TarFile, name: str, values: FloatArray) -> None:
    dims = "".join(f"dim_{axis}: {size}\n" for axis, size in enumerate(values.shape))
    _add(archive, f"{name}/meta", f"type: tensor\ndtype: float32\nnum_dims: {values.ndim}\n{dims}".encode())
    _add(archive, f"{name}/data", numpy.ascontiguousarray(values, "<f4").tobytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    assert len(name) <= _LONGEST_NAME, name
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(content))
