"""The memory of a policy: one tensor, environments first, split among its layers with memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from foundation.policies.layers import Layers, Memory, Window


class EpisodeState(nn.Module):
    """Base of policies with or without memory: zeros at an episode's start, unless ``initial_state`` is overridden."""

    state_size: int = 0
    """Numbers that are remembered per env; 0 without memory."""

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start: zeros. Shape: (num_envs, state_size), None without memory."""
        if not self.state_size:
            return None
        own = next((parameter.device for parameter in self.parameters()), None)
        return torch.zeros(num_envs, self.state_size, device=device or own)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        if state is None:
            return None
        initial: torch.Tensor | None = state.new_zeros(())
        if type(self).initial_state is not EpisodeState.initial_state:
            initial = self.initial_state(1, state.device)  # the same for every env
            assert initial is not None
        return torch.where(dones.bool().unsqueeze(-1), initial, state)


class MemoryLayer(EpisodeState):
    """A layer that remembers: its memory is passed in and returned.

    A subclass sets ``state_size`` and makes :meth:`step`. One that can take many steps at once faster than one after
    the other also makes :meth:`sequence`.
    """

    def step(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Advance one step.

        Args:
            x: Shape: (num_envs, num_in).
            state: Shape: (num_envs, state_size). None: there is no memory.

        Returns:
            The output, shape (num_envs, num_out), and the next state.
        """
        raise TypeError(f"{type(self).__name__} does not define step")

    def sequence(
        self, x: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Advance many steps: :meth:`step` repeated, the memory reset where an episode begins.

        Args:
            x: Shape: (num_steps, num_envs, num_in).
            state: State before the first step. Shape: (num_envs, state_size). None: there is no memory.
            resets: True where a step begins an episode. Shape: (num_steps, num_envs). None: nowhere.

        Returns:
            The outputs, shape (num_steps, num_envs, num_out), and the state after the last step.
        """
        outputs: list[torch.Tensor] = []
        for index in range(len(x)):
            state = state if resets is None else self.reset_state(state, resets[index])
            output, state = self.step(x[index], state)
            outputs.append(output)
        return torch.stack(outputs), state


class SlidingWindow(MemoryLayer):
    """The last ``length`` inputs, concatenated, oldest first; before an episode's start they are zero."""

    def __init__(self, num_in: int, length: int) -> None:
        """Set the sizes.

        Args:
            num_in: Number of inputs.
            length: Inputs seen at once [steps], the newest included.
        """
        super().__init__()
        self.num_in = num_in
        self.length = length
        self.state_size = (length - 1) * num_in

    def step(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Append the newest. Shape: (num_envs, num_in) to (num_envs, length * num_in)."""
        window = x if state is None else torch.cat([state, x], dim=-1)
        return window, window[:, self.num_in :] if self.state_size else None

    def sequence(
        self, x: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the window of every step. Shape: (num_steps, num_envs, num_in) to (..., length * num_in)."""
        steps = x.shape[0]
        back = self.length - 1
        if state is not None:
            past = state.unflatten(-1, (back, self.num_in)).transpose(0, 1)
            x = torch.cat([past, x])
        windows = x.unfold(0, self.length, 1).transpose(-1, -2)  # (num_steps, num_envs, length, num_in)
        if resets is not None and back:
            time = torch.arange(steps, device=x.device).unsqueeze(1)
            begun = torch.where(resets.bool(), time, -back).cummax(0).values  # when the running episode began
            source = time.unsqueeze(-1) + torch.arange(-back, 1, device=x.device)
            windows = windows * (source >= begun.unsqueeze(-1)).unsqueeze(-1).to(x.dtype)
        return windows.flatten(-2), windows[-1, :, 1:].flatten(1) if self.state_size else None

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        initial = torch.zeros(self.state_size)
        return layers.add(
            Window(
                name=name,
                inputs=(x,),
                shape=(self.length * self.num_in,),
                memory=(Memory(start=layers.reserve(self.state_size), initial=initial),) if self.state_size else (),
                length=self.length,
            )
        )


class Skip(nn.Module):
    """Marker: the first layer's input is appended to the next layer's."""


class Taps:
    """The outputs of chosen layers in one run of a policy.

    Args:
        layers: In the order in which their outputs are wanted.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self._layers = list(layers)
        self._seen: dict[int, torch.Tensor] = {}

    def see(self, layer: nn.Module, x: torch.Tensor) -> None:
        """Take a layer's output, if it is one of those."""
        self._seen[id(layer)] = x

    def through(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return a layer's output, and take those of the layers inside it."""
        if type(layer) is not nn.Sequential:  # a class derived from it may compute something else
            return layer(x)
        for inner in layer:
            x = inner(x)
            self.see(inner, x)
        return x

    def output(self, layer: nn.Module) -> torch.Tensor:
        """Return the output of a layer that was run."""
        return self._seen[id(layer)]

    def side_by_side(self) -> torch.Tensor:
        """Return the outputs. Shape: (..., sum of their sizes)."""
        outputs = [self._seen[id(layer)] for layer in self._layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def run_layers(
    layers: Iterable[nn.Module],
    x: torch.Tensor,
    state: torch.Tensor | None,
    resets: torch.Tensor | None,
    sequence: bool,
    head: int = -1,
    taps: Taps | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Run layers in order, for one step or for many; each that remembers has its columns of the state.

    Args:
        layers: Stateless modules, :class:`MemoryLayer` and :class:`Skip`.
        x: Shape: (num_envs, num_in), with ``sequence`` (num_steps, num_envs, num_in).
        state: State before the first step. Shape: (num_envs, state_size). None: there is no memory.
        resets: True where a step begins an episode. Shape: (num_steps, num_envs). None: nowhere.
        sequence: Whether there is a dimension of steps.
        head: The layer whose input is the last hidden layer. -1: the last layer's output is.
        taps: Takes the outputs of these layers, and of those inside an ``nn.Sequential`` among them.

    Returns:
        The last layer's output, the last hidden layer, and the state after the last step.
    """
    given = x
    features = None
    start = 0
    after: list[torch.Tensor] = []
    for index, layer in enumerate(layers):
        if index == head:
            features = x
        if isinstance(layer, MemoryLayer):
            own = state
            if state is not None and layer.state_size != state.shape[-1]:
                own = state[..., start : start + layer.state_size]
                start += layer.state_size
            x, own = layer.sequence(x, own, resets) if sequence else layer.step(x, own)
            if own is not None:
                after.append(own)
        elif isinstance(layer, Skip):
            x = torch.cat([x, given], dim=-1)
        else:
            x = layer(x) if taps is None else taps.through(layer, x)
        if taps is not None:
            taps.see(layer, x)
    if after:
        state = after[0] if len(after) == 1 else torch.cat(after, dim=-1)
    return x, x if features is None else features, state


def initial_state_of(
    layers: Iterable[nn.Module], num_envs: int, device: torch.device | str | None
) -> torch.Tensor | None:
    """Return the memory of layers at an episode's start, as :func:`run_layers` takes it.

    Args:
        layers: As there.
        num_envs: Number of environments.
        device: None: that of the layers' own weights.
    """
    states = [layer.initial_state(num_envs, device) for layer in layers if isinstance(layer, MemoryLayer)]
    known = [state for state in states if state is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else torch.cat(known, dim=-1)


def reset_state_of(layers: Sequence[MemoryLayer], state: torch.Tensor, dones: torch.Tensor) -> torch.Tensor | None:
    """Return the memory of layers with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
    if len(layers) == 1:
        return layers[0].reset_state(state, dones)
    parts = state.split([layer.state_size for layer in layers], dim=-1)
    fresh = [layer.reset_state(part, dones) for layer, part in zip(layers, parts, strict=True)]
    return torch.cat([part for part in fresh if part is not None], dim=-1)
