"""A teacher that is still being trained: which file teaches, when it is read again, what the student learns then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_teacher import write_teacher
from tensordict import TensorDict
from toy_env import RegulatorEnv

from foundation.cli.load_teachers import load_teacher
from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.runs.teacher_watch import TeacherWatch, find_best, wait_for_first
from foundation.teachers import TeacherPolicyWrapper


def write(folder: Path, name: str = "best_model.pt", scale: float = 0.3, **sizes: int) -> Path:
    """Write a version of a teacher beside and move it in one piece, as trainings do."""
    beside = write_teacher(folder / "beside.tmp", **({"num_obs": 2, "num_actions": 2} | sizes), scale=scale)
    return Path(shutil.move(beside, folder / name))


def read(path: Path) -> TeacherPolicyWrapper:
    return TeacherPolicyWrapper(path, activation="elu")


def test_the_best_file_teaches(tmp_path):
    """The best model so far comes first, else the checkpoint of the largest number; none is None."""
    assert find_best(tmp_path) is None
    for name in ("model_999.pt", "model_1000.pt", "model_20.pt"):
        write(tmp_path, name)
    assert find_best(tmp_path).path.name == "model_1000.pt"
    write(tmp_path)
    assert find_best(tmp_path).path.name == "best_model.pt"


def test_the_first_checkpoint_is_waited_for(tmp_path):
    """A training that has only begun is waited for; a folder that is not there is one line."""
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            write(tmp_path)

    assert wait_for_first(tmp_path, sleep) == tmp_path / "best_model.pt"
    assert len(slept) == 3
    with pytest.raises(UserError, match=r"--watch_teacher .*nowhere: no such folder"):
        wait_for_first(tmp_path / "nowhere")


def test_a_folder_that_vanishes_is_not_waited_for(tmp_path):
    """Before its first checkpoint: one line, where a wait would have no end."""
    folder = tmp_path / "training"
    folder.mkdir()
    with pytest.raises(UserError, match=r"--watch_teacher .*training: the folder was removed before its first"):
        wait_for_first(folder, lambda _: folder.rmdir())


def test_checkpoints_that_vanish_are_said_once_and_the_teacher_stays(tmp_path, caplog):
    """The run goes on, and takes the next one that comes."""
    path = write(tmp_path)
    watch = TeacherWatch(tmp_path, read(path))
    obs = torch.randn(7, 2)
    before = watch.teacher.act(obs)
    path.unlink()
    assert watch.look() == watch.look() == ""
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path} has no checkpoint any more: the teacher stays the one that was read last"
    ]
    assert torch.equal(watch.teacher.act(obs), before)
    write(tmp_path, scale=0.5)
    assert watch.look().startswith("The teacher is best_model.pt of ")


def test_a_newer_complete_file_is_read_once(tmp_path):
    """The same file is read once; a newer one changes the actions; half a file is left until it is whole."""
    teacher = read(write(tmp_path))
    watch = TeacherWatch(tmp_path, teacher)
    obs = torch.randn(7, 2)
    before = teacher.act(obs)
    assert watch.look() == "" and watch.look() == ""
    newer = write(tmp_path, scale=0.5)
    whole = newer.read_bytes()
    newer.write_bytes(whole[: len(whole) // 2])
    assert watch.look() == ""
    assert torch.equal(teacher.act(obs), before)
    newer.write_bytes(whole)
    assert watch.look().startswith("The teacher is best_model.pt of ")
    assert torch.equal(teacher.act(obs), read(newer).act(obs)) and not torch.equal(teacher.act(obs), before)
    assert watch.look() == ""


def test_a_training_that_ends_may_rename_its_best_model(tmp_path):
    """The last best model is not missed where its file has another name by then; the same weights are no news."""
    teacher = read(write(tmp_path))
    watch = TeacherWatch(tmp_path, teacher)
    assert watch.look() == ""
    (tmp_path / "best_model.pt").rename(tmp_path / "model.zip")
    assert watch.look() == ""
    newer = write(tmp_path, "model.zip", scale=0.5)
    assert watch.look().startswith("The teacher is model.zip of ")
    assert torch.equal(teacher.act(torch.ones(1, 2)), read(newer).act(torch.ones(1, 2)))


def test_another_architecture_is_refused(tmp_path):
    """A file of other sizes is no newer version of the teacher."""
    watch = TeacherWatch(tmp_path, read(write(tmp_path)))
    write(tmp_path, hidden=8)
    with pytest.raises(UserError, match=r"not a newer version of the teacher: its architecture differs"):
        watch.look()


class Recorder(MetricsWriter):
    """Keeps scalars."""

    def __init__(self):
        self.tags: dict[str, list[tuple[int, float]]] = {}

    def add_scalars(self, scalars, step):
        for tag, value in scalars.items():
            self.tags.setdefault(tag, []).append((step, value))


def test_a_run_learns_from_the_newest_teacher(tmp_path):
    """From the epoch on in which a better file is there, the stored labels are its actions, and it is measured anew."""
    training = tmp_path / "training"
    training.mkdir()
    write(training)
    cfg = DistillationCfg(
        task="Toy", device="cpu", n_epochs=3, epoch_teacher_forcing=1, num_episodes=16, batch_size=32,
        num_eval_episodes=16, final_eval_episodes=16,
    )  # fmt: skip
    cfg.teacher.watch = str(training)
    cfg.teacher.activation = "elu"
    teacher = load_teacher(cfg)
    assert cfg.teacher.checkpoint == str(training / "best_model.pt") and not cfg.teacher.check
    recorder = Recorder()
    (tmp_path / "run").mkdir()
    runner = DistillationRunner(
        RegulatorEnv(8), teacher, cfg, RunDir(tmp_path / "run"), make_eval_env=RegulatorEnv, writer=recorder
    )
    runner.begin()
    runner.run_epoch(0)
    newer = write(training, scale=0.6)
    collected = runner.collect(1)
    dataset = runner.dataset
    for slot in collected.stats.slots:
        obs, labels = dataset.column("obs")[slot].float(), dataset.column("mean")[slot].float()
        assert torch.allclose(labels, read(newer).policy.sequence(obs)[0].mean, atol=1e-5)
    assert [step for step, _ in recorder.tags["teacher/mean_return"]] == [1]
    assert runner.baselines["teacher"]["mean_return"] == pytest.approx(recorder.tags["teacher/mean_return"][0][1])


def test_two_teachers_are_refused(tmp_path):
    """A checkpoint and a training to watch are two teachers; one in the watched folder is what a resumed run has."""
    write(tmp_path)
    cfg = DistillationCfg(device="cpu")
    cfg.teacher.watch = str(tmp_path)
    cfg.teacher.activation = "elu"
    cfg.teacher.checkpoint = "elsewhere.pt"
    with pytest.raises(UserError, match=r"name two teachers: leave one of them out"):
        load_teacher(cfg)
    cfg.teacher.checkpoint = str(tmp_path / "model_3.pt")
    assert load_teacher(cfg).num_obs == 2


def watching_run(tmp_path: Path, relabel: int | None, env: type[RegulatorEnv] = RegulatorEnv) -> DistillationRunner:
    """A run that has collected one epoch beside a training whose first teacher is small."""
    training = tmp_path / "training"
    training.mkdir()
    write(training)
    cfg = DistillationCfg(
        task="Toy", device="cpu", n_epochs=3, epoch_teacher_forcing=1, num_episodes=16, batch_size=32,
        num_eval_episodes=16, final_eval_episodes=16,
    )  # fmt: skip
    cfg.teacher.watch = str(training)
    cfg.teacher.activation = "elu"
    cfg.teacher.relabel = relabel
    cfg.dataset.chunk_steps = 8
    cfg.student.obs_groups = ["seen"] if env is TwoGroupsEnv else None
    cfg.teacher.obs_groups = ["policy"]
    (tmp_path / "run").mkdir()
    runner = DistillationRunner(env(8), load_teacher(cfg), cfg, RunDir(tmp_path / "run"), make_eval_env=env)
    runner.begin()
    runner.run_epoch(0)
    return runner


class TwoGroupsEnv(RegulatorEnv):
    """The student sees a group of its own."""

    def get_observations(self) -> TensorDict:
        obs = super().get_observations()
        obs["seen"] = obs["policy"][:, :1]
        return obs


@pytest.mark.parametrize("relabel", [None, 0, 1])
def test_stored_transitions_are_labelled_anew_by_a_newer_teacher(tmp_path, relabel):
    """All of a small dataset, none of it, or its newest chunk alone: the labels are the newer teacher's actions."""
    runner = watching_run(tmp_path, relabel)
    dataset = runner.dataset
    before = dataset.column("mean").clone()
    chunks = list(dataset.newest_chunks())
    assert len(chunks) > 1 and chunks[0] == dataset.chunks_written - 1
    newer = read(write(tmp_path / "training", scale=0.6))
    runner._look_for_teacher(runner.watch, 1)
    anew = {None: chunks, 0: [], 1: chunks[:1]}[relabel]
    for chunk in chunks:
        found = dataset.column("mean")[chunk]
        if chunk in anew:
            assert torch.allclose(found, newer.policy.sequence(dataset.column("obs")[chunk])[0].mean, atol=1e-6)
            assert not torch.allclose(found, before[chunk], atol=1e-3)
        else:
            assert torch.equal(found, before[chunk])
    again = dataset.column("mean")[chunks].clone()
    runner._look_for_teacher(runner.watch, 2)
    assert torch.equal(dataset.column("mean")[chunks], again)


def test_a_resumed_run_labels_anew(tmp_path):
    """What is stored on disk has the labels of its collection: a resumed run gives it those of its teacher."""
    runner = watching_run(tmp_path, None)
    runner.resume()
    newest = next(runner.dataset.newest_chunks())
    labels = runner.dataset.column("mean")[newest]
    expected = labels.clone()
    labels.fill_(7.0)
    runner._look_for_teacher(runner.watch, 1)
    assert torch.allclose(runner.dataset.column("mean")[newest], expected, atol=1e-6)


def test_labelling_anew_needs_the_teachers_observations(tmp_path):
    """A teacher that reads what is not stored cannot: by default labels stay, and asked for it is one line."""
    runner = watching_run(tmp_path, None, TwoGroupsEnv)
    stored = list(runner.dataset.newest_chunks())
    before = runner.dataset.column("mean")[stored].clone()
    write(tmp_path / "training", scale=0.6)
    runner._look_for_teacher(runner.watch, 1)
    assert torch.equal(runner.dataset.column("mean")[stored], before)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"distill\.teacher\.relabel=5 is not possible: .*does not read what the stud"):
        watching_run(tmp_path / "other", 5, TwoGroupsEnv)
