"""Commands and users' scripts as Hydra applications: ``--multirun``, launchers, sweepers, ``--cfg job``.

A job is the command line with the sweep's values put in; what it means is settled by ``foundation.config.resolve``, so
that a job of a sweep and the same line typed alone are the same run. No ``outputs/`` is made: a sweep leaves
``multirun.yaml`` and its launcher's files in ``logs/multirun/<time>/``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from foundation.cli.cli_args import CommandParser, add_hydra_args, parse_command, set_up_logging
from foundation.cli.command import USER_ERROR, run_command
from foundation.config.overrides import is_sweep, key_of, values_of
from foundation.config.plain import to_plain
from foundation.core.errors import UserError, suggest
from foundation.core.registry import note_typed

_NODE = "foundation_application"
_ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "override."
_OF_THE_JOB = re.compile(r"\$\{hydra:[^}]*\}")
"""What is known once a job runs."""
_INTERRUPTED = 128
"""Exit codes from here on are those of signals: a sweep ends with the job that got one."""
_SETTINGS = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.sweep.dir=logs/multirun/${now:%Y-%m-%d_%H-%M-%S}",
    "hydra.sweep.subdir=.",
)
"""What keeps Hydra from making ``outputs/``, changing the folder and taking the log lines over."""
_EXTRA = {"joblib": "hydra-joblib-launcher", "submitit_local": "hydra-submitit-launcher"}
_EXTRA["submitit_slurm"] = _EXTRA["submitit_local"]

Compose = Callable[[list[str]], dict[str, Any]]
"""Returns the configs of a command line, as plain values."""


class CommandLine(NamedTuple):
    """A command line, split into the command's own part and Hydra's."""

    own: list[str]
    """The command's own arguments."""
    sweep: list[str]
    """``seed=1,2,3``: what Hydra's sweeper makes jobs of."""
    hydra: list[str]
    """``hydra.launcher.n_jobs=2``, ``hydra/launcher=joblib``."""
    flags: list[str]
    """Hydra's flags but for ``--multirun``: ``--cfg job``, ``--resolve``."""
    args: argparse.Namespace
    """Hydra's flags, read."""


def run_application(command: str, parser: CommandParser, argv: Sequence[str] | None) -> int:
    """Run a command as a Hydra application, once or, with ``--multirun``, once for each job of the sweep.

    Args:
        command: The module; its ``run(argv)`` does the work of one job and returns an exit code, its
            ``compose_configs(argv)`` returns the configs for ``--cfg``.
        parser: The command's own flags.
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit code; of a sweep, the highest of its jobs'.
    """
    line = split(sys.argv[1:] if argv is None else list(argv), parser)
    module = importlib.import_module(command)
    if line.args.cfg or line.args.info:
        node = module.compose_configs([*line.own, *line.sweep]) if line.args.cfg != "hydra" else {}
        _hydra_main(_nothing, node, [*line.flags, *line.hydra], parser.prog)
        return 0
    needed = line.args.multirun or line.hydra or any("${hydra:" in word for word in line.own)
    if not needed:  # one job with nothing of Hydra's in it: the same without composing anything twice
        return module.run([*line.own, *line.sweep])  # a sweep without --multirun is refused there
    _Outcome.code = 0
    _Outcome.error = None
    node = _command_node(command, line.own, "--run_name" in parser.flag_names())
    if not line.args.multirun:
        _hydra_main(run_job, node, line.hydra, parser.prog)
    else:
        if "--resume" in line.own:
            raise UserError("--multirun begins new runs: leave --resume out, or resume the runs one by one")
        _check_jobs(module.compose_configs, line)
        with _importable_in_children():
            _hydra_main(run_job, node, ["--multirun", *map(_for_hydra, line.sweep), *line.hydra], parser.prog)
    if _Outcome.error is not None:
        raise _Outcome.error
    return _Outcome.code


def _command_node(module: str, argv: Sequence[str], named: bool = False) -> dict[str, Any]:
    """Return a config that holds a command line.

    Args:
        module: The command, or "" for a user's script.
        argv: Its arguments.
        named: Whether the jobs of a sweep get a ``--run_name`` that tells them apart.
    """
    return {"command": {"module": module, "argv": list(argv), "named": named, "pid": os.getpid()}}


def _typed(cfg: Any) -> list[str]:
    """Return a job's command line as it was typed: Hydra is not to put in what its texts refer to."""
    from omegaconf import OmegaConf

    argv = OmegaConf.to_container(cfg.command.argv, resolve=False)
    assert isinstance(argv, list)
    return [str(word) for word in argv]


