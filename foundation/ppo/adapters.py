"""Low-rank adapters (Hu et al. 2021, LoRA): the weights of a frozen policy, each with a trained addition of low rank.

The policy's checkpoints have the sums, so that whoever reads them finds an ordinary student; the additions themselves
are kept in the state that a run resumes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from foundation.config.finetune_cfg import AdaptersCfg
from foundation.core.errors import UserError
from foundation.students.base import Student
from foundation.students.by_task import ByTaskStudent

_PARAMETRIZED = ".parametrizations.weight."


class LowRankSum(nn.Module):
    """``weight + scale * up @ down``, with ``up`` zero before training.

    Args:
        weight: Of a dense layer; it gives sizes, type and device. Shape: (num_out, num_in).
        cfg: Rank and scale.
        generator: Draws ``down``.
    """

    def __init__(self, weight: torch.Tensor, cfg: AdaptersCfg, generator: torch.Generator):
        super().__init__()
        assert cfg.rank is not None
        num_out, num_in = weight.shape
        self.scale = cfg.scale
        # As nn.Linear draws its weights: a hidden unit of the addition has the size of one of the network's.
        bound = num_in**-0.5
        down = torch.empty(cfg.rank, num_in).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(num_out, cfg.rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum. Shape: (num_out, num_in)."""
        return weight + self.scale * (self.up @ self.down)


def add_adapters(student: Student, cfg: AdaptersCfg, seed: int) -> int:
    """Freeze a student, and give its dense layers adapters, which are trained instead.

    Of a student with parts by task the newest part alone gets them. A standard deviation that does not depend on the
    state is trained too: it is exploration, and no layer. Recurrent and convolutional layers are frozen as they are.

    Args:
        student: Changed in place; its actions are the same to the bit.
        cfg: The rank is at most the smaller size of any of these layers, but for that of the actions.
        seed: Of the adapters' random weights.

    Returns:
        Number of weights in the adapters.

    Raises:
        UserError: If the rank is above a layer's size.
    """
    assert cfg.rank is not None
    layers = _dense_layers(student)
    for name, layer in layers:
        # A head has as many outputs as there are actions, often fewer than the rank: its rank is then full.
        least = layer.in_features if layer is student.mean or layer is student.log_std else min(layer.weight.shape)
        if cfg.rank > least:
            raise UserError(
                f"finetune.adapters.rank is {cfg.rank}, and the layer '{name}' has {layer.in_features} inputs and "
                f"{layer.out_features} outputs: give a rank of at most {least}"
            )
    student.requires_grad_(False)
    if isinstance(student.log_std, nn.Parameter):
        student.log_std.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    added = 0
    for _, layer in layers:
        addition = LowRankSum(layer.weight, cfg, generator)
        parametrize.register_parametrization(layer, "weight", addition)
        added += addition.up.numel() + addition.down.numel()
    return added


def _dense_layers(student: Student) -> list[tuple[str, nn.Linear]]:
    """Return the dense layers that act, by their names, with those of the newest part alone where there are parts."""
    names = {module: name for name, module in student.named_modules()}
    modules: list[nn.Module] = [student]
    if isinstance(student, ByTaskStudent):
        modules = student.own_modules()
    found: dict[str, nn.Linear] = {}
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer is not student.value:
                found[names[layer]] = layer
    if not found:
        raise UserError(f"finetune.adapters: student={student.cfg.name} has no dense layer to adapt")
    return list(found.items())


def has_adapters(student: Student) -> bool:
    """Return whether a student has adapters."""
    return any(True for _ in _adapted(student))


def _adapted(student: Student) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in student.named_modules() if parametrize.is_parametrized(module))


def merged_state_dict(student: Student) -> dict[str, torch.Tensor]:
    """Return a student's weights as an ordinary student has them: with adapters the sums, by the layers' own names."""
    state = {name: value.detach().clone() for name, value in student.state_dict().items() if _PARAMETRIZED not in name}
    for name, module in _adapted(student):
        assert isinstance(module, nn.Linear)
        state[f"{name}.weight"] = module.weight.detach().clone()
    return state


def load_merged(student: Student, state: Mapping[str, torch.Tensor]) -> None:
    """Let a student act by the weights of a checkpoint; adapters there are set to zero.

    Args:
        student: With adapters or without.
        state: What :func:`merged_state_dict` returned.
    """
    adapted = dict(_adapted(student))
    own = {}
    for name, value in state.items():
        module, _, key = name.rpartition(".")
        own[f"{module}{_PARAMETRIZED}original" if key == "weight" and module in adapted else name] = value
    for name in adapted:
        for part in ("up", "down"):
            key = f"{name}{_PARAMETRIZED}0.{part}"
            value = student.state_dict()[key]
            own[key] = torch.zeros_like(value) if part == "up" else value
    student.load_state_dict(own)
