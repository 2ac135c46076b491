"""All calls of Hydra itself: run one job or those of a sweep, or show the config of one."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundation.cli.cli_args import set_up_logging
from foundation.cli.command import run_command
from foundation.cli.sweep_report import write_report
from foundation.cli.sweep_table import JobResult, read_results, table_lines
from foundation.config.overrides import key_of, values_of
from foundation.core.errors import UserError, suggest
from foundation.core.program import run_folders

SWEEP_ROOT = Path("logs/multirun")
"""The folders of sweeps: Hydra's ``multirun.yaml``, the launcher's files and the results of the jobs."""
_NODE = "foundation_application"
_ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "override."
_OF_THE_JOB = re.compile(r"\$\{hydra:[^}]*\}")
"""Interpolations that are known once a job runs."""
_INTERRUPTED = 128
"""Exit codes from here on are those of signals: a sweep ends with the job that got one."""
_SETTINGS = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.sweep.subdir=.",
)
"""Settings that keep Hydra from making ``outputs/``, changing the folder and taking the log lines over."""
_EXTRA = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}
"""Launchers and sweepers that are packages of their own."""

Job = Callable[[Any], Any]
"""Takes Hydra's config, a :func:`command_node`, and does the work."""


def command_node(module: str, argv: Sequence[str], named: bool = False) -> dict[str, Any]:
    """Return a config that holds a command line.

    Args:
        module: The command, or "" for a user's script.
        argv: Its arguments.
        named: Whether the jobs of a sweep get a ``--run_name`` that tells them apart.
    """
    return {"command": {"module": module, "argv": list(argv), "named": named, "pid": os.getpid()}}


def run_one(job: Job, node: Mapping[str, Any], hydras: Sequence[str], name: str) -> int:
    """Let Hydra run one job.

    Args:
        job: Does the work.
        node: Its :func:`command_node`.
        hydras: Overrides of Hydra's own config.
        name: The program's name.

    Returns:
        The exit code.

    Raises:
        Exception: What the job raised: Hydra would print it in lines of its own.
    """
    Outcome.reset()
    _hydra_main(job, node, hydras, name)
    if Outcome.error is not None:
        raise Outcome.error
    return Outcome.code


def run_sweep(job: Job, node: Mapping[str, Any], sweep: Sequence[str], hydras: Sequence[str], name: str) -> int:
    """Let Hydra run the jobs of a sweep, in its launcher.

    Args:
        job: Does the work of each.
        node: Their :func:`command_node`.
        sweep: Overrides with several values.
        hydras: Overrides of Hydra's own config.
        name: The program's name.

    Returns:
        The highest exit code of the jobs. A table of them is printed, after Ctrl-C of those that have run.
    """
    Outcome.reset()
    above = [path for path in (SWEEP_ROOT, *SWEEP_ROOT.parents) if not path.exists()]
    folder = _make_sweep_folder()
    node = {"command": {**node["command"], "results": str(folder)}}
    given = {key_of(token) for token in hydras}
    # A literal: another process would read the clock anew where the time is interpolated.
    where = [] if "hydra.sweep.dir" in given else [f"hydra.sweep.dir={folder}"]
    try:
        with _importable_in_children():
            _hydra_main(job, node, ["--multirun", *map(_for_hydra, sweep), *where, *hydras], name)
    finally:
        results = read_results(folder)
        with contextlib.suppress(OSError):  # no job has begun
            for made in (folder, *above):
                made.rmdir()
        if results:
            own_sweeper = any(key_of(token).startswith(("hydra.sweeper", "hydra/sweeper")) for token in hydras)
            planned = None if own_sweeper else math.prod(len(values_of(token)) for token in sweep)
            print("\n".join(table_lines(results, planned, folder)), flush=True)
            page = write_report(results, folder)
            if page is not None:
                print(f"Their curves, and size against score: {page}", flush=True)
    if Outcome.error is not None:
        raise Outcome.error
    return max([Outcome.code, *(result.code for result in results)])


