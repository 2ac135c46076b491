"""Policies as C99 with 8-bit weights: integers alone between the observations' scaling and the actions'.

A value is an integer ``q`` that stands for ``q / 2^f``. Its ``f`` is chosen so that twice the largest number seen over
the golden sequence fits into 16 bits. What is larger has 24 bits, as an episode may begin far from where a policy is
most of the time, and saturates beyond. Weights have 8 bits and a scale for each output, sums
have 64; a sum becomes a value by a 15-bit multiplier and a shift. Sigmoid and exponential are tables of 16-bit numbers
with straight lines between them, and the hyperbolic tangent is made of the sigmoid's. Shifts of negative numbers to the
right keep the sign, as they do with every compiler of today.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

from foundation.core.errors import UserError
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.numpy_policy import NumpyProgram
from foundation.deploy.program import OBS, Operation, Program
from foundation.export.c_operations import lay_out
from foundation.export.c_text import c_float, comment, float_array, int_array

MAX_WEIGHT = 127
"""Largest 8-bit weight: the same on both sides of 0."""
_MAX_VALUE = 32767
_MAX_BEYOND = (1 << 23) - 1
"""Largest value over the golden sequence, and at all."""
_GATE_BITS = 16
"""``f`` of a gate's argument and of an LSTM's cell: they have 32 bits."""
_TABLE_STEPS = {"sigmoid": (128, 4), "exp": (256, 5)}
"""Steps of each table, and their number in one unit of the argument, as a power of two; both end at 8."""
_FUNCTIONS_FROM = {"relu": (), "tanh": ("tanh",), "sigmoid": ("sigmoid",), "elu": ("exp",)}
"""Activations that there are, and the functions that each calls."""

_C_FUNCTIONS = {
    "requantise": """\
/* sum * multiplier / 2^shift, rounded, within +-most. */
static int32_t POLICY_requantise(int64_t sum, int32_t multiplier, int shift, int32_t most) {
    const int64_t scaled = (sum * multiplier + ((int64_t)1 << (shift - 1))) >> shift;
    return scaled > most ? most : scaled < -most ? -most : (int32_t)scaled;
}
""",
    "dense": """\
/* out = weight x + bias. */
static void POLICY_dense(const int8_t *weight, const int32_t *bias, const int16_t *multiplier, const int8_t *shift,
                         int num_in, int num_out, int32_t most, const int32_t *x, int32_t *out) {
    for (int row = 0; row < num_out; row++) {
        int64_t sum = bias[row];
        for (int column = 0; column < num_in; column++) {
            sum += (int64_t)weight[row * num_in + column] * x[column];
        }
        out[row] = POLICY_requantise(sum, multiplier[row], shift[row], most);
    }
}
""",
    "table": """\
/* A table's value, of 15 bits, at x / 2^bits >= 0; its steps are 2^-per_unit wide. */
static int32_t POLICY_table(const int16_t *table, int steps, int per_unit, int bits, int32_t x) {
    const int low = bits - per_unit;
    const int32_t step = x >> low;
    if (step >= steps) {
        return table[steps];
    }
    const int64_t part = x - (step << low);
    return table[step] + (int32_t)((part * (table[step + 1] - table[step])) >> low);
}
""",
    "sigmoid": """\
/* 2^15 / (1 + exp(-x / 2^16)). */
static int32_t POLICY_sigmoid(int32_t x) {
    const int32_t upper = POLICY_table(POLICY_sigmoid_table, SIGMOID_STEPS, SIGMOID_PER_UNIT, 16, x < 0 ? -x : x);
    return x < 0 ? 32768 - upper : upper;
}
""",
    "tanh": """\
/* 2^15 tanh(x / 2^16). */
static int32_t POLICY_tanh(int32_t x) {
    const int32_t bounded = x > 1000000 ? 1000000 : x < -1000000 ? -1000000 : x;
    return 2 * POLICY_sigmoid(2 * bounded) - 32768;
}
""",
    "exp": """\
/* 2^15 exp(-x / 2^16) for x >= 0. */
static int32_t POLICY_exp(int32_t x) { return POLICY_table(POLICY_exp_table, EXP_STEPS, EXP_PER_UNIT, 16, x); }
""",
    "scaled": """\
