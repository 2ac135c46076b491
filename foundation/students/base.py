"""Base of the students: a normaliser, the student's own body, and heads for mean, standard deviation and value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from foundation.config.distillation_cfg import ActionDistribution, StudentCfg
from foundation.core.errors import UserError
from foundation.policies.choices import best_choices, sizes_of
from foundation.policies.estimator import Estimator
from foundation.policies.layers import OBS, Constant, Layers
from foundation.policies.memory import MemoryLayer, Taps, initial_state_of, reset_state_of, run_layers
from foundation.policies.mlp import build_mlp
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork

LOG_STD_RANGE = (-10.0, 2.0)
"""Bounds of the logarithm of a learned standard deviation."""
MIN_SHARE = 1e-4
"""Smallest distance of a Beta distribution's mean to either end of its range, as a share of the range: at an end its
alpha or beta would be 0."""
SIZES = ("hidden_dims", "encoder_dims", "channels", "hidden_size", "num_layers")
"""Fields of the built-in students' configs that hold sizes of layers."""

MAX_LAYERS = 1000
"""Layers of a kind that a student may have; the time and the memory of building more are wasted before any error."""

OF_A_RUN = ("obs_groups", "obs_slice", "init_checkpoint", "init_encoder")
"""Fields of the students' configs that belong to a run, not to the architecture."""


@dataclass
class NetworkCfg(StudentCfg):
    """Settings that every built-in student has beside those of :class:`StudentCfg`."""

    state_dependent_std: bool = False
    """With ``stochastic``: the standard deviation is an output of the network, not one parameter per action."""
    init_std: float = 0.5
    """Standard deviation before training [action units]; with ``distribution=tanh`` that before tanh."""
    distribution: ActionDistribution = "gaussian"
    """Distribution of continuous actions: gaussian (unbounded), tanh (samples of a Gaussian go through tanh) or beta.
    The last two are on [-1, 1], and their mean action is tanh(network). Without ``stochastic``, tanh is that mean
    action alone."""
    num_choices: int | list[int] | None = None
    """Choices of a discrete action, whose index is then the only action; a list: of each of several (MultiDiscrete),
    whose distributions are independent. The teacher's ``num_choices``. None: the actions are continuous."""
    num_estimates: int = 0
    """Numbers of another observation group that the student estimates and reads besides (filled in by the run, of
    ``loss.auxiliary.predict.feed``)."""


def last_size(hidden_dims: Sequence[int], num_in: int, cfg: NetworkCfg) -> int:
    """Return the size of the last hidden layer of :meth:`Student.add_body`.

    Args:
        hidden_dims: Sizes of its layers; may be empty.
        num_in: Numbers that they read, but for an estimate.
        cfg: The student's config.
    """
    return hidden_dims[-1] if hidden_dims else num_in + cfg.num_estimates


def _check_layers(cfg: NetworkCfg) -> None:
    """Refuse layers of no size, and more of them than can be built in any time.

    Raises:
        UserError: Naming the field.
    """
    for name in SIZES:
        value = getattr(cfg, name, 1)
        sizes = value if isinstance(value, list) else [value]
        if any(size < 1 for size in sizes):
            raise UserError(f"student.{name} is {value}: it must be at least 1.")
        depth = sizes[0] if name == "num_layers" else len(sizes)
        if depth > MAX_LAYERS:
            raise UserError(f"student.{name} asks for {depth} layers: there may be {MAX_LAYERS} at most.")


class Heads(Protocol):
    """Output layers: a student's own, or those of another of its parts."""

    mean: nn.Linear
    log_std: nn.Parameter | nn.Linear | None
    value: nn.Linear | None


