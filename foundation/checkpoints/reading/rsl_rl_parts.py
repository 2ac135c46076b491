"""Build a policy from the parts of RSL-RL's checkpoints and exports: dense, recurrent, or with images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.assembler import (
    CHECKPOINT,
    activation_of,
    choose_distribution,
    compare_dims,
    finish,
    memory_of,
)
from foundation.checkpoints.reading.loading import (
    LoadedPolicy,
    Source,
    Tensors,
    build_normalizer,
    build_trunk,
    optional,
)
from foundation.core.errors import UserError
from foundation.policies.actor_critic import ActorCritic, Critic, Trunk
from foundation.policies.distribution import Deterministic
from foundation.policies.image_encoders import ImageEncoders, Shape, build_encoder

logger = logging.getLogger(__name__)

_REQUIRED = ("output_channels", "kernel_size")


@dataclass
class Parts:
    """One of RSL-RL's networks, as plain tensors by their names inside a layer."""

    body: Tensors
    """Dense layers: ``0.weight``, ``0.bias``, ..."""
    rnn: Tensors = field(default_factory=dict)
    """Recurrent layers: ``weight_ih_l0``, ..."""
    cnns: Tensors = field(default_factory=dict)
    """Encoders of images: ``<group>.0.weight``, ..."""
    normalizer: Tensors = field(default_factory=dict)
    """``_mean``, ``_std``, ..."""
    std: torch.Tensor | None = None
    """Standard deviation. Shape: (num_actions,)."""
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
    if part is None:
        return {}
    return {"": part} if isinstance(part, torch.Tensor) else part


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
    """Build one of RSL-RL's policies.

    Args:
        source: Where it is read from.
        layout: Name and version of the format, to be shown.
        role: ``actor`` or ``student``: its name in the run's config.
        actor: The policy's network.
        critic: The value network; it is used where it reads the same observations.
        activation: The value in the file itself.
        distribution: The value in the file itself.
    """
    if actor.cnns:
        return _assemble_with_images(source, layout, role, actor)
    chosen = activation_of(source, role) if activation is None else (activation, CHECKPOINT)
    trunk = build_trunk(actor.body, actor.rnn, actor.normalizer, chosen[0], f"'{source.path}' ({role})")
    if distribution is None:
        distribution = choose_distribution(source, role, trunk.head.out_features, actor.std, actor.log_std)
    _compare_with_config(source, role, trunk, trunk.normalizer is not None)
    groups = source.overrides.obs_groups or source.agent.obs_groups(role)
    value = None
    if critic is not None:
        value = optional(source, lambda: _value_trunk(source, trunk, groups, critic))
    return finish(
        source,
        layout,
        ActorCritic(trunk, distribution, None if value is None else Critic(value)),
        chosen,
        hidden_dims=trunk.hidden_dims,
        distribution=distribution,
        obs_groups=groups,
        clip_actions=source.agent.clip_actions(),
        obs_normalization=trunk.normalizer is not None,
        recurrence=memory_of(trunk.core),
        has_value=value is not None,
    )


def _value_trunk(source: Source, actor: Trunk, groups: list[str] | None, critic: Parts) -> Trunk | None:
    """Return the critic if it reads what the actor reads: the same groups, or, where none are known, the same size."""
    critic_groups = source.agent.obs_groups("critic")
    if groups is not None and critic_groups is not None and groups != critic_groups:
        return None
    activation = activation_of(source, "critic")[0]
    trunk = build_trunk(critic.body, critic.rnn, critic.normalizer, activation, f"'{source.path}' (critic)")
    return trunk if trunk.num_obs == actor.num_obs and trunk.head.out_features == 1 else None


def _compare_with_config(source: Source, role: str, trunk: Trunk, normalizes: bool) -> None:
    """Refuse a checkpoint that lacks the normaliser of its config; warn when the config has other sizes."""
    if not normalizes and source.agent.normalizes(role):
        message = f"'{source.path}' has no observation normaliser, but '{source.agent.path}' has one"
        if source.overrides.strict:
            raise UserError(f"{message}. Use the whole checkpoint.")
        logger.warning("%s. Observations are taken as they are.", message)
    stated = source.agent.option(role, "hidden_dims")
    if not isinstance(stated, list) or -1 not in stated:  # -1: of the size that comes in
        compare_dims(source, stated, trunk.hidden_dims)


