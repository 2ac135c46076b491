"""Policies in a NumPy archive, ``student.npz``: program, description and golden sequence; nothing in it is executed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy
from numpy.lib import format as npy

from foundation.core.archives import ArchiveError, check_members
from foundation.core.errors import UserError
from foundation.core.plain_json import parse_json
from foundation.core.text import one_line, quoted
from foundation.deploy.description import Description, Json
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.numpy_policy import NumpyProgram
from foundation.deploy.program import Memory, Operation, Option, Program
from foundation.deploy.shapes import check_shapes

_GOLDEN = ("golden_obs", "golden_resets", "golden_actions")
_MAX_STEPS = 10_000
"""Longest golden sequence that is replayed [env steps]; exports have a hundred."""
_MAX_JSON = 4 << 20
"""Longest text of a program or a description [B]; an operation takes some 300."""


def write_npz(file: BinaryIO, program: Program, description: Description, golden: Golden) -> None:
    """Write a policy.

    Args:
        file: Where to.
        program: Its operations.
        description: What it reads and gives.
        golden: What it gave.
    """
    arrays: dict[str, numpy.ndarray] = {
        "description": _from_json(description.as_dict()),
        "program": _from_json({"output": program.output, "operations": [_record(op) for op in program.operations]}),
        "golden_obs": golden.obs,
        "golden_resets": golden.resets,
        "golden_actions": golden.actions,
    }
    for index, operation in enumerate(program.operations):
        arrays |= {f"{index}.{name}": array for name, array in operation.arrays.items()}
        arrays |= {f"{index}.memory.{place}": memory.initial for place, memory in enumerate(operation.memory)}
    numpy.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  # its stub has allow_pickle among the names


def write_golden(file: BinaryIO, golden: Golden) -> None:
    """Write a golden sequence alone, for formats that cannot carry it."""
    numpy.savez(file, golden_obs=golden.obs, golden_resets=golden.resets, golden_actions=golden.actions)


def read_npz(path: Path) -> tuple[Program, Description, Golden]:
    """Read what :func:`write_npz` wrote.

    Args:
        path: The file.
    """
    where = f"'{path}'"
    arrays = _arrays(path)
    missing = [name for name in ("description", "program", *_GOLDEN) if name not in arrays]
    if missing:
        raise UserError(f"{where} is no exported policy: it lacks '{missing[0]}'. Export it again (--formats npz).")
    try:
        description = Description.from_dict(_to_json(arrays["description"]), where)
        program = _program(_to_json(arrays["program"]), arrays, description)
        check_shapes(program)
        actions, state = NumpyProgram(program).run(
            numpy.zeros((2, program.num_obs), numpy.float32), numpy.tile(program.initial_state, (2, 1))
        )
        expected = (2, description.num_actions), (2, description.state_size)
        if (actions.shape, state.shape) != expected:
            raise ValueError(f"it gives shapes {actions.shape} and {state.shape}, not {expected}")
    except UserError:
        raise
    except Exception as error:  # a corrupt program fails in any of NumPy's ways
        raise UserError(f"{where} is corrupt or incomplete: {one_line(error)}. Export it again.") from error
    return program, description, _golden(arrays, where)


def read_golden(path: Path) -> Golden:
    """Read the golden sequence of a file that :func:`write_npz` or :func:`write_golden` wrote."""
    arrays = _arrays(path)
    if any(name not in arrays for name in _GOLDEN):
        raise UserError(f"'{path}' has no golden sequence. Export the policy again.")
    return _golden(arrays, f"'{path}'")


def _arrays(path: Path) -> dict[str, numpy.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path.stat().st_size)
            arrays = {member.filename.removesuffix(".npy"): _array(archive, member) for member in archive.infolist()}
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist. Check the path.") from None
    except Exception as error:  # corrupt archives fail in the ways of zlib, lzma, the tokenizer, NumPy and others
        raise UserError(f"'{path}' is corrupt or no NumPy archive: {one_line(error)}. Export it again.") from error
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not numpy.isfinite(array).all():
            raise UserError(f"'{path}' is corrupt: '{name}' has NaN or infinite numbers. Export it again.")
    return arrays


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> numpy.ndarray:
    """Read one array, once its header is seen to say no more than there is: NumPy sets memory aside by it."""
    with archive.open(member) as stream:
        if npy.read_magic(stream) != (1, 0):
            raise ArchiveError(f"'{member.filename}' is of another version of the format")
        shape, _, dtype = npy.read_array_header_1_0(stream)
    if dtype.hasobject or prod(shape) * dtype.itemsize > member.file_size:
        raise ArchiveError(f"'{member.filename}' says it has the shape {shape}, which the file does not hold")
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _golden(arrays: Mapping[str, numpy.ndarray], where: str) -> Golden:
    obs, resets, actions = (arrays[name] for name in _GOLDEN)
    if [array.dtype.kind for array in (obs, resets, actions)] != ["f", "b", "f"]:
        raise UserError(f"{where} is corrupt: its golden sequence is not made of numbers. Export it again.")
    if obs.ndim != 3 or actions.ndim != 3 or not obs.shape[:2] == actions.shape[:2] == resets.shape or not obs.size:
        shapes = f"{obs.shape}, {resets.shape}, {actions.shape}"
        raise UserError(f"{where} is corrupt: its golden sequence has the shapes {shapes}. Export it again.")
    if len(obs) > _MAX_STEPS:
        raise UserError(f"{where} is corrupt: its golden sequence has {len(obs)} steps. Export it again.")
    as_float = [array.astype(numpy.float32) for array in (obs, actions)]
    return Golden(obs=as_float[0], resets=resets.astype(numpy.bool_), actions=as_float[1])


def _record(operation: Operation) -> Json:
    return {
        "kind": operation.kind,
        "name": operation.name,
        "inputs": list(operation.inputs),
        "shape": list(operation.shape),
        "memory": [memory.start for memory in operation.memory],
        "arrays": list(operation.arrays),
        "options": {
            name: list(value) if isinstance(value, tuple) else value for name, value in operation.options.items()
        },
    }


def _program(values: object, arrays: Mapping[str, numpy.ndarray], description: Description) -> Program:
    if not isinstance(values, dict) or not isinstance(values.get("operations"), list):
        raise ValueError(f"its program is {quoted(values)}")
    operations = tuple(_operation(index, record, arrays) for index, record in enumerate(values["operations"]))
    program = Program(num_obs=description.num_obs, operations=operations, output=str(values["output"]))
    spans = sorted((memory.start, memory.size) for operation in operations for memory in operation.memory)
    end = 0
    for start, size in spans:
        if start != end:
            raise ValueError("the columns of its memory overlap or have gaps")
        end = start + size
    return program


def _operation(index: int, record: dict[str, Json], arrays: Mapping[str, numpy.ndarray]) -> Operation:
    memory, inputs, shape, names, options = (
        record[name] for name in ("memory", "inputs", "shape", "arrays", "options")
    )
    if not (isinstance(memory, list) and isinstance(inputs, list) and isinstance(shape, list)):
        raise ValueError(f"operation {index} is {quoted(record)}")
    if not (isinstance(names, list) and isinstance(options, dict)):
        raise ValueError(f"operation {index} is {quoted(record)}")
    return Operation(
        kind=str(record["kind"]),
        name=str(record["name"]),
        inputs=tuple(str(name) for name in inputs),
        shape=tuple(_whole(size) for size in shape),
        memory=tuple(
            Memory(start=_whole(start), initial=_float(arrays[f"{index}.memory.{place}"]))
            for place, start in enumerate(memory)
        ),
        arrays={str(name): _float(arrays[f"{index}.{name}"]) for name in names},
        options={name: _option(value) for name, value in options.items()},
    )


def _whole(value: Json) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{quoted(value)} is not an integer")
    return value


def _option(value: Json) -> Option:
    if isinstance(value, list):
        return tuple(_whole(part) for part in value)
    if value is None or isinstance(value, dict | bool):
        raise ValueError(f"{quoted(value)} is no setting")
    return value


def _float(array: numpy.ndarray) -> FloatArray:
    if array.dtype != numpy.float32:
        raise ValueError(f"weights of type {array.dtype}, not float32")
    return array


def _from_json(values: Json) -> numpy.ndarray:
    return numpy.frombuffer(json.dumps(values).encode(), numpy.uint8)


def _to_json(array: numpy.ndarray) -> object:
    if array.nbytes > _MAX_JSON:
        raise ValueError(f"its program or description has {array.nbytes >> 20} MiB")
    return parse_json(array.astype(numpy.uint8).tobytes().decode())
