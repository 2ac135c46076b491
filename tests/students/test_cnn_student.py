"""The student that sees: its encoders, its memory, what it refuses."""

from __future__ import annotations

import itertools
import re

import numpy
import pytest
import torch
from numpy_policy import check_layers
from tensordict import TensorDict

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save, load_checkpoint
from foundation.policies.vision import SpatialSoftArgmax
from foundation.students import make_student, student_from_description
from foundation.students.cnn import CNNStudent, CNNStudentCfg
from foundation.students.observations import student_selector

FLAT, ACTIONS, ENVS, STEPS = 3, 2, 4, 7
IMAGES = {"front": [1, 12, 12], "wrist": [3, 10, 14]}
NUM_OBS = FLAT + 144 + 420
SCALES = {"front": 1 / 255, "wrist": 1.0}
OPTIONS = [
    {"encoder": "small"},
    {"encoder": "nature", "frame_stack": 3},
    {"encoder": "impala", "memory": "gru"},
    {"encoder": "spatial_softmax", "frame_stack": 2, "memory": "lstm", "hidden_dims": []},
    {"encoders": {"wrist": "spatial_softmax"}, "channels": [5, 6], "stochastic": True, "value_head": True},
    {"images": {"front": [1, 12, 12], "back": [1, 12, 12]}, "share_encoder": True},
]


def build(images=IMAGES, flat=FLAT, **options) -> CNNStudent:
    """Return a student with random weights and a fitted normaliser."""
    torch.manual_seed(0)
    scales = {name: SCALES.get(name, 1.0) for name in images}
    cfg = CNNStudentCfg(**{"images": images, "image_scales": scales, **options})
    num_obs = flat + sum(numpy.prod(shape) for shape in cfg.images.values())
    student = make_student(cfg, int(num_obs), ACTIONS)
    assert isinstance(student, CNNStudent)
    student.update_normalizer(torch.randn(100, student.num_obs) * 3 + 1)
    return student


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values()))[:40])
def test_what_the_registry_promises(options, tmp_path):
    """Steps equal the sequence with resets, typed layers equal the steps, a checkpoint rebuilds the student."""
    student = build(**options)
    obs = torch.rand(STEPS, ENVS, student.num_obs) * 3
    resets = torch.rand(STEPS, ENVS) < 0.3
    state = student.initial_state(ENVS)
    outputs = []
    for t in range(STEPS):
        output, state = student.step(obs[t], student.reset_state(state, resets[t]))
        outputs.append(output.mean)
    together, final = student.sequence(obs, None, resets)
    assert torch.allclose(torch.stack(outputs), together.mean, atol=1e-5)
    assert final is None or torch.allclose(final, state, atol=1e-5)
    check_layers(student)
    atomic_torch_save({"student": student.describe(), "weights": student.state_dict()}, tmp_path / "s.pt")
    read = load_checkpoint(tmp_path / "s.pt")
    again = student_from_description(read["student"], read["weights"])
    assert torch.equal(again.sequence(obs)[0].mean, student.sequence(obs)[0].mean)
    assert again.describe() == student.describe()


def test_bytes_are_read_as_shares_of_white():
    """A byte image with its scale gives what the same image divided by 255 gives without."""
    student = build({"front": [1, 12, 12]})
    plain = build({"front": [1, 12, 12]}, image_scales={"front": 1.0})
    plain.load_state_dict(student.state_dict())
    obs = torch.cat([torch.randn(ENVS, FLAT), torch.randint(256, (ENVS, 144)).float()], dim=-1)
    shares = obs.clone()
    shares[:, FLAT:] /= 255.0
    assert torch.allclose(student(obs), plain(shares), atol=1e-6)
    images = build({"front": [1, 12, 12]}, flat=0)
    pixels = torch.randint(256, (ENVS, 144), dtype=torch.uint8)
    assert torch.equal(images(pixels), images(pixels.float()))


def test_a_stack_is_the_last_frames_as_channels():
    """A student of three frames acts as one of a single frame that is given the three as channels."""
    stacked = build({"front": [1, 12, 12]}, frame_stack=3, image_scales={})
    single = build({"front": [3, 12, 12]}, image_scales={})
    single.load_state_dict(stacked.state_dict())
    obs = torch.rand(5, ENVS, FLAT + 144)
    frames = torch.cat([torch.zeros(2, ENVS, 144), obs[..., FLAT:]])
    state = stacked.initial_state(ENVS)
    for t in range(5):
        output, state = stacked.step(obs[t], state)
        three = torch.cat([obs[t, :, :FLAT], *frames[t : t + 3]], dim=-1)
        assert torch.allclose(output.mean, single(three), atol=1e-6)


