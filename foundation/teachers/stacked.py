"""Networks of the same shape, stacked: K of them are evaluated in one batched product per layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from foundation.accel import native_dense
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.distribution import Deterministic, Gaussian
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.output import PolicyOutput, map_output
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore

Stack = Callable[[Sequence[torch.Tensor]], nn.Parameter]


def stack_networks(networks: Sequence[PolicyNetwork]) -> StackedNetworks | LoopedNetworks:
    """Put networks side by side: in batched products where their kind allows it, else one after the other.

    Args:
        networks: Policies with the same sizes.
    """
    teachers = [network for network in networks if isinstance(network, ActorCritic) and network.is_plain]
    if len(teachers) < len(networks) or not all(_alike(teachers[0], other) for other in teachers):
        return LoopedNetworks(networks)
    return StackedNetworks(teachers)


def _alike(one: ActorCritic, other: ActorCritic) -> bool:
    """Return whether two networks differ in nothing but numbers that can be stacked."""
    if (one.critic is None) != (other.critic is None):
        return False
    towers = [(one.actor, other.actor)]
    if one.critic is not None and other.critic is not None:
        towers.append((_value_of(one), _value_of(other)))
    a = one.distribution
    b = other.distribution
    plain = Gaussian if isinstance(a, Gaussian) else None
    same_kind = type(a) is type(b) and (plain is not None or (_settings(a) == _settings(b) and not list(a.buffers())))
    return same_kind and all(_tower_shape(left) == _tower_shape(right) for left, right in towers)


def _value_of(network: ActorCritic) -> Trunk:
    """Return the layers of a plain network's critic."""
    assert network.critic is not None and network.critic.trunk is not None
    return network.critic.trunk


def _settings(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}


def _tower_shape(tower: Trunk) -> tuple[object, ...]:
    core = tower.core
    memory = None if core is None else (core.kind, core.hidden_size, core.num_layers, core.initial is None)
    layers = [str(layer) for layer in tower.layers if not isinstance(layer, RecurrentCore)]
    return memory, layers


def _stack(tensors: Sequence[torch.Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([tensor.detach() for tensor in tensors]), requires_grad=False)


def _stack_rows(tensors: Sequence[torch.Tensor]) -> nn.Parameter:
    """Stack vectors so that they broadcast over a teacher's rows. Shape: (num_teachers, 1, size)."""
    return _stack([tensor.unsqueeze(0) for tensor in tensors])


def _stack_transposed(tensors: Sequence[torch.Tensor]) -> nn.Parameter:
    """Stack weights (out, in) as (num_teachers, in, out), the order in which few rows are multiplied fastest."""
    return _stack([tensor.t() for tensor in tensors])


class StackedCore(nn.Module):
    """GRU or LSTM layers; each step is two batched products per layer. State: (num_teachers, rows, state_size)."""

    def __init__(self, cores: Sequence[RecurrentCore]) -> None:
        """Stack the layers' weights."""
        super().__init__()
        first = cores[0]
        self.kind = first.kind
        self.hidden_size = first.hidden_size
        self.num_layers = first.num_layers
        self.layers = nn.ModuleList()
        for layer in range(self.num_layers):
            weights = [core.rnn.all_weights[layer] for core in cores]
            kinds: list[Stack] = [_stack_transposed, _stack_transposed, _stack_rows, _stack_rows]
            self.layers.append(nn.ParameterList([kind([w[i] for w in weights]) for i, kind in enumerate(kinds)]))

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Advance one step. Shape of x: (num_teachers, rows, num_in)."""
        hidden = state.split(self.hidden_size, dim=-1)
        new_h: list[torch.Tensor] = []
        new_c: list[torch.Tensor] = []
        for index, layer in enumerate(self.layers):
            w_ih, w_hh, b_ih, b_hh = layer  # type: ignore[misc]  # a ParameterList of four
            inner = torch.baddbmm(b_ih, x, w_ih)
            outer = torch.baddbmm(b_hh, hidden[index], w_hh)
            if self.kind == "gru":
                (i_r, i_z, i_n) = inner.chunk(3, -1)
                (h_r, h_z, h_n) = outer.chunk(3, -1)
                update = (i_z + h_z).sigmoid()
                x = torch.lerp(torch.tanh(i_n + (i_r + h_r).sigmoid() * h_n), hidden[index], update)
            else:
                write, forget, cell, show = (inner + outer).chunk(4, -1)
                kept = forget.sigmoid() * hidden[self.num_layers + index] + write.sigmoid() * cell.tanh()
                new_c.append(kept)
                x = show.sigmoid() * kept.tanh()
            new_h.append(x)
        return x, torch.cat(new_h + new_c, dim=-1)


class StackedTower(nn.Module):
    """Normaliser, recurrent layers and dense layers of K actors or K critics."""

    def __init__(self, towers: Sequence[Trunk]) -> None:
        """Stack the weights; a tower without a normaliser gets the identity where others have one."""
        super().__init__()
        self.mean = self.scale = None
        if any(tower.normalizer is not None for tower in towers):
            moments = [_moments(tower) for tower in towers]
            self.mean = _stack_rows([m for m, _ in moments])
            self.scale = _stack_rows([s for _, s in moments])
        cores = [tower.core for tower in towers if tower.core is not None]
        self.core = StackedCore(cores) if cores else None
        self.state_size = towers[0].state_size
        layers = [[m for m in tower.layers if isinstance(m, nn.Linear)] for tower in towers]
        levels = list(zip(*layers, strict=True))
        self.weights = nn.ParameterList(
            _stack_transposed([m.weight for m in level]) for level in zip(*layers, strict=True)
        )
        self.biases = nn.ParameterList(_stack_rows([m.bias for m in level]) for level in levels)
        between = (m for m in towers[0].layers if not isinstance(m, nn.Linear | RecurrentCore))
        self.activations = nn.ModuleList(between)
        kinds = {native_dense.fused(activation) for activation in self.activations} or {0}
        self._activation = kinds.pop() if len(kinds) == 1 else -1
        self._laid_out: tuple[int, native_dense.StackedMlp] | None = None

    def run(
        self, x: torch.Tensor, state: torch.Tensor | None, with_features: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the raw output, the last hidden layer and the next state. Shape of x: (num_teachers, rows, ...)."""
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) * self.scale
        if self.core is not None:
            assert state is not None
            x, state = self.core.step(x, state)
        if self._activation >= 0 and native_dense.usable(x):
            raw, features = self._native()(x, with_features)
            return raw, x if features is None else features, state
        for weight, bias, activation in zip(self.weights[:-1], self.biases[:-1], self.activations, strict=True):
            x = activation(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1]), x, state

    def _native(self) -> native_dense.StackedMlp:
        """Return the layers as C code has them, laid out when they are first used or have moved."""
        place = self.weights[0].data_ptr()
        if self._laid_out is None or self._laid_out[0] != place:
            layers = native_dense.StackedMlp(list(self.weights), list(self.biases), self._activation)
            self._laid_out = place, layers
        return self._laid_out[1]


