"""Proximal policy optimisation (Schulman et al. 2017) of a student.

RSL-RL's own PPO is not extended, for three reasons. Its loss is one long method: a term can be added only by copying
the method, once for each family of releases. Its networks keep their memory inside: a history or a TCN student, or a
frozen recurrent teacher on the same batch, does not fit in. And a run can be resumed exactly only if all of the state
can be saved. So this is the same algorithm, in the same order and with the same random draws, on policies whose memory
is passed in and returned; tests compare it with RSL-RL's on the same batch and on the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from foundation.config.agent_cfg import PPOAlgorithmCfg
from foundation.core.errors import UserError, suggest
from foundation.learning.adaptive_rate import adapted_rate
from foundation.learning.optimizers import OPTIMIZERS
from foundation.policies.output import PolicyOutput, map_output
from foundation.ppo.critic import ValueFunction
from foundation.students.base import Student


@dataclass
class Transitions:
    """A rollout, or a minibatch of it. Leading shape: (num_steps, num_envs), of a flat minibatch (batch_size,)."""

    obs: torch.Tensor
    """The actor's observations. Shape: (..., num_obs)."""
    critic_obs: torch.Tensor
    """The critic's observations. Shape: (..., num_critic_obs)."""
    actions: torch.Tensor
    """Samples from the policy's Gaussian, before tanh if it is squashed. Shape: (..., num_actions)."""
    log_probs: torch.Tensor
    """Log-probability of the actions under the policy that sampled them. Shape: (...)."""
    mean: torch.Tensor
    """Mean of the Gaussian that they were sampled from. Shape: (..., num_actions)."""
    std: torch.Tensor
    """Standard deviation of that Gaussian. Shape: (..., num_actions)."""
    values: torch.Tensor
    """Values that the critic predicted during the rollout. Shape: (...)."""
    resets: torch.Tensor
    """True where a step begins an episode. Shape: (...)."""
    returns: torch.Tensor
    """Targets of the critic: values plus advantages. Shape: (...)."""
    advantages: torch.Tensor
    """Generalised advantage estimates. Shape: (...)."""
    targets: dict[str, PolicyOutput] = field(default_factory=dict)
    """Outputs of the frozen teachers on the same states, by their names."""
    old_task: torch.Tensor | None = None
    """True where an old task runs beside the new one. Shape: (...). None: nowhere."""
    state: torch.Tensor | None = None
    """The actor's memory before the first step. Shape: (num_envs, state_size)."""
    critic_state: torch.Tensor | None = None
    """The critic's memory before the first step. Shape: (num_envs, critic_state_size)."""

    def flat(self) -> Transitions:
        """Return all steps of all environments in one dimension."""
        return self._map(lambda tensor: tensor.flatten(0, 1))

    def rows(self, index: torch.Tensor) -> Transitions:
        """Return some transitions of a flat batch. Shape of index: (num_transitions,)."""
        return self._map(lambda tensor: tensor[index])

    def envs(self, part: slice) -> Transitions:
        """Return all steps of some environments, with their memory before the first step."""
        state = None if self.state is None else self.state[part]
        critic_state = None if self.critic_state is None else self.critic_state[part]
        return replace(self._map(lambda tensor: tensor[:, part]), state=state, critic_state=critic_state)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Transitions:
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        tensors = {name: function(value) for name, value in values.items() if name not in _OTHER and value is not None}
        targets = {name: map_output(function, output) for name, output in self.targets.items()}
        return Transitions(**tensors, targets=targets)


_OTHER = ("targets", "state", "critic_state")


def gaussian_of(output: PolicyOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the Gaussian that actions are sampled from; of a squashed one, before tanh.

    PPO works before tanh, which is the same for the old and the new policy: neither the ratio of their probabilities
    nor their KL divergence depends on it. Shape of both: (..., num_actions).
    """
    if output.pre_tanh is not None:
        mean, std = output.pre_tanh.chunk(2, dim=-1)
        return mean, std
    assert output.std is not None
    return output.mean, output.std


def bootstrap_time_outs(
    rewards: torch.Tensor, values: torch.Tensor, time_outs: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Add ``gamma * value`` to the last reward of timed-out episodes, in place of the rewards that were cut off.

    The value is that of the state before the last step, as in RSL-RL: the next observation is of the next episode.
    Shape of all: (...).
    """
    return rewards + gamma * (values * time_outs)


def estimate_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    dones: torch.Tensor,
    last_values: torch.Tensor,
    gamma: float,
    lam: float,
) -> torch.Tensor:
    """Return the generalised advantage estimates (Schulman et al. 2016, eq. 16), not normalised.

    Args:
        rewards: With time-outs bootstrapped. Shape: (num_steps, num_envs).
        values: Of the states that were acted on. Shape: (num_steps, num_envs).
        dones: 1.0 where the step ended an episode. Shape: (num_steps, num_envs).
        last_values: Of the states after the last step. Shape: (num_envs,).
        gamma: Discount per env step.
        lam: Decay of the estimate.
    """
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(last_values)
    following = last_values
    for step in reversed(range(rewards.shape[0])):
        not_done = 1.0 - dones[step]
        delta = rewards[step] + not_done * gamma * following - values[step]
        advantage = delta + not_done * gamma * lam * advantage
        advantages[step] = advantage
        following = values[step]
    return advantages


