"""A student with GRU memory."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.students.recurrent import RecurrentCfg, RecurrentStudent


@dataclass
class GRUStudentCfg(RecurrentCfg):
    """Dense layers, GRU layers, dense layers."""

    name: str = "gru"
    """This student."""


class GRUStudent(RecurrentStudent):
    """A student with GRU memory."""

    cfg_class = GRUStudentCfg
    kind = "gru"
