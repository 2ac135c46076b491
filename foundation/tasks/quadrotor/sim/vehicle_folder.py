"""Folders of vehicles: sampled ones, and a registry of real ones whose parameters are public."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.tasks.quadrotor.sim.vehicle_json import from_dict, to_dict
from foundation.tasks.quadrotor.sim.vehicle_params import VehicleParams


def write_vehicles(folder: Path, vehicles: VehicleParams, prefix: str = "quad") -> list[Path]:
    """Write vehicles with all digits as ``<prefix>_0000.json`` and so on; return the files.

    Raises:
        UserError: If the folder has vehicles that would not be overwritten, and so would be flown with the new ones, or
            cannot be written to.
    """
    width = max(4, len(str(vehicles.num_vehicles - 1)))
    files = [folder / f"{prefix}_{i:0{width}}.json" for i in range(vehicles.num_vehicles)]
    others = sorted(set(folder.glob("*.json")) - set(files)) if folder.is_dir() else []
    if others:
        raise UserError(f"'{folder}' has other vehicles already ({others[0].name}): name an empty folder")
    for i, file in enumerate(files):
        _write(file, to_dict(vehicles, i))
    return files


def registry() -> dict[str, VehicleParams]:
    """Return the real vehicles by name, each checked, in float64."""
    folder = resources.files("foundation") / "assets" / "vehicles"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda e: e.name)
    return {file.name.removesuffix(".json"): from_dict(json.loads(file.read_text()), file.name) for file in files}


def write_registry(folder: Path) -> list[Path]:
    """Copy the registry into a folder; return the files."""
    files = []
    for name, vehicle in registry().items():
        files.append(folder / f"{name}.json")
        _write(files[-1], to_dict(vehicle, 0))
    return files


def _write(path: Path, data: dict[str, Any]) -> None:
    atomic_write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())
