"""The actor that a fine-tuning run starts from: a student of this project, an RSL-RL policy, or a fresh network."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import torch
from torch import nn

from foundation.checkpoints import load_policy
from foundation.checkpoints.initialise import initialise_student
from foundation.checkpoints.reading.loading import Overrides
from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.core.program import command_name
from foundation.core.text import quoted
from foundation.policies.actor_critic import ActorCritic
from foundation.policies.info import PolicyInfo
from foundation.policies.layers import Activation
from foundation.policies.mlp import activation_class_names
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore
from foundation.students import make_student, student_cfg_class, student_from_description
from foundation.students.base import LOG_STD_RANGE, Student

DEFAULT_STD = 0.05
"""Std of a deterministic policy's actions where nothing says more [action units]: enough to explore with, and
little enough that the noisy actions are about as good."""


@dataclass
class StartPolicy:
    """A policy to start from, as a student with a standard deviation."""

    student: Student
    had_std: bool
    """Whether the checkpoint had a standard deviation; otherwise the student's is still to be chosen."""
    info: PolicyInfo


def load_start(path: str) -> StartPolicy:
    """Read the policy that a run starts from.

    Args:
        path: A checkpoint of a student of this project, or of RSL-RL.

    Raises:
        UserError: If it is of another kind, or its actions are discrete.
    """
    loaded = load_policy(path, Overrides())
    if loaded.info.num_choices is not None:
        raise UserError(f"'{path}' chooses among discrete actions; fine-tuning needs continuous ones")
    network = loaded.network
    if isinstance(network, Student):
        _refuse_other(network.cfg.distribution, f"'{path}'")
        student = with_std(network)
        return StartPolicy(student, network.log_std is not None, loaded.info)
    student = make_student(_like(network, path), network.num_obs, network.num_actions)
    initialise_student(student, path)
    return StartPolicy(student, loaded.info.distribution == "gaussian", loaded.info)


def with_std(student: Student) -> Student:
    """Return a trainable copy of a student that has a standard deviation, the same mean actions to the bit."""
    described = student.describe() | {"stochastic": True}
    copied = student_from_description(described)
    missing = copied.load_state_dict(student.state_dict(), strict=False)
    assert all(name.startswith("log_std") for name in missing.missing_keys), missing.missing_keys
    copied.requires_grad_(True)
    return copied


def fresh_actor(cfg: StudentCfg, num_obs: int, num_actions: int) -> Student:
    """Build an untrained actor."""
    _refuse_other(getattr(cfg, "distribution", "gaussian"), "the student")
    return make_student(replace(cfg, stochastic=True), num_obs, num_actions)


def _refuse_other(distribution: str, what: str) -> None:
    """Refuse an actor that does not draw from a Gaussian, with tanh behind it or without, as PPO does here."""
    if distribution not in ("gaussian", "tanh"):
        raise UserError(
            f"{what} has distribution={distribution}; fine-tuning needs student.distribution=gaussian or tanh"
        )


def _like(network: PolicyNetwork, path: str) -> StudentCfg:
    """Return the config of a student with the layers of an RSL-RL policy."""
    if not isinstance(network, ActorCritic) or not network.is_plain:
        raise UserError(
            f"'{path}' cannot be fine-tuned: only students of {command_name('distillation.py')} and policies of RSL-RL "
            "can. Distil it into a student first."
        )
    actor = network.actor
    kinds = {type(layer).__name__ for layer in actor.layers if not isinstance(layer, nn.Linear | RecurrentCore)}
    names = activation_class_names()
    known = [layer.function for layer in network.layers().needed_for("mean") if isinstance(layer, Activation)]
    if len(kinds) > 1 or not kinds <= set(names):
        raise UserError(f"'{path}' cannot be fine-tuned: it has the activations {', '.join(known) or 'none'}")
    options = {"stochastic": True, "hidden_dims": actor.hidden_dims}
    if kinds:
        options["activation"] = names[kinds.pop()]
    if actor.core is None:
        return student_cfg_class("mlp")(**options)
    core = actor.core
    sizes = {"encoder_dims": [], "hidden_size": core.hidden_size, "num_layers": core.num_layers}
    return student_cfg_class(core.kind)(**options, **sizes)


_LARGEST_LOG = math.log(sys.float_info.max)
"""Beyond it, ``math.exp`` raises."""


def std_of_entropy(entropy: float, num_actions: int) -> float:
    """Return the standard deviation, the same for each action, of a diagonal Gaussian of this entropy [nats]."""
    log_std = entropy / num_actions - 0.5 * math.log(2.0 * math.pi * math.e)
    return math.exp(log_std) if log_std < _LARGEST_LOG else math.inf


@torch.no_grad()
def set_std(student: Student, std: torch.Tensor | float) -> None:
    """Let a student's actions have this standard deviation everywhere [action units]. Shape: () or (num_actions,)."""
    low, high = (math.exp(bound) for bound in LOG_STD_RANGE)
    values = torch.as_tensor(std, dtype=torch.float32).expand(student.num_actions)
    if not bool(((values >= low) & (values <= high)).all()):
        shown = quoted([float(f"{value:.3g}") for value in values])
        raise UserError(f"the std at the start is {shown}: it must be from {low:.2g} to {high:.3g}")
    if isinstance(student.log_std, nn.Linear):
        student.log_std.weight.zero_()
        student.log_std.bias.copy_(values.log())
    elif student.log_std is not None:
        student.log_std.copy_(values.log())
