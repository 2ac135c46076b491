"""Hydra's ``${...}`` in values: ``${now:%Y}``, ``${oc.env:HOME}``, ``${seed}``, ``${env.scene.num_envs}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foundation.core.errors import UserError, suggest


def has_interpolation(value: object) -> bool:
    """Return whether a value, or anything in it, refers to another one."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, Mapping):
        return any(has_interpolation(entry) for entry in value.values())
    return isinstance(value, (list, tuple)) and any(has_interpolation(entry) for entry in value)


def interpolate(value: object, known: Mapping[str, Any], where: str) -> Any:
    """Put in what a value refers to.

    Args:
        value: Any plain value; one without ``${`` is returned as it is.
        known: What can be referred to, as nested plain values.
        where: What the user typed, for messages.

    Raises:
        UserError: If it refers to what is not there, or cannot be read.
    """
    if not has_interpolation(value):
        return value
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    if "${hydra:" in str(value) and not HydraConfig.initialized():
        return value  # --cfg job shows it as it is: a job alone knows its number
    setup_globals()  # Hydra's own resolvers: now, hydra, python_version
    try:
        found = OmegaConf.create({**known, _SLOT: value}).get(_SLOT)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except InterpolationKeyError as error:
        missing = str(error).partition("'")[2].partition("'")[0]
        raise UserError(f"{where}: no key '{missing}' to refer to. {suggest(missing, _paths(known))}") from None
    except (OmegaConfBaseException, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(" full_key: ")[0]  # OmegaConf's own names follow
        raise UserError(f"{where} cannot be read: {reason}") from None


_SLOT = "__value__"


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """List the dotted names of everything that is nested in some values."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
