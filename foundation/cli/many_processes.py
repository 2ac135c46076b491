"""A run in several processes (``--distributed``): join them, let one speak, refuse what is for one process alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

from foundation.cli.command import USER_ERROR
from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import RankLostError, current, joined, leave_in_time
from foundation.core.errors import UserError
from foundation.core.program import command_name

FLAG = "--distributed"
_OF_ONE_PROCESS = ("--multi_task", "--watch_teacher", "--save_dataset")
"""Flags that do not work in several processes."""


def refuse_without_torchrun(argv: Sequence[str]) -> None:
    """Refuse ``--distributed`` where no ``torchrun`` has started the process.

    Args:
        argv: Arguments without the program's name: what is refused beside ``--distributed`` is named first.
    """
    if "WORLD_SIZE" in os.environ:
        return
    for word in argv:
        if word.partition("=")[0] in _OF_ONE_PROCESS:
            _refuse_mode(word.partition("=")[0])
    started = command_name("distillation.py")
    what = started if started == "distillation.py" else f"--no-python {started}"
    raise UserError(f"{FLAG} is for several processes: start them by 'torchrun --nproc_per_node=2 {what} ... {FLAG}'")


def run_joined(job: Callable[[], int], argv: Sequence[str]) -> int:
    """Run a job in every process that ``torchrun`` has started; the first one prints, and each error is printed once.

    Args:
        job: Does the work; returns an exit code.
        argv: Arguments without the program's name.

    Returns:
        The exit code.
    """
    refuse_without_torchrun(argv)
    with joined() as ranks:
        if ranks.world_size == 1:
            return job()
        leave_in_time()
        try:
            with _quiet(not ranks.is_first):
                return job()
        except UserError as error:
            # That a process has gone is news in all others, unless it has said why.
            if ranks.speaks("" if isinstance(error, RankLostError) else str(error)):
                raise
            os._exit(USER_ERROR)  # nothing is left to be done, and what would be waits for processes that have gone


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Print and log nothing but errors within this context."""
    if not wanted:
        yield
        return
    logging.getLogger("foundation").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def refuse_modes(cfg: DistillationCfg) -> None:
    """Refuse what does not work in several processes.

    Raises:
        UserError: Naming it.
    """
    found = {
        "--multi_task": cfg.multi_task is not None,
        "--watch_teacher": cfg.teacher.watch is not None,
        "--save_dataset": cfg.dataset.save is not None,
        "--teacher_below_min drop": cfg.teacher.below_min == "drop" and cfg.teacher.min_return is not None,
    }
    for name, is_set in found.items():
        if is_set:
            _refuse_mode(name)


def _refuse_mode(name: str) -> NoReturn:
    raise UserError(f"{name} is for one process: leave it out, or start without torchrun and {FLAG}")


def refuse_sweep(argv: Sequence[str]) -> None:
    """Refuse several jobs in the same several processes."""
    if {"-m", "--multirun"} & set(argv):
        raise UserError(f"--multirun starts its jobs in one process: leave out {FLAG}, or start the jobs one by one")


def refuse_stages() -> None:
    """Refuse a file of several runs, each of which is a process of its own."""
    if current().world_size > 1:
        raise UserError(f"the stages of a file run in one process each: leave out {FLAG}, or start them one by one")
