"""One job of ``distillation.py --multi_task``: an environment and a teacher per task, and one student."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from foundation.cli.cli_args import CommandParser, parse_command
from foundation.cli.distillation_job import Job
from foundation.cli.distillation_request import Request, settle
from foundation.cli.load_teachers import load_teacher
from foundation.cli.run_to_end import run_folder, run_to_end
from foundation.cli.session import Session
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.task_list import FORMAT, TaskEntry, read_tasks
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.core.text import quoted
from foundation.runs.context import RunContext
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.multi_task import MultiTaskRunner
from foundation.runs.multi_task_state import MultiTaskCheckpoint, load_multi_task
from foundation.runs.run_dir import RunDir
from foundation.runs.run_teachers import Teacher
from foundation.runs.task_part import SharedStudents, TaskPart

LIST = "multi_task"
"""Name of the file in ``params/`` that lists the tasks of a run."""
EXPERIMENT = "multi_task"
"""Folder of the runs where ``--experiment_name`` names no other."""
BuildParser = Callable[[], CommandParser]
"""Makes the command's parser: each task's engine adds its own flags to one of its own."""


@dataclass
class TaskJob:
    """One task: its command line and its teacher, and its environment once the simulator is up."""

    id: str
    job: Job
    teacher: Teacher


def run_multi_task(request: Request, build_parser: BuildParser) -> int:
    """Distil the tasks' teachers into one student; return the exit code."""
    ids, jobs = choose_jobs(request, build_parser)
    tasks = []
    for name, job in zip(ids, jobs, strict=True):
        with naming(name):
            tasks.append(TaskJob(name, job, load_teacher(job.cfg)))
        print(f"{name}: {tasks[-1].teacher.architecture_line()}")
    cfg = request.cfg
    name = cfg.experiment_name or EXPERIMENT
    with run_folder(request.resumed, name, cfg.run_name) as run, contextlib.ExitStack() as stack:
        sessions = {}
        for task in tasks:
            with naming(task.id):
                sessions[task.id] = stack.enter_context(task.job.launch(task.teacher))
        if request.resumed is None:
            write_list(run, request)
        checkpoint = None if request.resumed is None else load_multi_task(run, ids, request.args.checkpoint)
        build = builder(run, cfg, tasks, sessions, checkpoint)
        first = None if request.resumed is None else 0
        if checkpoint is not None:
            first = checkpoint.state.epoch + 1
        return run_to_end(run, cfg, first, build)


def choose_jobs(request: Request, build_parser: BuildParser) -> tuple[list[str], list[Job]]:
    """Return the tasks' ids and their jobs: the file's arguments for each, then what was typed, which beats them."""
    cfg = request.cfg
    of_one_task = {
        "--task": cfg.task,
        "--teacher_checkpoint": cfg.teacher.checkpoint,
        "--watch_teacher": cfg.teacher.watch,
        "--dataset": cfg.dataset.load,
        "--save_dataset": cfg.dataset.save,
    }
    for flag, value in of_one_task.items():
        if value is not None:
            raise UserError(f"{flag} is about one task: leave it out with --multi_task, whose file names them")
    resumed = request.resumed
    if resumed is None:
        entries = read_tasks(str(request.cfg.multi_task))
        requests = [task_request(request, entry, build_parser()) for entry in entries]
        ids = [entry.id for entry in entries]
    else:
        ids = listed_ids(resumed)
        refuse_another_list(resumed, request.args.multi_task)
        requests = [resumed_request(request, folder_of(resumed, name), build_parser()) for name in ids]
    jobs = []
    for name, own in zip(ids, requests, strict=True):
        with naming(name):
            jobs.append(Job.choose_engine(own))
            engine = jobs[-1].engine
            if engine.envs_per_process == 1:
                raise UserError(
                    f"engine '{engine.name}' holds one environment in a process, and --multi_task needs one for each "
                    "task and one for its evaluation"
                )
    return ids, jobs


def task_request(request: Request, entry: TaskEntry, parser: CommandParser) -> Request:
    """Return the command line of one task."""
    with naming(entry.id):
        return Request.read(parser, [*entry.arguments(), *request.argv])


def resumed_request(request: Request, folder: RunDir, parser: CommandParser) -> Request:
    """Return the command line that one task resumes with, its settings those of its folder."""
    args, tokens = parse_command(parser, request.argv, strict=False)
    overrides, resolved = settle(args, tokens, folder)
    return Request(parser, request.argv, args, tokens, folder, overrides, resolved)


