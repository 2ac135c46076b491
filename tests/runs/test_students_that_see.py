"""Runs whose student reads images: what is stored, what is saved, and that it learns to see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from dot_env import SIDE, DotEnv, DotTeacher, HalfDotEnv

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.dataset import memory
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.runs.offline import OfflineRunner
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students.cnn import CNNStudentCfg
from foundation.teachers import TeacherPolicyWrapper

GROUPS = ["camera", "time"]
PIXELS = SIDE * SIDE


def config(epochs: int = 2, groups: list[str] | None = None, **student) -> DistillationCfg:
    """A run of the dot, small enough for a test."""
    cfg = DistillationCfg(
        task="Toy", seed=1, n_epochs=epochs, epoch_teacher_forcing=1, num_episodes=32, learning_rate=3e-3,
        num_eval_episodes=16, final_eval_episodes=32, batch_size=32,
    )  # fmt: skip
    options = {"channels": [8, 16], "image_features": 32, "hidden_dims": [32], **student}
    cfg.student = CNNStudentCfg(obs_groups=groups or list(GROUPS), **options)
    cfg.teacher.obs_groups = ["policy"]
    return cfg


def make(path: Path, cfg: DistillationCfg, env: type[DotEnv] = DotEnv, num_envs: int = 8) -> DistillationRunner:
    return DistillationRunner(env(num_envs), DotTeacher(), cfg, RunDir(path), make_eval_env=env)


@pytest.mark.parametrize("env", [DotEnv, HalfDotEnv], ids=["uint8", "float16"])
def test_images_are_stored_as_they_are(tmp_path, env):
    """One byte a pixel (half: two), bit for bit what the environment showed; the memory is what was computed."""
    runner = make(tmp_path, config(), env)
    runner.run()
    dataset = runner.dataset
    image = dataset.column("image_camera")[: dataset.num_chunks]
    assert image.dtype == env.dtype and image.shape[-3:] == (1, SIDE, SIDE)
    # Targets (2 floats), the time (1 float), the mark of an episode's start, and the pixels.
    assert dataset.spec.transition_bytes == 4 * 3 + 1 + PIXELS * env.dtype.itemsize
    held = [dataset.rows, dataset.resets, dataset.column("image_camera")]
    assert sum(tensor.nbytes for tensor in held) == dataset.num_bytes
    # The label is -0.8 of the state, from which the image can be drawn again.
    labels = dataset.column("mean")[: dataset.num_chunks].reshape(-1, 2)
    drawn = env(len(labels))
    drawn.state = labels / -0.8
    again = drawn.get_observations()["camera"]
    worst = (again.float() - image.reshape(-1, 1, SIDE, SIDE).float()).abs().max()
    assert worst <= (1.0 if env.dtype == torch.uint8 else 2e-3)  # the label's rounding may move a byte by one
    [batch] = dataset.flat_minibatches(16, 1)
    assert batch.obs.shape == (16, 1 + PIXELS) and batch.obs.dtype == torch.float32 and batch.extra is None
    assert batch.obs[:, 1:].max() <= (255 if env.dtype == torch.uint8 else 1)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_memory_is_announced_before_it_is_allocated(tmp_path, caplog, monkeypatch, frames):
    """The log's figure is that of all tensors within 5 %, and comes first; three frames are stored once."""
    cfg = config(frame_stack=frames)
    cfg.dataset.size = 1_000_000
    cfg.sequence_length = 50
    caplog.set_level("INFO")
    before: list[str] = []

    def allocate(*args):
        before.extend(caplog.messages)
        return memory.empty_pinned(*args)

    monkeypatch.setattr("foundation.dataset.dataset.empty_pinned", allocate)
    dataset = make(tmp_path, cfg).dataset
    tensors = [part for part in vars(dataset).values() if isinstance(part, torch.Tensor)] + list(dataset.typed.values())
    held = sum(tensor.nbytes for tensor in tensors)
    announced = next(message for message in before if "takes up to" in message)
    gigabytes = float(re.search(r"takes up to ([\d.]+) GB on cpu", announced)[1])
    assert gigabytes * 1e9 == pytest.approx(held, rel=0.05)
    assert dataset.num_bytes == held
    # The pixels of one frame, three floats and a flag; of a stack two frames as floats for each sequence of 50 steps.
    assert held / dataset.capacity == PIXELS + 12 + 1 + (frames - 1) * PIXELS * 4 / 50


