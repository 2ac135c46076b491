"""Optimisers of the student: those of PyTorch, and two that treat a weight matrix as a matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch

EPS = 1e-8
LARGEST_SIDE = 512
"""Longest side of a matrix that :class:`Soap` rotates; a longer one is left as it is: rotating it would cost several
times a minibatch's forward and backward pass."""
Parameters = Iterable[torch.Tensor] | Iterable[dict[str, Any]]
State = dict[str, Any]


class MatrixOptimizer(torch.optim.Optimizer, ABC):
    """A step along :meth:`matrix_direction` for each weight matrix, and along Adam's for all other parameters.

    Directions have about the size of Adam's, so that learning rates mean the same.

    Args:
        params: Parameters, or groups of them.
        lr: Step size.
        weight_decay: Decoupled, as in AdamW.
        betas: Decay of the mean and of the mean square of the gradients.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                if parameter.dim() == 2 and min(parameter.shape) > 1:
                    direction = self.matrix_direction(parameter.grad, state, group)
                else:
                    direction = adam_direction(parameter.grad, state, group["betas"])
                if group["weight_decay"]:
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
        return loss

    @abstractmethod
    def matrix_direction(self, gradient: torch.Tensor, state: State, group: dict[str, Any]) -> torch.Tensor:
        """Return the direction of a matrix's step; ``state`` keeps what the next one needs. Shape: (rows, cols)."""


def adam_direction(gradient: torch.Tensor, state: State, betas: tuple[float, float]) -> torch.Tensor:
    """Return Adam's direction (Kingma and Ba 2015, algorithm 1). Shape: that of ``gradient``."""
    if "mean" not in state:
        state["mean"] = torch.zeros_like(gradient)
        state["square"] = torch.zeros_like(gradient)
    state["mean"].lerp_(gradient, 1.0 - betas[0])
    state["square"].mul_(betas[1]).addcmul_(gradient, gradient, value=1.0 - betas[1])
    return _scaled(state["mean"], state["square"], state["step"], betas)


def _scaled(mean: torch.Tensor, square: torch.Tensor, step: int, betas: tuple[float, float]) -> torch.Tensor:
    """Return the mean over the root of the mean square, both corrected for their start at zero."""
    correction = math.sqrt(1.0 - betas[1] ** step)
    scale = square.sqrt().div_(correction).add_(EPS)
    return (mean / scale).div_(1.0 - betas[0] ** step)


class Muon(MatrixOptimizer):
    """Orthogonalised momentum (Jordan et al. 2024), scaled to the size of Adam's steps (Liu et al. 2025, eq. 4)."""

    MOMENTUM = 0.95
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    ITERATIONS = 5

    def matrix_direction(self, gradient: torch.Tensor, state: State, group: dict[str, Any]) -> torch.Tensor:
        """See :class:`MatrixOptimizer`."""
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1.0 - self.MOMENTUM)
        nesterov = gradient.lerp(state["momentum"], self.MOMENTUM)
        return self.orthogonalised(nesterov).mul_(0.2 * math.sqrt(max(gradient.shape)))

    def orthogonalised(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return about the nearest matrix whose singular values are 1 (0.7 to 1.2). Shape: that of ``matrix``."""
        wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
        wide = wide / (wide.norm() + EPS)
        first, second, third = self.COEFFICIENTS
        for _ in range(self.ITERATIONS):
            gram = wide @ wide.T
            wide = first * wide + torch.addmm(gram, gram, gram, beta=second, alpha=third) @ wide
        return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Soap(MatrixOptimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, algorithm 3).

    Correlations among a layer's inputs and among its outputs, which slow Adam down where a fit is nearly done, are
    axes of that basis.
    """

    DECAYS = (0.9, 0.95)
    """Of the mean and of the mean squares; the basis follows with the second."""
    INTERVAL = 10
    """Steps between two updates of the basis."""

    def matrix_direction(self, gradient: torch.Tensor, state: State, group: dict[str, Any]) -> torch.Tensor:
        """See :class:`MatrixOptimizer`; the mean and the mean square are kept in the basis."""
        if "mean" not in state:
            self._begin(gradient, state)
            # In its own eigenbasis a gradient is zero beside the diagonal but for rounding, which Adam would enlarge.
            return torch.zeros_like(gradient)
        self._follow(gradient, state)
        turned = self._turn(gradient, state)
        state["mean"].lerp_(turned, 1.0 - self.DECAYS[0])
        state["square"].mul_(self.DECAYS[1]).addcmul_(turned, turned, value=1.0 - self.DECAYS[1])
        direction = _scaled(state["mean"], state["square"], state["step"] - 1, self.DECAYS)
        return self._turn(direction, state, back=True)

    @staticmethod
    def _begin(gradient: torch.Tensor, state: State) -> None:
        """Make a matrix's state from its first gradient."""
        state["mean"] = torch.zeros_like(gradient)
        state["square"] = torch.zeros_like(gradient)
        for side in (0, 1):
            if gradient.shape[side] <= LARGEST_SIDE:
                state[f"factor{side}"] = gradient @ gradient.T if side == 0 else gradient.T @ gradient
                state[f"basis{side}"] = torch.linalg.eigh(state[f"factor{side}"])[1]

    def _follow(self, gradient: torch.Tensor, state: State) -> None:
        """Take a gradient into the preconditioner's factors and, now and then, turn the basis after them."""
        decay = self.DECAYS[1]
        if "factor0" in state:
            state["factor0"].addmm_(gradient, gradient.T, beta=decay, alpha=1.0 - decay)
        if "factor1" in state:
            state["factor1"].addmm_(gradient.T, gradient, beta=decay, alpha=1.0 - decay)
        if state["step"] % self.INTERVAL:
            return
        mean = self._turn(state["mean"], state, back=True)
        for side in (0, 1):
            if f"factor{side}" in state:
                # One step of orthogonal iteration: the basis turns slowly, and starts from where it was.
                state[f"basis{side}"] = torch.linalg.qr(state[f"factor{side}"] @ state[f"basis{side}"])[0]
        state["mean"] = self._turn(mean, state)

    @staticmethod
    def _turn(matrix: torch.Tensor, state: State, *, back: bool = False) -> torch.Tensor:
        """Express a matrix in the eigenbasis, or in the parameters' own again. Shape: that of ``matrix``."""
        if "basis0" in state:
            matrix = (state["basis0"] if back else state["basis0"].T) @ matrix
        if "basis1" in state:
            matrix = matrix @ (state["basis1"].T if back else state["basis1"])
        return matrix


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "muon": Muon,
    "soap": Soap,
}
FUSED = ("adam", "adamw", "sgd")
