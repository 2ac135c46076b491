"""MuJoCo on the CPU as an engine: tasks whose many environments are advanced by MuJoCo's own threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from foundation.engines.base import Configure, LaunchRequest, MissingPackage
from foundation.engines.headless import prepare_rendering
from foundation.engines.torch import TorchEngine
from foundation.tasks.mujoco.package import MISSING, mujoco_is_installed


class MujocoEngine(TorchEngine):
    """Run tasks that registered a ``mujoco_env_entry_point``, such as subclasses of ``MujocoEnv``."""

    name: ClassVar[str] = "mujoco"
    entry_point: ClassVar[str] = "mujoco_env_entry_point"

    @classmethod
    def why_not(cls, task: str) -> str | None:
        """Return why the task cannot run here, or None. Imports the module of ``module:Id``."""
        obstacle = super().why_not(task)
        return obstacle if obstacle is not None or mujoco_is_installed() else MissingPackage(MISSING)

    @contextmanager
    def _session(self, request: LaunchRequest, configure: Configure) -> Iterator[tuple[Any, Any]]:
        prepare_rendering()  # MuJoCo reads the variable when it is imported
        with super()._session(request, configure) as configs:
            yield configs
