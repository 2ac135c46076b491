"""One job of ``distillation.py --offline``: a run from a saved dataset alone, which imports no engine and no task."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from foundation.cli.cli_args import parse_command, say_beaten
from foundation.cli.distillation_request import Request
from foundation.cli.run_to_end import run_folder, run_to_end
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import Overrides
from foundation.config.validate import label
from foundation.core.errors import UserError
from foundation.runs.changed_settings import changed_processes, changed_settings, refuse_settled
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.offline import OfflineRunner, open_for
from foundation.runs.run_state import OfflineState, load_named

SETTLED = ("student.init_checkpoint", "student.init_encoder")
"""Settings that are read before the first epoch alone."""
logger = logging.getLogger("foundation.distillation")


def run_offline(request: Request) -> int:
    """Learn from a saved dataset, without a simulator and without a teacher; return the exit code."""
    parse_command(request.parser, request.argv)  # no engine will add flags, so an unknown flag is an error already
    cfg = request.cfg
    resumed = request.resumed
    refuse_simulator(request.args, request.overrides, cfg)
    say_beaten(request.args, request.overrides)
    logger.info("%s", request.resolved.choices_line())
    open_for(cfg)
    cfg.experiment_name = cfg.experiment_name or (cfg.task or "").rpartition(":")[2]
    with run_folder(resumed, cfg.experiment_name, cfg.run_name) as run:
        run.save_params(distillation_cfg=cfg, overrides={"choices": request.resolved.choices})
        checkpoint = None if resumed is None else load_named(run, request.args.checkpoint, OfflineState)

        def build(writer: MetricsWriter, interrupted: Callable[[], str]) -> OfflineRunner:
            runner = OfflineRunner(cfg, run, writer=writer, interrupted=interrupted)
            if resumed is not None:
                if checkpoint is not None:
                    refuse_settled(checkpoint.values.get("distillation"), cfg, SETTLED, label)
                runner.resume(checkpoint)
                changed = ""
                if checkpoint is not None:
                    changed = changed_settings(run, checkpoint.values, cfg)
                    changed += changed_processes(checkpoint, bool(changed))
                print(f"Resuming {run.path} after epoch {runner.epoch} (exact{changed})")
            return runner

        first = 0 if checkpoint is None else checkpoint.epoch + 1
        return run_to_end(run, cfg, first if resumed else None, build)


def refuse_simulator(args: argparse.Namespace, overrides: Overrides, cfg: DistillationCfg) -> None:
    """Raise for flags and overrides that need a simulator.

    Raises:
        UserError: Naming the flag or the key.
    """
    if args.video:
        raise UserError("--offline has no simulator to record: leave out --video")
    own = vars(cfg)
    foreign = [item.token for room in ("env", "agent") for item in overrides.scoped.get(room, [])]
    foreign += [item.token for item in overrides.bare if item.path.partition(".")[0] not in own]
    if foreign:
        raise UserError(f"--offline has no environment and no agent that '{foreign[0]}' could set: leave it out")
