"""What a row says beyond what was seen: its teacher, and a position without that teacher's offset."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from foundation.rollout.position_offset import PositionCorrection
from foundation.teachers.assignment import BY_TEACHER, TEACHER, TeacherAssignment


class RowKeeper:
    """Turns what an environment gives into what is stored. With one teacher and no correction it changes nothing.

    Args:
        assignment: Tells the teachers of the environments apart; None where all have the same.
        correction: Takes the teachers' position offsets out of the stored observations; None leaves them.
    """

    def __init__(self, assignment: TeacherAssignment | None = None, correction: PositionCorrection | None = None):
        self.assignment, self.correction = assignment, correction

    def stored(self, student_obs: torch.Tensor, obs: TensorDict) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the student's observation to store, (num_envs, num_obs), and each row's teacher, (num_envs,)."""
        index = None if self.assignment is None else self.assignment.index(obs)
        if self.correction is not None:
            student_obs = self.correction(student_obs, obs, index)
        return student_obs, index

    def told(self, extras: dict[str, Any], index: torch.Tensor | None, by_teacher: torch.Tensor) -> dict[str, Any]:
        """Put each episode's teacher, and whether it drove, beside the episode's metrics. Shapes: (num_envs,)."""
        if index is None:
            return extras
        metrics = {**(extras.get("episode_metrics") or {}), TEACHER: index, BY_TEACHER: by_teacher}
        return {**extras, "episode_metrics": metrics}

    def check(self) -> None:
        """Refuse indices out of range that were seen since the last call (one host sync)."""
        if self.assignment is not None:
            self.assignment.check()
