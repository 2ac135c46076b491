"""Build a policy from a checkpoint's plain tensors: sizes are those of the weights, and no entry may be left over."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from foundation.checkpoints.reading.agent_config import AgentConfig
from foundation.config.distillation_cfg import OutputKind
from foundation.core.errors import UserError, suggest
from foundation.policies.actor_critic import Trunk
from foundation.policies.info import PolicyInfo
from foundation.policies.mlp import activation_names, resolve_activation
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore

logger = logging.getLogger(__name__)

DISTRIBUTIONS = ("gaussian", "heteroscedastic", "heteroscedastic_log", "beta", "deterministic", "categorical")

Tensors = Mapping[str, torch.Tensor]
Read = TypeVar("Read")

LEAVE_OUT = "Leave them out by distill.teacher.strict=false"
"""Advice where what is not understood cannot change the actions."""
RUN_IT = "Use the training checkpoint, or run the file as it is: distill.teacher.run_as_is=true"
"""Advice where a file that can be run is not understood."""
EXPORT_IT = (
    "Export the policy as TorchScript or ONNX, memory and normaliser inside, and run that as it is: "
    "distill.teacher.run_as_is=true"
)
"""Advice where the policy's network is of a kind that no rule reads."""

_WRAPPERS = (
    "module", "_orig_mod", "_module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
    "actor_critic",
)  # fmt: skip
"""Names that parallel, compiled and sharded models, and the algorithm that holds them, put before their entries."""
_BESIDE_THE_ACTOR = re.compile(
    r"(?:target_|old_|amp_)?(?:critic|value|q_net|qf\d*|vf|target|discriminator|disc|amp|rnd|curiosity|optimizer|"
    r"scheduler|lr|epoch|iter|log_alpha|ent_coef|log_ent_coef)(?:[_.\d]|$)|\w+_optimizer(?:[_.]|$)"
)
"""Names of what a training keeps that is not between observation and action."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "activation": ("a name", lambda value: isinstance(value, str)),
    "distribution": ("a name", lambda value: isinstance(value, str)),
    "outputs": ("q_values, logits or mean", lambda value: value in get_args(OutputKind)),
    "head": ("the id of a task", lambda value: isinstance(value, str)),
    "action_range": ("[low,high]", lambda value: _is_list(value) and len(value) == 2 and all(map(_is_number, value))),
    "obs_groups": ("[group,...]", lambda value: _is_list(value) and all(isinstance(group, str) for group in value)),
    "joint_order": ("[joint,...]", lambda value: _is_list(value) and all(isinstance(name, str) for name in value)),
    "clip_actions": ("a number", _is_number),
    "image_shapes": ("{group: [channels,height,width]}", lambda value: isinstance(value, Mapping)),
    "agent_config": ("a path", lambda value: isinstance(value, str | Path)),
    "strict": ("true or false", lambda value: isinstance(value, bool)),
    "run_as_is": ("true or false", lambda value: isinstance(value, bool)),
    "num_obs": ("a positive integer", lambda value: _is_count(value)),
    "input_sizes": ("[size,...]", lambda value: _is_list(value) and bool(value) and all(map(_is_count, value))),
}
"""What each override must be, for the message, and the check."""


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


@dataclass(frozen=True)
class Overrides:
    """What a user may set about a checkpoint; it takes precedence over the checkpoint's own config."""

    activation: str | None = None
    """Activation of the hidden layers."""
    distribution: str | None = None
    """gaussian | heteroscedastic | heteroscedastic_log | beta | deterministic | categorical."""
    outputs: str | None = None
    """q_values | logits | mean: meaning of raw outputs, where the file does not state it."""
    head: str | None = None
    """Id, or gym id, of the task whose head is read, of a student of several tasks."""
    action_range: list[float] | None = None
    """``[low, high]`` of actions that the policy scales or clips to their range."""
    obs_groups: list[str] | None = None
    """Observation groups of the actor, concatenated in order."""
    joint_order: list[str] | None = None
    """Joints in the policy's order; empty: that of whatever environment it acts in."""
    clip_actions: float | None = None
    """Bound of the actions."""
    image_shapes: dict[str, list[int]] | None = None
    """Channels, height and width of each observation group that is images, for use without an environment."""
    agent_config: str | None = None
    """An ``agent.yaml`` to use instead of the one beside the checkpoint."""
    strict: bool = True
    """Refuse a checkpoint with entries that are not understood (off: warn)."""
    run_as_is: bool = False
    """Run a TorchScript or ONNX policy by its own runtime, whatever its code does, instead of reading its layers."""
    num_obs: int | None = None
    """Number of observations of a policy that is run as it is, where its file does not state it."""
    input_sizes: list[int] | None = None
    """Sizes of its observation inputs, in order, where it has several and its file does not state them."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Overrides:
        """Check names and values."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"unknown teacher override '{name}'. {suggest(name, known)}")
        overrides = cls(**values)
        for name, value in values.items():
            expected, fits = _EXPECTED[name]
            if value is not None and not fits(value):
                raise UserError(f"distill.teacher.{name} must be {expected}, got {str(value)[:80]!r}")
        for name in ("num_obs", "input_sizes"):
            if getattr(overrides, name) is not None and not overrides.run_as_is:
                raise UserError(
                    f"distill.teacher.{name} goes with distill.teacher.run_as_is=true: other files state it."
                )
        if overrides.activation is not None and overrides.activation.lower() not in activation_names():
            near = suggest(overrides.activation, activation_names())
            raise UserError(f"unknown teacher activation '{overrides.activation}'. {near}")
        if overrides.distribution is not None and overrides.distribution not in DISTRIBUTIONS:
            near = suggest(overrides.distribution, DISTRIBUTIONS)
            raise UserError(f"unknown teacher distribution '{overrides.distribution}'. {near}")
        bounds = overrides.action_range
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise UserError(f"the teacher's action_range is {list(bounds)}: it must be [low, high] with low < high")
        return overrides


