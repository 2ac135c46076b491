"""What all measurements share: clocks, the environment, the teacher, the description of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.teachers import TeacherPolicyWrapper

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
TEACHER_GROUP, STUDENT_GROUP = "policy", "deployable"
HIDDEN_DIMS = [64, 64]
LABEL_BOUND = QuadcopterPointCtrlPPORunnerCfg().clip_actions
EVAL_SEED = 7_000_003
"""Seed of the evaluation's initial states; no training environment uses it."""


def shipped_teacher() -> Path:
    """Return the path of the teacher that the repository carries."""
    return Path(__file__).resolve().parents[2] / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"


class CountingEnv(QuadcopterPointCtrlEnv):
    """The built-in task with a count of its transitions."""

    env_steps = 0

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Count and step. Shape of ``actions``: (num_envs, num_actions)."""
        self.env_steps += self.num_envs
        return super().step(actions)


class BenchEnv(CountingEnv):
    """It without the group that nobody reads here.

    RSL-RL stores every group that the environment offers; a group for other policies must not count against it.
    """

    def observe(self) -> dict[str, torch.Tensor]:
        """Build the groups that are read here."""
        return {name: group for name, group in super().observe().items() if name != "l2f"}


def make_env(
    num_envs: int,
    device: str,
    seed: int,
    *,
    compiled: bool = False,
    steps: int | None = None,
    counted: bool = True,
) -> Any:
    """Build the built-in task.

    Args:
        num_envs: Environments.
        device: Torch device.
        seed: Of the initial states.
        compiled: Compile the step, the group that nobody reads included: only the task's own can be compiled.
        steps: Length of an episode.
        counted: Whether it counts its env steps; a step that is compiled with what acts in it is not counted.
    """
    cfg = QuadcopterPointCtrlEnvCfg(seed=seed, compile=compiled)
    cfg.scene.num_envs, cfg.sim.device = num_envs, device
    if steps is not None:
        cfg.episode_length_s = steps * cfg.sim.dt * cfg.decimation
    if not counted:
        return QuadcopterPointCtrlEnv(cfg)
    return CountingEnv(cfg) if compiled else BenchEnv(cfg)


class TeacherScore:
    """The evaluation that every snapshot gets, and what the teacher reaches in it.

    Args:
        teacher: Path of the teacher's checkpoint.
        episodes: Environments, one episode each.
        device: Torch device.
    """

    def __init__(self, teacher: Path, episodes: int, device: str):
        self.env = make_env(episodes, device, EVAL_SEED)
        actor = PolicyActor(TeacherPolicyWrapper(str(teacher), device=device), ObsSelector([TEACHER_GROUP]))
        self.result = self.measure(actor)
        self.mean_return = self.result["mean_return"]

    def measure(self, actor: Any) -> dict[str, float]:
        """Measure an actor on the same initial states as everybody else."""
        return evaluate(self.env, actor, self.env.num_envs, EVAL_SEED).summary()

    def ratio(self, actor: Any) -> float:
        """Return an actor's mean return over the teacher's."""
        return self.measure(actor)["mean_return"] / self.mean_return


class Clock:
    """CPU and wall seconds, with pauses that do not count."""

    def __init__(self, device: str):
        self.is_cuda = torch.device(device).type == "cuda"
        self.cpu = self.wall = 0.0
        self._running: tuple[float, float] | None = None

    def start(self) -> None:
        """Start, or go on after a pause."""
        self.synchronize()
        self._running = (time.process_time(), time.perf_counter())

    def pause(self) -> None:
        """Stop counting."""
        self.synchronize()
        self.cpu, self.wall = self.read()
        self._running = None

    def read(self) -> tuple[float, float]:
        """Return CPU and wall seconds counted so far."""
        if self._running is None:
            return self.cpu, self.wall
        cpu, wall = self._running
        return self.cpu + time.process_time() - cpu, self.wall + time.perf_counter() - wall

    @property
    def seconds(self) -> float:
        """What the grid and the budget count: CPU seconds, or wall seconds where a GPU does the work."""
        return self.read()[1 if self.is_cuda else 0]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Yield a dict that holds ``cpu`` and ``wall`` seconds of the block after it."""
    out: dict[str, float] = {}
    cpu, wall = time.process_time(), time.perf_counter()
    yield out
    out.update(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    """Describe what the figures were measured on, without naming the host."""
    out = {
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rsl_rl": version("rsl-rl-lib"),
    }
    if torch.device(device).type == "cuda":
        out["gpu"] = torch.cuda.get_device_name(device)
    return out


def import_seconds() -> dict[str, float]:
    """Measure, in fresh processes, what importing torch, RSL-RL's runners and our runner costs [CPU s]."""
    out = {}
    root = Path(__file__).resolve().parents[2]
    for name in ("torch", "rsl_rl.runners", "foundation.runs.runner"):
        code = f"import time; import {name}; print(time.process_time())"
        run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        out[name] = float(run.stdout.split()[-1])
    return out