def builder(
    run: RunDir,
    cfg: DistillationCfg,
    tasks: list[TaskJob],
    sessions: Mapping[str, Session],
    checkpoint: MultiTaskCheckpoint | None,
) -> Callable[[MetricsWriter, Callable[[], str]], MultiTaskRunner]:
    """Make the environments; return what builds the runner in them, resumed where there is a checkpoint."""
    shared = SharedStudents()
    builds = {}
    for task in tasks:
        folder = folder_of(run, task.id)
        session = sessions[task.id]
        session.set_log_dir(folder.path)
        own = None if checkpoint is None else checkpoint.tasks[task.id]
        make = functools.partial(TaskPart, task.id, shared)
        with naming(task.id):
            builds[task.id] = task.job.builder(folder, session, task.teacher, own, make)

    def build(writer: MetricsWriter, interrupted: Callable[[], str]) -> MultiTaskRunner:
        parts = {}
        for name, own_build in builds.items():
            with naming(name):
                parts[name] = own_build(writer, interrupted)
        device = next(iter(parts.values())).context.device
        runner = MultiTaskRunner(RunContext.make(cfg, run, device, writer, interrupted), parts)
        if checkpoint is not None:
            runner.restore(checkpoint.state)
            restore_rng(checkpoint, parts)
        run.save_params(distillation_cfg=cfg)
        return runner

    return build


def restore_rng(checkpoint: MultiTaskCheckpoint, parts: Mapping[str, TaskPart]) -> None:
    """Put torch's generators back once all runners are made, which seed them."""
    for name, part in parts.items():
        state = checkpoint.tasks[name].state
        if state is not None:
            state.restore_rng(part.context.device)


def folder_of(run: RunDir, name: str) -> RunDir:
    """Return a task's own folder in a run's, which is made where it is not there."""
    path = run.path / "tasks" / name
    path.mkdir(parents=True, exist_ok=True)
    return RunDir(path)


def plain_list(path: str) -> list[dict[str, Any]]:
    """Read a list of tasks as plain values, with the teachers' files wherever the command is typed."""
    entries = [asdict(entry) for entry in read_tasks(path)]
    for entry in entries:
        if Path(entry["teacher"]).exists():
            entry["teacher"] = str(Path(entry["teacher"]).resolve())
    return entries


def refuse_another_list(run: RunDir, typed: str | None) -> None:
    """Refuse a list of tasks that is not that of the run to resume, which goes on with its own.

    Args:
        run: The run.
        typed: The file that ``--multi_task`` names. None: none is named.

    Raises:
        UserError: Naming the first difference.
    """
    if typed is None:
        return
    was = {str(own["id"]): own for own in run.load_params(LIST)["tasks"]}
    now = {str(own["id"]): own for own in plain_list(typed)}
    differing = [f"tasks {', '.join(now)}, and the run has {', '.join(was)}"] if list(was) != list(now) else []
    for name in was if not differing else ():
        differing += [
            f"{key} {quoted(value)} of task '{name}', and the run has {quoted(was[name].get(key))}"
            for key, value in now[name].items()
            if was[name].get(key) != value
        ]
    if differing:
        raise UserError(f"'{typed}' has {differing[0]}: leave --multi_task out with --resume, or start a new run")


def write_list(run: RunDir, request: Request) -> None:
    """Write the list of the tasks, as it was when the run began."""
    entries = plain_list(str(request.cfg.multi_task))
    text = yaml.safe_dump({"format": FORMAT, "tasks": entries}, sort_keys=False, allow_unicode=True)
    run.params_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(run.params_dir / f"{LIST}.yaml", text.encode())
    run.save_params(distillation_cfg=request.cfg)


def listed_ids(run: RunDir) -> list[str]:
    """Return the ids of a run's tasks, in order."""
    if run.params_dir.is_dir() and not (run.params_dir / f"{LIST}.yaml").exists():
        raise UserError(f"{run.path} is a run of one task: leave --multi_task out, or name another run by --load_run")
    tasks = run.load_params(LIST).get("tasks")
    listed = tasks if isinstance(tasks, list) else []
    ids = [own.get("id") if isinstance(own, dict) else None for own in listed]
    plain = [name for name in ids if isinstance(name, str) and name and "/" not in name and name not in (".", "..")]
    if not ids or len(plain) != len(ids):
        raise UserError(f"'{run.params_dir / LIST}.yaml' is corrupt: its tasks are {quoted(tasks)}.")
    return plain


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the task that an error is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"task '{name}': {error}") from error


def compose_multi_task(request: Request, build_parser: BuildParser) -> dict[str, Any]:
    """Return the configs of each task, starting nothing."""
    ids, jobs = choose_jobs(request, build_parser)
    return {name: job.load_configs() for name, job in zip(ids, jobs, strict=True)}
