"""Assemble a policy and its :class:`PolicyInfo` from the networks of a checkpoint of any library.

Activation and action distribution are not in the weights. They are chosen here: by the user's setting if there is one,
else by the file, else by the config beside it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.loading import (
    DISTRIBUTIONS,
    LoadedPolicy,
    Source,
    Tensors,
    linear_layers,
)
from foundation.core.errors import UserError, suggest
from foundation.core.text import quoted, shorten
from foundation.policies.actor_critic import ActorCritic
from foundation.policies.distribution import Beta, Choices, Deterministic, Gaussian, Heteroscedastic, ShapedActions
from foundation.policies.info import PolicyInfo
from foundation.policies.mlp import activation_names, resolve_activation
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore

logger = logging.getLogger(__name__)

Activation = tuple[str, str]
"""The activation of the hidden layers, and its origin, which ``teacher_info.py`` shows."""
CHECKPOINT: str = "checkpoint"
"""Origin of a value that is in the file itself."""

_STD_RANGE = (1e-6, float("inf"))


# -- what the weights do not hold -----------------------------------------------------------------------------------


def choose_activation(source: Source, stated: object, stated_by: str, known: bool = True) -> Activation:
    """Return the activation of the hidden layers, and its origin.

    Args:
        source: Where the policy is read from.
        stated: The value in the checkpoint or in the config beside it; None if there is none.
        stated_by: Which of the two: ``CHECKPOINT`` or the config's path.
        known: Whether to warn if the activation is not stated anywhere.

    Raises:
        UserError: If an unknown activation is stated and the user gives no other.
    """
    file = str(source.path) if stated_by == CHECKPOINT else stated_by
    name = str(stated).rsplit(".", 1)[-1].lower()
    name = "identity" if name in ("none", "linear") else name
    if source.overrides.activation is not None:
        given = source.overrides.activation.lower()
        if stated is not None and name != given:
            logger.warning(
                "'%s': taking the activation '%s' as given; '%s' says '%s'.", source.path, given, file, stated
            )
        return given, "override"
    if stated is not None:
        if name not in activation_names():
            raise UserError(
                f"'{file}' names the activation '{shorten(str(stated))}', which is not known. "
                f"{suggest(name, activation_names())} Give the right one: --teacher_activation "
                "(distill.teacher.activation)."
            )
        return name, stated_by
    if known:
        logger.warning(
            "'%s': the activation is not in the weights and no params/agent.yaml beside it names one; taking 'elu'. "
            "If the teacher acts badly, give its activation (--teacher_activation).",
            source.path,
        )
    return "elu", "default (not known)"


def activation_of(source: Source, role: str) -> Activation:
    """Return the activation that RSL-RL's config states for one of its networks.

    Args:
        source: Where the policy is read from.
        role: ``actor``, ``student`` or ``critic``.
    """
    stated = source.agent.option(role, "activation")
    stated = stated if isinstance(stated, str) else None
    if role != "critic":
        return choose_activation(source, stated, str(source.agent.path))
    # The user's activation holds for the critic too. Where its config states the same one as the actor's, the warning
    # about the difference was logged for the actor already.
    said = source.overrides.activation is not None and stated == source.agent.option("actor", "activation")
    return choose_activation(source, None if said else stated, str(source.agent.path), known=False)


def choose_distribution(
    source: Source, role: str, num_out: int, std: torch.Tensor | None, log_std: torch.Tensor | None
) -> Deterministic:
    """Return the distribution that turns the raw output of one of RSL-RL's networks into mean and standard deviation.

    Args:
        source: Where the policy is read from.
        role: ``actor`` or ``student``.
        num_out: Size of the network's last layer.
        std: The parameter ``std``, where there is one. Shape: (num_actions,).
        log_std: The parameter ``log_std``, where there is one. Shape: (num_actions,).

    Raises:
        UserError: If neither file nor config says how the output becomes actions, or they contradict each other.
    """
    kind, options = source.agent.distribution(role)
    bounds = _bounds(options.get("std_range"), "std_range", source, _STD_RANGE)
    bounds = (max(bounds[0], 1e-6), bounds[1])
    given = std if std is not None else log_std
    if given is not None:
        scale = given.float() if std is not None else given.float().exp()
        return gaussian(scale.clamp(*bounds), num_out, f"'{source.path}'")
    name = source.given("distribution") or kind
    if name is None and source.overrides.outputs is not None:  # a categorical policy of a fork, a Q-network
        return Deterministic()
    if name is None:
        name = _guess_distribution(source, role, num_out)
    elif name == "gaussian":
        raise UserError(
            f"'{source.path}' has gaussian actions but no standard deviation ('std' or 'log_std'): it is corrupt."
        )
    elif name == "categorical":
        raise UserError(f"'{source.path}': RSL-RL has no categorical actions; {_valid_without_deviation()}.")
    log = {"scalar": False, "log": True}.get(str(options.get("std_type", "scalar" if kind else None)))
    if name in ("heteroscedastic", "heteroscedastic_log", "beta") and num_out % 2:
        raise UserError(f"'{source.path}': a {name} policy has an even number of outputs; this one has {num_out}.")
    if name == "beta":
        given_range = source.given("action_range") or options.get("action_range")
        return Beta(_bounds(given_range, "action_range", source, (-1.0, 1.0)))
    if name == "heteroscedastic_log":
        return Heteroscedastic(True, bounds)
    if name == "heteroscedastic":
        return Heteroscedastic(log if source.overrides.distribution is None else False, bounds)
    return Deterministic()


def _guess_distribution(source: Source, role: str, num_out: int) -> str:
    if role == "student":
        return "deterministic"
    raise UserError(
        f"'{source.path}' has no parameter 'std' or 'log_std': how its {num_out} outputs become actions is not known. "
        f"Put the run's params/agent.yaml beside it, or {_valid_without_deviation()}."
    )


def _valid_without_deviation() -> str:
    valid = [name for name in DISTRIBUTIONS if name not in ("gaussian", "categorical")]
    return f"set distill.teacher.distribution to one of: {', '.join(valid)}"


def _bounds(value: object, name: str, source: Source, default: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds that the agent's config gives, or the default where it gives none."""
    if value is None:
        return default
    if isinstance(value, list | tuple) and len(value) == 2:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            low, high = map(float, value)  # YAML has 1e-6 as text
            if low < high:  # false with NaN
                return low, high
    raise UserError(f"'{source.agent.path}': {name} is {quoted(value)}: it must be [low, high] with low < high.")


