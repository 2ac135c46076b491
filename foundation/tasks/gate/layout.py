"""The fields of the observation groups and actions of the gate task, for whoever deploys a policy."""

from __future__ import annotations

from foundation.deploy.description import Field
from foundation.tasks.quadrotor.layout import BODY, ROTORS


def make_layout() -> dict[str, tuple[Field, ...]]:
    """Return the fields of each observation group of numbers, in order, and under ``actions`` those of the action."""
    position = Field(name="relative_position", size=3, unit="m", frame=f"own less the gate's centre, {BODY}")
    orientation = Field(name="orientation", size=9, frame="rotation matrix, body to world, row by row")
    velocity = Field(name="velocity", size=3, unit="m/s", frame=BODY)
    rates = Field(name="body_rates", size=3, unit="rad/s", frame=BODY)
    previous = Field(name="previous_action", size=4, frame=f"as given, within +-1; {ROTORS}")
    way = Field(name="way_through", size=3, frame=f"unit vector along the gate's axis, {BODY}")
    motors = Field(name="motor_speeds", size=4, frame=f"-1 stopped to 1 full; {ROTORS}")
    own = (orientation, velocity, rates, previous)
    return {
        "policy": (position, *own, way, motors),
        "deployable": (position, *own, way),
        "proprioception": own,
        "inertial": (orientation, rates, previous),
        "gate": (position, way),
        "actions": (Field(name="motor_commands", size=4, frame=f"-1 stopped to 1 full; {ROTORS}"),),
    }
