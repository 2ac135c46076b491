"""The fields of the observation groups and actions of point control with a seen target."""

from __future__ import annotations

from foundation.deploy.description import Field
from foundation.tasks.quadrotor import layout


def make_layout() -> dict[str, tuple[Field, ...]]:
    """Return the fields of each observation group of numbers, in order, and under ``actions`` those of the action."""
    known = layout.make_layout()
    position, orientation, velocity, rates, previous = known["deployable"]
    return {
        **known,
        "proprioception": (orientation, velocity, rates, previous),
        "inertial": (orientation, rates, previous),
        "target": (position,),
    }
