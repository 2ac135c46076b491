"""Stable-Baselines3, ``*.zip``: actors of PPO, A2C, SAC, TD3 and DDPG, and DQN's Q-network.

Its ``data`` is JSON with pickles in base64 in it; only the plain values beside those are read, and ``policy.pth`` as
tensors. Statistics of a ``VecNormalize`` lie in a file of their own.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.composition import (
    at,
    dense,
    expect,
    finish,
    gaussian,
    pick_activation,
    single_linear,
)
from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source, linear_layers, logger
from foundation.checkpoints.reading.scaling import ClampedScaler
from foundation.checkpoints.reading.vecnormalize import VecNormalizeStatistics, find_statistics, says_normalized
from foundation.core.errors import UserError
from foundation.core.files import archive_names, load_checkpoint_bytes
from foundation.policies.actor_critic import ActorCriticNetwork, Critic, Trunk
from foundation.policies.distribution import Deterministic, SquashedGaussian
from foundation.policies.mlp import activation_class_names, resolve_activation
from foundation.policies.teacher_outputs import Choices, ShapedActions

_MOST_JSON, _MOST_WEIGHTS = 64 << 20, 2 << 30
_TYPE = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")


def recognise_file(path: Path, head: bytes) -> bool:
    """Return whether a file is in this format."""
    return head.startswith(b"PK") and "policy.pth" in archive_names(path)


def load_file(source: Source) -> LoadedPolicy:
    """Read the policy."""
    data, weights, version = _members(source.path)
    where = f"'{source.path}' (policy.pth)"
    entries = Entries(weights, where)
    kind = next((name for name in ("q_net", "actor") if any(key.startswith(f"{name}.") for key in weights)), None)
    activation = _activation(source, data, "tanh" if kind is None else "relu")
    critic = None
    if kind == "actor":
        trunk, distribution = _off_policy_actor(entries, source, data, activation[0])
    elif kind == "q_net":
        entries.take("q_net_target.")
        layers = linear_layers(entries.take("q_net.q_net."), where)
        trunk = Trunk(dense(layers[:-1], activation[0]), nn.Sequential(), layers[-1])
        distribution = Choices(q_values=True)
    else:
        trunk, critic = _actor_critic(entries, activation[0], where)
        log_std = entries.take_one("log_std")
        distribution = _distribution(source, data, trunk.head.out_features, log_std)
    entries.finish(source.overrides.strict)
    num_obs = trunk.num_inputs
    _check_spaces(source, data, num_obs, trunk.head.out_features // distribution.outputs_per_action)
    scaler, formula = _scaler(source, num_obs)
    network = ActorCriticNetwork(num_obs, scaler, trunk, distribution, critic)
    return finish(source, f"Stable-Baselines3 {version}", network, activation, formula)


def _members(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the plain JSON, the weights and the version, all checked for damage first."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if sizes.get("data", 0) > _MOST_JSON or sum(sizes.values()) > _MOST_WEIGHTS:
                raise ValueError(f"it would unpack to {sum(sizes.values()) >> 20} MiB")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"wrong checksum in record '{damaged}'")
            text = archive.read("data")
            content = archive.read("policy.pth")
            version = archive.read("_stable_baselines3_version") if "_stable_baselines3_version" in sizes else b"?"
        data = json.loads(text)
        version = version.decode("ascii").strip()
    except Exception as error:  # zipfile, struct, zlib, JSON and Unicode errors all mean the same
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"'{path}' is truncated or damaged ({line}). Copy or train it again.") from error
    if not isinstance(data, dict):
        raise UserError(f"'{path}' is not a model of Stable-Baselines3: its 'data' is not a mapping.")
    return data, load_checkpoint_bytes(content, f"{path}:policy.pth"), version if len(version) < 20 else "?"


def _activation(source: Source, data: dict[str, Any], default: str) -> tuple[str, str]:
    """Return the activation that ``policy_kwargs`` names, else the library's own default for its own policies."""
    options = data.get("policy_kwargs")
    stated = at(options, "activation_fn")
    if stated is None:
        own = str(at(data, "policy_class", "__module__")).startswith("stable_baselines3.")
        if not isinstance(options, dict) or not own:
            return pick_activation(source, None, "")
        return pick_activation(source, default, "the library's default")
    match = _TYPE.match(str(stated))
    name = activation_class_names().get(match[1]) if match else None
    return pick_activation(source, name or stated, "checkpoint")


def _actor_critic(entries: Entries, activation: str, where: str) -> tuple[Trunk, Critic]:
    towers = []
    for name, last in (("policy_net", "action_net"), ("value_net", "value_net")):
        body = entries.take(f"mlp_extractor.{name}.")
        layers = linear_layers(body, f"{where}: {name}") if body else []
        size = layers[-1].out_features if layers else None
        head = single_linear(entries.take(f"{last}."), f"{where}: {last}", size)
        towers.append(Trunk(dense(layers, activation), nn.Sequential(), head))
    if towers[1].head.out_features != 1:
        raise UserError(f"{where}: its value has {towers[1].head.out_features} outputs. The file is damaged.")
    sizes = {tower.num_inputs for tower in towers}
    if len(sizes) > 1:
        raise UserError(f"{where}: its policy and its value read observations of {sizes} numbers. It is damaged.")
    return towers[0], Critic(towers[1])