class Student(PolicyNetwork):
    """Base of the students. A subclass sets ``cfg_class``, creates its hidden layers and returns them in ``trunk``."""

    cfg_class: ClassVar[type[NetworkCfg]]
    """The config that :meth:`from_cfg` takes."""

    def __init__(self, cfg: NetworkCfg, num_obs: int, num_actions: int, num_features: int) -> None:
        """Create the normaliser and the heads.

        Args:
            cfg: The student's config.
            num_obs: Number of observations.
            num_actions: Number of actions.
            num_features: Size of the last hidden layer, which the heads read.
        """
        super().__init__()
        if num_obs < 1 or num_actions < 1:
            raise UserError(f"a student needs observations and actions; got {num_obs} and {num_actions}.")
        self.choices = sizes_of(cfg.num_choices)
        """Choices of each discrete action; empty where actions are continuous."""
        fits = all(size >= 1 for size in self.choices) and sum(self.choices) >= 2 and len(self.choices) == num_actions
        if cfg.num_choices is not None and (not fits or cfg.stochastic):
            raise UserError(
                f"a student of num_choices={cfg.num_choices} needs two choices or more, stochastic=false, and one "
                f"action for each number (an index; the task takes {num_actions})."
            )
        _check_layers(cfg)
        if cfg.distribution != "gaussian" and cfg.num_choices is not None:
            raise UserError(
                f"student.distribution={cfg.distribution} is of continuous actions, and this student chooses among "
                f"{cfg.num_choices}: set student.distribution=gaussian."
            )
        if cfg.distribution == "beta" and not cfg.stochastic:
            raise UserError(
                "student.distribution=beta needs a standard deviation: set student.stochastic=true, or use tanh."
            )
        low, high = (math.exp(bound) for bound in LOG_STD_RANGE)
        if cfg.stochastic and not low <= cfg.init_std <= high:
            raise UserError(f"student.init_std is {cfg.init_std:g}: it must be from {low:.2g} to {high:.3g}.")
        self.cfg = cfg
        self.num_obs = num_obs
        self.num_actions = num_actions
        self.num_choices = cfg.num_choices
        self.normalizer = ObsNormalizer(num_obs)
        self.mean = nn.Linear(num_features, sum(self.choices) or num_actions)
        self.log_std: nn.Parameter | nn.Linear | None = None
        if cfg.stochastic and cfg.state_dependent_std:
            self.log_std = nn.Linear(num_features, num_actions)
            nn.init.zeros_(self.log_std.weight)
            nn.init.constant_(self.log_std.bias, float(torch.tensor(cfg.init_std, device="cpu").log()))
        elif cfg.stochastic:
            self.log_std = nn.Parameter(torch.full((num_actions,), cfg.init_std).log())
        self.value = nn.Linear(num_features, 1) if cfg.value_head else None
        self.estimator: Estimator | None = None
        """Estimates another observation group on the way; the body reads what it reads, and the estimate."""

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        raise TypeError(f"{cls.__name__} does not define from_cfg")

    def add_body(self, num_in: int, hidden_dims: Sequence[int], activation: str) -> None:
        """Create the last hidden layers, ``body``, and the estimator before them where the config asks for one.

        Args:
            num_in: Numbers that they read.
            hidden_dims: Sizes of the layers.
            activation: By RSL-RL's names.
        """
        size = self.cfg.num_estimates
        if size:
            self.estimator = Estimator(num_in, size, activation)
        self.body = build_mlp(num_in + size, hidden_dims, None, activation)

    def last_layers(self) -> tuple[nn.Module, ...]:
        """Return the estimator, if there is one, and the body."""
        return (self.body,) if self.estimator is None else (self.estimator, self.body)

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers, from normalised observations to the features that the heads read, in order.

        Layers with memory are subclasses of :class:`~foundation.policies.memory.MemoryLayer`.
        """
        raise TypeError(f"{type(self).__name__} does not define trunk")

    def _count_state(self) -> int:
        return sum(layer.state_size for layer in self._remembering)

    @cached_property
    def _remembering(self) -> list[MemoryLayer]:
        """The hidden layers with memory; looked up once, as every step asks for them."""
        return [layer for layer in self.trunk() if isinstance(layer, MemoryLayer)]

    state_size: int = cached_property(_count_state)  # pyright: ignore[reportAssignmentType]  # an int to its readers
    """Number of columns of the state; 0 without memory."""

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        return initial_state_of(self._remembering, num_envs, device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        return None if state is None else reset_state_of(self._remembering, state, dones)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        taps = self.make_taps()
        if taps is None and self.estimator is not None:
            taps = Taps([])
        features, _, state = run_layers(self.trunk(), self._normalized(obs), state, resets, sequence, taps=taps)
        output = self._heads(features)
        if taps is not None and self.tapped:
            output = output._replace(features=taps.side_by_side())
        if taps is not None and self.estimator is not None:
            output = output._replace(estimate=self.estimator.in_own_units(taps.output(self.estimator)))
        return output, state

    def update_normalizer(self, obs: torch.Tensor) -> None:
        """Take more observations into the normaliser. Shape: (..., num_obs), or without images."""
        if self.normalizer.mean.numel():  # else it reads images alone
            self.normalizer.update(self.normalizer_inputs(obs))

    def normalizer_inputs(self, obs: torch.Tensor) -> torch.Tensor:
        """Return what the normaliser is fitted to. Shape: (..., num_obs) to (num_rows, num_flat)."""
        size = self.normalizer.mean.numel()
        return obs[..., :size].reshape(-1, size).float()

    def _normalized(self, obs: torch.Tensor) -> torch.Tensor:
        """Return what the first hidden layer reads. Shape: (..., num_obs)."""
        return self.normalizer(obs)

    def _list_normalized(self, layers: Layers) -> str:
        """Append what :meth:`_normalized` computes."""
        return layers.module(self.normalizer, OBS, "normalizer")

    def named_layers(self) -> dict[str, nn.Module]:
        """Return the hidden layers by their names in the state_dict, those inside an ``nn.Sequential`` too."""
        names = {module: name for name, module in self.named_modules()}
        found = {}
        for layer in self.trunk():
            inner = list(layer.children()) if type(layer) is nn.Sequential else [layer]
            found |= {names[part]: part for part in inner}
        return found

    def list_layers(self, layers: Layers) -> None:
        """Append the normaliser, the hidden layers and the heads, by their names in the state_dict."""
        x = self._list_normalized(layers)
        names = {module: name for name, module in self.named_modules()}
        for layer in self.trunk():
            x = layers.module(layer, x, names[layer])
        layers.outputs["features"] = x
        layers.outputs |= self._list_heads(layers, x, layers.dense(x, "mean", self.mean), self, "")

    def _list_heads(self, layers: Layers, x: str, raw: str, heads: Heads, prefix: str) -> dict[str, str]:
        """Append output layers; return the values that are the outputs.

        Args:
            layers: Extended in place.
            x: The features that they read.
            raw: What ``heads.mean`` computes of them.
            heads: The layers.
            prefix: Of their names.
        """
        outputs = {"mean": raw}
        if self.cfg.distribution != "gaussian":
            outputs["mean"] = layers.activation(raw, f"{prefix}action", "tanh")
        if self.num_choices is not None:
            outputs["logits"] = raw
            outputs["mean"] = layers.choice(raw, self.choices)
        if heads.value is not None:
            outputs["value"] = layers.dense(x, f"{prefix}value", heads.value)
        if self.cfg.distribution != "gaussian":
            return outputs  # the standard deviation of a bounded distribution depends on its mean: no robot reads it
        if isinstance(heads.log_std, nn.Linear):
            raw_std = layers.dense(x, f"{prefix}log_std", heads.log_std)
            log_std = layers.clamp(raw_std, f"{prefix}log_std.clamp", *LOG_STD_RANGE)
            outputs["std"] = layers.activation(log_std, f"{prefix}std", "exp")
        elif heads.log_std is not None:
            std = heads.log_std.detach().clamp(*LOG_STD_RANGE).exp()
            constant = Constant(name=f"{prefix}std", inputs=(), shape=(self.num_actions,), value=std)
            outputs["std"] = layers.add(constant)
        return outputs

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return mean actions, for a student with memory those of an episode's first step.

        Shape: (..., num_obs) to (..., num_actions).
        """
        if self.state_size == 0:
            return self._actions(self.mean(run_layers(self.trunk(), self._normalized(obs), None, None, False)[0]))
        flat = obs.reshape(-1, self.num_obs)
        return self.step(flat)[0].mean.reshape(*obs.shape[:-1], self.num_actions)

    def describe(self) -> dict[str, Any]:
        """Return plain values from which :func:`~foundation.students.student_from_description` builds this student."""
        options = asdict(self.cfg)
        for run_only in OF_A_RUN:
            options.pop(run_only, None)
        return {"num_obs": self.num_obs, "num_actions": self.num_actions, **options}

    def is_described_by(self, saved: Mapping[str, Any]) -> bool:
        """Return whether a description is that of this architecture; settings that it lacks have their defaults.

        Args:
            saved: What :meth:`describe` returned, perhaps in an earlier version, which had fewer settings.
        """
        own = self.describe()
        defaults = asdict(type(self.cfg)())
        return {name: defaults.get(name) for name in own} | dict(saved) == own

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the hidden layers, input side first."""
        apart = {*self._head_layers(), *(() if self.estimator is None else self.estimator.modules())}
        return [m.out_features for m in self.modules() if isinstance(m, nn.Linear) and m not in apart]

    def _head_layers(self) -> list[nn.Module]:
        return [m for m in (self.mean, self.log_std, self.value) if isinstance(m, nn.Module)]

    def _heads(
        self, features: torch.Tensor, heads: Heads | None = None, raw_mean: torch.Tensor | None = None
    ) -> PolicyOutput:
        """Return the outputs of features.

        Args:
            features: The last hidden layer. Shape: (..., num_features).
            heads: Output layers. None: the student's own.
            raw_mean: Result of ``heads.mean``. None: it is computed. Shape: (..., num_actions).
        """
        heads = self if heads is None else heads
        raw_means: torch.Tensor = heads.mean(features) if raw_mean is None else raw_mean
        mean = self._actions(raw_means)
        std = None
        if heads.log_std is not None:
            raw = heads.log_std if isinstance(heads.log_std, nn.Parameter) else heads.log_std(features)
            std = raw.clamp(*LOG_STD_RANGE).exp().expand_as(mean)
        value = None if heads.value is None else heads.value(features)
        logits = None if self.cfg.num_choices is None else raw_means
        output = PolicyOutput(mean=mean, std=std, value=value, logits=logits, features=features)
        if std is None or self.cfg.distribution == "gaussian":
            return output
        return _squashed(output, raw_means, std) if self.cfg.distribution == "tanh" else _beta(output, std)

    def _actions(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the deterministic actions: the raw output, its tanh, or the best choices' indices as floats."""
        if self.cfg.distribution != "gaussian":
            return raw.tanh()
        return best_choices(raw, self.choices) if self.choices else raw


