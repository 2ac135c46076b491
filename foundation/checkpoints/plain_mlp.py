"""A perceptron's bare state_dict, as ``torch.save(network.state_dict(), path)`` writes it: a Q-network, an actor.

The layers are those of ``*.weight`` and ``*.bias``, by any names, in the order of the file. The file holds neither the
meaning of the outputs nor the activation: the user gives both, and nothing is guessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from foundation.checkpoints.reading.assembler import dense, finish_actor_critic
from foundation.checkpoints.reading.loading import EXPORT_IT, Entries, LoadedPolicy, Source, linear_layers
from foundation.checkpoints.reading.outputs import OUTPUT_KINDS, distribution_of
from foundation.core.errors import UserError
from foundation.policies.actor_critic import ActorCritic, Trunk

KEYS: set[str] | None = None
"""None: which entries there may be is checked here."""
LAST = True
"""Asked after all other formats: their state_dicts are chains of layers too."""
NAMES = ("model_state_dict", "state_dict", "q_network", "q_net", "policy", "model", "network", "actor")
"""Entries of a checkpoint under which the state_dict may lie."""


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    return _find(checkpoint) is not None


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the policy."""
    found = _find(checkpoint)
    assert found is not None
    name, weights = found
    where = f"'{source.path}' ({name})" if name else f"'{source.path}'"
    weights = Entries(weights, where).take("")
    layers = linear_layers(_numbered(weights), where)
    kind = source.overrides.outputs
    activation = source.overrides.activation
    missing = [] if kind is not None else [f"distill.teacher.outputs={'|'.join(OUTPUT_KINDS)}"]
    if activation is None and len(layers) > 1:
        missing.append("--teacher_activation relu|elu|tanh|...")
    if missing or kind is None:
        sizes = " -> ".join(str(size) for size in [layers[0].in_features, *(layer.out_features for layer in layers)])
        raise UserError(
            f"{where} holds a perceptron's weights alone ({sizes}): give {' and '.join(missing)}. {EXPORT_IT} "
            "where it is more than dense layers."
        )
    activation = (activation or "identity").lower()
    network = ActorCritic(Trunk([*dense(layers[:-1], activation), layers[-1]]), distribution_of(kind))
    return finish_actor_critic(source, "plain state_dict", network, (activation, "override"), None)


def _find(checkpoint: Mapping[str, Any]) -> tuple[str, Mapping[str, torch.Tensor]] | None:
    """Return a perceptron's state_dict and the entry that it lies under, "" for the file itself."""
    for name in ("", *NAMES):
        weights = checkpoint.get(name) if name else checkpoint
        if isinstance(weights, Mapping) and _is_chain(weights):
            return name, weights
    return None


def _is_chain(weights: Mapping[str, Any]) -> bool:
    """Return whether tensors are dense layers, each of which reads what the one before gives."""
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        return False
    sizes = []
    for layer, parts in _layers(weights).items():
        weight = parts.get("weight")
        bias = parts.get("bias")
        if not layer or set(parts) != {"weight", "bias"} or weight is None or bias is None:
            return False
        if weight.dim() != 2 or bias.shape != weight.shape[:1]:
            return False
        sizes.append(tuple(weight.shape))
    return all(before[0] == after[1] for before, after in itertools.pairwise(sizes))


def _layers(weights: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of each layer, in the order of the file."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in weights.items():
        layer, _, part = str(name).rpartition(".")
        layers.setdefault(layer, {})[part] = value
    return layers


def _numbered(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the layers as a Sequential with activations between them does: ``0.weight``, ``2.weight``, ..."""
    numbered = {}
    for index, parts in enumerate(_layers(weights).values()):
        numbered |= {f"{2 * index}.{part}": value for part, value in parts.items()}
    return numbered
