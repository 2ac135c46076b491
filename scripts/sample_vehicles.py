"""Sample quadrotors of RAPTOR's family to a folder of files in l2f's JSON form, and write the real ones beside it.

    python scripts/sample_vehicles.py --num 64 --seed 0 --output vehicles

``vehicles/`` then holds the sampled ones, ``vehicles_real/`` the registry (Crazyflie and others).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foundation.cli.cli_args import seed as seed_number
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.vehicle_folder import write_registry, write_vehicles
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles


def main(argv: list[str] | None = None) -> int:
    """Sample and write."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--num", type=int, required=True, help="number of vehicles")
    parser.add_argument("--seed", type=seed_number, default=0, help="the same seed gives the same vehicles")
    parser.add_argument("--output", type=Path, required=True, help="folder of the vehicles")
    args = parser.read(argv)
    if args.num < 1:
        raise UserError(f"--num must be at least 1, it is {args.num}")
    real = args.output.resolve()
    real = real.with_name(real.name + "_real")
    if real.exists() and not real.is_dir():  # before the others are written
        raise UserError(f"'{real}' is a file: the real vehicles would be written to a folder of this name")
    files = write_vehicles(args.output, sample_vehicles(args.num, args.seed))
    names = [file.stem for file in write_registry(real)]
    print(f"{len(files)} vehicles in {args.output}; {', '.join(names)} in {real.name}/ beside it")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