def hidden_layers(student: Student) -> list[nn.Module]:
    """Return the hidden layers in order, those inside an ``nn.Sequential`` one by one."""
    found: list[nn.Module] = []
    for layer in student.trunk():
        found += list(layer) if type(layer) is nn.Sequential else [layer]
    return found


def _squashed(output: PolicyOutput, mean: torch.Tensor, std: torch.Tensor) -> PolicyOutput:
    """Return the output of a Gaussian whose draws go through tanh.

    Args:
        output: Its mean is the action, tanh of the mean before.
        mean: Before tanh. Shape: (..., num_actions).
        std: Before tanh. Shape: (..., num_actions).
    """
    # The standard deviation of the action, to first order: that before tanh times the slope of tanh at the mean.
    slope = 1.0 - output.mean.square()
    return output._replace(std=std * slope, pre_tanh=torch.cat([mean, std], dim=-1))


def _beta(output: PolicyOutput, std: torch.Tensor) -> PolicyOutput:
    """Return the output of a Beta distribution on [-1, 1] with the output's mean.

    It is written by its mean and its concentration ``alpha + beta = 1 / std^2`` (Ferrari and Cribari-Neto 2004), so
    that the standard deviation of an action near 0 is about ``std``, and that of one near the bounds goes to zero.

    Args:
        output: Its mean is that of the distribution.
        std: Shape: (..., num_actions).
    """
    total = std.square().reciprocal()
    share = (0.5 + 0.5 * output.mean).clamp(MIN_SHARE, 1.0 - MIN_SHARE)
    deviation = 2.0 * (share * (1.0 - share) / (total + 1.0)).sqrt()
    concentration = torch.cat([share * total, (1.0 - share) * total], dim=-1)
    return output._replace(std=deviation, concentration=concentration)
