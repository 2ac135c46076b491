"""ONNX files read with care: a checked list of nodes and constants, and nothing that could run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from foundation.checkpoints.onnx.ops import OPERATORS
from foundation.checkpoints.onnx.wire import check_wire
from foundation.checkpoints.reading.loading import RUN_IT
from foundation.core.archives import ROOM
from foundation.core.errors import UserError
from foundation.core.files import check_finite
from foundation.core.plain_json import parse_json
from foundation.core.pointers import refuse_pointer
from foundation.core.text import one_line

_DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}
_JOINT_NAMES = "joint_names"
"""Key of the metadata that mjlab writes: names with commas between."""
_MAX_BYTES = 1 << 30
_MAX_MODEL = 2 << 30  # protobuf's own limit
_MAX_NODES = 2000
_FACTS = "foundation"
"""Key of the metadata that this project's own exports hold."""


@dataclass
class OnnxNode:
    """One operation."""

    kind: str
    """Operator, such as ``Gemm``."""
    inputs: list[str]
    """Names of its inputs; empty for one that is left out."""
    outputs: list[str]
    """Names of its outputs."""
    attributes: dict[str, Any]
    """Plain numbers, lists, text and tensors."""


@dataclass
class OnnxGraph:
    """A model's computation."""

    nodes: list[OnnxNode] = field(default_factory=list)
    """In an order in which they can be run."""
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights and shapes, by name."""
    inputs: dict[str, list[int]] = field(default_factory=dict)
    """Shape of each input; -1 where it is open."""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """Type of each input."""
    outputs: list[str] = field(default_factory=list)
    """Names of the outputs."""
    producer: str = ""
    """What wrote the file."""
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    """Memory at the start of an episode, of the inputs of which the file states it; it is zero for all others."""
    joint_names: list[str] | None = None
    """Joints in the policy's order, where its metadata state them."""


def is_onnx(path: Path, head: bytes) -> bool:
    """Return whether a file is an ONNX model: by its name, or by how such a file begins."""
    if not head or head[:1] in (b"\x80", b"P", b"\x89"):
        return False
    if path.suffix.lower() == ".onnx":
        return True
    return head[:1] == b"\x08" and head[1] < 32 and head[2:3] in (b"\x12", b"\x1a", b":", b"B")


def read_onnx(path: Path) -> OnnxGraph:
    """Read a model.

    Args:
        path: An ``.onnx`` file; weights that it keeps beside itself are read from its own folder only.
    """
    model = load_model(path)
    import onnx

    try:
        return _graph(model, onnx, path)
    except UserError:
        raise
    except Exception as error:  # a corrupt file fails in many ways inside protobuf and onnx, all with one meaning
        text = one_line(error)
        raise UserError(f"'{path}' is not an undamaged ONNX model ({text}). Export it again.") from error


def joint_names(path: Path) -> list[str] | None:
    """Return the joints that a model's metadata name, in the policy's order; None where they name none."""
    return _joint_names(load_model(path))


def _joint_names(model: Any) -> list[str] | None:
    for entry in model.metadata_props:
        if entry.key == _JOINT_NAMES:
            return [name.strip() for name in entry.value.split(",")]
    return None


