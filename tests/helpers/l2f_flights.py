"""What the real packages ``l2f`` and ``foundation-policy`` do: recorded, and live where they are installed.

Both are source only and take a compiler, so that everyday tests compare with recordings. ``tests/write_l2f_flights.py``
made them; ``scripts/test_l2f.sh`` builds the packages and runs the same tests on the packages themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.tasks.quadrotor.sim.vehicles import VehicleParams, load_vehicles

TESTS = Path(__file__).resolve().parents[1]
FLIGHTS = TESTS / "tasks" / "sim" / "data" / "l2f-2.0.18"
RAPTOR = TESTS / "checkpoints" / "published-raptor"
PUBLISHED = RAPTOR / "checkpoint.h5"
"""The published RAPTOR policy, as it is in the package."""

LIVE = pytest.param("live", marks=pytest.mark.l2f)
recorded_and_live = pytest.mark.parametrize("source", ["recorded", LIVE])
"""Gives a test ``source``, to hand to :func:`flight`."""

Flight = dict[str, np.ndarray]
"""Arrays by name; states are packed as in ``foundation.tasks.quadrotor.sim.quadrotor``."""


def flight(name: str, source: str) -> Flight:
    """Return a flight of ``real_l2f.FLIGHTS``, as it was recorded or flown now."""
    if source == "live":
        import real_l2f

        return real_l2f.FLIGHTS[name]()
    folder = RAPTOR if name == "raptor_policy" else FLIGHTS
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def pack_json(value: object) -> np.ndarray:
    """Return a value's JSON as bytes, as a flight keeps it. Shape: (num_bytes,)."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def unpack_json(array: np.ndarray) -> object:
    """Read what :func:`pack_json` packed."""
    return json.loads(array.tobytes())


def fleet(flown: Flight, folder: Path) -> VehicleParams:
    """Read a flight's vehicles from files in ``folder``, as a user's are read."""
    folder.mkdir(parents=True, exist_ok=True)
    vehicles = unpack_json(flown["vehicles"])
    assert isinstance(vehicles, list)
    files = [folder / f"quad_{index:04d}.json" for index in range(len(vehicles))]
    for file, vehicle in zip(files, vehicles, strict=True):
        file.write_text(json.dumps(vehicle))
    return load_vehicles(files)


def steps(flown: Flight) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return each step's state, action and next state. Shapes: (17, num_envs), (num_envs, 4), (17, num_envs)."""
    states, actions = torch.from_numpy(flown["states"]), torch.from_numpy(flown["actions"])
    return list(zip(states[:-1], actions, states[1:], strict=True))
