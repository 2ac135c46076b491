"""Policies as C99: a header without dependencies, a library around it, and a program that tests it.

``student.h`` is all that a robot needs; ``student.c`` makes a shared library of it that :mod:`foundation.deploy` loads;
``student_test.c`` replays the golden sequence and prints ``PASS``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy

from foundation.core.errors import UserError
from foundation.deploy.c_policy import ABI
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray, Golden
from foundation.deploy.program import OBS, Operation, Program
from foundation.export.c_functions import ACTIVATIONS, FAST_TANH, FUNCTIONS, NEEDS

_IN_PLACE = ("activation", "clamp", "normalize", "scale", "channel_norm")
"""Operations that may write where they read."""
_PADDING_MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}


@dataclass(frozen=True)
class CFiles:
    """The texts of a policy in C."""

    header: str
    """``<name>.h``: weights, ``<name>_reset`` and ``<name>_step``."""
    library: str
    """``<name>.c``: the functions that a shared library offers."""
    test: str
    """``<name>_test.c``: replays the golden sequence."""


def to_c(program: Program, description: Description, golden: Golden) -> CFiles:
    """Return a policy as C.

    Args:
        program: Its operations.
        description: What it reads and gives; its name becomes that of the functions.
        golden: What it gave.
    """
    name = c_name(description.name)
    return CFiles(
        header=_Header(program, description, name).text(),
        library=_library(description, name),
        test=_test(golden, name),
    )


def c_name(name: str) -> str:
    """Return a name that C accepts: letters, digits and underscores, not beginning with a digit."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).lower() or "policy"
    return plain if plain[0].isalpha() else f"policy_{plain.lstrip('_')}"


def _float(value: float | numpy.float32) -> str:
    """Return a literal that is read as the same float32."""
    return f"{numpy.float32(value)!s}f"  # NumPy writes the shortest text that is read as the same number


def _array(name: str, values: FloatArray) -> str:
    numbers = [_float(value) for value in values.reshape(-1)]
    lines = [", ".join(numbers[start : start + 8]) for start in range(0, len(numbers), 8)]
    body = ",\n    ".join(lines)
    return f"static const float {name}[{len(numbers)}] = {{\n    {body}}};\n"


class _Header:
    """The text of ``<name>.h``."""

    def __init__(self, program: Program, description: Description, name: str) -> None:
        self.program = program
        self.description = description
        self.name = name
        self.shapes = program.shapes
        self.functions: dict[str, str] = {}
        self.weights: list[str] = []
        self.calls: list[str] = []
        self.places, self.work_size = _layout(program)
        for index, operation in enumerate(program.operations):
            write = _WRITERS.get(operation.kind)
            if write is None:
                raise UserError(f"layer '{operation.name}' ({operation.kind}) cannot be written as C.")
            self.calls.append(f"    /* {_comment(operation.name)} */")
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
        self.weights.append(_array(name, operation.arrays[key]))
        return name

    def value(self, name: str) -> str:
        """Return where a value is."""
        return "obs" if name == OBS else f"work + {self.places[name]}"

    def size(self, name: str) -> int:
        """Return the number of numbers of a value."""
        return int(numpy.prod(self.shapes[name]))

    @staticmethod
    def memory(operation: Operation, place: int) -> str:
        """Return where one of an operation's memories is."""
        return f"state->memory + {operation.memory[place].start}"

    def text(self) -> str:
        """Return the header."""
        name = self.name
        upper = self.name.upper()
        description = self.description
        functions = [text.replace("POLICY", name) for text in self.functions.values()]
        initial = self.program.initial_state
        if initial.size:
            self.weights.append(_array(f"{name}_initial", initial))
            begin = f"    memcpy(state->memory, {name}_initial, sizeof({name}_initial));"
        else:
            begin = "    state->memory[0] = 0.0f; /* this policy remembers nothing */"
        interval = description.control_interval
        guard = f"FOUNDATION_{upper}_H"
        action = self.value(self.program.output)
        lines = [
            *_head_comment(description, name),
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            "#include <math.h>",
            "#include <stddef.h>",
            "#include <string.h>",
            "",
            f"#define {upper}_NUM_OBS {description.num_obs}",
            f"#define {upper}_NUM_ACTIONS {description.num_actions}",
            f"#define {upper}_STATE_SIZE {initial.size}",
            f"#define {upper}_WORK_SIZE {self.work_size}",
            *([f"#define {upper}_CONTROL_INTERVAL {_float(interval)} /* [s] */"] if interval is not None else []),
            "",
            "/* What one robot's policy remembers, and room to compute in. Reset it before the first step. */",
            "typedef struct {",
            f"    float memory[{max(1, initial.size)}];",
            f"    float work[{max(1, self.work_size)}];",
            f"}} {name}_state;",
            "",
            *self.weights,
            *functions,
            "/* Begin an episode. */",
            f"static inline void {name}_reset({name}_state *state) {{",
            begin,
            "}",
            "",
            "/* Act for one step. Returns 0; 1 where an observation is not finite, and nothing has changed; 2 where an",
            "   action is not finite: do not use it, and reset the state. */",
            f"static inline int {name}_step({name}_state *state, const float *obs, float *actions) {{",
            f"    for (int i = 0; i < {upper}_NUM_OBS; i++) {{",
            "        if (!isfinite(obs[i])) {",
            "            return 1;",
            "        }",
            "    }",
            *(["    float *work = state->work;"] if self.places else ["    (void)state;"]),
            *self.calls,
            f"    memcpy(actions, {action}, sizeof(float) * {upper}_NUM_ACTIONS);",
            f"    for (int i = 0; i < {upper}_NUM_ACTIONS; i++) {{",
            "        if (!isfinite(actions[i])) {",
            "            return 2;",
            "        }",
            "    }",
            "    return 0;",
            "}",
            "",
            f"#endif /* {guard} */",
            "",
        ]
        return "\n".join(lines)