@dataclass
class Source:
    """Where a policy is read from, and what is known about it besides its weights."""

    path: Path
    """The checkpoint."""
    overrides: Overrides
    """What the user has set."""
    agent: AgentConfig
    """The run's config."""
    heard: set[str] = field(default_factory=set)
    """Overrides that the reader has asked for by :meth:`given`: the others have no effect."""

    def given(self, name: Literal["distribution", "action_range"]) -> Any:
        """Return an override (None: not set), where it would decide."""
        self.heard.add(name)
        return getattr(self.overrides, name)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy read from a file."""

    network: PolicyNetwork
    """Acts."""
    info: PolicyInfo
    """What was understood."""

    def with_groups(self, obs_groups: list[str] | None) -> LoadedPolicy:
        """Return the policy with its observation groups in another order."""
        return replace(self, info=replace(self.info, obs_groups=obs_groups))


class Entries:
    """The entries of a state_dict, taken one by one; what is left over was not understood."""

    def __init__(self, tensors: object, where: str) -> None:
        """Take a copy of the mapping.

        Args:
            tensors: A state_dict.
            where: The checkpoint's path and the state_dict's name, for errors.
        """
        if not isinstance(tensors, Mapping) or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
            raise UserError(f"{where} is not a state_dict of tensors. Is this a checkpoint of a policy?")
        tensors = unwrapped(tensors)
        check_floating(tensors, where)
        self._left = dict(tensors)
        self.where = where

    def take(self, prefix: str) -> dict[str, torch.Tensor]:
        """Remove and return the entries under a prefix, without it."""
        found = {key: value for key, value in self._left.items() if key.startswith(prefix)}
        for key in found:
            del self._left[key]
        return {key[len(prefix) :]: value for key, value in found.items()}

    def take_one(self, *names: str) -> torch.Tensor | None:
        """Remove and return the first of these entries that is there."""
        for name in names:
            if name in self._left:
                return self._left.pop(name)
        return None

    def finish(self, strict: bool) -> None:
        """Refuse (or, when not strict, warn about) entries that have not been read."""
        report_unknown(sorted(self._left), self.where, strict)


def optional(source: Source, read: Callable[[], Read | None]) -> Read | None:
    """Return a critic, or None where it cannot be read: acting needs none.

    Args:
        source: Where it is read from.
        read: Reads it.
    """
    try:
        return read()
    except (UserError, KeyError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        logger.info("'%s': its critic is not read (%s), so that it gives no value.", source.path, reason)
        return None


def report_unknown(names: list[str], where: str, strict: bool) -> None:
    """Refuse, or warn about, entries that were not understood.

    The refusal says how to leave them out only where no layer between observation and action can be among them.
    """
    if not names:
        return
    shown = ", ".join(f"'{name}'" for name in names[:4]) + (", ..." if len(names) > 4 else "")
    if strict and all(_BESIDE_THE_ACTOR.match(name) for name in names):
        raise UserError(f"{where} has entries that are not understood: {shown}. {LEAVE_OUT}.")
    if strict:
        raise UserError(
            f"{where} has entries that are not understood and may be layers that its actions depend on: {shown}. "
            f"{EXPORT_IT}."
        )
    logger.warning(
        "%s has entries that are not understood and may change the actions: %s. They are ignored.", where, shown
    )


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state_dict without the names that wrappers put before all that they wrap.

    ``module.actor.0.weight`` of a parallel model and ``actor._orig_mod.0.weight`` of a compiled one become
    ``actor.0.weight``; a wrapper's name stays where anything lies beside it.

    Args:
        tensors: A state_dict.
    """
    paths = {name: tuple(str(name).split(".")) for name in tensors}
    beside: dict[tuple[str, ...], set[str]] = {}
    for path in paths.values():
        for depth, part in enumerate(path):
            beside.setdefault(path[:depth], set()).add(part)
    alone = {place for place, names in beside.items() if len(names) == 1}
    plain = {}
    for name, path in paths.items():
        kept = [
            part
            for depth, part in enumerate(path[:-1])
            if part not in _WRAPPERS or (part != "_orig_mod" and path[:depth] not in alone)
        ]
        plain[".".join([*kept, path[-1]])] = tensors[name]
    return plain if len(plain) == len(tensors) else dict(tensors)