def _off_policy_actor(
    entries: Entries, source: Source, data: dict[str, Any], activation: str
) -> tuple[Trunk, Deterministic]:
    """Read the actor of SAC (a head each for means and deviations) or of TD3 and DDPG; all squash their actions."""
    where = f"'{source.path}' (actor)"
    for critic in ("critic.", "critic_target.", "actor_target."):
        entries.take(critic)
    body, mean, spread = (entries.take(f"actor.{name}.") for name in ("latent_pi", "mu", "log_std"))
    layers = linear_layers(body or mean, where)
    inner: Deterministic = Deterministic()
    if body or spread:
        heads = [single_linear(part, where, layers[-1].out_features) for part in (mean, spread)]
        if heads[0].out_features != heads[1].out_features:
            raise UserError(f"{where} has {heads[0].out_features} means and {heads[1].out_features} deviations.")
        both = nn.Linear(heads[0].in_features, 2 * heads[0].out_features)
        states = [head.state_dict() for head in heads]
        both.load_state_dict({key: torch.cat([state[key] for state in states]) for key in states[0]})
        layers, inner = [*layers, both], SquashedGaussian()
    squash = None if spread else resolve_activation("tanh")
    bounds = _bounds(source, data, layers[-1].out_features // inner.outputs_per_action)
    if bounds is None:
        raise UserError(f"{where} does not say the range of its actions; set distill.teacher.action_range=[low,high].")
    low, high = bounds
    distribution = ShapedActions(inner, squash, None, (high - low) / 2, (high + low) / 2)
    return Trunk(dense(layers[:-1], activation), nn.Sequential(), layers[-1]), distribution


def _distribution(source: Source, data: dict[str, Any], num_out: int, log_std: torch.Tensor | None) -> Deterministic:
    kind = _space(data, "action_space")
    if log_std is None:
        if kind not in (None, "Discrete"):
            raise UserError(f"'{source.path}' acts in a '{kind}' space without a 'log_std'; that is not understood.")
        return Choices(q_values=False)
    explores = data.get("use_sde") is True
    inner = Deterministic() if explores else gaussian(log_std.exp(), num_out, f"'{source.path}' (log_std)")
    bounds = _bounds(source, data, num_out)
    if at(data, "policy_kwargs", "squash_output") is True:
        if bounds is None:
            raise UserError(
                f"'{source.path}' squashes its actions to a range that it does not say; set "
                "distill.teacher.action_range=[low,high]."
            )
        low, high = bounds
        return ShapedActions(inner, resolve_activation("tanh"), None, (high - low) / 2, (high + low) / 2)
    return inner if bounds is None else ShapedActions(inner, clip=bounds)


def _bounds(source: Source, data: dict[str, Any], size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the action space's bounds, to which the library clips, from the text beside its pickle."""
    if source.overrides.action_range is not None:
        low, high = source.overrides.action_range
        return torch.full((size,), float(low)), torch.full((size,), float(high))
    found = [_numbers(at(data, "action_space", name), size) for name in ("low", "high")]
    if found[0] is None or found[1] is None:
        logger.warning("'%s' does not say the bounds of its actions; they are not clipped.", source.path)
        return None
    low, high = torch.tensor(found[0]), torch.tensor(found[1])
    if bool((low.isinf() & high.isinf()).all()):
        return None
    if not bool((low < high).all()):
        raise UserError(f"'{source.path}' has an action space whose bounds are not in order. The file is damaged.")
    return low, high


def _numbers(text: Any, size: int) -> list[float] | None:
    try:
        values = [float(word) for word in str(text).strip("[] ").replace("\n", " ").split()]
    except ValueError:
        return None
    return values if len(values) == size else None


def _space(data: dict[str, Any], name: str) -> str | None:
    match = _TYPE.match(str(at(data, name, ":type:")))
    return match[1] if match else None


def _check_spaces(source: Source, data: dict[str, Any], num_obs: int, num_out: int) -> None:
    """Refuse weights of other sizes than the spaces of the same file, and observations that are not plain numbers."""
    kind, shape = _space(data, "observation_space"), at(data, "observation_space", "_shape")
    if kind not in (None, "Box"):
        raise UserError(f"'{source.path}' reads observations of a '{kind}' space; only a Box is understood.")
    if isinstance(shape, list) and shape != [num_obs]:
        raise UserError(f"'{source.path}' says observations {shape}, but its weights want {num_obs}. It is damaged.")
    shape, count = at(data, "action_space", "_shape"), at(data, "action_space", "n")
    expected = [num_out] if _space(data, "action_space") == "Box" else None
    if (expected is not None and isinstance(shape, list) and shape != expected) or (
        count is not None and str(count) != str(num_out)
    ):
        raise UserError(f"'{source.path}' has {num_out} outputs, which its action space does not. It is damaged.")


def _scaler(source: Source, num_obs: int) -> tuple[ClampedScaler | None, str | None]:
    """Return the statistics of the VecNormalize that the model was trained with, if it was."""
    stated = at(source.agent.data, "normalize_input")
    if stated is False:
        return None, None
    path = find_statistics(source.path)
    if path is None:
        says, key = source.agent.path, "normalize_input"
        if stated is not True:
            says, key = says_normalized(source.path), "normalize"
        message = f"lacks the statistics of its VecNormalize, but '{says}' says {key}: copy them here"
        expect(says is None, source, message)
        return None, None
    try:
        statistics = VecNormalizeStatistics.read(path, num_obs)
    except UserError as error:
        if source.overrides.strict:
            raise UserError(f"'{source.path}': {error}") from error
        logger.warning("'%s': %s Observations are taken as they are.", source.path, error)
        return None, None
    if not statistics.norm_obs:
        return None, f"none: {path.name} normalises rewards alone"
    return statistics.scaler(), statistics.formula()
