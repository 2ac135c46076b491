"""Distil a trained teacher into a small student: ``python foundation/rsl_rl/distillation.py --help``.

The names that a deployed student needs can be imported from here too; nothing is parsed on import.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run, or imported, as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

import foundation
from foundation.cli.cli_args import (
    OVERRIDES,
    CommandParser,
    add_distillation_args,
    add_hydra_args,
    add_launch_args,
    add_rsl_rl_args,
    run_command,
    set_up_logging,
)
from foundation.cli.command import refuse_many_processes
from foundation.cli.hydra_app import run_application
from foundation.config.plain import to_plain
from foundation.core.imports import many_imports
from foundation.core.program import command_name


def __getattr__(name: str) -> Any:
    """Import ``StudentPolicy`` and the other public names when they are asked for."""
    if name in foundation.__all__:
        return getattr(foundation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> CommandParser:
    """Return the parser of every flag that needs no simulator."""
    parser = CommandParser(
        prog=command_name("distillation.py"),
        description="Distil a trained teacher into a small student.",
        epilog=f"{OVERRIDES} experiment=fast, student=gru, loss=huber, schedule=linear and dataset=half each choose a "
        "file of configs/; an unknown name is answered with the valid ones.",
    )
    add_launch_args(parser)
    add_rsl_rl_args(parser)
    add_distillation_args(parser)
    add_hydra_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, once or (``--multirun``) for each job of a sweep, and return its exit code."""
    set_up_logging()
    if "--distributed" in (sys.argv[1:] if argv is None else argv):
        from foundation.cli.many_processes import refuse_sweep  # torch: --help does without it

        refuse_sweep(sys.argv[1:] if argv is None else argv)
    else:
        what = command_name("distillation.py")
        refuse_many_processes(f"{what} runs in one process unless torchrun starts it with --distributed: add that")
    return run_application("foundation.rsl_rl.distillation", build_parser(), argv)


def run(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    if "--distributed" not in argv:
        return run_here(argv)
    with many_imports():
        from foundation.cli.many_processes import run_joined  # torch: --help does without it

    return run_joined(lambda: run_here(argv), argv)


def run_here(argv: Sequence[str]) -> int:
    """Run one job in this process, and in those that it has joined; return its exit code."""
    with many_imports():
        from foundation.cli.distillation_request import STAGED, Request  # torch: --help does without it
        from foundation.cli.many_processes import refuse_stages
        from foundation.cli.stages import Curriculum

    curriculum = Curriculum.read(STAGED, build_parser(), argv)
    if curriculum is not None:
        refuse_stages()
        return curriculum.run()
    request = Request.read(build_parser(), argv)
    if request.cfg.offline:
        from foundation.cli.offline_job import run_offline  # whoever needs no dataset on disk does without it

        return run_offline(request)
    with many_imports():  # simulators and tasks: an offline run does without them
        from foundation.cli.distillation_job import Job
        from foundation.cli.load_teachers import load_teacher

    if request.cfg.multi_task is not None:
        from foundation.cli.multi_task_job import run_multi_task

        return run_multi_task(request, build_parser)

    job = Job.choose_engine(request)
    teacher = load_teacher(job.cfg)
    print(teacher.architecture_line())
    with job.launch(teacher) as session:
        return job.run(session, teacher)


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    from foundation.cli.distillation_request import STAGED, Request  # torch: --help does without it
    from foundation.cli.stages import refuse_stages

    refuse_stages(STAGED, build_parser(), argv)
    request = Request.read(build_parser(), argv)
    if request.cfg.offline:
        return {"distill": to_plain(request.cfg)}
    from foundation.cli.distillation_job import Job  # simulators and tasks: an offline run does without them

    if request.cfg.multi_task is not None:
        from foundation.cli.multi_task_job import compose_multi_task

        return compose_multi_task(request, build_parser)
    return Job.choose_engine(request).load_configs()


if __name__ == "__main__":
    sys.exit(run_command(main, many_processes=True))
