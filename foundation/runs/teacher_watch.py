"""A teacher that is still being trained: its best checkpoint so far, read again when a newer one is complete."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.policies.obs_groups import ObsSelector
from foundation.runs.run_dir import natural_key
from foundation.runs.run_teachers import RunTeachers, Teacher
from foundation.teachers import TeacherPolicyWrapper

logger = logging.getLogger("foundation.distillation")

BEST_NAMES = ("best_model.pt", "best_model.zip", "best_agent.pt", "best_student.pt", "model.zip")
"""Files that trainings keep of their best policy so far; scripts/train_dqn.py renames its own to the last at last."""
NUMBERED = ("model_*.pt", "agent_*.pt", "*_steps.zip")
"""Checkpoints that are taken where there is none of them: the one with the largest number."""
MAX_RELABELLED = 100_000
"""Transitions that a newer teacher labels anew where ``teacher.relabel`` is not set: a second or two of a small
teacher on a CPU."""
LOOK_SECONDS = 1.0
"""Time between two looks for a training's first checkpoint [s]."""


@dataclass(frozen=True)
class Version:
    """Identity of a file's content: if size, time or inode differs, it is another version."""

    path: Path
    stamp: tuple[int, int, int]


def find_best(folder: Path) -> Version | None:
    """Return the best checkpoint of a training so far; None where there is none yet."""
    candidates = [folder / name for name in BEST_NAMES]
    for pattern in NUMBERED:
        candidates += sorted(folder.glob(pattern), key=lambda path: natural_key(path.name), reverse=True)
    for path in candidates:
        try:
            stat = path.stat()
        except OSError:  # not there, or replaced between two looks
            continue
        return Version(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return None


def wait_for_first(folder: Path, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Return the first checkpoint of a training, which may still have to begin.

    Args:
        folder: Where it writes.
        sleep: Waits.

    Raises:
        UserError: If there is no such folder, or none any more.
    """
    if not folder.is_dir():
        raise UserError(f"--watch_teacher {folder}: no such folder; give that of a training's checkpoints")
    found = find_best(folder)
    if found is None:
        logger.info("waiting for the first checkpoint in %s (%s ...)", folder, ", ".join(BEST_NAMES[:2]))
    while found is None:
        sleep(LOOK_SECONDS)
        if not folder.is_dir():
            raise UserError(f"--watch_teacher {folder}: the folder was removed before its first checkpoint was there")
        found = find_best(folder)
    return found.path


def num_relabelled(cfg: DistillationCfg, teacher: Teacher, teachers: RunTeachers, student_obs: ObsSelector) -> int:
    """Return how many stored transitions a newer teacher labels anew.

    Args:
        cfg: The run's configuration.
        teacher: The teacher.
        teachers: What selects the teacher's observations, and corrects the stored ones.
        student_obs: Selects what is stored.

    Raises:
        UserError: If it is asked for and not possible.
    """
    asked = cfg.teacher.relabel
    same = (student_obs.groups, student_obs.obs_slice) == (
        getattr(teachers.selector, "groups", None),
        getattr(teachers.selector, "obs_slice", None),
    )
    reason = None
    if not same or student_obs.images:
        reason = "the teacher does not read what the student reads, and only that is stored"
    elif teacher.state_size:
        reason = "the teacher has memory"
    elif teachers.correction is not None:
        reason = "position_offset_correction changes the stored observations"
    if asked and reason is not None:
        raise UserError(f"distill.teacher.relabel={asked} is not possible: {reason}. Leave it out.")
    if reason is not None or cfg.on_policy:
        return 0
    return MAX_RELABELLED if asked is None else asked


class TeacherWatch:
    """Reads a teacher again when its training has a better one.

    Args:
        folder: Where the training writes.
        teacher: The teacher; it is changed in place.
    """

    def __init__(self, folder: Path, teacher: TeacherPolicyWrapper):
        self.folder = folder
        self.teacher = teacher
        self.seen: Version | None = None
        """What the teacher was read from. None: it is compared first, as the training may have gone on since."""
        self.count = 0
        """Times that it was read again."""
        self._is_gone = False
        """Whether the folder had no checkpoint at the last look."""

    def look(self) -> str:
        """Read the teacher again if there is a newer version of it that is complete.

        Returns:
            One line on what was read; "" where nothing has changed.

        Raises:
            UserError: If it has another architecture now.
        """
        found = find_best(self.folder)
        if found is None and not self._is_gone:
            logger.warning("%s has no checkpoint any more: the teacher stays the one that was read last", self.folder)
        self._is_gone = found is None
        if found is None or found == self.seen:
            return ""
        try:
            newer = self.teacher.read_again(found.path)
        except UserError as error:  # half written by a training that does not replace its files at once
            logger.info("%s cannot be read yet, and is tried again after this epoch: %s", found.path, one_line(error))
            return ""
        self.seen = found
        if not self.teacher.replace_by(newer):
            return ""
        self.count += 1
        return f"The teacher is {found.path.name} of {time.strftime('%H:%M:%S', time.localtime(found.stamp[0] / 1e9))}"
