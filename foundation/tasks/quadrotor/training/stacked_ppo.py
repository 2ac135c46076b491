"""PPO for many policies at once, each on its own share of the environments: actors and critics are stacked.

A small loop (Schulman et al. 2017) for teachers where no gradient comes through the simulator. Minibatches are the same
rows of every policy's share, so that each product is one batched product over all policies.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foundation.learning.adaptive_rate import adapted_rate
from foundation.tasks.quadrotor.training.bptt import PolicyStack


@dataclass
class StackedPpoCfg:
    """Settings; the defaults fly the built-in task."""

    updates: int = 250
    """Rollouts, each followed by ``epochs`` passes over it."""
    num_steps: int = 32
    """Length of a rollout."""
    epochs: int = 5
    """Passes over a rollout."""
    minibatches: int = 8
    """Parts of a pass."""
    learning_rate: float = 5e-4
    """At the start; the KL divergence steers it."""
    desired_kl: float = 0.02
    """Mean divergence between the policy before and after an update; the rate falls above twice it, rises below
    half."""
    gamma: float = 0.98
    """Discount per step."""
    lam: float = 0.95
    """Of the generalised advantage estimate."""
    clip: float = 0.2
    """Of the probability ratio."""
    init_std: float = 0.3
    """Action noise at the start."""
    min_std: float = 0.06
    """Its floor: a penalty on changing the action reduces it to zero, where learning stops."""
    max_grad_norm: float = 1.0
    """Gradients of each policy, and of each critic, are clipped to this norm."""
    critic_dims: Sequence[int] = (128, 128)
    """Hidden layers of the critics (ELU)."""
    seed: int = 0
    """Of the critics' weights, the actions' noise and the minibatches."""


class StackedPpo:
    """Fits a stack of policies in place, one rollout at a time. Environment ``i`` belongs to policy ``i % K``."""

    def __init__(self, env: Any, policies: PolicyStack, cfg: StackedPpoCfg, group: str = "policy"):
        """Train ``policies`` on ``env``, a VecEnv whose observation group ``group`` is what they read.

        Observations are taken at their scale: the first layers' weights must suit it.
        """
        self.env = env
        self.policies = policies
        self.cfg = cfg
        self.group = group
        number = policies.num_policies
        num_obs = policies.weights[0].shape[1]
        device = policies.weights[0].device
        self.critics = PolicyStack(number, num_obs, list(cfg.critic_dims), 1, seed=cfg.seed + 1).to(device)
        with torch.no_grad():  # inputs at the scale that the policies see them at
            usual = self._first_layer_scale(policies)
            self.critics.weights[0] *= usual
        self.std = nn.Parameter(torch.full((number, 1, policies.weights[-1].shape[2]), cfg.init_std, device=device))
        self._groups = [[*policies.parameters(), self.std], list(self.critics.parameters())]
        self.optimizer = torch.optim.Adam([p for group_ in self._groups for p in group_], lr=cfg.learning_rate)
        self.generator = torch.Generator(device).manual_seed(cfg.seed)
        self.updates_done = 0

    @staticmethod
    def _first_layer_scale(policies: PolicyStack) -> torch.Tensor:
        """Return how much larger or smaller than usual a policy's weights by each input are. Shape: (K, num_obs, 1)."""
        size = policies.weights[0].square().mean(2, keepdim=True).sqrt()
        return size / size.median(1, keepdim=True).values

    @property
    def finished(self) -> bool:
        """Whether all updates are done."""
        return self.updates_done >= self.cfg.updates

    def update(self) -> torch.Tensor:
        """Roll out and learn. Returns the mean reward per step of each policy. Shape: (num_policies,)."""
        data, rewards = self._rollout()
        rows = data["obs"].shape[1]
        size = rows // self.cfg.minibatches
        for _ in range(self.cfg.epochs):
            order = torch.randperm(rows, generator=self.generator, device=self.generator.device)
            for k in range(self.cfg.minibatches):
                index = order[k * size : (k + 1) * size]
                self._learn({name: value[:, index] for name, value in data.items()})
        self.updates_done += 1
        return rewards

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """Bring rows of all environments to (num_policies, envs of each, ...)."""
        return rows.view(-1, self.policies.num_policies, *rows.shape[1:]).transpose(0, 1)

    @torch.no_grad()
    def _rollout(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Collect one rollout; return its rows, (num_policies, rows, ...), and the mean rewards."""
        cfg = self.cfg
        env = self.env
        steps: dict[str, list[torch.Tensor]] = {key: [] for key in ("obs", "mean", "actions", "values")}
        rewards = []
        targets = []
        dones = []
        obs = env.get_observations()[self.group]
        for _ in range(cfg.num_steps):
            mean = self.policies(obs)
            values = self.critics(obs)[:, 0]
            noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
            std = self.std.clamp(min=cfg.min_std)[:, 0].repeat(len(mean) // len(self.std), 1)
            actions = mean + std * noise
            for key, value in zip(steps, (obs, mean, actions, values), strict=True):
                steps[key].append(value)
            observations, reward, done, extras = env.step(actions)
            obs = observations[self.group]
            # A time-out is not a failure: what would have followed is guessed from the state before.
            rewards.append(reward)
            targets.append(reward + cfg.gamma * values * extras["time_outs"])
            dones.append(done.to(reward.dtype))
        advantages = self._advantages(torch.stack(targets), torch.stack(dones), steps["values"], obs)
        rows = {key: torch.cat([self._split(value) for value in values], 1) for key, values in steps.items()}
        rows["advantages"] = torch.cat([self._split(row) for row in advantages], 1)
        rows["returns"] = rows["advantages"] + rows["values"]
        spread = rows["advantages"].std(1, keepdim=True)
        rows["advantages"] = (rows["advantages"] - rows["advantages"].mean(1, keepdim=True)) / (spread + 1e-8)
        rows["std"] = self.std.clamp(min=cfg.min_std).expand_as(rows["mean"])
        return rows, self._split(torch.stack(rewards).mean(0)).mean(1)

    @torch.no_grad()
    def _advantages(
        self, rewards: torch.Tensor, dones: torch.Tensor, values: list[torch.Tensor], last: torch.Tensor
    ) -> list[torch.Tensor]:
        """Estimate the advantages of a rollout's steps (num_steps entries of shape (num_envs,))."""
        following = self.critics(last)[:, 0]
        advantage = torch.zeros_like(values[0])
        out = []
        for reward, done, value in zip(rewards.flip(0), dones.flip(0), reversed(values), strict=True):
            delta = reward + self.cfg.gamma * following * (1 - done) - value
            advantage = delta + self.cfg.gamma * self.cfg.lam * (1 - done) * advantage
            out.append(advantage)
            following = value
        return out[::-1]

    def _learn(self, rows: dict[str, torch.Tensor]) -> None:
        """Take one optimiser step on a minibatch of rows (num_policies, size, ...)."""
        cfg = self.cfg
        interleaved = rows["obs"].transpose(0, 1).reshape(-1, rows["obs"].shape[-1])
        mean = self._split(self.policies(interleaved))
        values = self._split(self.critics(interleaved)[:, 0])
        std = self.std.clamp(min=cfg.min_std).expand_as(mean)
        before, after = (_log_density(rows["actions"], m, s) for m, s in ((rows["mean"], rows["std"]), (mean, std)))
        with torch.no_grad():
            kl = (
                (
                    torch.log(std / rows["std"])
                    + (rows["std"].square() + (rows["mean"] - mean).square()) / (2 * std.square())
                    - 0.5
                )
                .sum(-1)
                .mean()
            )
            self._adapt_learning_rate(kl.item())
        ratio = (after - before).exp()
        clipped = ratio.clamp(1 - cfg.clip, 1 + cfg.clip)
        gain = torch.minimum(ratio * rows["advantages"], clipped * rows["advantages"])
        error = (values - rows["returns"]).square()
        self.optimizer.zero_grad(set_to_none=True)
        (error - gain).mean(1).sum().backward()
        for parameters in self._groups:
            _clip(parameters, cfg.max_grad_norm)
        self.optimizer.step()

    def _adapt_learning_rate(self, kl: float) -> None:
        """Set the learning rate by the divergence."""
        group = self.optimizer.param_groups[0]
        group["lr"] = adapted_rate(group["lr"], kl, self.cfg.desired_kl)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser, random numbers and progress (the environment's state is the caller's)."""
        return {
            "policies": {name: value.clone() for name, value in self.policies.state_dict().items()},
            "critics": {name: value.clone() for name, value in self.critics.state_dict().items()},
            "std": self.std.detach().clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "updates_done": self.updates_done,
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.policies.load_state_dict(saved["policies"])
        self.critics.load_state_dict(saved["critics"])
        self.std.copy_(saved["std"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"].cpu())
        self.updates_done = saved["updates_done"]


def _log_density(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Log density of a diagonal Gaussian, up to a constant."""
    return -(0.5 * ((x - mean) / std).square() + std.log()).sum(-1)


@torch.no_grad()
def _clip(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Clip the gradients by the norm over each policy's own; one that is not finite does not move its policy."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.square().sum((1, 2)) for g in grads]).sum(0).sqrt()
    share = (max_norm / norm.clamp(min=1e-12)).clamp(max=1.0).view(-1, 1, 1)
    for grad in grads:
        grad.mul_(share).nan_to_num_(0.0, 0.0, 0.0)