@pytest.mark.parametrize(
    "student",
    [{}, {"encoder": "spatial_softmax", "activation": "relu"}, {"memory": "gru", "frame_stack": 2}],
    ids=["small", "points", "gru"],
)
def test_a_student_learns_to_see(tmp_path, student):
    """From the image alone it reaches 95 % of the teacher's return; with memory and frames from sequences."""
    cfg = config(8, **student)
    cfg.batch_size = 8 if "memory" in student else 32
    cfg.sequence_length = 4 if "memory" in student else None
    summary = make(tmp_path, cfg).run()
    assert summary["normalized_score"] > 0.95
    best = TeacherPolicyWrapper(tmp_path / "best_student.pt")
    assert best.info.image_groups == ["camera"] and best.info.image_shapes == {"camera": [1, SIDE, SIDE]}
    assert best.obs_groups == ["time", "camera"]
    obs = DotEnv(4).get_observations()
    selector = teacher_selector(best, obs, best.obs_groups)
    assert torch.equal(PolicyActor(best, selector).act(obs), best.act(obs))


def test_a_resumed_run_goes_on_exactly(tmp_path):
    """Stopped after one epoch and resumed, the weights after two are those of the run that was not stopped."""
    whole = make(tmp_path / "whole", config(2, memory="gru", frame_stack=2))
    whole.run()
    first = make(tmp_path / "part", config(2, memory="gru", frame_stack=2))
    first.begin()
    first.run_epoch(0)
    second = make(tmp_path / "part", config(2, memory="gru", frame_stack=2))
    assert second.resume() in ("", "this engine cannot restore its environments")
    exact = second.resume() == ""
    second.run()
    files = [torch.load(tmp_path / name / "final_student.pt", weights_only=True) for name in ("whole", "part")]
    weights = [file["model_state_dict"] for file in files]
    assert exact and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_dataset_of_images_is_learned_from_offline(tmp_path):
    """Saved as bytes, learned from without a simulator, and a student of it drives as the teacher does."""
    cfg = config(4)
    cfg.dataset.save = str(tmp_path / "data")
    make(tmp_path / "online", cfg).run()
    again = config(30)
    again.device = "cpu"
    again.offline, again.dataset.load, again.dataset.save = True, str(tmp_path / "data"), None
    again.student.obs_groups, again.epoch_teacher_forcing = None, 0
    runner = OfflineRunner(again, RunDir(tmp_path / "offline"))
    assert runner.train.column("image_camera").dtype == torch.uint8
    summary = runner.run()
    assert summary["action_rmse"] < 0.25
    student = TeacherPolicyWrapper(tmp_path / "offline" / "best_student.pt")
    env = DotEnv(64)
    obs = env.get_observations()
    error = (student.act(obs) + 0.8 * env.state).square().mean().sqrt()
    assert error < 0.3


def test_a_student_that_sees_teaches_another(tmp_path):
    """A student of a student: the first one's images are selected for it as the environment gives them."""
    make(tmp_path / "first", config(2)).run()
    teacher = TeacherPolicyWrapper(tmp_path / "first" / "best_student.pt")
    cfg = config(1)
    cfg.teacher.obs_groups = teacher.obs_groups
    cfg.teacher.check = False
    runner = DistillationRunner(DotEnv(8), teacher, cfg, RunDir(tmp_path / "second"), make_eval_env=DotEnv)
    runner.run()
    batch = runner.dataset.chunk_batch(0)
    assert torch.allclose(teacher.step(batch.obs[0], None)[0].mean, batch.targets.mean[0], atol=1e-5)


class LargeDotEnv(DotEnv):
    """The same with a larger image."""

    side = 20


@pytest.mark.parametrize("env", [DotEnv, HalfDotEnv], ids=["uint8", "float16"])
def test_a_student_may_read_an_image_alone(tmp_path, env):
    """Bytes and half precision reach its layers as floats, in a run that collects by it."""
    make(tmp_path, config(groups=["camera"]), env).run()
    student = TeacherPolicyWrapper(tmp_path / "best_student.pt")
    assert student.act(env(4).get_observations()).dtype == torch.float32


def test_bad_input_is_one_line(tmp_path):
    """A group that is no image, a student that sees none, more memory than there is, an image of another size."""
    with pytest.raises(UserError, match=r"cnn reads images.*add one of its image groups \(camera 1 x 12 x 12\)"):
        make(tmp_path / "a", config(groups=["time"]))
    cfg = config()
    cfg.student.obs_slice = [0, 1]
    with pytest.raises(UserError, match="obs_slice cuts columns, and images have none"):
        make(tmp_path / "b", cfg)
    cfg = config()
    cfg.dataset.size, cfg.dataset.memory_gb = 10**12, 1e6
    with pytest.raises(UserError, match=r"would take .* GB but cpu has .* GB free"):
        make(tmp_path / "c", cfg)
    make(tmp_path / "d", config(1)).run()
    small = TeacherPolicyWrapper(tmp_path / "d" / "best_student.pt")
    obs = LargeDotEnv(2).get_observations()
    with pytest.raises(UserError, match=r"reads images of 1 x 12 x 12 from the group 'camera', .* gives 1 x 20 x 20"):
        small.act(obs)
