"""Sets of small teachers in RSL-RL's checkpoint format, with vehicles and a manifest where asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles, to_dict
from foundation.teachers.manifest import TeacherEntry, write_manifest

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


def write_mlp(
    path: Path,
    seed: int,
    *,
    num_obs: int = 26,
    num_actions: int = 4,
    hidden: Sequence[int] = (24, 16),
    scale: float = 0.3,
    bias: float = 0.6,
    normalizer: bool = False,
    std: float = 0.2,
    rnn: str | None = None,
) -> Path:
    """Write an actor and critic of random weights; ``rnn`` puts a recurrent layer of 8 units before each."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {"std": torch.full((num_actions,), std)}
    for who, last in (("actor", num_actions), ("critic", 1)):
        first = num_obs
        if rnn is not None:
            gates = {"gru": 3, "lstm": 4}[rnn] * 8
            memory = f"memory_{who[0]}.rnn."
            shapes = {"weight_ih_l0": (gates, num_obs), "weight_hh_l0": (gates, 8), "bias_ih_l0": (gates,)}
            for name, shape in (shapes | {"bias_hh_l0": (gates,)}).items():
                state[memory + name] = torch.randn(*shape, generator=generator) * 0.4
            first = 8
        sizes = [first, *hidden, last]
        for layer, (rows, columns) in enumerate(zip(sizes[1:], sizes[:-1], strict=True)):
            weight = torch.randn(rows, columns, generator=generator) * scale / columns**0.5
            state[f"{who}.{2 * layer}.weight"] = weight
            state[f"{who}.{2 * layer}.bias"] = torch.full((rows,), bias if layer == len(hidden) else 0.0)
        if normalizer:
            mean, deviation = torch.randn(num_obs, generator=generator), torch.rand(num_obs, generator=generator) + 0.1
            moments = {"_mean": mean, "_std": deviation, "_var": deviation.square(), "count": torch.tensor(10)}
            state |= {f"{who}_obs_normalizer.{name}": value for name, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": state, "iter": 1, "infos": None}, path)
    (path.parent / "params").mkdir(exist_ok=True)
    rnn_lines = "" if rnn is None else f"  class_name: ActorCriticRecurrent\n  rnn_type: {rnn}\n"
    (path.parent / "params" / "agent.yaml").write_text("policy:\n  activation: elu\n" + rnn_lines)
    return path


def write_set(folder: Path, number: int, *, vehicles: bool = False, **options) -> Path:
    """Write ``number`` teachers, a vehicle each if asked for, and their manifest; return the manifest."""
    fleet = sample_vehicles(number, seed=3) if vehicles else None
    entries = []
    for index in range(number):
        name = f"quad_{index:04d}"
        vehicle = None
        if fleet is not None:
            vehicle = folder / "vehicles" / f"{name}.json"
            vehicle.parent.mkdir(parents=True, exist_ok=True)
            vehicle.write_text(json.dumps(to_dict(fleet, index)))
        entries.append(TeacherEntry(name, write_mlp(folder / "teachers" / f"{name}.pt", index, **options), vehicle))
    manifest = folder / "teachers" / "teachers.yaml"
    write_manifest(manifest, entries, TASK)
    return manifest


def ninth(obs) -> torch.Tensor:
    """Choose teacher 9 for every environment."""
    return torch.full((obs.batch_size[0],), 9)
