"""Copy the best policy of a ``train.py`` run, with the settings it is read by, to where teachers are shipped.

    python foundation/rsl_rl/train.py --task Isaac-Quadcopter-Chase-v0 --max_iterations 135
    python scripts/ship_teacher.py logs/rsl_rl/quadcopter_chase/RUN foundation/assets/teachers/chase

``--without_optimizer`` leaves out the optimiser's state, two thirds of the file, which only going on with the training
needs.

An observation that never changed in training, such as the columns that say which task runs, has no deviation: RSL-RL's
normaliser would divide it by 0.01 on the day it changes, and a policy that goes on to another task would begin with
inputs of 100. Its deviation is written as 1, which changes nothing where it is constant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save, atomic_write_bytes, load_checkpoint

MODELS = ("actor_state_dict", "critic_state_dict")
SETTINGS = ("agent.yaml", "env.yaml")


def open_constant_columns(model: dict[str, Any]) -> int:
    """Give observations without variance a deviation of 1, in place.

    Args:
        model: State of an actor or critic of RSL-RL 5, with or without a normaliser.

    Returns:
        How many there were.
    """
    if "obs_normalizer._var" not in model:
        return 0
    constant = model["obs_normalizer._var"] == 0.0
    for name in ("obs_normalizer._var", "obs_normalizer._std"):
        model[name] = torch.where(constant, 1.0, model[name])
    return int(constant.sum())


def main(argv: Sequence[str] | None = None) -> int:
    """Read, change, write."""
    parser = ScriptParser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of train.py")
    parser.add_argument("output", type=Path, help="folder of the teacher")
    parser.add_argument("--without_optimizer", action="store_true", help="leave out the optimiser's state")
    args = parser.read(argv)
    source = args.run / "best_model.pt"
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the folder of a run of train.py that was evaluated")
    checkpoint = load_checkpoint(source)
    missing = [name for name in MODELS if name not in checkpoint]
    if missing:
        raise UserError(f"{source}: it has no '{missing[0]}', which RSL-RL 5 writes")
    opened = [open_constant_columns(checkpoint[name]) for name in MODELS]
    for name in SETTINGS:
        atomic_write_bytes(args.output / "params" / name, (args.run / "params" / name).read_bytes())
    if args.without_optimizer:
        checkpoint = {name: value for name, value in checkpoint.items() if name != "optimizer_state_dict"}
    atomic_torch_save(checkpoint, args.output / "model.pt")
    print(f"{args.output / 'model.pt'}: iteration {checkpoint['iter']}, {opened[0]} constant observations")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
