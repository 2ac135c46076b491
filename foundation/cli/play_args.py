"""Checks of ``play.py``'s command line, before anything is loaded, and what was typed in it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from foundation.cli.cli_args import CommandParser, parse_command, seed
from foundation.cli.teacher_tokens import DERIVED, TEACHER
from foundation.config.overrides import Overrides
from foundation.core.errors import UserError, suggest
from foundation.core.text import shorten
from foundation.viewer.page import PORT, check_viewer

AGENTS = ("trained", "zero", "random")


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is loaded."""
    if args.agent not in AGENTS and not args.agent.endswith("_entry_point"):
        raise UserError(f"--agent is '{args.agent}'. {suggest(args.agent, AGENTS)}")
    if args.agent in ("zero", "random") and (args.checkpoint or args.load_run):
        raise UserError(f"--agent {args.agent} needs no policy: leave --checkpoint and --load_run out")
    if args.agent in ("zero", "random") and args.ablate:
        raise UserError(f"--agent {args.agent} reads no observations to --ablate: leave one of them out")
    if read_seeds(args.eval_seeds) and args.seed is not None:
        raise UserError("--seed and --eval_seeds both seed the episodes: give one of them")
    if args.min_success is not None and not 0.0 <= args.min_success <= 1.0:
        raise UserError(f"--min_success is {args.min_success:g}: it must be from 0 to 1, such as 0.9")
    if args.agent in ("zero", "random") and args.describe:
        raise UserError(f"--agent {args.agent} has no checkpoint to --describe: leave one of them out")
    if args.perturbation is not None and not args.robustness:
        raise UserError(f"--perturbation {args.perturbation[0]} has no effect without --robustness")
    if args.agent in ("zero", "random") and (args.with_teacher or args.teacher):
        raise UserError(f"--agent {args.agent} has no teacher: leave --teacher and --with_teacher out")
    _check_viewer_args(args)
    if args.json and (Path(args.json).is_dir() or not _can_hold(_existing_parent(Path(args.json)))):
        raise UserError(f"--json {args.json}: cannot be written; give the path of a file")


def _check_viewer_args(args: argparse.Namespace) -> None:
    """Refuse what the viewer does not do, a missing package, and a port that is in use."""
    if not args.viewer:
        if args.viewer_port is not None:
            raise UserError(f"--viewer_port {args.viewer_port} has no effect without --viewer")
        return
    measures = ("robustness", "similarity", "ablate", "json", "min_success", "eval_seeds", "with_teacher")
    others = ("video", "num_envs", "engine_python")
    typed = [name for name in (*measures, *others) if getattr(args, name, None)]
    if typed:
        raise UserError(f"--viewer shows the policy and measures nothing: leave --{typed[0]} out")
    check_viewer(args.viewer_port or PORT)


def read_seeds(text: str | None) -> list[int]:
    """Read ``--eval_seeds 0,1,2``; none where it is not given.

    Raises:
        UserError: For what is no list of different seeds.
    """
    if text is None:
        return []
    try:
        seeds = [seed(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--eval_seeds {shorten(text)}: {error}; write them as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--eval_seeds {shorten(text)} has a seed twice: its episodes would count twice")
    return seeds


def refuse_bare_seed(overrides: Overrides) -> None:
    """Raise for a seed as an override, which would change nothing here, and name the flag that seeds the episodes."""
    for item in overrides.bare:
        if item.path == "seed":
            raise UserError(f"override '{item.token}': the episodes are seeded by --seed {item.value}")


def refuse_near_misses(parser: CommandParser, argv: Sequence[str]) -> None:
    """Complain of a flag that is nearly one of ours; others may be the engine's own."""
    try:
        parse_command(parser, argv)
    except UserError as error:
        if "Did you mean" in str(error):
            raise


def typed_tokens(overrides: Overrides) -> list[str]:
    """List the overrides as they were typed."""
    return [item.token for items in (*overrides.scoped.values(), overrides.bare) for item in items]


def typed_keys(overrides: Overrides) -> list[str]:
    """List the keys of the overrides as they were typed."""
    return [token.partition("=")[0] for token in typed_tokens(overrides)]


def typed_device(tokens: list[str]) -> str | None:
    """Return the device that ``env.sim.device`` or ``sim.device`` names, if it was typed."""
    found = [token.partition("=")[2] for token in tokens if token.partition("=")[0] in ("env.sim.device", "sim.device")]
    return found[-1] if found else None


def of_env_and_agent(tokens: list[str]) -> list[str]:
    """Leave out the overrides that are about the policy and not about the simulation."""
    return [token for token in tokens if not token.startswith(("student=", TEACHER, *DERIVED))]


def _can_hold(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def _existing_parent(path: Path) -> Path:
    return next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
