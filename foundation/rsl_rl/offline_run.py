"""``distillation.py --offline``: the command without a simulator and without a teacher."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.cli.cli_args import Interrupt, say_beaten
from foundation.cli.command import reader_has_gone
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import Overrides
from foundation.config.resolve import Resolved
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.registry import import_flags

logger = logging.getLogger("foundation.distillation")

if TYPE_CHECKING:
    from foundation.runs.run_dir import RunDir


def run_offline(
    args: argparse.Namespace, overrides: Overrides, resolved: Resolved, resumed: RunDir | None, log_root: Path
) -> int:
    """Make the run's folder and its runner, and let it run.

    Args:
        args: The flags.
        overrides: What was typed as ``key=value``; there is no environment and no agent to set here.
        resolved: The run's configuration, and who chose what in it.
        resumed: The run to go on with.
        log_root: Where a new run's folder goes.

    Returns:
        The exit code.
    """
    from foundation.runs.changed_settings import changed_settings
    from foundation.runs.metrics_writer import make_writer
    from foundation.runs.offline import OfflineRunner, open_for
    from foundation.runs.run_dir import RunDir
    from foundation.runs.run_state import checkpoint_to_resume

    cfg = resolved.cfg
    refuse_simulator(args, overrides, cfg)
    say_beaten(args, overrides)
    logger.info("%s", resolved.choices_line())
    open_for(cfg)
    cfg.experiment_name = cfg.experiment_name or (cfg.task or "").rpartition(":")[2]
    run = resumed or RunDir.create(log_root, cfg.experiment_name, cfg.run_name)
    run.lock()
    try:
        run.save_params(distillation_cfg=cfg, overrides={"choices": resolved.choices})
        checkpoint = None if resumed is None else checkpoint_to_resume(run, args.checkpoint)
        first = 0 if checkpoint is None else int(checkpoint["epoch"]) + 1
        writer = make_writer(cfg.logger, run.path, cfg.log_project_name, cfg, purge_step=first if resumed else None)
        with Interrupt() as interrupt:
            try:
                runner = OfflineRunner(cfg, run, writer=writer, interrupted=interrupt.interrupted)
                if resumed is not None:
                    runner.resume(checkpoint)
                    changed = "" if checkpoint is None else changed_settings(run, checkpoint, cfg)
                    print(f"Resuming {run.path} after epoch {runner.epoch} (exact{changed})")
                print(f"Logging to {run.path}")
                runner.run()
            except RunInterrupted as reason:
                print(f"Stopped ({reason}). Go on with: --resume --load_run {run.name}{import_flags()}")
            except BrokenPipeError:
                go_on = f"--resume --load_run {run.name}{import_flags()}"
                return reader_has_gone(f"Stopped: nobody reads the output. Go on with: {go_on}")
            finally:
                writer.close()
        return interrupt.exit_code
    finally:
        if resumed is None:
            run.discard_if_empty()


def refuse_simulator(args: argparse.Namespace, overrides: Overrides, cfg: DistillationCfg) -> None:
    """Refuse what only a simulator could do.

    Raises:
        UserError: Naming the flag or the key.
    """
    if args.video:
        raise UserError("--offline has no simulator, and so nothing for --video to record: leave it out")
    own = vars(cfg)
    foreign = [item.token for room in ("env", "agent") for item in overrides.scoped.get(room, [])]
    foreign += [item.token for item in overrides.bare if item.path.partition(".")[0] not in own]
    if foreign:
        raise UserError(f"--offline has no environment and no agent that '{foreign[0]}' could set: leave it out")
