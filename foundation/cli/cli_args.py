"""The flags of every command. A flag that is not typed leaves the config as it is."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from foundation.cli.command import Interrupt, run_command, set_up_logging
from foundation.cli.parser import OneLineParser
from foundation.config.distillation_cfg import BelowMin, DistillationCfg, LoggerName, Selection
from foundation.config.overrides import Overrides
from foundation.config.typing_fit import MAX_INTEGER
from foundation.config.validate import A_COUNT, MAX_COUNT, MAX_SEED
from foundation.core.errors import UserError
from foundation.core.text import quoted, shorten

_OTHER_NAMES = {
    "teacher_checkpoint": "teacher.checkpoint",
    "watch_teacher": "teacher.watch",
    "teacher_activation": "teacher.activation",
    "teacher_min_return": "teacher.min_return",
    "teacher_below_min": "teacher.below_min",
    "num_active_teachers": "teacher.num_active",
    "teacher_selection": "teacher.selection",
    "position_offset_correction": "teacher.position_offset_correction",
    "teacher_student_mix": "collection.teacher_student_mix",
    "dataset": "dataset.load",
    "save_dataset": "dataset.save",
}
logger = logging.getLogger("foundation.cli")
_TEACHERS = "--teacher_checkpoint"
OVERRIDES = (
    "Further arguments are Hydra-style overrides: env.scene.num_envs=2048, agent.seed=3, "
    "scene.num_envs=2048 (where only one config has such a key)."
)
"""The end of every command's help."""
_WIDEST_HELP = 110


class CommandParser(OneLineParser):
    """The parser of a command: flags without defaults, and Hydra-style overrides behind them."""

    def __init__(self, **kwargs: object):
        kwargs.setdefault("argument_default", None)
        super().__init__(**{**kwargs, "formatter_class": _HelpFormatter})
        self.epilog = self.epilog or OVERRIDES


