"""Write checkpoints of CNN models with the installed release of rsl-rl-lib, and its own inference policy's actions.

Run by test_cnn.py in a process of its own for every release: VERSION FOLDER.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import yaml
from tensordict import TensorDict

NUM_ENVS, NUM_STEPS, NUM_ACTIONS = 4, 8, 3
SHAPES = {"policy": (7,), "extra": (2,), "camera": (3, 15, 20), "depth": (1, 16, 12)}
PLAIN = {"output_channels": [4, 5], "kernel_size": 3, "stride": [2, 1], "activation": "relu"}
RICH = {
    "output_channels": [4, 6, 5], "kernel_size": [5, 3, 3], "stride": 1, "dilation": [1, 2, 1], "padding": "zeros",
    "norm": ["batch", "layer", "none"], "max_pool": [True, False, False], "global_pool": "avg", "activation": "elu",
}  # fmt: skip
OTHER = {"output_channels": (3,), "kernel_size": 4, "padding": "replicate", "activation": "tanh", "max_pool": True}
CASES = {
    "one": (("policy", "camera"), PLAIN, True, None),
    "rich": (("extra", "camera", "policy"), RICH, True, None),
    "two": (("depth", "policy", "camera", "extra"), {"camera": PLAIN, "depth": OTHER}, False, "heteroscedastic"),
    "images_only": (("camera",), PLAIN, False, None),
}
"""Groups of the actor, encoders, normalisation, distribution."""


class FakeEnv:
    """Random observations, enough for a runner to be built."""

    num_envs, num_actions, device, max_episode_length, cfg = NUM_ENVS, NUM_ACTIONS, "cpu", 5, {}

    def get_observations(self):
        """Return random observations."""
        obs = {name: torch.randn(NUM_ENVS, *shape) for name, shape in SHAPES.items()}
        return TensorDict(obs, batch_size=[NUM_ENVS])


def config(name: str, four: bool) -> dict:
    """Return a run's config."""
    groups, encoders, normalized, kind = CASES[name]
    model = {"hidden_dims": [12, 8], "activation": "elu", "obs_normalization": normalized, "class_name": "CNNModel"}
    model["cnn_cfg"] = encoders
    actor = copy.deepcopy(model)
    if four:
        actor |= {"stochastic": True, "init_noise_std": 0.7, "state_dependent_std": kind is not None}
    else:
        prefix = "Heteroscedastic" if kind else ""
        actor["distribution_cfg"] = {"class_name": f"{prefix}GaussianDistribution", "init_std": 0.7}
    common = {"num_steps_per_env": 4, "save_interval": 50, "clip_actions": None, "multi_gpu": None}
    sets = {"actor": list(groups), "critic": list(groups)}
    return common | {"actor": actor, "critic": model, "algorithm": {"class_name": "PPO"}, "obs_groups": sets}


def write(name: str, version: str, place: Path) -> None:
    """Write one case."""
    from rsl_rl.runners import OnPolicyRunner

    env, cfg = FakeEnv(), config(name, version[0] == "4")
    runner = OnPolicyRunner(env, copy.deepcopy(cfg), log_dir=None, device="cpu")
    runner.logger.writer = None
    actor = runner.alg.actor
    with torch.no_grad():
        for key, value in actor.named_parameters():
            if not key.endswith(("std", "std_param")):
                value.normal_(0.0, 0.2)
        for _ in range(4):
            actor.train()
            obs = env.get_observations().apply(lambda value: value * 3 + 1)
            actor.update_normalization(obs)
            actor(obs)  # batch normalisation keeps moments
    policy = runner.get_inference_policy(device="cpu")
    with torch.no_grad():
        steps = [env.get_observations() for _ in range(NUM_STEPS)]
        actions = torch.stack([policy(obs).clone() for obs in steps])
    (place / "params").mkdir(parents=True)
    runner.save(str(place / "model_7.pt"))
    torch.save({"obs": [dict(obs.items()) for obs in steps], "actions": actions}, place / "expected.pt")
    (place / "params" / "agent.yaml").write_text(yaml.dump(cfg))
    if version == "5.5.1" and name != "images_only":
        runner.export_policy_to_onnx(str(place / "exported"))


def main() -> None:
    """Write every case of the release."""
    version, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in CASES:
        if name != "images_only" or version[0] == "5":  # release 4 wants flat observations too
            write(name, version, folder / name)


if __name__ == "__main__":
    main()
