"""GRU and LSTM layers whose whole state is one tensor, environments first."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from foundation.core.errors import UserError, suggest
from foundation.policies.gru_scan import gru_scan
from foundation.policies.layers import Layers, Memory, Recurrent
from foundation.policies.memory import MemoryLayer

_WORTH_FUSING = 3
"""Steps from which one call of torch's fused kernel is faster than as many single steps."""
_KINDS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentCore(MemoryLayer):
    """GRU or LSTM layers; the state packs h (and for an LSTM then c) of every layer. Shape: (num_envs, state_size)."""

    def __init__(
        self, kind: str, num_in: int, hidden_size: int, num_layers: int = 1, learn_initial_state: bool = False
    ) -> None:
        """Create the layers.

        Args:
            kind: ``gru`` or ``lstm``.
            num_in: Number of inputs.
            hidden_size: Number of units in each layer, and of outputs.
            num_layers: Number of layers.
            learn_initial_state: Whether the state at an episode's start is learned; otherwise it is zero.

        Raises:
            UserError: If the kind is unknown.
        """
        super().__init__()
        if kind not in _KINDS:
            raise UserError(f"unknown recurrent layer '{kind}'. {suggest(kind, _KINDS)}")
        self.kind = kind
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.rnn = _KINDS[kind](num_in, hidden_size, num_layers)
        self.state_size = hidden_size * num_layers * (2 if kind == "lstm" else 1)
        self.initial = nn.Parameter(torch.zeros(self.state_size)) if learn_initial_state else None

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Return the state at an episode's start. Shape: (num_envs, state_size)."""
        if self.initial is not None:
            return self.initial.expand(num_envs, -1).to(device)
        weight = next(self.rnn.parameters())
        return torch.zeros(num_envs, self.state_size, dtype=weight.dtype, device=device or weight.device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        return None if state is None else self._begin(state, dones)

    def _begin(self, state: torch.Tensor, dones: torch.Tensor) -> torch.Tensor:
        initial = self.initial if self.initial is not None else state.new_zeros(())
        return torch.where(dones.bool().unsqueeze(-1), initial, state)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append one typed layer for each recurrent layer (see :mod:`foundation.policies.layers`)."""
        first = layers.reserve(self.state_size)
        initial = torch.zeros(self.state_size) if self.initial is None else self.initial.detach()
        columns = enumerate(initial.split(self.hidden_size))
        parts = [Memory(start=first + index * self.hidden_size, initial=part) for index, part in columns]
        for index, weights in enumerate(self.rnn.all_weights):
            weight_ih, weight_hh, bias_ih, bias_hh = (weight.detach() for weight in weights)
            x = layers.add(
                Recurrent(
                    name=f"{name}.{index}",
                    inputs=(x,),
                    shape=(self.hidden_size,),
                    memory=tuple(parts[index :: self.num_layers]),  # h, and of an LSTM c, which comes after every h
                    kind="lstm" if self.kind == "lstm" else "gru",
                    weight_ih=weight_ih,
                    weight_hh=weight_hh,
                    bias_ih=bias_ih,
                    bias_hh=bias_hh,
                )
            )
        return x

    def step(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Advance one step.

        Args:
            x: Shape: (num_envs, num_in).
            state: Shape: (num_envs, state_size).

        Returns:
            The output, shape (num_envs, hidden_size), and the next state.
        """
        assert state is not None
        hidden = state.split(self.hidden_size, dim=-1)
        new_h: list[torch.Tensor] = []
        new_c: list[torch.Tensor] = []
        for layer, weights in enumerate(self.rnn.all_weights):
            if self.kind == "gru":
                x = torch.gru_cell(x, hidden[layer], *weights)
            else:
                x, cell = torch.lstm_cell(x, (hidden[layer], hidden[self.num_layers + layer]), *weights)
                new_c.append(cell)
            new_h.append(x)
        parts = new_h + new_c
        return x, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def sequence(
        self, x: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advance many steps by fused kernels; the result is that of ``step`` repeated.

        Args:
            x: Shape: (num_steps, num_envs, num_in).
            state: State before the first step. Shape: (num_envs, state_size).
            resets: True where a step begins an episode. Shape: (num_steps, num_envs). None: nowhere.

        Returns:
            The outputs, shape (num_steps, num_envs, hidden_size), and the state after the last step.
        """
        assert state is not None
        # torch's GRU is slow at the gradient on a CPU (see gru_scan), and cannot reset in the middle of a sequence.
        if self.kind == "gru" and x.device.type == "cpu":
            return self._scan(x, state, None if resets is None else resets.bool())
        if resets is None:
            return self._fused(x, state)
        resets = resets.bool()
        state = self._begin(state, resets[0])
        if x.shape[0] == 1:
            return self._fused(x, state)
        begins = (resets[1:].any(dim=1).nonzero().squeeze(-1) + 1).tolist()
        if not begins:
            return self._fused(x, state)
        # torch's kernels cannot reset an environment in the middle of a sequence, so that sequences are cut where
        # episodes begin. On a GPU the number of kernels counts, on a CPU the copies into a packed sequence.
        return self._split(x, state, resets) if x.is_cuda else self._segments(x, state, resets, begins)

    def _scan(
        self, x: torch.Tensor, state: torch.Tensor, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the GRU layers one after the other, each over all steps."""
        starts = [None] * self.num_layers if self.initial is None else self.initial.split(self.hidden_size)
        last: list[torch.Tensor] = []
        for start, hidden, weights in zip(
            starts, state.split(self.hidden_size, dim=-1), self.rnn.all_weights, strict=True
        ):
            x, end = gru_scan(x, hidden, weights, resets, start)
            last.append(end)
        return x, last[0] if len(last) == 1 else torch.cat(last, dim=-1)

    def _fused(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, hidden = self.rnn(x, self._unpack(state))
        return out, self._pack(hidden)

    def _segments(
        self, x: torch.Tensor, state: torch.Tensor, resets: torch.Tensor, begins: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut the sequence where any env begins an episode; run long pieces fused, and short ones step by step."""
        outputs: list[torch.Tensor] = []
        for start, end in pairwise([0, *begins, x.shape[0]]):
            if start:
                state = self._begin(state, resets[start])
            if end - start >= _WORTH_FUSING:
                out, state = self._fused(x[start:end], state)
                outputs.append(out)
                continue
            for step in range(start, end):
                out, state = self.step(x[step], state)
                outputs.append(out.unsqueeze(0))
        return torch.cat(outputs), state

    def _split(self, x: torch.Tensor, state: torch.Tensor, resets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut each env's sequence where its own episodes begin, and run all pieces as one packed batch."""
        steps, envs = resets.shape
        begins = resets.clone()
        begins[0] = True  # the first piece of every env starts at its given state
        env, start = begins.t().nonzero(as_tuple=True)  # ordered by env, then by time
        last = torch.cat([env[1:] != env[:-1], env.new_ones(1, dtype=torch.bool)])
        end = torch.where(last, steps, start.roll(-1))
        length = end - start
        clock = torch.arange(int(length.max()), device=x.device).unsqueeze(1)
        pieces = x[(start + clock).clamp_max(steps - 1), env]
        begun = torch.where((start == 0).unsqueeze(-1), state[env], self._initial_like(state))
        packed = pack_padded_sequence(pieces, length.cpu(), enforce_sorted=False)
        raw, hidden = self.rnn(packed, self._unpack(begun))
        assert isinstance(raw, PackedSequence)
        padded, _ = pad_packed_sequence(raw)
        piece = begins.long().cumsum(0) - 1 + self._first_piece(env, envs)
        time = torch.arange(steps, device=x.device).unsqueeze(1) - start[piece]
        return padded[time, piece], self._pack(hidden)[last]

    @staticmethod
    def _first_piece(env: torch.Tensor, num_envs: int) -> torch.Tensor:
        counts = torch.bincount(env, minlength=num_envs)
        return counts.cumsum(0) - counts

    def _initial_like(self, state: torch.Tensor) -> torch.Tensor:
        return self.initial if self.initial is not None else state.new_zeros(())

    def _unpack(self, state: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the state as torch's layers take it. Shape: (num_envs, state_size) to (num_layers, num_envs, size)."""
        layers = state.unflatten(-1, (-1, self.hidden_size)).transpose(0, 1).contiguous()
        if self.kind == "gru":
            return layers
        return layers[: self.num_layers], layers[self.num_layers :]

    def _pack(self, hidden: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        layers = hidden if isinstance(hidden, torch.Tensor) else torch.cat(hidden)
        return layers.transpose(0, 1).flatten(1)