def show(node: Mapping[str, Any], arguments: Sequence[str], name: str) -> None:
    """Let Hydra print a config, or what it knows of itself, as its flags ask.

    Args:
        node: The config.
        arguments: ``--cfg job``, ``--info``, and overrides of Hydra's own config.
        name: The program's name.
    """
    part = dict(itertools.pairwise(arguments)).get("--package", "")
    held: Any = node
    for key in part.split(".") if part.partition(".")[0] not in ("", "hydra", "_global_") else ():
        if not isinstance(held, Mapping) or key not in held:
            known = map(str, held) if isinstance(held, Mapping) else ()
            raise UserError(f"--package {part}: the config has no such part. {suggest(key, known)}")
        held = held[key]
    _hydra_main(_nothing, node, arguments, name)


def typed(cfg: Any) -> list[str]:
    """Return a job's command line as it was typed: Hydra is not to put in what its texts refer to."""
    argv = OmegaConf.to_container(cfg.command.argv, resolve=False)
    assert isinstance(argv, list)
    return [str(word) for word in argv]


def swept_values() -> list[str]:
    """Return the values that the sweep has for this job, as they would be typed."""
    tokens = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(tokens, list)
    return [str(token).lstrip("+").removeprefix(_PREFIX) for token in tokens]


def check_jobs(
    compose: Callable[[list[str]], Any], own: Sequence[str], sweep: Sequence[str], hydras: Sequence[str]
) -> None:
    """Compose the configs of enough jobs to see each value once, so that a mistake is an error before any job runs.

    Args:
        compose: Returns the configs of a command line.
        own: What all jobs share.
        sweep: Overrides with several values.
        hydras: Overrides of Hydra's own config.
    """
    values = [values_of(token) for token in sweep]
    if not values and not any(key_of(token).startswith("hydra.sweeper") for token in hydras):
        raise UserError("--multirun needs something to run over, such as seed=1,2,3")
    own = [_OF_THE_JOB.sub("0", word) for word in own]
    before = logging.getLogger("foundation").level
    logging.getLogger("foundation").setLevel(logging.ERROR)
    try:
        for index in range(max([1, *map(len, values)])):
            compose([*own, *(choice[index % len(choice)] for choice in values if choice)])
    finally:
        logging.getLogger("foundation").setLevel(before)


class Outcome:
    """Exit code and error of the jobs of this process: Hydra itself returns nothing."""

    code: int = 0
    """The highest of the jobs'."""
    error: Exception | None = None

    @classmethod
    def reset(cls) -> None:
        """Forget the jobs before."""
        cls.code = 0
        cls.error = None


def run_job(cfg: Any) -> float:
    """Run one job of a command. Hydra calls it, in this process or in a launcher's.

    Returns:
        The number that a sweeper such as Optuna's optimises, in a sweep; otherwise the exit code.
    """
    module = importlib.import_module(cfg.command.module)
    about = HydraConfig.get()
    swept = swept_values()
    argv = [*typed(cfg), *swept]
    if about.mode == RunMode.MULTIRUN:
        set_up_logging()  # a launcher's process has not been through main()
        print(f"Job {about.job.num}: {' '.join(swept)}", flush=True)
        if cfg.command.named and not any(
            token.startswith(("--run_name", "run_name=", "distill.run_name=")) for token in argv
        ):
            argv += ["--run_name", _name_of(swept)]
        result = JobResult(int(about.job.num), swept, 1)
        _carry_out(module.run, argv, result, Path(cfg.command.results))
        Outcome.code = max(Outcome.code, result.code)
        if result.code >= _INTERRUPTED and cfg.command.pid == os.getpid():
            raise SystemExit(result.code)
        return result.objective()
    try:
        Outcome.code = module.run(argv)
    except Exception as error:  # Hydra would print lines of its own
        Outcome.error = error
    return Outcome.code


def _make_sweep_folder() -> Path:
    """Make the folder in which Hydra and the jobs of a sweep leave what they have to say, named by the time."""
    moment = datetime.now()
    while True:  # two sweeps may start in the same second
        folder = SWEEP_ROOT / moment.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.exists():  # a file is in the place of one above it
                raise
            moment += timedelta(seconds=1)


def _carry_out(run: Callable[[Sequence[str]], int], argv: Sequence[str], result: JobResult, folder: Path) -> None:
    """Run a job of a sweep and save its result in a folder; a failure is a result too, so that the sweep continues."""

    def noting_errors(words: Sequence[str] | None) -> int:
        try:
            return run(words or [])
        except UserError as error:
            result.error = " ".join(str(error).split())
            raise

    before = len(run_folders())
    try:
        result.code = run_command(noting_errors, argv)
    finally:
        made = [path for path in run_folders()[before:] if path.is_dir()]
        result.folder = str(made[-1]) if made else None
        result.write(folder)