def _swept() -> list[str]:
    """Return the values that the sweep has for this job, as they would be typed."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    tokens = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(tokens, list)
    return [str(token).lstrip("+").removeprefix(_PREFIX) for token in tokens]


def _check_jobs(compose: Callable[[list[str]], Any], line: CommandLine) -> None:
    """Compose the configs of enough jobs to see each value once, so that a mistake is told before any job runs."""
    values = [values_of(token) for token in line.sweep]
    if not values and not any(key_of(token).startswith("hydra.sweeper") for token in line.hydra):
        raise UserError("--multirun needs something to run over, such as seed=1,2,3")
    own = [_OF_THE_JOB.sub("0", word) for word in line.own]
    before = logging.getLogger("foundation").level
    logging.getLogger("foundation").setLevel(logging.ERROR)
    try:
        for index in range(max([1, *map(len, values)])):
            compose([*own, *(choice[index % len(choice)] for choice in values if choice)])
    finally:
        logging.getLogger("foundation").setLevel(before)


class _Outcome:
    """What the jobs of this process came to: Hydra itself returns nothing."""

    code: int = 0
    error: Exception | None = None


def run_job(cfg: Any) -> int:
    """Run one job of a command. Hydra calls it, in this process or in a launcher's."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    module = importlib.import_module(cfg.command.module)
    hydra = HydraConfig.get()
    swept = _swept()
    argv = [*_typed(cfg), *swept]
    if hydra.mode == RunMode.MULTIRUN:
        set_up_logging()
        print(f"Job {hydra.job.num}: {' '.join(swept)}", flush=True)
        if cfg.command.named and not any(
            token.startswith(("--run_name", "run_name=", "distill.run_name=")) for token in argv
        ):
            argv += ["--run_name", _name_of(swept)]
        if cfg.command.pid != os.getpid():
            return module.run(argv)  # in a launcher's process: what is raised reaches the sweeper
        code = run_command(module.run, argv)  # the other jobs go on
        _Outcome.code = max(_Outcome.code, code)
        if code >= _INTERRUPTED:
            raise SystemExit(code)
        return code
    try:
        _Outcome.code = module.run(argv)
    except Exception as error:  # Hydra would print lines of its own
        _Outcome.error = error
    return _Outcome.code


def hydra_task_config(task_name: str, agent_cfg_entry_point: str = "rsl_rl_cfg_entry_point") -> Callable:
    """Decorate a script's ``main(env_cfg, agent_cfg, cfg)`` as Isaac Lab's decorator of that name does, on any engine.

    The three configs have the values of the command line: ``env.``, ``agent.``, ``distill.`` and bare keys, groups,
    ``experiment=``. Hydra's own flags work too: ``--multirun``, ``--cfg job``. Flags of the script's own are to be
    taken out of ``sys.argv`` before it is called, as in Isaac Lab's scripts.

    Args:
        task_name: Gym id of the task, or ``module:Id``.
        agent_cfg_entry_point: Which of the task's agent configs.

    Returns:
        A decorator. The decorated function takes what comes after the configs; a function of two parameters gets the
        first two, so that a script written for Isaac Lab needs nothing but another import. It returns what the
        function returned, or None where Hydra ran it more than once.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def main(*args: object, **kwargs: object) -> Any:
            set_up_logging()
            note_typed([task_name])  # by the script's author
            try:
                return _run_script(function, task_name, agent_cfg_entry_point, args, kwargs)
            except UserError as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                raise SystemExit(USER_ERROR) from None

        return main

    return decorate


def _run_script(function: Callable, task: str, entry_point: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    parser = CommandParser(prog=Path(sys.argv[0]).name)
    add_hydra_args(parser)
    line = split(sys.argv[1:], parser)
    own = parse_command(parser, line.own)[1]
    returned: list[Any] = []

    def job(cfg: Any) -> Any:
        try:
            tokens = [*_typed(cfg), *_swept()]
            note_typed([task, *tokens])  # a launcher's process has seen no command line
            configs = load_configs(task, entry_point, tokens)
        except UserError as error:
            if cfg.command.pid != os.getpid() or line.args.multirun:
                raise
            _Outcome.error = error  # Hydra would print lines of its own
            return None
        result = function(*configs[: _places(function, len(args))], *args, **kwargs)
        returned.append(result)
        return result

    if line.args.cfg or line.args.info:
        env_cfg, agent_cfg, cfg = load_configs(task, entry_point, own)
        node = {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg), "distill": to_plain(cfg)}
        _hydra_main(_nothing, node, [*line.flags, *line.hydra], parser.prog)
        return None
    node = _command_node("", own)
    if not line.args.multirun:
        _Outcome.error = None
        _hydra_main(job, node, line.hydra, parser.prog)
        if _Outcome.error is not None:
            raise _Outcome.error
        return returned[-1] if returned else None
    _check_jobs(lambda argv: load_configs(task, entry_point, argv), line)
    with _importable_in_children():
        _hydra_main(job, node, ["--multirun", *map(_for_hydra, line.sweep), *line.hydra], parser.prog)
    return None


def _places(function: Callable, taken: int) -> int:
    """Count the configs that a function takes: two, or all three."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 3
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return 3 if many else min(3, len(positional) - taken)


