"""Carry a run out: its folder, its scalars, and the message when a signal or a closed pipe ends it early."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from foundation.cli.command import Interrupt, reader_has_gone
from foundation.core.distributed import RankLostError, current
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.registry import import_flags
from foundation.runs.base import RunLoop
from foundation.runs.context import RunSettings
from foundation.runs.metrics_writer import MetricsWriter, Writers, make_writer
from foundation.runs.run_dir import FollowedRunDir, RunDir

LOG_ROOT = Path("logs/distillation")

BuildRunner = Callable[[MetricsWriter, Callable[[], str]], RunLoop]
"""Builds the runner from the writer of its scalars and what names the signal that asks it to stop, "" without one."""


def find_resumed(args: argparse.Namespace, root: Path) -> RunDir:
    """Find the run that ``--resume``, ``--load_run``, ``--checkpoint`` and ``--experiment_name`` mean.

    Args:
        args: The flags.
        root: Where the runs of the command lie.

    Raises:
        UserError: If there is none, or two of the flags name different ones.
    """
    if not (args.checkpoint and Path(args.checkpoint).is_file()):
        return RunDir.find(root, args.experiment_name, args.load_run)
    run = RunDir(Path(args.checkpoint).resolve().parent)
    if args.load_run and args.load_run != run.name and Path(args.load_run).resolve() != run.path:
        raise UserError(
            f"--checkpoint is a file of the run {run.path}, and --load_run is '{args.load_run}': give one of them"
        )
    return run


def refuse_new_names(run: RunDir, saved: Mapping[str, Any], experiment_name: str | None, run_name: str) -> None:
    """Refuse names for a new folder, where a run goes on in its own.

    Args:
        run: The run that is resumed.
        saved: Its config.
        experiment_name: The experiment that was typed, or else the run's own.
        run_name: The suffix that was typed, or else the run's own.

    Raises:
        UserError: Naming the flag.
    """
    asked = {
        "--experiment_name": (experiment_name, (saved.get("experiment_name"), run.experiment_name)),
        "--run_name": (run_name, (saved.get("run_name") or "",)),
    }
    for flag, (name, own) in asked.items():
        if name not in own:
            raise UserError(
                f"{flag} is '{name}', which names the folder of a new run, and --resume goes on in {run.path}: leave "
                f"{flag} out"
            )


@contextlib.contextmanager
def run_folder(resumed: RunDir | None, experiment_name: str, run_name: str, root: Path = LOG_ROOT) -> Iterator[RunDir]:
    """Lock the folder of a run; a new one in which nothing was saved is removed afterwards.

    Args:
        resumed: The run to resume, or None for a new one.
        experiment_name: Folder of a new run under ``root``.
        run_name: Suffix of its own folder.
        root: Where the runs of the command lie.
    """
    ranks = current()

    def open_folder() -> str:
        run = resumed or RunDir.create(root, experiment_name, run_name)
        run.lock()
        opened.append(run)
        return str(run.path)

    opened: list[RunDir] = []
    path = ranks.from_first(open_folder)
    run = opened[0] if opened else FollowedRunDir(path)
    try:
        yield run
    finally:
        if resumed is None:
            run.discard_if_empty()


def run_to_end(run: RunDir, cfg: RunSettings, first_step: int | None, build: BuildRunner) -> int:
    """Build a runner and let it run until its end or a signal.

    Args:
        run: The run's folder.
        cfg: The run's configuration.
        first_step: First step that a resumed run logs again; None for a new run.
        build: Builds the runner.

    Returns:
        The exit code.
    """
    first = current().is_first
    writer: MetricsWriter = Writers([])
    if first:
        writer = make_writer(cfg.logger, run.path, cfg.log_project_name, cfg, purge_step=first_step)
    go_on = f"Go on with: --resume --load_run {shlex.quote(run.name)}{import_flags()}"
    runner: RunLoop | None = None
    stopped_by = ""
    with Interrupt(quiet=not first) as interrupt:
        try:
            runner = build(writer, interrupt.interrupted)
            print(f"Logging to {run.path}")
            runner.run()
        except RunInterrupted as reason:
            stopped_by = str(reason)
            print(f"Stopped ({reason}){_progress(runner)}. {go_on}")
        except RankLostError as lost:
            raise RankLostError(f"{lost}{_progress(runner)}. {go_on}") from lost
        except BrokenPipeError:
            return reader_has_gone(f"Stopped: the output was closed{_progress(runner)}. {go_on}")
        finally:
            writer.close()
    # Of several processes all end by the signal that one of them has received.
    by_name = {number.name: 128 + number for number in signal.Signals}
    return interrupt.exit_code or by_name.get(stopped_by, 0)


def _progress(runner: RunLoop | None) -> str:
    """Return how far a run that is stopped has come."""
    if runner is None:
        return ""
    return f" after {runner.unit} {runner.epoch} of {runner.cfg.n_epochs}"
