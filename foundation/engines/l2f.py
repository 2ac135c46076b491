"""The real ``l2f`` simulator (rl-tools, C++) as an engine: an independent judge of policies of the built-in one."""

from __future__ import annotations

from typing import ClassVar

from foundation.engines.torch import TorchEngine
from foundation.tasks.quadrotor.sim.l2f_dynamics import MISSING, l2f_is_installed


class L2fEngine(TorchEngine):
    """Run tasks that registered an ``l2f_env_entry_point``; the physics is computed on the CPU."""

    name: ClassVar[str] = "l2f"
    entry_point: ClassVar[str] = "l2f_env_entry_point"

    @classmethod
    def why_not(cls, task: str) -> str | None:
        """Return why the task cannot run here, or None. Imports the module of ``module:Id``."""
        return super().why_not(task) if l2f_is_installed() else MISSING
