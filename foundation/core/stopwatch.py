"""Wall and CPU seconds of a run's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall and CPU seconds per stage."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.last: dict[str, float] = {}
        """Wall seconds of each stage since :meth:`lap`."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        wall = time.perf_counter()
        cpu = time.process_time()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - wall
            self.wall[name] = self.wall.get(name, 0.0) + elapsed
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
            self.last[name] = self.last.get(name, 0.0) + elapsed

    def lap(self) -> dict[str, float]:
        """Return the wall seconds per stage since the last call."""
        last = self.last
        self.last = {}
        return last

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return plain numbers, from which a resumed run continues its totals."""
        return {"wall": dict(self.wall), "cpu": dict(self.cpu)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.wall = dict(state["wall"])
        self.cpu = dict(state["cpu"])
