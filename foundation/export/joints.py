"""What a run's ``env.yaml`` says about the joints that a policy moves: order, scale, offset, gains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PATTERN_SIGNS = frozenset(".*+?[](){}|^$\\")


@dataclass(frozen=True, kw_only=True)
class Joints:
    """The joints of an action, in its order. A target is ``offset + scale * action``."""

    names: tuple[str, ...]
    scale: tuple[float, ...]
    """Shape: (num_actions,)."""
    offset: tuple[float, ...]
    """Shape: (num_actions,)."""
    default_positions: tuple[float, ...] | None
    """At the start of an episode [rad or m]. None: not stated."""
    stiffness: tuple[float, ...] | None
    """Of the position controller [N m/rad or N/m]. None: not stated."""
    damping: tuple[float, ...] | None
    """Of the controller [N m s/rad or N s/m]. None: not stated."""


def joints_of(env: Mapping[str, object], num_actions: int) -> Joints | None:
    """Return the joints that the actions of Isaac Lab's or mjlab's managers move.

    Args:
        env: The run's ``env.yaml``.
        num_actions: Size of the policy's action.

    Returns:
        None where the order is not stated: by patterns of names, or several names in the simulator's order, or where an
        action is of another kind.
    """
    terms = [term for term in _mapping(env.get("actions")).values() if term is not None]
    names: list[str] = []
    scale: list[float] = []
    offset: list[float] = []
    for part in terms:
        term = _mapping(part)
        own = _ordered_names(term)
        asset = _asset(env, term)
        scales = _each(term.get("scale", 1.0), own, 1.0)
        offsets = _offsets(term, asset, own)
        if not own or scales is None or offsets is None:
            return None
        names += own
        scale += scales
        offset += offsets
    if not names or len(names) != num_actions or len(set(names)) != len(names):
        return None
    asset = _asset(env, _mapping(terms[0]))
    starts = _mapping(asset.get("init_state")).get("joint_pos")
    positions = None if starts is None else _each(starts, names, 0.0)
    return Joints(
        names=tuple(names),
        scale=tuple(scale),
        offset=tuple(offset),
        default_positions=None if positions is None else tuple(positions),
        stiffness=_gains(asset, names, "stiffness"),
        damping=_gains(asset, names, "damping"),
    )


def _ordered_names(term: Mapping[str, object]) -> list[str]:
    """Return the joints of an action term where their order is stated."""
    named = term.get("joint_names", term.get("actuator_names"))
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return []
    plain = [str(name) for name in names if not _PATTERN_SIGNS & set(str(name))]
    stated = len(plain) == len(names) and (len(plain) == 1 or term.get("preserve_order") is True)
    return plain if stated else []


def _offsets(term: Mapping[str, object], asset: Mapping[str, object], names: list[str]) -> list[float] | None:
    if term.get("use_default_offset") is not True:
        return _each(term.get("offset", 0.0), names, 0.0)
    # A default that the robot's file alone states is not in the config.
    of_velocity = "velocity" in str(term.get("class_type", "")).lower()
    starts = _mapping(asset.get("init_state")).get("joint_vel" if of_velocity else "joint_pos")
    return None if starts is None else _each(starts, names, 0.0)


def _asset(env: Mapping[str, object], term: Mapping[str, object]) -> Mapping[str, object]:
    """Return the robot's config: of Isaac Lab's scene, or of mjlab's."""
    scene = _mapping(env.get("scene"))
    name = str(term.get("asset_name", term.get("entity_name", "robot")))
    return _mapping(scene.get(name)) or _mapping(_mapping(scene.get("entities")).get(name))


def _gains(asset: Mapping[str, object], names: list[str], what: str) -> tuple[float, ...] | None:
    """Return a gain of each joint, where its actuator states it."""
    actuators = asset.get("actuators", _mapping(asset.get("articulation")).get("actuators"))
    groups = list(actuators.values()) if isinstance(actuators, Mapping) else actuators
    found: dict[str, float] = {}
    for group in groups if isinstance(groups, Sequence) else ():
        actuator = _mapping(group)
        patterns = actuator.get("joint_names_expr", actuator.get("target_names_expr"))
        listed = [patterns] if isinstance(patterns, str) else patterns
        own = [
            name
            for name in names
            if isinstance(listed, Sequence) and any(_matches(str(pattern), name) for pattern in listed)
        ]
        values = _each(actuator.get(what), own, None)
        found |= dict(zip(own, values, strict=True)) if values is not None else {}
    return tuple(found[name] for name in names) if set(found) == set(names) else None


def _each(value: object, names: list[str], missing: float | None) -> list[float] | None:
    """Return a number for each joint: the same for all, or by patterns of names. None: not all of them are stated."""
    if isinstance(value, Mapping):
        each = [next((v for pattern, v in value.items() if _matches(str(pattern), name)), missing) for name in names]
    elif value is None:
        each = [missing] * len(names)
    else:
        each = [value] * len(names)
    numbers = [float(item) for item in each if isinstance(item, int | float) and not isinstance(item, bool)]
    return numbers if len(numbers) == len(names) else None


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
