"""Time one step of a policy at batch 1 in each format that it can be exported to, on this CPU, and count its bytes.

    python scripts/latency.py --checkpoint best_student.pt
    python scripts/latency.py --checkpoint teacher.pt --json latency.json

The checkpoint itself, run by PyTorch, is in the first row. A bare session of onnxruntime, without checks and names, and
RAPTOR's own NumPy policy, where the package foundation-policy is installed, stand beside them. All are timed in turns,
a few steps each, so that what slows the machine slows all of them. ``so`` is called from Python; ``c`` is the same
code in a loop of its own, as on a robot.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.cli.cli_args import positive_int
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.export.bundle import Bundle, make_bundle
from foundation.export.c_text import c_name
from foundation.export.efficiency import WARM_UP, multiply_adds, time_steps
from foundation.export.formats import Written, compile_c, export, find_compiler
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
    printf("%zu\\n", sizeof state);
    for (int step = 0; step < STEPS; step++) {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        NAME_step(&state, obs, actions);
        clock_gettime(CLOCK_MONOTONIC, &after);
        /* An action that is fed back without a bound can grow until the step refuses it, which takes no time. */
        obs[step % UPPER_NUM_OBS] = actions[0] > -1.0f && actions[0] < 1.0f ? actions[0] : 0.1f;
        printf("%ld\\n", (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec);
    }
    return 0;
}
"""


BLOCK = 200
BLOCK_WARM_UP = 20
"""Steps that are timed at a time, and those before them that are not."""
NAMES = {"onnxruntime": "onnxruntime, bare session", "raptor": "RAPTOR's policy, foundation-policy's NumPy"}
"""Rows that are no formats, as the table calls them."""


def build_parser() -> ScriptParser:
    """Return the command's parser."""
    parser = ScriptParser(prog="latency.py", description="Time one step of a policy in each exported format.")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a policy of any format that can be read")
    parser.add_argument("--steps", type=positive_int, default=5000, metavar="N", help="steps to time (5000)")
    parser.add_argument("--json", metavar="PATH", help="write the figures to this file")
    return parser


def torch_step(network: PolicyNetwork) -> Callable[[], object]:
    """Return a step of the checkpoint's own network."""
    obs, state = torch.full((1, network.num_obs), 0.1), network.initial_state(1)
    return lambda: network.step(obs, state)


def script_step(path: Path, num_obs: int) -> Callable[[], object]:
    """Return a step of a TorchScript module."""
    module, obs = torch.jit.load(str(path)), torch.full((1, num_obs), 0.1)
    return lambda: module(obs)


def session_step(path: Path) -> Callable[[], object]:
    """Return a bare step of onnxruntime on one thread, whose inputs are ready."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {}
    for part in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in part.shape]
        feed[part.name] = numpy.full(shape, 0.1, numpy.float32)
    return lambda: session.run(None, feed)


def policy_step(path: Path) -> Callable[[], object]:
    """Return a step of what ``foundation.deploy`` runs."""
    policy = Policy(path)
    obs = numpy.full(policy.num_obs, 0.1, numpy.float32)
    return lambda: policy.step(obs)


def raptor_step() -> Callable[[], object] | None:
    """Return a step of RAPTOR's published policy in its authors' NumPy package; None where it is not installed."""
    try:
        from foundation_policy import Raptor  # an optional package
    except ImportError:
        return None
    policy = Raptor()
    policy.reset()
    obs = numpy.full((1, 22), 0.1, numpy.float32)
    return lambda: policy.evaluate_step(obs)


def time_in_turns(steps: Mapping[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Time several steps, block after block of each [us].

    Args:
        steps: What to time, by name.
        count: Steps of each.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(0, count, BLOCK):
        for name, step in steps.items():
            times[name] += time_steps(step, min(BLOCK, count - block), WARM_UP if block == 0 else BLOCK_WARM_UP)
    return times


def time_c(folder: Path, name: str, steps: int) -> tuple[list[float], int]:
    """Time the C code in a loop of its own [us], and return the memory of one robot with it [B]."""
    compiler = find_compiler()
    assert compiler is not None
    source = _LOOP.replace("UPPER", name.upper()).replace("NAME", name).replace("STEPS", str(WARM_UP + steps))
    (folder / "loop.c").write_text(source)
    compile_c(compiler, folder / "loop.c", folder / "loop")
    said = subprocess.run([str(folder / "loop")], capture_output=True, text=True, check=True)
    memory, *times = (int(line) for line in said.stdout.split())
    return [each / 1000 for each in times][WARM_UP:], memory


def write(bundle: Bundle, folder: Path) -> Iterator[Written]:
    """Export a policy in every format that can be timed and that it can be written in."""
    names = ["torchscript", "onnx", "npz", "onnx_int8"] + (["so", "c", "c_int8"] if find_compiler() else [])
    for name in names:
        try:
            yield from export(bundle, folder, [name])
        except UserError as error:
            print(f"{name}: {error}")


def measure(bundle: Bundle, folder: Path, steps: int) -> dict[str, dict[str, float]]:
    """Return p50, p99 [us], the size of the file and, in C, of one robot's memory and work space [B] for each format.

    Args:
        bundle: The policy.
        folder: Where the files are written.
        steps: Steps to time.
    """
    written = {done.format: done.files for done in write(bundle, folder)}
    files = {"checkpoint": Path(bundle.info.path)} | {name: each[0] for name, each in written.items()}
    timed = {"checkpoint": torch_step(bundle.network)}
    timed["torchscript"] = script_step(files["torchscript"], bundle.program.num_obs)
    timed["onnxruntime"] = session_step(files["onnx"])
    files["onnxruntime"] = files["onnx"]
    for name in ("onnx", "onnx_int8", "npz", "so"):
        if name in files:
            timed[name] = policy_step(files[name])
    raptor = raptor_step()
    if raptor is not None:
        timed["raptor"] = raptor
    with torch.inference_mode():
        times = time_in_turns(timed, steps)
    figures = {name: _figures(values, files.get(name)) for name, values in times.items()}
    name = c_name(bundle.description.name)
    for kind, of in (("c", name), ("c_int8", f"{name}_int8")):
        if kind in files:
            values, memory = time_c(folder, of, steps)
            figures[kind] = _figures(values, files[kind]) | {"ram_bytes": memory}
    return figures


def _figures(times: list[float], file: Path | None) -> dict[str, float]:
    figures = {f"p{percent}_us": float(numpy.percentile(times, percent)) for percent in (50, 99)}
    return figures if file is None else figures | {"file_bytes": file.stat().st_size}


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
    for column in ("format", "p50 [us]", "p99 [us]", "file [KiB]", "RAM [B]"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, row in figures.items():
        size = f"{row['file_bytes'] / 1024:.1f}" if "file_bytes" in row else "-"
        ram = f"{row['ram_bytes']:.0f}" if "ram_bytes" in row else "-"
        table.add_row(NAMES.get(name, name), f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}", size, ram)
    Console(highlight=False, width=100).print(table)
    if args.json:
        facts = {"weights": program.num_weights, "multiply_adds": multiply_adds(program), "formats": figures}
        Path(args.json).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
