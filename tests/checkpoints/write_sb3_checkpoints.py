"""Write checkpoints with the installed Stable-Baselines3, and the actions that its own models give: FOLDER [CASES].

Run by test_other_libraries.py in a process of its own; what lies in data/ was written by it too, and then stripped of
the pickles in its JSON, which nothing reads.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

OBS, ENVS, STEPS = 7, 6, 20
BOX = gymnasium.spaces.Box(np.array([-1.0, -0.2], np.float32), np.array([1.0, 1.0 / 3.0], np.float32))
WIDE = gymnasium.spaces.Box(-100.0, 100.0, (2,))
SMALL = {"net_arch": [12, 10]}
SPLIT = {"net_arch": {"pi": [12], "vf": [8, 6]}}
CASES = {
    "ppo": (PPO, BOX, SMALL | {"activation_fn": torch.nn.ELU}, {}),
    "default": (PPO, WIDE, {}, {}),
    "a2c": (A2C, BOX, SPLIT | {"activation_fn": torch.nn.LeakyReLU}, {}),
    "categorical": (PPO, gymnasium.spaces.Discrete(3), SMALL | {"activation_fn": torch.nn.ReLU}, {}),
    "dqn": (DQN, gymnasium.spaces.Discrete(3), SMALL, {}),
    "sac": (SAC, BOX, SMALL, {}),
    "td3": (TD3, BOX, SMALL | {"activation_fn": torch.nn.ELU}, {}),
    "explores": (PPO, BOX, SMALL, {"use_sde": True}),
    "squashed": (PPO, BOX, SMALL | {"squash_output": True}, {"use_sde": True}),
    "normalized": (PPO, BOX, SMALL | {"activation_fn": torch.nn.SiLU}, {}),
}


class Env(gymnasium.Env):
    """Random observations, enough for a model to be built."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,))

    def __init__(self, action_space: gymnasium.Space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        return np.random.randn(OBS).astype(np.float32) * 3 + 2, {}

    def step(self, action):
        return np.random.randn(OBS).astype(np.float32) * 3 + 2, 0.0, False, False, {}


def strip(path: Path) -> None:
    """Take the pickles, and what says where it was written, out of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    data = json.loads(members["data"])
    kept = ("policy_class", "policy_kwargs", "observation_space", "action_space", "use_sde", "num_timesteps")
    data = {key: value for key, value in data.items() if key in kept}
    for value in data.values():
        if isinstance(value, dict):
            for key in [
                k for k, v in value.items() if k == ":serialized:" or str(v).startswith(("<function", "<_abc"))
            ]:
                del value[key]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name in ("policy.pth", "_stable_baselines3_version"):
                archive.writestr(name, content)
        archive.writestr("data", json.dumps(data))


def save_others(env: VecNormalize, folder: Path) -> None:
    """Save the same statistics by every protocol of pickle, and what a policy of one plain array cannot use."""
    folder.mkdir()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"protocol_{protocol}.pkl").write_bytes(pickle.dumps(env, protocol))
    env.norm_obs = False
    env.save(str(folder / "rewards_alone.pkl"))
    env.norm_obs = True
    two = gymnasium.spaces.Dict({"a": Env.observation_space, "b": Env.observation_space})
    several = Env(env.action_space)
    several.observation_space = two
    VecNormalize(DummyVecEnv([lambda: several])).save(str(folder / "dictionary.pkl"))


@torch.no_grad()
def ask(model, obs: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the actions of ``predict``, and what the networks say."""
    chosen = torch.from_numpy(model.predict(obs, deterministic=True)[0])
    discrete = isinstance(model.action_space, gymnasium.spaces.Discrete)
    answer = {"actions": chosen.unsqueeze(-1) if discrete else chosen}
    given = torch.from_numpy(obs).float()
    if isinstance(model, DQN):
        return answer | {"logits": model.policy.q_net(given)}
    if isinstance(model, SAC | TD3):
        return answer
    answer["value"] = model.policy.predict_values(given)
    distribution = model.policy.get_distribution(given).distribution
    if discrete:
        answer["logits"] = distribution.logits
    elif not model.use_sde:
        answer["std"] = distribution.stddev
    return answer


def write(case: str, folder: Path, stripped: bool) -> None:
    """Write one case into its folder."""
    kind, actions, policy, options = CASES[case]
    torch.manual_seed(7)
    np.random.seed(7)
    env = DummyVecEnv([lambda: Env(actions)])
    place = folder / case
    place.mkdir(parents=True)
    if case == "normalized":
        env = VecNormalize(env, clip_obs=2.0, epsilon=1e-3)
        env.reset()
        for _ in range(40):
            env.step([actions.sample()])
        env.training = False
        env.save(str(place / "model_vecnormalize.pkl"))
        saved = env.obs_rms
        numbers = {"mean": saved.mean, "var": saved.var, "epsilon": env.epsilon, "clip_obs": env.clip_obs}
        np.savez(place / "model_vecnormalize.npz", **numbers)
        save_others(env, place / "pickles")
    if kind in (DQN, SAC, TD3):
        options = options | {"buffer_size": 10}
    model = kind("MlpPolicy", env, policy_kwargs=dict(policy), device="cpu", **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(0.0, 0.4)
    model.save(str(place / "model"))
    obs = torch.randn(STEPS, ENVS, OBS) * 3 + 1
    result: dict[str, list] = {}
    for step in range(STEPS):
        seen = env.normalize_obs(obs[step].numpy()) if case == "normalized" else obs[step].numpy()
        for key, value in ask(model, seen).items():
            result.setdefault(key, []).append(value)
    tensors = {key: torch.stack(values) for key, values in result.items()}
    torch.save({"obs": obs, "dones": torch.rand(STEPS, ENVS) < 0.15, **tensors}, place / "expected.pt")
    if stripped:
        strip(place / "model.zip")
        shutil.rmtree(place / "pickles", ignore_errors=True)


def main() -> None:
    """Write the cases; those that are named are stripped."""
    torch.set_num_threads(1)
    for case in sys.argv[2:] or CASES:
        write(case, Path(sys.argv[1]), stripped=len(sys.argv) > 2)


if __name__ == "__main__":
    main()
