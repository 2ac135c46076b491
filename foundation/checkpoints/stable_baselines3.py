"""Stable-Baselines3 and sb3-contrib, ``*.zip``: actors and Q-networks.

PPO, A2C, TRPO, RecurrentPPO, MaskablePPO, SAC, TQC, CrossQ, TD3, DDPG, ARS, DQN and QR-DQN are read.

Its ``data`` is JSON with pickles in base64 in it; only the plain values beside those are read, and ``policy.pth`` as
tensors. Statistics of a ``VecNormalize`` lie in a file of their own. Of policies that read images, those are read whose
encoder is ``NatureCNN``.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.agent_config import at, number
from foundation.checkpoints.reading.assembler import (
    CHECKPOINT,
    choose_activation,
    dense,
    expect,
    finish_actor_critic,
    gaussian,
    single_linear,
)
from foundation.checkpoints.reading.loading import (
    EXPORT_IT,
    Entries,
    LoadedPolicy,
    Source,
    Tensors,
    linear_layers,
    logger,
    optional,
    recurrent_core,
)
from foundation.checkpoints.reading.nature_cnn import read_nature_cnn
from foundation.checkpoints.reading.vecnormalize import VecNormalizeStatistics, find_statistics, says_normalized
from foundation.core.archives import check_members, size_of
from foundation.core.errors import UserError
from foundation.core.files import archive_names, load_checkpoint_bytes
from foundation.core.plain_json import parse_json
from foundation.policies.actor_critic import ActorCritic, Critic, Trunk
from foundation.policies.distribution import Choices, Deterministic, ShapedActions, SquashedGaussian
from foundation.policies.image_encoders import ImageEncoders
from foundation.policies.mlp import activation_class_names, resolve_activation
from foundation.policies.scaling import ClampedScaler

_MAX_JSON = 16 << 20
_FLATTENS = "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>"
_NATURE = "<class 'stable_baselines3.common.torch_layers.NatureCNN'>"
_NORM = ("ra_mean", "ra_var", "scale", "bias")
"""Tensors of a normalised layer of CrossQ that are read."""
_LINEAR = ("weight", "bias")
_TYPE = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")


def recognise_file(path: Path, head: bytes) -> bool:
    """Return whether a file is in this format."""
    return head.startswith(b"PK") and "policy.pth" in archive_names(path)


def load_file(source: Source) -> LoadedPolicy:
    """Read the policy."""
    data, weights, version = _members(source.path)
    where = f"'{source.path}' (policy.pth)"
    entries = Entries(weights, where)
    _refuse_unread(source, data)
    kind = _kind(weights)
    images = _images(entries, source, data, kind, where)
    activation = _activation(source, data, "tanh" if kind == "actor_critic" else "relu")
    critic = None
    if kind == "actor":
        trunk, distribution = _off_policy_actor(entries, source, data, activation[0])
    elif kind == "q_net":
        entries.take("q_net_target.")
        layers = linear_layers(entries.take("q_net.q_net."), where)
        trunk = Trunk([*dense(layers[:-1], activation[0]), layers[-1]])
        distribution = Choices(q_values=True)
    elif kind == "quantile_net":
        trunk = _quantiles(entries, data, activation[0], where)
        distribution = Choices(q_values=True)
    elif kind == "linear":
        trunk, distribution = _random_search(entries, source, data, activation[0])
    else:
        trunk, critic = _actor_critic(entries, source, activation[0], where)
        log_std = entries.take_one("log_std")
        distribution = _distribution(source, data, trunk.head.out_features, log_std)
    entries.finish(source.overrides.strict)
    if images is not None:
        trunk, critic = Trunk([images, *trunk.layers]), None
    num_obs = trunk.num_obs
    _check_spaces(source, data, num_obs, trunk.head.out_features // distribution.outputs_per_action, images is not None)
    scaler, formula = _scaler(source, num_obs)
    network = ActorCritic(trunk, distribution, critic, scaler)
    groups = None if images is None else images.groups
    return finish_actor_critic(source, f"Stable-Baselines3 {version}", network, activation, formula, groups)


def _kind(weights: dict[str, Any]) -> str:
    """Return which family of policies the weights are of."""
    for name in ("q_net", "quantile_net", "actor"):
        if any(key.startswith(f"{name}.") for key in weights):
            return name
    return "linear" if any(key.startswith("action_net.0.") for key in weights) else "actor_critic"


def _images(entries: Entries, source: Source, data: dict[str, Any], kind: str, where: str) -> ImageEncoders | None:
    """Read what a CnnPolicy sees through, if it is one; its value, which may see through another, is not read."""
    prefix = "" if kind == "actor_critic" else f"{kind}."
    found = entries.take(f"{prefix}features_extractor.")
    if not found:
        return None
    for unread in ("pi_features_extractor.", "vf_features_extractor.", "mlp_extractor.value_net.", "value_net."):
        entries.take(unread)
    return read_nature_cnn(found, source, data, f"{where}: {prefix}features_extractor")


def _refuse_unread(source: Source, data: dict[str, Any]) -> None:
    """Name what is not read: a step before the network that only code describes, rows of actions."""
    before = at(data, "policy_kwargs", "features_extractor_class")
    if before is not None and str(before) not in (_FLATTENS, _NATURE):
        match = _TYPE.match(str(before))
        name = match[1] if match else str(before)
        raise UserError(
            f"'{source.path}' turns observations into features by '{name[:60]}' first, a class that is not read. "
            f"{EXPORT_IT}."
        )
    shape = at(data, "action_space", "_shape")
    if _space(data, "action_space") == "Box" and isinstance(shape, list) and len(shape) != 1:
        raise UserError(f"'{source.path}' gives actions of shape {str(shape)[:40]}; one row of numbers is understood.")


def _members(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the plain JSON, the weights and the version, all checked for damage first."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            check_members(archive, size_of(path))
            if sizes.get("data", 0) > _MAX_JSON:
                raise ValueError(f"its 'data' would unpack to {sizes['data'] >> 20} MiB")
            corrupt = archive.testzip()
            if corrupt is not None:
                raise ValueError(f"wrong checksum in record '{corrupt}'")
            text = archive.read("data")
            content = archive.read("policy.pth")
            version = archive.read("_stable_baselines3_version") if "_stable_baselines3_version" in sizes else b"?"
        data = parse_json(text.decode("utf-8"))
        version = version.decode("ascii").strip()
    except Exception as error:  # zipfile, struct, zlib, JSON and Unicode errors all mean the same
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"'{path}' is truncated or corrupt ({line}). Copy or train it again.") from error
    if not isinstance(data, dict):
        raise UserError(f"'{path}' is not a model of Stable-Baselines3: its 'data' is not a mapping.")
    return data, load_checkpoint_bytes(content, f"{path}:policy.pth"), version if len(version) < 20 else "?"


def _activation(source: Source, data: dict[str, Any], default: str) -> tuple[str, str]:
    """Return the activation that ``policy_kwargs`` names, else the library's own default for its own policies."""
    options = data.get("policy_kwargs")
    stated = at(options, "activation_fn")
    if stated is None:
        own = str(at(data, "policy_class", "__module__")).startswith(("stable_baselines3.", "sb3_contrib."))
        if not isinstance(options, dict) or not own:
            return choose_activation(source, None, "")
        return choose_activation(source, default, "the library's default")
    match = _TYPE.match(str(stated))
    name = activation_class_names().get(match[1]) if match else None
    return choose_activation(source, name or stated, CHECKPOINT)


