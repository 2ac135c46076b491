"""Which columns of an environment's observations and actions belong to which joints: declared, or its managers'."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDict

from foundation.config.derived_cfg import DerivedGroup
from foundation.config.joint_columns import JointBlock, JointColumns
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.engines.observation_terms import observation_terms

_PER_JOINT = ("joint", "dof")
_PER_ACTION = "action"
"""Parts of the names of terms, or of their functions, that have a number for each joint or action."""


def action_joints(env: VecEnv) -> tuple[str, ...]:
    """Return the joint of each action, "" for one that drives none; nothing where joints have no names.

    Args:
        env: The environment; it declares ``joint_names``, or has an action manager (Isaac Lab, mjlab).
    """
    declared = tuple(EnvCapabilities.of(env).joint_names)
    if declared:
        return declared if len(declared) == env.num_actions else ()
    manager: Any = getattr(getattr(env, "unwrapped", env), "action_manager", None)
    names: list[str] = []
    for term in getattr(manager, "active_terms", None) or ():
        names += _joints_of_action(manager.get_term(term))
    return tuple(names) if any(names) and len(names) == env.num_actions else ()


def joint_columns(env: VecEnv, task: str, obs: TensorDict) -> JointColumns | None:
    """Return the order of joints in an environment; None where they have no names.

    A term of the observations is one of joints where it declares so (``joint_terms``), or where it, or the function of
    its manager, is named after joints or actions and its size is a multiple of their number.

    Args:
        env: The environment.
        task: The task, which may name terms.
        obs: Observations of the environment.
    """
    actions = action_joints(env)
    if not actions:
        return None
    declared = EnvCapabilities.of(env).joint_terms
    manager = _Manager(env, actions)
    groups: dict[str, list[JointBlock]] = {}
    for group, fields in observation_terms(env, task, obs).items():
        blocks: list[JointBlock] = []
        for field in fields:
            names = declared.get(f"{group}.{field.name}") or declared.get(field.name)
            names = names or manager.names_of(group, field.name)
            blocks.append(_block(names, field.size))
        groups[group] = blocks
    for name, derived in EnvCapabilities.of(env).derived_groups.items():
        if all(term.group in groups for term in derived.terms):
            groups[name] = _derived_blocks(derived, groups)
    return JointColumns(actions, groups)


def _block(names: Sequence[str], size: int) -> JointBlock:
    """Return columns of some names, or of none where they do not fit."""
    if names and size % len(names) == 0:
        return JointBlock(tuple(names), size // len(names))
    return JointBlock(("",) * size)


def _derived_blocks(group: DerivedGroup, groups: Mapping[str, list[JointBlock]]) -> list[JointBlock]:
    """Return the columns of a group that is made of others: each term's, for the steps of its history."""
    blocks: list[JointBlock] = []
    for term in group.terms:
        columns = [name for block in groups[term.group] for name in block.names * block.frames]
        names = tuple(columns[column] for column in term.columns)
        part = term.name if term.name.endswith("]") and any(names) else ""
        frames = group.settings.history
        once = len(set(names)) == len(names) or not any(names)
        if once:
            blocks.append(JointBlock(names, frames, part))
        else:  # the term has steps of its own, which a history repeats
            own = next(size for size in range(1, len(names) + 1) if names == names[:size] * (len(names) // size))
            blocks.append(JointBlock(names[:own], frames * len(names) // own, part))
    return blocks


class _Manager:
    """Joints of an observation manager's terms."""

    def __init__(self, env: VecEnv, actions: tuple[str, ...]):
        inner: Any = getattr(env, "unwrapped", env)
        self._actions = actions
        self._scene: Any = getattr(inner, "scene", None)
        self._action_manager: Any = getattr(inner, "action_manager", None)
        manager: Any = getattr(inner, "observation_manager", None)
        names = getattr(manager, "active_terms", None)
        self._terms = names if isinstance(names, Mapping) else {}
        self._cfgs: Mapping[str, Any] = getattr(manager, "_group_obs_term_cfgs", None) or {}

    def names_of(self, group: str, term: str) -> Sequence[str]:
        """Return the joints of a term; none where it is of something else."""
        function: Any = None
        params: Mapping[str, Any] = {}
        if term in self._terms.get(group, ()) and len(self._cfgs.get(group, ())) == len(self._terms[group]):
            cfg = self._cfgs[group][list(self._terms[group]).index(term)]
            function = cfg.func
            params = cfg.params or {}
        called = f"{term} {getattr(function, '__name__', type(function).__name__ if function else '')}".lower()
        if _PER_ACTION in called:
            return self._of_actions(params.get("action_name"))
        if any(word in called for word in _PER_JOINT):
            return self._of_asset(function, params) or self._actions
        return ()

    def _of_actions(self, name: object) -> Sequence[str]:
        if isinstance(name, str) and self._action_manager is not None:
            return _joints_of_action(self._action_manager.get_term(name))
        return self._actions

    def _of_asset(self, function: Any, params: Mapping[str, Any]) -> Sequence[str]:
        """Return the joints that a term's asset config selects; none without one."""
        selected = params.get("asset_cfg")
        if selected is None and function is not None:
            call = function if inspect.isroutine(function) else type(function).__call__
            default = inspect.signature(call).parameters.get("asset_cfg")
            selected = None if default is None or default.default is inspect.Parameter.empty else default.default
        if selected is None or self._scene is None:
            return ()
        joints = list(getattr(self._scene[selected.name], "joint_names", ()))
        chosen = selected.joint_ids
        if isinstance(chosen, slice):
            return joints[chosen]
        return [joints[int(index)] for index in chosen]


def _joints_of_action(term: Any) -> list[str]:
    """Return the joint of each action of a manager's term: mjlab's ``target_names``, Isaac Lab's ``_joint_names``."""
    size = int(term.action_dim)
    for attribute in ("target_names", "_joint_names", "joint_names"):
        names = getattr(term, attribute, None)
        if names is not None and len(names) == size:
            return [str(name) for name in names]
    return [""] * size
