"""One job of ``play.py``: measure and show the policy in a session."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

import foundation
from foundation.checkpoints.reading.loading import LoadedPolicy
from foundation.cli.beside_teacher import find_teacher, teacher_actor
from foundation.cli.cli_args import CommandParser, Interrupt, parse_command, say_beaten
from foundation.cli.derived_obs import derive_in
from foundation.cli.play_args import of_env_and_agent, read_seeds, refuse_bare_seed, typed_keys, typed_tokens
from foundation.cli.played_policy import BEST, PlayedPolicy
from foundation.cli.session import Session
from foundation.cli.studies import (
    add_to_summary,
    kept_epochs,
    observation_names,
    read_summary,
    study_efficiency,
    study_robustness,
    study_similarity,
    write_json,
)
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.text import shorten
from foundation.engines import select_engine
from foundation.engines.base import (
    AGENT_ENTRY_POINT,
    AgentCfg,
    Engine,
    EnvCapabilities,
    EnvCfg,
    LaunchRequest,
    VecEnv,
    VideoRequest,
    count_variants,
)
from foundation.engines.perturbed import PerturbedEnv
from foundation.evaluation.ablation import (
    AblatedActor,
    MeanObservations,
    ablation_figures,
    ablation_table,
    parse_ablations,
)
from foundation.evaluation.audit import MISSED, manifest, pooled, seed_figures
from foundation.evaluation.breakdown import variant_figures, variant_table
from foundation.evaluation.report_table import evaluation_figures, evaluation_table, inference_seconds, table_console
from foundation.evaluation.robustness import SEED as STUDY_SEED
from foundation.evaluation.robustness import chosen_quantities
from foundation.evaluation.similarity import SEED as SIMILARITY_SEED
from foundation.export.on_play import export_played
from foundation.policies.actors import Actor, PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.baselines import ratio_interval
from foundation.rollout.episodes import EvaluationResult
from foundation.rollout.evaluate import evaluate
from foundation.rollout.stepper import Observer, RealTimePace
from foundation.runs.run_dir import RunDir
from foundation.teachers.code import CodeTeacher
from foundation.viewer.page import PORT, ViewerPage
from foundation.viewer.stage import Stage

logger = logging.getLogger("foundation.play")


@dataclass
class Job:
    """Command line of ``play.py`` with its engine, before the simulator is up."""

    args: argparse.Namespace
    overrides: Overrides
    played: PlayedPolicy
    engine: Engine
    seed: int
    """Seed of the episodes."""

    @classmethod
    def choose_engine(cls, parser: CommandParser, argv: Sequence[str], played: PlayedPolicy, seed: int) -> Job:
        """Choose the engine; its own flags are known only then.

        Args:
            parser: Knows the flags that need no engine.
            argv: Arguments without the program's name.
            played: What acts.
            seed: Seed of the episodes where ``--seed`` is not given.
        """
        args, _ = parse_command(parser, argv, strict=False)
        engine, why = _select_engine(played, args.engine)
        engine.add_args(parser)
        args, tokens = parse_command(parser, argv)
        logger.info("%s", why)
        overrides = parse_overrides(of_env_and_agent(tokens), scopes=("env", "agent"))
        refuse_bare_seed(overrides)
        args.presets = overrides.take(engine.selectors)
        return cls(args, overrides, played, engine(), seed if args.seed is None else args.seed)

    def load_configs(self) -> dict[str, Any]:
        """Return the configs of environment and agent as plain values, starting nothing."""
        args = self.args
        device = self.played.device
        request = LaunchRequest(self.played.task, AGENT_ENTRY_POINT, device, args=args)
        env_cfg, agent_cfg = self.engine.load_configs(request)
        self.overrides.configure(env_cfg, agent_cfg)
        self.engine.set_common(env_cfg, num_envs=args.num_envs, seed=args.seed, device=device)
        return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg)}

    @contextlib.contextmanager
    def launch(self) -> Iterator[Session]:
        """Start the simulator."""
        args = self.args
        if args.robustness or args.similarity:
            read_summary(self.played.folder)  # refused before the first episode, not after many minutes
        entry_point = args.agent if args.agent.endswith("_entry_point") else AGENT_ENTRY_POINT
        request = LaunchRequest(self.played.task, entry_point, self.played.device, args.headless, args.video, args)
        with Session.launch(self.engine, request, self.configure) as session:
            session.set_log_dir(self.played.folder)
            played = self.played
            recorded = None if played.policy is None else played.policy.info.derived
            session.env_state = None if played.policy is None else played.policy.info.env_state
            derive_in(session, played.obs, played.task, self.seed, recorded, "obs")
            yield session

    def configure(self, env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
        """Apply overrides and flags; without either there are as many environments as episodes, or fewer."""
        args = self.args
        engine = self.engine
        say_beaten(args, self.overrides)
        self.overrides.configure(env_cfg, agent_cfg)
        num_envs = args.num_envs
        if args.viewer:
            num_envs = 1 if engine.envs_per_process != 1 else 2
        elif num_envs is None and not any(key.endswith("scene.num_envs") for key in typed_keys(self.overrides)):
            configured = engine.num_envs(env_cfg) or args.num_episodes
            variants = count_variants(env_cfg)  # all are played, and equally often
            num_envs = -(-min(args.num_episodes, configured) // variants) * variants
        engine.set_common(env_cfg, num_envs=num_envs, seed=args.seed, device=self.played.device)
        bound = None if self.played.policy is None else self.played.policy.clip_actions
        if bound is not None and getattr(agent_cfg, "clip_actions", bound) is None:
            setattr(agent_cfg, "clip_actions", bound)  # noqa: B010  # a protocol without fields has none to assign

    def run(self, session: Session) -> int:
        """Run the episodes and show what was measured; return the exit code."""
        args = self.args
        if args.viewer:
            return self.view(session)
        video = None
        if args.video:  # one clip, from the first step on
            video = VideoRequest(self.played.folder / "videos" / "play", args.video_length, 0)
        env = session.make_env(video=video)
        missed = False
        with Interrupt() as interrupt:
            try:
                missed = self.measure(env, interrupt)
            except RunInterrupted:
                print("Stopped before the episodes had ended: nothing was measured")
            finally:
                session.close_env(env)
        return MISSED if missed else interrupt.exit_code

    def view(self, session: Session) -> int:
        """Show policy and teacher in the browser until Ctrl-C; return the exit code."""
        played = self.played
        first = session.make_env()
        actor, selector = played.make_actor(first, self.seed)
        actors = self.beside_teacher(first, actor)
        envs = [first]
        if session.holds_many:  # each its own, from the same initial state
            envs += [session.make_env() for _ in range(len(actors) - 1)]
        stage = Stage(actors, envs, selector, self.seed)
        stage.measure_scales()
        names = [] if selector is None else observation_names(first, played.task, selector)
        port = self.args.viewer_port or PORT
        page = ViewerPage(stage, f"{played.task} ({self.engine.name})", names, port)
        print(f"Viewer: {page.url} (Ctrl-C ends it; over ssh: ssh -L {port}:localhost:{port} HOST)", flush=True)
        with Interrupt(quiet=True) as interrupt:

            def poll() -> None:
                if interrupt.interrupted():
                    raise RunInterrupted

            try:
                page.run(poll)
            except RunInterrupted:
                print("Viewer closed")
            finally:
                page.close()
        return 0

    def measure(self, env: VecEnv, interrupt: Interrupt) -> bool:
        """Run the episodes in an environment, and show and write their figures.

        Returns:
            Whether the success is below ``--min_success``.
        """

        def poll() -> None:
            if interrupt.interrupted():
                raise RunInterrupted

        args = self.args
        played = self.played
        actor, selector = played.make_actor(env, self.seed)
        pace = [RealTimePace(env)] if args.real_time else []
        declared = EnvCapabilities.of(env)
        studied = self.studied(env, actor)
        means = MeanObservations()
        ablations = parse_ablations(args.ablate or (), env, played.task, () if selector is None else selector.groups)
        each = self.episodes(env, actor, poll, [*pace, *([means] if ablations else [])])
        result = pooled(each)
        figures = evaluation_figures(result) | network_figures(played, env, selector)
        kind = declared.variant_kind
        units = declared.metric_units
        variants = variant_figures(result, kind, declared.variant_names, list(units))
        if len(each) > 1:
            figures["seeds"] = seed_figures(self.seeds, each)
        console = table_console()
        console.print(evaluation_table(f"{played.task} ({self.engine.name})", self.head(env, figures), figures, units))
        if self.measures_teacher:
            beside = self.teacher_figures(env, poll, result)
            figures |= beside
            if beside:
                print(teacher_line(beside))
        if variants:
            figures[f"{kind}s"] = variants
            console.print(variant_table(variants, kind, units))
        if ablations:
            actors = [AblatedActor(actor, ablation, means, self.seed) for ablation in ablations]
            ablated = [pooled(self.episodes(env, acting, poll)) for acting in actors]
            rows = [ablation_figures(a, found, result) for a, found in zip(ablations, ablated, strict=True)]
            figures["ablations"] = rows
            console.print(ablation_table(rows, figures))
            add_to_summary(played.folder, "ablations", rows)
        figures |= self.study(env, studied, poll)
        if args.json:
            write_json(Path(args.json), self.origin(env) | figures | {"manifest": manifest(self.files())})
        if played.policy is not None and not isinstance(played.policy, CodeTeacher) and not args.no_export:
            loaded = LoadedPolicy(played.policy.policy, played.policy.info)
            export_played(loaded, played.folder / "exported", played.task)
        return self.is_below(figures["success_rate"])

    def episodes(
        self, env: VecEnv, actor: Actor, poll: Callable[[], None], observers: Sequence[Observer] = ()
    ) -> list[EvaluationResult]:
        """Run the episodes of each seed.

        Args:
            env: The environment.
            actor: Acts.
            poll: Called every few env steps; may raise to stop.
            observers: Called at every env step.
        """
        variants = variant_of(EnvCapabilities.of(env))
        number = self.args.num_episodes
        return [evaluate(env, actor, number, s, observers, poll, teacher_of=variants) for s in self.seeds]

    @property
    def measures_teacher(self) -> bool:
        """Whether the teacher plays the policy's episodes too: ``--with_teacher``, or ``--teacher`` without a study."""
        args = self.args
        return args.with_teacher or (args.teacher is not None and not (args.robustness or args.similarity))

    def teacher_figures(self, env: VecEnv, poll: Callable[[], None], result: EvaluationResult) -> dict[str, Any]:
        """Return the teacher's figures on the same episodes, and the ratio of the returns; nothing without a teacher.

        Args:
            env: The environment.
            poll: Called every few env steps; may raise to stop.
            result: The policy's episodes.
        """
        teacher = find_teacher(self.played, self.args.teacher)
        if teacher is None:
            return {}
        beside = pooled(self.episodes(env, teacher_actor(teacher, env, self.played.task), poll))
        found: dict[str, Any] = {"teacher": evaluation_figures(beside) | {"checkpoint": teacher.info.path}}
        if beside.mean_return > 0.0:
            found["return_ratio"] = result.mean_return / beside.mean_return
            found["return_ratio_interval_95"] = ratio_interval(result.returns, beside.returns)
        return found

    def head(self, env: VecEnv, figures: dict[str, Any]) -> list[tuple[str, str]]:
        """Return the first rows of the table: what was measured, and on which episodes."""
        rows = [("policy", self.played.describe())]
        if self.played.checkpoint is not None:
            rows.append(("checkpoint", str(self.played.checkpoint)))
        listed = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        rows.append(("episodes", f"{figures['num_episodes']} in {env.num_envs} environments, {listed}"))
        return rows + [(f"seed {row['seed']}", _seed_line(row)) for row in figures.get("seeds", ())]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the episodes: those of ``--eval_seeds``, or one."""
        return read_seeds(self.args.eval_seeds) or [self.seed]

    def is_below(self, success: float | None) -> bool:
        """Whether the success is below ``--min_success``; says which it is.

        Raises:
            UserError: If success is not known.
        """
        wanted = self.args.min_success
        if wanted is None:
            return False
        if success is None:
            raise UserError("--min_success: whether an episode succeeds is not known in this task")
        below = success < wanted
        print(f"Success {100 * success:.1f} % is {'below' if below else 'at least'} the {100 * wanted:g} % asked for")
        return below

    def files(self) -> list[Path]:
        """Return the files that the figures rest on: the policy, and the settings of its run."""
        checkpoint = self.played.checkpoint
        if checkpoint is None:
            return []
        return [checkpoint, *(checkpoint.resolve().parent / "params").glob("*.yaml")]

    def studied(self, env: VecEnv, actor: Actor) -> dict[str, Actor]:
        """Return what the studies compare, nothing where none was asked for; refused before the first episode.

        Raises:
            UserError: For a quantity that the environment cannot vary, or a comparison without a teacher.
        """
        args = self.args
        if not (args.robustness or args.similarity):
            return {}
        if args.perturbation:
            chosen_quantities(PerturbedEnv(env), args.perturbation)
        actors = self.beside_teacher(env, actor)
        if args.similarity and not (isinstance(actors.get("teacher"), PolicyActor) and isinstance(actor, PolicyActor)):
            raise UserError("--similarity compares a policy with a teacher: --teacher FILE names one")
        return actors

    def study(self, env: VecEnv, actors: dict[str, Actor], poll: Callable[[], None]) -> dict[str, Any]:
        """Measure what was asked for beyond the plain figures, beside the teacher where there is one.

        Args:
            env: The environment.
            actors: Of :meth:`studied`.
            poll: Called every few env steps; may raise to stop.
        """
        args = self.args
        played = self.played
        if not actors:
            return {}
        found: dict[str, Any] = {"efficiency": study_efficiency(actors, env.num_envs, played.folder)}
        number, folder = args.num_episodes, played.folder
        if args.robustness:
            seed = STUDY_SEED if args.seed is None else self.seed
            found["robustness"] = study_robustness(env, actors, args.perturbation or (), number, seed, folder, poll)
        teacher = actors.get("teacher")
        student = actors.get("student")
        if args.similarity and isinstance(teacher, PolicyActor) and isinstance(student, PolicyActor):
            seed = SIMILARITY_SEED if args.seed is None else self.seed
            bound = None if played.policy is None else played.policy.clip_actions
            is_run = played.checkpoint is not None and played.checkpoint.name == BEST
            earlier = kept_epochs(folder) if is_run else {}
            found["similarity"] = study_similarity(
                env, teacher, student, played.task, number, seed, bound, folder, poll, earlier
            )
        return found

    def beside_teacher(self, env: VecEnv, actor: Actor) -> dict[str, Actor]:
        """Name what acts, the teacher first where one is known."""
        played = self.played
        typed = self.args.teacher
        teacher = find_teacher(played, typed)
        if teacher is None:
            return {"policy": actor}
        return {"teacher": teacher_actor(teacher, env, played.task), "student": actor}

    def origin(self, env: VecEnv) -> dict[str, Any]:
        """Return what the figures are of."""
        played = self.played
        return {
            "task": played.task,
            "engine": self.engine.name,
            "device": played.device,
            "agent": self.args.agent,
            "policy": played.describe(),
            "checkpoint": None if played.checkpoint is None else str(played.checkpoint),
            "num_envs": env.num_envs,
            "seed": self.seed,
            "overrides": typed_tokens(self.overrides),
            "version": foundation.__version__,
        }


def teacher_line(figures: dict[str, Any]) -> str:
    """Return one line on the teacher's return on the same episodes, and on the policy's beside it."""
    teacher = figures["teacher"]
    line = f"The teacher's return on the same episodes: {teacher['return']['mean']:.2f}"
    if "return_ratio" not in figures:
        return line
    half = figures["return_ratio_interval_95"]
    interval = f" ± {100.0 * half:.2f}" if math.isfinite(half) else ""
    return f"{line}, of which the policy has {100.0 * figures['return_ratio']:.2f} %{interval}"


def _seed_line(row: dict[str, Any]) -> str:
    success = row["success_rate"]
    known = "" if success is None else f", success {100 * success:.1f} %"
    return f"return {row['mean_return']:.2f}{known}"


def variant_of(declared: EnvCapabilities) -> Callable[[TensorDict], torch.Tensor] | None:
    """Return a function that gives the variant of each environment, for ``evaluate(teacher_of=)``; None without any."""
    index = declared.variant_index
    if not declared.variant_kind or index is None or not bool((index != index[0]).any()):
        return None
    return lambda obs: index


def network_figures(played: PlayedPolicy, env: VecEnv, selector: ObsSelector | None) -> dict[str, Any]:
    """Time the network's step, and count its parameters; nothing without a network."""
    policy = played.policy
    if policy is None or selector is None:
        return {}
    obs = selector(env.get_observations())
    timed = {len(batch): 1e6 * inference_seconds(policy, batch) for batch in (obs, obs[:1])}
    network = getattr(policy.policy, "actor", policy.policy)
    return {"inference_us": timed, "parameters": sum(p.numel() for p in network.parameters())}


def _select_engine(played: PlayedPolicy, requested: str | None) -> tuple[type[Engine], str]:
    """Choose the engine. Where none has the task, the engine that the policy's run names is what to type.

    A run's file alone is no reason to import an engine of the user's: that one has to be typed.
    """
    if requested or played.checkpoint is None:
        return select_engine(played.task, requested or "auto")
    try:
        return select_engine(played.task)
    except UserError as error:
        engine = _engine_of_run(played.checkpoint)
        if engine is None:
            raise
        raise UserError(
            f"--task {played.task}: no engine of foundation has it. Its run used an engine of your own: --engine "
            f"{shorten(engine)}"
        ) from error


def _engine_of_run(checkpoint: Path) -> str | None:
    """Return the engine of the user's own, such as ``pkg.module:Class``, that the run of a checkpoint names."""
    try:
        engine = RunDir(checkpoint.resolve().parent).load_params().get("engine")
    except UserError:  # no run, or one that is damaged
        return None
    return engine if isinstance(engine, str) and ":" in engine else None