/* x * 2^by, rounded, within +-2^30. */
static int32_t POLICY_scaled(int64_t x, int by) {
    const int64_t scaled = by >= 0 ? x * ((int64_t)1 << by) : (x + ((int64_t)1 << (-by - 1))) >> -by;
    const int32_t most = 1 << 30;
    return scaled > most ? most : scaled < -most ? -most : (int32_t)scaled;
}
""",
    "gru": """\
/* One step of a GRU layer; gates in the order r, z, n. given and kept are W x + b and U h + c, of 16 bits after the
   point; h has bits of them. */
static void POLICY_gru(const int32_t *given, const int32_t *kept, int size, int bits, const int32_t *h, int32_t *out) {
    for (int i = 0; i < size; i++) {
        const int64_t reset = POLICY_sigmoid(given[i] + kept[i]);
        const int64_t update = POLICY_sigmoid(given[size + i] + kept[size + i]);
        const int64_t argument = given[2 * size + i] + ((reset * kept[2 * size + i]) >> 15);
        const int32_t most = 1 << 24;
        const int32_t bounded = argument > most ? most : argument < -most ? -most : (int32_t)argument;
        const int32_t candidate = POLICY_scaled(POLICY_tanh(bounded), bits - 15);
        out[i] = candidate + (int32_t)((update * (h[i] - candidate) + (1 << 14)) >> 15);
    }
}
""",
    "lstm": """\
/* One step of an LSTM layer; gates in the order i, f, g, o. given and kept are W x + b and U h + c; they and the cell
   have 16 bits after the point. h has bits of them. */
static void POLICY_lstm(const int32_t *given, const int32_t *kept, int size, int bits, int32_t *cell, int32_t *out) {
    for (int i = 0; i < size; i++) {
        const int64_t enter = POLICY_sigmoid(given[i] + kept[i]);
        const int64_t forget = POLICY_sigmoid(given[size + i] + kept[size + i]);
        const int64_t candidate = POLICY_tanh(given[2 * size + i] + kept[2 * size + i]);
        const int64_t leave = POLICY_sigmoid(given[3 * size + i] + kept[3 * size + i]);
        const int64_t sum = (forget * cell[i] + 2 * enter * candidate + (1 << 14)) >> 15;
        const int32_t most = 1 << 24;
        cell[i] = sum > most ? most : sum < -most ? -most : (int32_t)sum;
        out[i] = POLICY_scaled(leave * POLICY_tanh(cell[i]), bits - 30);
    }
}
""",
    "window": """\
/* Append x to the past, oldest first, and remember all but the oldest. */
static void POLICY_window(int num_in, int length, const int32_t *x, int32_t *past, int32_t *out) {
    const size_t kept = sizeof(int32_t) * (size_t)(num_in * (length - 1));
    memcpy(out, past, kept);
    memcpy(out + num_in * (length - 1), x, sizeof(int32_t) * (size_t)num_in);
    memcpy(past, out + num_in, kept);
}
""",
}
"""C text by name; each comes after those that it calls."""
_NEEDS = {
    "dense": ("requantise",),
    "sigmoid": ("table",),
    "tanh": ("sigmoid",),
    "exp": ("table",),
    "gru": ("tanh", "scaled"),
    "lstm": ("tanh", "scaled"),
}


@dataclass(frozen=True)
class QuantisedRows:
    """A weight matrix of 8 bits whose rows have scales of their own."""

    weight: NDArray[numpy.int8]
    """Shape: (num_out, num_in)."""
    scale: NDArray[numpy.float64]
    """What a row's numbers are multiplied by. Shape: (num_out,)."""


def quantise_rows(weight: FloatArray, least: NDArray[numpy.float64] | float = 0.0) -> QuantisedRows:
    """Round each row to 8 bits of its largest number.

    Args:
        weight: Shape: (num_out, num_in).
        least: Smallest scale of a row. Shape: () or (num_out,).
    """
    largest = numpy.abs(weight.astype(numpy.float64)).max(axis=1)
    scale = numpy.maximum(largest / MAX_WEIGHT, least)
    scale[scale == 0] = 1.0
    return QuantisedRows(numpy.rint(weight / scale[:, None]).astype(numpy.int8), scale)


