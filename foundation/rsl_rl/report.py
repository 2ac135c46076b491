"""Write an HTML page of one run or several: ``python foundation/rsl_rl/report.py --help``.

The page is one file without scripts that needs no network: learning curves, teachers, robustness, similarity,
efficiency, configuration, commands and checksums; several runs side by side.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from foundation.cli.cli_args import CommandParser
from foundation.cli.command import run_command, set_up_logging
from foundation.core.errors import UserError
from foundation.core.program import command_name

logger = logging.getLogger("foundation.report")
PAGE = "report.html"


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog=command_name("report.py"), description="Write an HTML page of one run or several, to be looked at."
    )
    parser.epilog = f"A page of one run goes into its folder, as {PAGE}; one of several into the current folder."
    help_text = "a run's folder; its name or a pattern under logs/distillation; a sweep's folder (default: the newest)"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=help_text)
    parser.add_argument("--output", metavar="FILE", help=f"where to (default: {PAGE}, see below)")
    parser.add_argument("--title", metavar="TEXT", help="heading (default: the run's name)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, and print where it is."""
    args = build_parser().read(argv)
    set_up_logging()
    if args.output is not None and Path(args.output).is_dir():
        raise UserError(f"--output {args.output} is a folder: name a file in it, such as {args.output}/{PAGE}")
    from foundation.cli.report_job import find_runs
    from foundation.core.files import atomic_write_bytes
    from foundation.report.page import make_page
    from foundation.report.run_record import RunRecord

    runs = [RunRecord.read(path) for path in find_runs(args.runs)]
    for run in runs:
        for note in run.notes:
            logger.warning("%s: %s", run.path, note)
    default = runs[0].path / PAGE if len(runs) == 1 else Path(PAGE)
    output = Path(args.output) if args.output else default
    if output.is_dir():
        raise UserError(f"'{output}' is a folder: give --output FILE")
    page = make_page(runs, args.title).encode("utf-8", "backslashreplace")
    atomic_write_bytes(output, page)
    print(f"Report of {len(runs)} run{'' if len(runs) == 1 else 's'}: {output} ({len(page) / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
