"""Policies as ONNX models: any batch size, memory in and out, description and initial memory in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy

from foundation.core.errors import UserError
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray
from foundation.deploy.onnx_policy import METADATA, OnnxMemory
from foundation.deploy.program import OBS, Operation, Program

if TYPE_CHECKING:
    import onnx

Attribute = int | float | str | Sequence[int]
"""A setting of an ONNX operator."""
OPSET = 20
"""Operator set: the first with Gelu; onnxruntime reads it since 1.17."""
_IR_VERSION = 9
_NUM_ENVS = "num_envs"


def write_onnx(file: BinaryIO, program: Program, description: Description) -> None:
    """Write a policy.

    Its inputs are ``obs`` (num_envs, num_obs) and, as RSL-RL names them, ``h_in`` and ``c_in`` (layers, num_envs, size)
    of recurrent layers, or ``state_in`` (1, num_envs, size) of any other memory; its outputs are ``actions`` and
    ``h_out``, ``c_out`` or ``state_out``.

    Args:
        file: Where to.
        program: Its operations.
        description: What it reads and gives.
    """
    file.write(to_onnx(program, description).SerializeToString())


def to_onnx(program: Program, description: Description, *, products: bool = False) -> onnx.ModelProto:
    """Return the model; see :func:`write_onnx`.

    Args:
        program: Its operations.
        description: What it reads and gives.
        products: Write recurrent layers as the products and functions that they are made of, which can be quantised;
            onnxruntime has no 8-bit GRU.
    """
    try:
        import onnx  # an optional package
    except ImportError:
        raise UserError("ONNX files are written by the package onnx: pip install -e '.[export]'") from None
    graph = _Graph(program, products)
    inputs = [_value(OBS, [_NUM_ENVS, program.num_obs])]
    outputs = [_value("actions", [_NUM_ENVS, program.num_actions])]
    for memory in graph.memories:
        shape = [len(memory.columns), _NUM_ENVS, memory.columns[0][1]]
        inputs.append(_value(memory.name, shape))
        outputs.append(_value(memory.after, shape))
    made = onnx.helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.constants)
    model = onnx.helper.make_model(
        made,
        producer_name="foundation",
        ir_version=_IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    memory_layout = [
        {"input": part.name, "output": part.after, "columns": [list(span) for span in part.columns]}
        for part in graph.memories
    ]
    facts = {
        "description": description.as_dict(),
        "initial_state": [float(number) for number in program.initial_state],
        "memory": memory_layout,
    }
    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _memories(program: Program) -> list[OnnxMemory]:
    """Return the inputs that remember: those of RSL-RL's names where all memory is that of equal recurrent layers."""
    layers = [operation for operation in program.operations if operation.memory]
    if not layers:
        return []
    kinds = {(layer.kind, layer.options.get("cell"), layer.size) for layer in layers}
    if len(kinds) == 1 and layers[0].kind == "recurrent":
        names = ("h", "c")[: len(layers[0].memory)]
        return [
            OnnxMemory(
                f"{name}_in",
                f"{name}_out",
                tuple((layer.memory[place].start, layer.memory[place].size) for layer in layers),
            )
            for place, name in enumerate(names)
        ]
    return [OnnxMemory("state_in", "state_out", ((0, program.state_size),))]


