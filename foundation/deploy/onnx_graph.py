"""Check of an ONNX model before onnxruntime opens it: operators and shapes, read from the file's bytes.

A model of a kilobyte can make onnxruntime allocate gigabytes. So only what ``foundation/export/onnx_file.py`` writes is
accepted: its operators, no subgraphs, functions or external weights, and no larger tensors than a policy has. The bytes
are read here, as the package ``onnx`` is not needed on a robot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy

from foundation.core.protobuf import BYTES, VARINT, WireField, read_varint, wire_fields
from foundation.core.text import shorten
from foundation.deploy.shapes import MAX_ELEMENTS, Shape

_MAX_FIELDS = 100_000
"""Protobuf fields in the whole file; a policy has a few thousand."""
_MAX_NODES = 2000
_MAX_DIMENSIONS = 8
_MAX_PACKED = 1000
"""Bytes of integers in one field; a shape, axes or strides take a few."""

_FIELDS: dict[str, dict[int, str]] = {
    "model": {1: "", 2: "", 3: "", 4: "", 5: "", 6: "", 7: "graph", 8: "operators", 14: "property"},
    "graph": {1: "node", 2: "", 5: "tensor", 10: "", 11: "value", 12: "value", 13: "value"},
    "node": {1: "", 2: "", 3: "", 4: "", 5: "attribute", 6: "", 7: ""},
    "attribute": {1: "", 2: "", 3: "", 4: "", 7: "", 8: "", 13: "", 20: ""},
    "tensor": {1: "", 2: "", 8: "", 9: "", 12: ""},
    "value": {1: "", 2: "type", 3: ""},
    "type": {1: "tensor type", 6: ""},
    "tensor type": {1: "", 2: "shape"},
    "shape": {1: "dimension"},
    "dimension": {1: "", 2: "", 3: ""},
    "operators": {1: "", 2: ""},
    "property": {1: "", 2: ""},
}
"""Message -> field number of ``onnx.proto`` -> the message that the field holds ("": a plain value). Fields that no
export has are not listed, and make a file invalid."""
_FLOAT, _UINT8, _INT8, _INT64 = 1, 2, 3, 7
_ITEM_SIZES = {_FLOAT: 4, _UINT8: 1, _INT8: 1, _INT64: 8}
"""``TensorProto.DataType`` of an export's tensors, and the size of an element [B]."""