def _layout(program: Program) -> tuple[dict[str, int], int]:
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


def _comment(text: str) -> str:
    """Return text that cannot end a comment: C joins lines at a backslash, which ``??/`` stands for too."""
    plain = "".join(sign if sign.isprintable() and sign != "\\" else " " for sign in text)
    return plain.replace("??", "? ?").replace("*/", "* /").replace("/*", "/ *")


def _head_comment(description: Description, name: str) -> list[str]:
    def table(fields: Iterable[tuple[str, int, str, str]]) -> list[str]:
        rows: list[str] = []
        start = 0
        for field, size, unit, frame in fields:
            columns = f"{start}" if size == 1 else f"{start}..{start + size - 1}"
            notes = ", ".join(part for part in (frame, f"[{unit}]" if unit else "") if part)
            rows.append(_comment(f"     {columns:<9} {field}{' ' + notes if notes else ''}"))
            start += size
        return rows

    def of(fields: Iterable[object]) -> Iterable[tuple[str, int, str, str]]:
        return [(f.name, f.size, f.unit, f.frame) for f in fields]  # type: ignore[attr-defined]

    upper = name.upper()
    lines = [
        f"/* {_comment(description.name)}: {_comment(description.architecture)}",
        "   Exported by foundation. C99 (and C++11): no allocation, no dependency but the C library; link with -lm.",
        "",
        f"       {name}_state state;",
        f"       {name}_reset(&state);                      an episode begins",
        f"       float obs[{upper}_NUM_OBS], actions[{upper}_NUM_ACTIONS];",
        f"       if ({name}_step(&state, obs, actions)) {{ ... }}   not 0: not finite, act safely instead",
        "",
        "   Observations, raw (the normaliser is inside):",
        *table(of(description.observations)),
        "   Actions:",
        *table(of(description.actions)),
    ]
    if description.action_clip is not None:
        lines.append(f"   The actions are within +-{description.action_clip:g}.")
    if description.control_interval is not None:
        lines.append(f"   One step every {description.control_interval:g} s, as in its training.")
    return [*lines, "*/"]


def _dense(header: _Header, op: Operation, index: int) -> list[str]:
    weight, bias = (header.weight(index, op, key) for key in ("weight", "bias"))
    num_out, num_in = op.arrays["weight"].shape
    blocks = int(op.number("blocks"))
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('dense')}({weight}, {bias}, {num_in}, {num_out}, {blocks}, {x}, {out});"]


def _activation(header: _Header, op: Operation, index: int) -> list[str]:
    function = op.text("function")
    if function not in ACTIVATIONS:
        raise UserError(f"activation '{function}' of layer '{op.name}' cannot be written as C.")
    if function == "fast_tanh":
        header.functions.setdefault("fast_tanh", FAST_TANH)
    for needed in NEEDS.get(function, ()):
        header.use(needed)
    constants = {key: _float(op.number(key)) for key in op.options if key != "function"}
    expression = ACTIVATIONS[function].format(**constants).replace("POLICY", header.name)
    return [
        f"for (int i = 0; i < {op.size}; i++) {{",
        f"    const float value = ({header.value(op.inputs[0])})[i];",
        f"    ({header.value(op.name)})[i] = {expression};",
        "}",
    ]


