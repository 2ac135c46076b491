"""What the weights do not say: the activation, and how the raw output becomes actions."""

from __future__ import annotations

import logging
from typing import Any

import torch

from foundation.checkpoints.reading.loading import DISTRIBUTIONS, Source
from foundation.core.errors import UserError, suggest
from foundation.policies.distribution import Beta, Deterministic, Gaussian, Heteroscedastic
from foundation.policies.mlp import activation_names

logger = logging.getLogger(__name__)

_STD_RANGE = (1e-6, float("inf"))


def choose_activation(source: Source, role: str) -> tuple[str, str]:
    """Return the activation of a network, and where that is known from."""
    given = source.agent.option(role, "activation")
    if source.overrides.activation is not None:
        said = role == "critic" and given == source.agent.option("actor", "activation")
        return override_activation(source, None if said else given, str(source.agent.path))
    if isinstance(given, str):
        name = given.rsplit(".", 1)[-1].lower()
        if name in activation_names():
            return name, str(source.agent.path)
        raise UserError(
            f"'{source.agent.path}' names the activation '{given}'. {suggest(name, activation_names())} "
            "Give the right one: --teacher_activation (distill.teacher.activation)."
        )
    if role != "critic":
        logger.warning(
            "'%s': the activation is not in the weights and no params/agent.yaml beside it names one; taking 'elu'. "
            "If the teacher acts badly, give its activation (--teacher_activation).",
            source.path,
        )
    return "elu", "default (not known)"


def override_activation(source: Source, stated: Any, stated_by: str) -> tuple[str, str]:
    """Return the activation that the user gives, with a warning where it is not the stated one."""
    assert source.overrides.activation is not None
    given = source.overrides.activation.lower()
    if stated is not None and str(stated).rsplit(".", 1)[-1].lower() != given:
        logger.warning(
            "'%s': taking the activation '%s' as given; '%s' says '%s'.", source.path, given, stated_by, stated
        )
    return given, "override"


def choose_distribution(
    source: Source, role: str, num_out: int, std: torch.Tensor | None, log_std: torch.Tensor | None
) -> Deterministic:
    """Return what turns a network's raw output into mean and standard deviation.

    Args:
        source: Where the policy is read from.
        role: ``actor`` or ``student``.
        num_out: Size of the network's last layer.
        std: The deviation parameter, where there is one.
        log_std: Its logarithm, where there is one.
    """
    kind, options = source.agent.distribution(role)
    bounds = _pair(options.get("std_range"), _STD_RANGE)
    bounds = (max(bounds[0], 1e-6), bounds[1])
    given = std if std is not None else log_std
    if given is not None:
        if given.numel() != num_out or given.dim() != 1:
            raise UserError(
                f"'{source.path}': its deviation has {given.numel()} entries and its network {num_out} actions."
            )
        scale = given.float() if std is not None else given.float().exp()
        return Gaussian(scale.clamp(*bounds))
    name = source.overrides.distribution or kind
    if name is None:
        name = _guess_distribution(source, role, num_out)
    elif name == "gaussian":
        raise UserError(f"'{source.path}' lacks the deviation of its gaussian actions ('std' or 'log_std').")
    elif name == "categorical":
        raise UserError(f"'{source.path}': RSL-RL has no categorical actions; {_valid_without_deviation()}.")
    log = {"scalar": False, "log": True}.get(str(options.get("std_type", "scalar" if kind else None)))
    if name in ("heteroscedastic", "heteroscedastic_log", "beta") and num_out % 2:
        raise UserError(f"'{source.path}': a {name} policy has an even number of outputs; this one has {num_out}.")
    if name == "beta":
        return Beta(_pair(source.overrides.action_range or options.get("action_range"), (-1.0, 1.0)))
    if name == "heteroscedastic_log":
        return Heteroscedastic(True, bounds)
    if name == "heteroscedastic":
        return Heteroscedastic(log if source.overrides.distribution is None else False, bounds)
    return Deterministic()


def _guess_distribution(source: Source, role: str, num_out: int) -> str:
    if role == "student":
        return "deterministic"
    raise UserError(
        f"'{source.path}' has no deviation parameter, so that it is not known how its {num_out} outputs make actions. "
        f"Put the run's params/agent.yaml beside it, or {_valid_without_deviation()}."
    )


def _valid_without_deviation() -> str:
    valid = [name for name in DISTRIBUTIONS if name not in ("gaussian", "categorical")]
    return f"set distill.teacher.distribution to one of: {', '.join(valid)}"


def _pair(value: Any, default: tuple[float, float]) -> tuple[float, float]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return float(value[0]), float(value[1])
    return default
