"""Run an exported policy in a program of your own, without PyTorch.

``Policy("student.npz")`` needs NumPy alone, ``Policy("student.onnx")`` onnxruntime too, and ``Policy("student.so")``
the compiled library::

    from foundation.deploy import Policy

    policy = Policy("student.npz")
    actions = policy.step(obs)  # (num_obs,) -> (num_actions,), or (num_envs, num_obs) -> (num_envs, num_actions)
    policy.reset()  # a new episode begins
"""

from __future__ import annotations

from foundation.deploy.description import Description, Field
from foundation.deploy.golden import Golden
from foundation.deploy.policy import Policy

__all__ = ["Description", "Field", "Golden", "Policy"]