def _actor_critic(entries: Entries, source: Source, activation: str, where: str) -> tuple[Trunk, Critic | None]:
    """Read actor and value, each after recurrent layers of its own where the algorithm is RecurrentPPO."""
    core, core_of_value, before_value = (entries.take(f"{name}.") for name in ("lstm_actor", "lstm_critic", "critic"))
    entries.take("sde_features_extractor.")  # reads the exploration's features, not the mean's
    body, value_body = (entries.take(f"mlp_extractor.{name}.") for name in ("policy_net", "value_net"))
    heads = entries.take("action_net."), entries.take("value_net.")
    actor = _tower(core, body, heads[0], activation, f"{where}: policy")
    if before_value or (core and not core_of_value):
        return actor, None  # a value whose input is the actor's memory, or a layer of its own
    if _lacks_critic(source, core_of_value, value_body, heads[1], actor.num_obs):
        return actor, None
    value = optional(source, lambda: _tower(core_of_value, value_body, heads[1], activation, f"{where}: value"))
    fits = value is not None and value.head.out_features == 1 and value.num_obs == actor.num_obs
    if value is not None and not fits:
        logger.info("'%s': its value is not one number of the policy's observations, and is not read.", source.path)
    return actor, Critic(value) if value is not None and fits else None


def _lacks_critic(source: Source, core: Tensors, body: Tensors, head: Tensors, num_obs: int) -> bool:
    """Whether the file has no critic, or a part of one, such as where it was left out on purpose; says so."""
    absent = [] if "weight" in head else ["value_net.*"]
    reads = core["weight_hh_l0"].shape[-1] if "weight_hh_l0" in core else num_obs
    if not body and ("weight" not in head or head["weight"].shape[-1] != reads):
        absent.append("mlp_extractor.value_net.*")
    if absent:
        logger.info("'%s': it lacks %s of a critic, so that it gives no value.", source.path, " and ".join(absent))
    return bool(absent)


