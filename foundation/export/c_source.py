"""Policies as C99: a header without dependencies, a library around it, and a program that tests it.

``student.h`` is all that a robot needs; ``student.c`` makes a shared library of it that :mod:`foundation.deploy` loads;
``student_test.c`` replays the golden sequence and prints ``PASS``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.deploy.c_policy import ABI
from foundation.deploy.description import Description, Field
from foundation.deploy.golden import Golden
from foundation.deploy.program import Program
from foundation.export.c_int8 import Int8Body, int8_body, output_lines
from foundation.export.c_operations import StepBody
from foundation.export.c_text import c_float, c_name, comment, float_array


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
        header=_header(_float_arithmetic(program, description, name), program.state_size, description, name),
        library=_library(description, name),
        test=_test(golden, name, golden.tolerance),
    )


def to_int8_c(program: Program, description: Description, golden: Golden) -> CFiles:
    """Return a policy as C with 8-bit weights, in integers; its test's tolerance is :attr:`Golden.int8_tolerance`.

    Args:
        program: Its operations.
        description: What it reads and gives; its name becomes that of the functions.
        golden: What it gave; the ranges of values are found by it.
    """
    name = c_name(description.name)
    arithmetic = _int8_arithmetic(int8_body(program, golden, name))
    return CFiles(
        header=_header(arithmetic, program.state_size, description, name),
        library=_library(description, name),
        test=_test(golden, name, golden.int8_tolerance),
    )


@dataclass(frozen=True)
class _Arithmetic:
    """What differs between a header in float32 and one in integers."""

    number: str
    """C type of memory and work space."""
    includes: tuple[str, ...]
    weights: list[str]
    functions: list[str]
    begin: str
    """The line that begins an episode."""
    calls: list[str]
    """The lines that compute and write the actions."""
    work_size: int
    uses_work: bool


def _float_arithmetic(program: Program, description: Description, name: str) -> _Arithmetic:
    body = StepBody(program, name)
    weights = list(body.weights)
    initial = program.initial_state
    begin = "    state->memory[0] = 0.0f; /* this policy remembers nothing */"
    if initial.size:
        weights.append(float_array(f"{name}_initial", initial))
        begin = f"    memcpy(state->memory, {name}_initial, sizeof({name}_initial));"
    write = f"    memcpy(actions, {body.value(program.output)}, sizeof(float) * {name.upper()}_NUM_ACTIONS);"
    return _Arithmetic(
        number="float",
        includes=("math.h", "stddef.h", "string.h"),
        weights=weights,
        functions=list(body.functions.values()),
        begin=begin,
        calls=[*body.calls, write],
        work_size=body.work_size,
        uses_work=bool(body.places),
    )


def _int8_arithmetic(body: Int8Body) -> _Arithmetic:
    initial = body.initial_memory()
    begin = "    state->memory[0] = 0; /* this policy remembers nothing */"
    if initial.size:
        initial_name = body.integers("initial", initial, "int32_t")
        begin = f"    memcpy(state->memory, {initial_name}, sizeof({initial_name}));"
    return _Arithmetic(
        number="int32_t",
        includes=("math.h", "stddef.h", "stdint.h", "string.h"),
        weights=body.weights,
        functions=list(body.functions.values()),
        begin=begin,
        calls=[*body.calls, *output_lines(body)],
        work_size=body.work_size,
        uses_work=True,
    )


def _header(arithmetic: _Arithmetic, state_size: int, description: Description, name: str) -> str:
    upper = name.upper()
    functions = [text.replace("POLICY", name) for text in arithmetic.functions]
    interval = description.control_interval
    guard = f"FOUNDATION_{upper}_H"
    lines = [
        *_head_comment(description, name),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        *(f"#include <{file}>" for file in arithmetic.includes),
        "",
        f"#define {upper}_NUM_OBS {description.num_obs}",
        f"#define {upper}_NUM_ACTIONS {description.num_actions}",
        f"#define {upper}_STATE_SIZE {state_size}",
        f"#define {upper}_WORK_SIZE {arithmetic.work_size}",
        *([f"#define {upper}_CONTROL_INTERVAL {c_float(interval)} /* [s] */"] if interval is not None else []),
        "",
        "/* What one robot's policy remembers, and room to compute in. Reset it before the first step. */",
        "typedef struct {",
        f"    {arithmetic.number} memory[{max(1, state_size)}];",
        f"    {arithmetic.number} work[{max(1, arithmetic.work_size)}];",
        f"}} {name}_state;",
        "",
        *arithmetic.weights,
        *functions,
        "/* Begin an episode. */",
        f"static inline void {name}_reset({name}_state *state) {{",
        arithmetic.begin,
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
        f"    {arithmetic.number} *work = state->work;" if arithmetic.uses_work else "    (void)state;",
        *arithmetic.calls,
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


def _head_comment(description: Description, name: str) -> list[str]:
    upper = name.upper()
    lines = [
        f"/* {comment(description.name)}: {comment(description.architecture)}",
        "   Exported by foundation. C99 (and C++11): no allocation, no dependency but the C library; link with -lm.",
        "",
        f"       {name}_state state;",
        f"       {name}_reset(&state);                      an episode begins",
        f"       float obs[{upper}_NUM_OBS], actions[{upper}_NUM_ACTIONS];",
        f"       if ({name}_step(&state, obs, actions)) {{ ... }}   not 0: not finite, act safely instead",
        "",
        "   Observations, raw (the normaliser is inside):",
        *_field_table(description.observations),
        *(f"   {comment(said)}" for said in description.duties),
        "   Actions:",
        *_field_table(description.actions),
    ]
    if description.action_clip is not None:
        lines.append(f"   The actions are within +-{description.action_clip:g}.")
    if description.control_interval is not None:
        lines.append(f"   One step every {description.control_interval:g} s, as in its training.")
    return [*lines, "*/"]


def _field_table(fields: Sequence[Field]) -> list[str]:
    """Return a line of a comment for each field: columns, name, frame and unit."""
    rows: list[str] = []
    start = 0
    for field in fields:
        columns = f"{start}" if field.size == 1 else f"{start}..{start + field.size - 1}"
        steps = f"{field.history} steps, oldest first" if field.history > 1 else ""
        notes = ", ".join(part for part in (field.frame, f"[{field.unit}]" if field.unit else "", steps) if part)
        rows.append(comment(f"     {columns:<9} {field.name}{' ' + notes if notes else ''}"))
        start += field.size
    return rows


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


def _test(golden: Golden, name: str, tolerance: float) -> str:
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
#define TOLERANCE {c_float(tolerance)}

/* (NUM_STEPS, NUM_ENVS, {upper}_NUM_OBS), row by row. */
{float_array("observations", golden.obs)}
/* (NUM_STEPS, NUM_ENVS, {upper}_NUM_ACTIONS). */
{float_array("expected", golden.actions)}
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
