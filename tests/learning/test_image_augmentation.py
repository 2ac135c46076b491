"""Augmentation of the student's images: what it may change, and that nobody but the learning student notices."""

from __future__ import annotations

import numpy
import pytest
import torch
from dot_env import DotEnv, DotTeacher

from foundation.config.distillation_cfg import AugmentImagesCfg, DistillationCfg
from foundation.config.validate import validate
from foundation.core.errors import UserError
from foundation.dataset.transition import Batch
from foundation.learning.image_augmentation import ImageAugmentation
from foundation.policies.output import PolicyOutput
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class
from foundation.students.cnn import CNNStudentCfg

SHAPES = {"camera": (2, 6, 5), "wrist": (1, 4, 4)}
NUM_FLAT = 3
NUM_OBS = NUM_FLAT + 60 + 16


def augmentation(**changes) -> ImageAugmentation:
    scales = {"camera": 1.0 / 255.0, "wrist": 1.0}
    made = ImageAugmentation(AugmentImagesCfg(**changes), NUM_FLAT, SHAPES, scales, 7, torch.device("cpu"))
    made.begin_epoch(0)
    return made


def batch(*lead: int) -> Batch:
    """Random bytes as the camera's images, numbers from 0 to 1 as the wrist's, and labels."""
    generator = torch.Generator().manual_seed(1)
    obs = torch.rand(*lead, NUM_OBS, generator=generator)
    obs[..., NUM_FLAT : NUM_FLAT + 60] = (obs[..., NUM_FLAT : NUM_FLAT + 60] * 255.0).round()
    return Batch(obs, PolicyOutput(torch.rand(*lead, 2, generator=generator)))


def camera(of: Batch) -> torch.Tensor:
    return of.obs[..., NUM_FLAT : NUM_FLAT + 60].unflatten(-1, SHAPES["camera"])


def test_a_shift_is_a_crop_of_the_image_with_its_edge_repeated():
    """By NumPy's padding: each result is one of the 25 crops, all of them occur, both channels move together."""
    given = batch(400)
    shifted = augmentation(shift=2, groups=["camera"])(given)
    seen = set()
    for before, after in zip(camera(given).numpy(), camera(shifted).numpy(), strict=True):
        padded = numpy.pad(before, ((0, 0), (2, 2), (2, 2)), mode="edge")
        crops = {(y, x): padded[:, y : y + 6, x : x + 5] for y in range(5) for x in range(5)}
        matches = [place for place, crop in crops.items() if numpy.array_equal(crop, after)]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 25
    others = [slice(0, NUM_FLAT), slice(NUM_FLAT + 60, None)]
    assert all(torch.equal(shifted.obs[:, part], given.obs[:, part]) for part in others)
    assert shifted.targets.mean is given.targets.mean


def test_a_sequence_has_one_shift_and_one_brightness():
    """The frames of a sequence are changed alike, those of other sequences otherwise."""
    given = batch(1, 30)
    given = given._replace(obs=given.obs.expand(4, -1, -1).clone())  # the same frame four times
    changed = camera(augmentation(shift=2, brightness=0.4)(given))
    assert all(torch.equal(changed[0], changed[step]) for step in range(4))
    ratios = (changed.flatten(2).mean(-1) / camera(given).flatten(2).mean(-1))[0]
    assert ratios.std() > 0.1


@pytest.mark.parametrize(("group", "full"), [("camera", 255.0), ("wrist", 1.0)])
def test_noise_is_of_full_brightness_and_within_the_range(group, full):
    """A tenth of full brightness, in each group's own units; nothing is darker or brighter than the camera gives."""
    size = 60 if group == "camera" else 16
    start = NUM_FLAT if group == "camera" else NUM_FLAT + 60
    given = batch(2000)
    part = slice(start, start + size)
    given.obs[:, part] = 0.5 * full
    given.obs[0, start], given.obs[0, start + 1] = 0.0, full
    noisy = augmentation(noise=0.1)(given).obs[:, part]
    assert (noisy[1:] - 0.5 * full).std() == pytest.approx(0.1 * full, rel=0.02)
    assert noisy.min() >= 0.0 and noisy.max() <= full