def _tower(core: Tensors, body: Tensors, head: Tensors, activation: str, where: str) -> Trunk:
    layers = linear_layers(body, where) if body else []
    memory = recurrent_core(core, where) if core else None
    size = None if memory is None else memory.hidden_size
    if layers:
        size = layers[-1].out_features
    if memory is not None and layers and layers[0].in_features != memory.hidden_size:
        raise UserError(
            f"{where}: its memory gives {memory.hidden_size} numbers, its dense layers expect "
            f"{layers[0].in_features}. It is corrupt."
        )
    before: list[nn.Module] = [] if memory is None else [memory]
    return Trunk([*before, *dense(layers, activation), single_linear(head, where, size)])


def _quantiles(entries: Entries, data: dict[str, Any], activation: str, where: str) -> Trunk:
    """Read QR-DQN's network, whose last layer gives quantiles of each choice: the Q-value is their mean."""
    entries.take("quantile_net_target.")
    layers = linear_layers(entries.take("quantile_net.quantile_net."), where)
    count = str(at(data, "action_space", "n"))
    last = layers[-1]
    if not count.isdigit() or not 0 < int(count) <= last.out_features or last.out_features % int(count):
        raise UserError(f"{where}: {last.out_features} quantiles do not belong to '{count[:20]}' choices.")
    head = nn.Linear(last.in_features, int(count))
    with torch.no_grad():
        head.weight.copy_(last.weight.double().unflatten(0, (-1, int(count))).mean(dim=0))
        head.bias.copy_(last.bias.double().unflatten(0, (-1, int(count))).mean(dim=0))
    return Trunk([*dense(layers[:-1], activation), head])


def _random_search(
    entries: Entries, source: Source, data: dict[str, Any], activation: str
) -> tuple[Trunk, Deterministic]:
    """Read a policy of ARS: dense layers, perhaps without biases, squashed to the range of the actions."""
    where = f"'{source.path}' (ARS)"
    body = entries.take("action_net.")
    without_bias = not any(name.endswith(".bias") for name in body)
    if without_bias:
        body |= {name.replace(".weight", ".bias"): value.new_zeros(value.shape[:1]) for name, value in body.items()}
    layers = linear_layers(body, where)
    trunk = Trunk([*dense(layers[:-1], activation), layers[-1]])
    if _space(data, "action_space") == "Discrete":
        return trunk, Choices(q_values=False)
    bounds = _bounds(source, data, layers[-1].out_features)
    linear = len(layers) == 1 and (without_bias or "Linear" in str(at(data, "policy_class", "__doc__")))
    squashes = at(data, "policy_kwargs", "squash_output")
    if squashes is False or (squashes is None and linear):  # the library's defaults
        return trunk, Deterministic() if bounds is None else ShapedActions(Deterministic(), clip=bounds)
    return trunk, _squashed(Deterministic(), resolve_activation("tanh"), bounds, where)


def _squashed(
    inner: Deterministic, squash: nn.Module | None, bounds: tuple[torch.Tensor, torch.Tensor] | None, where: str
) -> ShapedActions:
    """Return actions that are squashed to ±1 and then brought to the range of the action space."""
    if bounds is None:
        raise UserError(
            f"{where} does not state the range of its actions; set distill.teacher.action_range=[low,high]."
        )
    low, high = bounds
    return ShapedActions(inner, squash, None, (high - low) / 2, (high + low) / 2)