def check_floating(tensors: Tensors, where: str) -> None:
    """Refuse weights that are integers, such as quantised ones without their scale; a count is one number.

    Args:
        tensors: Weights by name.
        where: What to name in errors.
    """
    for name, value in tensors.items():
        if not value.is_floating_point() and value.numel() > 1:
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{where} has {kind} numbers in '{name}', which are no weights; save float32 ones.")


def build_trunk(body: Tensors, rnn: Tensors, normalizer: Tensors, activation: str, where: str) -> Trunk:
    """Build one network from its tensors.

    Args:
        body: ``0.weight``, ``0.bias``, ``2.weight``, ...
        rnn: ``weight_ih_l0``, ...; empty for no memory.
        normalizer: ``_mean``, ``_std``, ...; empty for none.
        activation: Of the hidden layers.
        where: What to name in errors.
    """
    linears = linear_layers(body, where)
    core = recurrent_core(rnn, where) if rnn else None
    num_obs = core.rnn.input_size if core is not None else linears[0].in_features
    if core is not None and linears[0].in_features != core.hidden_size:
        raise UserError(
            f"{where}: the recurrent layers give {core.hidden_size} numbers and the first dense layer expects "
            f"{linears[0].in_features}. The file is corrupt."
        )
    layers: list[nn.Module] = [] if core is None else [core]
    for linear in linears[:-1]:
        layers += [linear, resolve_activation(activation)]
    return Trunk([*layers, linears[-1]], build_normalizer(normalizer, num_obs, where))


