"""Initialise a student from the weights of a checkpoint: ``distill.student.init_checkpoint`` and ``init_encoder``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from foundation.students.cnn import CNNStudent
from foundation.students.recurrent import RecurrentStudent

logger = logging.getLogger(__name__)

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


@torch.no_grad()
def initialise_encoders(student: CNNStudent, path: str | Path) -> None:
    """Start a student's image encoders from another policy's: the first layers, as far as their shapes match.

    An encoder is that of the group of the same name, or the only one that there is. Where the other policy scales its
    images otherwise, the first convolution is scaled instead.

    Args:
        student: Changed in place.
        path: A checkpoint of a policy that reads images: a student of this project, or RSL-RL's ``CNNModel``.

    Raises:
        UserError: If it reads no images, or its first layer has another shape or activation.
    """
    loaded = load_policy(path, Overrides()).network
    shapes = student.image_shapes
    for group, encoder in _encoders_of(student).items():
        theirs, scale = _encoder_for(group, shapes[group], loaded, str(path))
        pairs = list(zip(_weighted(encoder), _weighted(theirs), strict=False))
        matching = next((n for n, pair in enumerate(pairs) if not _is_alike(*pair)), len(pairs))
        where = f"distill.student.init_encoder: the encoder of '{group}' cannot begin with that of '{path}'"
        if not matching:
            own, other = (list(layers[0].weight.shape) for layers in (_weighted(encoder), _weighted(theirs)))
            raise UserError(
                f"{where}: its first convolution is {other}, and the student's {own}, or their strides "
                "differ. Give the student its architecture (distill.student.encoder, channels, frame_stack), or leave "
                "it out"
            )
        if _activation_after_first(encoder) != _activation_after_first(theirs):
            name = _activation_after_first(theirs)
            raise UserError(f"{where}: that has {name} activations. Set distill.student.activation to it")
        for own, other in pairs[:matching]:
            own.load_state_dict(other.state_dict())
        pairs[0][0].weight.mul_(scale / student.image_scales[group])
        number = len(_weighted(encoder))
        logger.info("The encoder of '%s' begins with %d of its %d layers from '%s'.", group, matching, number, path)


def _encoders_of(student: CNNStudent) -> dict[str, nn.Module]:
    """Return the encoder of each image group; one for all is the first group's."""
    if student.encoder is None:
        return {}
    return dict(zip(student.image_shapes, student.encoder.encoders, strict=False))


def _encoder_for(group: str, shape: list[int], network: PolicyNetwork, path: str) -> tuple[nn.Module, float]:
    """Return a policy's encoder for a group, and what it multiplies the images by."""
    encoders: Mapping[str, nn.Module] = {}
    scales: Mapping[str, float] = {}
    if isinstance(network, CNNStudent):
        encoders = _encoders_of(network)
        scales = network.image_scales
    elif isinstance(network, ActorCritic) and network.images is not None:
        names = network.images.groups
        network.bind(dict.fromkeys(names, shape))
        encoders = dict(network.images.encoders.items())
    found = group if group in encoders else next(iter(encoders), None)
    if found is None or (found != group and len(encoders) > 1):
        there = f"reads the image groups {', '.join(encoders)}" if encoders else "reads no images"
        raise UserError(
            f"distill.student.init_encoder: '{path}' {there}, and the student's encoder is of '{group}': name another "
            "checkpoint, or leave it out"
        )
    return encoders[found], scales.get(found, 1.0)


def _weighted(encoder: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _is_alike(own: nn.Conv2d | nn.Linear, other: nn.Conv2d | nn.Linear) -> bool:
    """Return whether two layers compute the same of the same weights."""
    if type(own) is not type(other) or own.weight.shape != other.weight.shape:
        return False
    settings = ("stride", "padding", "dilation", "padding_mode") if isinstance(own, nn.Conv2d) else ()
    return all(getattr(own, name) == getattr(other, name) for name in settings)


def _activation_after_first(encoder: nn.Module) -> str | None:
    """Return the kind of an encoder's first layer without weights that is no pooling; None where there is none."""
    layers = [layer for layer in encoder.modules() if not list(layer.children()) and not list(layer.parameters())]
    kinds = (type(layer).__name__ for layer in layers)
    return next((kind for kind in kinds if "Pool" not in kind and kind != "Flatten"), None)