def _normalize(header: _Header, op: Operation, index: int) -> list[str]:
    mean, scale = (header.weight(index, op, key) for key in ("mean", "scale"))
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('normalize')}({mean}, {scale}, {op.size}, {x}, {out});"]


def _pairwise(function: str, first: str, second: str) -> Callable[[_Header, Operation, int], list[str]]:
    def write(header: _Header, op: Operation, index: int) -> list[str]:
        given = [f"{header.weight(index, op, key)}, {int(op.arrays[key].size > 1)}" for key in (first, second)]
        x = header.value(op.inputs[0])
        out = header.value(op.name)
        return [f"{header.use(function)}({', '.join(given)}, {op.size}, {x}, {out});"]

    return write


def _layer_norm(header: _Header, op: Operation, index: int) -> list[str]:
    weight, bias = (header.weight(index, op, key) for key in ("weight", "bias"))
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('layer_norm')}({weight}, {bias}, {_float(op.number('eps'))}, {op.size}, {x}, {out});"]


def _columns(header: _Header, op: Operation, index: int) -> list[str]:
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"memcpy({out}, {x} + {int(op.number('start'))}, sizeof(float) * {op.size});"]


def _concatenate(header: _Header, op: Operation, index: int) -> list[str]:
    lines: list[str] = []
    start = 0
    for name in op.inputs:
        size = header.size(name)
        lines.append(f"memcpy({header.value(op.name)} + {start}, {header.value(name)}, sizeof(float) * {size});")
        start += size
    return lines


def _arg_max(header: _Header, op: Operation, index: int) -> list[str]:
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('arg_max')}({header.size(op.inputs[0])}, {x}, {out});"]


def _beta_moment(header: _Header, op: Operation, index: int) -> list[str]:
    low = _float(op.number("low"))
    width = _float(op.number("width"))
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('beta_mean')}({low}, {width}, {op.size}, {x}, {out});"]


def _recurrent(header: _Header, op: Operation, index: int) -> list[str]:
    cell = op.text("cell")
    weights = [header.weight(index, op, key) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    memory = [header.memory(op, place) for place in range(len(op.memory))]
    out = header.value(op.name)
    given = [*weights, str(header.size(op.inputs[0])), str(op.size), header.value(op.inputs[0]), *memory, out]
    return [f"{header.use(cell)}({', '.join(given)});", f"memcpy({memory[0]}, {out}, sizeof(float) * {op.size});"]


def _window(header: _Header, op: Operation, index: int) -> list[str]:
    length = int(op.number("length"))
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    if not op.memory:
        return [f"memcpy({out}, {x}, sizeof(float) * {op.size});"]
    return [f"{header.use('window')}({op.size // length}, {length}, {x}, {header.memory(op, 0)}, {out});"]


def _convolution(header: _Header, op: Operation, index: int) -> list[str]:
    weight, bias = (header.weight(index, op, key) for key in ("weight", "bias"))
    shape = [*header.shapes[op.inputs[0]], *op.shape]
    pairs = [
        op.arrays["weight"].shape[2:], op.pair("stride"), op.pair("padding"), op.pair("dilation"),
    ]  # fmt: skip
    settings = [str(number) for number in shape] + [f"{{{first}, {second}}}" for first, second in pairs]
    mode = _PADDING_MODES[op.text("padding_mode")]
    function = header.use("convolution")
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [
        "{",
        f"    static const {function}_shape shape = {{{', '.join(settings)}, {mode}}};",
        f"    {function}(&shape, {weight}, {bias}, {x}, {out});",
        "}",
    ]


def _channel_norm(header: _Header, op: Operation, index: int) -> list[str]:
    arrays = [header.weight(index, op, key) for key in ("mean", "scale", "shift")]
    sizes = [str(op.shape[0]), str(op.shape[1] * op.shape[2])]
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('channel_norm')}({', '.join([*arrays, *sizes])}, {x}, {out});"]


def _max_pool(header: _Header, op: Operation, index: int) -> list[str]:
    sizes = [*header.shapes[op.inputs[0]], *op.shape[1:]]
    sizes += [int(op.number(key)) for key in ("kernel", "stride", "padding")]
    function = header.use("max_pool")
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [
        "{",
        f"    static const {function}_shape shape = {{{', '.join(map(str, sizes))}}};",
        f"    {function}(&shape, {x}, {out});",
        "}",
    ]


