"""Write a policy as an RSL-RL checkpoint: Isaac Lab's ``play.py`` plays it, RSL-RL's PPO can train it further."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from torch import nn

from foundation.core.errors import UserError, suggest
from foundation.core.files import atomic_torch_save, atomic_write
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.distribution import Choices, Deterministic, Gaussian, ShapedActions
from foundation.policies.mlp import activation_class_names
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore
from foundation.students.base import LOG_STD_RANGE, Student
from foundation.students.mlp import StudentPolicy
from foundation.students.recurrent import RecurrentStudent

logger = logging.getLogger(__name__)

LAYOUTS = ("3", "5")
"""Releases of RSL-RL, by their first number, whose layout can be written."""
_RSL_RL_NAMES = {"silu": "swish", "celu": "crelu", "leaky_relu": "lrelu"}

Tensors = dict[str, torch.Tensor]


@dataclass
class _Exported:
    """A student's parts by the names that every release has for what is inside them."""

    body: Tensors
    value: Tensors
    rnn: Tensors
    normalizer: Tensors
    value_rnn: Tensors
    value_normalizer: Tensors
    hidden_dims: list[int]
    value_dims: list[int]
    activation: str
    std: torch.Tensor
    heteroscedastic: bool
    recurrence: dict[str, Any]


def write_rsl_rl(
    policy: PolicyNetwork,
    path: str | Path,
    layout: str = "5",
    obs_groups: Sequence[str] = ("policy",),
    std: float = 0.1,
    clip_actions: float | None = None,
) -> None:
    """Write a policy as ``path`` with its ``params/agent.yaml`` beside it.

    Args:
        policy: A student that is an MLP, or a GRU or LSTM without dense layers before the recurrent ones; or a policy
            of RSL-RL's kind.
        path: Where, such as ``model_0.pt``.
        layout: First number of the RSL-RL release that is to read it.
        obs_groups: Observation groups that the student reads.
        std: Standard deviation of a deterministic student's actions, for PPO to explore with.
        clip_actions: Bound that a runner clips actions to. None: that of the policy's own, where it has one.
    """
    checkpoint, config = to_rsl_rl(policy, layout, obs_groups, std)
    if clip_actions is not None:
        own = config.get("clip_actions")
        config["clip_actions"] = clip_actions if own is None else min(own, clip_actions)
    config_path = Path(path).parent / "params" / "agent.yaml"

    def write_config(file: BinaryIO) -> None:
        file.write(yaml.safe_dump(config, sort_keys=False).encode())

    atomic_write(config_path, write_config)
    atomic_torch_save(checkpoint, path)


