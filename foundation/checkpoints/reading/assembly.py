"""RSL-RL's actor and critic, whatever their layout in the file, put together as one policy."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch

from foundation.checkpoints.reading.choices import choose_activation, choose_distribution
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, Tensors, build_tower, logger, optional
from foundation.core.errors import UserError
from foundation.policies.distribution import Deterministic
from foundation.policies.tower import TeacherNetwork, Tower


@dataclass
class Parts:
    """One network of a checkpoint, as plain tensors by their names inside a layer."""

    body: Tensors
    """Dense layers: ``0.weight``, ``0.bias``, ..."""
    rnn: Tensors = field(default_factory=dict)
    """Recurrent layers: ``weight_ih_l0``, ..."""
    cnns: Tensors = field(default_factory=dict)
    """Encoders of images: ``<group>.0.weight``, ..."""
    normalizer: Tensors = field(default_factory=dict)
    """``_mean``, ``_std``, ..."""
    std: torch.Tensor | None = None
    """Deviation. Shape: (num_actions,)."""
    log_std: torch.Tensor | None = None
    """Its logarithm. Shape: (num_actions,)."""


def merge(newer: Parts, older: Parts, source: Source, name: str) -> Parts:
    """Return what a file says in the layouts of two versions of the library, refused where they differ.

    Args:
        newer: One of them.
        older: The other; what only it has is taken from it.
        source: Where they are read from.
        name: The entry that ``newer`` is read from.
    """
    for part in ("body", "rnn", "normalizer", "std", "log_std"):
        one, other = (_by_name(getattr(parts, part)) for parts in (newer, older))
        shared = one.keys() & other.keys()
        differ = [key for key in shared if one[key].shape != other[key].shape or not torch.equal(one[key], other[key])]
        if differ or (one and other and part in ("body", "rnn") and one.keys() != other.keys()):
            raise UserError(
                f"'{source.path}' holds two policies that differ in their {part}: '{name}' and 'model_state_dict'. "
                "Leave the one that is to be read."
            )
    given = {part.name: getattr(newer, part.name) for part in fields(Parts)}
    return Parts(**{name: getattr(older, name) if _is_empty(value) else value for name, value in given.items()})


def _by_name(part: Tensors | torch.Tensor | None) -> Tensors:
    return {} if part is None else {"": part} if isinstance(part, torch.Tensor) else part


def _is_empty(part: Tensors | torch.Tensor | None) -> bool:
    return part is None or (not isinstance(part, torch.Tensor) and not part)


def assemble(
    source: Source,
    layout: str,
    role: str,
    actor: Parts,
    critic: Parts | None = None,
    activation: str | None = None,
    distribution: Deterministic | None = None,
) -> LoadedPolicy:
    """Build the policy.

    Args:
        source: Where it is read from.
        layout: Name and version of the format, for people.
        role: ``actor`` or ``student``: its name in the run's config.
        actor: The policy's network.
        critic: The value network; it is used where it reads the same observations.
        activation: Where the file itself says it.
        distribution: Where the file itself says it.
    """
    origin = "checkpoint"
    if activation is None:
        activation, origin = choose_activation(source, role)
    tower = build_tower(actor.body, actor.rnn, actor.normalizer, activation, f"'{source.path}' ({role})")
    if distribution is None:
        distribution = choose_distribution(source, role, tower.head.out_features, actor.std, actor.log_std)
    compare_with_config(source, role, tower, tower.normalizer is not None)
    groups = source.overrides.obs_groups or source.agent.obs_groups(role)
    value_tower = None
    if critic is not None:
        value_tower = optional(source, lambda: _value_tower(source, tower, groups, critic))
    network = TeacherNetwork(tower, distribution, value_tower)
    clip = source.overrides.clip_actions
    clip = clip if clip is not None else source.agent.clip_actions()
    description = {
        "format": layout,
        "path": str(source.path),
        "num_obs": network.num_obs,
        "num_actions": network.num_actions,
        "hidden_dims": tower.hidden_dims,
        "activation": activation,
        "activation_from": origin,
        "obs_normalization": tower.normalizer is not None,
        "recurrence": _recurrence(tower),
        "distribution": distribution.name,
        "has_std": network.distribution.name != "deterministic" and getattr(distribution, "log", False) is not None,
        "has_value": value_tower is not None,
        "obs_groups": groups,
        "clip_actions": clip,
        "agent_config": None if source.agent.path is None else str(source.agent.path),
    }
    return LoadedPolicy(network, tower.hidden_dims, groups, clip, description)


def _value_tower(source: Source, actor: Tower, groups: list[str] | None, critic: Parts) -> Tower | None:
    """Return the critic if it reads what the actor reads: the same groups, or, where none are known, the same size."""
    critic_groups = source.agent.obs_groups("critic")
    if groups is not None and critic_groups is not None and groups != critic_groups:
        return None
    activation = choose_activation(source, "critic")[0]
    tower = build_tower(critic.body, critic.rnn, critic.normalizer, activation, f"'{source.path}' (critic)")
    return tower if tower.num_obs == actor.num_obs and tower.head.out_features == 1 else None


def compare_with_config(source: Source, role: str, tower: Tower, normalizes: bool) -> None:
    """Refuse a checkpoint that lacks the normaliser of its config; warn when the config has other sizes."""
    if not normalizes and source.agent.normalizes(role):
        message = (
            f"'{source.path}' has no observation normaliser, but '{source.agent.path}' says it was trained with one"
        )
        if source.overrides.strict:
            raise UserError(f"{message}. Use the whole checkpoint.")
        logger.warning("%s. Observations are taken as they are.", message)
    stated = source.agent.option(role, "hidden_dims")
    if isinstance(stated, list) and stated and -1 not in stated and list(stated) != tower.hidden_dims:
        logger.warning(
            "'%s' says hidden_dims=%s, but the weights in '%s' have %s: its activation and groups may be wrong too.",
            source.agent.path,
            stated,
            source.path,
            tower.hidden_dims,
        )


def _recurrence(tower: Tower) -> str:
    if tower.core is None:
        return "none"
    return f"{tower.core.kind} {tower.core.hidden_size} x {tower.core.num_layers}"