def gaussian(std: torch.Tensor, num_actions: int, where: str) -> Gaussian:
    """Return Gaussian actions whose standard deviation does not depend on the state.

    Args:
        std: Shape: (num_actions,).
        num_actions: Number of actions of the network.
        where: The checkpoint, for the message.

    Raises:
        UserError: If the sizes differ.
    """
    if std.shape != (num_actions,):
        raise UserError(f"{where}: its std has shape {list(std.shape)}, but its network has {num_actions} actions.")
    return Gaussian(std.float())


# -- layers ---------------------------------------------------------------------------------------------------------


def dense(layers: list[nn.Linear], activation: str) -> list[nn.Module]:
    """Return the layers, each followed by the activation."""
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [layer, resolve_activation(activation)]
    return modules


def single_linear(entries: Tensors, where: str, num_in: int | None = None) -> nn.Linear:
    """Return one linear layer of ``weight`` and ``bias``.

    Args:
        entries: The tensors.
        where: The checkpoint, for the message.
        num_in: Its expected number of inputs. None: any.

    Raises:
        UserError: If tensors are missing or of other sizes.
    """
    if set(entries) != {"weight", "bias"}:
        raise UserError(f"{where} has {sorted(entries) or 'nothing'}, not 'weight' and 'bias'. The file is corrupt.")
    layer = linear_layers({f"0.{name}": value for name, value in entries.items()}, where)[0]
    if num_in is not None and layer.in_features != num_in:
        raise UserError(f"{where} expects {layer.in_features} inputs and is given {num_in}. The file is corrupt.")
    return layer


def expect(condition: bool, source: Source, message: str) -> None:
    """Raise for a checkpoint that lacks what its config states; with ``strict=False`` warn instead."""
    if condition:
        return
    if source.overrides.strict:
        raise UserError(f"'{source.path}' {message}.")
    logger.warning("'%s' %s.", source.path, message)


