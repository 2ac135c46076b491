"""Speed of meta-imitation at RAPTOR's sizes: many teachers, one recurrent student of 2,084 parameters."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rsl_rl.models import MLPModel
from tensordict import TensorDict

from benchmarks import ours
from benchmarks.breakdown import Meter
from benchmarks.common import STUDENT_GROUP, TASK, TEACHER_GROUP, make_env, shipped_teacher
from benchmarks.snapshots import Weights
from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.students import student_cfg_class
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble

EPISODES, STEPS, BATCH = 10, 500, 64
"""Episodes per teacher and epoch, steps of an episode, sequences in a minibatch: as in the published run."""
TEACHER_DIMS = [64, 64]
ORIGINAL = {8: (375e3, 475e3), 100: (326e3, 326e3), 1000: (239e3, 239e3)}
"""Transitions per second of rl-tools' C++ on a machine like this one, by number of teachers: from, to."""


def write_teacher(folder: Path, num_obs: int, hidden_dims: Sequence[int]) -> Path:
    """Write an untrained RSL-RL checkpoint: what a forward pass costs does not depend on the weights."""
    torch.manual_seed(0)
    obs = TensorDict({TEACHER_GROUP: torch.zeros(2, num_obs)}, batch_size=[2])
    distribution = {"class_name": "GaussianDistribution", "init_std": 0.1}
    actor = MLPModel(obs, {"actor": [TEACHER_GROUP]}, "actor", 4, list(hidden_dims), "elu", False, distribution)
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "agent.yaml").write_text("actor: {activation: elu}\n", encoding="utf-8")
    path = folder / "model_0.pt"
    torch.save({"actor_state_dict": actor.state_dict(), "iter": 0, "infos": None}, path)
    return path


def teachers(number: int, num_obs: int, hidden_dims: Sequence[int], device: str) -> TeacherEnsemble:
    """Stack that many teachers, each with weights of its own in memory."""
    with tempfile.TemporaryDirectory() as folder:
        one = TeacherPolicyWrapper(write_teacher(Path(folder) / "teacher", num_obs, hidden_dims), device)
    return TeacherEnsemble([one] * number, [f"quad_{i:04d}" for i in range(number)])


def flying_student(device: str, epochs: int = 120) -> Weights:
    """Train the student on the Crazyflie for a few seconds: its episodes are as long as they are late in a run."""
    values = {"experiment": "fast_gru", "student": "gru", "student.learn_initial_state": True, "n_epochs": epochs}
    return ours.train(values, shipped_teacher(), device, 0, math.inf).snapshots[-1].weights


def build(number: int, device: str, weights: Weights | None, *, compiled: bool, steps: int = STEPS) -> ours.TimedRunner:
    """Build the on-policy phase of a run with that many teachers.

    Every environment is a Crazyflie with parameters of its own in memory. The step size is so small that the student
    goes on flying, although these teachers know nothing. Without ``weights`` it has learned nothing.
    """
    values: dict[str, Any] = {
        "task": TASK,
        "num_envs": EPISODES * number,
        "num_episodes": EPISODES * number,
        "n_epochs": 1000,
        "epoch_teacher_forcing": 0,
        "on_policy": True,
        "sequence_length": steps,
        "batch_size": BATCH,
        "learning_rate": 1e-9,
        "collection.mode": "episodes",
        "optimizer.update_ratio": 1.0,
        "teacher.obs_groups": [TEACHER_GROUP],
        "student.obs_groups": [STUDENT_GROUP],
        "student.learn_initial_state": True,
        "dataset.chunk_steps": steps,
        "dataset.disk_gb": 0.0,
        "device": device,
        "seed": 0,
    }
    cfg = resolve_distillation_cfg(Overrides(groups={"student": "gru"}), values, student_cfg_class=student_cfg_class)
    env = make_env(EPISODES * number, device, 0, compiled=compiled, steps=steps, counted=not compiled)
    stack = teachers(number, 26, TEACHER_DIMS, device)
    runner = ours.TimedRunner(env, stack, cfg, ours.NoRunDir(), make_eval_env=lambda _: env)
    if weights is not None:
        runner.student.load_state_dict(weights)
    return runner


