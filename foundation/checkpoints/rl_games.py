"""rl_games, ``*.pth``: ``model`` with ``a2c_network.*``, ``running_mean_std.*`` and ``value_mean_std.*``."""

from __future__ import annotations

import itertools
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
from foundation.checkpoints.reading.loading import (
    Entries,
    LoadedPolicy,
    Source,
    linear_layers,
    logger,
    optional,
    recurrent_core,
)
from foundation.checkpoints.reading.scaling import moments
from foundation.core.errors import UserError, suggest
from foundation.core.text import shorten
from foundation.policies.actor_critic import ActorCritic, Critic, Trunk
from foundation.policies.distribution import Choices, Deterministic, Heteroscedastic, ShapedActions
from foundation.policies.memory import Skip
from foundation.policies.mlp import activation_names, resolve_activation
from foundation.policies.rnn import RecurrentCore
from foundation.policies.scaling import ClampedScaler, ValueScaler

KEYS = {
    "model", "running_mean_std", "reward_mean_std", "optimizer", "assymetric_vf_nets", "assymetric_vf_optimizer",
    "central_val_stats", "scaler", "env_state", "last_mean_rewards", "epoch", "frame",
}  # fmt: skip
"""Entries of a checkpoint; only the model and its running moments are read."""

_EPSILON = 1e-5
_BOUND = 5.0
_MODELS = ("continuous_a2c_logstd", "continuous_a2c", "discrete_a2c")


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    model = checkpoint.get("model")
    return isinstance(model, dict) and any("a2c_network." in str(key) for key in model)


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the policy."""
    plain = {str(key).removeprefix("_orig_mod."): value for key, value in checkpoint["model"].items()}
    entries = Entries(plain, f"'{source.path}' (model)")
    config = section(source.agent.data, "params", "network")
    activation = choose_activation(source, at(config, "mlp", "activation"), str(source.agent.path))
    statistics = entries.take("running_mean_std.")
    if "running_mean_std" in checkpoint:
        statistics = Entries(checkpoint["running_mean_std"], f"'{source.path}' (running_mean_std)").take("")
    value_statistics = entries.take("value_mean_std.")
    head, distribution = _actions(entries, source, config)
    separate = entries.take("a2c_network.critic_mlp."), _recurrent(entries, "c_rnn", "c_layer_norm", source)
    own = _recurrent(entries, "a_rnn", "a_layer_norm", source), _recurrent(entries, "rnn", "layer_norm", source)
    body = entries.take("a2c_network.actor_mlp.")
    value = entries.take("a2c_network.value.")
    entries.finish(source.overrides.strict)
    num_obs = statistics["running_mean"].numel() if "running_mean" in statistics else None
    trunk, num_obs = _trunk(source, config, body, own[0] if own[0][0] else own[1], head, activation[0], num_obs)
    compare_dims(source, at(config, "mlp", "units"), trunk.hidden_dims)
    scaler, formula = _scaler(source, statistics, num_obs)
    critic = None
    if value and "assymetric_vf_nets" not in checkpoint:
        critic = optional(
            source, lambda: _critic(source, config, value, value_statistics, separate, trunk, activation[0], num_obs)
        )
    network = ActorCritic(trunk, distribution, critic, scaler)
    if source.agent.path is None:
        clips = "" if isinstance(distribution, Choices) else "its actions are not clipped, and "
        logger.warning(
            "'%s': no params/agent.yaml lies beside it, so that %swhether its observations were clipped in its "
            "training is not known. Put the run's config there, or set agent.clip_actions.",
            source.path,
            clips,
        )
    groups = at(source.agent.data, "params", "env", "obs_groups", "obs")
    groups = [str(group) for group in groups] if isinstance(groups, list) and groups else None
    return finish_actor_critic(
        source, "rl_games", network, activation, formula, groups, _clip_outside(source, distribution)
    )


def _clip_outside(source: Source, distribution: Deterministic) -> float | None:
    """Return the bound that Isaac Lab's wrapper clips to, unless the policy's own actions are in it already."""
    bound = number(at(source.agent.data, "params", "env", "clip_actions"), float("inf"))
    inside = isinstance(distribution, ShapedActions) and distribution.low is not None
    return None if inside or isinstance(distribution, Choices) or bound == float("inf") else bound


def _critic(
    source: Source,
    config: dict[str, Any],
    value: dict[str, torch.Tensor],
    statistics: dict[str, torch.Tensor],
    separate: tuple[dict[str, torch.Tensor], tuple[RecurrentCore | None, nn.LayerNorm | None]],
    actor: Trunk,
    activation: str,
    num_obs: int,
) -> Critic | None:
    """Return the value: layers of its own, or a last layer on the actor's."""
    where = f"'{source.path}' (value)"
    layers: Trunk | nn.Linear
    layers = last = single_linear(value, where)
    if separate[0] or separate[1][0]:
        layers, _ = _trunk(source, config, separate[0], separate[1], last, activation, num_obs)
    elif last.in_features != actor.head.in_features:
        raise UserError(f"{where} expects {last.in_features} inputs, not {actor.head.in_features}: it is corrupt.")
    return Critic(layers, _value_scaler(source, config, statistics)) if last.out_features == 1 else None


