"""Multi-layer perceptrons and the activations by RSL-RL's names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from foundation.core.errors import UserError, suggest

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "celu": nn.CELU,
    "crelu": nn.CELU,  # RSL-RL's name for it
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "lrelu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


def resolve_activation(name: str) -> nn.Module:
    """Return a new activation module for one of RSL-RL's names, such as ``elu`` or ``lrelu``."""
    kind = _ACTIVATIONS.get(str(name).lower())
    if kind is None:
        raise UserError(f"unknown activation '{name}'. {suggest(str(name).lower(), _ACTIVATIONS)}")
    return kind()


def activation_names() -> list[str]:
    """Return every name that :func:`resolve_activation` knows."""
    return sorted(_ACTIVATIONS)


def activation_class_names() -> dict[str, str]:
    """Return RSL-RL's name for each activation's class, such as ``LeakyReLU`` -> ``lrelu``."""
    aliases = ("celu", "leaky_relu", "silu")
    return {kind.__name__: name for name, kind in _ACTIVATIONS.items() if name not in aliases}


def build_mlp(num_in: int, hidden_dims: Sequence[int], num_out: int | None, activation: str = "elu") -> nn.Sequential:
    """Build linear layers with an activation between them.

    Args:
        num_in: Number of inputs.
        hidden_dims: Sizes of the hidden layers; may be empty.
        num_out: Number of outputs of the last, linear layer. None: end with the last hidden activation.
        activation: One of RSL-RL's names.

    Returns:
        Maps (..., num_in) to (..., num_out).
    """
    layers: list[nn.Module] = []
    size = num_in
    for width in hidden_dims:
        layers += [nn.Linear(size, width), resolve_activation(activation)]
        size = width
    if num_out is not None:
        layers.append(nn.Linear(size, num_out))
    return nn.Sequential(*layers)
