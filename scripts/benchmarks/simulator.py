"""Env steps per second of the built-in simulator, and of rl-tools' original beside it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from benchmarks.common import Clock, CountingEnv, make_env

HOVER = 0.612
"""Motor command at which the Crazyflie hovers."""
ORIGINAL_SIZES = tuple(2**power for power in range(14))
"""Numbers of environments that the package ``l2f`` is compiled for."""
GRAPH_STEPS = 16
"""Steps in one captured graph: as many as the environment's table of initial states has rows."""


def eager(env: CountingEnv) -> tuple[Callable[[], Any], int]:
    """Return a call that advances the environment, and the steps it makes."""
    actions = torch.full((env.num_envs, env.num_actions), HOVER, device=env.device)
    return lambda: env.step(actions), 1


def graph(env: CountingEnv) -> tuple[Callable[[], Any], int]:
    """Capture a rollout in a CUDA graph and return its replay, and the steps it makes."""
    actions = torch.full((env.num_envs, env.num_actions), HOVER, device=env.device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2 * GRAPH_STEPS):
            env.step(actions)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    captured.register_generator_state(env._generator)
    kept = {name: value for name, value in vars(env).items() if isinstance(value, torch.Tensor)}
    with torch.cuda.graph(captured):
        for _ in range(GRAPH_STEPS):
            env.step(actions)
        for name, value in kept.items():  # the next replay starts where this one ends
            latest = getattr(env, name)
            if latest is not value:
                value.copy_(latest)
    return captured.replay, GRAPH_STEPS


def steps_per_second(env: CountingEnv, advance: Callable[[], Any], steps: int, seconds: float) -> dict[str, float]:
    """Measure for about so many seconds.

    Args:
        env: The environment.
        advance: Advances it.
        steps: Env steps of each environment in one call.
        seconds: How long to measure [s].
    """
    clock = Clock(str(env.device))
    for _ in range(3):
        advance()
    calls = 0
    clock.start()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(8):
            advance()
        calls += 8
        clock.synchronize()
    clock.pause()
    count = calls * steps * env.num_envs
    return {"per_cpu_second": count / clock.cpu, "per_wall_second": count / clock.wall}


def measured(advance: Callable[[], Any], count: int, seconds: float) -> dict[str, float]:
    """Measure calls for about so many seconds on the CPU.

    Args:
        advance: Advances the environments.
        count: Env steps in one call, over all environments.
        seconds: How long to measure [s].
    """
    for _ in range(3):
        advance()
    calls = 0
    cpu, wall = time.process_time(), time.perf_counter()
    end = wall + seconds
    while time.perf_counter() < end:
        for _ in range(8):
            advance()
        calls += 8
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"per_cpu_second": calls * count / cpu, "per_wall_second": calls * count / wall}


def original_loop(num_envs: int) -> Callable[[], None]:
    """Return a call that advances rl-tools' ``l2f`` by one step with all that ours does in one.

    The same work: physics of 0.01 s, reward, termination, a new initial state where an episode ended, observations.
    """
    l2f = importlib.import_module("l2f")
    vector = l2f.vector_selector[num_envs]
    device, rng, env = l2f.Device(), vector.VectorRng(), vector.VectorEnvironment()
    params, states, following = vector.VectorParameters(), vector.VectorState(), vector.VectorState()
    vector.initialize_rng(device, rng, 0)
    vector.initialize_environment(device, env)
    vector.initial_parameters(device, env, params)
    vector.sample_initial_state(device, env, params, states, rng)
    actions = np.full((num_envs, 4), 2.0 * HOVER - 1.0, dtype=np.float32)
    observations = np.zeros((num_envs, env.OBSERVATION_DIM), dtype=np.float32)
    rewards = np.zeros(num_envs, dtype=np.float32)
    ended = np.zeros(num_envs, dtype=bool)

    def advance() -> None:
        vector.step(device, env, params, states, actions, following, rng)
        vector.reward(device, env, params, states, actions, following, rewards, rng)
        vector.terminated(device, env, params, following, ended, rng)
        vector.sample_initial_state_if_truncated(device, env, params, following, ended, rng)
        vector.observe(device, env, params, following, observations, rng)
        states.assign(following)

    return advance


def original_rows(python: Path, sizes: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Measure rl-tools' ``l2f`` in an environment that has it.

    Args:
        python: The environment's interpreter.
        sizes: Numbers of environments; those that the package was not compiled for are left out.
        seconds: How long to measure each [s].
    """
    wanted = [str(size) for size in sizes if size in ORIGINAL_SIZES]
    command = [str(python), str(Path(__file__).resolve()), str(seconds), *wanted]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"l2f could not be measured with {python}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def simulator(
    device: str,
    sizes: Sequence[int],
    seconds: float,
    *,
    compiled: bool = False,
    original: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure every size: eagerly, compiled, on a GPU as a CUDA graph too, and rl-tools' original.

    Args:
        device: Torch device.
        sizes: Numbers of environments.
        seconds: How long to measure each [s].
        compiled: Measure the compiled step too (10 to 16 s of compiling for each size; on a GPU always).
        original: Interpreter of an environment with ``l2f``. None: it is not measured.
        report: Takes a line of progress.
    """
    is_cuda = torch.device(device).type == "cuda"
    modes = ["eager", *(["compiled"] if compiled or is_cuda else []), *(["graph"] if is_cuda else [])]
    rows = []
    for num_envs in sizes:
        for mode in modes:
            env = make_env(num_envs, device, seed=0, compiled=mode == "compiled")
            advance, steps = (graph if mode == "graph" else eager)(env)
            rows.append({"num_envs": num_envs, "mode": mode, **steps_per_second(env, advance, steps, seconds)})
            report(f"simulator, {num_envs} environments, {mode}: {rows[-1]['per_cpu_second']:,.0f} steps per CPU s")
            if is_cuda:
                rows[-1]["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
                torch.cuda.reset_peak_memory_stats()
    if original is not None:
        rows += original_rows(original, sizes, seconds)
    return rows


if __name__ == "__main__":
    # In the environment of rl-tools' package, which need have nothing of this project.
    print(
        json.dumps(
            [
                {"num_envs": int(size), "mode": "l2f (C++)"}
                | measured(original_loop(int(size)), int(size), float(sys.argv[1]))
                for size in sys.argv[2:]
            ]
        )
    )
