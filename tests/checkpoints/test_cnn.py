"""RSL-RL's CNN models: checkpoints and exports of the real releases, image groups and flat ones in any order."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.rollout.collector import collect_episodes
from foundation.students import StudentPolicy
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from numpy_policy import check_layers  # noqa: E402
from toy_env import CountingEnv  # noqa: E402
from write_cnn_policies import CASES, NUM_ENVS, SHAPES  # noqa: E402
from written_once import of_release  # noqa: E402

FILES = [(v, n) for v in ("4.0.1", "5.4.2", "5.5.1") for n in CASES if n != "images_only" or v[0] == "5"]
each = pytest.mark.parametrize(("version", "name"), FILES, ids=lambda part: part)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function of the folder of a release's checkpoints."""
    return partial(of_release, tmp_path_factory, "write_cnn_policies.py")


def steps(place):
    """Return the stored observations and the library's actions for them."""
    stored = torch.load(place / "expected.pt")
    return [
        (TensorDict(obs, batch_size=[NUM_ENVS]), act) for obs, act in zip(stored["obs"], stored["actions"], strict=True)
    ]


@each
def test_same_actions_as_the_library(written, version, name):
    """On the env's groups, actions equal the release's inference policy to 1e-5, typed layers the policy's steps."""
    place = written(version) / name
    teacher = TeacherPolicyWrapper(place / "model_7.pt")
    for obs, wanted in steps(place):
        assert (teacher.act(obs) - wanted).abs().max() <= 1e-5
    check_layers(teacher)
    groups, _, normalized, kind = CASES[name]
    told = teacher.describe()
    images = [group for group in groups if len(SHAPES[group]) == 3]
    assert told["image_groups"] == images and told["image_shapes"] == {g: list(SHAPES[g]) for g in images}
    assert told["obs_normalization"] == normalized and told["distribution"] == (kind or "gaussian")
    assert teacher.num_obs == sum(torch.Size(SHAPES[group]).numel() for group in groups) == told["num_obs"]


@each
def test_collecting_reads_images_flattened(written, version, name):
    """Through the selector that collects and evaluates, flattened images give the same, in any order of the groups."""
    place = written(version) / name
    teacher = TeacherPolicyWrapper(place / "model_7.pt")
    obs, wanted = steps(place)[0]
    for groups in (teacher.obs_groups, list(CASES[name][0])):
        selector = teacher_selector(teacher, obs, groups)
        assert selector.check(obs, "teacher", teacher.num_obs) == selector(obs).shape[1]
        assert (PolicyActor(teacher, selector).act(obs) - wanted).abs().max() <= 1e-5
    flat = torch.stack([selector(obs) for obs, _ in steps(place)])
    wanted = torch.stack([actions for _, actions in steps(place)])
    assert (teacher.sequence(flat)[0].mean - wanted).abs().max() <= 1e-5


class SeeingEnv(CountingEnv):
    """Also returns what a camera might see, and keeps it."""

    num_actions = 3

    def get_observations(self):
        """Return the groups of a CNN policy, with numbers of their own at every call."""
        groups = {name: torch.randn(self.num_envs, *shape) for name, shape in SHAPES.items()}
        self.seen = [*getattr(self, "seen", []), TensorDict(groups, batch_size=[self.num_envs])]
        return self.seen[-1]


def test_an_image_policy_teaches_through_the_collector(written):
    """While it drives a collection, every action that the environment receives is the policy's for what it saw."""
    teacher = TeacherPolicyWrapper(written("5.5.1") / "two" / "model_7.pt")
    env, dataset = (
        SeeingEnv([[2, 4], [4, 3], [3, 1]], 4),
        DistillationDataset(BufferSpec(7, 3, 60, {"mean": 3}, chunk_steps=4)),
    )
    groups, student = list(CASES["two"][0]), StudentPolicy(7, 3)
    stats = collect_episodes(env, teacher, dataset, 3, student=student, teacher_obs_groups=groups)
    assert sorted(stats.lengths.tolist()) == [2.0, 3.0, 4.0] and len(dataset) >= 9
    for obs, actions in zip(env.seen[-1 - len(env.actions) :], env.actions, strict=False):
        assert (teacher.act(obs) - actions).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["one", "rich", "two"])