@dataclass
class Int8Body:
    """The lines of ``<name>_step`` in integers, with the weights and functions that they need."""

    program: Program
    name: str
    bits: dict[str, int]
    """``f`` of each value."""
    places: dict[str, int]
    work_size: int
    functions: dict[str, str] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    weight_bytes: int = 0
    """Bytes of the constant arrays: weights, biases, multipliers, tables, the scaling of observations."""

    def use(self, function: str) -> str:
        """Include one of the functions and return its name in this policy."""
        if function not in self.functions:
            for needed in _NEEDS.get(function, ()):
                self.use(needed)
            text = _C_FUNCTIONS[function]
            if function in _TABLE_STEPS:
                self._table(function)
                steps, per_unit = _TABLE_STEPS[function]
                upper = function.upper()
                text = text.replace(f"{upper}_STEPS", str(steps)).replace(f"{upper}_PER_UNIT", str(per_unit))
            self.functions[function] = text
        return f"{self.name}_{function}"

    def _table(self, function: str) -> None:
        steps, per_unit = _TABLE_STEPS[function]
        at = numpy.arange(steps + 1) / 2**per_unit
        exact = 1 / (1 + numpy.exp(-at)) if function == "sigmoid" else numpy.exp(-at)
        self.integers(f"{function}_table", numpy.minimum(numpy.rint(exact * 32768), _MAX_VALUE), "int16_t")

    def integers(self, name: str, values: NDArray[numpy.floating] | NDArray[numpy.integer], kind: str) -> str:
        """Write an array of integers and return its name."""
        self.weights.append(int_array(f"{self.name}_{name}", values, kind))
        self.weight_bytes += values.size * {"int8_t": 1, "int16_t": 2, "int32_t": 4}[kind]
        return f"{self.name}_{name}"

    def floats(self, name: str, values: FloatArray) -> str:
        """Write an array of float32 and return its name."""
        self.weights.append(float_array(f"{self.name}_{name}", values))
        self.weight_bytes += values.size * 4
        return f"{self.name}_{name}"

    def value(self, name: str) -> str:
        """Return where a value is."""
        return f"work + {self.places[name]}"

    def initial_memory(self) -> NDArray[numpy.int64]:
        """Return the memory when an episode begins. Shape: (state_size,)."""
        memory = numpy.zeros(self.program.state_size, numpy.int64)
        for operation in self.program.operations:
            for place, part in enumerate(operation.memory):
                is_cell = operation.kind == "recurrent" and place == 1
                bits = _GATE_BITS if is_cell else self.bits[operation.name]
                memory[part.start : part.start + part.size] = numpy.rint(part.initial * 2.0**bits)
        return memory


def int8_body(program: Program, golden: Golden, name: str) -> Int8Body:
    """Write a program's operations in integers.

    Args:
        program: The operations.
        golden: A sequence by which the ranges of values are found.
        name: Of the policy, which its functions and weights begin with.

    Raises:
        UserError: For an operation that there is not in integers.
    """
    operations = program.operations
    if operations and not (operations[0].kind == "normalize" and operations[0].inputs == (OBS,)):
        size = program.num_obs
        same = {"mean": numpy.zeros(size, numpy.float32), "scale": numpy.ones(size, numpy.float32)}
        reading = Operation(kind="normalize", name="obs_as_integers", inputs=(OBS,), shape=(size,), arrays=same)
        renamed = tuple(_reads(operation, reading.name) for operation in operations)
        program = Program(num_obs=program.num_obs, operations=(reading, *renamed), output=program.output)
    for operation in program.operations:
        if operation.kind not in _WRITERS or (operation.kind == "normalize" and operation.inputs != (OBS,)):
            raise UserError(
                f"layer '{operation.name}' ({operation.kind}) cannot be written as C of 8 bits: take format c. There "
                "are dense, GRU, LSTM, history and convolution layers over time."
            )
    places, work_size = lay_out(program)
    body = Int8Body(program, name, _bits(program, golden), places, work_size)
    for index, operation in enumerate(program.operations):
        body.calls.append(f"    /* {comment(operation.name)} */")
        body.calls += [f"    {line}" for line in _WRITERS[operation.kind](body, operation, index)]
    return body


def _reads(operation: Operation, name: str) -> Operation:
    """Return an operation that reads a value instead of the observation."""
    inputs = tuple(name if given == OBS else given for given in operation.inputs)
    return Operation(
        kind=operation.kind,
        name=operation.name,
        inputs=inputs,
        shape=operation.shape,
        memory=operation.memory,
        arrays=operation.arrays,
        options=operation.options,
    )


