"""Fine-tune a distilled policy, or any other, by PPO without forgetting.

The policy's loss is ``(1 - alpha) * PPO + alpha * distillation + kl_coef * KL``; frozen teachers, replayed datasets and
consolidated weights keep what was learned before.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from foundation.cli.cli_args import (
    CommandParser,
    add_hydra_args,
    add_launch_args,
    add_rsl_rl_args,
    number,
    refuse_other_encodings,
    run_command,
    set_up_logging,
    whole,
)
from foundation.cli.hydra_app import run_application
from foundation.core.imports import many_imports
from foundation.core.program import command_name


def build_parser() -> CommandParser:
    """Return the flags that are known before an engine adds its own."""
    parser = CommandParser(
        prog=command_name("finetune.py"),
        description="Go on training a distilled policy, or any other, with PPO and without forgetting.",
        epilog="Further arguments are Hydra-style overrides: finetune.kl.off_after=200, agent.algorithm.entropy_coef="
        "0.001, env.scene.num_envs=2048; experiment=dagger_to_ppo chooses a file of configs/finetune/.",
    )
    add_launch_args(parser)
    add_rsl_rl_args(parser)
    flag = parser.add_argument_group("fine-tuning").add_argument
    flag("--max_iterations", type=whole, metavar="N", help="iterations of rollout and updates (100)")
    flag("--learning_rate", type=number, metavar="X", help="step size at the start (the agent config's)")
    frozen = "a frozen policy to stay near; several for several (the starting policy itself)"
    flag("--teacher_checkpoint", action="append", metavar="PATH", help=frozen)
    flag("--alpha", type=number, metavar="X", help="share of distillation in the policy's loss, 0 to 1 (0)")
    flag("--kl_coef", type=number, metavar="X", help="weight of the KL between teacher and policy (0)")
    flag("--kl_decay", type=number, metavar="X", help="factor on it from each iteration to the next (1)")
    flag("--kl_direction", metavar="WHICH", help="teacher_policy or policy_teacher (teacher_policy)")
    alone = "iterations in which the critic learns alone (10 with a fresh critic)"
    flag("--critic_warmup_iterations", type=whole, metavar="N", help=alone)
    flag("--init_std", type=number, metavar="X", help="std of the actions at the start (the checkpoint's)")
    flag("--eval_interval", type=whole, metavar="N", help="iterations between two evaluations (5)")
    flag("--num_eval_episodes", type=whole, metavar="N", help="episodes in an evaluation (128)")
    flag("--final_eval_episodes", type=whole, metavar="N", help="fresh episodes of the last measurement (1024)")
    flag("--save_interval", type=whole, metavar="N", help="iterations between two checkpoint_epoch_*.pt (25)")
    add_hydra_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, once or (``--multirun``) for each job of a sweep, and return its exit code."""
    set_up_logging()
    return run_application("foundation.rsl_rl.finetune", build_parser(), argv)


def run(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    with many_imports():
        from foundation.cli.finetune_job import STAGED, Job  # torch: --help does without it
        from foundation.cli.stages import Curriculum

    curriculum = Curriculum.read(STAGED, build_parser(), argv)
    if curriculum is not None:
        return curriculum.run()
    refuse_other_encodings(argv)
    job = Job.choose_engine(build_parser(), argv)
    with job.launch() as session:
        return job.run(session)


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    from foundation.cli.finetune_job import STAGED, Job  # torch: --help does without it
    from foundation.cli.stages import refuse_stages

    refuse_stages(STAGED, build_parser(), argv)
    return Job.choose_engine(build_parser(), argv).load_configs()


if __name__ == "__main__":
    sys.exit(run_command(main))