def load_model(path: Path) -> Any:
    """Return the checked ``onnx.ModelProto`` of a file, its weights taken in from the file beside it.

    Args:
        path: An ``.onnx`` file; weights that it keeps beside itself are read from its own folder only.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            f"'{path}' is an ONNX file, which needs the package onnx: pip install -e '.[export]' in the clone's folder"
        ) from error
    try:
        size = path.stat().st_size
        if size > _MAX_MODEL:
            _refuse(path, f"has {size >> 20} MiB, more than an ONNX file can have")
        content = path.read_bytes()
        check_wire(content, onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto.FromString(content)
        del content
        if len(model.graph.node) > _MAX_NODES:
            _refuse(path, f"has {len(model.graph.node)} operators, more than a policy")
        beside: dict[Path, int] = {}
        taken = 0
        for tensor in model.graph.initializer:
            taken += _take_in(tensor, path, beside)
            if taken > ROOM + 2 * sum(beside.values()):
                _refuse(path, "takes the same weights from the file beside it again and again")
        onnx.checker.check_model(model)
    except UserError:
        raise
    except Exception as error:  # a corrupt file fails in many ways inside protobuf and onnx, all with one meaning
        text = one_line(error)
        raise UserError(f"'{path}' is not an undamaged ONNX model ({text}). Export it again.") from error
    return model


def _take_in(tensor: Any, path: Path, beside: dict[Path, int]) -> int:
    """Replace a reference to a file beside the model by the bytes in it; return their number.

    Args:
        tensor: The reference.
        path: The model.
        beside: Sizes of the files that were read so far [B]; this one is added.
    """
    if tensor.data_location == 0:
        return 0
    place = {entry.key: entry.value for entry in tensor.external_data}
    name = place.get("location", "")
    own = path.resolve().parent
    file = next((f for f in (path.absolute().parent / name, own / name) if f.is_file()), own / name)
    # A cache may keep both files under other names in one folder, and give them their own by links in another.
    if not name or name in (".", "..") or Path(name).name != name or file.resolve().parent != own:
        _refuse(path, f"keeps '{tensor.name}' in '{name[:80]}', which is no plain file in its own folder")
    refuse_pointer(file)
    if not file.is_file():
        _refuse(path, f"keeps its weights in '{name}', which is not beside it: copy both files")
    offset = int(place.get("offset", 0))
    length = int(place.get("length", file.stat().st_size - offset))
    if offset < 0 or not 0 <= length <= min(file.stat().st_size - offset, _MAX_BYTES):
        _refuse(path, f"reads beyond the end of '{name}': the two files do not belong together")
    beside[file] = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    del tensor.external_data[:]
    tensor.data_location = 0
    return length


def _graph(model: Any, onnx: Any, path: Path) -> OnnxGraph:
    producer = f"{model.producer_name} {model.producer_version}".strip()
    graph = OnnxGraph(producer=producer, joint_names=_joint_names(model))
    if model.graph.sparse_initializer:
        _refuse(path, "has sparse weights")
    for tensor in model.graph.initializer:
        graph.constants[tensor.name] = _tensor(tensor, onnx)
    for node in model.graph.node:
        _add(graph, node, onnx, path)
    for given in model.graph.input:
        if given.name in graph.constants:
            continue
        kind = given.type.tensor_type
        if kind.elem_type not in _DTYPES:
            _refuse(path, f"has the input '{given.name}', which is not of floating-point numbers", RUN_IT)
        graph.inputs[given.name] = [size.dim_value or -1 for size in kind.shape.dim]
        graph.dtypes[given.name] = _DTYPES[kind.elem_type]
    graph.outputs = [result.name for result in model.graph.output]
    check_finite({name: value for name, value in graph.constants.items() if _is_weight(value)}, str(path))
    for entry in model.metadata_props:
        if entry.key == _FACTS:
            graph.initial = _initial(entry.value, graph, path)
    return graph


def _initial(text: str, graph: OnnxGraph, path: Path) -> dict[str, torch.Tensor]:
    """Return the memory at the start of an episode as this project's exporter has stated it."""
    found: dict[str, torch.Tensor] = {}
    try:
        facts = parse_json(text)
        state = torch.tensor(facts["initial_state"], dtype=torch.float32).reshape(-1)
        for memory in facts["memory"]:
            layers = [state[start : start + size] for start, size in memory["columns"]]
            found[memory["input"]] = torch.stack(layers).unsqueeze(1)
        fits = all([abs(size) for size in graph.inputs[name]] == list(value.shape) for name, value in found.items())
    except Exception as error:  # corrupt metadata fails in any of JSON's and PyTorch's ways
        raise UserError(f"'{path}' has corrupt metadata ({one_line(error)}). Export it again.") from error
    if not fits:
        _refuse(path, "states an initial memory of another size than its inputs have", "Export it again")
    check_finite(found, str(path))
    return found


def _is_weight(value: torch.Tensor) -> bool:
    return value.numel() > 1  # a bound such as the infinity of a Clip is one number


def _add(graph: OnnxGraph, node: Any, onnx: Any, path: Path) -> None:
    name = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = _tensor(value, onnx)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif not isinstance(value, int | float) and not (
            isinstance(value, list) and all(isinstance(item, int | float | bytes) for item in value)
        ):
            _refuse(path, f"has the operator '{name}' with an inner graph, which is not understood", RUN_IT)
        attributes[attribute.name] = value
    if name == "Constant":
        kinds = {"value", "value_float", "value_int", "value_floats", "value_ints"} & set(attributes)
        graph.constants[node.output[0]] = torch.as_tensor(attributes[kinds.pop()])
        return
    if name not in OPERATORS:
        _refuse(path, f"has the operator '{name}', which is not understood", RUN_IT)
    if name == "Split":
        attributes.setdefault("num_outputs", len(node.output))  # operator sets below 18: equal parts, one per output
    graph.nodes.append(OnnxNode(name, list(node.input), list(node.output), attributes))


def _tensor(proto: Any, onnx: Any) -> torch.Tensor:
    return torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())


def _refuse(path: Path, what: str, advice: str = "Use the training checkpoint instead") -> NoReturn:
    raise UserError(f"'{path}' {what}. {advice}.")
