"""The fields of the observation groups and actions of the Go1's tasks: names, units and frames."""

from __future__ import annotations

from foundation.deploy.description import Field

TRUNK = "trunk: x ahead, y left, z up"
FEET = "front right, front left, rear right, rear left"
JOINTS = f"hip, thigh and calf of {FEET}"
SCAN = (7, 5)
"""Points of the height scan along and across the trunk."""
SCAN_SPACING = 0.15
"""Between its points [m]."""


def make_layout() -> dict[str, tuple[Field, ...]]:
    """Return the fields of each observation group of the task on a plane, in order, and those of the action."""
    lin_vel = Field(name="base_lin_vel", size=3, unit="m/s", frame=TRUNK)
    ang_vel = Field(name="base_ang_vel", size=3, unit="rad/s", frame=TRUNK)
    gravity = Field(name="projected_gravity", size=3, frame=f"unit vector, {TRUNK}")
    command = (
        Field(name="command_lin_vel", size=2, unit="m/s", frame="trunk: ahead, left"),
        Field(name="command_yaw_rate", size=1, unit="rad/s", frame="trunk: about z"),
    )
    joint_pos = Field(name="joint_pos", size=12, unit="rad", frame=f"less those of standing; {JOINTS}")
    joint_vel = Field(name="joint_vel", size=12, unit="rad/s", frame=JOINTS)
    actions = Field(name="actions", size=12, frame=f"the previous ones; {JOINTS}")
    clock = Field(name="gait_clock", size=2, frame="sine and cosine of the stride's phase")
    contacts = Field(name="foot_contacts", size=4, frame=f"1 on the ground; {FEET}")
    dynamics = (
        Field(name="friction", size=1, frame="of the feet"),
        Field(name="added_mass", size=1, unit="kg", frame="on the trunk"),
        Field(name="center_of_mass", size=2, unit="m", frame="shift of the trunk's, ahead and to the left"),
        Field(name="motor_strength", size=1, frame="1 is nominal"),
    )
    own = (ang_vel, gravity, *command, joint_pos, joint_vel, actions, clock)
    return {
        "policy": (lin_vel, *own, contacts, *dynamics),
        "proprioception": own,
        "velocity": (lin_vel,),
        "dynamics": dynamics,
        "actions": (
            Field(
                name="joint_targets",
                size=12,
                frame=f"offset + scale * action [rad], of env.actions.joint_pos; {JOINTS}",
            ),
        ),
    }


def make_rough_layout() -> dict[str, tuple[Field, ...]]:
    """Return the same for the task on rough ground, where the teacher is told the heights around the trunk."""
    groups = make_layout()
    heights = Field(
        name="heights",
        size=SCAN[0] * SCAN[1],
        unit="m",
        frame=f"ground below the trunk, less 0.27 m, {SCAN[0]} x {SCAN[1]} points {SCAN_SPACING:g} m apart, row by row",
    )
    return {**groups, "policy": (*groups["policy"], heights), "heights": (heights,)}
