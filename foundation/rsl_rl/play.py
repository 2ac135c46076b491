"""Fly, walk or drive a trained policy and measure it: ``python foundation/rsl_rl/play.py --help``.

Plays a student that ``distillation.py`` trained or a policy that ``train.py`` trained. The episodes are deterministic,
the first of each environment count, and the command ends by itself.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from foundation.cli.cli_args import (
    CommandParser,
    Interrupt,
    add_hydra_args,
    add_launch_args,
    parse_command,
    positive_int,
    run_command,
    say_beaten,
    set_up_logging,
)
from foundation.cli.find_policy import LOG_ROOT, TEACHER, find_policy
from foundation.cli.hydra_app import run_application
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.core.errors import RunInterrupted, UserError, suggest

if TYPE_CHECKING:
    from foundation.engines.base import Engine, VideoRequest
    from foundation.policies.actors import Actor
    from foundation.policies.obs_groups import ObsSelector
    from foundation.teachers import TeacherPolicyWrapper

logger = logging.getLogger("foundation.play")
AGENTS = ("trained", "zero", "random")
ENTRY_POINT = "rsl_rl_cfg_entry_point"
NUM_EPISODES, SEED = 64, 42


@dataclass
class Job:
    """What the command line asks for, before a simulator is up."""

    args: argparse.Namespace
    overrides: Overrides
    task: str
    device: str
    checkpoint: Path | None
    policy: TeacherPolicyWrapper | None


def build_parser() -> CommandParser:
    """Return the parser of every flag that needs no simulator."""
    parser = CommandParser(prog="play.py", description="Play a trained policy and measure it.")
    add_launch_args(parser)
    group = parser.add_argument_group("policy")
    flag = group.add_argument
    flag("--checkpoint", metavar="FILE", help="a path, or a name or pattern in the run (default: its best)")
    flag("--load_run", metavar="RUN", help="run to load: its name, a pattern, or its folder (default: the newest)")
    flag("--experiment_name", metavar="NAME", help="only this experiment's runs, under logs/")
    flag("--agent", metavar="NAME", default="trained", help="trained, zero or random actions (trained)")
    flag("--obs_groups", nargs="+", metavar="GROUP", help="observation groups (default: those it was trained on)")
    flag(
        "--describe", action="store_true", help="say what is understood about the policy's checkpoint, and play nothing"
    )
    group = parser.add_argument_group("measurement")
    flag = group.add_argument
    flag("--num_episodes", type=positive_int, default=NUM_EPISODES, metavar="N", help=f"episodes ({NUM_EPISODES})")
    flag("--json", metavar="PATH", help="write the figures to this file")
    flag("--real-time", action="store_true", help="no faster than real time")
    add_hydra_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, once or (``--multirun``) for each job of a sweep, and return its exit code."""
    set_up_logging()
    return run_application("foundation.rsl_rl.play", build_parser(), argv)


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    from foundation.engines import select_engine
    from foundation.engines.base import LaunchRequest

    parser = build_parser()
    args, early = parse_command(parser, argv, strict=False)
    check_args(args)
    task, device, _, _ = find_policy(args, early)
    engine_class, _ = select_engine(task, args.engine or "auto")
    engine_class.add_args(parser)
    args, tokens = parse_command(parser, argv)
    overrides = parse_overrides(of_env_and_agent(tokens), scopes=("env", "agent"))
    args.presets = overrides.take(engine_class.selectors)
    engine = engine_class()
    env_cfg, agent_cfg = engine.load_configs(LaunchRequest(task, ENTRY_POINT, device, args=args))
    overrides.configure(env_cfg, agent_cfg)
    engine.set_common(env_cfg, num_envs=args.num_envs, seed=args.seed, device=device)
    return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg)}