def test_one_encoder_for_all_groups_has_its_weights_once():
    """Shared: half the encoder's weights, and two images that are the same give the same features."""
    images = {"front": [1, 12, 12], "back": [1, 12, 12]}
    shared, own = build(images, share_encoder=True, image_scales={}), build(images)
    sizes = [sum(p.numel() for n, p in student.named_parameters() if "encoder." in n) for student in (shared, own)]
    assert sizes[1] == 2 * sizes[0]
    image = torch.rand(ENVS, 144)
    assert shared.encoder is not None and own.encoder is not None
    features = shared.encoder(torch.cat([torch.zeros(ENVS, FLAT), image, image], dim=-1))[:, FLAT:]
    assert torch.equal(features[:, :64], features[:, 64:])


def test_feature_points_are_positions():
    """A bright pixel of a channel is where its feature point is, in units of half the image from its centre."""
    image = torch.zeros(1, 2, 5, 9)
    image[0, 0, 1, 6] = 100.0
    image[0, 1, 4, 0] = 100.0
    points = SpatialSoftArgmax(5, 9)(image)
    assert torch.allclose(points, torch.tensor([[0.5, -0.5, -1.0, 1.0]]), atol=1e-6)


def test_gradients_reach_every_weight():
    """Every encoder and the memory learn from the action alone."""
    for options in OPTIONS:
        student = build(**options)
        loss = student.sequence(torch.rand(STEPS, ENVS, student.num_obs))[0].mean.square().sum()
        loss.backward()
        without = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert all(name.startswith(("log_std", "value")) for name in without), (options, without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_encoder": True}, r"needs images of one size, and these are front 1 x 12 x 12, wrist 3 x 10 x 14"),
        ({"encoder": "nature", "images": {"front": [1, 3, 3]}}, r"images of 1 x 3 x 3 .* too small for .*=nature"),
        ({"encoders": {"frnt": "nature"}}, r"reads no image group 'frnt'. Did you mean 'front'"),
        ({"image_scales": {"back": 1.0}}, r"image_scales: the student reads no image group 'back'"),
        ({"images": {"front": [12, 12]}}, r"channels, height and width are expected"),
        ({"images": {"front": [1, 1 << 12, 1 << 12]}}, r"more than 4194304 numbers"),
        ({"frame_stack": 0}, r"frame_stack must be from 1 to 10000 frames, not 0"),
        ({"frame_stack": 1_000_000}, r"frame_stack must be from 1 to 10000 frames, not 1000000"),
        ({"image_scales": {"front": 0.0, "wrist": 1.0}}, r"image_scales.front is 0: it must be a finite number other"),
        ({"image_features": 0}, r"image_features is 0"),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    """Each names the field and what to do."""
    with pytest.raises(UserError, match=message):
        build(**options)


def test_a_file_that_states_other_images_is_refused():
    """Images whose sizes the weights do not fit, before anything of their size is made."""
    student = build({"front": [1, 12, 12]}, encoder="small")
    described = student.describe()
    for shape, num_obs in (([1, 20, 20], FLAT + 400), ([2, 12, 12], FLAT + 288), ([1, 12, 12], FLAT + 1440)):
        changed = described | {"images": {"front": shape}, "num_obs": num_obs}
        with pytest.raises(UserError, match="fit its description"):
            student_from_description(changed, student.state_dict())
    assert isinstance(student_from_description(described, student.state_dict()), CNNStudent)


def test_names_and_defaults():
    """The plain config of a student called cnn builds one; every encoder is known by its name."""
    student = make_student(StudentCfg(name="cnn"), 5, 2)
    assert isinstance(student, CNNStudent) and student.num_flat == 5
    for encoder, memory in itertools.product(("small", "nature", "impala", "spatial_softmax"), ("none", "gru", "lstm")):
        assert build({"front": [1, 32, 32]}, encoder=encoder, memory=memory)(torch.rand(2, FLAT + 1024)).shape == (2, 2)


def test_images_of_another_shape_than_the_runs_are_not_replaced_in_silence():
    """The run fills the shapes in; what is typed must be what there is, as in a run that is resumed."""
    obs = TensorDict({"camera": torch.zeros(2, 1, 12, 12), "policy": torch.zeros(2, 3)}, [2])
    for images, here in (({"camera": [1, 2, 3]}, "[1, 12, 12]"), ({"cam": [1, 12, 12]}, "none of that name")):
        with pytest.raises(UserError, match=re.escape(f"and the run has {here}: leave it out, the run sets it")):
            student_selector(CNNStudentCfg(obs_groups=["policy", "camera"], images=images), obs)
    cfg = CNNStudentCfg(obs_groups=["policy", "camera"], images={"camera": [1, 12, 12]})
    assert list(student_selector(cfg, obs).groups) == ["policy", "camera"]
