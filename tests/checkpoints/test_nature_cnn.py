"""Policies of Stable-Baselines3 that see, ``CnnPolicy``: the library's own actions are the oracle."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.teachers import TeacherPolicyWrapper

sb3 = pytest.importorskip("stable_baselines3")
sys.path[:0] = [str(Path(__file__).resolve().parent)]

from numpy_policy import check_layers  # noqa: E402

SHAPE = (4, 36, 40)
ENVS = 5
TWO = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Screen(gymnasium.Env):
    """A task of images that nobody plays."""

    def __init__(self, action_space: spaces.Space, shape: tuple[int, ...] = SHAPE):
        self.action_space = action_space
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


CASES = {
    "ppo": ("PPO", spaces.Discrete(6), {}),
    "dqn": ("DQN", spaces.Discrete(6), {}),
    "a2c": ("A2C", TWO, {"net_arch": [12], "share_features_extractor": False}),
    "sac": ("SAC", TWO, {"net_arch": [12]}),
    "as_they_are": ("PPO", spaces.Discrete(3), {"normalize_images": False, "net_arch": {"pi": [12], "vf": [8, 8]}}),
}


def model_of(case: str, folder: Path):
    """Return a model of the library with random weights, and its file."""
    kind, actions, policy_kwargs = CASES[case]
    options = {"buffer_size": 1} if kind in ("DQN", "SAC") else {}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # images that are not divided by 255
        model = getattr(sb3, kind)("CnnPolicy", Screen(actions), policy_kwargs=dict(policy_kwargs), **options)
    for parameter in model.policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter) / (255.0 if case == "as_they_are" else 1.0)
    model.save(folder / "model.zip")
    return model, folder / "model.zip"


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ENVS, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_same_actions_as_the_library(tmp_path, case):
    """On bytes of the group ``policy`` the actions are its deterministic ones; typed layers are the policy's steps."""
    model, path = model_of(case, tmp_path)
    teacher = TeacherPolicyWrapper(path)
    assert teacher.describe()["image_shapes"] == {"policy": list(SHAPE)} and teacher.obs_groups == ["policy"]
    seen = set()
    for seed in range(8):
        expected = model.predict(images(seed), deterministic=True)[0].reshape(ENVS, -1)
        obs = TensorDict({"policy": torch.from_numpy(images(seed))}, batch_size=[ENVS])
        found = PolicyActor(teacher, teacher_selector(teacher, obs, ["policy"])).act(obs)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        seen |= set(expected[:, 0].tolist())
    assert len(seen) > 1
    check_layers(teacher)


def test_q_values_are_those_of_the_library(tmp_path):
    """A DQN's scores of all choices, not the best choice alone."""
    model, path = model_of("dqn", tmp_path)
    flat = torch.from_numpy(images(1)).float().flatten(1)
    with torch.no_grad():
        expected = model.q_net(torch.from_numpy(images(1)))
    torch.testing.assert_close(TeacherPolicyWrapper(path).step(flat)[0].logits, expected, atol=1e-5, rtol=1e-5)


def test_the_group_of_the_image_can_be_named(tmp_path):
    """The file has no names: it is ``policy`` unless the user says otherwise; another size is one line."""
    path = model_of("ppo", tmp_path)[1]
    teacher = TeacherPolicyWrapper(path, obs_groups=["pixels"])
    obs = TensorDict({"pixels": torch.from_numpy(images(0)), "ram": torch.zeros(ENVS, 2)}, batch_size=[ENVS])
    assert teacher_selector(teacher, obs, teacher.obs_groups)(obs).shape == (ENVS, np.prod(SHAPE))
    small = TensorDict({"pixels": torch.zeros(ENVS, 4, 20, 20, dtype=torch.uint8)}, batch_size=[ENVS])
    with pytest.raises(UserError, match=r"reads images of 4 x 36 x 40, and the environment gives 4 x 20 x 20"):
        teacher_selector(teacher, small, teacher.obs_groups)


def edited(path: Path, change) -> Path:
    """Write the file again with changed JSON."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    change(data)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"data": json.dumps(data).encode()}).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["observation_space"].update(_shape=[4, 84, 84]), "cannot read images"),
        (lambda data: data["observation_space"].update(_shape=[4, 36]), "channels x height x width"),
        (lambda data: data["observation_space"].update(_shape=[3, 36, 40]), "cannot read images"),
        (lambda data: data["policy_kwargs"].update(features_extractor_class="<class 'x.Impala'>"), "by 'Impala' first"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, change, words):
    """Images of another size than the weights', and an encoder that only code describes."""
    path = edited(model_of("ppo", tmp_path)[1], change)
    with pytest.raises(UserError, match=words) as caught:
        TeacherPolicyWrapper(path)
    assert "\n" not in str(caught.value)
