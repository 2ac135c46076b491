"""Figures by vehicle, where an environment flies several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich import box
from rich.table import Table

from foundation.rollout.evaluate import EvaluationResult
from foundation.tasks.quadrotor.sim.vehicles import sampled_number, vehicle_files

MOST_ROWS = 20
"""Vehicles that the table shows; of more, the worst."""


def vehicle_names(paths: str | list[str] | None) -> list[str]:
    """Name the vehicles of ``env.vehicles`` in their order: files by their stems, sampled ones by their numbers."""
    names: list[str] = []
    for entry in [paths] if isinstance(paths, str) else paths or []:
        if entry.startswith("sampled:"):
            names += [f"sampled_{index}" for index in range(sampled_number(entry)[0])]
        else:
            names += [file.stem for file in vehicle_files(entry)]
    return names


def vehicle_of(env: Any) -> Callable[[Any], torch.Tensor] | None:
    """Return what tells the vehicle of each environment, for ``evaluate(teacher_of=)``; None if all fly the same.

    Args:
        env: An environment of any engine.
    """
    index = getattr(getattr(env, "unwrapped", env), "vehicle_index", None)
    if not isinstance(index, torch.Tensor) or not bool((index != index[0]).any()):
        return None
    return lambda obs: index


def vehicle_figures(result: EvaluationResult, names: list[str]) -> list[dict[str, Any]]:
    """Return name, episodes, mean return, survival and steady-state error [m] of every vehicle that was flown.

    Args:
        result: Episodes, each with its vehicle in ``result.teacher``.
        names: Of all vehicles.
    """
    if result.teacher is None:
        return []
    vehicle = result.teacher.long().cpu()
    error = result.metrics.get("position_error")
    rows = []
    for index in vehicle.unique().tolist():
        mine = vehicle == index
        ended = mine if result.success is None else mine & result.success.bool().cpu()
        row: dict[str, Any] = {
            "vehicle": names[index] if index < len(names) else str(index),
            "episodes": int(mine.sum()),
            "return": float(result.returns.cpu()[mine].double().mean()),
            "success_rate": None if result.success is None else float(ended.sum() / mine.sum()),
        }
        if error is not None:
            row["position_error"] = float(error.cpu()[ended].double().mean()) if ended.any() else None
        rows.append(row)
    return rows


def vehicle_table(rows: list[dict[str, Any]]) -> Table:
    """Lay the figures by vehicle out, the worst first."""
    worst = sorted(rows, key=lambda row: row["return"])
    shown = worst[:MOST_ROWS]
    title = f"{len(rows)} vehicles" + (f", the worst {MOST_ROWS}" if len(rows) > MOST_ROWS else ", the worst first")
    table = Table(title=title, box=box.ROUNDED, title_justify="left")
    table.add_column("vehicle")
    for name in ("episodes", "return", "success", "error [cm]"):
        table.add_column(name, justify="right")
    for row in shown:
        error = row.get("position_error")
        table.add_row(
            row["vehicle"],
            str(row["episodes"]),
            f"{row['return']:.1f}",
            "" if row["success_rate"] is None else f"{100 * row['success_rate']:.1f} %",
            "" if error is None else f"{100 * error:.2f}",
        )
    return table


def whole_fleets(env_cfg: Any, num_envs: int) -> int:
    """Round a number of environments up so that every vehicle is flown, and all equally often."""
    number = max(1, len(vehicle_names(getattr(env_cfg, "vehicles", None))))
    return -(-num_envs // number) * number
