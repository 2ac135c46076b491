"""Trained policies, read from checkpoints of many formats."""

from __future__ import annotations

from foundation.teachers.wrapper import TeacherPolicyWrapper

__all__ = ["TeacherPolicyWrapper"]
