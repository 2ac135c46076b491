"""Check the engine's promises on a task of Isaac Lab 2.3, with the stand-ins in place: contract.py TASK ACTIONS."""

from __future__ import annotations

import sys

import torch

from foundation.core.registry import note_typed
from foundation.engines.base import LaunchRequest
from foundation.engines.isaaclab import IsaacLabEngine


def main(argv: list[str] | None = None) -> int:
    """Raise if a promise is broken."""
    task, num_actions = sys.argv[1], int(sys.argv[2])
    note_typed(sys.argv[1:])  # a module is imported once it was typed
    engine = IsaacLabEngine()

    def configure(env_cfg, agent_cfg):
        engine.set_common(env_cfg, num_envs=4, seed=1, device="cpu")

    with engine.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        assert (str(env_cfg.sim.device), agent_cfg.device) == ("cpu", "cpu")
        env = engine.make_env(env_cfg, agent_cfg)
        assert (env.num_envs, env.num_actions, env.max_episode_length) == (4, num_actions, 50)
        first = env.reset(5)["policy"].clone()
        torch.manual_seed(9)
        drawn = torch.rand(2)
        torch.manual_seed(9)
        assert torch.equal(env.reset(5)["policy"], first)
        assert not torch.equal(env.reset(6)["policy"], first)
        env.episode_length_buf = torch.tensor([0, 40, 0, 0])
        for step in range(1, 51):
            obs, rewards, dones, extras = env.step(torch.zeros(4, num_actions, requires_grad=True))
            assert obs is env.get_observations()
            assert obs["policy"].shape == (4, 2)
            assert rewards.shape == dones.shape == extras["time_outs"].shape == (4,)
            assert not any(t.is_inference() or t.requires_grad for t in (obs["policy"], rewards, dones))
            expected = [step == 50, step == 10, step == 50, step == 50]
            assert dones.bool().tolist() == extras["time_outs"].tolist() == expected, step
        assert env.episode_length_buf.tolist() == [0, 40, 0, 0]
        assert torch.equal(torch.rand(2), drawn), "the process's random numbers were drawn from"
        env.close()
        env.close()
    print("contract kept")
    return 0
