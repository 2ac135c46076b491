"""skrl 1.x and 2.x, ``agent_*.pt`` and ``best_agent.pt``: ``policy``, ``value``, and the preprocessors beside them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.agent_config import at, number, section
from foundation.checkpoints.reading.assembler import (
    choose_activation,
    compare_dims,
    dense,
    expect,
    finish_actor_critic,
    gaussian,
    single_linear,
)
from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source, linear_layers, logger, optional
from foundation.checkpoints.reading.scaling import moments
from foundation.core.errors import UserError
from foundation.core.text import shorten
from foundation.policies.actor_critic import ActorCritic, Critic, Trunk
from foundation.policies.distribution import Choices, Deterministic, ShapedActions
from foundation.policies.mlp import activation_names, resolve_activation
from foundation.policies.scaling import ClampedScaler, Factor, ValueScaler

KEYS = {
    "policy", "value", "q_network", "target_q_network", "observation_preprocessor", "state_preprocessor",
    "value_preprocessor", "critic", "critic_1", "critic_2", "target_policy", "target_critic", "target_critic_1",
    "target_critic_2", "optimizer", "policy_optimizer", "critic_optimizer", "value_optimizer", "discriminator",
    "amp_state_preprocessor", "amp_observation_preprocessor", "log_entropy_coefficient", "entropy_optimizer",
}  # fmt: skip
"""Entries of a checkpoint of any of its agents; only the policy, its value and their preprocessors are read."""

_HEADS = {"policy": ("policy_layer", "mean_layer", "output_layer"), "value": ("value_layer", "output_layer")}
_OUTPUT = re.compile(r"^(?:(?P<factor>[\d.eE+-]+)\s*\*\s*)?(?:(?P<squash>\w+)\()?(?:Shape\.)?ACTIONS\)?$")


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    network = checkpoint.get("policy", checkpoint.get("q_network"))
    return isinstance(network, dict) and any(re.search(r"\.\d+\.weight$", str(key)) for key in network)


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the policy; its value too, where it reads the same observations."""
    role = "policy" if "policy" in checkpoint else "q_network"
    config = section(source.agent.data, "models", role)
    entries = Entries(checkpoint[role], f"'{source.path}' ({role})")
    log_std = entries.take_one("log_std_parameter")
    activation = choose_activation(source, _activation(source, config), str(source.agent.path))
    trunk = _trunk(entries, "policy", activation[0])
    shared_value = entries.take("value_layer.")
    entries.finish(source.overrides.strict)
    num_obs = trunk.num_obs
    compare_dims(source, at(config, "network", 0, "layers") or config.get("hiddens"), trunk.hidden_dims)
    new, name = _preprocessor(checkpoint, source, config)
    scaler, formula = _scaler(checkpoint, source, name, num_obs)
    critic = optional(source, lambda: _critic(checkpoint, source, trunk, shared_value, new))
    distribution = _distribution(source, config, role, trunk.head.out_features, log_std)
    network = ActorCritic(trunk, distribution, critic, scaler)
    version = "1.x or 2.x"
    if new:
        version = "2.x"
    elif "state_preprocessor" in checkpoint:
        version = "1.x"
    return finish_actor_critic(source, f"skrl {version}", network, activation, formula)


def _activation(source: Source, config: dict[str, Any]) -> Any:
    """Return the one activation that the config's model names, or None."""
    if source.overrides.activation is not None:
        return None
    networks = config.get("network")
    if isinstance(networks, list) and len(networks) > 1:
        raise UserError(f"'{source.agent.path}' has {len(networks)} networks in its policy; one is understood.")
    given = at(networks, 0, "activations") if networks else config.get("hidden_activation")
    given = str(given) if isinstance(given, dict) else given
    names = {str(name) for name in given} if isinstance(given, list) else {given}
    if len(names) > 1:
        raise UserError(
            f"'{source.agent.path}' has several activations: {shorten(', '.join(sorted(map(str, names))))}."
        )
    return names.pop() if names else None


def _trunk(entries: Entries, role: str, activation: str) -> Trunk:
    """Read the container, whose last layer is the output unless the model is shared and has a head of its own."""
    body: dict[str, torch.Tensor] = {}
    for prefix in ("net_container.", "net."):
        body = body or entries.take(prefix)
    layers = linear_layers(body, entries.where)
    for name in _HEADS[role]:
        head = entries.take(f"{name}.")
        if head:
            last = single_linear(head, f"{entries.where}: {name}", layers[-1].out_features)
            return Trunk([*dense(layers, activation), last])
    return Trunk([*dense(layers[:-1], activation), layers[-1]])


