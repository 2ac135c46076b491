"""Let the PPO of RSL-RL 3.x train on the regulator from given weights; run by ``test_ppo_of_3`` with that release.

python run_rsl_rl_3.py START.pt END.pt ITERATIONS
"""

from __future__ import annotations

import sys

import torch
from rsl_rl.algorithms import PPO
from rsl_rl.modules import ActorCritic
from toy_env import RegulatorEnv

NUM_STEPS = 8


def main() -> None:
    """Train; write weights, and the losses of each iteration."""
    start, end, iterations = sys.argv[1:]
    given = torch.load(start, weights_only=True)
    env = RegulatorEnv(given["num_envs"])
    obs = env.get_observations()
    groups = {"policy": ["policy"], "critic": ["privileged"]}
    policy = ActorCritic(
        obs,
        groups,
        2,
        actor_hidden_dims=given["dims"],
        critic_hidden_dims=given["dims"],
        activation="elu",
        noise_std_type="log",
    )
    policy.load_state_dict(given["weights"])
    ppo = PPO(policy, **given["settings"])
    ppo.init_storage("rl", env.num_envs, NUM_STEPS, obs, [2])
    obs = env.reset(3)
    losses = []
    for iteration in range(int(iterations)):
        torch.manual_seed(iteration)
        with torch.inference_mode():
            for _ in range(NUM_STEPS):
                actions = ppo.act(obs)
                obs, rewards, dones, extras = env.step(actions)
                ppo.process_env_step(obs, rewards, dones, extras)
            ppo.compute_returns(obs)
        losses.append(ppo.update())
    torch.save({"weights": policy.state_dict(), "losses": losses}, end)


if __name__ == "__main__":
    main()
