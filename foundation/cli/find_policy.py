"""Which policy ``play.py`` plays: the file that the flags mean, read, and the task that it was trained on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.core.errors import UserError
from foundation.core.registry import refuse_untyped

if TYPE_CHECKING:
    from foundation.teachers import TeacherPolicyWrapper

LOG_ROOT = Path("logs")
BEST = "best_student.pt"


TEACHER = "distill.teacher."
"""What overrides that are about the policy's checkpoint begin with."""


def said_of_teacher(tokens: Sequence[str]) -> dict[str, Any]:
    """Return what ``distill.teacher.<key>=<value>`` says about the checkpoint.

    Args:
        tokens: As they were typed.
    """
    import yaml

    said = {}
    for token in tokens:
        key, found, value = token.partition("=")
        name = key.removeprefix("distill.").removeprefix("teacher.")
        if not found or not name.isidentifier():
            raise UserError(f"'{token}' is not understood: write distill.teacher.<key>=<value>, such as strict=false")
        try:
            said[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"'{token}': its value cannot be read; put text in quotes") from error
    return said


def find_policy(
    args: argparse.Namespace, tokens: Sequence[str] = ()
) -> tuple[str, str, Path | None, TeacherPolicyWrapper | None]:
    """Find and read the policy; it also says which task it was trained on.

    Args:
        args: Flags.
        tokens: Overrides that were typed; those of ``distill.teacher`` are about the policy's checkpoint.

    Returns:
        Task, device, checkpoint and policy; the last two are None for zero and random actions.
    """
    from foundation.cli.cli_args import resolve_device

    device = resolve_device(args.device or "auto")
    if args.agent in ("zero", "random"):
        if args.task is None:
            raise UserError(f"--agent {args.agent} needs a task: --task ID, such as Isaac-Quadcopter-Point-Ctrl-v0")
        return args.task, device, None, None
    from foundation.teachers import TeacherPolicyWrapper

    checkpoint = find_checkpoint(args)
    overrides = said_of_teacher([token for token in tokens if token.startswith(TEACHER)])
    if args.obs_groups:
        overrides["obs_groups"] = args.obs_groups
    policy = TeacherPolicyWrapper(checkpoint, device, **overrides)
    task = args.task or ("" if args.describe else own_task(checkpoint))
    return task, device, checkpoint, policy


def find_checkpoint(args: argparse.Namespace) -> Path:
    """Return the file that the flags mean; by default the best student of the newest distillation run."""
    from foundation.runs.run_dir import RunDir

    named = args.checkpoint
    if named and (Path(named).exists() or os.sep in named):
        return Path(named)
    try:
        wanted = named or BEST  # a run that was stopped before its first evaluation has no student yet
        run = RunDir.find(LOG_ROOT / "distillation", args.experiment_name, args.load_run, with_file=wanted)
    except UserError as error:  # it may be a run of train.py, but only if the user names one
        if args.experiment_name is None and args.load_run is None:
            missing = f"'{named}' does not exist, and " if named else ""
            raise UserError(
                f"{missing}no run found in {LOG_ROOT / 'distillation'}: give --checkpoint PATH, or distil a student "
                "first"
            ) from None
        try:
            run = RunDir.find(LOG_ROOT / "rsl_rl", args.experiment_name, args.load_run)
        except UserError:
            raise error from None
        best = run.path / "best_model.pt"
        return best if named is None and best.exists() else run.checkpoint_path(named or r"model_.*\.pt")
    return run.checkpoint_path(named or BEST)


def own_task(checkpoint: Path) -> str:
    """Return the task that a checkpoint says it was trained on."""
    from foundation.core.files import load_checkpoint

    try:
        task = load_checkpoint(checkpoint).get("task")
    except UserError:  # the policy could be read: its file is of another kind, which names no task
        task = None
    if not isinstance(task, str):
        raise UserError(f"'{checkpoint}' does not say which task it was trained on: give --task ID")
    refuse_untyped(task, f"'{checkpoint}': its task", "--task")
    return task
