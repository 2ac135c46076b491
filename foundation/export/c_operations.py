"""The operations of a program as the lines of a C function, with the weights and functions that they need."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from foundation.core.errors import UserError
from foundation.deploy.program import OBS, Operation, Program
from foundation.export.c_functions import ACTIVATIONS, FAST_TANH, FUNCTIONS, NEEDS
from foundation.export.c_text import c_float, comment, float_array

_IN_PLACE = ("activation", "clamp", "normalize", "scale", "channel_norm")
"""Operations that may write where they read."""
_PADDING_MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}


class StepBody:
    """The lines of ``<name>_step`` that compute the action."""

    def __init__(self, program: Program, name: str) -> None:
        """Write every operation.

        Args:
            program: The operations.
            name: Of the policy, which its functions and weights begin with.
        """
        self.name = name
        self.functions: dict[str, str] = {}
        """C text of the functions that are called, by name."""
        self.weights: list[str] = []
        """C text of the constant arrays."""
        self.calls: list[str] = []
        """The lines."""
        self.shapes = program.shapes
        self.places, self.work_size = lay_out(program)
        for index, operation in enumerate(program.operations):
            write = WRITERS.get(operation.kind)
            if write is None:
                raise UserError(f"layer '{operation.name}' ({operation.kind}) cannot be written as C.")
            self.calls.append(f"    /* {comment(operation.name)} */")
            self.calls += [f"    {line}" for line in write(self, operation, index)]

    def use(self, function: str) -> str:
        """Include one of the functions and return its name in this policy."""
        for needed in NEEDS.get(function, ()):
            self.use(needed)
        self.functions.setdefault(function, FUNCTIONS[function])
        return f"{self.name}_{function}"

    def weight(self, index: int, operation: Operation, key: str) -> str:
        """Write an array and return its name."""
        name = f"{self.name}_{index}_{key}"
        self.weights.append(float_array(name, operation.arrays[key]))
        return name

    def value(self, name: str) -> str:
        """Return where a value is."""
        return "obs" if name == OBS else f"work + {self.places[name]}"

    def size(self, name: str) -> int:
        """Return the number of numbers of a value."""
        return prod(self.shapes[name])

    @staticmethod
    def memory(operation: Operation, place: int) -> str:
        """Return where one of an operation's memories is."""
        return f"state->memory + {operation.memory[place].start}"


def lay_out(program: Program) -> tuple[dict[str, int], int]:
    """Return where each value lies in the work space, and its size: a value's room is free after its last use."""
    last = {name: index for index, operation in enumerate(program.operations) for name in operation.inputs}
    last[program.output] = len(program.operations)
    places: dict[str, int] = {}
    sizes = {operation.name: operation.size for operation in program.operations}
    for index, operation in enumerate(program.operations):
        first = operation.inputs[0] if operation.inputs else ""
        if operation.kind in _IN_PLACE and first in places and last[first] == index:
            places[operation.name] = places[first]
            continue
        taken = sorted((places[name], places[name] + sizes[name]) for name in places if last.get(name, -1) >= index)
        start = 0
        for begin, end in taken:
            if start + operation.size <= begin:
                break
            start = max(start, end)
        places[operation.name] = start
    return places, max((places[name] + sizes[name] for name in places), default=0)


def _dense(body: StepBody, op: Operation, index: int) -> list[str]:
    weight, bias = (body.weight(index, op, key) for key in ("weight", "bias"))
    num_out, num_in = op.arrays["weight"].shape
    blocks = int(op.number("blocks"))
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('dense')}({weight}, {bias}, {num_in}, {num_out}, {blocks}, {x}, {out});"]


def _activation(body: StepBody, op: Operation, index: int) -> list[str]:
    function = op.text("function")
    if function not in ACTIVATIONS:
        raise UserError(f"activation '{function}' of layer '{op.name}' cannot be written as C.")
    if function == "fast_tanh":
        body.functions.setdefault("fast_tanh", FAST_TANH)
    for needed in NEEDS.get(function, ()):
        body.use(needed)
    constants = {key: c_float(op.number(key)) for key in op.options if key != "function"}
    expression = ACTIVATIONS[function].format(**constants).replace("POLICY", body.name)
    return [
        f"for (int i = 0; i < {op.size}; i++) {{",
        f"    const float value = ({body.value(op.inputs[0])})[i];",
        f"    ({body.value(op.name)})[i] = {expression};",
        "}",
    ]


def _normalize(body: StepBody, op: Operation, index: int) -> list[str]:
    mean, scale = (body.weight(index, op, key) for key in ("mean", "scale"))
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('normalize')}({mean}, {scale}, {op.size}, {x}, {out});"]


def _pairwise(function: str, first: str, second: str) -> Callable[[StepBody, Operation, int], list[str]]:
    def write(body: StepBody, op: Operation, index: int) -> list[str]:
        given = [f"{body.weight(index, op, key)}, {int(op.arrays[key].size > 1)}" for key in (first, second)]
        x = body.value(op.inputs[0])
        out = body.value(op.name)
        return [f"{body.use(function)}({', '.join(given)}, {op.size}, {x}, {out});"]

    return write


