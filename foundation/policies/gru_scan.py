"""One GRU layer over time on the CPU, with its gradient written out: few operations per step, so that it is fast.

torch's own CPU kernel records some twenty operations per step for the gradient. Here a step is five operations forward
and two backward; whatever does not depend on the step before is one operation over all steps. Features come first and
environments last, so that every gate is one contiguous block; the gradient overwrites what forward has kept, and the
buffers and the views of their steps are used again.

With ``g = W h + b`` and the inputs' share ``x``: ``r = s(x_r + g_r)``, ``z = s(x_z + g_z)``,
``n = tanh(x_n + r * g_n)``, ``h' = n + z (h - n)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch.autograd.function import once_differentiable

_KEPT_BYTES = 64_000_000
"""A larger block is not kept for the next pass [bytes]."""
_KEPT_SHAPES = 2


class _Step(NamedTuple):
    """Views of the buffers at one step; environments last."""

    flat: torch.Tensor  # r, z, g_n and n: (4 size, num_envs)
    gates: torch.Tensor  # the same: (4, size, num_envs)
    product: torch.Tensor  # r, z and g_n: (3 size, num_envs)
    switches: torch.Tensor  # r and z: (2 size, num_envs)
    r: torch.Tensor
    z: torch.Tensor
    g_n: torch.Tensor
    n: torch.Tensor
    after: torch.Tensor  # the state after the step: (size, num_envs)
    grad: torch.Tensor  # the gradient of that state: (size, num_envs)


class _Buffers:
    """What one pass forward and back needs, with the views of every step made once."""

    _free: ClassVar[list[_Buffers]] = []

    def __init__(self, steps: int, size: int, envs: int, like: torch.Tensor):
        self.key = steps, size, envs, like.dtype
        self.block = like.new_empty(steps, 4 * size, envs)
        self.hidden = like.new_empty(steps + 1, size, envs)
        self.grads = like.new_empty(steps, size, envs)
        self.gates = self.block.view(steps, 4, size, envs)
        parts = [self.block, self.gates, self.block[:, : 3 * size], self.block[:, : 2 * size], *self.gates.unbind(1)]
        parts += [self.hidden[1:], self.grads]
        self.steps = [_Step(*views) for views in zip(*(part.unbind() for part in parts), strict=True)]

    @classmethod
    def take(cls, steps: int, size: int, envs: int, like: torch.Tensor) -> _Buffers:
        """Return buffers that are not in use."""
        for index, buffers in enumerate(cls._free):
            if buffers.key == (steps, size, envs, like.dtype):
                return cls._free.pop(index)
        return cls(steps, size, envs, like)

    def give_back(self) -> None:
        """Let the next pass of this shape have them."""
        if self.block.numel() * self.block.element_size() <= _KEPT_BYTES:
            _Buffers._free = [self, *_Buffers._free][:_KEPT_SHAPES]


class _GRUScan(torch.autograd.Function):
    """See :func:`gru_scan`."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        x: torch.Tensor,
        state: torch.Tensor,
        w_in: torch.Tensor,
        w_hidden: torch.Tensor,
        b_in: torch.Tensor,
        b_hidden: torch.Tensor,
        resets: torch.Tensor | None,
        initial: torch.Tensor | None,
        wants_grad: bool,
    ) -> torch.Tensor:
        steps, envs, _ = x.shape
        buffers = _Buffers.take(steps, w_hidden.shape[1], envs, x)
        into, bias = _four_rows(w_in, b_in, b_hidden)
        torch.baddbmm(bias, into.expand(steps, -1, -1), x.transpose(1, 2), out=buffers.block)
        h = buffers.hidden[0].copy_(state.t())
        begins = _begins(resets)
        for step, views in enumerate(buffers.steps):
            if step in begins:
                assert resets is not None
                h = torch.where(resets[step], _column(initial, h), h)
            views.product.addmm_(w_hidden, h)
            views.switches.sigmoid_()
            views.n.addcmul_(views.r, views.g_n).tanh_()
            h = torch.lerp(views.n, h, views.z, out=views.after)
        out = buffers.hidden[1:].transpose(1, 2).contiguous()
        if wants_grad:
            ctx.save_for_backward(x, into, w_hidden, resets, initial)
            ctx.buffers = buffers
            ctx.begins = begins
        else:
            buffers.give_back()
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        x, into, w_hidden, resets, initial = ctx.saved_tensors
        buffers = ctx.buffers
        ctx.buffers = None
        if buffers is None:
            raise RuntimeError("the gradient of gru_scan can be taken once: it overwrites what forward has kept")
        before = buffers.hidden[:-1]
        if ctx.begins:
            before = torch.where(resets.unsqueeze(1), _column(initial, before), before)
        factor_n = _factors(buffers.gates, before)
        buffers.grads.copy_(grads[0].transpose(1, 2))
        state_grad, initial_grad = _sweep(buffers, ctx.begins, resets, initial, w_hidden)
        torch.mul(factor_n, buffers.grads, out=buffers.gates[:, 3])
        num_in = x.shape[-1]
        two = 2 * w_hidden.shape[1]
        three = 3 * w_hidden.shape[1]
        products = torch.bmm(buffers.block, torch.cat([x, before.transpose(1, 2)], dim=-1)).sum(0)
        sums = buffers.block.sum((0, 2))
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.bmm(buffers.block.transpose(1, 2), into.expand(x.shape[0], -1, -1))
        w_in_grad = torch.cat([products[:two, :num_in], products[three:, :num_in]])
        b_in_grad = torch.cat([sums[:two], sums[three:]])
        buffers.give_back()
        w_hidden_grad = products[:three, num_in:]
        return x_grad, state_grad.t(), w_in_grad, w_hidden_grad, b_in_grad, sums[:three], None, initial_grad, None


