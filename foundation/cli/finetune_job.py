"""One job of ``finetune.py``: resolve its command line, launch its engine, then carry the run out."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from foundation.cli.cli_args import CommandParser, parse_command, say_beaten
from foundation.cli.derived_obs import derive_in, recorded_groups
from foundation.cli.played_policy import own_task
from foundation.cli.run_to_end import find_resumed, refuse_new_names, run_folder, run_to_end
from foundation.cli.session import Session, recorded_env_state
from foundation.cli.steps import StagedCommand
from foundation.config.derived_cfg import copied
from foundation.config.env_state import read_env_state
from foundation.config.finetune_cfg import FinetuneCfg, check_finetune, key_of_finetune
from foundation.config.overrides import Assignment, Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.config.presets import own_preset, read_preset
from foundation.config.resolve import config_folder
from foundation.config.validate import read
from foundation.config.values import apply_values
from foundation.core.devices import resolve_device
from foundation.core.errors import UserError
from foundation.core.program import command_name
from foundation.core.registry import refuse_untyped_names
from foundation.engines import select_engine
from foundation.engines.base import AgentCfg, Engine, EnvCfg, LaunchRequest, VecEnv, VideoRequest
from foundation.engines.side_by_side import SideBySide
from foundation.ppo.finetune import FinetuneRunner, FinetuneState
from foundation.ppo.settings import AgentSettings
from foundation.runs.changed_settings import changed_settings, refuse_settled
from foundation.runs.metrics_writer import MetricsWriter, check_logger
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import RunCheckpoint, load_named
from foundation.students import student_cfg_class

logger = logging.getLogger("foundation.finetune")

LOG_ROOT = Path("logs/finetune")
SCOPES = ("env", "agent", "finetune")
SETTLED = (
    "actor.init_std",
    "actor.init_entropy",
    "critic.init",
    "student.init_checkpoint",
    "student.init_encoder",
)
"""Settings that are read before the first iteration alone."""
_OTHER_NAMES = {
    "teacher_checkpoint": "teacher.checkpoint",
    "critic_warmup_iterations": "critic.warmup_iterations",
    "init_std": "actor.init_std",
}


@dataclass
class Job:
    """Command line of ``finetune.py`` with its engine, before the simulator is up."""

    args: argparse.Namespace
    overrides: Overrides
    cfg: FinetuneCfg
    files: dict[str, Any]
    """What a file of ``configs/finetune`` sets in the configs of environment and agent."""
    engine: Engine
    resumed: RunDir | None
    old: Session | None = None
    """Session of the old task that some of the environments keep running."""

    @classmethod
    def choose_engine(cls, parser: CommandParser, argv: Sequence[str]) -> Job:
        """Read a command line and choose the engine; its own flags are known only then.

        Args:
            parser: Knows the flags that need no engine.
            argv: Arguments without the program's name.
        """
        args, tokens = parse_command(parser, argv, strict=False)
        resumed = find_resumed(args, LOG_ROOT) if args.resume else None
        if args.load_run and resumed is None:
            raise UserError("--load_run names the run to resume: add --resume, or name a policy by --checkpoint")
        cfg, _, files = _settle(args, tokens, resumed)
        if resumed is not None:
            refuse_new_names(resumed, resumed.load_params("finetune"), cfg.experiment_name, cfg.run_name)
        if cfg.task is None:
            parse_command(parser, argv)  # a misspelt --task is the likely reason
            raise UserError("no task was given: --task ID, such as --task Isaac-Quadcopter-Point-Ctrl-v0")
        engine, why = select_engine(cfg.task, cfg.engine)
        engine.add_args(parser)
        args, tokens = parse_command(parser, argv)
        cfg, overrides, files = _settle(args, tokens, resumed)
        logger.info("%s", why)
        args.presets = overrides.take(engine.selectors)
        return cls(args, overrides, cfg, files, engine(), resumed)

    @property
    def request(self) -> LaunchRequest:
        """Request to the engine."""
        args = self.args
        return LaunchRequest(
            self.cfg.task or "",
            device=self.cfg.device,
            headless=args.headless,
            video=args.video,
            args=args,
            needs_agent=True,
        )

    def load_configs(self) -> dict[str, Any]:
        """Return the three configs as plain values, starting nothing."""
        env_cfg, agent_cfg = self.engine.load_configs(self.request)
        self.configure(env_cfg, agent_cfg)
        return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg), "finetune": to_plain(self.cfg)}

    @contextlib.contextmanager
    def launch(self) -> Iterator[Session]:
        """Start the simulator."""
        cfg = self.cfg
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(Session.launch(self.engine, self.request, self.configure))
            recorded = None if cfg.checkpoint is None else recorded_groups(cfg.checkpoint)
            derive_in(session, cfg.obs, cfg.task or "", cfg.seed, recorded, "finetune.obs")
            if cfg.rehearsal.task is not None:
                self.old = stack.enter_context(self._launch_old(cfg.rehearsal.task))
                derive_in(self.old, cfg.obs, cfg.rehearsal.task, cfg.seed, recorded, "finetune.obs")
            say_beaten(self.args, self.overrides)
            yield session

    def _launch_old(self, task: str) -> contextlib.AbstractContextManager[Session]:
        """Start the old task on the same engine, with its own settings.

        Raises:
            UserError: If the engine cannot run it beside the new one.
        """
        engine = type(self.engine)()
        if engine.envs_per_process == 1:
            raise UserError(
                f"engine '{engine.name}' holds one environment in a process, and finetune.rehearsal needs two: replay "
                "the old task from disk instead (finetune.replay.dataset)"
            )
        obstacle = engine.why_not(task)
        if obstacle is not None:
            raise UserError(f"finetune.rehearsal.task: engine '{engine.name}' cannot run {task}: {obstacle}")
        request = LaunchRequest(task, device=self.cfg.device, args=self.args, needs_agent=True)

        def configure(env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
            engine.set_common(env_cfg, num_envs=None, seed=self.cfg.seed, device=self.cfg.device)

        return Session.launch(engine, request, configure)

    def _make_env(self, session: Session, video: VideoRequest | None) -> VecEnv:
        """Make the environment to collect in, with the old task's beside it where that is asked."""
        if self.old is None:
            return session.make_env(video=video)
        total = self.engine.num_envs(session.env_cfg)
        share = self.cfg.rehearsal.share
        number = 0 if total is None else max(1, round(share * total))
        if total is None or not 0 < number < total:
            raise UserError(
                f"finetune.rehearsal.share={share:g} of {total or 'an unknown number of'} environments leaves none for "
                "one of the tasks: give more --num_envs"
            )
        env = session.make_env(total - number, video=video)
        return cast(VecEnv, SideBySide(env, self.old.make_env(number)))

    def configure(self, env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
        """Apply files, overrides and flags, each of which beats those before it, to the simulator's configs."""
        cfg = self.cfg
        self.engine.set_common(env_cfg, num_envs=cfg.num_envs, seed=cfg.seed, device=cfg.device)
        for scope, target in (("env", env_cfg), ("agent", agent_cfg)):
            apply_values(target, self.files.get(scope) or {}, scope, null=True)
        self.overrides.configure(env_cfg, agent_cfg, cfg, "finetune")
        device = self.args.device and cfg.device
        self.engine.set_common(env_cfg, num_envs=self.args.num_envs, seed=self.args.seed, device=device)

    def run(self, session: Session) -> int:
        """Make the run's folder, its environment and its runner, and let it run; return the exit code."""
        cfg = self.cfg
        if cfg.experiment_name is None:
            named = read(session.agent_cfg, "experiment_name")
            cfg.experiment_name = str(named or (cfg.task or "").rpartition(":")[2])
        folder = run_folder(self.resumed, cfg.experiment_name, cfg.run_name, LOG_ROOT)
        with folder as run, contextlib.closing(session):
            session.set_log_dir(run.path)
            if self.resumed is None:
                self.save_params(run, session)  # from here on it can be resumed
            checkpoint = None
            if self.resumed is not None:
                checkpoint = load_named(run, self.args.checkpoint, FinetuneState)
            first = None
            if self.resumed is not None:
                first = 0 if checkpoint is None else checkpoint.epoch + 1
            return run_to_end(run, cfg, first, self._builder(run, session, checkpoint))

    def _builder(
        self, run: RunDir, session: Session, checkpoint: RunCheckpoint[FinetuneState] | None
    ) -> Callable[[MetricsWriter, Callable[[], str]], FinetuneRunner]:
        """Make the environment; return what builds the runner in it, resumed where there is a checkpoint."""
        cfg = self.cfg
        args = self.args
        agent = AgentSettings.read(session.agent_cfg, cfg)
        video = None
        if args.video:
            state = None if checkpoint is None else checkpoint.state
            taken = 0 if state is None else state.env_steps // state.num_envs
            video = VideoRequest(run.video_dir("finetune"), args.video_length, args.video_interval, taken)
        if checkpoint is not None:
            session.env_state = read_env_state(checkpoint.values, f"{run.path}")
        elif cfg.checkpoint is not None:
            session.env_state = recorded_env_state(cfg.checkpoint)
        env = self._make_env(session, video)
        cfg.num_envs = env.num_envs

        def build(writer: MetricsWriter, interrupted: Callable[[], str]) -> FinetuneRunner:
            runner = FinetuneRunner(
                env,
                cfg,
                agent,
                run,
                make_eval_env=session.make_eval_env,
                make_old_env=None if self.old is None else self.old.make_eval_env,
                writer=writer,
                interrupted=interrupted,
            )
            if self.resumed is not None:
                if checkpoint is not None:
                    refuse_settled(checkpoint.values.get("finetune"), cfg, SETTLED, key_of_finetune)
                inexact = "" if checkpoint is None else runner.resume(checkpoint)
                how = f"not exact: {inexact}" if inexact else "exact"
                changed = ""
                if checkpoint is not None:
                    was = {"distillation": checkpoint.values.get("finetune")}
                    changed = changed_settings(run, was, cfg, session.env_cfg, session.agent_cfg)
                print(f"Resuming {run.path} after iteration {runner.epoch} ({how}{changed})")
            self.save_params(run, session)
            return runner

        return build

    def save_params(self, run: RunDir, session: Session) -> None:
        """Write the configs, and what ``finetune.yaml`` does not hold: files' values and typed overrides."""
        items = [item for scope in ("env", "agent") for item in self.overrides.scoped.get(scope, [])]
        own = vars(self.cfg)
        items += [item for item in self.overrides.bare if item.path.partition(".")[0] not in own]
        tokens = list(dict.fromkeys([*self.args.presets, *(item.token for item in items)]))
        typed = {**self.files, "tokens": tokens}
        run.save_params(session.env_cfg, session.agent_cfg, overrides=typed, finetune_cfg=self.cfg)


def _settle(
    args: argparse.Namespace, tokens: Sequence[str], resumed: RunDir | None
) -> tuple[FinetuneCfg, Overrides, dict[str, Any]]:
    """Resolve the config: defaults (or the run to resume), the experiment's file, overrides, flags.

    Returns:
        The config, what was typed, and what the file sets in the other two configs.
    """
    saved: dict[str, Any] = {}
    base: dict[str, Any] = {}
    if resumed is not None:
        base = resumed.load_params("finetune")
        if (resumed.params_dir / "overrides.yaml").exists():
            saved = resumed.load_params("overrides")
            refuse_untyped_names(saved, f"{resumed.params_dir / 'overrides.yaml'}")
        if args.task not in (None, base.get("task")):
            raise UserError(f"{resumed.path} is a run of --task {base.get('task')}: name another one by --load_run")
    overrides = parse_overrides([*saved.pop("tokens", []), *tokens], scopes=SCOPES)
    files = dict(saved)
    file_values = _take_experiment(overrides)
    files |= {scope: file_values.pop(scope) for scope in ("env", "agent") if scope in file_values}
    own = [item for item in _own_items(overrides)]
    layers: list[tuple[str, Mapping[str, Any]]] = [("params/finetune.yaml", base), ("configs", file_values)]
    layers += [("finetune", {item.path: item.value}) for item in own]
    flags = _flags(args, resumed is not None)
    cfg = FinetuneCfg(student=student_cfg_class(_student_name([values for _, values in layers]))())
    for origin, values in [*layers, ("finetune", flags)]:
        apply_values(cfg, values, origin if origin == "finetune" else "finetune")
    if cfg.checkpoint is not None and not base:  # what the policy was trained on, and then what was typed about it
        cfg.obs = copied(recorded_groups(cfg.checkpoint))
        for origin, values in layers:
            mine = {key: value for key, value in values.items() if key.partition(".")[0] == "obs"}
            apply_values(cfg, mine, origin if origin == "finetune" else "finetune")
    cfg.device = resolve_device(cfg.device)
    if cfg.task is None and cfg.checkpoint is not None:
        _check_file(cfg.checkpoint, "--checkpoint")
        cfg.task = own_task(Path(cfg.checkpoint))
    check_finetune(cfg)
    check_logger(cfg.logger)
    if resumed is None:
        _check_files(cfg)
    return cfg, overrides, files


def _take_experiment(overrides: Overrides) -> dict[str, Any]:
    """Take what ``experiment=`` chooses out of what was typed, and return the file's values."""
    chosen = [item for item in overrides.bare if item.path == "experiment"]
    overrides.bare = [item for item in overrides.bare if item.path != "experiment"]
    return read_experiment(str(chosen[-1].value)) if chosen else {}


def read_experiment(name: str) -> dict[str, Any]:
    """Read a file of ``configs/finetune``, or the user's own."""
    folder = config_folder() / "finetune"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        path = own_preset("experiment", name, sorted(found.stem for found in folder.glob("*.yaml")))
    return read_preset("experiment", path)[0]


STAGED = StagedCommand(
    "foundation.rsl_rl.finetune",
    LOG_ROOT,
    read_experiment,
    "checkpoint",
    ("checkpoint",),
    lambda student: FinetuneCfg(student=student_cfg_class(student)()),
)
"""What a file with stages runs."""


def _own_items(overrides: Overrides) -> list[Assignment]:
    """Return the typed keys of the run's own config, with and without ``finetune.``."""
    names = [own.name for own in fields(FinetuneCfg)]
    bare = [item for item in overrides.bare if item.path.partition(".")[0] in names]
    return [*overrides.scoped.get("finetune", []), *bare]


def _student_name(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the fresh actor in force; its other fields depend on it."""
    found = "mlp"
    for values in layers:
        nested = values.get("student")
        named = nested.get("name") if isinstance(nested, dict) else None
        found = str(values.get("student.name") or named or found)
    return found


def _flags(args: argparse.Namespace, resumes: bool) -> dict[str, Any]:
    """Return the typed flags that are fields of the config, as dotted field -> value."""
    names = {own.name: own.name for own in fields(FinetuneCfg)} | _OTHER_NAMES
    if resumes:
        del names["checkpoint"]  # there it names the state to resume from
    typed = {path: getattr(args, name, None) for name, path in names.items()}
    return {path: value for path, value in typed.items() if value is not None}


def _check_files(cfg: FinetuneCfg) -> None:
    """Refuse files that are not there, before a simulator starts."""
    if cfg.checkpoint is not None:
        _check_file(cfg.checkpoint, "--checkpoint")
    for path in cfg.teacher_checkpoints().values():
        _check_file(path, "--teacher_checkpoint")
    if cfg.checkpoint is None and not cfg.teacher_checkpoints():
        raise UserError(
            f"no policy to start from: give --checkpoint PATH, the policy (or --teacher_checkpoint PATH, to teach a "
            f"fresh one); {command_name('train.py')} trains a policy from scratch"
        )


def _check_file(path: str, flag: str) -> None:
    if not Path(path).exists():
        raise UserError(f"{flag}: '{path}' does not exist")
