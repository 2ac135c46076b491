"""Train the shipped teacher of the gate task by backpropagation through the simulator, and write an RSL-RL checkpoint.

    python scripts/train_gate_teacher.py [--output foundation/assets/teachers/gate]

The actor sees where the gate is (group ``policy``); it is trained to have the velocity that leads through. The
checkpoint has the layout of rsl-rl-lib 5: actor, critic, a fresh optimiser; std and critic are fitted on rollouts.
``params/`` beside it says how to read it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from teacher_training.checkpoints import print_progress, write_teacher

from foundation.cli.cli_args import positive_int, seed
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.gate.gate_env import QuadcopterGateEnv, QuadcopterGateEnvCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.tasks.quadrotor.training.bptt import BpttCfg, PolicyStack, train
from foundation.tasks.quadrotor.training.critic_fit import discounted_returns, fit_critics, fit_std
from foundation.tasks.quadrotor.training.differentiable_gate import DifferentiableGate

GROUP = "policy"
CRITIC_DIMS = [128, 128]
GAMMA = 0.98


def make_env(num_envs: int, seed: int) -> QuadcopterGateEnv:
    """Build the task without its camera, which the teacher does not look at."""
    return QuadcopterGateEnv(QuadcopterGateEnvCfg(scene=SceneCfg(num_envs), seed=seed, camera=CameraCfg()))


def train_actor(args: argparse.Namespace) -> PolicyStack:
    """Fit the actor."""
    env = make_env(args.num_envs, args.seed)
    cfg = BpttCfg(
        hidden_dims=args.hidden_dims,
        horizon=args.horizon,
        updates=args.updates,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    hover = (2 * env.vehicles.hover_speed[0] - 1).item()
    task = DifferentiableGate(env)
    actor = PolicyStack(1, task.num_obs, cfg.hidden_dims, task.num_actions, bias=hover, seed=cfg.seed)

    train(task, actor, cfg, print_progress)
    return actor


@torch.no_grad()
def measure(actor: PolicyStack, num_episodes: int, seed: int) -> tuple[float, float, float]:
    """Fly the first episode of each of ``num_episodes`` environments: mean return, success rate, seconds to success."""
    env = make_env(num_episodes, seed)
    returns, passed, seconds = (torch.zeros(num_episodes) for _ in range(3))
    flying = torch.ones(num_episodes, dtype=torch.bool)
    obs = env.get_observations()
    for step in range(env.max_episode_length):
        obs, reward, dones, extras = env.step(actor(obs[GROUP]))
        returns += reward * flying
        success = extras["episode_metrics"]["success"] & flying
        passed += success
        seconds += success * (step + 1) * env.step_dt
        flying &= ~dones.bool()
    return returns.mean().item(), passed.mean().item(), (seconds.sum() / passed.sum().clamp(min=1.0)).item()


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, write."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("foundation/assets/teachers/gate"))
    parser.add_argument("--seed", type=seed, default=1)
    parser.add_argument("--num_envs", type=positive_int, default=128)
    parser.add_argument("--horizon", type=positive_int, default=50)
    parser.add_argument("--updates", type=positive_int, default=300)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--hidden_dims", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--num_episodes", type=positive_int, default=4096, help="episodes of the final measurement")
    args = parser.read(argv)
    torch.set_num_threads(1)

    start = time.process_time()
    actor = train_actor(args)
    seconds = time.process_time() - start
    std = fit_std(make_env(256, args.seed + 1), actor, GROUP)
    obs, returns = discounted_returns(make_env(256, args.seed + 2), actor, GROUP, std, GAMMA, 500, 250, args.seed + 2)
    critic, explained = fit_critics(obs, returns, CRITIC_DIMS)
    mean_return, success, duration = measure(actor, args.num_episodes, args.seed + 1000)
    path = write_teacher(args.output, actor, critic, std, QuadcopterGateEnvCfg())
    print(
        f"{args.num_episodes} episodes: return {mean_return:.2f}, success {100 * success:.2f} %, through after "
        f"{duration:.2f} s\nstd {[round(x, 4) for x in std.tolist()]}, critic explains {100 * explained.item():.1f} % "
        f"of the returns' variance\ntraining {seconds:.0f} CPU s, all {time.process_time() - start:.0f} CPU s; "
        f"{path}: {path.stat().st_size / 1e6:.2f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
