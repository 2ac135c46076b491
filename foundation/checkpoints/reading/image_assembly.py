"""RSL-RL's CNN models, put together from a checkpoint's tensors and the ``cnn_cfg`` of the run's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from foundation.checkpoints.reading.assembly import Parts, compare_with_config
from foundation.checkpoints.reading.choices import choose_activation, choose_distribution
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, Tensors, build_normalizer, build_tower
from foundation.core.errors import UserError
from foundation.policies.image_network import ImageNetwork, Shape, build_encoder
from foundation.policies.tower import TeacherNetwork

_REQUIRED = ("output_channels", "kernel_size")


def assemble_with_images(source: Source, layout: str, role: str, parts: Parts) -> LoadedPolicy:
    """Build the policy; its critic is not read.

    Args:
        source: Where it is read from.
        layout: Name and version of the format, for people.
        role: ``actor`` or ``student``.
        parts: The network.
    """
    where = f"'{source.path}' ({role})"
    activation, origin = choose_activation(source, role)
    tower = build_tower(parts.body, parts.rnn, {}, activation, where)
    mean = parts.normalizer.get("_mean")
    normalizer = None if mean is None or not mean.numel() else build_normalizer(parts.normalizer, mean.numel(), where)
    distribution = choose_distribution(source, role, tower.head.out_features, parts.std, parts.log_std)
    stated = source.overrides.obs_groups or source.agent.obs_groups(role)
    compare_with_config(source, role, tower, normalizer is not None or parts.normalizer != {})
    groups = sorted({key.split(".")[0] for key in parts.cnns})
    if stated is not None:  # RSL-RL encodes the images in the order of its observation groups
        missing = [group for group in groups if group not in stated]
        if missing:
            raise UserError(f"{where} encodes images of '{missing[0]}', which its observation groups {stated} lack.")
        groups = [group for group in stated if group in groups]
    elif len(groups) > 1:
        raise UserError(
            f"{where} encodes images of {', '.join(groups)}: give their order by distill.teacher.obs_groups."
        )
    makers = {group: _maker(source, role, group, groups, parts.cnns) for group in groups}
    network = ImageNetwork(TeacherNetwork(tower, distribution), normalizer, makers, str(source.path))
    if source.overrides.image_shapes is not None:
        network.bind(source.overrides.image_shapes)
    clip = source.overrides.clip_actions
    clip = clip if clip is not None else source.agent.clip_actions()
    ordered = None if stated is None else [group for group in stated if group not in groups] + groups
    description = {
        "format": layout,
        "path": str(source.path),
        "num_obs": network.num_obs or None,
        "num_actions": network.num_actions,
        "hidden_dims": tower.hidden_dims,
        "activation": activation,
        "activation_from": origin,
        "obs_normalization": normalizer is not None,
        "recurrence": "none",
        "distribution": distribution.name,
        "has_std": distribution.name != "deterministic" and getattr(distribution, "log", False) is not None,
        "has_value": False,
        "image_groups": groups,
        "image_shapes": {group: list(shape) for group, shape in network.shapes.items()} or None,
        "obs_groups": ordered,
        "clip_actions": clip,
        "agent_config": None if source.agent.path is None else str(source.agent.path),
    }
    return LoadedPolicy(network, tower.hidden_dims, ordered, clip, description)


def _maker(source: Source, role: str, group: str, groups: list[str], cnns: Tensors) -> Callable[[Shape], nn.Sequential]:
    """Return what builds one group's encoder, with its weights, once the image's shape is known."""
    options = _options(source, role, group, groups)
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


def _options(source: Source, role: str, group: str, groups: list[str]) -> dict[str, Any]:
    given = source.agent.option(role, "cnn_cfg")
    if isinstance(given, dict) and given and all(isinstance(value, dict) for value in given.values()):
        given = given.get(group)
    if not isinstance(given, dict) or any(given.get(name) is None for name in _REQUIRED):
        raise UserError(
            f"'{source.path}' reads images of '{group}', and the strides, padding and activation of its encoder are "
            "not in the weights: put the run's params/agent.yaml (with cnn_cfg) beside it."
        )
    return {name: value for name, value in given.items() if value is not None and name != "class_name"}
