"""RSL-RL's own ``DistillationRunner`` on the same environment, teacher and student size."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rsl_rl.models import MLPModel, RNNModel
from rsl_rl.runners import DistillationRunner
from tensordict import TensorDict

from benchmarks.common import HIDDEN_DIMS, STUDENT_GROUP, TEACHER_GROUP, Clock, make_env, timed
from benchmarks.snapshots import BudgetSpentError, SnapshotRecorder, Trace, Weights

OBS_GROUPS = {"student": [STUDENT_GROUP], "teacher": [TEACHER_GROUP]}


@dataclass(frozen=True)
class StockSettings:
    """What the sweep varies."""

    num_envs: int = 256
    num_steps: int = 24
    num_learning_epochs: int = 2
    gradient_length: int = 1
    learning_rate: float = 1e-3
    init_std: float = 0.1
    gru: int | None = None
    """Units of a GRU before the dense layers; None: no memory."""
    hidden_dims: tuple[int, ...] = tuple(HIDDEN_DIMS)
    """Dense layers."""

    @property
    def label(self) -> str:
        """What a picture calls it: environments x steps, and what else differs from RSL-RL's defaults."""
        parts = [f"{self.num_envs} x {self.num_steps}"]
        passes = "pass" if self.num_learning_epochs == 1 else "passes"
        parts.append(f"{self.num_learning_epochs} {passes}, rate {self.learning_rate:g}, std {self.init_std:g}")
        if self.gradient_length > 1:
            parts.append(f"gradient length {self.gradient_length}")
        return ", ".join(parts)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StockSettings:
        """Return the settings that a JSON file has."""
        return cls(**{**values, "hidden_dims": tuple(values["hidden_dims"])})

    def changed(self, **values: Any) -> StockSettings:
        """Return a copy with some values changed."""
        return replace(self, **values)


ISAACLAB_LIKE = StockSettings(num_steps=120, gradient_length=15)
"""What Isaac Lab's distillation configs ask for."""
TUNED = StockSettings()
"""Centre of the sweep."""
TUNED_GRU = StockSettings(
    num_steps=30, gradient_length=5, learning_rate=2e-3, num_learning_epochs=2, gru=16, hidden_dims=(16,)
)
"""Best found for a student of 16 GRU units."""


def _student_cfg(settings: StockSettings) -> dict[str, Any]:
    memory = {} if settings.gru is None else {"rnn_type": "gru", "rnn_hidden_dim": settings.gru}
    return {
        "class_name": "MLPModel" if settings.gru is None else "RNNModel",
        "hidden_dims": list(settings.hidden_dims),
        "activation": "elu",
        "obs_normalization": True,
        "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": settings.init_std},
        **memory,
    }


def teacher_cfg(teacher: Path) -> dict[str, Any]:
    """Return the config of a dense teacher, read off its weights."""
    weights = torch.load(teacher, map_location="cpu", weights_only=True)["actor_state_dict"]
    layers = [tensor for name, tensor in weights.items() if name.startswith("mlp.") and tensor.dim() == 2]
    return {
        "class_name": "MLPModel",
        "hidden_dims": [layer.shape[0] for layer in layers[:-1]],
        "activation": "elu",
        "obs_normalization": any(name.startswith("obs_normalizer.") for name in weights),
        "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 0.1},
    }


def runner_cfg(settings: StockSettings, teacher: Path) -> dict[str, Any]:
    """Return the dict that RSL-RL 5.5's runner takes."""
    return {
        "class_name": "DistillationRunner",
        "num_steps_per_env": settings.num_steps,
        "obs_groups": {name: list(groups) for name, groups in OBS_GROUPS.items()},
        "save_interval": 10**9,
        "student": _student_cfg(settings),
        "teacher": teacher_cfg(teacher),
        "algorithm": {
            "class_name": "Distillation",
            "num_learning_epochs": settings.num_learning_epochs,
            "gradient_length": settings.gradient_length,
            "learning_rate": settings.learning_rate,
            "loss_type": "mse",
        },
    }


def train(settings: StockSettings, teacher: Path, device: str, seed: int, budget: float, name: str = "rsl_rl") -> Trace:
    """Train until the budget is over.

    Args:
        settings: RSL-RL's settings.
        teacher: The teacher's checkpoint.
        device: Torch device.
        seed: Seed of everything.
        budget: Training time [s].
        name: Name of the setting.
    """
    trace, clock = Trace(name, seed, budget), Clock(device)
    torch.manual_seed(seed)
    with timed() as trace.startup, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = make_env(settings.num_envs, device, seed)
        runner = DistillationRunner(env, runner_cfg(settings, teacher), log_dir=None, device=device)
        runner.load(str(teacher))
    recorder = SnapshotRecorder(trace, clock, runner.alg.get_policy().state_dict, lambda: env.env_steps)
    runner.alg.optimizer.register_step_post_hook(recorder)
    clock.start()
    with contextlib.suppress(BudgetSpentError):
        runner.learn(10**9, init_at_random_ep_len=True)
    return trace


class StockActor:
    """The deterministic student of RSL-RL."""

    def __init__(self, model: MLPModel):
        self.model = model

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        self.model.reset(dones)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the mean actions. Shape: (num_envs, num_actions)."""
        return self.model(obs)


def actor(
    weights: Weights, obs: TensorDict, num_actions: int, device: str, settings: StockSettings = TUNED
) -> StockActor:
    """Build the deterministic student of some weights."""
    cfg = _student_cfg(settings)
    model_class = {"MLPModel": MLPModel, "RNNModel": RNNModel}[cfg.pop("class_name")]
    model = model_class(obs, {"student": [STUDENT_GROUP]}, "student", num_actions, **cfg).to(device)
    model.load_state_dict(weights)
    return StockActor(model.eval())
