"""Train one DQN on several games at once, the baseline that one distilled student of several games is compared with.

    python scripts/train_joint_dqn.py --tasks CartPole-v1 Acrobot-v1

The Q-network reads which game it plays (one-hot) and the game's observation, padded with zeros to the longest; a
choice that a game does not have counts as its last. Episodes are of each game in turn. The policy with the best mean of
normalised scores is kept: (return - random) / (the game's registered threshold - random). Writes
``<output>/teacher.zip``, as ``train_dqn.py``. Needs the extra sb3.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from train_dqn import SETTINGS, write_teacher

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.config.validate import MAX_SEED
from foundation.core.errors import UserError
from foundation.core.registry import note_typed
from foundation.engines.gymnasium import find_spec
from foundation.teachers import TeacherPolicyWrapper

CFG = SETTINGS["Acrobot"]
"""Settings of DQN: of the two games the one that takes longer to learn."""
EVAL_SEED = 700_001
"""Of the episodes that choose the best policy."""


class Together(gymnasium.Env[np.ndarray, np.int64]):
    """Several games with flat observations and discrete actions as one: an episode of each in turn.

    Args:
        tasks: Their ids.
        only: Index of the one game whose episodes are played. None: all, in turn.
    """

    def __init__(self, tasks: Sequence[str], only: int | None = None):
        self.games = [gymnasium.make(find_spec(task)) for task in tasks]
        self.only = only
        self.current = -1
        self.sizes = [_flat_size(game) for game in self.games]
        self.choices = [_num_choices(game) for game in self.games]
        num_obs = len(self.games) + max(self.sizes)
        self.observation_space = spaces.Box(-np.inf, np.inf, (num_obs,), np.float32)
        self.action_space = spaces.Discrete(max(self.choices))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode of the next game."""
        super().reset(seed=seed)
        if seed is not None:
            self.current = -1
            for index, game in enumerate(self.games):
                game.reset(seed=seed + index)
        self.current = (self.current + 1) % len(self.games) if self.only is None else self.only
        obs, info = self.games[self.current].reset()
        return joint_observation(obs, self.current, len(self.games), max(self.sizes)), info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance the game of this episode."""
        own = min(int(action), self.choices[self.current] - 1)
        obs, reward, terminated, truncated, info = self.games[self.current].step(own)
        joint = joint_observation(obs, self.current, len(self.games), max(self.sizes))
        return joint, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close every game."""
        for game in self.games:
            game.close()


def joint_observation(obs: np.ndarray, index: int, num_games: int, longest: int) -> np.ndarray:
    """Put which game it is before its observations, and zeros behind them.

    Args:
        obs: Shape: (..., num_obs).
        index: Of the game.
        num_games: How many there are.
        longest: Most numbers that any of them observes.

    Returns:
        Shape: (..., num_games + longest).
    """
    joint = np.zeros((*obs.shape[:-1], num_games + longest), dtype=np.float32)
    joint[..., index] = 1.0
    joint[..., num_games : num_games + obs.shape[-1]] = obs
    return joint


def _flat_size(game: gymnasium.Env) -> int:
    space = game.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UserError(f"--tasks {_id(game)}: observations must be flat numbers, got {space}")
    return space.shape[0]


def _num_choices(game: gymnasium.Env) -> int:
    if not isinstance(game.action_space, spaces.Discrete):
        raise UserError(f"--tasks {_id(game)}: DQN needs Discrete actions, got {type(game.action_space).__name__}")
    return int(game.action_space.n)


def _id(game: gymnasium.Env) -> str:
    return "" if game.spec is None else game.spec.id


def mean_return(env: Together, act: Callable[[np.ndarray], int], num_episodes: int) -> float:
    """Return the mean of the sums of rewards of some episodes, the same ones in each call."""
    total = 0.0
    for episode in range(num_episodes):
        obs, _ = env.reset(seed=EVAL_SEED + 1000 * episode)
        ended = False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(np.int64(act(obs)))
            total += reward
            ended = terminated or truncated
    return total / num_episodes


