"""Fields of the task's observation groups and actions, for whoever deploys a policy."""

from __future__ import annotations

from foundation.deploy.description import Field
from foundation.tasks.quadrotor.mdp import DEPLOYABLE_SIZE, L2F_SIZE, POLICY_SIZE

BODY = "body frame: x forward, y left, z up"
WORLD = "world frame: z up"
ROTORS = "front right, back right, back left, front left"


def make_layout() -> dict[str, tuple[Field, ...]]:
    """Return the fields of each observation group, in order, and under ``actions`` those of the action."""
    orientation = Field(name="orientation", size=9, frame="rotation matrix, body to world, row by row")
    rates = Field(name="body_rates", size=3, unit="rad/s", frame=BODY)
    previous = Field(name="previous_action", size=4, frame=f"as given, within +-1; {ROTORS}")
    deployable = (
        Field(name="position_error", size=3, unit="m", frame=BODY),
        orientation,
        Field(name="velocity_error", size=3, unit="m/s", frame=BODY),
        rates,
        previous,
    )
    world = (
        Field(name="position_error", size=3, unit="m", frame=WORLD),
        orientation,
        Field(name="velocity_error", size=3, unit="m/s", frame=WORLD),
        rates,
        previous,
    )
    layout = {
        "deployable": deployable,
        "policy": (*deployable, Field(name="motor_speeds", size=4, frame=f"-1 stopped to 1 full; {ROTORS}")),
        "l2f": world,
        "actions": (Field(name="motor_commands", size=4, frame=f"-1 stopped to 1 full; {ROTORS}"),),
    }
    sizes = {"deployable": DEPLOYABLE_SIZE, "policy": POLICY_SIZE, "l2f": L2F_SIZE}
    for group, size in sizes.items():
        assert sum(field.size for field in layout[group]) == size, f"the fields of '{group}' are not its {size} columns"
    return layout
