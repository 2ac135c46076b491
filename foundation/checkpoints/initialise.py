"""Initialise a student from the weights of a checkpoint: ``distill.student.init_checkpoint``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.core.program import command_name
from foundation.policies.actor_critic import ActorCritic
from foundation.policies.distribution import Deterministic, Gaussian, Heteroscedastic
from foundation.policies.layers import Activation
from foundation.policies.policy_network import PolicyNetwork
from foundation.students import Student, StudentPolicy
from foundation.students.recurrent import RecurrentStudent

_OF_MEANS = (Deterministic, Gaussian, Heteroscedastic)
"""Distributions whose first outputs are the mean actions, as a student's are."""


def initialise_student(student: Student, path: str | Path, **overrides: object) -> None:
    """Copy a checkpoint's weights and normaliser into a student of the same sizes.

    Args:
        student: Changed in place. Heads that the checkpoint lacks (standard deviation, value) keep their start values.
        path: A checkpoint of a student of this project, or of RSL-RL.
        overrides: Fields of :class:`foundation.checkpoints.reading.loading.Overrides`.
    """
    loaded = load_policy(path, Overrides.parse(overrides)).network
    _compare_sizes(student, loaded, str(path))
    if isinstance(loaded, Student):
        source = loaded.state_dict()
    elif isinstance(loaded, ActorCritic) and loaded.is_plain and type(loaded.distribution) in _OF_MEANS:
        source = _student_names(loaded, student, str(path))
    else:
        raise UserError(f"'{path}' cannot start a student: only checkpoints of students and of RSL-RL can.")
    _compare_activations(student, loaded, str(path))
    _compare_bounds(student, loaded, str(path))
    own = student.state_dict()
    wrong = [key for key in source if key in own and own[key].shape != source[key].shape]
    odd = [key for key in (own.keys() ^ source.keys()) if not key.startswith(("log_std", "value"))]
    if wrong or odd:
        key = (wrong or sorted(odd))[0]
        wanted, found = (list(part[key].shape) if key in part else "nothing" for part in (own, source))
        raise UserError(
            f"'{path}' does not fit the student: '{key}' must have shape {wanted} and the file has {found}. "
            f"Give the student the file's architecture ({command_name('teacher_info.py')} shows it)."
        )
    student.load_state_dict({**own, **{key: value for key, value in source.items() if key in own}})


def _compare_sizes(student: Student, loaded: PolicyNetwork, path: str) -> None:
    """Refuse other observations and actions."""
    for name in ("num_obs", "num_actions"):
        if getattr(student, name) != getattr(loaded, name):
            raise UserError(
                f"'{path}' has {name}={getattr(loaded, name)} and the student {getattr(student, name)}. "
                "Give the student the file's observation groups, or another file."
            )


def _compare_activations(student: Student, loaded: PolicyNetwork, path: str) -> None:
    """Refuse another activation, which the shapes of the weights do not show."""
    theirs = _activations(loaded)
    ours = _activations(student)
    if theirs and ours and theirs != ours:
        raise UserError(
            f"'{path}' has {'/'.join(sorted(theirs))} activations and the student {'/'.join(sorted(ours))}. "
            "Set distill.student.activation to the file's."
        )


def _compare_bounds(student: Student, loaded: PolicyNetwork, path: str) -> None:
    """Refuse weights whose actions are squashed in one of the two alone, which their shapes do not show."""
    theirs = loaded.cfg.distribution if isinstance(loaded, Student) else "gaussian"
    if theirs != student.cfg.distribution:
        raise UserError(
            f"'{path}' has distribution={theirs} and the student {student.cfg.distribution}: set "
            f"distill.student.distribution={theirs}."
        )


def _activations(network: PolicyNetwork) -> set[str]:
    return {layer.function for layer in network.layers().needed_for("features") if isinstance(layer, Activation)}


def _student_names(teacher: ActorCritic, student: Student, path: str) -> dict[str, torch.Tensor]:
    """Return RSL-RL's tensors by the names that they have in a student."""
    actor = teacher.actor
    recurrent = isinstance(student, RecurrentStudent) and not len(student.encoder)
    if not (recurrent if actor.core is not None else isinstance(student, StudentPolicy)):
        raise UserError(
            f"'{path}' cannot start student '{student.cfg.name}': it has "
            f"{'recurrent layers' if actor.core is not None else 'dense layers only'}."
        )
    actions = student.num_actions
    hidden = nn.Sequential(*(layer for layer in actor.layers if layer not in (actor.core, actor.head)))
    named = {f"body.{key}": value for key, value in hidden.state_dict().items()}
    named |= {"mean.weight": actor.head.weight[:actions], "mean.bias": actor.head.bias[:actions]}
    if actor.core is not None:
        named |= {f"core.{key}": value for key, value in actor.core.state_dict().items()}
    if isinstance(student.log_std, nn.Parameter) and isinstance(teacher.distribution, Gaussian):
        named["log_std"] = teacher.distribution.std.log()
    normalizer = actor.normalizer if actor.normalizer is not None else type(student.normalizer)(student.num_obs)
    return named | {f"normalizer.{key}": value for key, value in normalizer.state_dict().items()}
