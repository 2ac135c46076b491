"""A student with LSTM memory."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.students.recurrent import RecurrentCfg, RecurrentStudent


@dataclass
class LSTMStudentCfg(RecurrentCfg):
    """Dense layers, LSTM layers, dense layers."""

    name: str = "lstm"
    """This student."""


class LSTMStudent(RecurrentStudent):
    """A student with LSTM memory."""

    cfg_class = LSTMStudentCfg
    kind = "lstm"
