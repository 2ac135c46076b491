"""What the formats of other libraries share: stated activations, checked layers, and the description for people."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.choices import override_activation
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, Tensors, linear_layers, logger
from foundation.core.errors import UserError, suggest
from foundation.policies.actor_critic import ActorCriticNetwork
from foundation.policies.distribution import Gaussian
from foundation.policies.mlp import activation_names, resolve_activation
from foundation.policies.teacher_outputs import ShapedActions


def pick_activation(source: Source, stated: Any, stated_by: str, known: bool = True) -> tuple[str, str]:
    """Return the activation of the hidden layers, and where that is known from.

    Args:
        source: Where the policy is read from.
        stated: What the checkpoint or the config beside it says; None for nothing.
        stated_by: Which of them.
        known: Whether a policy that states nothing is to be warned about.
    """
    if source.overrides.activation is not None:
        return override_activation(source, stated, str(source.path) if stated_by == "checkpoint" else stated_by)
    if stated is not None:
        name = str(stated).rsplit(".", 1)[-1].lower()
        name = "identity" if name in ("none", "linear") else name
        if name not in activation_names():
            file = source.path if stated_by == "checkpoint" else stated_by
            raise UserError(
                f"'{file}' names the activation '{stated}', which is not known. "
                f"{suggest(name, activation_names())} Give the right one: --teacher_activation "
                "(distill.teacher.activation)."
            )
        return name, stated_by
    if known:
        logger.warning(
            "'%s': the activation is not in the weights and no params/agent.yaml beside it names one; taking 'elu'. "
            "If the teacher acts badly, give its activation.",
            source.path,
        )
    return "elu", "default (not known)"


def dense(layers: list[nn.Linear], activation: str) -> nn.Sequential:
    """Return the layers with the activation after each."""
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [layer, resolve_activation(activation)]
    return nn.Sequential(*modules)


def single_linear(entries: Tensors, where: str, num_in: int | None = None) -> nn.Linear:
    """Return one linear layer of ``weight`` and ``bias``, checked against the size that it is to read."""
    if set(entries) != {"weight", "bias"}:
        raise UserError(f"{where} has {sorted(entries) or 'nothing'}, not 'weight' and 'bias'. The file is damaged.")
    layer = linear_layers({f"0.{name}": value for name, value in entries.items()}, where)[0]
    if num_in is not None and layer.in_features != num_in:
        raise UserError(f"{where} wants {layer.in_features} inputs and is given {num_in}. The file is damaged.")
    return layer


def gaussian(spread: torch.Tensor, num_actions: int, where: str) -> Gaussian:
    """Return Gaussian actions with a deviation that does not depend on the state. Shape: (num_actions,)."""
    if spread.shape != (num_actions,):
        raise UserError(f"{where}: its deviation has shape {list(spread.shape)} and its network {num_actions} actions.")
    return Gaussian(spread.float())


def expect(condition: bool, source: Source, message: str) -> None:
    """Refuse a checkpoint that lacks what its config says; warn when not strict."""
    if condition:
        return
    if source.overrides.strict:
        raise UserError(f"'{source.path}' {message}.")
    logger.warning("'%s' %s.", source.path, message)


def compare_dims(source: Source, stated: Any, found: list[int]) -> None:
    """Warn when the config beside the checkpoint has other hidden layers than the weights."""
    if isinstance(stated, list) and all(isinstance(size, int) for size in stated) and stated != found:
        logger.warning(
            "'%s' says hidden layers %s, but the weights in '%s' have %s: its activation may be wrong too.",
            source.agent.path,
            stated,
            source.path,
            found,
        )


def finish(
    source: Source,
    layout: str,
    network: ActorCriticNetwork,
    activation: tuple[str, str],
    normalizer: str | None,
    obs_groups: list[str] | None = None,
    clip_actions: float | None = None,
) -> LoadedPolicy:
    """Return the policy with its description.

    Args:
        source: Where it was read from.
        layout: Library and version, for people.
        network: The policy.
        activation: Of the hidden layers, and where it is known from.
        normalizer: The normaliser's formula, for people. None: there is none.
        obs_groups: Observation groups, where the config says them.
        clip_actions: Bound of the actions outside of the policy, where the config says it.
    """
    groups = source.overrides.obs_groups or obs_groups
    clip = source.overrides.clip_actions if source.overrides.clip_actions is not None else clip_actions
    trunk, distribution = network.actor, network.distribution
    core = "none"
    if trunk.core is not None:
        place = "after the dense layers" if len(trunk.encoder) else "before the dense layers"
        core = f"{trunk.core.kind} {trunk.core.hidden_size} x {trunk.core.num_layers}, {place}"
    sample = distribution(torch.zeros(1, trunk.head.out_features))[1]
    description = {
        "format": layout,
        "path": str(source.path),
        "num_obs": network.num_obs,
        "num_actions": network.num_actions,
        "num_choices": network.num_choices,
        "hidden_dims": trunk.hidden_dims,
        "activation": activation[0],
        "activation_from": activation[1],
        "obs_normalization": normalizer is not None and not normalizer.startswith("none"),
        "normalizer": normalizer,
        "recurrence": core,
        "distribution": distribution.name,
        "action_shape": distribution.describe() if isinstance(distribution, ShapedActions) else None,
        "has_std": sample is not None,
        "has_value": network.critic is not None,
        "obs_groups": groups,
        "clip_actions": clip,
        "agent_config": None if source.agent.path is None else str(source.agent.path),
    }
    return LoadedPolicy(network, trunk.hidden_dims, groups, clip, description)


def at(data: Any, *keys: Any) -> Any:
    """Return what lies under a path of keys in nested mappings and lists, or None."""
    for key in keys:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def section(data: Any, *keys: Any) -> dict[str, Any]:
    """Return the mapping that lies under a path of keys; an empty one where there is none."""
    found = at(data, *keys)
    return found if isinstance(found, dict) else {}


def number(value: Any, default: float) -> float:
    """Return a config's number, or the default where there is none."""
    given = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN is not itself
    return float(value) if given else default
