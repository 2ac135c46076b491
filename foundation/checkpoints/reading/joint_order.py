"""Order of a policy's joints, as its own file or an export beside it states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundation.checkpoints.onnx.file import joint_names
from foundation.checkpoints.reading.loading import LoadedPolicy, Source, logger
from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.core.text import quoted

_PLACES = ("", "params", "exported")
"""Folders of a run in which a ``deploy.yaml`` may lie."""
_KEYS = ("joint_order", "joint_names")
"""Its keys, ours and those of others."""


def with_joint_order(policy: LoadedPolicy, source: Source, checkpoint: Mapping[str, Any] | None = None) -> LoadedPolicy:
    """Return a policy with the order of its joints, where one is stated.

    In order of precedence: the user's, the checkpoint's own, a ``deploy.yaml`` beside it, the metadata of an export
    beside it.

    Args:
        policy: The policy; its info has the order that an export states itself.
        source: Where it was read from, and what the user has set.
        checkpoint: Entries of a PyTorch checkpoint.

    Raises:
        UserError: If what is stated is no list of different names.
    """
    given = source.overrides.joint_order
    if given is not None:
        return _stated(policy, list(given), "distill.teacher.joint_order")
    where = f"'{source.path}'"
    infos = None if checkpoint is None else checkpoint.get("infos")
    for entries in (checkpoint, infos):
        if isinstance(entries, Mapping) and entries.get("joint_order") is not None:
            return _stated(policy, _names(entries["joint_order"], where), where)
    if policy.info.joint_order is not None:
        return _stated(policy, _names(policy.info.joint_order, where), where)
    for folder in _PLACES:
        file = source.path.parent / folder / "deploy.yaml"
        values = load_yaml(file) if file.is_file() else None
        for key in _KEYS:
            if isinstance(values, Mapping) and values.get(key) is not None:
                return _stated(policy, _names(values[key], f"'{file}': {key}"), f"'{file}'")
    return _from_export_beside(policy, source.path)


def _from_export_beside(policy: LoadedPolicy, path: Path) -> LoadedPolicy:
    """Take the order of the one ONNX file in the checkpoint's folder, as mjlab writes it beside each checkpoint."""
    exports = sorted(path.parent.glob("*.onnx"))
    if len(exports) != 1 or path.suffix == ".onnx":
        return policy
    try:
        names = joint_names(exports[0])
    except UserError as error:  # the checkpoint itself can be read
        logger.info("The order of the joints is not read from '%s': %s", exports[0], error)
        return policy
    return policy if names is None else _stated(policy, _names(names, f"'{exports[0]}'"), f"'{exports[0]}'")


def _stated(policy: LoadedPolicy, names: list[str], where: str) -> LoadedPolicy:
    return replace(policy, info=replace(policy.info, joint_order=names, joint_order_from=where))


def _names(value: object, where: str) -> list[str]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where} states an order of joints that is no list of names: {quoted(value)}")
    if not all(name.isprintable() for name in value):
        raise UserError(f"{where} is corrupt: {quoted(value)} are names of joints.")
    return list(value)
