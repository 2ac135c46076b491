"""Env steps per second of the built-in simulator."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import BenchEnv, Clock, make_env

HOVER = 0.612
"""Motor command at which the Crazyflie hovers."""
GRAPH_STEPS = 16
"""Steps in one captured graph: as many as the environment's table of initial states has rows."""


def eager(env: BenchEnv) -> tuple[Callable[[], Any], int]:
    """Return a call that advances the environment, and the steps it makes."""
    actions = torch.full((env.num_envs, env.num_actions), HOVER, device=env.device)
    return lambda: env.step(actions), 1


def graph(env: BenchEnv) -> tuple[Callable[[], Any], int]:
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


def steps_per_second(env: BenchEnv, advance: Callable[[], Any], steps: int, seconds: float) -> dict[str, float]:
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


def simulator(device: str, sizes: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Measure every size, eagerly and, on a GPU, compiled and as a CUDA graph too.

    Args:
        device: Torch device.
        sizes: Numbers of environments.
        seconds: How long to measure each [s].
    """
    is_cuda = torch.device(device).type == "cuda"
    modes = ("eager", "compiled", "graph") if is_cuda else ("eager",)
    rows = []
    for num_envs in sizes:
        for mode in modes:
            env = make_env(num_envs, device, seed=0, compiled=mode == "compiled")
            advance, steps = (graph if mode == "graph" else eager)(env)
            rows.append({"num_envs": num_envs, "mode": mode, **steps_per_second(env, advance, steps, seconds)})
            if is_cuda:
                rows[-1]["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
                torch.cuda.reset_peak_memory_stats()
    return rows
