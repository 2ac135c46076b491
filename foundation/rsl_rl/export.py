"""Write a trained policy in formats for robots: ``python foundation/rsl_rl/export.py --help``.

Reads any checkpoint that ``distillation.py`` can take as a teacher, or the student that it made. Each file is loaded
back by its own runtime and compared with the policy before the command ends.
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

from foundation.cli.cli_args import CommandParser, add_import_arg, parse_command
from foundation.cli.command import run_command, set_up_logging
from foundation.cli.teacher_tokens import said_of_teacher
from foundation.core.errors import UserError
from foundation.core.program import command_name
from foundation.core.text import printable

logger = logging.getLogger("foundation.export")


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog=command_name("export.py"), description="Write a trained policy in formats for robots, checked."
    )
    taken = (
        f"those that {command_name('distillation.py')} takes about its teacher, such as distill.teacher.activation=relu"
    )
    parser.epilog = (
        "Formats: onnx, torchscript, torch_export (.pt2), executorch (.pte), leapp (a LEAPP bundle), npz (NumPy), c "
        "(C99), c_int8 and onnx_int8 (8-bit weights), so (shared library), yaml (deploy.yaml), rsl_rl, px4 (archive of "
        "mc_raptor), rl_tools (HDF5). Further arguments are "
        f"{taken}."
    )
    flag = parser.add_argument
    flag("--checkpoint", metavar="FILE", help="a checkpoint or an exported policy, of any known format")
    listed = "separated by commas or spaces (default: onnx,torchscript,npz,c,yaml)"
    flag("--formats", nargs="+", metavar="NAME", help=listed)
    flag("--output", metavar="FOLDER", help="where to (default: exported/ beside the checkpoint)")
    flag("--name", metavar="NAME", help="name of the files and of the C functions (default: policy, or estimator)")
    estimate = "write what the student estimates of another group (loss predict), in the place of its actions"
    flag("--estimate", action="store_true", help=estimate)
    acts = "task that it acts in, for names and units; or one of several (default: that of the checkpoint)"
    flag("--task", metavar="ID", help=acts)
    add_import_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export the policy and list the files."""
    args, tokens = parse_command(build_parser(), argv)
    set_up_logging()
    from foundation.export.formats import DEFAULT_FORMATS, check_formats

    if args.checkpoint is None:
        raise UserError("--checkpoint is missing: give the file of the policy, such as best_student.pt")
    name = args.name or ("estimator" if args.estimate else "policy")
    if name[0] in "-." or not name.replace("-", "_").replace(".", "_").isidentifier():
        raise UserError(
            f"--name '{name[:60]}': a name begins with a letter or '_', and has letters, digits, '_', '-' and '.', "
            "such as student"
        )
    named = [part for part in args.formats or DEFAULT_FORMATS if "=" not in part]
    tokens += [part for part in args.formats or () if "=" in part]  # overrides behind the formats
    formats = check_formats(named)
    checkpoint = Path(args.checkpoint)
    folder = checkpoint.parent / "exported" if args.output is None else Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file: name a folder to export to (--output)")

    from foundation.checkpoints import load_policy
    from foundation.checkpoints.foundation_multi_task import find_head
    from foundation.checkpoints.reading.loading import Overrides
    from foundation.export.bundle import make_bundle
    from foundation.export.estimator import make_estimator_bundle
    from foundation.export.formats import export

    said = said_of_teacher(tokens)
    found = find_head(checkpoint, args.task, said.get("head"))
    task = args.task
    if found is not None:
        said["head"], task = found
        if args.output is None:  # each head's files in the folder of its task, as play.py leaves them
            folder = checkpoint.parent / "tasks" / found[0] / "exported"
    policy = load_policy(checkpoint, Overrides.parse(said))
    bundle = (make_estimator_bundle if args.estimate else make_bundle)(policy, name, task)
    print(f"{bundle.description.architecture}: {bundle.program.num_weights} weights, state {bundle.program.state_size}")
    for said in bundle.description.duties:
        print(printable(said))
    unchecked = 0
    for written in export(bundle, folder, formats):
        print(written.line())
        unchecked += written.check is None
    if unchecked:
        logger.warning("%d of %d formats could not be checked: see above", unchecked, len(formats))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