def _preprocessor(checkpoint: dict[str, Any], source: Source, config: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the library is 2.x, and which preprocessor the policy's input goes through."""
    agent = section(source.agent.data, "agent")
    new = "observation_preprocessor" in checkpoint or "observation_preprocessor" in agent
    reads_states = str(at(config, "network", 0, "input")).removeprefix("Shape.") == "STATES"
    return new, "observation_preprocessor" if new and not reads_states else "state_preprocessor"


def _scaler(
    checkpoint: dict[str, Any], source: Source, name: str, num_obs: int
) -> tuple[ClampedScaler | None, str | None]:
    stated = at(source.agent.data, "agent", name)
    if name not in checkpoint:
        message = (
            f"has no '{name}', but '{source.agent.path}' states that it was trained with one: use the whole checkpoint"
        )
        expect(stated is None, source, message)
        return None, None
    where = f"'{source.path}' ({name})"
    entries = Entries(checkpoint[name], where).take("")
    mean, var = moments(entries, "running_variance", "current_count", num_obs, where)
    epsilon, bound = _options(source, name)
    formula = f"(x - mean) / (std + {epsilon:g}), clamped to ±{bound:g}"
    return ClampedScaler(mean, var.sqrt() + epsilon, bound), formula


def _options(source: Source, name: str) -> tuple[float, float]:
    agent = section(source.agent.data, "agent")
    if name not in agent and name == "observation_preprocessor":
        name = "state_preprocessor"  # 2.x takes a config of 1.x so
    options = agent.get(f"{name}_kwargs")
    return number(at(options, "epsilon"), 1e-8), number(at(options, "clip_threshold"), 5.0)


def _critic(
    checkpoint: dict[str, Any], source: Source, actor: Trunk, shared: dict[str, torch.Tensor], new: bool
) -> Critic | None:
    """Return the value if it reads what the policy reads."""
    config = section(source.agent.data, "models", "value")
    if "value" not in checkpoint or (new and at(config, "network", 0, "input") != "OBSERVATIONS"):
        return None
    if shared:
        where = f"'{source.path}' (value_layer)"
        layers: Trunk | nn.Linear = single_linear(shared, where, actor.head.in_features)
        num_out = layers.out_features
    else:
        entries = Entries(checkpoint["value"], f"'{source.path}' (value)")
        activation = choose_activation(source, _activation(source, config), str(source.agent.path), known=False)
        layers = _trunk(entries, "value", activation[0])
        entries.finish(source.overrides.strict)
        num_out = layers.head.out_features
        if layers.num_obs != actor.num_obs:
            return None
    output = str(config.get("output", "ONE")).removeprefix("Shape.")
    return Critic(layers, _value_scaler(checkpoint, source)) if num_out == 1 and output == "ONE" else None


def _value_scaler(checkpoint: dict[str, Any], source: Source) -> ValueScaler | None:
    if "value_preprocessor" not in checkpoint:
        stated = at(source.agent.data, "agent", "value_preprocessor")
        expect(stated is None, source, f"has no 'value_preprocessor', which '{source.agent.path}' names")
        return None
    where = f"'{source.path}' (value_preprocessor)"
    entries = Entries(checkpoint["value_preprocessor"], where).take("")
    mean, var = moments(entries, "running_variance", "current_count", 1, where)
    return ValueScaler(mean, var.sqrt(), _options(source, "value_preprocessor")[1])


def _distribution(
    source: Source, config: dict[str, Any], role: str, num_out: int, log_std: torch.Tensor | None
) -> Deterministic:
    """Return how the outputs become actions, from the model's class in the config or from what the file has."""
    kind = str(source.given("distribution") or config.get("class", "")).lower()
    if role == "q_network":
        return Choices(q_values=True)
    if kind.startswith("categorical"):
        return Choices(q_values=False)
    if "gaussian" not in kind and "deterministic" not in kind and kind:
        raise UserError(f"'{source.agent.path}' names the model '{shorten(kind)}', which is not understood.")
    if log_std is None and "deterministic" not in kind:
        raise UserError(
            f"'{source.path}' has no 'log_std_parameter', so that it is not known how its {num_out} outputs make "
            "actions. Put the run's params/agent.yaml beside it, or set distill.teacher.distribution "
            "(categorical or deterministic)."
        )
    if config.get("clip_mean_actions") is True:
        logger.warning("'%s': its mean actions were clipped to an unknown range; set agent.clip_actions.", source.path)
    inner: Deterministic = Deterministic()
    if log_std is not None:
        if config.get("clip_log_std", True) is not False:
            low = number(config.get("min_log_std"), -20.0)
            high = number(config.get("max_log_std"), 2.0)
            log_std = log_std.clamp(low, high)
        inner = gaussian(log_std.exp(), num_out, f"'{source.path}'")
    return _shaped(source, config, inner)


def _shaped(source: Source, config: dict[str, Any], inner: Deterministic) -> Deterministic:
    """Apply the config's output expression, such as ``2.0 * tanh(ACTIONS)``."""
    given = str(config.get("output", "ACTIONS"))
    if "network" not in config and config.get("output_activation"):  # before 1.3
        given = f"{config.get('output_scale', 1.0)}*{config['output_activation']}(ACTIONS)"
    elif "network" not in config and "output" not in config:
        given = f"{config.get('output_scale', 1.0)}*ACTIONS"
    parts = _OUTPUT.match(given.replace(" ", ""))
    squash = parts and parts["squash"]
    if parts is None or (squash is not None and squash not in activation_names()):
        raise UserError(f"'{source.agent.path}' has the policy output '{shorten(given)}', which is not understood.")
    factor = float(parts["factor"] or 1.0)
    if squash is None and factor == 1.0:
        return inner
    return ShapedActions(inner, nn.Sequential(resolve_activation(squash or "identity"), Factor(factor)))
