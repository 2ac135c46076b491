"""Fly a policy, or a set of teachers, on a set of vehicles in one of the simulators."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import EvaluationResult, evaluate
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import load_ensemble
from foundation.teachers.manifest import FAILED, TeacherEntry, read_manifest
from raptor.stages import TASK


@dataclass
class Flight:
    """What a policy did on a set of vehicles; lists have one number per vehicle."""

    mean_return: float
    """Over all episodes."""
    return_interval_95: float
    """Half-width of its confidence interval, over episodes."""
    terminated: float
    """Share of the episodes that ended by a limit."""
    error: float
    """Steady-state error: mean distance over the last second of the episodes flown to their end [m]."""
    error_median: float
    """Median over those episodes [m]."""
    episodes: int
    """Flown."""
    returns: list[float]
    """Mean return."""
    terminations: list[float]
    """Share terminated."""
    errors: list[float | None]
    """Steady-state error [m]; None where no episode was flown to its end."""

    def plain(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def flown_teachers(manifest: Path) -> list[TeacherEntry]:
    """Return the teachers of a manifest that have not failed, each with a vehicle to fly.

    Raises:
        UserError: If there is none, or they have no vehicles.
    """
    entries = [entry for entry in read_manifest(manifest) if entry.status != FAILED]
    if not entries:
        raise UserError(f"'{manifest}': every teacher has failed.")
    if any(entry.vehicle is None for entry in entries):
        raise UserError(f"'{manifest}': its teachers have no vehicles to fly.")
    return entries


def load_flyer(path: Path) -> tuple[Any, list[str]]:
    """Load a checkpoint of any format, or the teachers of a manifest.

    Args:
        path: A checkpoint, or ``teachers.yaml``.

    Returns:
        The policy, and the teachers' vehicles in its order (empty for one policy).
    """
    if path.suffix not in (".yaml", ".yml"):
        return TeacherPolicyWrapper(path), []
    entries = flown_teachers(path)
    return load_ensemble(entries), [str(entry.vehicle) for entry in entries]


def published_policy() -> Path | None:
    """Return the published RAPTOR policy of the ``foundation-policy`` package, or None without it."""
    spec = importlib.util.find_spec("foundation_policy")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "blob" / "checkpoint.h5"
    return path if path.exists() else None


def check_needed() -> None:
    """Check, before hours of training, that what the last stages need is installed.

    Raises:
        UserError: Naming what is missing and how it is installed.
    """
    install = "pip install -e '.[raptor]'"
    obstacle = engine_class("l2f").why_not(TASK)
    if obstacle is not None:
        raise UserError(f"the flights need the engine l2f: {obstacle}; {install}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"the figure needs the package 'matplotlib': {install}")
    if published_policy() is None:
        print(f"==> without the package 'foundation-policy' the published policy is left out: {install}", flush=True)


def fly(
    policy: Any, engine: str, vehicles: Sequence[str], episodes_each: int, seed: int, max_velocity: float | None = None
) -> Flight:
    """Fly every vehicle equally often.

    Every policy begins its episodes in the same states, in whichever engine, for the same seed and vehicles.

    Args:
        policy: One policy, or as many stacked teachers as vehicles.
        engine: ``torch`` or ``l2f``.
        vehicles: Files in l2f's JSON form.
        episodes_each: Episodes of each vehicle.
        seed: Of the initial states and of the forces that push the vehicles.
        max_velocity: Limit beyond which an episode ends [m/s]. None: the task's.
    """
    chosen = engine_class(engine)()
    obstacle = chosen.why_not(TASK)
    if obstacle is not None:
        raise UserError(f"--engine {engine}: {obstacle}")
    number = len(vehicles) * episodes_each

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        chosen.set_common(env_cfg, num_envs=number, seed=seed, device="cpu")
        env_cfg.vehicles = list(vehicles)
        if max_velocity is not None:
            env_cfg.terminations.velocity_vehicles = max_velocity

    with chosen.launch(LaunchRequest(TASK), configure) as (env_cfg, agent_cfg):
        env: Any = chosen.make_env(env_cfg, agent_cfg)
        description = policy.describe()
        selector = ObsSelector(getattr(policy, "obs_groups", None) or ["policy"], description.get("obs_slice"))
        selector.check(env.get_observations(), "policy", policy.num_obs)
        result = evaluate(env, PolicyActor(policy, selector), number, seed)
        return summarise(result, env.unwrapped.vehicle_index, len(vehicles))


def summarise(result: EvaluationResult, vehicle: torch.Tensor, number: int) -> Flight:
    """Sort episodes by vehicle.

    Args:
        result: One episode per environment.
        vehicle: Each episode's. Shape: (num_episodes,).
        number: Of vehicles.
    """
    assert result.success is not None, "the built-in task gives time-outs"
    ended = result.success.bool()
    error = result.metrics["position_error"].double()
    counts = torch.zeros(number).double().index_add(0, vehicle, torch.ones_like(error))
    flown = torch.zeros(number).double().index_add(0, vehicle, ended.double())

    def by_vehicle(values: torch.Tensor, of: torch.Tensor) -> list[float]:
        return (torch.zeros(number).double().index_add(0, vehicle, values.double()) / of).tolist()

    errors = by_vehicle(torch.where(ended, error, 0.0), flown)
    survivors = error[ended]
    return Flight(
        mean_return=result.mean_return,
        return_interval_95=result.return_interval,
        terminated=1.0 - float(ended.double().mean()),
        error=float(survivors.mean()) if len(survivors) else float("nan"),
        error_median=float(survivors.median()) if len(survivors) else float("nan"),
        episodes=len(result.returns),
        returns=by_vehicle(result.returns, counts),
        terminations=by_vehicle(~ended, counts),
        errors=[value if number_flown else None for value, number_flown in zip(errors, flown.tolist(), strict=True)],
    )