def epoch_rate(
    number: int, device: str, weights: Weights | None, epochs: int, *, compiled: bool, steps: int = STEPS
) -> dict[str, Any]:
    """Measure on-policy epochs, after one that does not count.

    Args:
        number: Teachers.
        device: Torch device.
        weights: A student that flies. None: one that has learned nothing.
        epochs: How many; the fastest counts, as the original's figures do.
        compiled: Whether the simulator's step is compiled.
        steps: Of an episode and of a training sequence.

    Returns:
        Seconds of rollout, labelling and training in an epoch, and transitions per second.
    """
    begin = time.process_time()
    runner = build(number, device, weights, compiled=compiled, steps=steps)
    runner.run_epoch(0)
    first = time.process_time() - begin
    meter = Meter(device)
    meter.wrap(runner.collector, "collect", "collection")
    meter.wrap(runner.collector.actor.late, "label", "labelling")
    meter.wrap(runner.learner, "learn", "training")
    best: dict[str, float] = {}
    for epoch in range(1, 1 + epochs):
        for name in meter.spent:
            meter.spent[name] = 0.0
        before, start = runner.env_steps, meter.now()
        runner.run_epoch(epoch)
        total = meter.now() - start
        if not best or total < best["epoch_seconds"]:
            spent = dict(meter.spent)
            best = {
                "transitions": runner.env_steps - before,
                "epoch_seconds": total,
                "rollout": spent["collection"] - spent["labelling"],
                "labelling": spent["labelling"],
                "training": spent["training"],
                "rest": total - spent["collection"] - spent["training"],
            }
    rate = best["transitions"] / best["epoch_seconds"]
    original = ORIGINAL.get(number)
    return {
        "teachers": number,
        "compiled": compiled,
        **best,
        "transitions_per_second": rate,
        "original": original,
        "first_epoch_cpu_seconds": first,
        "student_parameters": sum(p.numel() for p in runner.student.parameters()),
    }


def inference(number: int, rows: int, num_obs: int, hidden_dims: Sequence[int], device: str, rounds: int) -> dict:
    """Measure stacked teachers beside one teacher on as many rows, and beside reading all weights once.

    Args:
        number: Teachers.
        rows: Environments of each.
        num_obs: Inputs.
        hidden_dims: Hidden layers.
        device: Torch device.
        rounds: Measurements of each, alternating; the fastest of each counts.
    """
    ensemble = teachers(number, num_obs, hidden_dims, device)
    with tempfile.TemporaryDirectory() as folder:
        one = TeacherPolicyWrapper(write_teacher(Path(folder) / "teacher", num_obs, hidden_dims), device)
    obs = torch.randn(number * rows, num_obs, device=device)
    weights = [p for p in ensemble.parameters() if p.dim() == 3]
    calls: dict[str, Callable[[], Any]] = {
        "stacked": lambda: ensemble.step(obs, None),
        "one": lambda: one.step(obs, None),
        "read": lambda: [w.sum() for w in weights],
    }
    meter = Meter(device)
    seconds = dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for _ in range(rounds):
            for name, call in calls.items():
                begin = meter.now()
                call()
                seconds[name] = min(seconds[name], meter.now() - begin)
    return {
        "teachers": number,
        "rows": number * rows,
        "layers": [num_obs, *hidden_dims, 4],
        "weights_mb": sum(w.numel() * w.element_size() for w in weights) / 1e6,
        "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
        "over_one": seconds["stacked"] / seconds["one"],
        "over_reading": seconds["stacked"] / seconds["read"],
    }


def raptor(device: str, *, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything."""
    sizes = {2: 1} if quick else {8: 12, 100: 4, 1000: 2}
    rows, weights = [], flying_student(device, 2 if quick else 120)
    for number, epochs in sizes.items():
        for compiled in (False,) if quick else (False, True):
            rows.append(epoch_rate(number, device, weights, epochs, compiled=compiled, steps=20 if quick else STEPS))
            rate = rows[-1]["transitions_per_second"]
            report(f"{number} teachers, simulator {'compiled' if compiled else 'eager'}: {rate / 1e3:.0f} k/s")
    many, rounds = (4, 2) if quick else (1000, 15)
    shapes = [(22, [64, 64]), (26, [64, 64]), (26, [256, 256, 256])]
    return {"epochs": rows, "inference": [inference(many, 4, *shape, device, rounds) for shape in shapes]}
