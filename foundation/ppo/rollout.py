"""Rollouts for PPO: the actor draws actions in every environment, each step is stored, the teachers label it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import VecEnv, saves_state
from foundation.engines.side_by_side import SideBySide
from foundation.policies.distribution import sample_gaussian
from foundation.policies.obs_groups import ObsSelector
from foundation.ppo.ppo import (
    Ppo,
    Transitions,
    bootstrap_time_outs,
    estimate_advantages,
    gaussian_of,
    normalised,
)
from foundation.ppo.retention import FrozenTeacher
from foundation.rollout.episodes import CollectionStats, EpisodeTracker
from foundation.rollout.stepper import Observer, Stepper

Steps = dict[str, torch.Tensor]
"""Buffers of a rollout by name. Shape of each: (num_steps, num_envs, ...)."""


class SamplingActor(Observer):
    """Draws the actions, and stores each step with the value that the critic gives it.

    Args:
        ppo: Its actor and its critic.
        actor_obs: Selects the actor's observations.
        critic_obs: Selects the critic's.
        num_steps: Env steps of a rollout.
    """

    def __init__(self, ppo: Ppo, actor_obs: ObsSelector, critic_obs: ObsSelector, num_steps: int):
        self.ppo = ppo
        self.actor_obs = actor_obs
        self.critic_obs = critic_obs
        self.num_steps = num_steps
        self.further: list[ObsSelector] = []
        """Of the teachers; what they select is stored too."""
        self.state: torch.Tensor | None = None
        """The actor's memory before the next step. Shape: (num_envs, state_size)."""
        self.critic_state: torch.Tensor | None = None
        """The critic's."""
        self.begins: torch.Tensor | None = None
        """True where the next step begins an episode; None: everywhere. Shape: (num_envs,)."""
        self.steps: Steps = {}
        self.step = 0
        self.first_states: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        """Memories before the rollout's first step."""

    def begin(self, num_envs: int, device: torch.device | str) -> None:
        """Begin a rollout."""
        self.step = 0
        if self.state is None:
            self.state = self.ppo.actor.initial_state(num_envs, device)
        if self.critic_state is None:
            self.critic_state = self.ppo.critic.initial_state(num_envs, device)
        if self.begins is None:
            self.begins = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.first_states = (_detached(self.state), _detached(self.critic_state))

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Draw actions. Shape: (num_envs, num_actions)."""
        own = self.actor_obs(obs)
        of_critic = self.critic_obs(obs)
        output, self.state = self.ppo.actor.step(own, self.state)
        mean, std = gaussian_of(output)
        drawn = sample_gaussian(mean, std, None)
        values, self.critic_state = self.ppo.critic.step(of_critic, self.critic_state)
        assert self.begins is not None
        self._store(
            obs=own,
            critic_obs=of_critic,
            actions=drawn,
            log_probs=self.ppo.distribution(output).log_prob(drawn).sum(dim=-1),
            mean=mean,
            std=std,
            values=values,
            resets=self.begins,
            **{_name(selector): selector(obs) for selector in self.further},
        )
        return drawn if output.pre_tanh is None else drawn.tanh()

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """See :class:`foundation.rollout.stepper.Observer`."""
        time_outs = extras.get("time_outs")
        values = self.steps["values"][self.step]
        if time_outs is not None:
            time_outs = time_outs.to(values.device, values.dtype)
            rewards = bootstrap_time_outs(rewards, values, time_outs, self.ppo.cfg.gamma)
        self._store(rewards=rewards, dones=dones.to(values.dtype))
        self.step += 1

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        if dones is None:
            self.state = None
            self.critic_state = None
            self.begins = None
            return
        self.begins = dones.bool()
        self.state = self.ppo.actor.reset_state(self.state, dones)
        self.critic_state = self.ppo.critic.reset_state(self.critic_state, dones)

    def last_values(self, obs: TensorDict) -> torch.Tensor:
        """Return the critic's values of the states after the rollout. Shape: (num_envs,)."""
        return self.ppo.critic.step(self.critic_obs(obs), self.critic_state)[0]

    def stored(self, selector: ObsSelector) -> torch.Tensor:
        """Return what a selector selected at every step. Shape: (num_steps, num_envs, num_obs)."""
        for known, name in ((self.actor_obs, "obs"), (self.critic_obs, "critic_obs")):
            if _name(known) == _name(selector):
                return self.steps[name]
        return self.steps[_name(selector)]

    def _store(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            if name not in self.steps or self.steps[name].shape[1:] != value.shape:
                self.steps[name] = value.new_empty((self.num_steps, *value.shape))
            self.steps[name][self.step].copy_(value)


class RolloutCollector:
    """Rolls the actor out and prepares what PPO learns from.

    Args:
        env: The environment.
        ppo: Its actor and critic are rolled out.
        actor_obs: Selects the actor's observations.
        critic_obs: Selects the critic's.
        num_steps: Env steps of a rollout, in each environment.
        random_starts: Start the environments at random times of their episodes.
        seed: Of the first reset.
    """

    def __init__(
        self,
        env: VecEnv,
        ppo: Ppo,
        actor_obs: ObsSelector,
        critic_obs: ObsSelector,
        num_steps: int,
        *,
        random_starts: bool,
        seed: int,
    ):
        self.env = env
        self.ppo = ppo
        self.num_steps = num_steps
        self.random_starts = random_starts
        self.seed = seed
        self.actor = SamplingActor(ppo, actor_obs, critic_obs, num_steps)
        self.tracker = EpisodeTracker(env.num_envs, num_steps, env.device, int(env.max_episode_length))
        self.stepper = Stepper(env, self.actor, [self.actor, self.tracker])
        self.old_envs = env.is_second if isinstance(env, SideBySide) else None
        """True for environments that run an old task; None: there are none. Shape: (num_envs,)."""

    @torch.no_grad()
    def collect(
        self, teachers: Sequence[FrozenTeacher] = (), poll: Callable[[], None] | None = None
    ) -> tuple[Transitions, CollectionStats]:
        """Run one rollout.

        Args:
            teachers: Label its states.
            poll: Called now and then; may raise to abandon the rollout.

        Returns:
            The rollout, and the whole episodes that ended in it.

        Raises:
            UserError: If the environment returns NaN or infinite numbers.
        """
        if self.stepper.obs is None:
            self._reset()
        known = {_name(self.actor.actor_obs), _name(self.actor.critic_obs)}
        others = {_name(teacher.selector): teacher.selector for teacher in teachers}
        self.actor.further = [selector for name, selector in others.items() if name not in known]
        self.actor.begin(self.env.num_envs, self.env.device)
        self.tracker.begin()
        self.stepper.run(self.num_steps, poll)
        self.tracker.drain()
        rollout = self._transitions()
        self._check_finite(rollout)
        ended = self.actor.steps["dones"][-1].bool()
        for teacher in teachers:
            rollout.targets[teacher.name] = teacher.label(self.actor.stored(teacher.selector), rollout.resets, ended)
        return rollout, self.tracker.stats([], [self.stepper.extras.get("log") or {}])

    def _reset(self) -> None:
        self.stepper.reset(self.seed)
        self.tracker.restart()
        if not self.random_starts:
            return
        buffer = self.env.episode_length_buf
        self.env.episode_length_buf = torch.randint_like(buffer, high=int(self.env.max_episode_length))
        self.stepper.obs = self.env.get_observations()
        self.tracker.cut()

    def _transitions(self) -> Transitions:
        steps = self.actor.steps
        assert self.stepper.obs is not None
        cfg = self.ppo.cfg
        estimates = estimate_advantages(
            steps["rewards"],
            steps["values"],
            steps["dones"],
            self.actor.last_values(self.stepper.obs),
            cfg.gamma,
            cfg.lam,
        )
        returns = estimates + steps["values"]
        advantages = returns - steps["values"]  # not the estimates: RSL-RL rounds here, and so do we
        if not cfg.normalize_advantage_per_mini_batch:
            advantages = normalised(advantages)
        state, critic_state = self.actor.first_states
        return Transitions(
            obs=steps["obs"],
            critic_obs=steps["critic_obs"],
            actions=steps["actions"],
            log_probs=steps["log_probs"],
            mean=steps["mean"],
            std=steps["std"],
            values=steps["values"],
            resets=steps["resets"],
            returns=returns,
            advantages=advantages,
            old_task=None if self.old_envs is None else self.old_envs.expand_as(steps["resets"]),
            state=state,
            critic_state=critic_state,
        )

    def _check_finite(self, rollout: Transitions) -> None:
        """Stop on NaN or infinity before anything is learned from it (one host sync)."""
        rewards = self.actor.steps["rewards"]
        parts = {"observations": rollout.obs, "actions": rollout.actions, "rewards": rewards}
        sums = torch.stack([torch.isfinite(part).all() for part in parts.values()])
        if bool(sums.all()):
            return
        # NaN spreads from observations to actions to rewards and on: the first step that has any shows the source.
        bad = {name: int((~torch.isfinite(part)).flatten(1).any(1).float().argmax()) for name, part in parts.items()}
        found = [name for name, fine in zip(parts, sums.tolist(), strict=True) if not fine]
        source = min(found, key=lambda name: (bad[name], list(parts).index(name)))
        whose = "the policy's actions" if source == "actions" else f"the environment's {source}"
        raise UserError(f"{whose} became NaN or infinite in step {bad[source]} of the rollout; the last save is kept")

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, the environment's own state included where it can give it."""
        begun = self.stepper.obs is not None
        state: dict[str, Any] = {"begun": begun}
        if begun and saves_state(self.env):
            state["env"] = self.env.state_dict()
            state["tracker"] = self.tracker.state_dict()
            state["begins"] = self.actor.begins
            state["actor_state"] = _detached(self.actor.state)
            state["critic_memory"] = _detached(self.actor.critic_state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore what :meth:`state_dict` returned.

        Returns:
            Whether the rollouts continue exactly where they stopped.
        """
        if not state["begun"]:
            return True
        if "env" not in state or not saves_state(self.env):
            return False
        self.env.load_state_dict(state["env"])
        self.tracker.load_state_dict(state["tracker"])
        self.actor.begins = state["begins"].to(self.env.device)
        for name, memory in (("state", state["actor_state"]), ("critic_state", state["critic_memory"])):
            setattr(self.actor, name, None if memory is None else memory.to(self.env.device))
        self.stepper.obs = self.env.get_observations()
        return True


def _name(selector: ObsSelector) -> str:
    """Name what a selector selects."""
    columns = "" if selector.obs_slice is None else f"[{selector.obs_slice[0]}:{selector.obs_slice[1]}]"
    return "+".join(selector.groups) + columns


def _detached(state: torch.Tensor | None) -> torch.Tensor | None:
    return None if state is None else state.detach().clone()
