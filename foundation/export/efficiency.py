"""Cost of a policy: parameters, bytes, multiply-adds, and the time of a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch

from foundation.core.errors import UserError
from foundation.deploy.program import Program
from foundation.export.program import program_of
from foundation.policies.policy_network import PolicyNetwork

WARM_UP = 200
"""Steps before those that are timed."""
TIMED = 1000
"""Steps that are timed."""

ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
"""Where Linux tells what the processor's package has taken so far [uJ]; administrators alone may read it on many."""


def multiply_adds(program: Program) -> int:
    """Return the multiply-adds of one step: those of dense, recurrent and convolution layers."""
    total = 0
    for operation in program.operations:
        arrays = operation.arrays
        if operation.kind == "dense":
            total += arrays["weight"].size * int(operation.number("blocks"))
        elif operation.kind == "recurrent":
            total += arrays["weight_ih"].size + arrays["weight_hh"].size
        elif operation.kind == "convolution":
            total += arrays["weight"].size * operation.shape[1] * operation.shape[2]
    return total


def time_steps(step: Callable[[], object], steps: int, warm_up: int = WARM_UP) -> list[float]:
    """Return the time of each step [us], after some that are not timed."""
    for _ in range(warm_up):
        step()
    times: list[float] = []
    for _ in range(steps):
        start = time.perf_counter_ns()
        step()
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


def efficiency_figures(network: PolicyNetwork, batches: Sequence[int], steps: int = TIMED) -> dict[str, float]:
    """Return the cost of a policy as the process runs it.

    Args:
        network: The policy, where it is.
        batches: Numbers of observations that are computed at once.
        steps: Steps that are timed for each.

    Returns:
        ``parameters`` and ``bytes`` of the acting part; ``flops`` of a step (two for each multiply-add), where the
        layers are known one by one; ``p50_us_batch_N`` and ``p99_us_batch_N`` [us]; ``energy_uj_batch_N`` of a step
        [uJ] where the machine tells, which is what the whole processor has taken meanwhile.
    """
    actor = getattr(network, "actor", network)
    weights = list(actor.parameters())
    figures: dict[str, float] = {
        "parameters": sum(weight.numel() for weight in weights),
        "bytes": sum(weight.numel() * weight.element_size() for weight in weights),
    }
    with contextlib.suppress(UserError):  # a network of a kind that no exporter writes out layer by layer
        figures["flops"] = 2 * multiply_adds(program_of(network, None))
    device = weights[0].device if weights else torch.device("cpu")
    for batch in dict.fromkeys(batches):
        step = _stepper(network, batch, device)
        time_steps(step, min(WARM_UP, steps), 0)
        before = read_energy()
        times = time_steps(step, steps, 0)
        after = read_energy()
        for percent in (50, 99):
            figures[f"p{percent}_us_batch_{batch}"] = float(numpy.percentile(times, percent))
        if before is not None and after is not None and after > before:  # the counter begins anew now and then
            figures[f"energy_uj_batch_{batch}"] = (after - before) / steps
    return figures


def read_energy() -> int | None:
    """Return what the processor has taken so far [uJ]; None where the machine does not tell, or not to everybody."""
    try:
        return int(ENERGY.read_text())
    except (OSError, ValueError):
        return None


def _stepper(network: PolicyNetwork, batch: int, device: torch.device) -> Callable[[], None]:
    """Return what runs one step of a batch, and waits until it is done."""
    obs = torch.full((batch, network.num_obs), 0.1, device=device)
    state = network.initial_state(batch, device)

    @torch.inference_mode()
    def step() -> None:
        network.step(obs, state)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step