def load_configs(task: str, entry_point: str, tokens: Sequence[str]) -> tuple[Any, Any, Any]:
    """Load a task's configs with the values of a command line, starting nothing.

    Args:
        task: Gym id of the task, or ``module:Id``.
        entry_point: Which of its agent configs.
        tokens: ``key=value``.

    Returns:
        The environment's, the agent's and the distillation config.
    """
    from foundation.config.overrides import parse_overrides
    from foundation.config.resolve import own_items, resolve
    from foundation.config.values import apply_values, key_names
    from foundation.engines import select_engine
    from foundation.engines.base import LaunchRequest
    from foundation.learning.losses import LOSSES
    from foundation.students import student_cfg_class

    overrides = parse_overrides(tokens)
    resolved = resolve(overrides, {"task": task}, student_cfg_class=student_cfg_class, loss_names=LOSSES)
    cfg = resolved.cfg
    engine = select_engine(task, cfg.engine)[0]()
    presets = overrides.take(engine.selectors)
    request = LaunchRequest(task, entry_point, args=argparse.Namespace(presets=presets))
    env_cfg, agent_cfg = engine.load_configs(request)
    device = None if cfg.device == "auto" else cfg.device
    engine.set_common(env_cfg, num_envs=cfg.num_envs, seed=cfg.seed, device=device)  # as the commands do
    if any(item.path == "seed" for item in own_items(overrides)) and "seed" in key_names(agent_cfg):
        apply_values(agent_cfg, {"seed": cfg.seed}, "agent")
    resolved.configure(env_cfg, agent_cfg, overrides)
    return env_cfg, agent_cfg, cfg


def split(argv: list[str], parser: CommandParser) -> CommandLine:
    """Split a command line into the command's own part and Hydra's."""
    hydras = CommandParser(prog=parser.prog, add_help=False)
    add_hydra_args(hydras)
    args, rest = hydras.parse_known_args(argv)
    flags = ["--cfg", args.cfg] if args.cfg else []
    flags += ["--info", args.info] if args.info else []
    flags += ["--package", args.package] if args.package else []
    flags += ["--resolve"] if args.resolve else []
    tokens = set(parse_command(parser, rest, strict=False)[1])
    hydra = [token for token in rest if token in tokens and key_of(token).startswith(("hydra.", "hydra/"))]
    sweep = [token for token in rest if args.multirun and token in tokens and token not in hydra and is_sweep(token)]
    own = [token for token in rest if token not in hydra and token not in sweep]
    return CommandLine(own, sweep, hydra, flags, args)


def _for_hydra(token: str) -> str:
    """Write an override so that Hydra takes it whatever is known about its key: the job checks it."""
    return f"++{_PREFIX}{token}"


def _name_of(swept: Sequence[str]) -> str:
    """Name a job by its values: ``seed-1_student-gru``."""
    parts = [token.rpartition(".")[2] if "=" not in token else token for token in swept]
    plain = "_".join(part.partition("=")[0].rpartition(".")[2] + "-" + part.partition("=")[2] for part in parts)
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in plain)[:100].strip("-.")


def _hydra_main(function: Callable, node: Mapping[str, Any], arguments: Sequence[str], name: str) -> None:
    """Call ``hydra.main`` on a config that is in memory, and turn its complaints into one line."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(_NODE, _with_text_keys(node))
    # No colon, no dot and no blank: the job's name may become a part of a file's name.
    settings = [*_SETTINGS, f"hydra.job.name={Path(name).stem.replace(' ', '_')}"]
    typed = {key_of(token) for token in arguments if not token.startswith("-")}
    settings = [token for token in settings if key_of(token) not in typed]
    flags = [token for token in arguments if token.startswith("-") or token in _values_of(arguments)]
    overrides = [token for token in arguments if token not in flags]
    argv = [sys.argv[0], *flags, *settings, *overrides]
    full_error = mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"})
    with mock.patch.object(sys, "argv", argv), full_error:
        try:
            hydra.main(config_path=None, config_name=_NODE, version_base="1.3")(function)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_one_line(error, arguments)) from error


def _values_of(arguments: Sequence[str]) -> set[str]:
    """Return what stands behind Hydra's own flags."""
    valued = ("--cfg", "--info", "--package")
    return {value for flag, value in zip(arguments, [*arguments, ""][1:], strict=False) if flag in valued}


def _one_line(error: Exception, arguments: Sequence[str]) -> str:
    """Return one line on what Hydra does not accept, with the valid choices."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper

    text = " ".join(str(error).split())
    for kind, base in (("launcher", Launcher), ("sweeper", Sweeper)):
        for token in arguments:
            if key_of(token) != f"hydra/{kind}":
                continue
            chosen = token.partition("=")[2]
            known = [cls.__name__ for cls in Plugins.instance().discover(base)]
            if f"hydra/{kind}/{chosen}" in text:
                missing = f" It is in {_EXTRA[chosen]}: pip install -e '.[sweep]'." if chosen in _EXTRA else ""
                near = "" if missing else f" {suggest(chosen, ['basic', *_EXTRA])}"
                return f"'{token}': there is no such {kind} here ({', '.join(sorted(known))}).{missing}{near}"
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
