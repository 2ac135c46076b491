"""Games, losses and sizes of students of the study of small games."""

from __future__ import annotations

from dataclasses import dataclass

LOSSES = ("q_mse", "nll", "kl")
"""The three of the paper, in its order."""
SHARES = (0.25, 0.07, 0.04, 0.01, 0.003, 0.001, 0.0004, 0.0002)
"""Parameters of the student as a share of the teacher's: the paper's three, and smaller until it breaks."""
COMPRESSION_LOSS = "kl"
"""Loss of the students of all sizes: the paper's best."""
LOSS_SHARE = 0.07
"""Size of the student that the losses are compared on."""
MULTI_SHARE = 0.07
"""Size of the student of several games, of one teacher's parameters."""


FINAL_EPISODES = 64
"""Episodes from ordinary starts at the end of a run; the tables are of those from held-out starts."""


@dataclass(frozen=True)
class Game:
    """A game and how it is learned."""

    task: str
    preset: str
    """``experiment=``."""
    teacher_steps: int | None = None
    """Env steps of the teacher at most; None: as ``train_dqn.py`` has it."""
    smallest: float = 0.0
    """Smallest share of the compression."""
    overrides: tuple[str, ...] = ()
    """What a student's run has otherwise than the preset."""
    n_epochs: int | None = None
    """Epochs of a student of this game alone; None: the preset's."""

    @property
    def name(self) -> str:
        """The id without what no folder's name may hold."""
        return self.task.replace("/", "-")


SHORT = ("distill.num_episodes=16", "distill.num_eval_episodes=16")
"""Fewer episodes where they are long."""
GAMES = {
    game.task: game
    for game in (
        Game("CartPole-v1", "rusu_control"),
        Game("Acrobot-v1", "rusu_control"),
        Game("MinAtar/Breakout-v1", "rusu_minatar", 300_000, 0.01),
        Game("MinAtar/SpaceInvaders-v1", "rusu_minatar", 300_000, 0.01),
        Game("MinAtar/Asterix-v1", "rusu_minatar", 300_000, 0.01),
        # An episode has 2,500 env steps, about ten times those of the others.
        Game("MinAtar/Freeway-v1", "rusu_minatar", 200_000, 0.01, SHORT, 6),
        Game("MinAtar/Seaquest-v1", "rusu_minatar", 300_000, 0.01),
        Game("LunarLander-v3", "rusu_control"),
    )
}


@dataclass(frozen=True)
class Together:
    """Games that one student learns, and one DQN where that is affordable."""

    label: str
    tasks: tuple[str, ...]
    preset: str
    """``experiment=``."""
    num_envs: int
    """Environments of each game."""
    n_epochs: int | None = None
    """Epochs; None: the preset's."""
    joint_steps: int | None = None
    """Env steps of the DQN; None: there is none."""

    @property
    def name(self) -> str:
        """The ids in one word."""
        return "+".join(self.tasks)


CONTROL = Together("control", ("CartPole-v1", "Acrobot-v1"), "rusu_control", 32, joint_steps=50_000)
"""The joint DQN has twice the env steps that the two teachers took."""
MINATAR = Together("minatar", tuple(name for name in GAMES if name.startswith("MinAtar/")), "rusu_minatar", 16, 10)
"""Each game has the minibatches of the one with the most new transitions: in half the epochs no fewer than alone."""
TOGETHER = (CONTROL, MINATAR)


def num_parameters(num_obs: int, width: int, num_choices: int) -> int:
    """Return the parameters of a student of two hidden layers of one width."""
    return (num_obs + 1) * width + (width + 1) * width + (width + 1) * num_choices


def width_of(share: float, num_obs: int, num_choices: int, teacher: int) -> int:
    """Return the width of two hidden layers whose student comes nearest to a share of the teacher's parameters."""
    widths = range(1, 1025)
    return min(widths, key=lambda width: abs(num_parameters(num_obs, width, num_choices) - share * teacher))