@dataclass
class _Node:
    """One operation."""

    kind: str
    """Operator, such as ``Gemm``."""
    inputs: list[str]
    """Names of the values that it reads; "" for an optional input that is left out."""
    outputs: list[str]
    """Names of the values that it computes."""
    integers: dict[str, list[int]]
    """Attributes that are integers, or lists of them."""

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a single integer."""
        (value,) = self.integers.get(name, [default])
        return value


@dataclass
class _Graph:
    """A model."""

    nodes: list[_Node] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    """Shapes of the constants."""
    integers: dict[str, list[int]] = field(default_factory=dict)
    """Values of the integer constants, which say shapes, axes and indices."""
    inputs: dict[str, list[int | None]] = field(default_factory=dict)
    """Shapes of the inputs; None stands for the number of environments."""


def check_model(content: bytes) -> dict[str, Shape]:
    """Raise for a model that no export can have written, or whose tensors are larger than a policy's.

    Args:
        content: The file.

    Returns:
        The shape of each input for one environment.

    Raises:
        ValueError: If the model is not accepted; LookupError or TypeError where its parts do not fit together.
    """
    graph = _read(content)
    # Elements of all values for 1, 2 and 3 environments: they may grow with their number, not with its square.
    one, two, three = (_count_elements(graph, num_envs) for num_envs in (1, 2, 3))
    if one > MAX_ELEMENTS or three - two != two - one:
        raise ValueError(f"it computes with {one} numbers, more than a policy")
    return {name: _shape(dims, 1) for name, dims in graph.inputs.items()}


# -- the model's bytes ------------------------------------------------------------------------------------------------


class _Message:
    """One protobuf message: its plain fields, and the messages in it, by field number.

    ``left`` has one entry, the number of fields that may still be read: all messages of a file count it down together.
    """

    def __init__(self, content: bytes, start: int, stop: int, kind: str, left: list[int]) -> None:
        self.content = content
        self.plain: dict[int, list[WireField]] = {}
        self.inner: dict[int, list[_Message]] = {}
        for part in wire_fields(content, start, stop):
            left[0] -= 1
            message = _FIELDS[kind].get(part.number)
            if left[0] < 0:
                raise ValueError(f"it has more than {_MAX_FIELDS} fields, many more than a policy")
            if message is None:
                raise ValueError(f"its {kind} has the field {part.number}, which an export does not have")
            if message:
                if part.kind != BYTES:
                    raise ValueError(f"its {kind} has a number where a {message} was expected")
                self.inner.setdefault(part.number, []).append(_Message(content, part.start, part.stop, message, left))
            else:
                self.plain.setdefault(part.number, []).append(part)

    def texts(self, number: int) -> list[str]:
        """Return the texts of a repeated field."""
        return [
            self.content[part.start : part.stop].decode() for part in self.plain.get(number, []) if part.kind == BYTES
        ]

    def text(self, number: int) -> str:
        """Return the text of a field, empty where it is absent; of several the last counts, as in protobuf."""
        return ["", *self.texts(number)][-1]

    def integers(self, number: int) -> list[int]:
        """Return the integers of a repeated field, whether they are stored one by one or packed."""
        return [_signed(value) for part in self.plain.get(number, []) for value in self._values(part)]

    def _values(self, part: WireField) -> Iterator[int]:
        if part.kind == VARINT:
            yield part.value
            return
        place = part.start
        if part.stop - place > _MAX_PACKED:
            raise ValueError("it has a list of more integers than a shape")
        while part.kind == BYTES and place < part.stop:
            value, place = read_varint(self.content, place, part.stop)
            yield value


def _signed(value: int) -> int:
    """Return a varint as the signed 64-bit integer that it encodes."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _read(content: bytes) -> _Graph:
    model = _Message(content, 0, len(content), "model", [_MAX_FIELDS])
    if len(model.inner.get(7, [])) != 1:
        raise ValueError("it has no graph, or several")
    (whole,) = model.inner[7]
    graph = _Graph()
    for tensor in whole.inner.get(5, []):
        _add_constant(graph, tensor)
    for value in whole.inner.get(11, []):
        name = value.text(1)
        if name in graph.shapes or name in graph.inputs:
            raise ValueError(f"two values have the name '{shorten(name, 40)}'")
        graph.inputs[name] = _dims(value)
    nodes = whole.inner.get(1, [])
    if len(nodes) > _MAX_NODES:
        raise ValueError(f"it has {len(nodes)} operators, many more than a policy")
    graph.nodes = [_node(node) for node in nodes]
    return graph


def _add_constant(graph: _Graph, tensor: _Message) -> None:
    name = tensor.text(8)
    shape = tuple(tensor.integers(1))
    (kind,) = tensor.integers(2)
    numbers = b"".join(tensor.content[part.start : part.stop] for part in tensor.plain.get(9, []))
    fits = kind in _ITEM_SIZES and len(shape) <= _MAX_DIMENSIONS and min(shape, default=0) >= 0
    if name in graph.shapes or not fits or len(numbers) != prod(shape) * _ITEM_SIZES[kind]:
        raise ValueError(f"its constant '{shorten(name, 40)}' has the shape {str(shape)[:80]}, which it does not hold")
    graph.shapes[name] = shape
    if kind == _INT64 and prod(shape) <= 2 * _MAX_DIMENSIONS:
        graph.integers[name] = numpy.frombuffer(numbers, "<i8").tolist()


def _dims(value: _Message) -> list[int | None]:
    """Return an input's shape; None where a dimension has a name instead of a size."""
    (kind,) = value.inner[2]
    (tensor,) = kind.inner[1]
    (shape,) = tensor.inner[2]
    dims = [[None, *dim.integers(1)][-1] for dim in shape.inner.get(1, [])]
    if tensor.integers(1) != [_FLOAT] or len(dims) > _MAX_DIMENSIONS or dims.count(None) != 1:
        raise ValueError(f"its input '{shorten(value.text(1), 40)}' is not numbers for any number of environments")
    return dims


