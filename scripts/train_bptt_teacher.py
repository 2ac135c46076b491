"""Train the shipped teacher by backpropagation through the built-in simulator, and write an RSL-RL checkpoint.

    python scripts/train_bptt_teacher.py [--output foundation/assets/teachers/point_ctrl]

A few CPU minutes, in three stages. The actor is trained on the full state; then with noise on the motor speeds, so that
it does not lean on what a student without motor-speed sensors cannot know; then its steady-state offset is measured and
taken out of the first layer's bias.

The checkpoint has the layout of rsl-rl-lib 5 (``OnPolicyRunner.load`` reads it): actor, critic, a fresh optimiser; std
and critic are fitted on rollouts. ``params/`` beside it says how to read it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from teacher_training.checkpoints import print_progress, write_teacher

from foundation.cli.cli_args import positive_int, seed
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.tasks.quadrotor.training.bptt import BpttCfg, PolicyStack, train
from foundation.tasks.quadrotor.training.critic_fit import discounted_returns, fit_critics, fit_std
from foundation.tasks.quadrotor.training.differentiable import DifferentiablePointCtrl

GROUP = "policy"
CRITIC_DIMS = [128, 128]
"""Smaller than the actor, so that the checkpoint stays below 1 MB."""


def make_env(num_envs: int, seed: int, episode_length_s: float = 5.0) -> QuadcopterPointCtrlEnv:
    """Build the default task."""
    return QuadcopterPointCtrlEnv(
        QuadcopterPointCtrlEnvCfg(scene=SceneCfg(num_envs), seed=seed, episode_length_s=episode_length_s)
    )


@torch.no_grad()
def measure(policy: Any, num_episodes: int, seed: int) -> dict[str, float]:
    """Fly one whole episode in each of ``num_episodes`` environments."""
    env = make_env(num_episodes, seed)
    returns, errors, survived = (torch.zeros(num_episodes) for _ in range(3))
    flying = torch.ones(num_episodes, dtype=torch.bool)
    obs = env.get_observations()
    for _ in range(env.max_episode_length):
        obs, reward, dones, extras = env.step(policy(obs[GROUP]))
        returns += reward * flying
        ended = dones.bool() & flying
        errors = torch.where(ended, extras["episode_metrics"]["position_error"], errors)
        survived += ended & extras["time_outs"]
        flying &= ~ended
    return {
        "return": returns.mean().item(),
        "survival": survived.mean().item(),
        "position_error": errors.mean().item(),
    }


def train_actor(args: argparse.Namespace) -> PolicyStack:
    """Fit the actor on the full state, then with noise on its motor speeds, then take its steady offset out."""
    env = make_env(args.num_envs, args.seed)
    cfg = BpttCfg(horizon=args.horizon, updates=args.updates, seed=args.seed)
    hover = (2 * env.vehicles.hover_speed[0] - 1).item()
    actor = PolicyStack(1, env.get_observations()[GROUP].shape[1], cfg.hidden_dims, 4, bias=hover, seed=cfg.seed)

    train(DifferentiablePointCtrl(env), actor, cfg, print_progress)
    if args.noise_updates:
        print(f"now with noise of {args.motor_noise:g} on the motor speeds")
        noisy = DifferentiablePointCtrl(make_env(args.num_envs, args.seed), motor_noise=args.motor_noise)
        cfg = BpttCfg(
            horizon=args.horizon,
            updates=args.noise_updates,
            learning_rate=5e-4,
            final_learning_rate=1e-5,
            seed=args.seed,
        )
        train(noisy, actor, cfg, print_progress)
    for _ in range(3):
        remove_offset(actor, args.seed)
    return actor


@torch.no_grad()
def remove_offset(actor: PolicyStack, seed: int, num_episodes: int = 1024) -> None:
    """Shift the first layer by the mean position, body frame, that the actor comes to rest at, if it ever does."""
    env = make_env(num_episodes, seed + 76)
    last_second = round(1.0 / env.step_dt)
    obs = env.get_observations()[GROUP]
    rest = torch.zeros(num_episodes, 3)
    for step in range(env.max_episode_length - 1):
        if step >= env.max_episode_length - last_second:
            rest += obs[:, :3] / (last_second - 1)
        obs = env.step(actor(obs))[0][GROUP]
    arrived = rest.norm(dim=1) < 0.1
    offset = rest[arrived].sum(0) / max(1, int(arrived.sum()))
    actor.biases[0][0, 0] += offset @ actor.weights[0][0, :3]


def main(argv: list[str] | None = None) -> int:
    """Train, measure, write."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("foundation/assets/teachers/point_ctrl"))
    parser.add_argument("--seed", type=seed, default=1)
    parser.add_argument("--num_envs", type=positive_int, default=128)
    parser.add_argument("--horizon", type=positive_int, default=50)
    parser.add_argument("--updates", type=positive_int, default=600)
    parser.add_argument("--motor_noise", type=float, default=0.05, help="std of the second stage's noise (2u - 1)")
    parser.add_argument("--noise_updates", type=int, default=250, help="updates of the second stage; 0 leaves it out")
    parser.add_argument("--num_episodes", type=positive_int, default=4096, help="episodes of the final measurement")
    args = parser.read(argv)
    torch.set_num_threads(1)

    start = time.process_time()
    actor = train_actor(args)
    seconds = time.process_time() - start
    std = fit_std(make_env(512, args.seed + 1), actor, GROUP)
    gamma = QuadcopterPointCtrlPPORunnerCfg().algorithm.gamma
    obs, returns = discounted_returns(
        make_env(512, args.seed + 2, episode_length_s=30.0), actor, GROUP, std, gamma, 500, 250, args.seed + 2
    )
    critic, explained = fit_critics(obs, returns, CRITIC_DIMS)
    score = measure(actor, args.num_episodes, args.seed + 1000)
    path = write_teacher(args.output, actor, critic, std, QuadcopterPointCtrlEnvCfg())
    print(
        f"{args.num_episodes} episodes: return {score['return']:.1f}, survival {100 * score['survival']:.2f} %, "
        f"position error in the last second {100 * score['position_error']:.2f} cm\n"
        f"std {[round(x, 4) for x in std.tolist()]}, critic explains {100 * explained.item():.1f} % of the returns' "
        "variance\n"
        f"training {seconds:.0f} CPU s, all {time.process_time() - start:.0f} CPU s; "
        f"{path}: {path.stat().st_size / 1e6:.2f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