def _actions(entries: Entries, source: Source, config: dict[str, Any]) -> tuple[nn.Linear, Deterministic]:
    """Return the last layer (with a learned std: means and then stds), and what makes actions of it."""
    model = at(source.agent.data, "params", "model", "name")
    if model is not None and model not in _MODELS:
        raise UserError(
            f"'{source.agent.path}' names the model '{shorten(str(model))}'. {suggest(str(model), _MODELS)}"
        )
    logits = entries.take("a2c_network.logits.")
    if logits:
        return single_linear(logits, f"'{source.path}' (logits)"), Choices(q_values=False)
    space = section(config, "space", "continuous")
    head = single_linear(entries.take("a2c_network.mu."), f"'{source.path}' (mu)")
    fixed = entries.take_one("a2c_network.sigma")
    learned = entries.take("a2c_network.sigma.")
    activation = _named(source, space.get("sigma_activation"))
    log = model != "continuous_a2c"
    if fixed is not None:
        spread = activation(fixed)
        inner: Deterministic = gaussian(spread.exp() if log else spread, head.out_features, f"'{source.path}' (sigma)")
    else:
        spread_head = single_linear(learned, f"'{source.path}' (sigma)", head.in_features)
        if spread_head.out_features != head.out_features or not isinstance(activation, nn.Identity):
            raise UserError(f"'{source.path}' has a learned std that does not fit its means, or an activation.")
        both = nn.Linear(head.in_features, 2 * head.out_features)
        both.load_state_dict({k: torch.cat([v, spread_head.state_dict()[k]]) for k, v in head.state_dict().items()})
        head = both
        inner = Heteroscedastic(log, (0.0, float("inf")))
    return head, _shaped(source, inner, _named(source, space.get("mu_activation")))


def _shaped(source: Source, inner: Deterministic, squash: nn.Module) -> Deterministic:
    """Squash the mean; where the run's ``clip_actions`` is on, clip to ±1 and map to the range of the actions."""
    clip = at(source.agent.data, "params", "config", "clip_actions")
    if source.agent.path is None or clip is False:
        return inner if isinstance(squash, nn.Identity) else ShapedActions(inner, squash)
    bound = number(at(source.agent.data, "params", "env", "clip_actions"), 1.0)
    bound = bound if bound < float("inf") else 1.0
    low, high = source.given("action_range") or (-bound, bound)
    one = torch.ones(())
    return ShapedActions(inner, squash, (-one, one), one * (high - low) / 2, one * (high + low) / 2)


def _named(source: Source, given: object) -> nn.Module:
    name = str(given or "none").lower()
    name = "identity" if name == "none" else name
    if name not in activation_names():
        raise UserError(
            f"'{source.agent.path}' names the activation '{shorten(str(given))}'. {suggest(name, activation_names())}"
        )
    return resolve_activation(name)


def _recurrent(
    entries: Entries, name: str, norm_name: str, source: Source
) -> tuple[RecurrentCore | None, nn.LayerNorm | None]:
    """Return the recurrent layers of one name, and the layer normalisation after them."""
    where = f"'{source.path}' ({name})"
    tensors = entries.take(f"a2c_network.{name}.rnn.")
    norm = entries.take(f"a2c_network.{norm_name}.")
    if not tensors:
        if norm:
            raise UserError(f"{where} has a '{norm_name}' but no recurrent layers. The file is corrupt.")
        return None, None
    core = recurrent_core(tensors, where)
    if not norm:
        return core, None
    layer = nn.LayerNorm(core.hidden_size)
    if set(norm) != {"weight", "bias"} or any(value.shape != (core.hidden_size,) for value in norm.values()):
        raise UserError(f"{where}: its '{norm_name}' does not fit its {core.hidden_size} units. The file is corrupt.")
    layer.load_state_dict({key: value.float() for key, value in norm.items()})
    return core, layer


