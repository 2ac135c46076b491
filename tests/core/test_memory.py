"""What no memory holds is refused by an estimate, in one line, before it is asked for."""

from __future__ import annotations

import pytest
from small_teacher import TASK

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.core.memory import available_host_memory, refuse_beyond_memory
from foundation.engines.base import LaunchRequest
from foundation.engines.torch import TorchEngine
from foundation.learning.learner import Learner
from foundation.students import make_student, student_cfg_class


@pytest.mark.parametrize(("name", "rows", "steps"), [("mlp", 10**9, 1), ("gru", 10**8, 50), ("tcn", 10**10, 50)])
def test_a_minibatch_that_fits_nowhere(name, rows, steps):
    """``--batch_size 1000000000``: one line with the flag and the size; a usual one is taken."""
    cfg = DistillationCfg()
    cfg.batch_size = rows
    with pytest.raises(UserError, match=rf"--batch_size {rows} would take at least [\d.]+ GB and cpu has [\d.]+ GB"):
        Learner(make_student(student_cfg_class(name)(name=name), 26, 4), cfg, steps)
    cfg.batch_size = 65_536
    Learner(make_student(student_cfg_class(name)(name=name), 26, 4), cfg, 1)


@pytest.mark.parametrize("number", [10**8, 10**12, 10**18])
def test_environments_that_fit_nowhere(number):
    """``--num_envs 1e8`` and beyond: one line before the environment is made."""

    def configure(env_cfg, agent_cfg):
        env_cfg.scene.num_envs = number

    engine = TorchEngine()
    line = rf"--num_envs {number} .* give fewer"
    with engine.launch(LaunchRequest(TASK), configure) as (env_cfg, agent_cfg), pytest.raises(UserError, match=line):
        engine.make_env(env_cfg, agent_cfg)


def test_the_estimate_is_compared_with_what_is_free():
    """Just below what is free is taken, above it is not."""
    refuse_beyond_memory(0.5 * available_host_memory(), "cpu", "x", "y")
    with pytest.raises(UserError, match=r"x would take at least .* GB free: y"):
        refuse_beyond_memory(2.0 * available_host_memory(), "cpu", "x", "y")
