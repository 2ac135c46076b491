"""Configuration of gymnasium's environments, with Isaac Lab's names for what both have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

INSTALL = "pip install -e '.[gymnasium]'"
"""What brings gymnasium's tasks."""

AutoresetName = Literal["same_step", "next_step", "disabled"]
Vectorization = Literal["auto", "sync", "async", "vector_entry_point", "envpool"]


@dataclass
class SceneCfg:
    """How many environments there are."""

    num_envs: int = 16
    """Number of environments."""


@dataclass
class SimCfg:
    """Where tensors are; gymnasium's environments themselves compute on the CPU."""

    device: str = "cpu"
    """Device of observations, rewards and dones."""


@dataclass
class GymnasiumEnvCfg:
    """What every gymnasium task can be asked for; the arguments of its own constructor are fields beside these."""

    scene: SceneCfg = field(default_factory=SceneCfg)
    """How many environments there are."""
    sim: SimCfg = field(default_factory=SimCfg)
    """Where tensors are."""
    seed: int = 0
    """Seed of the first episodes."""
    vectorization: Vectorization = "auto"
    """sync | async | vector_entry_point | envpool: one after the other, a process each, the vector environment that the
    task registers, or envpool's of the same id. auto: the registered one where it can reset in the same step (Atari),
    else sync."""
    autoreset_mode: AutoresetName = "same_step"
    """same_step | next_step | disabled: when gymnasium begins a new episode. Transitions are the same with each."""
    actions: Literal["clip", "scale"] = "clip"
    """Continuous actions: ``clip`` takes them in the task's units and clips them to its bounds; ``scale`` takes
    [-1, 1], clipped, and maps it to the bounds."""
    max_episode_steps: int | None = None
    """Time limit [env steps]. None: the registered one, or 10000 where there is none."""
    make_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for ``gymnasium.make`` that no signature names (those swallowed by ``**kwargs``)."""
