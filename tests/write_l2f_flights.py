"""Record what the real packages ``l2f`` and ``foundation-policy`` do, for ``tests/helpers/l2f_flights.py``.

    python tests/write_l2f_flights.py            with the packages of extra raptor; all flights
    python tests/write_l2f_flights.py hover ...  these only

The last four flights of ``real_l2f.FLIGHTS`` begin as the task's episodes do: they are recorded again when its initial
states or its rewards change. The others stay as long as the pinned versions do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import l2f_flights  # noqa: E402
import real_l2f  # noqa: E402

FREE_ENVS = 16
"""Kept of the 64 environments of each free flight."""


def kept(name: str, flown: l2f_flights.Flight) -> l2f_flights.Flight:
    """Return what is recorded of a flight: all but most environments of the free ones, which would be two megabytes."""
    if not name.startswith("free_"):
        return flown
    return {"states": flown["states"][:, :, :FREE_ENVS], "actions": flown["actions"][:, :FREE_ENVS]}


def main(names: list[str]) -> None:
    """Write the flights, and the policy of the package."""
    for folder in (l2f_flights.FLIGHTS, l2f_flights.RAPTOR):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(real_l2f.PUBLISHED, l2f_flights.PUBLISHED)
    for name in names or real_l2f.FLIGHTS:
        folder = l2f_flights.RAPTOR if name == "raptor_policy" else l2f_flights.FLIGHTS
        path = folder / f"{name}.npz"
        arrays: dict[str, np.ndarray] = kept(name, real_l2f.FLIGHTS[name]())
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