def _assemble_with_images(source: Source, layout: str, role: str, parts: Parts) -> LoadedPolicy:
    """Build a policy that reads images, of its tensors and the ``cnn_cfg`` of the run's config; its critic is not read.

    Args:
        source: Where it is read from.
        layout: Name and version of the format, to be shown.
        role: ``actor`` or ``student``.
        parts: The network.
    """
    where = f"'{source.path}' ({role})"
    activation = activation_of(source, role)
    trunk = build_trunk(parts.body, parts.rnn, {}, activation[0], where)
    mean = parts.normalizer.get("_mean")
    normalizer = None if mean is None or not mean.numel() else build_normalizer(parts.normalizer, mean.numel(), where)
    distribution = choose_distribution(source, role, trunk.head.out_features, parts.std, parts.log_std)
    stated = source.overrides.obs_groups or source.agent.obs_groups(role)
    _compare_with_config(source, role, trunk, normalizer is not None or parts.normalizer != {})
    images = _image_groups(parts, stated, where)
    makers = {group: _maker(source, role, group, images, parts.cnns) for group in images}
    encoders = ImageEncoders(normalizer, makers, trunk.num_obs, str(source.path))
    network = ActorCritic(Trunk([encoders, *trunk.layers]), distribution)
    if source.overrides.image_shapes is not None:
        network.bind(source.overrides.image_shapes)
    policy = finish(
        source,
        layout,
        network,
        activation,
        hidden_dims=trunk.hidden_dims,
        distribution=distribution,
        clip_actions=source.agent.clip_actions(),
        obs_normalization=normalizer is not None,
        image_groups=images,
        image_shapes={group: list(shape) for group, shape in encoders.shapes.items()} or None,
    )
    return policy.with_groups(None if stated is None else [name for name in stated if name not in images] + images)


def _image_groups(parts: Parts, stated: list[str] | None, where: str) -> list[str]:
    """Return the groups that are images, in RSL-RL's order: that of its observation groups."""
    groups = sorted({key.split(".")[0] for key in parts.cnns})
    if stated is None:
        if len(groups) > 1:
            raise UserError(
                f"{where} encodes images of {', '.join(groups)}: give their order by distill.teacher.obs_groups."
            )
        return groups
    missing = [group for group in groups if group not in stated]
    if missing:
        raise UserError(f"{where} encodes images of '{missing[0]}', which its observation groups {stated} lack.")
    return [group for group in stated if group in groups]


def _maker(source: Source, role: str, group: str, groups: list[str], cnns: Tensors) -> Callable[[Shape], nn.Sequential]:
    """Return what builds one group's encoder, with its weights, once the image's shape is known."""
    options = _encoder_options(source, role, group)
    prefix = f"{group}."
    tensors = {key[len(prefix) :]: value for key, value in cnns.items() if key.startswith(prefix)}

    def make(shape: Shape) -> nn.Sequential:
        try:
            encoder = build_encoder(shape, options)
            encoder.load_state_dict(tensors)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"'{source.path}': the encoder of '{group}' does not fit images of {list(shape)} and the cnn_cfg in "
                f"'{source.agent.path}': {text}"
            ) from error
        return encoder

    return make


def _encoder_options(source: Source, role: str, group: str) -> dict[str, Any]:
    given = source.agent.option(role, "cnn_cfg")
    if isinstance(given, dict) and given and all(isinstance(value, dict) for value in given.values()):
        given = given.get(group)
    if not isinstance(given, dict) or any(given.get(name) is None for name in _REQUIRED):
        raise UserError(
            f"'{source.path}' reads images of '{group}', and the strides, padding and activation of its encoder are "
            "not in the weights: put the run's params/agent.yaml (with cnn_cfg) beside it."
        )
    return {name: value for name, value in given.items() if value is not None and name != "class_name"}