def _for_hydra(token: str) -> str:
    """Write an override so that Hydra accepts it, whatever its key.

    What a key may be depends on the task, the student and the loss that the same job chooses, so that only the job can
    check it. ``++`` adds the key where Hydra's own config has none; under a prefix, it cannot meet one of Hydra's.
    """
    return f"++{_PREFIX}{token}"


def _name_of(swept: Sequence[str]) -> str:
    """Name a job by its values: ``seed-1_student-gru``."""
    parts = [token.rpartition(".")[2] if "=" not in token else token for token in swept]
    plain = "_".join(part.partition("=")[0].rpartition(".")[2] + "-" + part.partition("=")[2] for part in parts)
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in plain)[:100].strip("-.")


def _hydra_main(function: Callable, node: Mapping[str, Any], arguments: Sequence[str], name: str) -> None:
    """Call ``hydra.main`` on a config that is in memory, and turn its errors into one line."""
    ConfigStore.instance().store(_NODE, _with_text_keys(node))
    # No colon, no dot and no blank: the job's name may become a part of a file's name.
    settings = [*_SETTINGS, f"hydra.job.name={Path(name).stem.replace(' ', '_')}"]
    given = {key_of(token) for token in arguments if not token.startswith("-")}
    settings = [token for token in settings if key_of(token) not in given]
    flags = [token for token in arguments if token.startswith("-") or token in _values_of(arguments)]
    overrides = [token for token in arguments if token not in flags]
    # hydra.main reads sys.argv and nothing else, and on an error prints lines of its own and exits, unless it is asked
    # for the full one: then it raises, and there is something to make one line of.
    argv = [sys.argv[0], *flags, *settings, *overrides]
    full_error = mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"})
    with mock.patch.object(sys, "argv", argv), full_error:
        try:
            hydra.main(config_path=None, config_name=_NODE, version_base="1.3")(function)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_one_line(error, arguments)) from error
        except OSError as error:
            typed = next((token for token in arguments if key_of(token) == "hydra.sweep.dir"), None)
            if typed is None or not str(error.filename).startswith(str(Path(typed.partition("=")[2]))):
                raise
            raise UserError(f"'{typed}': the folder cannot be made ({error.strerror})") from None


def _values_of(arguments: Sequence[str]) -> set[str]:
    """Return what stands behind Hydra's own flags."""
    valued = ("--cfg", "--info", "--package")
    return {value for flag, value in zip(arguments, [*arguments, ""][1:], strict=False) if flag in valued}


def _one_line(error: Exception, arguments: Sequence[str]) -> str:
    """Return one line on what Hydra does not accept, with the valid choices."""
    text = " ".join(str(error).split())
    for kind, base in (("launcher", Launcher), ("sweeper", Sweeper)):
        for token in arguments:
            if key_of(token) != f"hydra/{kind}":
                continue
            chosen = token.partition("=")[2]
            if f"hydra/{kind}/{chosen}" in text:
                # A plug-in stores its config, under the name that is typed, when it is found.
                Plugins.instance().discover(base)
                known = [Path(name).stem for name in ConfigStore.instance().list(f"hydra/{kind}")]
                package = _EXTRA.get(chosen)
                advice = suggest(chosen, known)
                if package is not None:
                    advice = f"It is in a package of its own: pip install {package}"
                return f"'{token}': there is no such {kind} here. {advice}"
    cause = error.__cause__
    reason = f" ({' '.join(str(cause).split())})" if cause is not None and str(cause) not in text else ""
    return f"Hydra: {text}{reason}"


def _with_text_keys(value: object) -> Any:
    """Turn keys that no Hydra config can have into text."""
    if isinstance(value, Mapping):
        return {k if isinstance(k, (str, int)) else str(k): _with_text_keys(v) for k, v in value.items()}
    return [_with_text_keys(v) for v in value] if isinstance(value, list) else value


@contextlib.contextmanager
def _importable_in_children() -> Iterator[None]:
    """Let a launcher's processes import this package where it is not installed, but run from a clone."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(paths)}):
        yield


def _nothing(cfg: object) -> None:
    """Stand in for the job where Hydra only shows something."""
