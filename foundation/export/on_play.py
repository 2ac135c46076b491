"""Exports beside a policy that was played, as Isaac Lab's ``play.py`` has them: ``policy.pt`` and ``policy.onnx``."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from foundation.checkpoints.reading.loading import LoadedPolicy
from foundation.core.errors import UserError
from foundation.export.bundle import make_bundle
from foundation.export.formats import export
from foundation.tasks import resolve_task

logger = logging.getLogger(__name__)

_EXPORTS = ("ONNX export", "TorchScript export")
"""Formats of files that need no export: they are one."""


def export_played(policy: LoadedPolicy, folder: Path, task: str) -> None:
    """Write what a robot's runner loads, each file checked; what cannot be written is said and stops nothing.

    Args:
        policy: The policy.
        folder: Where to.
        task: The task that it acts in.
    """
    if policy.info.format in _EXPORTS:
        return
    formats = ["torchscript", "onnx"]
    if find_spec("onnx") is None:
        logger.info("policy.onnx is not written: it needs the package onnx (pip install -e '.[export]')")
        formats.remove("onnx")
    try:
        bundle = make_bundle(policy, task=_registered(task))
        for written in export(bundle, folder, formats):
            print(f"Exported {written.line()}")
    except UserError as error:
        logger.info("Not exported (--no-export does without): %s", error)


def _registered(task: str) -> str | None:
    """Return a task that says what its observations are; None for one that an engine alone knows, which cannot."""
    try:
        resolve_task(task)
    except UserError:
        return None
    return task