def _trunk(
    source: Source,
    config: dict[str, Any],
    body: dict[str, torch.Tensor],
    recurrent: tuple[RecurrentCore | None, nn.LayerNorm | None],
    head: nn.Linear,
    activation: str,
    num_obs: int | None,
) -> tuple[Trunk, int]:
    """Put the layers in their order; return them and the number of observations."""
    where = f"'{source.path}' (actor_mlp)"
    linears = linear_layers(body, where) if body else []
    core, norm = recurrent
    layers = dense(linears, activation)
    first = linears[0].in_features if linears else head.in_features
    last = linears[-1].out_features if linears else first
    if core is None:
        num_obs = first if num_obs is None else num_obs
        if first != num_obs or last != head.in_features:
            raise UserError(f"{where}: its layers do not fit together ({num_obs}, {first}, {last}). It is corrupt.")
        return Trunk([*layers, head]), num_obs
    order = _order(source, config, core, first if linears else None, last, head.in_features, num_obs)
    before, skip_in, skip_out, num_obs = order
    memory: list[nn.Module] = [Skip(), core] if skip_in else [core]
    memory += [] if norm is None else [norm]
    memory += [Skip()] if skip_out else []
    return Trunk([*memory, *layers, head] if before else [*layers, *memory, head]), num_obs


def _order(
    source: Source,
    config: dict[str, Any],
    core: RecurrentCore,
    first: int | None,
    last: int,
    head_in: int,
    num_obs: int | None,
) -> tuple[bool, bool, bool, int]:
    """Return whether the recurrent layers come first, which skips there are, and the number of observations.

    The orders that the sizes allow are found; the config has to name one of them, or there has to be just one.
    """
    core_in = core.rnn.input_size
    units = core.hidden_size
    possible = []
    for before, skip_in, skip_out in itertools.product((False, True), repeat=3):
        if before and skip_in:
            continue
        if first is None:  # no dense layers
            size = core_in if before else None
            fits = before and head_in == units + (core_in if skip_out else 0)
        elif before:
            size = core_in
            fits = first == units + (size if skip_out else 0) and last == head_in
        else:
            size = first
            fits = core_in == last + (size if skip_in else 0) and head_in == units + (size if skip_out else 0)
        if fits and size is not None and num_obs in (None, size):
            possible.append((before, skip_in, skip_out, size))
    stated = at(config, "rnn")
    if isinstance(stated, dict) and first is not None:
        wanted = tuple(bool(stated.get(name, False)) for name in ("before_mlp", "concat_input", "concat_output"))
        if wanted[0]:
            wanted = (True, False, wanted[2])  # the library ignores concat_input there
        possible = [order for order in possible if order[:3] == wanted]
    if len(possible) != 1:
        raise UserError(
            f"'{source.path}': its recurrent and dense layers fit together in {len(possible)} ways. Put the run's "
            "params/agent.yaml beside it; if it is there, the file is corrupt or the config is another run's."
        )
    return possible[0]


def _scaler(source: Source, statistics: dict[str, torch.Tensor], num_obs: int) -> tuple[nn.Module | None, str | None]:
    before = number(at(source.agent.data, "params", "env", "clip_observations"), float("inf"))
    limit = before if before < float("inf") else None
    said = "" if limit is None else f", observations clamped to ±{limit:g} before"
    if not statistics:
        wanted = at(source.agent.data, "params", "config", "normalize_input") is True
        message = f"has no 'running_mean_std', but '{source.agent.path}' sets normalize_input: use the whole checkpoint"
        expect(not wanted, source, message)
        if limit is None:
            return None, None
        logger.info("'%s': observations are clamped to ±%g, as its config says.", source.path, limit)
        return ClampedScaler(torch.zeros(num_obs), torch.ones(num_obs), None, limit), f"none{said}"
    mean, var = moments(statistics, "running_var", "count", num_obs, f"'{source.path}' (running_mean_std)")
    formula = f"(x - mean) / sqrt(var + {_EPSILON:g}), clamped to ±{_BOUND:g}{said}"
    return ClampedScaler(mean, (var + _EPSILON).sqrt(), _BOUND, limit), formula


def _value_scaler(source: Source, config: dict[str, Any], statistics: dict[str, torch.Tensor]) -> nn.Module | None:
    activation = _named(source, config.get("value_activation"))
    if not statistics:
        wanted = at(source.agent.data, "params", "config", "normalize_value") is True
        expect(not wanted, source, f"has no 'value_mean_std', but '{source.agent.path}' sets normalize_value")
        return None if isinstance(activation, nn.Identity) else activation
    mean, var = moments(statistics, "running_var", "count", 1, f"'{source.path}' (value_mean_std)")
    return ValueScaler(mean, (var + _EPSILON).sqrt(), _BOUND, activation)