def _moments(tower: Trunk) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is subtracted and what is multiplied by. Shape of both: (num_obs,)."""
    normalizer = tower.normalizer
    if normalizer is None:
        device = tower.head.weight.device
        return torch.zeros(tower.num_obs, device=device), torch.ones(tower.num_obs, device=device)
    # The scale is what the normaliser makes of one above its mean: in float64, as a large mean swallows the one.
    assert isinstance(normalizer, ObsNormalizer)  # the network is plain
    exact = copy.deepcopy(normalizer).double()
    return normalizer.mean, exact(exact.mean + 1.0).to(normalizer.mean.dtype)


class StackedNetworks(nn.Module):
    """K teachers of the same shape as one module over (num_teachers, rows, ...)."""

    def __init__(self, networks: Sequence[ActorCritic]) -> None:
        """Stack the networks, which are not needed afterwards."""
        super().__init__()
        self.actor = StackedTower([network.actor for network in networks])
        critics = [_value_of(network) for network in networks if network.critic is not None]
        self.critic = StackedTower(critics) if critics else None
        self.with_value = self.critic is not None
        self.with_features: bool = True
        """Whether outputs carry the last hidden layer; off where it is not needed, which saves copies."""
        self.distribution: Deterministic = networks[0].distribution
        if isinstance(self.distribution, Gaussian):
            self.distribution = Gaussian(_stack_rows([n.distribution.std for n in networks]).data)  # type: ignore[arg-type]
        self.sizes = [self.actor.state_size, 0 if self.critic is None else self.critic.state_size]
        self.state_size = sum(self.sizes)
        self.num_teachers = len(networks)

    def step(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Advance every row of every teacher. Shapes: (num_teachers, rows, num_obs or state_size)."""
        actor_state = critic_state = None
        if state is not None:
            actor_state, critic_state = state.split(self.sizes, dim=-1)
        raw, features, actor_state = self.actor.run(x, actor_state, self.with_features)
        value = None
        if self.critic is not None and self.with_value:
            value, _, critic_state = self.critic.run(x, critic_state, False)
        mean, std = self.distribution(raw)
        if state is not None:
            state = torch.cat([part for part in (actor_state, critic_state) if part is not None], dim=-1)
        return PolicyOutput(mean=mean, std=std, value=value, features=features if self.with_features else None), state

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions from an output's distribution. Shape: (rows, num_actions)."""
        return self.distribution.sample(output.mean, output.std, generator)

    def initial_states(self, device: torch.device | str | None) -> torch.Tensor | None:
        """Return each teacher's state at an episode's start. Shape: (num_teachers, state_size)."""
        return torch.zeros(self.num_teachers, self.state_size, device=device) if self.state_size else None


class LoopedNetworks(nn.Module):
    """K policies of kinds that cannot be stacked, one after the other: K times the calls of one, and no more."""

    def __init__(self, networks: Sequence[PolicyNetwork]) -> None:
        """Keep the policies."""
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.policies = list(networks)
        """The same, typed."""
        self.state_size = networks[0].state_size
        self.with_features: bool = True

    @property
    def with_value(self) -> bool:
        """Whether outputs carry the value."""
        return all(policy.with_value for policy in self.policies)

    @with_value.setter
    def with_value(self, wanted: bool) -> None:
        for policy in self.policies:
            policy.with_value = wanted

    def step(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Advance every row of every teacher. Shapes: (num_teachers, rows, num_obs or state_size)."""
        outputs: list[PolicyOutput] = []
        states: list[torch.Tensor] = []
        for index, policy in enumerate(self.policies):
            output, new_state = policy.step(x[index], None if state is None else state[index])
            outputs.append(output)
            if new_state is not None:
                states.append(new_state)
        output = map_output(lambda *parts: torch.stack(parts), *outputs)
        output = output if self.with_features else output._replace(features=None)
        return output, torch.stack(states) if self.state_size else None

    def initial_states(self, device: torch.device | str | None) -> torch.Tensor | None:
        """Return each teacher's state at an episode's start. Shape: (num_teachers, state_size)."""
        states = [policy.initial_state(1, device) for policy in self.policies]
        known = [state for state in states if state is not None]
        return torch.cat(known) if known else None

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions from the first policy's distribution. Shape: (rows, num_actions)."""
        return self.policies[0].sample(output, generator)