def _bits(program: Program, golden: Golden) -> dict[str, int]:
    """Return ``f`` of each value, by the largest number of each over the golden sequence."""
    numpy_program = NumpyProgram(program)
    envs = golden.obs.shape[1]
    initial = numpy.tile(program.initial_state, (envs, 1))
    state = initial
    largest = {operation.name: 1e-3 for operation in program.operations}
    for obs, resets in zip(golden.obs, golden.resets, strict=True):
        _, state = numpy_program.run(obs, numpy.where(resets[:, None], initial, state))
        for name in largest:
            largest[name] = max(largest[name], float(numpy.abs(numpy_program.values[name]).max()))
    bits: dict[str, int] = {}
    for operation in program.operations:
        memory = max((float(numpy.abs(part.initial).max()) for part in operation.memory[:1]), default=0.0)
        most = 2 * max(largest[operation.name], memory)
        if operation.kind == "recurrent":  # between the hyperbolic tangent and what it remembered
            most = max(1.0, memory)
        # Some operations move values and do not rescale them.
        same = operation.kind in ("clamp", "window") or operation.options.get("function") == "relu"
        known = bits.get(operation.inputs[0])
        bits[operation.name] = known if same and known is not None else min(15, math.floor(math.log2(32767 / most)))
        if bits[operation.name] < 0:
            raise UserError(
                f"layer '{operation.name}' gives numbers above 32767, too large for C of 8 bits: take format c."
            )
    return bits


def _normalize(body: Int8Body, op: Operation, index: int) -> list[str]:
    mean = body.floats("mean", op.arrays["mean"])
    scale = body.floats("scale", (op.arrays["scale"] * numpy.float32(2.0 ** body.bits[op.name])).astype(numpy.float32))
    out = body.value(op.name)
    most = c_float(numpy.float32(_MAX_BEYOND))
    return [
        f"for (int i = 0; i < {op.size}; i++) {{",
        f"    const float scaled = (obs[i] - {mean}[i]) * {scale}[i];",
        f"    const float bounded = scaled > {most} ? {most} : scaled < -{most} ? -{most} : scaled;",
        f"    ({out})[i] = (int32_t)(bounded + (bounded < 0.0f ? -0.5f : 0.5f));",
        "}",
    ]


def _product(body: Int8Body, key: str, arrays: tuple[FloatArray, FloatArray], bits: tuple[int, int], most: int,
             x: str, out: str) -> str:  # fmt: skip
    """Write a matrix and return the call of its product."""
    weight, bias = arrays
    # A bias has to fit into 32 bits at the sum's scale.
    least = numpy.abs(bias.astype(numpy.float64)) * 2.0 ** bits[0] / 2**30
    rows = quantise_rows(weight, least)
    factor = rows.scale * 2.0 ** (bits[1] - bits[0])
    shift = 14 - numpy.floor(numpy.log2(factor)).astype(numpy.int64)
    multiplier = numpy.rint(factor * 2.0**shift)
    # 2^15 itself does not fit into 16 bits.
    over = multiplier > _MAX_VALUE
    multiplier[over], shift[over] = 2**14, shift[over] - 1
    if (shift < 1).any() or (shift > 62).any():
        raise UserError(f"the weights '{key}' have numbers too large or too small for C of 8 bits: take format c.")
    names = [
        body.integers(f"{key}_weight", rows.weight, "int8_t"),
        body.integers(f"{key}_bias", numpy.rint(bias / (rows.scale * 2.0 ** -bits[0])), "int32_t"),
        body.integers(f"{key}_multiplier", multiplier, "int16_t"),
        body.integers(f"{key}_shift", shift, "int8_t"),
    ]
    num_out, num_in = weight.shape
    return f"{body.use('dense')}({', '.join(names)}, {num_in}, {num_out}, {most}, {x}, {out});"


def _dense(body: Int8Body, op: Operation, index: int) -> list[str]:
    arrays = op.arrays["weight"], op.arrays["bias"]
    bits = body.bits[op.inputs[0]], body.bits[op.name]
    x, out = body.value(op.inputs[0]), body.value(op.name)
    blocks = int(op.number("blocks"))
    if blocks == 1:
        return [_product(body, str(index), arrays, bits, _MAX_BEYOND, x, out)]
    num_out, num_in = op.arrays["weight"].shape  # a convolution over time: the same matrix for each block
    each = _product(
        body, str(index), arrays, bits, _MAX_BEYOND, f"{x} + block * {num_in}", f"{out} + block * {num_out}"
    )
    return [f"for (int block = 0; block < {blocks}; block++) {{", f"    {each}", "}"]