class _Graph:
    """The nodes of a program."""

    def __init__(self, program: Program, products: bool) -> None:
        """Write every operation as nodes."""
        self.products = products
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.memories = _memories(program)
        self._shapes = program.shapes
        self._kept: dict[int, str] = {}
        for operation in program.operations:
            before = [self._before(memory.start, memory.size) for memory in operation.memory]
            write = _WRITERS.get(operation.kind)
            if write is None:
                raise UserError(f"layer '{operation.name}' ({operation.kind}) cannot be written as ONNX.")
            for memory, after in zip(operation.memory, write(self, operation, before), strict=True):
                self._kept[memory.start] = after
        self.node("Identity", [self.flat(program.output)], output="actions")
        self._write_memories()

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Attribute) -> str:
        """Append a node of one output and return the output's name."""
        return self.nodes_of(kind, inputs, [output or self._fresh(kind)], **attributes)[0]

    def nodes_of(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute
    ) -> Sequence[str]:
        """Append a node and return the names of its outputs."""
        import onnx

        node = onnx.helper.make_node(kind, list(inputs), list(outputs))
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return outputs

    def constant(self, value: FloatArray | float | Sequence[int]) -> str:
        """Append a constant: integers in a list are a shape or axes."""
        import onnx

        if isinstance(value, numpy.ndarray | float):
            array = numpy.asarray(value, numpy.float32)
        else:
            array = numpy.array(value, numpy.int64)
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def flat(self, value: str) -> str:
        """Return a value as (num_envs, size)."""
        return value if len(self._shapes[value]) == 1 else self.node("Flatten", [value], axis=1)

    def columns(self, value: str, start: int, stop: int) -> str:
        """Return some columns of a flat value."""
        return self.node("Slice", [value, *(self.constant([bound]) for bound in (start, stop, 1))])

    def _fresh(self, kind: str) -> str:
        return f"{kind.lower()}_{len(self.nodes)}"

    def _before(self, start: int, size: int) -> str:
        """Return the memory that begins at a column of the state. Shape: (num_envs, size)."""
        for memory in self.memories:
            for layer, (first, width) in enumerate(memory.columns):
                if not first <= start < first + width:
                    continue
                if memory.name != "state_in":
                    return self.node("Gather", [memory.name, self._scalar(layer)], axis=0)
                whole = self.node("Squeeze", [memory.name, self.constant([0])])
                return whole if size == width else self.columns(whole, start - first, start - first + size)
        raise UserError(f"the policy's memory has no columns from {start} on")

    def _scalar(self, value: int) -> str:
        import onnx

        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(numpy.array(value, numpy.int64), name))
        return name

    def _write_memories(self) -> None:
        axis = self.constant([0]) if self.memories else ""
        for memory in self.memories:
            layers: list[str] = []
            for first, width in memory.columns:
                parts = [self._kept[start] for start in sorted(self._kept) if first <= start < first + width]
                whole = parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=1)
                layers.append(self.node("Unsqueeze", [whole, axis]))
            self.node("Concat", layers, output=memory.after, axis=0)


