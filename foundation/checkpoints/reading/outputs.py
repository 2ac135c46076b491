"""The meaning of a policy's raw outputs, where its file does not state it: ``distill.teacher.outputs``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch

from foundation.checkpoints.reading.loading import LoadedPolicy, Source
from foundation.config.distillation_cfg import OutputKind
from foundation.core.errors import UserError
from foundation.policies.actor_critic import ActorCritic
from foundation.policies.choices import num_choices_of
from foundation.policies.distribution import Choices, Deterministic
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork

OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)


def distribution_of(kind: str) -> Deterministic:
    """Return what turns raw outputs of a kind into actions."""
    return Deterministic() if kind == "mean" else Choices(q_values=kind == "q_values")


class ScoringNetwork(PolicyNetwork):
    """A policy that is run as it is and whose outputs are logits or Q-values, one for each choice."""

    def __init__(self, inner: PolicyNetwork, q_values: bool, sizes: Sequence[int] = ()) -> None:
        """Wrap a policy.

        Args:
            inner: Its mean is the score of each choice.
            q_values: Whether the scores are Q-values; else logits.
            sizes: Choices of each of several actions, whose scores lie side by side. Empty: there is one action.
        """
        super().__init__()
        self.inner = inner
        self.choices = Choices(q_values, sizes if len(sizes) > 1 else ())
        self.num_obs = inner.num_obs
        self.num_choices = num_choices_of(sizes or (inner.num_actions,))
        self.num_actions = len(sizes) or 1
        self.state_size = inner.state_size
        self.num_parameters = inner.num_parameters

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        return self.inner.initial_state(num_envs, device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        return self.inner.reset_state(state, dones)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        output, state = self.inner.run(obs, state, resets, sequence)
        return PolicyOutput(self.choices(output.mean)[0], logits=output.mean), state

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw a choice from an output. Shape: (..., 1)."""
        assert output.logits is not None
        return self.choices.draw(output.logits, generator)


def take_outputs_as_given(policy: LoadedPolicy, source: Source) -> LoadedPolicy:
    """Return a policy with its outputs taken as the user has said, where its file leaves that open.

    Raises:
        UserError: If the file states other outputs.
    """
    kind = source.overrides.outputs
    found = _stated(policy)
    if kind is None or kind == found:
        return policy
    network = policy.network
    open_to_choice = type(getattr(network, "distribution", None)) is Deterministic or source.overrides.run_as_is
    if kind == "mean" or found != "mean" or not open_to_choice:
        raise UserError(
            f"'{source.path}' ({policy.info.format}) states its outputs itself ({policy.info.distribution}), so that "
            f"distill.teacher.outputs={kind} contradicts it: leave it out."
        )
    distribution = Choices(q_values=kind == "q_values")
    if isinstance(network, ActorCritic):
        choosing = ActorCritic(network.actor, distribution, network.critic, network.normalizer)
        count = network.actor.num_out
    else:
        choosing = ScoringNetwork(network, distribution.q_values)
        count = network.num_actions
    info = replace(policy.info, num_actions=1, num_choices=count, distribution=distribution.name, has_std=False)
    return LoadedPolicy(choosing, info)


def _stated(policy: LoadedPolicy) -> str:
    """Return the kind of a policy's outputs as its file states it."""
    if policy.info.num_choices is None:
        return "mean"
    return "q_values" if policy.info.distribution == Choices(q_values=True).name else "logits"