def _shape(dims: Sequence[int | None], num_envs: int) -> Shape:
    return tuple(num_envs if size is None else size for size in dims)


def _node(node: _Message) -> _Node:
    kind = node.text(4)
    if kind not in _SHAPES or node.text(7) not in ("", "ai.onnx"):
        raise ValueError(f"it has the operator '{shorten(kind, 40)}', which an export does not have")
    integers = {part.text(1): part.integers(3) or part.integers(8) for part in node.inner.get(5, [])}
    refused = set(integers) - _ATTRIBUTES
    if refused:
        raise ValueError(f"its {kind} has the setting '{shorten(min(refused), 40)}', which an export does not have")
    return _Node(kind, node.texts(1), node.texts(2), integers)


# -- the shapes of each operator's outputs ----------------------------------------------------------------------------


def _count_elements(graph: _Graph, num_envs: int) -> int:
    """Return the number of elements of all values together, the buffers of convolutions included."""
    shapes = graph.shapes | {name: _shape(dims, num_envs) for name, dims in graph.inputs.items()}
    total = sum(prod(_shape(dims, num_envs)) for dims in graph.inputs.values())
    for node in graph.nodes:
        given = [shapes[name] if name else () for name in node.inputs]
        integers = [graph.integers.get(name, []) for name in node.inputs]
        results = _SHAPES[node.kind](node, given, integers)
        for name, shape in zip(node.outputs, results, strict=False):
            if name and name in shapes:
                raise ValueError(f"two values have the name '{shorten(name, 40)}'")
            if len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0:
                raise ValueError(f"its {node.kind} gives the shape {str(shape)[:80]}")
            shapes[name] = shape
        total += sum(prod(shape) for shape in results)
        if len(node.outputs) > len(results) or total > 3 * MAX_ELEMENTS:
            raise ValueError(f"its {node.kind} gives more than an export's")
    return total


Integers = list[list[int]]
"""For each input of an operator its values where it is an integer constant, else an empty list."""