def run(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    parser = build_parser()
    args, early = parse_command(parser, argv, strict=False)
    check_args(args)
    if args.device is None:  # the policy computes where the simulation does
        args.device = typed_device(early)
    try:
        task, device, checkpoint, policy = find_policy(args, early)
    except UserError:
        refuse_near_misses(parser, argv)  # a misspelt --checkpoint is a likely reason
        raise
    if args.describe and policy is not None:
        from foundation.rsl_rl.teacher_info import show

        refuse_near_misses(parser, argv)
        show(policy)
        return 0
    from foundation.engines import select_engine

    engine_class, why = select_engine(task, args.engine or "auto")
    engine_class.add_args(parser)
    args, tokens = parse_command(parser, argv)
    logger.info("%s", why)
    # A student of the user's own package: typing its name was what it needed.
    overrides = parse_overrides(of_env_and_agent(tokens), scopes=("env", "agent"))
    refuse_bare_seed(overrides)
    args.presets = overrides.take(engine_class.selectors)
    job = Job(args, overrides, task, device, checkpoint, policy)
    return launch(job, engine_class())


def of_env_and_agent(tokens: list[str]) -> list[str]:
    """Leave out the overrides that are about the policy and not about the simulation."""
    return [token for token in tokens if not token.startswith(("student=", TEACHER))]


def refuse_bare_seed(overrides: Overrides) -> None:
    """Say which flag seeds the episodes: a seed of the configs would change nothing here."""
    for item in overrides.bare:
        if item.path == "seed":
            raise UserError(f"override '{item.token}': the episodes are seeded by --seed {item.value}")


def typed_device(tokens: list[str]) -> str | None:
    """Return the device that ``env.sim.device`` or ``sim.device`` names, if it was typed."""
    found = [token.partition("=")[2] for token in tokens if token.partition("=")[0] in ("env.sim.device", "sim.device")]
    return found[-1] if found else None


def refuse_near_misses(parser: CommandParser, argv: Sequence[str] | None) -> None:
    """Complain of a flag that is nearly one of ours; others may be the engine's own."""
    try:
        parse_command(parser, argv)
    except UserError as error:
        if "Did you mean" in str(error):
            raise


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is loaded."""
    if args.agent not in AGENTS and not args.agent.endswith("_entry_point"):
        raise UserError(f"--agent is '{args.agent}'. {suggest(args.agent, AGENTS)}")
    if args.agent in ("zero", "random") and (args.checkpoint or args.load_run):
        raise UserError(f"--agent {args.agent} needs no policy: leave --checkpoint and --load_run out")
    if args.agent in ("zero", "random") and args.describe:
        raise UserError(f"--agent {args.agent} has no checkpoint to --describe: leave one of them out")
    if args.json and (Path(args.json).is_dir() or not _can_hold(_existing_parent(Path(args.json)))):
        raise UserError(f"--json {args.json}: cannot be written; give the path of a file")


def _can_hold(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def _existing_parent(path: Path) -> Path:
    return next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))


def launch(job: Job, engine: Engine) -> int:
    """Start the simulator, play, and report."""
    from foundation.cli.vehicle_table import whole_fleets
    from foundation.engines.base import LaunchRequest

    args = job.args
    typed_num_envs = any(token.partition("=")[0].endswith("scene.num_envs") for token in tokens_of(job.overrides))

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        say_beaten(args, job.overrides)
        job.overrides.configure(env_cfg, agent_cfg)
        num_envs = args.num_envs
        if num_envs is None and not typed_num_envs:
            configured = engine.num_envs(env_cfg) or args.num_episodes
            num_envs = whole_fleets(env_cfg, min(args.num_episodes, configured))
        engine.set_common(env_cfg, num_envs=num_envs, seed=args.seed, device=job.device)
        bound = None if job.policy is None else job.policy.clip_actions
        if bound is not None and getattr(agent_cfg, "clip_actions", bound) is None:
            agent_cfg.clip_actions = bound

    entry_point = args.agent if args.agent.endswith("_entry_point") else ENTRY_POINT
    request = LaunchRequest(job.task, entry_point, job.device, args.headless, args.video, args)
    with engine.launch(request, configure) as (env_cfg, agent_cfg):
        engine.set_log_dir(env_cfg, own_folder(job))
        env = engine.make_env(env_cfg, agent_cfg, video=video_request(job))
        with Interrupt() as interrupt:
            try:
                play(job, engine, env, interrupt)
            except RunInterrupted:
                print("Stopped before the episodes had ended: nothing was measured")
            finally:
                getattr(env, "close", lambda: None)()
        return interrupt.exit_code


def tokens_of(overrides: Overrides) -> list[str]:
    """List the overrides as they were typed."""
    return [item.token for items in (*overrides.scoped.values(), overrides.bare) for item in items]


def own_folder(job: Job) -> Path:
    """Return the policy's run; a folder for all others where there is no policy, or one that is shipped."""
    import foundation

    package = Path(foundation.__file__).resolve().parent
    run = None if job.checkpoint is None else job.checkpoint.resolve().parent
    return LOG_ROOT / "play" if run is None or package in run.parents else run


def video_request(job: Job) -> VideoRequest | None:
    """Return the wish for one clip from the first step on, in the run's own folder."""
    if not job.args.video:
        return None
    from foundation.engines.base import VideoRequest

    return VideoRequest(own_folder(job) / "videos" / "play", job.args.video_length, 0)


def play(job: Job, engine: Engine, env: Any, interrupt: Interrupt) -> None:
    """Run the episodes and show what they were."""
    from rich.console import Console

    from foundation.cli.vehicle_table import vehicle_figures, vehicle_names, vehicle_of, vehicle_table
    from foundation.engines.base import EnvCapabilities
    from foundation.evaluation.report_table import evaluation_figures, evaluation_table
    from foundation.rollout.evaluate import evaluate
    from foundation.rollout.stepper import RealTimePace

    def poll() -> None:
        if interrupt.interrupted():
            raise RunInterrupted

    args = job.args
    actor, selector = make_actor(job, env)
    pace = [RealTimePace(env)] if args.real_time else []
    seed = SEED if args.seed is None else args.seed
    result = evaluate(env, actor, args.num_episodes, seed, pace, poll, teacher_of=vehicle_of(env))
    figures = evaluation_figures(result) | network_figures(job, env, selector)
    vehicles = vehicle_figures(result, vehicle_names(getattr(getattr(env, "cfg", None), "vehicles", None)))
    what = f"{args.agent} actions" if job.policy is None else describe(job.policy)
    head = [("policy", what), ("checkpoint", str(job.checkpoint))] if job.checkpoint else [("policy", what)]
    head.append(("episodes", f"{figures['num_episodes']} in {env.num_envs} environments, seed {seed}"))
    units = EnvCapabilities.of(env).metric_units
    Console(highlight=False).print(evaluation_table(f"{job.task} ({engine.name})", head, figures, units))
    if vehicles:
        figures["vehicles"] = vehicles
        Console(highlight=False).print(vehicle_table(vehicles))
    if args.json:
        where = {
            "task": job.task,
            "engine": engine.name,
            "device": job.device,
            "agent": args.agent,
            "policy": what,
            "checkpoint": None if job.checkpoint is None else str(job.checkpoint),
            "num_envs": env.num_envs,
            "seed": seed,
        }
        write_json(Path(args.json), where | figures)


def make_actor(job: Job, env: Any) -> tuple[Actor, ObsSelector | None]:
    """Return who acts, and how a policy's observations are selected."""
    from foundation.policies.actors import PolicyActor, RandomActor, ZeroActor
    from foundation.policies.obs_groups import teacher_selector

    if job.policy is None:
        if job.args.agent == "zero":
            return ZeroActor(env.num_actions), None
        return RandomActor(env.num_actions, SEED if job.args.seed is None else job.args.seed, env.device), None
    policy = job.policy
    obs = env.get_observations()
    selector = teacher_selector(policy, obs, policy.obs_groups, policy.obs_slice)
    selector.check(obs, "policy", policy.num_obs, key="--obs_groups")
    if policy.num_actions != env.num_actions:
        raise UserError(
            f"the policy has {policy.num_actions} actions but the task '{job.task}' takes {env.num_actions}: "
            "it was trained on another task"
        )
    return PolicyActor(policy, selector), selector


def describe(policy: TeacherPolicyWrapper) -> str:
    """Say in one line what a policy is."""
    memory = policy.info.recurrence
    kind = policy.info.format if memory == "none" else f"{policy.info.format}, {memory}"
    groups = ", ".join(policy.obs_groups or ["policy"])
    return f"{kind}: {policy.num_obs} ({groups}) -> {policy.hidden_dims} -> {policy.num_actions}"


def network_figures(job: Job, env: Any, selector: ObsSelector | None) -> dict[str, Any]:
    """Time the network's step, and count its parameters; nothing without a network."""
    if job.policy is None or selector is None:
        return {}
    from foundation.evaluation.report_table import inference_seconds

    obs = selector(env.get_observations())
    timed = {len(batch): 1e6 * inference_seconds(job.policy, batch) for batch in (obs, obs[:1])}
    network = getattr(job.policy.policy, "actor", job.policy.policy)
    return {"inference_us": timed, "parameters": sum(p.numel() for p in network.parameters())}


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures, whole or not at all; what is not finite becomes null."""
    from foundation.config.plain import finite
    from foundation.core.files import atomic_write_bytes

    atomic_write_bytes(path, (json.dumps(finite(to_plain(figures)), indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(run_command(main))