def normalised(advantages: torch.Tensor) -> torch.Tensor:
    """Return advantages of mean 0 and standard deviation 1."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def surrogate_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return the clipped surrogate objective, to be minimised (Schulman et al. 2017, eq. 7). Shapes: (batch,)."""
    ratio = torch.exp(log_probs - old_log_probs)
    surrogate = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1.0 - clip, 1.0 + clip)
    return torch.max(surrogate, clipped).mean()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """Return the mean squared error of the values; with ``clip``, the larger of it and the clipped values' error."""
    if clip is None:
        return (returns - values).pow(2).mean()
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.max((values - returns).pow(2), (clipped - returns).pow(2)).mean()


class PolicyTerms(Protocol):
    """Terms beside PPO's in the loss of the policy."""

    @property
    def replaces_ppo(self) -> bool:
        """Whether PPO's own loss has no share in the policy's."""
        ...

    def combine(self, policy_loss: torch.Tensor, batch: Transitions, output: PolicyOutput) -> torch.Tensor:
        """Return the whole loss of the policy.

        Args:
            policy_loss: PPO's surrogate and entropy.
            batch: The minibatch.
            output: The policy's outputs on it, with their gradients.
        """
        ...


class Ppo:
    """Updates an actor and a critic on rollouts.

    Args:
        actor: A student with a standard deviation; changed in place.
        critic: The value function; changed in place.
        cfg: PPO's settings, as RSL-RL has them.
        min_std: Floor of a standard deviation that does not depend on the state [action units]; 0: none.
    """

    def __init__(self, actor: Student, critic: ValueFunction, cfg: PPOAlgorithmCfg, min_std: float = 0.0):
        if cfg.optimizer not in OPTIMIZERS:
            raise UserError(f"agent.algorithm.optimizer is '{cfg.optimizer}'. {suggest(cfg.optimizer, OPTIMIZERS)}")
        if cfg.schedule not in ("adaptive", "fixed"):
            raise UserError(
                f"agent.algorithm.schedule is '{cfg.schedule}'. {suggest(cfg.schedule, ('adaptive', 'fixed'))}"
            )
        self.actor = actor
        self.critic = critic
        self.cfg = cfg
        self.min_std = min_std
        self.learning_rate = cfg.learning_rate
        self.optimizer = OPTIMIZERS[cfg.optimizer](chain(actor.parameters(), critic.parameters()), lr=cfg.learning_rate)

    @property
    def in_sequences(self) -> bool:
        """Whether minibatches are whole rollouts of some environments, because actor or critic has memory."""
        return bool(self.actor.state_size or self.critic.state_size)

    def distribution(self, output: PolicyOutput) -> Normal:
        """Return the distribution that actions are sampled from. Shape: (..., num_actions)."""
        return Normal(*gaussian_of(output), validate_args=False)

    def update(
        self,
        rollout: Transitions,
        terms: PolicyTerms | None = None,
        *,
        critic_rate: float | None = None,
        poll: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        """Learn from a rollout.

        Args:
            rollout: With returns and advantages, these normalised unless that is done in each minibatch.
            terms: Terms beside PPO's in the policy's loss. None: PPO's alone.
            critic_rate: Learning rate for an update of the critic alone. None: actor and critic learn.
            poll: Called once per minibatch; may raise to abandon the update.

        Returns:
            Means of the losses over the minibatches: surrogate, value, entropy, and kl, the divergence from the policy
            of the rollout.

        Raises:
            UserError: If a weight became NaN or infinite.
        """
        self._set_rate(self.learning_rate if critic_rate is None else critic_rate)
        sums: dict[str, torch.Tensor] = {}
        number = 0
        for batch in self._minibatches(rollout):
            for name, value in self._step(batch, terms, critic_rate is None).items():
                sums[name] = sums[name] + value if name in sums else value
            number += 1
            if poll is not None:
                poll()
        self._check_finite()
        return {name: float(total) / number for name, total in sums.items()}

    def losses(self, batch: Transitions) -> tuple[PolicyOutput, dict[str, torch.Tensor]]:
        """Return the actor's outputs on a minibatch and PPO's losses, with their gradients.

        Returns:
            The outputs, and ``surrogate``, ``value`` and ``entropy``, means over the batch.
        """
        output = self._act(batch)
        distribution = self.distribution(output)
        advantages = batch.advantages
        if self.cfg.normalize_advantage_per_mini_batch:
            advantages = normalised(advantages)
        log_probs = distribution.log_prob(batch.actions).sum(dim=-1)
        clip = self.cfg.clip_param if self.cfg.use_clipped_value_loss else None
        return output, {
            "surrogate": surrogate_loss(log_probs, batch.log_probs, advantages, self.cfg.clip_param),
            "value": value_loss(self._value(batch), batch.values, batch.returns, clip),
            "entropy": distribution.entropy().sum(dim=-1).mean(),
        }

    def _act(self, batch: Transitions) -> PolicyOutput:
        if batch.obs.dim() == 2:
            return self.actor.step(batch.obs, None)[0]
        return self.actor.sequence(batch.obs, batch.state, batch.resets)[0]

    def _value(self, batch: Transitions) -> torch.Tensor:
        if batch.critic_obs.dim() == 2:
            return self.critic.step(batch.critic_obs, None)[0]
        return self.critic.sequence(batch.critic_obs, batch.critic_state, batch.resets)[0]

    def _minibatches(self, rollout: Transitions) -> Iterator[Transitions]:
        """Yield the minibatches of all epochs: shuffled once, as in RSL-RL; with memory, groups of environments."""
        number = self.cfg.num_mini_batches
        steps, num_envs = rollout.log_probs.shape
        if self.in_sequences:
            size = num_envs // number
            if size == 0:
                raise UserError(
                    f"agent.algorithm.num_mini_batches is {number} and a policy with memory needs as many "
                    f"environments; there are {num_envs}: give more --num_envs, or fewer minibatches"
                )
            for _ in range(self.cfg.num_learning_epochs):
                for index in range(number):
                    yield rollout.envs(slice(index * size, (index + 1) * size))
            return
        size = steps * num_envs // number
        order = torch.randperm(number * size, device=rollout.log_probs.device)
        flat = rollout.flat()
        for _ in range(self.cfg.num_learning_epochs):
            for index in range(number):
                yield flat.rows(order[index * size : (index + 1) * size])

    def _step(self, batch: Transitions, terms: PolicyTerms | None, train_actor: bool) -> dict[str, torch.Tensor]:
        """Take one optimiser step on a minibatch; return its losses."""
        if not train_actor:
            clip = self.cfg.clip_param if self.cfg.use_clipped_value_loss else None
            loss = value_loss(self._value(batch), batch.values, batch.returns, clip)
            self._descend(self.cfg.value_loss_coef * loss)
            return {"value": loss.detach()}
        output, losses = self.losses(batch)
        # The rule bounds PPO's steps. Distillation has to move the policy, as far as its teachers are away.
        adapts = terms is None or not terms.replaces_ppo
        losses["kl"] = self._adapt_learning_rate(batch, output, adapts)
        policy_loss = losses["surrogate"] - self.cfg.entropy_coef * losses["entropy"]
        if terms is not None:
            policy_loss = terms.combine(policy_loss, batch, output)
        self._descend(policy_loss + self.cfg.value_loss_coef * losses["value"])
        self._floor_std()
        return {name: value.detach() for name, value in losses.items()}

    def _descend(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        for network in (self.actor, self.critic):
            nn.utils.clip_grad_norm_(network.parameters(), self.cfg.max_grad_norm)
        self.optimizer.step()

    @torch.no_grad()
    def _adapt_learning_rate(self, batch: Transitions, output: PolicyOutput, adapts: bool) -> torch.Tensor:
        """Return the KL of the policy from that of the rollout, and adapt the learning rate to it if that is asked."""
        before = Normal(batch.mean, batch.std, validate_args=False)
        kl = kl_divergence(before, self.distribution(output)).sum(dim=-1).mean()
        desired = self.cfg.desired_kl
        if self.cfg.schedule != "adaptive" or not desired or not adapts:
            return kl
        self.learning_rate = adapted_rate(self.learning_rate, float(kl), desired)
        self._set_rate(self.learning_rate)
        return kl

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _floor_std(self) -> None:
        if self.min_std <= 0.0:
            return
        for name, value in self.actor.named_parameters():  # a part of one task alone has its own
            if name.rpartition(".")[2] == "log_std" and value.requires_grad:
                value.clamp_(min=math.log(self.min_std))

    def _check_finite(self) -> None:
        finite = [torch.isfinite(p).all() for p in chain(self.actor.parameters(), self.critic.parameters())]
        if not bool(torch.stack(finite).all()):
            raise UserError(
                f"a weight became NaN or infinite: lower agent.algorithm.learning_rate (now {self.learning_rate:g}), "
                "or look for very large rewards. The last good checkpoint is kept."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the critic, the optimiser and its learning rate; the run saves the actor itself."""
        return {
            "critic_state_dict": self.critic.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "ppo_learning_rate": self.learning_rate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.critic.load_state_dict(state["critic_state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.learning_rate = float(state["ppo_learning_rate"])
