"""The fields of the observation groups and actions of chasing and evading, for whoever deploys a policy."""

from __future__ import annotations

from foundation.deploy.description import Field
from foundation.tasks.pursuit.mdp import TASKS
from foundation.tasks.quadrotor.layout import BODY, ROTORS


def make_layout() -> dict[str, tuple[Field, ...]]:
    """Return the fields of each observation group, in order, and under ``actions`` those of the action."""
    deployable = (
        Field(name="position", size=3, unit="m", frame=f"from the arena's centre, {BODY}"),
        Field(name="orientation", size=9, frame="rotation matrix, body to world, row by row"),
        Field(name="velocity", size=3, unit="m/s", frame=BODY),
        Field(name="body_rates", size=3, unit="rad/s", frame=BODY),
        Field(name="previous_action", size=4, frame=f"as given, within +-1; {ROTORS}"),
        Field(name="relative_position", size=3, unit="m", frame=f"own less the other body's, {BODY}"),
        Field(name="relative_velocity", size=3, unit="m/s", frame=f"own less the other body's, {BODY}"),
        Field(name="task", size=len(TASKS), frame=f"1 in the running task, else 0; {', '.join(TASKS)}"),
    )
    motors = Field(name="motor_speeds", size=4, frame=f"-1 stopped to 1 full; {ROTORS}")
    actions = Field(name="motor_commands", size=4, frame=f"-1 stopped to 1 full; {ROTORS}")
    return {"deployable": deployable, "policy": (*deployable, motors), "actions": (actions,)}
