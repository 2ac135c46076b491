"""A learning rate that follows how far an update moves the policy."""

from __future__ import annotations

MIN_LEARNING_RATE = 1e-5
MAX_LEARNING_RATE = 1e-2
RATE_FACTOR = 1.5


def adapted_rate(rate: float, kl: float, desired: float) -> float:
    """Return the next learning rate, as RSL-RL's ``schedule="adaptive"`` has it.

    Args:
        rate: The learning rate so far.
        kl: Divergence of the policy from that of the rollout.
        desired: That it is to have.

    Returns:
        A smaller rate above twice the desired divergence, a larger one below half of it, else the same.
    """
    if kl > desired * 2.0:
        return max(MIN_LEARNING_RATE, rate / RATE_FACTOR)
    if 0.0 < kl < desired / 2.0:
        return min(MAX_LEARNING_RATE, rate * RATE_FACTOR)
    return rate