def linear_layers(body: Tensors, where: str) -> list[nn.Linear]:
    """Build the dense layers of ``0.weight``, ``0.bias``, ``2.weight``, ..., checked to fit together."""
    check_floating(body, where)
    indices = sorted({int(key.split(".")[0]) for key in body if re.fullmatch(r"\d+\.(weight|bias)", key)})
    expected = {f"{index}.{kind}" for index in indices for kind in ("weight", "bias")}
    if set(body) != expected or indices != list(range(0, 2 * len(indices), 2)) or not indices:
        odd = sorted(set(body) ^ expected)[:3] or [f"layers {indices}"]
        raise UserError(f"{where} is not a plain multi-layer perceptron (see {', '.join(map(str, odd))}).")
    layers: list[nn.Linear] = []
    for index in indices:
        weight = body[f"{index}.weight"]
        bias = body[f"{index}.bias"]
        if weight.dim() != 2 or bias.shape != weight.shape[:1] or 0 in weight.shape:
            raise UserError(f"{where}: layer {index} has weight {list(weight.shape)} and bias {list(bias.shape)}.")
        if layers and layers[-1].out_features != weight.shape[1]:
            given = layers[-1].out_features
            raise UserError(f"{where}: layer {index} expects {weight.shape[1]} inputs, the one before gives {given}.")
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(linear)
    return layers


def recurrent_core(rnn: Tensors, where: str) -> RecurrentCore:
    """Build the recurrent layers of ``weight_ih_l0``, ...; a GRU and an LSTM differ in their sizes."""
    check_floating(rnn, where)
    first = rnn.get("weight_ih_l0")
    hidden = rnn.get("weight_hh_l0")
    if first is None or hidden is None or first.dim() != 2 or hidden.dim() != 2 or 0 in (*first.shape, *hidden.shape):
        raise UserError(f"{where}: its recurrent layers lack 'weight_ih_l0' or 'weight_hh_l0'. The file is corrupt.")
    size = hidden.shape[1]
    kind = {3 * size: "gru", 4 * size: "lstm"}.get(first.shape[0])
    if kind is None:
        raise UserError(
            f"{where}: recurrent weights {list(first.shape)}, {list(hidden.shape)} are neither GRU nor LSTM."
        )
    layers = sum(1 for key in rnn if key.startswith("weight_ih_l"))
    core = RecurrentCore(kind, first.shape[1], size, layers)
    try:
        core.rnn.load_state_dict({key: value.float() for key, value in rnn.items()})
    except RuntimeError as error:
        raise UserError(
            f"{where}: its recurrent layers do not fit together: {' '.join(str(error).split())[:200]}"
        ) from error
    return core


def build_normalizer(entries: Tensors, num_obs: int, where: str) -> ObsNormalizer | None:
    """Build a normaliser from its tensors; none without any.

    Args:
        entries: ``_mean``, ``_std``, ...
        num_obs: Number of observations.
        where: What to name in errors.
    """
    if not entries:
        return None
    check_floating(entries, where)
    mean = entries.get("_mean")
    std = entries.get("_std")
    var = entries.get("_var")
    known = {"_mean", "_std", "_var", "count"}
    if mean is None or (std is None and var is None) or set(entries) - known:
        raise UserError(f"{where}: its observation normaliser has entries {sorted(entries)}, not '_mean' and '_std'.")
    std = var.sqrt() if std is None else std  # type: ignore[union-attr]  # one of the two is there
    if mean.numel() != num_obs or std.numel() != num_obs:
        raise UserError(
            f"{where}: its normaliser has {mean.numel()} observations and its first layer {num_obs}. "
            "The file mixes two networks."
        )
    if bool((std < 0).any()) or (var is not None and not torch.allclose(var.sqrt(), std, rtol=1e-3, atol=1e-5)):
        raise UserError(f"{where}: its normaliser's '_std' is not the square root of its '_var'. The file is corrupt.")
    normalizer = ObsNormalizer(num_obs)
    rows = entries.get("count", torch.ones(()))
    if rows.numel() != 1:
        raise UserError(f"{where}: its normaliser's 'count' has {rows.numel()} numbers, not one. The file is corrupt.")
    normalizer.set_moments(mean.float(), std.float(), max(1.0, float(rows)))
    return normalizer
