"""A student's estimate of another observation group, exported as a policy of its own whose output it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from foundation.checkpoints.reading.loading import LoadedPolicy
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.deploy.description import Field
from foundation.export.bundle import Bundle, layout_of, make_bundle
from foundation.policies.estimator import HIDDEN
from foundation.policies.layers import Layers
from foundation.policies.mlp import build_mlp
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.students.base import Student
from foundation.students.cnn import CNNStudent

_HEAD = "estimator_state_dict"
"""Entry of a checkpoint that holds the head of a run's loss ``predict``."""


class EstimatorNetwork(PolicyNetwork):
    """A student whose mean output is its estimate: that which its last layers read, or that of the training's head.

    Args:
        student: Shares its weights.
        head: Reads the student's features. None: the student makes the estimate itself.
        size: Numbers that are estimated.
    """

    def __init__(self, student: Student, head: nn.Sequential | None, size: int):
        super().__init__()
        self.student = student
        self.head = head
        self.num_obs = student.num_obs
        self.num_actions = size
        self.num_choices = None
        self.state_size = student.state_size

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        return self.student.initial_state(num_envs, device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        return self.student.reset_state(state, dones)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Estimate for one step or for many, in the group's units."""
        output, state = self.student.run(obs, state, resets, sequence)
        if self.head is None:
            assert output.estimate is not None
            return PolicyOutput(output.estimate), state
        assert output.features is not None
        return PolicyOutput(self.head(output.features)), state

    def list_layers(self, layers: Layers) -> None:
        """Append the student's layers, and the head where there is one."""
        self.student.list_layers(layers)
        if self.head is not None:
            layers.outputs["estimate"] = layers.module(self.head, layers.outputs["features"], "estimator")
        layers.outputs["mean"] = layers.outputs["estimate"]


class SeeingEstimator(EstimatorNetwork):
    """The same of a student that reads images."""

    student: CNNStudent

    def typical_obs(self, noise: torch.Tensor) -> torch.Tensor:
        """Return observations as the environment may give them. Shape, in and out: (..., num_obs)."""
        return self.student.typical_obs(noise)


def make_estimator_bundle(policy: LoadedPolicy, name: str = "estimator", task: str | None = None) -> Bundle:
    """Gather what is known about a student's estimate, in the place of its actions.

    Args:
        policy: The student, as :func:`foundation.checkpoints.load_policy` read it.
        name: Of the exported files.
        task: The task that it acts in, which may name the columns. None: the one that its checkpoint names, if any.

    Raises:
        UserError: If it estimates nothing.
    """
    network, group = _estimator_of(policy)
    size = network.num_actions
    info = replace(policy.info, num_actions=size, num_choices=None, clip_actions=None, has_std=False, has_value=False)
    bundle = make_bundle(replace(policy, network=network, info=info), name, task)
    fields = layout_of(bundle.description.task).get(group or "", ())
    if sum(field.size for field in fields) != size:
        fields = (Field(name=group or "estimate", size=size),)
    described = replace(bundle.description, actions=tuple(fields), action_scale=None, action_offset=None)
    return replace(bundle, description=described)


def _estimator_of(policy: LoadedPolicy) -> tuple[EstimatorNetwork, str | None]:
    """Return what a student has learned to estimate by the loss ``predict``, and the group that it is of.

    Args:
        policy: As it was read from its checkpoint.

    Raises:
        UserError: If it has not learned to.
    """
    path = Path(policy.info.path)
    student = policy.network
    if isinstance(student, Student):
        values = load_checkpoint(path)
        group = _group_of(values)
        if student.estimator is not None:
            return _network(student, None, student.estimator.size), group
        if _HEAD in values:
            head, size = _read_head(values[_HEAD], student.mean.in_features, path)
            return _network(student, head, size), group
    raise UserError(
        f"'{path}' estimates nothing: --estimate is for students that were distilled with "
        "distill.loss.auxiliary={predict: {group: NAME, weight: 0.1}}"
    )


def _network(student: Student, head: nn.Sequential | None, size: int) -> EstimatorNetwork:
    kind = SeeingEstimator if isinstance(student, CNNStudent) else EstimatorNetwork
    return kind(student, head, size).requires_grad_(False).eval()


def _group_of(values: Mapping[str, object]) -> str | None:
    """Return the group that a run predicts, where its checkpoint states it."""
    found: object = values.get("distillation")
    for key in ("loss", "auxiliary", "predict", "group"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else None


def _read_head(weights: object, num_features: int, path: Path) -> tuple[nn.Sequential, int]:
    """Return the head of a run, which has one hidden layer, and how many numbers it estimates.

    Raises:
        UserError: If the weights are no such head's.
    """
    last = weights.get("2.bias") if isinstance(weights, Mapping) else None
    if not isinstance(last, torch.Tensor) or last.ndim != 1 or not len(last):
        raise UserError(f"'{path}' is corrupt: its '{_HEAD}' is no head of {HIDDEN} hidden units")
    head = build_mlp(num_features, [HIDDEN], len(last), "elu")
    own = head.state_dict()
    assert isinstance(weights, Mapping)
    if {name: tuple(value.shape) for name, value in own.items()} != {
        name: tuple(value.shape) for name, value in weights.items() if isinstance(value, torch.Tensor)
    }:
        raise UserError(f"'{path}' is corrupt: its '{_HEAD}' does not fit the student's {num_features} features")
    head.load_state_dict(dict(weights))
    return head, len(last)
