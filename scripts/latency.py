"""Time one step of a policy at batch 1 in each format that it can be exported to, on this CPU, and count its bytes.

    python scripts/latency.py --checkpoint best_student.pt
    python scripts/latency.py --checkpoint teacher.pt --json latency.json

The checkpoint itself, run by PyTorch, is in the first row. ``so`` is called from Python; ``c`` is the same code in a
loop of its own, as on a robot.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.export.bundle import Bundle, make_bundle
from foundation.export.c_text import c_name
from foundation.export.efficiency import WARM_UP, multiply_adds, time_steps
from foundation.export.formats import compile_c, export, find_compiler
from foundation.policies.policy_network import PolicyNetwork

_LOOP = """\
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>
#include "NAME.h"
static NAME_state state;
int main(void) {
    float obs[UPPER_NUM_OBS] = {0.1f}, actions[UPPER_NUM_ACTIONS];
    NAME_reset(&state);
    for (int step = 0; step < STEPS; step++) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        NAME_step(&state, obs, actions);
        clock_gettime(CLOCK_MONOTONIC, &after);
        obs[step % UPPER_NUM_OBS] = actions[0];
        printf("%ld\\n", (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec);
    }
    return 0;
}
"""


def build_parser() -> ScriptParser:
    """Return the command's parser."""
    parser = ScriptParser(prog="latency.py", description="Time one step of a policy in each exported format.")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a policy of any format that can be read")
    parser.add_argument("--steps", type=int, default=5000, metavar="N", help="steps to time (5000)")
    parser.add_argument("--json", metavar="PATH", help="write the figures to this file")
    return parser


def time_torch(network: PolicyNetwork, steps: int) -> list[float]:
    """Time the checkpoint's own network [us]."""
    obs, state = torch.full((1, network.num_obs), 0.1), network.initial_state(1)
    with torch.inference_mode():
        return time_steps(lambda: network.step(obs, state), steps)


def time_script(path: Path, num_obs: int, steps: int) -> list[float]:
    """Time a TorchScript module [us]."""
    module, obs = torch.jit.load(str(path)), torch.full((1, num_obs), 0.1)
    with torch.inference_mode():
        return time_steps(lambda: module(obs), steps)


def time_policy(path: Path, steps: int) -> list[float]:
    """Time what ``foundation.deploy`` runs [us]."""
    policy = Policy(path)
    obs = numpy.full(policy.num_obs, 0.1, numpy.float32)
    return time_steps(lambda: policy.step(obs), steps)


def time_c(folder: Path, name: str, steps: int) -> list[float]:
    """Time the C code in a loop of its own [us]."""
    compiler = find_compiler()
    assert compiler is not None
    source = _LOOP.replace("UPPER", name.upper()).replace("NAME", name).replace("STEPS", str(WARM_UP + steps))
    (folder / "loop.c").write_text(source)
    compile_c(compiler, folder / "loop.c", folder / "loop")
    said = subprocess.run([str(folder / "loop")], capture_output=True, text=True, check=True)
    return [int(line) / 1000 for line in said.stdout.split()][WARM_UP:]


def measure(bundle: Bundle, folder: Path, steps: int) -> dict[str, dict[str, float]]:
    """Return p50, p99 [us] and the size of the file [B] for each format.

    Args:
        bundle: The policy.
        folder: Where the files are written.
        steps: Steps to time.
    """
    formats = ["torchscript", "onnx", "npz"] + (["so", "c"] if find_compiler() else [])
    written = {done.format: done.files[0] for done in export(bundle, folder, formats)}
    times = {"checkpoint": time_torch(bundle.network, steps)}
    times["torchscript"] = time_script(written["torchscript"], bundle.program.num_obs, steps)
    for name in ("onnx", "npz", "so"):
        if name in written:
            times[name] = time_policy(written[name], steps)
    if "c" in written:
        times["c"] = time_c(folder, c_name(bundle.description.name), steps)
    files = {"checkpoint": Path(bundle.info.path)} | written
    return {
        name: {
            "p50_us": float(numpy.percentile(values, 50)),
            "p99_us": float(numpy.percentile(values, 99)),
            "file_bytes": files[name].stat().st_size,
        }
        for name, values in times.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write the figures."""
    args = build_parser().parse_args(argv)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: at least 1 step is needed")
    torch.set_num_threads(1)
    bundle = make_bundle(load_policy(args.checkpoint, Overrides()))
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(bundle, Path(folder), args.steps)
    program = bundle.program
    table = Table(
        title=f"{bundle.description.architecture}: {program.num_weights} weights, "
        f"{multiply_adds(program)} multiply-adds, {4 * program.state_size} B of memory"
    )
    for column in ("format", "p50 [us]", "p99 [us]", "file [KiB]"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, row in figures.items():
        table.add_row(name, f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}", f"{row['file_bytes'] / 1024:.1f}")
    Console(highlight=False, width=100).print(table)
    if args.json:
        facts = {"weights": program.num_weights, "multiply_adds": multiply_adds(program), "formats": figures}
        Path(args.json).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