def _dense(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    weight = op.arrays["weight"]
    bias = op.arrays["bias"]
    x = graph.flat(op.inputs[0])
    blocks = int(op.number("blocks"))
    if blocks > 1:
        x = graph.node("Reshape", [x, graph.constant([-1, weight.shape[1]])])
        out = graph.node("Gemm", [x, graph.constant(weight), graph.constant(bias)], transB=1)
        graph.node("Reshape", [out, graph.constant([-1, blocks * weight.shape[0]])], output=op.name)
    else:
        graph.node("Gemm", [x, graph.constant(weight), graph.constant(bias)], output=op.name, transB=1)
    return []


_FUNCTIONS = {
    "celu": "Celu", "elu": "Elu", "exp": "Exp", "gelu": "Gelu", "leaky_relu": "LeakyRelu", "mish": "Mish",
    "relu": "Relu", "selu": "Selu", "sigmoid": "Sigmoid", "softplus": "Softplus", "tanh": "Tanh",
}  # fmt: skip
"""Operators of one input and no attribute but ``alpha``."""


def _activation(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    x = op.inputs[0]
    function = op.text("function")
    slope = op.options.get("alpha", op.options.get("negative_slope"))
    if function == "silu":
        graph.node("Mul", [x, graph.node("Sigmoid", [x])], output=op.name)
    elif function == "softplus" and op.number("beta") != 1.0:
        beta = graph.constant(op.number("beta"))
        graph.node("Div", [graph.node("Softplus", [graph.node("Mul", [x, beta])]), beta], output=op.name)
    elif function == "fast_tanh":
        x = _bounded(graph, x, graph.constant(-3.0), graph.constant(3.0))
        square = graph.node("Mul", [x, x])
        above = graph.node("Mul", [x, graph.node("Add", [square, graph.constant(27.0)])])
        nine = graph.node("Mul", [square, graph.constant(9.0)])
        graph.node("Div", [above, graph.node("Add", [nine, graph.constant(27.0)])], output=op.name)
    elif function not in _FUNCTIONS:
        raise UserError(f"activation '{function}' of layer '{op.name}' cannot be written as ONNX.")
    elif slope is None:
        graph.node(_FUNCTIONS[function], [x], output=op.name)
    else:
        graph.node(_FUNCTIONS[function], [x], output=op.name, alpha=slope)
    return []


def _bounded(graph: _Graph, x: str, low: str, high: str, output: str | None = None) -> str:
    return graph.node("Min", [graph.node("Max", [x, low]), high], output=output)


def _normalize(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    centred = graph.node("Sub", [op.inputs[0], graph.constant(op.arrays["mean"])])
    graph.node("Mul", [centred, graph.constant(op.arrays["scale"])], output=op.name)
    return []


def _scale(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    scaled = graph.node("Mul", [op.inputs[0], graph.constant(op.arrays["scale"])])
    graph.node("Add", [scaled, graph.constant(op.arrays["shift"])], output=op.name)
    return []


def _clamp(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    _bounded(graph, op.inputs[0], *(graph.constant(op.arrays[name]) for name in ("low", "high")), output=op.name)
    return []


def _layer_norm(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    weights = [graph.constant(op.arrays[name]) for name in ("weight", "bias")]
    graph.node("LayerNormalization", [op.inputs[0], *weights], output=op.name, axis=1, epsilon=op.number("eps"))
    return []


def _columns(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    start = int(op.number("start"))
    cut = graph.columns(graph.flat(op.inputs[0]), start, start + op.size)
    graph.node("Reshape", [cut, graph.constant([-1, *op.shape])], output=op.name)
    return []


def _concatenate(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    graph.node("Concat", [graph.flat(name) for name in op.inputs], output=op.name, axis=1)
    return []


def _arg_max(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    graph.node("Cast", [graph.node("ArgMax", [op.inputs[0]], axis=1, keepdims=1)], output=op.name, to=1)
    return []


def _beta_moment(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    shape = graph.node("Add", [graph.node("Softplus", [op.inputs[0]]), graph.constant(1.0)])
    alpha = graph.columns(shape, 0, op.size)
    beta = graph.columns(shape, op.size, 2 * op.size)
    share = graph.node("Div", [alpha, graph.node("Add", [alpha, beta])])
    scaled = graph.node("Mul", [share, graph.constant(op.number("width"))])
    graph.node("Add", [scaled, graph.constant(op.number("low"))], output=op.name)
    return []


_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _convolution(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    x = op.inputs[0]
    padding = op.pair("padding")
    mode = op.text("padding_mode")
    pads = [*padding, *padding]
    if mode != "zeros" and any(padding):
        x = graph.node("Pad", [x, graph.constant([0, 0, *padding, 0, 0, *padding])], mode=_PAD_MODES[mode])
        pads = [0, 0, 0, 0]
    graph.node(
        "Conv",
        [x, graph.constant(op.arrays["weight"]), graph.constant(op.arrays["bias"])],
        output=op.name,
        strides=op.pair("stride"),
        dilations=op.pair("dilation"),
        pads=pads,
    )
    return []


def _channel_norm(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    mean, scale, shift = (graph.constant(op.arrays[name].reshape(-1, 1, 1)) for name in ("mean", "scale", "shift"))
    scaled = graph.node("Mul", [graph.node("Sub", [op.inputs[0], mean]), scale])
    graph.node("Add", [scaled, shift], output=op.name)
    return []


def _max_pool(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    kernel, stride, padding = (int(op.number(name)) for name in ("kernel", "stride", "padding"))
    graph.node(
        "MaxPool",
        [op.inputs[0]],
        output=op.name,
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[padding] * 4,
    )
    return []


def _global_pool(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    kind = "GlobalMaxPool" if op.text("pooling") == "max" else "GlobalAveragePool"
    graph.node(kind, [op.inputs[0]], output=op.name)
    return []


def _add(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    graph.node("Add", list(op.inputs), output=op.name)
    return []


def _spatial_softmax(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    grid = op.arrays["grid"]
    pixels = graph.node("Reshape", [op.inputs[0], graph.constant([-1, op.size // 2, len(grid)])])
    shares = graph.node("Softmax", [pixels], axis=2)
    positions = graph.node("MatMul", [shares, graph.constant(grid)])
    graph.node("Reshape", [positions, graph.constant([-1, op.size])], output=op.name)
    return []


def _recurrent(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    cell = op.text("cell")
    size = op.size
    if graph.products:
        return {"gru": _gru_products, "lstm": _lstm_products}[cell](graph, op, before)
    order = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}[cell]  # ONNX has z, r, n and i, o, f, g

    def sorted_gates(name: str) -> FloatArray:
        gates = numpy.split(op.arrays[name], len(order))
        return numpy.concatenate([gates[index] for index in order])

    axis = graph.constant([0])
    bias = numpy.concatenate([sorted_gates("bias_ih"), sorted_gates("bias_hh")])
    inputs = [
        graph.node("Unsqueeze", [graph.flat(op.inputs[0]), axis]),
        graph.constant(sorted_gates("weight_ih")[None]),
        graph.constant(sorted_gates("weight_hh")[None]),
        graph.constant(bias[None]),
        "",
        *(graph.node("Unsqueeze", [name, axis]) for name in before),
    ]
    settings: dict[str, Attribute] = {"hidden_size": size}
    if cell == "gru":
        settings["linear_before_reset"] = 1
    raw = [f"{op.name}.{part}" for part in ("h", "c")[: len(before)]]
    graph.nodes_of(cell.upper(), inputs, ["", *raw], **settings)
    graph.node("Squeeze", [raw[0], axis], output=op.name)
    return [op.name, *(graph.node("Squeeze", [name, axis]) for name in raw[1:])]


def _gates(graph: _Graph, op: Operation, before: list[str]) -> tuple[str, str]:
    """Append the products with the input and with the memory, and return their names."""
    given, kept = (
        graph.node("Gemm", [x, *(graph.constant(op.arrays[f"{name}_{of}"]) for name in ("weight", "bias"))], transB=1)
        for x, of in ((graph.flat(op.inputs[0]), "ih"), (before[0], "hh"))
    )
    return given, kept


def _gru_products(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    size = op.size
    given, kept = _gates(graph, op, before)
    both = graph.node("Add", [graph.columns(given, 0, 2 * size), graph.columns(kept, 0, 2 * size)])
    switches = graph.node("Sigmoid", [both])
    reset, update = graph.columns(switches, 0, size), graph.columns(switches, size, 2 * size)
    remembered = graph.node("Mul", [reset, graph.columns(kept, 2 * size, 3 * size)])
    new = graph.node("Tanh", [graph.node("Add", [graph.columns(given, 2 * size, 3 * size), remembered])])
    change = graph.node("Mul", [update, graph.node("Sub", [before[0], new])])
    return [graph.node("Add", [new, change], output=op.name)]


def _lstm_products(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    size = op.size
    both = graph.node("Add", list(_gates(graph, op, before)))
    enter, forget, candidate, leave = (graph.columns(both, part * size, (part + 1) * size) for part in range(4))
    enter, forget, leave = (graph.node("Sigmoid", [gate]) for gate in (enter, forget, leave))
    added = graph.node("Mul", [enter, graph.node("Tanh", [candidate])])
    cell = graph.node("Add", [graph.node("Mul", [forget, before[1]]), added])
    return [graph.node("Mul", [leave, graph.node("Tanh", [cell])], output=op.name), cell]


def _window(graph: _Graph, op: Operation, before: list[str]) -> list[str]:
    x = graph.flat(op.inputs[0])
    graph.node("Concat", [*before, x], output=op.name, axis=1)
    newest = op.size // int(op.number("length"))
    return [graph.columns(op.name, newest, op.size) for _ in before]


_WRITERS: dict[str, Callable[[_Graph, Operation, list[str]], list[str]]] = {
    "activation": _activation,
    "add": _add,
    "arg_max": _arg_max,
    "beta_moment": _beta_moment,
    "channel_norm": _channel_norm,
    "clamp": _clamp,
    "columns": _columns,
    "concatenate": _concatenate,
    "convolution": _convolution,
    "dense": _dense,
    "global_pool": _global_pool,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "normalize": _normalize,
    "recurrent": _recurrent,
    "scale": _scale,
    "spatial_softmax": _spatial_softmax,
    "window": _window,
}
"""What writes each operation; it returns the next value of each of its memories. Shape: (num_envs, size)."""
