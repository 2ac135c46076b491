"""Returns from starts in the midst of a game, where no training episode begins (``rusu.py`` measures by them).

Rusu et al. (2015) evaluate from states that a human player has reached, as Nair et al. (2015) do: a policy that has
learned a sequence of actions from the few starts of a deterministic game fails there. Here a player of its own, the
teacher with every fourth choice random, acts for a random number of env steps, and the policy takes over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, LaunchRequest, VecEnv
from foundation.engines.gymnasium import GymnasiumEngine
from foundation.policies.actors import Actor, RandomActor
from foundation.rollout.evaluate import preserved_rng

NUM_EPISODES = 256
"""Episodes, one in each environment."""
MOST_STEPS = 30
"""Env steps of the player before the policy takes over: 1 to this."""
EPSILON = 0.25
"""Share of the player's choices that are random."""
SEED = 900_001
"""Of the environments, the player and the number of its env steps; far from the seeds of training and evaluation."""


@contextmanager
def opened(task: str, num_envs: int = NUM_EPISODES) -> Iterator[VecEnv]:
    """Make environments of a gymnasium id."""
    engine = GymnasiumEngine()
    with engine.launch(LaunchRequest(task, device="cpu"), lambda env_cfg, agent_cfg: None) as (env_cfg, agent_cfg):
        engine.set_common(env_cfg, num_envs=num_envs, seed=SEED, device=None)
        env = engine.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()


class Player:
    """An actor some of whose choices are random.

    Args:
        actor: Chooses the others.
        random: Chooses these.
        epsilon: Their share.
        seed: Of which they are.
    """

    def __init__(self, actor: Actor, random: Actor, epsilon: float, seed: int):
        self.actor = actor
        self.random = random
        self.epsilon = epsilon
        self.generator = torch.Generator().manual_seed(seed)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        self.actor.reset(dones)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return actions. Shape: (num_envs, num_actions)."""
        actions = self.actor.act(obs)
        explored = torch.rand(len(actions), 1, generator=self.generator) < self.epsilon
        return torch.where(explored, self.random.act(obs), actions)


def player_of(env: VecEnv, teacher: Actor, seed: int = SEED) -> Player:
    """Return the player that leads to the starts."""
    choices = EnvCapabilities.of(env).action_choices
    return Player(teacher, RandomActor(env.num_actions, seed + 1, choices=choices), EPSILON, seed + 2)


@torch.no_grad()
def returns_from_starts(
    env: VecEnv, player: Actor, actor: Actor, seed: int = SEED, most_steps: int = MOST_STEPS
) -> torch.Tensor:
    """Return the rewards that an actor collects from where the player has led it to the episode's end.

    The same seed and player give every actor the same starts. An episode that ends while the player acts counts for
    nothing: the player begins another.

    Args:
        env: On the CPU.
        player: Acts first, for 1 to ``most_steps`` env steps.
        actor: Acts from there.
        seed: Of the environments and of the number of the player's env steps.
        most_steps: See ``player``.

    Returns:
        Shape: (num_envs,).

    Raises:
        UserError: If an episode does not end.
    """
    generator = torch.Generator().manual_seed(seed)
    returns = torch.zeros(env.num_envs, dtype=torch.float64)
    ended = torch.zeros(env.num_envs, dtype=torch.bool)
    with preserved_rng("cpu"):
        obs = env.reset(seed)
        player.reset()
        actor.reset()
        steps_left = torch.randint(1, most_steps + 1, (env.num_envs,), generator=generator)
        for _ in range(2 * (int(env.max_episode_length) + 1) + 20 * most_steps):
            leading = steps_left > 0
            actions = torch.where(leading[:, None], player.act(obs), actor.act(obs))
            obs, rewards, dones, _ = env.step(actions)
            dones = dones.bool()
            returns += torch.where(leading | ended, 0.0, rewards.double())
            ended |= dones & ~leading
            if bool(ended.all()):
                return returns
            fresh = torch.randint(1, most_steps + 1, (env.num_envs,), generator=generator)
            steps_left = torch.where(leading & dones, fresh, (steps_left - 1).clamp(min=0))
            player.reset(dones)
            actor.reset(dones | (leading & (steps_left == 0)))
    raise UserError(f"an episode did not end within max_episode_length={env.max_episode_length} env steps")