def test_exported(written, name):
    """The ``policy.onnx`` of release 5.5.1 gives its actions to 1e-5; images are read by their groups' names."""
    place = written("5.5.1") / name
    teacher = TeacherPolicyWrapper(place / "exported" / "policy.onnx")
    for obs, wanted in steps(place):
        assert (teacher.act(obs) - wanted).abs().max() <= 1e-5
    assert teacher.hidden_dims == [12, 8] and teacher.describe()["image_shapes"]["camera"] == [3, 15, 20]


def test_sizes_can_be_given(written):
    """With ``image_shapes`` no environment is needed; without, a tensor is refused with the way out."""
    place = written("5.5.1") / "one"
    obs, wanted = steps(place)[0]
    flat = torch.cat([obs["policy"], obs["camera"].flatten(1)], dim=-1)
    teacher = TeacherPolicyWrapper(place / "model_7.pt", image_shapes={"camera": [3, 15, 20]})
    assert teacher.num_obs == 907 and (teacher.act(flat) - wanted).abs().max() <= 1e-5
    with pytest.raises(UserError, match=r"'image_shapes', such as \{camera"):
        TeacherPolicyWrapper(place / "model_7.pt").step(flat)


def copied(written, tmp_path, change=None, name="one"):
    """Return a copy of a checkpoint whose config is changed."""
    shutil.copytree(written("5.5.1") / name, tmp_path / "run")
    file = tmp_path / "run" / "params" / "agent.yaml"
    if change is not None:
        config = yaml.unsafe_load(file.read_text())
        change(config)
        file.write_text(yaml.safe_dump(yaml.safe_load(yaml.safe_dump(config, default_flow_style=True))))
    return tmp_path / "run" / "model_7.pt"


@pytest.mark.parametrize(
    ("change", "shape", "words"),
    [
        (lambda c: c["actor"].pop("cnn_cfg"), (3, 15, 20), "with cnn_cfg"),
        (lambda c: c["actor"]["cnn_cfg"].update(kernel_size=5), (3, 15, 20), "does not fit images of"),
        (lambda c: c["actor"]["cnn_cfg"].update(stride=3), (3, 15, 20), "trained on images of another size"),
        (lambda c: c["actor"]["cnn_cfg"].update(norm="batch"), (3, 15, 20), "does not fit images of"),
        (lambda c: c["obs_groups"].update(actor=["policy"]), (3, 15, 20), "observation groups"),
        (None, (3, 30, 40), "trained on images of another size"),
        (None, (1, 15, 20), "does not fit images of"),
        (None, (20, 15), "channels x height x width"),
        (None, (3, 2, 2), "cannot read images"),
    ],
)
def test_what_does_not_fit_is_refused(written, tmp_path, change, shape, words):
    """A config without or with another encoder, and images of another size, are refused in one line."""
    path = copied(written, tmp_path, change)
    obs = TensorDict({"policy": torch.zeros(2, 7), "camera": torch.zeros(2, *shape)}, batch_size=[2])
    with pytest.raises(UserError, match=words) as caught:
        TeacherPolicyWrapper(path).act(obs)
    assert "\n" not in str(caught.value)


def test_an_environment_without_the_images_is_refused(written):
    """A missing image group and a flat group of another size are named."""
    teacher = TeacherPolicyWrapper(written("5.5.1") / "one" / "model_7.pt")
    with pytest.raises(UserError, match="'camera', channels x height x width: it is not there"):
        teacher.act(TensorDict({"policy": torch.zeros(2, 7)}, batch_size=[2]))
    obs = TensorDict({"policy": torch.zeros(2, 6), "camera": torch.zeros(2, 3, 15, 20)}, batch_size=[2])
    with pytest.raises(UserError, match=r"907 observations.*906"):
        teacher.act(obs)


def test_a_flat_policy_does_not_read_images():
    """Without image groups of its own a selector refuses an image, as before."""
    obs = TensorDict({"camera": torch.zeros(2, 3, 4, 5)}, batch_size=[2])
    with pytest.raises(UserError, match="only flat groups"):
        ObsSelector(["camera"]).check(obs, "student")