def to_rsl_rl(
    policy: PolicyNetwork, layout: str = "5", obs_groups: Sequence[str] = ("policy",), std: float = 0.1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an RSL-RL checkpoint and the entries of the agent config that go with it.

    The critic starts from the student's hidden layers; its last layer is the student's value head, or zero.

    Args:
        policy: A student that is an MLP, or a GRU or LSTM without dense layers before the recurrent ones; or a policy
            of RSL-RL's kind.
        layout: First number of the RSL-RL release that is to read it.
        obs_groups: Observation groups that the student reads.
        std: Standard deviation of a deterministic student's actions.
    """
    if layout not in LAYOUTS:
        raise UserError(f"cannot write RSL-RL layout '{layout}'. {suggest(layout, LAYOUTS)}")
    if isinstance(policy, Student):
        parts = _export(policy, std)
    elif isinstance(policy, ActorCritic) and _obstacle(policy) == "":
        parts = _export_plain(policy, std)
    else:
        raise UserError(
            f"RSL-RL has no network like this policy ({_obstacle(policy)}): its policies are a normaliser, recurrent "
            "layers and dense ones with one activation, and plain actions. Write it as onnx, torchscript or npz."
        )
    if layout == "3" and parts.heteroscedastic:
        raise UserError("a standard deviation that depends on the state needs RSL-RL layout '5'.")
    checkpoint, config = (_layout_3 if layout == "3" else _layout_5)(parts, list(obs_groups))
    bound = _bound(policy.distribution) if isinstance(policy, ActorCritic) else None
    return checkpoint, config if bound is None else {**config, "clip_actions": bound}


def _obstacle(policy: PolicyNetwork) -> str:
    """Return what RSL-RL's networks do not have of a policy's, "" where they have all of it."""
    if not isinstance(policy, ActorCritic):
        return type(policy).__name__
    distribution = policy.distribution
    actor = policy.actor
    if isinstance(distribution, Choices):
        return "discrete actions"
    if isinstance(distribution, ShapedActions) and _bound(distribution) is None:
        return "actions that are squashed, or bounded each by its own range"
    if policy.normalizer is not None or not isinstance(actor.normalizer, ObsNormalizer | None):
        return "observations that are clipped as they are normalised"
    if actor.encodes_before_core:
        return "dense layers before the recurrent ones"
    if not actor.is_plain:
        return "images, skips, layer normalisation, or a learned initial memory"
    return ""


def _bound(distribution: Deterministic) -> float | None:
    """Return the one bound of all actions, which RSL-RL's runner keeps (``clip_actions``). None: there is not one."""
    if not isinstance(distribution, ShapedActions) or distribution.low is None or distribution.high is None:
        return None
    bound = float(distribution.high.max())
    symmetric = bool((distribution.high == bound).all() and (distribution.low == -bound).all())
    moved = bool((distribution.scale != 1.0).any() or (distribution.shift != 0.0).any())
    return bound if symmetric and not moved and distribution.squash is None else None


def _export(student: Student, std: float) -> _Exported:
    if isinstance(student, StudentPolicy):
        rnn = {}
        recurrence = {}
    elif isinstance(student, RecurrentStudent) and not len(student.encoder) and student.core.initial is None:
        rnn = dict(student.core.rnn.state_dict())
        core = student.core
        recurrence = {"rnn_type": core.kind, "rnn_hidden_dim": core.hidden_size, "rnn_num_layers": core.num_layers}
    else:
        raise UserError(
            f"RSL-RL has no network like student '{student.cfg.name}': it takes an MLP, or a GRU or LSTM with "
            "encoder_dims=[] and learn_initial_state=false."
        )
    if student.cfg.num_choices is not None:
        raise UserError("RSL-RL's policies have continuous actions; this student chooses among discrete ones.")
    if student.cfg.distribution != "gaussian":
        raise UserError(
            f"RSL-RL's policies end in a linear layer; this student's actions are of distribution="
            f"{student.cfg.distribution}: write it as onnx, torchscript or npz."
        )
    body = dict(student.body.state_dict())
    if not body:
        raise UserError("RSL-RL's networks have at least one hidden layer; this student has hidden_dims=[].")
    last = len(student.body)
    heteroscedastic = isinstance(student.log_std, nn.Linear)
    heads = [student.mean, student.log_std] if isinstance(student.log_std, nn.Linear) else [student.mean]
    value = student.value
    zero = torch.zeros(1, student.mean.in_features)
    scale = student.log_std.clamp(*LOG_STD_RANGE).exp() if isinstance(student.log_std, nn.Parameter) else None
    activation = str(getattr(student.cfg, "activation", "elu")).lower()
    return _Exported(
        body=body | _last_layer(last, [h.weight for h in heads], [h.bias for h in heads]),
        value=body | _last_layer(last, [zero if value is None else value.weight],
                                 [zero[:, 0] if value is None else value.bias]),
        rnn=rnn,
        normalizer=_normalizer(student.normalizer),
        value_rnn=rnn,
        value_normalizer=_normalizer(student.normalizer),
        value_dims=[layer.out_features for layer in student.body if isinstance(layer, nn.Linear)],
        hidden_dims=[layer.out_features for layer in student.body if isinstance(layer, nn.Linear)],
        activation=_RSL_RL_NAMES.get(activation, activation),
        std=torch.full((student.num_actions,), std) if scale is None else scale,
        heteroscedastic=heteroscedastic,
        recurrence=recurrence,
    )  # fmt: skip


def _last_layer(index: int, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> Tensors:
    return {f"{index}.weight": torch.cat(weights), f"{index}.bias": torch.cat(biases)}


def _export_plain(policy: ActorCritic, std: float) -> _Exported:
    """Return the parts of a policy of RSL-RL's kind; a critic that RSL-RL lacks begins as the actor, giving 0."""
    actor = policy.actor
    distribution = policy.distribution
    if isinstance(distribution, ShapedActions):
        distribution = distribution.inner  # its bound is the runner's
    if type(distribution) not in (Deterministic, Gaussian):
        raise UserError(f"a policy with {distribution.name} actions is not written as RSL-RL's checkpoint.")
    if not actor.hidden_dims:
        raise UserError("RSL-RL's networks have at least one hidden layer; this policy has none.")
    critic = None if policy.critic is None else policy.critic.trunk
    if critic is not None and (_recurrence(critic) != _recurrence(actor) or not critic.is_plain):
        critic = None  # the releases have one setting for both memories
    if policy.critic is not None and (critic is None or policy.critic.scaler is not None):
        logger.info("RSL-RL has no critic like this policy's: the critic is written as one that gives 0.")
        critic = None
    value = actor if critic is None else critic
    body = _dense_tensors(actor)
    value_body = _dense_tensors(value)
    if critic is None:
        last = max(int(name.partition(".")[0]) for name in value_body)
        weight = value_body[f"{last}.weight"]
        value_body |= _last_layer(last, [weight.new_zeros(1, weight.shape[1])], [weight.new_zeros(1)])
    return _Exported(
        body=body,
        value=value_body,
        rnn=_recurrent_tensors(actor),
        normalizer=_normalizer(actor.normalizer),
        value_rnn=_recurrent_tensors(value),
        value_normalizer=_normalizer(value.normalizer),
        hidden_dims=actor.hidden_dims,
        value_dims=value.hidden_dims,
        activation=_activation(actor),
        std=distribution.std if isinstance(distribution, Gaussian) else torch.full((policy.num_actions,), std),
        heteroscedastic=False,
        recurrence=_recurrence(actor),
    )


def _recurrence(trunk: Trunk) -> dict[str, Any]:
    core = trunk.core
    if core is None:
        return {}
    return {"rnn_type": core.kind, "rnn_hidden_dim": core.hidden_size, "rnn_num_layers": core.num_layers}


def _dense_tensors(trunk: Trunk) -> Tensors:
    """Return the dense layers' tensors, numbered as in a Sequential with an activation after each but the last."""
    dense = [layer for layer in trunk.layers if isinstance(layer, nn.Linear)]
    tensors: Tensors = {}
    for index, layer in enumerate(dense):
        tensors |= {f"{2 * index}.weight": layer.weight, f"{2 * index}.bias": layer.bias}
    return tensors


def _recurrent_tensors(trunk: Trunk) -> Tensors:
    return {} if trunk.core is None else dict(trunk.core.rnn.state_dict())


def _activation(trunk: Trunk) -> str:
    kinds = {type(layer).__name__ for layer in trunk.layers if not isinstance(layer, nn.Linear | RecurrentCore)}
    names = activation_class_names()
    if len(kinds) != 1 or not kinds <= set(names):
        raise UserError(f"RSL-RL's networks have one activation; this policy has {', '.join(sorted(kinds)) or 'none'}.")
    name = names[kinds.pop()]
    return _RSL_RL_NAMES.get(name, name)


def _normalizer(normalizer: nn.Module | None) -> Tensors:
    if not isinstance(normalizer, ObsNormalizer) or not bool(normalizer.count > 0):
        return {}
    mean = normalizer.mean.unsqueeze(0)
    var = normalizer.var.unsqueeze(0)
    return {"_mean": mean, "_var": var, "_std": var.sqrt(), "count": normalizer.count.long()}


def _layout_3(parts: _Exported, groups: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    normalized = bool(parts.normalizer)
    model = {
        "std": parts.std,
        **_prefixed("memory_a.rnn.", parts.rnn),
        **_prefixed("memory_c.rnn.", parts.value_rnn),
        **_prefixed("actor.", parts.body),
        **_prefixed("critic.", parts.value),
        **_prefixed("actor_obs_normalizer.", parts.normalizer),
        **_prefixed("critic_obs_normalizer.", parts.value_normalizer),
    }
    policy = {
        "class_name": "ActorCriticRecurrent" if parts.rnn else "ActorCritic",
        "actor_hidden_dims": parts.hidden_dims,
        "critic_hidden_dims": parts.value_dims,
        "activation": parts.activation,
        "actor_obs_normalization": normalized,
        "critic_obs_normalization": bool(parts.value_normalizer),
        "noise_std_type": "scalar",
        "init_noise_std": float(parts.std.mean()),
        **parts.recurrence,
    }
    return (
        {"model_state_dict": _plain(model), **_training(model)},
        {"policy": policy, "obs_groups": {"policy": groups, "critic": list(groups)}},
    )


def _layout_5(parts: _Exported, groups: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    actor = {
        **_prefixed("rnn.rnn.", parts.rnn),
        **_prefixed("obs_normalizer.", parts.normalizer),
        **_prefixed("mlp.", parts.body),
    }
    critic = {
        **_prefixed("rnn.rnn.", parts.value_rnn),
        **_prefixed("obs_normalizer.", parts.value_normalizer),
        **_prefixed("mlp.", parts.value),
    }
    distribution: dict[str, Any] = {"class_name": "GaussianDistribution", "std_type": "scalar"}
    if parts.heteroscedastic:
        bounds = [math.exp(bound) for bound in LOG_STD_RANGE]
        distribution = {"class_name": "HeteroscedasticGaussianDistribution", "std_type": "log", "std_range": bounds}
    else:
        actor["distribution.std_param"] = parts.std
        distribution["init_std"] = float(parts.std.mean())
    model = {
        "class_name": "RNNModel" if parts.rnn else "MLPModel",
        "hidden_dims": parts.hidden_dims,
        "activation": parts.activation,
        "obs_normalization": bool(parts.normalizer),
        **parts.recurrence,
    }
    config = {
        "actor": {**model, "distribution_cfg": distribution},
        "critic": {
            **model,
            "hidden_dims": list(parts.value_dims),
            "distribution_cfg": None,
            "obs_normalization": bool(parts.value_normalizer),
        },
        "obs_groups": {"actor": groups, "critic": list(groups)},
    }
    tensors = {**_prefixed("actor.", actor), **_prefixed("critic.", critic)}
    checkpoint = {"actor_state_dict": _plain(actor), "critic_state_dict": _plain(critic), **_training(tensors)}
    return checkpoint, config


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().clone().cpu() for name, tensor in tensors.items()}


def _training(tensors: Tensors) -> dict[str, Any]:
    """Return the other entries that a runner loads: a fresh Adam over as many parameters, iteration 0."""
    parameters = [torch.nn.Parameter(tensor) for name, tensor in tensors.items() if "normalizer" not in name]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    return {"optimizer_state_dict": optimizer.state_dict(), "iter": 0, "infos": None}