def _global_pool(header: _Header, op: Operation, index: int) -> list[str]:
    largest = int(op.text("pooling") == "max")
    channels, rows, columns = header.shapes[op.inputs[0]]
    x = header.value(op.inputs[0])
    out = header.value(op.name)
    return [f"{header.use('global_pool')}({largest}, {channels}, {rows * columns}, {x}, {out});"]


_WRITERS: dict[str, Callable[[_Header, Operation, int], list[str]]] = {
    "activation": _activation,
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
    "window": _window,
}
"""What writes each operation's lines of ``<name>_step``."""


def _library(description: Description, name: str) -> str:
    data = [*json.dumps(description.as_dict(), ensure_ascii=True).encode(), 0]
    rows = [", ".join(map(str, data[start : start + 24])) for start in range(0, len(data), 24)]
    text = ",\n    ".join(rows)
    return f"""\
/* A shared library around {name}.h, for foundation.deploy and whoever loads code at run time:

       cc -std=c99 -O2 -fPIC -shared {name}.c -o {name}.so -lm
*/
#include "{name}.h"

#if defined(_WIN32)
#define FOUNDATION_EXPORT __declspec(dllexport)
#else
#define FOUNDATION_EXPORT
#endif

FOUNDATION_EXPORT int foundation_policy_abi(void);
FOUNDATION_EXPORT size_t foundation_policy_bytes(void);
FOUNDATION_EXPORT const char *foundation_policy_description(void);
FOUNDATION_EXPORT void foundation_policy_reset(void *policy);
FOUNDATION_EXPORT int foundation_policy_step(void *policy, const float *obs, float *actions);

/* JSON, as numbers: C99 promises no strings of this length. */
static const char {name}_description[] = {{
    {text}}};

/* Version of these functions. */
int foundation_policy_abi(void) {{ return {ABI}; }}

/* Size of one policy [B]; its memory comes first. */
size_t foundation_policy_bytes(void) {{ return sizeof({name}_state); }}

const char *foundation_policy_description(void) {{ return {name}_description; }}

void foundation_policy_reset(void *policy) {{ {name}_reset(({name}_state *)policy); }}

int foundation_policy_step(void *policy, const float *obs, float *actions) {{
    return {name}_step(({name}_state *)policy, obs, actions);
}}
"""


def _test(golden: Golden, name: str) -> str:
    steps, envs, _ = golden.obs.shape
    upper = name.upper()
    resets = ", ".join(str(int(begins)) for begins in golden.resets.reshape(-1))
    return f"""\
/* Replays {steps} steps of {envs} robots, some of which begin a new episode on the way, and compares the actions with
   those that the policy gave before it was exported:

       cc -std=c99 -O2 {name}_test.c -o {name}_test -lm && ./{name}_test
*/
#include <stdio.h>

#include "{name}.h"

#define NUM_STEPS {steps}
#define NUM_ENVS {envs}
#define TOLERANCE {_float(golden.tolerance)}

/* (NUM_STEPS, NUM_ENVS, {upper}_NUM_OBS), row by row. */
{_array("observations", golden.obs)}
/* (NUM_STEPS, NUM_ENVS, {upper}_NUM_ACTIONS). */
{_array("expected", golden.actions)}
/* Whether an episode begins: (NUM_STEPS, NUM_ENVS). */
static const unsigned char resets[{golden.resets.size}] = {{{resets}}};

static {name}_state states[NUM_ENVS];

int main(void) {{
    float worst = 0.0f;
    for (int env = 0; env < NUM_ENVS; env++) {{
        {name}_reset(&states[env]);
    }}
    for (int row = 0; row < NUM_STEPS * NUM_ENVS; row++) {{
        float actions[{upper}_NUM_ACTIONS];
        {name}_state *state = &states[row % NUM_ENVS];
        if (resets[row]) {{
            {name}_reset(state);
        }}
        if ({name}_step(state, observations + (size_t)row * {upper}_NUM_OBS, actions)) {{
            printf("FAIL step %d is not finite\\n", row / NUM_ENVS);
            return 1;
        }}
        for (int i = 0; i < {upper}_NUM_ACTIONS; i++) {{
            const float difference = fabsf(actions[i] - expected[row * {upper}_NUM_ACTIONS + i]);
            worst = difference > worst ? difference : worst;
        }}
    }}
    printf("%s largest difference %.3g\\n", worst <= TOLERANCE ? "PASS" : "FAIL", (double)worst);
    return worst <= TOLERANCE ? 0 : 1;
}}
"""
