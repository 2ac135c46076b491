"""Playing no faster than the simulated time passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from foundation.core.errors import UserError


def real_time_pace(env: Any) -> Callable[[Any, Any], None]:
    """Return a callback for :func:`foundation.rollout.evaluate.evaluate` that waits until each step is due.

    Args:
        env: Says in ``step_dt`` how long its step is [s].

    Raises:
        UserError: If it does not.
    """
    dt = getattr(env, "step_dt", None) or getattr(getattr(env, "unwrapped", env), "step_dt", None)
    if dt is None:
        raise UserError("--real-time: this environment does not say how long its step is (step_dt)")
    step, due = float(dt), time.perf_counter()

    def wait(obs: Any, actions: Any) -> None:
        nonlocal due
        due = max(due + step, time.perf_counter() - step)
        time.sleep(max(0.0, due - time.perf_counter()))

    return wait
