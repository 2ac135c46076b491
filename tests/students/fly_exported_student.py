"""Load exported students with the installed RSL-RL's own runner: VERSION FOLDER. Run by test_rsl_rl_export.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

ENVS, OBS, ACTIONS = 6, 9, 3


class Env:
    """Random observations, enough for a runner to load and to learn."""

    num_envs, num_actions, max_episode_length, device = ENVS, ACTIONS, 5, "cpu"

    def __init__(self):
        self.cfg, self.episode_length_buf = {}, torch.zeros(ENVS, dtype=torch.long)

    def get_observations(self):
        return TensorDict({"a": torch.randn(ENVS, 4), "b": torch.randn(ENVS, 5)}, batch_size=[ENVS])

    def step(self, actions):
        dones = torch.rand(ENVS) < 0.2
        return self.get_observations(), -actions.square().sum(-1), dones, {"time_outs": dones}


def main() -> None:
    """Load, act over the stored observations, and train one iteration from there."""
    folder, report = Path(sys.argv[1]), {}
    torch.set_num_threads(1)
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        cfg = yaml.safe_load((place / "params" / "agent.yaml").read_text())
        cfg |= {"algorithm": {"class_name": "PPO"}, "num_steps_per_env": 4, "save_interval": 99, "multi_gpu": None}
        runner = OnPolicyRunner(Env(), cfg, log_dir=str(place), device="cpu")
        runner.load(str(place / "model_0.pt"))
        policy = runner.get_inference_policy(device="cpu")
        module = getattr(runner.alg, "policy", None) or policy
        expected = torch.load(place / "expected.pt")
        worst = 0.0
        with torch.no_grad():
            for t, obs in enumerate(expected["obs"]):
                groups = TensorDict({"a": obs[:, :4], "b": obs[:, 4:]}, batch_size=[ENVS])
                worst = max(worst, (policy(groups) - expected["actions"][t]).abs().max().item())
                module.reset(expected["dones"][t])
        module.reset()
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        runner.learn(1)
        moved = [name for name, p in module.named_parameters() if not torch.equal(p, before[name])]
        report[place.name] = {"worst": worst, "moved": len(moved)}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
