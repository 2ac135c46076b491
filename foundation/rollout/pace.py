"""Playing no faster than the simulated time passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, VecEnv


def real_time_pace(env: VecEnv) -> Callable[[Any, Any], None]:
    """Return a callback for :func:`foundation.rollout.evaluate.evaluate` that waits until each step is due.

    Args:
        env: Says in ``step_dt`` how long its step is [s].

    Raises:
        UserError: If it does not.
    """
    step = EnvCapabilities.of(env).step_dt
    if not step:
        raise UserError("--real-time: this environment does not say how long its step is (step_dt)")
    due = time.perf_counter()

    def wait(obs: Any, actions: Any) -> None:
        nonlocal due
        due = max(due + step, time.perf_counter() - step)
        time.sleep(max(0.0, due - time.perf_counter()))

    return wait