def test_lost_frames_are_black_and_as_many_as_asked_for():
    """A quarter of the frames, each for itself in a sequence and in each group; the others are as they were."""
    given = batch(8, 500)
    changed = augmentation(lost_frames=0.25)(given)
    black = (camera(changed) == 0.0).flatten(2).all(-1)
    assert black.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(camera(changed)[~black], camera(given)[~black])
    assert (black[:-1] & black[1:]).float().mean() == pytest.approx(0.0625, abs=0.015)
    wrist = (changed.obs[..., NUM_FLAT + 60 :] == 0.0).all(-1)
    assert wrist.float().mean() == pytest.approx(0.25, abs=0.03) and not torch.equal(wrist, black)


def test_seed_and_epoch_decide():
    """The same epoch is the same in every bit, another epoch and another process are not."""
    everything = {"shift": 1, "brightness": 0.2, "noise": 0.1, "lost_frames": 0.1}
    made = augmentation(**everything)
    first = made(batch(50)).obs
    made.begin_epoch(0)
    again = made(batch(50)).obs
    made.begin_epoch(1)
    later = made(batch(50)).obs
    made.begin_epoch(0, rank=1)
    other = made(batch(50)).obs
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, other)


def make(path, memory: str = "none", student: str = "cnn", **changes) -> DistillationRunner:
    cfg = DistillationCfg(
        task="Toy", seed=1, n_epochs=2, epoch_teacher_forcing=2, num_episodes=16, learning_rate=3e-3,
        num_eval_episodes=8, final_eval_episodes=8, batch_size=32, augment_images=AugmentImagesCfg(**changes),
    )  # fmt: skip
    if student == "cnn":
        cfg.student = CNNStudentCfg(channels=[4], image_features=8, hidden_dims=[8], memory=memory)  # pyright: ignore[reportArgumentType]
        cfg.student.obs_groups = ["camera", "time"]
    else:
        cfg.student = student_cfg_class(student)(name=student, obs_groups=["time"])
    if memory != "none":
        cfg.sequence_length, cfg.batch_size, cfg.student.frame_stack = 4, 8, 2
    cfg.teacher.obs_groups = ["policy"]
    return DistillationRunner(DotEnv(8), DotTeacher(), cfg, RunDir(path), make_eval_env=DotEnv)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_the_teachers_transitions_are_the_same_in_every_bit(tmp_path, memory):
    """Observations, images and labels that are stored do not depend on it; the student that learns from them does."""
    everything = {"shift": 2, "brightness": 0.2, "noise": 0.05, "lost_frames": 0.1}
    runs = [make(tmp_path / "plain", memory), make(tmp_path / "other", memory, **everything)]
    for run in runs:
        run.run()
    plain, other = (run.dataset for run in runs)
    assert plain.num_chunks == other.num_chunks > 0
    for name in ("obs", "mean", "image_camera"):
        columns = [dataset.column(name)[: dataset.num_chunks] for dataset in (plain, other)]
        assert torch.equal(*columns)
    weights = [run.student.state_dict() for run in runs]
    assert not torch.equal(weights[0]["mean.weight"], weights[1]["mean.weight"])


def test_bad_input_is_one_line(tmp_path):
    """A student without images, a group that it does not read, a shift out of the image, numbers out of range."""
    with pytest.raises(UserError, match=r"augment_images changes images, and student=mlp reads none"):
        make(tmp_path / "a", student="mlp", noise=0.1)
    with pytest.raises(UserError, match=r"augment_images.groups: the student reads no image group 'camra'. .*camera"):
        make(tmp_path / "b", groups=["camra"], noise=0.1)
    with pytest.raises(UserError, match=r"shift is 12: it must be below the 12 pixels of a side of 'camera'"):
        make(tmp_path / "c", shift=12)
    for name, value in {"shift": -1, "brightness": 1.0, "noise": -0.1, "lost_frames": 1.5}.items():
        with pytest.raises(UserError, match=rf"distill.augment_images.{name} is {value:g}: it must be"):
            validate(DistillationCfg(augment_images=AugmentImagesCfg(**{name: value})))