def _layer_norm(body: StepBody, op: Operation, index: int) -> list[str]:
    weight, bias = (body.weight(index, op, key) for key in ("weight", "bias"))
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('layer_norm')}({weight}, {bias}, {c_float(op.number('eps'))}, {op.size}, {x}, {out});"]


def _columns(body: StepBody, op: Operation, index: int) -> list[str]:
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"memcpy({out}, {x} + {int(op.number('start'))}, sizeof(float) * {op.size});"]


def _concatenate(body: StepBody, op: Operation, index: int) -> list[str]:
    lines: list[str] = []
    start = 0
    for name in op.inputs:
        size = body.size(name)
        lines.append(f"memcpy({body.value(op.name)} + {start}, {body.value(name)}, sizeof(float) * {size});")
        start += size
    return lines


def _arg_max(body: StepBody, op: Operation, index: int) -> list[str]:
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('arg_max')}({body.size(op.inputs[0])}, {x}, {out});"]


def _beta_moment(body: StepBody, op: Operation, index: int) -> list[str]:
    low = c_float(op.number("low"))
    width = c_float(op.number("width"))
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('beta_mean')}({low}, {width}, {op.size}, {x}, {out});"]


def _recurrent(body: StepBody, op: Operation, index: int) -> list[str]:
    cell = op.text("cell")
    weights = [body.weight(index, op, key) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    memory = [body.memory(op, place) for place in range(len(op.memory))]
    out = body.value(op.name)
    given = [*weights, str(body.size(op.inputs[0])), str(op.size), body.value(op.inputs[0]), *memory, out]
    return [f"{body.use(cell)}({', '.join(given)});", f"memcpy({memory[0]}, {out}, sizeof(float) * {op.size});"]


def _window(body: StepBody, op: Operation, index: int) -> list[str]:
    length = int(op.number("length"))
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    if not op.memory:
        return [f"memcpy({out}, {x}, sizeof(float) * {op.size});"]
    return [f"{body.use('window')}({op.size // length}, {length}, {x}, {body.memory(op, 0)}, {out});"]


def _convolution(body: StepBody, op: Operation, index: int) -> list[str]:
    weight, bias = (body.weight(index, op, key) for key in ("weight", "bias"))
    shape = [*body.shapes[op.inputs[0]], *op.shape]
    pairs = [
        op.arrays["weight"].shape[2:], op.pair("stride"), op.pair("padding"), op.pair("dilation"),
    ]  # fmt: skip
    settings = [str(number) for number in shape] + [f"{{{first}, {second}}}" for first, second in pairs]
    mode = _PADDING_MODES[op.text("padding_mode")]
    function = body.use("convolution")
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [
        "{",
        f"    static const {function}_shape shape = {{{', '.join(settings)}, {mode}}};",
        f"    {function}(&shape, {weight}, {bias}, {x}, {out});",
        "}",
    ]


def _channel_norm(body: StepBody, op: Operation, index: int) -> list[str]:
    arrays = [body.weight(index, op, key) for key in ("mean", "scale", "shift")]
    sizes = [str(op.shape[0]), str(op.shape[1] * op.shape[2])]
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('channel_norm')}({', '.join([*arrays, *sizes])}, {x}, {out});"]


def _max_pool(body: StepBody, op: Operation, index: int) -> list[str]:
    sizes = [*body.shapes[op.inputs[0]], *op.shape[1:]]
    sizes += [int(op.number(key)) for key in ("kernel", "stride", "padding")]
    function = body.use("max_pool")
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [
        "{",
        f"    static const {function}_shape shape = {{{', '.join(map(str, sizes))}}};",
        f"    {function}(&shape, {x}, {out});",
        "}",
    ]


def _global_pool(body: StepBody, op: Operation, index: int) -> list[str]:
    largest = int(op.text("pooling") == "max")
    channels, rows, columns = body.shapes[op.inputs[0]]
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('global_pool')}({largest}, {channels}, {rows * columns}, {x}, {out});"]


def _add(body: StepBody, op: Operation, index: int) -> list[str]:
    x, y = (body.value(name) for name in op.inputs)
    return [f"{body.use('add')}({op.size}, {x}, {y}, {body.value(op.name)});"]


def _spatial_softmax(body: StepBody, op: Operation, index: int) -> list[str]:
    channels, rows, columns = body.shapes[op.inputs[0]]
    grid = body.weight(index, op, "grid")
    x = body.value(op.inputs[0])
    out = body.value(op.name)
    return [f"{body.use('spatial_softmax')}({grid}, {channels}, {rows * columns}, {x}, {out});"]


WRITERS: dict[str, Callable[[StepBody, Operation, int], list[str]]] = {
    "activation": _activation,
    "add": _add,
    "arg_max": _arg_max,
    "beta_moment": _beta_moment,
    "channel_norm": _channel_norm,
    "clamp": _pairwise("clamp", "low", "high"),
    "columns": _columns,
    "concatenate": _concatenate,
    "convolution": _convolution,
    "dense": _dense,
    "global_pool": _global_pool,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "normalize": _normalize,
    "recurrent": _recurrent,
    "scale": _pairwise("scale", "scale", "shift"),
    "spatial_softmax": _spatial_softmax,
    "window": _window,
}
"""What writes each operation's lines of ``<name>_step``."""
