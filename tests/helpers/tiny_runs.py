"""Distillation runs of a second: a small teacher of random weights, few and short episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
NUM_OBS, NUM_ACTIONS = 26, 4


def write_teacher(path: Path, scale: float = 0.3, bias: float = 0.6) -> Path:
    """Write an RSL-RL checkpoint that hovers badly: a [24, 24] network around a constant thrust."""
    generator = torch.Generator().manual_seed(1)
    sizes = [NUM_OBS, 24, 24, NUM_ACTIONS]
    state: dict[str, torch.Tensor] = {"std": torch.full((NUM_ACTIONS,), 0.2)}
    for who, last in (("actor", NUM_ACTIONS), ("critic", 1)):
        for layer, (rows, columns) in enumerate(zip([*sizes[1:-1], last], sizes[:-1], strict=True)):
            weight = torch.randn(rows, columns, generator=generator) * scale / columns**0.5
            state[f"{who}.{2 * layer}.weight"] = weight
            state[f"{who}.{2 * layer}.bias"] = torch.full((rows,), bias if layer == 2 else 0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": state, "iter": 1, "infos": None}, path)
    (path.parent / "params").mkdir(exist_ok=True)
    (path.parent / "params" / "agent.yaml").write_text("policy:\n  activation: elu\n")
    return path


def arguments(teacher: Path, *more: Any, **flags: Any) -> list[str]:
    """Return the command line of a small run; flags given here take the place of its own."""
    values = {
        "task": TASK,
        "teacher_checkpoint": teacher,
        "device": "cpu",
        "n_epochs": 8,
        "epoch_teacher_forcing": 3,
        "learning_rate": 1e-3,
        "num_envs": 16,
        "num_episodes": 8,
        "num_eval_episodes": 16,
        "save_interval": 3,
        **flags,
    }
    typed = [str(part) for name, value in values.items() for part in (f"--{name}", value)]
    fixed = ["env.episode_length_s=0.4", "distill.final_eval_episodes=32", "distill.teacher.check=false"]
    return [*typed, *fixed, *map(str, more)]


def run_folder(folder: Path) -> Path:
    """Return the one run under a working directory."""
    (run,) = (folder / "logs" / "distillation").glob("*/*")
    return run


def tensors(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint by its place."""
    found = {}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, entry in items:
        if isinstance(entry, torch.Tensor):
            found[f"{prefix}{key}"] = entry
        else:
            found |= tensors(entry, f"{prefix}{key}/")
    return found


def differing(one: Path, other: Path) -> list[str]:
    """Compare two checkpoints bit for bit; return the names of what differs."""
    a, b = (tensors(torch.load(path, weights_only=True)) for path in (one, other))
    assert a.keys() == b.keys() and len(a) > 0
    return [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
