"""Resolve a command line of ``distillation.py`` without any engine, as an offline run needs none."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from foundation.cli.cli_args import CommandParser, distillation_flags, parse_command, refuse_other_encodings
from foundation.cli.many_processes import refuse_modes
from foundation.cli.run_to_end import LOG_ROOT, find_resumed, refuse_new_names
from foundation.cli.steps import StagedCommand
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.presets import own_preset, read_preset
from foundation.config.resolve import Resolved, choices, config_folder, resolve
from foundation.core.devices import resolve_device
from foundation.core.distributed import current
from foundation.core.errors import UserError
from foundation.core.registry import refuse_untyped_names
from foundation.learning.losses import LOSSES, check_main_loss
from foundation.runs.metrics_writer import check_logger
from foundation.runs.run_dir import RunDir
from foundation.students import student_cfg_class

TEACHER_ROOT = Path("logs/rsl_rl")


@dataclass
class Request:
    """A command line of ``distillation.py``, its config resolved, before any engine is chosen."""

    parser: CommandParser
    argv: Sequence[str]
    args: argparse.Namespace
    tokens: list[str]
    """What was typed as ``key=value``, or may have been: an engine's own flags are not known yet."""
    resumed: RunDir | None
    overrides: Overrides
    resolved: Resolved

    @classmethod
    def read(cls, parser: CommandParser, argv: Sequence[str]) -> Request:
        """Read a command line.

        Args:
            parser: Knows the flags that need no engine.
            argv: Arguments without the program's name.
        """
        refuse_other_encodings(argv)
        args, tokens = parse_command(parser, argv, strict=False)
        resumed = find_resumed(args, LOG_ROOT) if args.resume else None
        overrides, resolved = settle(args, tokens, resumed)
        if resumed is not None:
            refuse_new_names(resumed, resumed.load_params(), resolved.cfg.experiment_name, resolved.cfg.run_name)
        return cls(parser, argv, args, tokens, resumed, overrides, resolved)

    @property
    def cfg(self) -> DistillationCfg:
        """The run's configuration."""
        return self.resolved.cfg


def settle(args: argparse.Namespace, tokens: list[str], resumed: RunDir | None) -> tuple[Overrides, Resolved]:
    """Resolve the config from files (or the run to resume), overrides and flags."""
    if args.offline and args.video:
        raise UserError("--offline has no simulator to record: leave out --video")
    if (args.checkpoint or args.load_run) and not args.resume:
        refuse_checkpoint(args)
    saved = load_overrides(resumed)
    if resumed and args.task not in (None, resumed.load_params().get("task")):
        other = resumed.load_params().get("task")
        raise UserError(f"{resumed.path} is a run of --task {other}: name another by --load_run or --experiment_name")
    overrides = parse_overrides([*saved.pop("tokens", []), *tokens])
    base = resumed.load_params() | saved if resumed else None
    resolved = resolve(
        overrides, distillation_flags(args), student_cfg_class=student_cfg_class, loss_names=LOSSES, base=base
    )
    ranks = current()
    resolved.cfg.device = ranks.place(resolve_device(resolved.cfg.device))
    if resolved.cfg.dataset.device not in (None, "auto"):
        resolved.cfg.dataset.device = ranks.place(resolved.cfg.dataset.device)
    if ranks.world_size > 1:
        refuse_modes(resolved.cfg)
    check_logger(resolved.cfg.logger)
    if resolved.cfg.loss.name in LOSSES:  # before a simulator starts; a loss of another package is asked later
        check_main_loss(LOSSES[resolved.cfg.loss.name])
    return overrides, resolved


def refuse_checkpoint(args: argparse.Namespace) -> NoReturn:
    """Raise for ``--load_run`` and ``--checkpoint`` without ``--resume``, which are mostly meant for the teacher."""
    given = [f"--{name}" for name in ("load_run", "checkpoint") if getattr(args, name)]
    say = f"{given[0]} names here the run to resume and needs"
    if len(given) > 1:
        say = f"{' and '.join(given)} name here the run to resume and need"
    teacher = args.checkpoint if args.checkpoint and Path(args.checkpoint).is_file() else None
    if teacher is None:
        with contextlib.suppress(UserError):
            run = RunDir.find(TEACHER_ROOT, args.experiment_name, args.load_run)
            teacher = run.checkpoint_path(args.checkpoint or r"(best_model|model_\d+)\.pt")
    raise UserError(
        f"the teacher is named by --teacher_checkpoint {teacher or 'PATH'}; {say} --resume "
        "(and a student's weights to start from are distill.student.init_checkpoint=PATH)"
    )


def load_overrides(run: RunDir | None) -> dict[str, Any]:
    """Return what a run was started with for the ``env`` and ``agent`` configs."""
    if run is None or not (run.params_dir / "overrides.yaml").exists():
        return {}
    saved = run.load_params("overrides")
    refuse_untyped_names(saved, f"{run.params_dir / 'overrides.yaml'}")
    return saved


def read_experiment(name: str) -> dict[str, Any]:
    """Read a file of ``configs/experiment``, or the user's own; empty where there is none, which is refused later."""
    path = config_folder() / "experiment" / f"{name}.yaml"
    if name not in choices("experiment"):
        try:
            path = own_preset("experiment", name, choices("experiment"))
        except UserError:
            return {}
    return read_preset("experiment", path)[0]


STAGED = StagedCommand(
    "foundation.rsl_rl.distillation",
    LOG_ROOT,
    read_experiment,
    "teacher_checkpoint",
    ("teacher", "checkpoint"),
    lambda student: DistillationCfg(student=student_cfg_class(student)()),
)
"""What a file with stages runs."""