def compare_dims(source: Source, stated: object, found: list[int]) -> None:
    """Warn if the hidden layers in the config beside the checkpoint are not those of the weights."""
    if isinstance(stated, list) and stated and all(isinstance(size, int) for size in stated) and stated != found:
        logger.warning(
            "'%s' has hidden_dims=%s, but the weights in '%s' have %s: its activation and groups may be wrong too.",
            source.agent.path,
            stated,
            source.path,
            found,
        )


# -- the policy and what is known about it --------------------------------------------------------------------------


def finish(
    source: Source,
    layout: str,
    network: PolicyNetwork,
    activation: Activation,
    *,
    hidden_dims: list[int],
    distribution: Deterministic | None = None,
    distribution_name: str | None = None,
    has_std: bool | None = None,
    obs_groups: list[str] | None = None,
    clip_actions: float | None = None,
    **known: Any,
) -> LoadedPolicy:
    """Return a policy with its description; the user's settings take precedence over the file and its config.

    Args:
        source: Where it was read from.
        layout: Library and version, to be shown.
        network: The policy.
        activation: That of the hidden layers, and its origin.
        hidden_dims: Sizes of the dense hidden layers.
        distribution: Turns its raw output into actions. None: the output is the action.
        distribution_name: A name to show in place of the distribution's.
        has_std: Whether its outputs have a standard deviation. None: if the distribution has one.
        obs_groups: Observation groups, where they are known.
        clip_actions: Bound that the environment clips actions to, where it is known.
        known: Further fields of :class:`PolicyInfo`.
    """
    actions = Deterministic() if distribution is None else distribution
    overrides = source.overrides
    has_std = gives_std(actions) if has_std is None else has_std
    info = PolicyInfo(
        format=layout,
        path=str(source.path),
        num_obs=network.num_obs,
        num_actions=network.num_actions,
        hidden_dims=hidden_dims,
        activation=activation[0],
        activation_from=activation[1],
        obs_groups=overrides.obs_groups or obs_groups,
        clip_actions=overrides.clip_actions if overrides.clip_actions is not None else clip_actions,
        agent_config=None if source.agent.path is None else str(source.agent.path),
        distribution=distribution_name or actions.name,
        has_std=has_std,
        **known,
    )
    return LoadedPolicy(network, info)


def gives_std(distribution: Deterministic) -> bool:
    """Return whether a distribution has a standard deviation, found by computing it for a raw output of zeros."""
    inner = distribution.inner if isinstance(distribution, ShapedActions) else distribution
    if isinstance(inner, Gaussian):
        return True
    return not isinstance(inner, Choices) and inner(torch.zeros(1, inner.outputs_per_action))[1] is not None


def finish_actor_critic(
    source: Source,
    layout: str,
    network: ActorCritic,
    activation: Activation,
    normalizer: str | None,
    obs_groups: list[str] | None = None,
    clip_actions: float | None = None,
) -> LoadedPolicy:
    """Return a policy of another library than RSL-RL, with its description.

    Args:
        source: Where it was read from.
        layout: Library and version, to be shown.
        network: The policy.
        activation: That of the hidden layers, and its origin.
        normalizer: The normaliser's formula, to be shown. None: it has none.
        obs_groups: Observation groups, where the config states them.
        clip_actions: Bound that the environment clips actions to, where the config states it.
    """
    trunk = network.actor
    distribution = network.distribution
    place = "after the dense layers" if trunk.encodes_before_core else "before the dense layers"
    images = {} if network.images is None else network.images.shapes
    return finish(
        source,
        layout,
        network,
        activation,
        hidden_dims=trunk.hidden_dims,
        distribution=distribution,
        obs_groups=obs_groups,
        clip_actions=clip_actions,
        num_choices=network.num_choices,
        obs_normalization=normalizer is not None and not normalizer.startswith("none"),
        normalizer=normalizer,
        recurrence="none" if trunk.core is None else f"{memory_of(trunk.core)}, {place}",
        action_shape=distribution.describe() if isinstance(distribution, ShapedActions) else None,
        has_value=network.critic is not None,
        image_groups=list(images),
        image_shapes={group: list(shape) for group, shape in images.items()} or None,
    )


def memory_of(core: RecurrentCore | None) -> str:
    """Describe the memory of a network, such as "gru 16 x 1"."""
    return "none" if core is None else f"{core.kind} {core.hidden_size} x {core.num_layers}"
