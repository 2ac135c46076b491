"""``deploy.yaml``: what a controller has to know about a policy, under the names that unitree's deployment reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from foundation.deploy.description import Description, Field, Json
from foundation.export.bundle import run_config
from foundation.export.joints import Joints, joints_of


def deploy_values(
    description: Description, checkpoint: Path, joint_order: Sequence[str] | None = None
) -> dict[str, Json]:
    """Return the file's content.

    Args:
        description: What the policy reads and gives.
        checkpoint: Where it was read from: the run's ``params/env.yaml`` beside it says what Isaac Lab's managers do to
            observations and actions.
        joint_order: Joints in the order of the policy's actions and columns, where it is known.
    """
    env = run_config(checkpoint, "env.yaml")
    choices = description.num_choices
    values: dict[str, Json] = {
        "step_dt": description.control_interval,
        "policy": {
            "name": description.name,
            "num_obs": description.num_obs,
            "num_actions": description.num_actions,
            "num_choices": list(choices) if isinstance(choices, tuple) else choices,
            "state_size": description.state_size,
            "normalizer_inside": description.normalized,
            "task": description.task,
            "source_sha256": description.source_sha256,
        },
        "observation_groups": list(description.obs_groups),
        "observation_columns": None if description.obs_slice is None else list(description.obs_slice),
        "observations": {field.name: _field(field) for field in description.observations},
    }
    if description.duties:
        values["observation_duties"] = list(description.duties)
    if joint_order:
        values["joint_order"] = list(joint_order)
    starts = [sum(field.size for field in description.actions[:index]) for index in range(len(description.actions))]
    actions = {
        field.name: _action(field, start, description) for field, start in zip(description.actions, starts, strict=True)
    }
    return values | {
        "observation_terms": _terms(env.get("observations"), description.obs_groups, _OBSERVATION_KEYS),
        "actions": actions,
        **_joints(joints_of(env, description.num_actions)),
        "action_terms": _terms({"actions": env.get("actions")}, ("actions",), _ACTION_KEYS),
    }


def to_deploy_yaml(description: Description, checkpoint: Path, joint_order: Sequence[str] | None = None) -> str:
    """Return the file's text; see :func:`deploy_values`."""
    head = "# Written by foundation. Sizes, units and frames of what the exported policy reads and gives.\n"
    return head + yaml.safe_dump(deploy_values(description, checkpoint, joint_order), sort_keys=False, width=100)


_OBSERVATION_KEYS = ("scale", "clip", "history_length", "noise")
_ACTION_KEYS = ("joint_names", "scale", "offset", "clip", "use_default_offset", "preserve_order")


def _field(field: Field) -> dict[str, Json]:
    return {
        "size": field.size,
        "unit": field.unit or None,
        "frame": field.frame or None,
        "history_length": field.history,
    }


def _joints(joints: Joints | None) -> dict[str, Json]:
    """Return the entries about joints, in the order of the actions, where the run states them."""
    if joints is None:
        return {}
    listed = {
        "default_joint_pos": joints.default_positions,
        "stiffness": joints.stiffness,
        "damping": joints.damping,
    }
    entries: dict[str, Json] = {"joint_names": list(joints.names)}
    for name, values in listed.items():
        entries[name] = None if values is None else list(values)
    return entries


def _action(field: Field, start: int, description: Description) -> dict[str, Json]:
    clip = description.action_clip
    columns = slice(start, start + field.size)
    return {
        "size": field.size,
        "unit": field.unit or None,
        "frame": field.frame or None,
        "clip": None if clip is None else [-clip, clip],
        "scale": None if description.action_scale is None else list(description.action_scale[columns]),
        "offset": None if description.action_offset is None else list(description.action_offset[columns]),
    }


def _terms(groups: object, wanted: tuple[str, ...], keys: tuple[str, ...]) -> dict[str, Json]:
    """Return the terms of Isaac Lab's managers, in order, with those of their settings that change numbers."""
    found: dict[str, Json] = {}
    for group in wanted:
        terms = groups.get(group) if isinstance(groups, Mapping) else None
        if not isinstance(terms, Mapping):
            continue
        for name, term in terms.items():
            if isinstance(term, Mapping):
                found[f"{group}.{name}"] = {key: _plain(term[key]) for key in keys if key in term}
    return found


def _plain(value: object) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