def _activation(body: Int8Body, op: Operation, index: int) -> list[str]:
    function = op.text("function")
    if function not in _FUNCTIONS_FROM or op.options.get("alpha", 1.0) != 1.0:
        raise UserError(
            f"activation '{function}' of layer '{op.name}' cannot be written as C of 8 bits: there are "
            f"{', '.join(_FUNCTIONS_FROM)}. Take format c."
        )
    for needed in _FUNCTIONS_FROM[function]:
        body.use(needed)
    name = body.name
    bits = body.bits[op.name]
    before = body.bits[op.inputs[0]]
    argument = f"{body.use('scaled')}(value, {16 - before})"
    expression = {
        "relu": "value > 0 ? value : 0",
        "tanh": f"{name}_scaled({name}_tanh({argument}), {bits - 15})",
        "sigmoid": f"{name}_scaled({name}_sigmoid({argument}), {bits - 15})",
        "elu": f"value > 0 ? {name}_scaled(value, {bits - before}) : "
        f"{name}_scaled({name}_exp(-{argument}) - 32768, {bits - 15})",
    }[function]
    return [
        f"for (int i = 0; i < {op.size}; i++) {{",
        f"    const int32_t value = ({body.value(op.inputs[0])})[i];",
        f"    ({body.value(op.name)})[i] = {expression};",
        "}",
    ]


def _recurrent(body: Int8Body, op: Operation, index: int) -> list[str]:
    cell = op.text("cell")
    size = op.size
    gates = op.arrays["bias_ih"].size
    memory = f"state->memory + {op.memory[0].start}"
    lines = ["{", f"    int32_t given[{gates}], kept[{gates}];"]
    most = 1 << 24
    bits = body.bits[op.name]
    for out, suffix, x, f in (
        ("given", "ih", body.value(op.inputs[0]), body.bits[op.inputs[0]]),
        ("kept", "hh", memory, bits),
    ):
        arrays = op.arrays[f"weight_{suffix}"], op.arrays[f"bias_{suffix}"]
        lines.append("    " + _product(body, f"{index}_{suffix}", arrays, (f, _GATE_BITS), most, x, out))
    value = body.value(op.name)
    before = memory if cell == "gru" else f"state->memory + {op.memory[1].start}"
    lines.append(f"    {body.use(cell)}(given, kept, {size}, {bits}, {before}, {value});")
    return [*lines, f"    memcpy({memory}, {value}, sizeof(int32_t) * {size});", "}"]


def _window(body: Int8Body, op: Operation, index: int) -> list[str]:
    length = int(op.number("length"))
    x, out = body.value(op.inputs[0]), body.value(op.name)
    if not op.memory:
        return [f"memcpy({out}, {x}, sizeof(int32_t) * {op.size});"]
    memory = f"state->memory + {op.memory[0].start}"
    return [f"{body.use('window')}({op.size // length}, {length}, {x}, {memory}, {out});"]


def _clamp(body: Int8Body, op: Operation, index: int) -> list[str]:
    limit = 2.0**30
    bounds = [numpy.broadcast_to(op.arrays[key], op.shape).astype(numpy.float64) for key in ("low", "high")]
    scaled = [numpy.clip(numpy.rint(bound * 2.0 ** body.bits[op.name]), -limit, limit) for bound in bounds]
    low, high = (
        body.integers(f"{index}_{key}", part, "int32_t") for key, part in zip(("low", "high"), scaled, strict=True)
    )
    return [
        f"for (int i = 0; i < {op.size}; i++) {{",
        f"    const int32_t value = ({body.value(op.inputs[0])})[i];",
        f"    ({body.value(op.name)})[i] = value < {low}[i] ? {low}[i] : value > {high}[i] ? {high}[i] : value;",
        "}",
    ]


_WRITERS: dict[str, Callable[[Int8Body, Operation, int], list[str]]] = {
    "activation": _activation,
    "clamp": _clamp,
    "dense": _dense,
    "normalize": _normalize,
    "recurrent": _recurrent,
    "window": _window,
}


def output_lines(body: Int8Body) -> list[str]:
    """Return the lines that make actions of the integers."""
    output = body.program.output
    factor = c_float(numpy.float32(2.0 ** -body.bits[output]))
    return [
        f"    for (int i = 0; i < {body.program.num_actions}; i++) {{",
        f"        actions[i] = (float)({body.value(output)})[i] * {factor};",
        "    }",
    ]