def gru_scan(
    x: torch.Tensor,
    state: torch.Tensor,
    weights: Sequence[torch.Tensor],
    resets: torch.Tensor | None = None,
    initial: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one GRU layer over time; the same as ``torch.gru_cell`` repeated, to rounding. First derivatives only, once.

    Args:
        x: Inputs. Shape: (num_steps, num_envs, num_in).
        state: Before the first step. Shape: (num_envs, hidden_size).
        weights: torch's for one layer: input, hidden, and their biases.
        resets: Steps at which the state is replaced by ``initial`` first. Shape: (num_steps, num_envs).
        initial: State at an episode's start; None is zero. Shape: (hidden_size,).

    Returns:
        The outputs, shape (num_steps, num_envs, hidden_size), and the last state, shape (num_envs, hidden_size).
    """
    inputs = (x, state, *weights, initial)
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    out: torch.Tensor = _GRUScan.apply(x, state, *weights, resets, initial, wants_grad)  # pyright: ignore
    return out, out[-1]


def _four_rows(w_in: torch.Tensor, b_in: torch.Tensor, b_hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay the input weights out for r, z, g_n (its bias alone) and n. Shapes: (4 size, num_in), (4 size, 1)."""
    two = 2 * w_in.shape[0] // 3
    into = torch.cat([w_in[:two], torch.zeros_like(w_in[two:]), w_in[two:]])
    bias = torch.cat([b_in[:two] + b_hidden[:two], b_hidden[two:], b_in[two:]])
    return into, bias.unsqueeze(1)


def _factors(gates: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Turn r, z, g_n, n into what a gradient of h' is multiplied by to give that of r, z, g_n and, through z, of h.

    Returns:
        The same for n's argument. Shape: (num_steps, size, num_envs).
    """
    r, z, g_n, n = gates.unbind(1)
    keep = 1.0 - z
    factor_n = torch.addcmul(keep, keep, n.square(), value=-1.0)
    factor_z = keep.mul_(z).mul_(before - n)
    n.copy_(z)
    z.copy_(factor_z)
    factor_g = torch.mul(factor_n, r, out=factor_z)
    g_n.mul_(1.0 - r)
    torch.mul(factor_g, g_n, out=r)
    g_n.copy_(factor_g)
    return factor_n


def _sweep(
    buffers: _Buffers,
    begins: set[int],
    resets: torch.Tensor | None,
    initial: torch.Tensor | None,
    w_hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Go back in time: the block becomes the gates' gradients, ``grads`` those of every step's state.

    Returns:
        The gradients of the first state, (size, num_envs), and of ``initial``.
    """
    size = w_hidden.shape[1]
    # The last rows of a block are z by now: the share of h' that is h itself.
    back = torch.cat([w_hidden, torch.eye(size, dtype=w_hidden.dtype)]).t().contiguous()
    initial_grad = None if initial is None else torch.zeros_like(initial)
    carried = buffers.grads[0]
    for step in range(len(buffers.steps) - 1, -1, -1):
        views = buffers.steps[step]
        views.gates.mul_(views.grad)
        if step and step not in begins:
            buffers.steps[step - 1].grad.addmm_(back, views.flat)
            continue
        carried = torch.mm(back, views.flat)
        if step in begins:
            assert resets is not None
            if initial_grad is not None:
                initial_grad += (carried * resets[step]).sum(1)
            carried.masked_fill_(resets[step], 0.0)
        if step:
            buffers.steps[step - 1].grad.add_(carried)
    return carried, initial_grad


def _begins(resets: torch.Tensor | None) -> set[int]:
    return set() if resets is None else set(resets.any(1).nonzero().squeeze(-1).tolist())


def _column(initial: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return like.new_zeros(()) if initial is None else initial[:, None]