def _same(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    return [x[0]]


def _broadcast(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    return [numpy.broadcast_shapes(*x)]


def _gemm(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    rows, num_in = x[0]
    weight = x[1] if node.integer("transB", 0) else x[1][::-1]
    num_out, expected = weight
    _need(node, num_in == expected and not node.integer("transA", 0))
    return [(rows, num_out)]


def _mat_mul(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    *outer, num_in = x[0]
    expected, num_out = x[1]
    _need(node, num_in == expected)
    return [(*outer, num_out)]


def _round_to_8_bits(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    return [x[0], (), ()]


def _flatten(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    _need(node, node.integer("axis", 1) == 1)
    return [(x[0][0], prod(x[0][1:]))]


def _reshape(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    shape = list(constants[1])
    fixed = prod(size for size in shape if size != -1)
    _need(node, min(shape) >= -1 and 0 not in shape and shape.count(-1) <= 1 and prod(x[0]) % fixed == 0)
    result = tuple(prod(x[0]) // fixed if size == -1 else size for size in shape)
    _need(node, prod(result) == prod(x[0]))
    return [result]


def _slice(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    starts, stops, axes = constants[1:4]
    steps = constants[4] if len(constants) > 4 else [1] * len(starts)
    shape = list(x[0])
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        shape[axis] = len(range(*slice(start, stop, step).indices(shape[axis])))
    return [tuple(shape)]


def _gather(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    axis = node.integer("axis", 0)
    _need(node, 0 <= axis < len(x[0]))
    return [(*x[0][:axis], *x[1], *x[0][axis + 1 :])]


def _squeeze(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    axes = constants[1]
    _need(node, bool(axes) and all(x[0][axis] == 1 and axis >= 0 for axis in axes))
    return [tuple(size for axis, size in enumerate(x[0]) if axis not in axes)]


def _unsqueeze(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    shape = list(x[0])
    for axis in sorted(constants[1]):
        _need(node, 0 <= axis <= len(shape) < _MAX_DIMENSIONS)
        shape.insert(axis, 1)
    return [tuple(shape)]


def _concat(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    axis = node.integer("axis", 0)
    _need(node, axis >= 0 and all(len(shape) == len(x[0]) for shape in x))
    shape = list(x[0])
    shape[axis] = sum(other[axis] for other in x)
    return [tuple(shape)]


def _arg_max(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    _need(node, node.integer("axis", 0) == 1 and node.integer("keepdims", 1) == 1)
    return [(x[0][0], 1, *x[0][2:])]


def _cast(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    _need(node, node.integer("to", 0) == _FLOAT)
    return [x[0]]


def _pad(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    pads = constants[1]
    half = len(x[0])
    _need(node, len(pads) == 2 * half and min(pads) >= 0)
    return [tuple(size + pads[axis] + pads[axis + half] for axis, size in enumerate(x[0]))]


def _conv(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    num_envs, channels, *sides = x[0]
    filters, expected, *kernel = x[1]
    _need(node, channels == expected and node.integer("group", 1) == 1)
    after = _windows(node, sides, kernel)
    # The second shape is a runtime's buffer: the contents of each window are laid out before the product with weights.
    return [(num_envs, filters, *after), (num_envs, *after, channels, *kernel)]


def _max_pool(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    num_envs, channels, *sides = x[0]
    return [(num_envs, channels, *_windows(node, sides, node.integers["kernel_shape"]))]


def _windows(node: _Node, sides: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return how many windows fit into each side of an image."""
    ones = [1] * len(sides)
    strides, dilations = (node.integers.get(name, ones) for name in ("strides", "dilations"))
    pads = node.integers.get("pads", [0] * (2 * len(sides)))
    _need(node, len(pads) == 2 * len(sides) and min(*strides, *dilations, *kernel) >= 1 and min(pads) >= 0)
    counts = []
    for axis, values in enumerate(zip(sides, kernel, strides, dilations, strict=True)):
        side, width, stride, dilation = values
        counts.append((side + pads[axis] + pads[axis + len(sides)] - dilation * (width - 1) - 1) // stride + 1)
    return counts


def _global_pool(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    return [(*x[0][:2], *(1 for _ in x[0][2:]))]


def _recurrent(node: _Node, x: list[Shape], constants: Integers) -> list[Shape]:
    steps, num_envs, num_in = x[0]
    gates, memories = {"GRU": (3, 1), "LSTM": (4, 2)}[node.kind]
    size = node.integer("hidden_size", 0)
    weights = (1, gates * size, num_in), (1, gates * size, size), (1, 2 * gates * size)
    _need(node, steps == 1 and tuple(x[1:4]) == weights)
    return [(1, 1, num_envs, size), *[(1, num_envs, size)] * memories]


def _need(node: _Node, fits: bool) -> None:
    if not fits:
        raise ValueError(f"its {node.kind} has settings or inputs that an export does not have")


_OF_EACH_NUMBER = (
    "Celu", "Elu", "Exp", "Gelu", "Identity", "LayerNormalization", "LeakyRelu", "Mish", "Relu", "Selu", "Sigmoid",
    "Softmax", "Softplus", "Tanh",
)  # fmt: skip
_ATTRIBUTES = {
    "alpha", "axis", "dilations", "epsilon", "group", "hidden_size", "keepdims", "kernel_shape", "linear_before_reset",
    "mode", "pads", "strides", "to", "transB",
}  # fmt: skip
"""Attributes that an export's operators have. Only integers and lists of them change a shape."""

_SHAPES: Mapping[str, Callable[[_Node, list[Shape], Integers], list[Shape]]] = {
    **dict.fromkeys(_OF_EACH_NUMBER, _same),
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Sub"), _broadcast),
    "ArgMax": _arg_max,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "ConvInteger": _conv,
    "DynamicQuantizeLinear": _round_to_8_bits,
    "Flatten": _flatten,
    "GRU": _recurrent,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LSTM": _recurrent,
    "MatMul": _mat_mul,
    "MatMulInteger": _mat_mul,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
"""Every operator that an export has, with the function from its inputs' shapes to its outputs'."""