def _off_policy_actor(
    entries: Entries, source: Source, data: dict[str, Any], activation: str
) -> tuple[Trunk, Deterministic]:
    """Read the actor of SAC, TQC and CrossQ (a head each for means and stds), TD3 or DDPG; all squash actions.

    With gSDE the std depends on the features in a way of its own: the mean alone is read, with the bound that
    the library sets to it.
    """
    where = f"'{source.path}' (actor)"
    for critic in ("critic.", "critic_target.", "actor_target."):
        entries.take(critic)
    explores = entries.take_one("actor.log_std") is not None
    entries.take("actor.sde_features_extractor.")
    body, mean, spread = (entries.take(f"actor.{name}.") for name in ("latent_pi", "mu", "log_std"))
    squash: nn.Module | None = resolve_activation("tanh")
    inner: Deterministic = Deterministic()
    bounded = explores and any(name.startswith("0.") for name in mean)
    if bounded:
        mean = {name.removeprefix("0."): value for name, value in mean.items()}
        squash = nn.Sequential(_bound_of_mean(source, data), squash)
    if any(name.endswith(".ra_mean") for name in body):
        body, (mean, spread) = _without_norms(body, [mean, spread], data, where)
    if explores:
        layers = linear_layers(body, where) if body else []
        layers = [*layers, single_linear(mean, where, layers[-1].out_features if layers else None)]
    elif not body and not spread:
        layers = linear_layers(mean, where)
    else:
        layers = linear_layers(body, where) if body else []
        size = layers[-1].out_features if layers else None
        heads = [single_linear(part, where, size) for part in (mean, spread)]
        if heads[0].weight.shape != heads[1].weight.shape:
            raise UserError(f"{where} has {heads[0].out_features} means and {heads[1].out_features} stds.")
        both = nn.Linear(heads[0].in_features, 2 * heads[0].out_features)
        states = [head.state_dict() for head in heads]
        both.load_state_dict({key: torch.cat([state[key] for state in states]) for key in states[0]})
        layers = [*layers, both]
        inner = SquashedGaussian()
        squash = None
    bounds = _bounds(source, data, layers[-1].out_features // inner.outputs_per_action)
    distribution = _squashed(inner, squash, bounds, where)
    return Trunk([*dense(layers[:-1], activation), layers[-1]]), distribution


def _without_norms(
    body: Tensors, heads: list[dict[str, torch.Tensor]], data: dict[str, Any], where: str
) -> tuple[Tensors, list[dict[str, torch.Tensor]]]:
    """Return CrossQ's dense layers and heads with the normalisation before each of them taken into its weights.

    When the policy acts it is ``(x - ra_mean) / sqrt(ra_var + eps) * scale + bias``, before each dense layer and after
    the last activation; ``eps`` is the option ``batch_norm_eps``.
    """
    eps = number(at(data, "policy_kwargs", "batch_norm_eps"), 1e-3)
    count = sum(name.endswith(".ra_mean") for name in body)
    try:
        norms = [[body[f"{3 * place}.{name}"].double() for name in _NORM] for place in range(count)]
        hidden = [{name: body[f"{3 * place + 1}.{name}"] for name in _LINEAR} for place in range(count - 1)]
    except KeyError as error:
        raise UserError(
            f"{where} lacks 'latent_pi.{error.args[0]}' of its normalised layers: it is corrupt."
        ) from error
    if len(body) != 5 * count + 2 * (count - 1):  # a normalisation counts its steps, too
        raise UserError(f"{where} has layers beside CrossQ's, {sorted(body)[:6]}. {EXPORT_IT}.")
    if not 0 < eps < math.inf:
        raise UserError(f"{where} has batch_norm_eps={eps:g}: a positive number was expected.")
    folded = [_folded(layer, norm, eps, where) for layer, norm in zip(hidden, norms[:-1], strict=True)]
    layers = {f"{2 * place}.{name}": value for place, layer in enumerate(folded) for name, value in layer.items()}
    return layers, [_folded(head, norms[-1], eps, where) if set(head) == set(_LINEAR) else head for head in heads]


def _folded(layer: Tensors, norm: list[torch.Tensor], eps: float, where: str) -> dict[str, torch.Tensor]:
    """Return the tensors of one dense layer that does what a normalisation and it do, one after the other."""
    mean, var, scale, shift = norm
    weight, bias = (layer[name].double() for name in _LINEAR)
    fits = weight.dim() == 2 and bias.shape == weight.shape[:1] and all(p.shape == weight.shape[1:] for p in norm)
    if not fits or bool((var < 0).any()):
        raise UserError(f"{where} has a normalisation that does not fit the layer after it: it is corrupt.")
    factor = scale / (var + eps).sqrt()
    return {"weight": (weight * factor).float(), "bias": (bias + weight @ (shift - mean * factor)).float()}


def _bound_of_mean(source: Source, data: dict[str, Any]) -> nn.Module:
    """Return what bounds the mean before the squashing with gSDE: ``clip_mean``, 2 by default."""
    bound = at(data, "policy_kwargs", "clip_mean")
    if bound is not None and not (isinstance(bound, int | float) and 0 < bound < float("inf")):
        raise UserError(f"'{source.path}' has clip_mean={str(bound)[:40]}: a positive number was expected.")
    bound = 2.0 if bound is None else float(bound)
    return nn.Hardtanh(-bound, bound)


def _distribution(source: Source, data: dict[str, Any], num_out: int, log_std: torch.Tensor | None) -> Deterministic:
    kind = _space(data, "action_space")
    if log_std is None:
        if kind == "MultiDiscrete":
            return Choices(q_values=False, sizes=_counts(source, data, num_out))
        if kind not in (None, "Discrete"):
            raise UserError(f"'{source.path}' acts in a '{kind}' space without a 'log_std'; that is not understood.")
        return Choices(q_values=False)
    explores = data.get("use_sde") is True
    inner = Deterministic() if explores else gaussian(log_std.exp(), num_out, f"'{source.path}' (log_std)")
    bounds = _bounds(source, data, num_out)
    if at(data, "policy_kwargs", "squash_output") is True:
        if bounds is None:
            raise UserError(
                f"'{source.path}' squashes its actions to a range that it does not state; set "
                "distill.teacher.action_range=[low,high]."
            )
        low, high = bounds
        return ShapedActions(inner, resolve_activation("tanh"), None, (high - low) / 2, (high + low) / 2)
    return inner if bounds is None else ShapedActions(inner, clip=bounds)


def _counts(source: Source, data: dict[str, Any], num_out: int) -> tuple[int, ...]:
    """Return the choices of each of several actions, from the text beside the action space's pickle: ``[3 2]``."""
    text = str(at(data, "action_space", "nvec"))
    counts = tuple(int(word) for word in re.findall(r"\d{1,9}", text[:10_000]))
    if sum(counts) != num_out or min(counts, default=0) < 1:
        raise UserError(
            f"'{source.path}' has {num_out} outputs for the choices '{text[:40]}' of its actions. It is corrupt, or "
            "its actions are a table: only a row of choices is understood."
        )
    return counts


def _bounds(source: Source, data: dict[str, Any], size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the action space's bounds, to which the library clips, from the text beside its pickle."""
    given = source.given("action_range")
    if given is not None:
        low, high = given
        return torch.full((size,), float(low)), torch.full((size,), float(high))
    found = [_numbers(at(data, "action_space", name), size) for name in ("low", "high")]
    if found[0] is None or found[1] is None:
        logger.warning("'%s' does not say the bounds of its actions; they are not clipped.", source.path)
        return None
    low = torch.tensor(found[0])
    high = torch.tensor(found[1])
    if bool((low.isinf() & high.isinf()).all()):
        return None
    if not bool((low < high).all()):
        raise UserError(f"'{source.path}' has an action space whose bounds are not in order. The file is corrupt.")
    return low, high


def _numbers(text: object, size: int) -> list[float] | None:
    try:
        values = [float(word) for word in str(text).strip("[] ").replace("\n", " ").split()]
    except ValueError:
        return None
    return values if len(values) == size else None


def _space(data: dict[str, Any], name: str) -> str | None:
    match = _TYPE.match(str(at(data, name, ":type:")))
    return match[1] if match else None


def _check_spaces(source: Source, data: dict[str, Any], num_obs: int, num_out: int, sees: bool) -> None:
    """Refuse weights of other sizes than the spaces of the same file, and observations that are not plain numbers."""
    kind = _space(data, "observation_space")
    shape = at(data, "observation_space", "_shape")
    if kind not in (None, "Box"):
        raise UserError(f"'{source.path}' reads observations of a '{kind}' space; only a Box is understood.")
    if isinstance(shape, list) and len(shape) > 1 and at(data, "observation_space", "dtype") == "uint8" and not sees:
        raise UserError(f"'{source.path}' reads images {shape}, which its library divides by 255: not understood.")
    if isinstance(shape, list) and (not all(type(n) is int for n in shape) or math.prod(shape) != num_obs):
        raise UserError(
            f"'{source.path}' states observations of shape {shape}, but its weights expect {num_obs}. It is corrupt."
        )
    shape = at(data, "action_space", "_shape")
    count = at(data, "action_space", "n")
    expected = [num_out] if _space(data, "action_space") == "Box" else None
    if (expected is not None and isinstance(shape, list) and shape != expected) or (
        count is not None and str(count) != str(num_out)
    ):
        raise UserError(f"'{source.path}' has {num_out} outputs, which its action space does not. It is corrupt.")


def _scaler(source: Source, num_obs: int) -> tuple[ClampedScaler | None, str | None]:
    """Return the statistics of the VecNormalize that the model was trained with, if it was."""
    stated = at(source.agent.data, "normalize_input")
    if stated is False:
        return None, None
    path = find_statistics(source.path)
    if path is None:
        says = source.agent.path
        key = "normalize_input"
        if stated is not True:
            says = says_normalized(source.path)
            key = "normalize"
        message = f"lacks the statistics of its VecNormalize, but '{says}' sets {key}: copy them here"
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