def _any_of(choices: object) -> str:
    """List the values of a ``Literal``: ``a, b or c``."""
    *others, last = get_args(choices)
    return f"{', '.join(others)} or {last}"


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        # As wide as the terminal, but lines of more than 110 columns are hard to read. What is no terminal gets 110.
        width = min(shutil.get_terminal_size((_WIDEST_HELP + 2, 0)).columns - 2, _WIDEST_HELP)
        super().__init__(prog, max_help_position=min(34, width // 3), width=width)


def parse_command(
    parser: CommandParser, argv: Sequence[str] | None = None, *, strict: bool = True
) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into flags and override tokens.

    Args:
        parser: The command's parser.
        argv: Arguments without the program's name; None takes the process's own.
        strict: Refuse unknown flags. Off while an engine has yet to add its own: they, and what follows them
            without ``=``, are then left out.

    Returns:
        The flags, and the ``key=value`` tokens in their order.

    Raises:
        UserError: For an unknown flag (names the nearest), a missing or wrong value.
    """
    argv = _spread_teachers(sys.argv[1:] if argv is None else list(argv))
    parser.refuse_values_of_switches(argv)
    args, rest = parser.parse_known_args(argv)
    tokens = []
    for token in rest:
        if token.startswith("-"):
            if strict:
                parser.refuse_unknown(token)
        elif strict or "=" in token or token[:1] in "+~":
            tokens.append(token)
    return args, tokens


def refuse_other_encodings(argv: Sequence[str]) -> None:
    """Refuse names that are not UTF-8 where a run's checkpoint would hold them: it could not be read again.

    Args:
        argv: Arguments without the program's name.

    Raises:
        UserError: Naming the first one.
    """
    for word in argv:
        if not any("\ud800" <= sign <= "\udfff" for sign in word):
            continue
        try:
            name = os.fsencode(word).decode("utf-8")
        except UnicodeError:
            raise UserError(
                f"{quoted(word)} is not UTF-8, and a run's checkpoint holds it: rename it, or give a link to it"
            ) from None
        raise UserError(
            f"{quoted(name)} cannot be read in this locale, in which Python takes names for "
            f"{sys.getfilesystemencoding()}: start it with PYTHONUTF8=1, or with LC_ALL=C.UTF-8"
        )


def _spread_teachers(argv: list[str]) -> list[str]:
    """Put the flag before each of several teachers, so that overrides behind them stay overrides."""
    spread: list[str] = []
    values = 0
    for token in argv:
        if token == _TEACHERS:
            values = 1
        elif values:
            is_override = "=" in token or token[:1] in "-+~"
            if values > 1 and is_override and not Path(token).exists():
                values = 0
            else:
                spread += [_TEACHERS] if values > 1 else []
                values += 1
        spread.append(token)
    return spread


def distillation_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the typed flags that are fields of the distillation config, as dotted field -> value."""
    names = {field.name: field.name for field in dataclasses.fields(DistillationCfg)} | _OTHER_NAMES
    typed = {path: getattr(args, name, None) for name, path in names.items()}
    teachers = typed["teacher.checkpoint"]
    typed["teacher.checkpoint"] = teachers[0] if isinstance(teachers, list) and len(teachers) == 1 else teachers
    return {path: value for path, value in typed.items() if value is not None}


_BEATEN = {
    "num_envs": ("env.scene.num_envs",),
    "seed": ("env.seed", "agent.seed"),
    "device": ("env.sim.device", "agent.device"),
    "max_iterations": ("agent.max_iterations",),
    "experiment_name": ("agent.experiment_name",),
    "run_name": ("agent.run_name",),
    "logger": ("agent.logger",),
    "log_project_name": ("agent.wandb_project", "agent.neptune_project"),
    "load_run": ("agent.load_run",),
    "checkpoint": ("agent.load_checkpoint",),
}
"""Flags, and the keys of ``env`` and ``agent`` that mean the same."""


def say_beaten(args: argparse.Namespace, overrides: Overrides) -> None:
    """Warn of each typed override that a typed flag beats.

    Args:
        args: The flags.
        overrides: What was typed as ``key=value``.
    """
    own = {field.name: field.name for field in dataclasses.fields(DistillationCfg)} | _OTHER_NAMES
    typed = [(f"{scope}.{item.path}", item) for scope, items in overrides.scoped.items() for item in items]
    for flag, value in vars(args).items():
        if value is None or (value is False and flag not in own):
            continue
        meant = (*_BEATEN.get(flag, ()), *([f"distill.{own[flag]}"] if flag in own else []))
        bare = {path.partition(".")[2] for path in meant}
        same = [item for path, item in typed if path in meant] + [i for i in overrides.bare if i.path in bare]
        for item in same:
            if str(item.value) != str(value):
                logger.warning("--%s %s beats %s: a flag wins over an override", flag, value, item.token)


def typed_value(overrides: Overrides, scope: str, path: str) -> Any:
    """Return what was typed last for a key, with or without its scope; None if nothing was.

    Args:
        overrides: What was typed.
        scope: ``env`` or ``agent``.
        path: The key without its scope; of the bare ones, only a nested one means this scope alone.
    """
    items = [*overrides.scoped.get(scope, []), *(overrides.bare if "." in path else [])]
    values = [item.value for item in items if item.path == path]
    return values[-1] if values else None


def add_launch_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the simulation: task, environments, seed, device, engine, video."""
    group = parser.add_argument_group("task and simulator")
    group.add_argument("--task", metavar="ID", help="gym id of the task, or their_package:Id")
    add_import_arg(group)
    group.add_argument("--num_envs", type=positive_int, metavar="N", help="parallel environments")
    group.add_argument("--seed", type=seed, metavar="N", help="seed of everything random")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    group.add_argument(
        "--engine",
        metavar="NAME",
        help="auto, isaaclab, torch, gymnasium, l2f, mjlab, mujoco or pkg.module:Class (auto)",
    )
    group.add_argument("--headless", action="store_true", help="no window (there is none unless asked for)")
    group = parser.add_argument_group("video")
    group.add_argument("--video", action="store_true", help="record clips while it runs")
    group.add_argument("--video_length", type=positive_int, default=200, metavar="N", help="env steps in a clip (200)")
    group.add_argument(
        "--video_interval", type=positive_int, default=2000, metavar="N", help="env steps between two clips (2000)"
    )


def add_import_arg(parser: Any) -> None:
    """Add the flag that imports a user's own module; a name in a file alone does not import it."""
    what = "import this module first: it has the student, task or loss that a file names, or a checkpoint format"
    parser.add_argument("--import", action="append", metavar="MODULE", help=what)


def add_rsl_rl_args(parser: argparse.ArgumentParser) -> None:
    """Add RSL-RL's flags, as Isaac Lab has them: names of the run, resuming, logging."""
    group = parser.add_argument_group("run")
    group.add_argument("--experiment_name", metavar="NAME", help="folder of the experiment under logs/")
    group.add_argument("--run_name", metavar="NAME", help="suffix of the run's folder")
    group.add_argument("--resume", action="store_true", help="resume an earlier run")
    group.add_argument("--load_run", metavar="RUN", help="run to load: its name, or a pattern (default: the newest)")
    group.add_argument("--checkpoint", metavar="FILE", help="checkpoint to load: its name, a pattern, or a path")
    group.add_argument("--logger", metavar="NAME", help=f"{_any_of(LoggerName)} (tensorboard)")
    group.add_argument("--log_project_name", metavar="NAME", help="project for wandb or neptune")


def add_distillation_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags of distillation itself. What they do by default: ``configs/distillation.yaml``."""
    group = parser.add_argument_group("distillation")
    flag = group.add_argument
    many = "the policy to imitate, or pkg.module:function; several, a glob, a folder or a manifest for many"
    flag("--teacher_checkpoint", action="append", metavar="PATH", help=many)
    watched = (
        "folder of a training that is still running: its best checkpoint so far, read again when there is a newer one"
    )
    flag("--watch_teacher", metavar="DIR", help=watched)
    several = "one student of several tasks: a file that lists them, each with its teacher"
    flag("--multi_task", metavar="FILE", help=several)
    flag("--teacher_activation", metavar="NAME", help="activation of its layers, if neither it nor a config states it")
    flag("--teacher_min_return", type=number, metavar="X", help="stop at once if the teacher's own return is lower")
    flag("--teacher_below_min", metavar="WHAT", help=f"many teachers: {_any_of(BelowMin)} those below (refuse)")
    flag("--num_active_teachers", type=whole, metavar="N", help="learn from so many teachers in an on-policy epoch")
    flag("--teacher_selection", metavar="WHICH", help=f"{_any_of(Selection)}: by their returns (all)")
    flag("--teacher_student_mix", type=whole, metavar="N", help="teacher episodes per student episode, on-policy (0)")
    flag("--n_epochs", type=whole, metavar="N", help="epochs of collection, learning and evaluation (100)")
    flag("--num_episodes", type=whole, metavar="N", help="episodes collected in an epoch (100)")
    flag("--epoch_teacher_forcing", type=whole, metavar="N", help="epochs in which the teacher acts (50)")
    flag("--batch_size", type=whole, metavar="N", help="transitions, or sequences, in a minibatch (256 transitions)")
    flag("--sequence_length", type=whole, metavar="N", help="steps in a training sequence (1; 50 with memory)")
    flag("--learning_rate", type=number, metavar="X", help="step size of the optimiser (1e-4)")
    interval = "epochs between two evaluations (1; Isaac Lab: 10 under teacher forcing)"
    flag("--eval_interval", type=whole, metavar="N", help=interval)
    flag("--num_eval_episodes", type=whole, metavar="N", help="episodes in an evaluation (128)")
    flag("--final_eval_episodes", type=whole, metavar="N", help="fresh episodes of the last measurement (2048)")
    flag("--save_interval", type=whole, metavar="N", help="epochs between two checkpoint_epoch_*.pt (10)")
    flag("--save_dataset", metavar="PATH", help="write every collected transition to this folder too, or append to it")
    flag("--dataset", metavar="PATH", help="begin with the transitions of this folder")
    flag("--distributed", action="store_true", help="one run in the processes that torchrun has started")
    switch = argparse.BooleanOptionalAction
    flag("--offline", action=switch, help="learn from --dataset alone: no simulator, no teacher (off)")
    flag("--shuffle", action=switch, help="draw minibatches at random (on)")
    flag("--on_policy", action=switch, help="empty the dataset every epoch (off)")
    flag("--teacher_deterministic", action=switch, help="the acting teacher plays its mean (on)")
    flag("--position_offset_correction", action=switch, help="learn no steady-state position offset (off)")


def add_hydra_args(parser: argparse.ArgumentParser) -> None:
    """Add Hydra's own flags."""
    group = parser.add_argument_group("Hydra")
    flag = group.add_argument
    many = "a run for each combination of values: seed=1,2,3 student=mlp,gru (launchers: hydra/launcher=joblib, ...)"
    flag("-m", "--multirun", action="store_true", help=many)
    flag("-c", "--cfg", metavar="WHAT", choices=("job", "hydra", "all"), help="show the config (job) and run nothing")
    flag("-p", "--package", metavar="KEY", help="--cfg: only this part of it, such as distill.student")
    flag("--resolve", action="store_true", help="--cfg: with interpolations put in")
    kinds = ("all", "plugins", "searchpath")
    flag("--info", metavar="WHAT", choices=kinds, help="show what Hydra has, run nothing: all, plugins or searchpath")


def whole(text: str) -> int:
    """Read an integer."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not an integer") from None
    if abs(value) > MAX_INTEGER:
        raise argparse.ArgumentTypeError(f"{shorten(text)} is too large: it must be at most {MAX_INTEGER}")
    return value


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not a number") from None


def positive_int(text: str) -> int:
    """Read a number of something, from 1 on."""
    if (value := whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small: it must be at least 1")
    if value > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{value} is too large: it must be {A_COUNT}")
    return value


def seed(text: str) -> int:
    """Read a seed."""
    if not 0 <= (value := whole(text)) <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be between 0 and {MAX_SEED}, got {value}")
    return value


__all__ = [
    "CommandParser",
    "Interrupt",
    "add_distillation_args",
    "add_launch_args",
    "add_rsl_rl_args",
    "distillation_flags",
    "parse_command",
    "run_command",
    "say_beaten",
    "set_up_logging",
    "typed_value",
]