class Judge:
    """Keeps the policy with the best mean of the games' normalised scores; a callback of Stable-Baselines3."""

    def __init__(self, model: Any, tasks: Sequence[str], folder: Path, num_episodes: int, eval_freq: int):
        self.model = model
        self.folder = folder
        self.num_episodes = num_episodes
        self.eval_freq = eval_freq
        self.envs = [Together(tasks, index) for index in range(len(tasks))]
        generator = np.random.default_rng(EVAL_SEED)
        self.random = [
            mean_return(env, lambda _, env=env: int(generator.integers(max(env.choices))), num_episodes)
            for env in self.envs
        ]
        self.solved = [_threshold(task) for task in tasks]
        self.history: list[dict[str, Any]] = []
        self.best = -np.inf

    def __call__(self, *_: Any) -> bool:
        """Evaluate where it is due; the training goes on."""
        if self.model.num_timesteps % self.eval_freq == 0:
            returns = [mean_return(env, self._act, self.num_episodes) for env in self.envs]
            ends = zip(returns, self.random, self.solved, strict=True)
            score = float(np.mean([(value - low) / (high - low) for value, low, high in ends]))
            self.history.append({"env_steps": self.model.num_timesteps, "returns": returns, "score": score})
            if score > self.best:
                self.best = score
                self.model.save(self.folder / "model.zip")
        return True

    def _act(self, obs: np.ndarray) -> int:
        return int(self.model.predict(obs, deterministic=True)[0])


def _threshold(task: str) -> float:
    threshold = find_spec(task).reward_threshold
    if threshold is None:
        raise UserError(f"--tasks {task}: it registers no reward threshold, by which games are put on one scale")
    return float(threshold)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--tasks", nargs="+", required=True, help="gymnasium ids with flat observations")
    parser.add_argument("--output", type=Path, default=Path("logs/sb3/joint"), help="folder (default: %(default)s)")
    parser.add_argument("--total_timesteps", type=int, default=150_000, help="env steps (default: %(default)s)")
    parser.add_argument("--num_eval_episodes", type=int, default=20, help="of each game (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.read(argv)
    if args.total_timesteps < CFG.eval_freq:
        raise UserError(f"--total_timesteps must be at least {CFG.eval_freq}, where it is first evaluated")
    if args.num_eval_episodes < 1:
        raise UserError(f"--num_eval_episodes must be at least 1, it is {args.num_eval_episodes}")
    if not 0 <= args.seed <= MAX_SEED:
        raise UserError(f"--seed must be between 0 and {MAX_SEED}, got {args.seed}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write the policy."""
    note_typed(sys.argv if argv is None else argv)
    args = parse(argv)
    try:
        from stable_baselines3 import DQN  # an extra
    except ImportError as error:
        raise UserError("Stable-Baselines3 trains it: pip install -e '.[sb3]' in the clone's folder") from error
    args.output.mkdir(parents=True, exist_ok=True)
    env = Together(args.tasks)
    kwargs = {"net_arch": list(CFG.net_arch)}
    model = DQN("MlpPolicy", env, policy_kwargs=kwargs, seed=args.seed, device="cpu", **CFG.options)
    judge = Judge(model, args.tasks, args.output, args.num_eval_episodes, CFG.eval_freq)
    started = time.perf_counter()
    print(f"DQN on {' and '.join(args.tasks)}: {args.total_timesteps} env steps; {args.output}", flush=True)
    model.learn(args.total_timesteps, callback=cast(Any, judge))
    write_teacher(args.output / "model.zip", args.output / "teacher.zip")
    (args.output / "history.json").write_text(json.dumps(judge.history, indent=1) + "\n", encoding="utf-8")
    best = max(judge.history, key=lambda entry: entry["score"])
    shown = ", ".join(f"{task} {value:.1f}" for task, value in zip(args.tasks, best["returns"], strict=True))
    print(f"Best after {best['env_steps']} env steps: {shown}; {time.perf_counter() - started:.0f} s")
    return 0


class JointActor:
    """The policy of one game, from one that was trained on several.

    Args:
        policy: Reads joint observations.
        index: Of the game.
        num_games: How many there are.
        num_choices: Choices of the game.
    """

    def __init__(self, policy: TeacherPolicyWrapper, index: int, num_games: int, num_choices: int):
        self.policy = policy
        self.index = index
        self.num_games = num_games
        self.num_choices = num_choices

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Nothing to forget."""

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the game's choices. Shape: (num_envs, 1)."""
        own = obs["policy"].numpy()
        joint = joint_observation(own, self.index, self.num_games, self.policy.num_obs - self.num_games)
        return self.policy.act(torch.from_numpy(joint)).clamp(max=self.num_choices - 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
