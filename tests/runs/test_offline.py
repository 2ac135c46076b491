"""Learning from a saved dataset alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_env import REGULATOR_GAIN, LinearTeacher, RegulatorEnv

from foundation.config.distillation_cfg import DatasetCfg, DistillationCfg, EpisodeFilterCfg
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.files import load_checkpoint
from foundation.dataset.build import split
from foundation.dataset.disk.reader import SavedDataset
from foundation.runs.offline import OfflineRunner
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class, student_from_description

ROOT = Path(__file__).resolve().parents[2]


def config(student: str = "mlp", **options) -> DistillationCfg:
    values = {"task": "Toy", "seed": 1, "n_epochs": 4, "num_episodes": 24, "batch_size": 32, "learning_rate": 1e-2}
    values |= {"epoch_teacher_forcing": 2, "num_eval_episodes": 8, "final_eval_episodes": 8, "save_interval": 2}
    if student != "mlp":
        values |= {"batch_size": 4, "sequence_length": 6}
    cfg = DistillationCfg(**{**values, **options})
    cfg.student = student_cfg_class(student)(name=student)
    return cfg


def collect(folder: Path, work: Path, run_name: str = "collector", **options) -> SavedDataset:
    """Let a run of the regulator save what it collects."""
    cfg = config(**options)
    cfg.dataset.save = str(folder)
    (work / run_name).mkdir(parents=True)
    teacher = LinearTeacher(REGULATOR_GAIN.clone(), std=0.3)
    DistillationRunner(RegulatorEnv(8), teacher, cfg, RunDir(work / run_name), make_eval_env=RegulatorEnv).run()
    return SavedDataset(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("saved")
    collect(work / "dataset", work)
    return work / "dataset"


def offline(saved: Path, folder: Path, student: str = "mlp", **options) -> OfflineRunner:
    cfg = config(student, offline=True, device="cpu", **options)
    cfg.dataset.load = str(saved)
    folder.mkdir(parents=True, exist_ok=True)
    return OfflineRunner(cfg, RunDir(folder))


def test_every_collected_row_was_saved(saved):
    """The teacher's mean and std at every observation, by rows that the teacher's own formula accounts for."""
    dataset = SavedDataset(saved)
    assert dataset.layout.targets == {"mean": 2, "std": 2} and dataset.layout.num_envs == 8
    assert [entry.epoch for entry in dataset.files] == [1, 2, 3, 4]
    for entry in dataset.files:
        rows = dataset.read(entry)["rows"]
        torch.testing.assert_close(rows[..., 2:4], rows[..., :2] @ REGULATOR_GAIN)
        assert torch.equal(rows[..., 4:], torch.full_like(rows[..., 4:], 0.3))


@pytest.mark.parametrize(
    ("student", "options"), [("mlp", {"filter": EpisodeFilterCfg(return_quantile=0.5)}), ("gru", {"chunk_steps": 32})]
)
def test_the_normaliser_is_fitted_to_what_is_learned_from(saved, tmp_path, student, options):
    """Neither to the rows that a filter leaves out, nor to the copies that fill a chunk up."""
    runner = offline(saved, tmp_path, student, dataset=DatasetCfg(**options))
    assert runner.train.weights is not None
    used = runner.train.weights[: runner.train.num_chunks] > 0
    obs = runner.train.rows[: runner.train.num_chunks][used][:, :2]
    assert 0 < len(obs) < len(runner.train)
    assert float(runner.student.normalizer.count) == len(obs)
    torch.testing.assert_close(runner.student.normalizer.mean, obs.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_a_student_learns_offline_and_leaves_an_ordinary_checkpoint(saved, tmp_path, student):
    """The teacher's law is learned; ``best_student.pt`` alone rebuilds the student, and it regulates."""
    summary = offline(saved, tmp_path, student, n_epochs=12).run()
    assert summary["offline"] and summary["action_rmse"] < 0.1
    assert json.loads((tmp_path / "summary.json").read_text())["held_out_loss"] == summary["held_out_loss"]
    checkpoint = torch.load(tmp_path / "best_student.pt", weights_only=True)
    policy = student_from_description(checkpoint["student"])
    policy.load_state_dict(checkpoint["model_state_dict"])
    assert checkpoint["obs_groups"] == ["policy"] and checkpoint["epoch"] == summary["best_epoch"]
    env, state, total = RegulatorEnv(64), policy.initial_state(64), torch.zeros(64)
    obs = env.reset(0)["policy"]
    for _ in range(12):
        with torch.no_grad():
            output, state = policy.step(obs, state)
        observations, rewards, _, _ = env.step(output.mean)
        obs, total = observations["policy"], total + rewards
    assert float(total.mean()) > 8.0, "the teacher's mean return is about 10.3, that of no action about -25"


def test_the_held_out_loss_is_that_of_rows_that_were_not_learned_from(saved, tmp_path):
    """Computed here from the file's own numbers and the split, with the student that was saved."""
    runner = offline(saved, tmp_path)
    summary = runner.run()
    dataset = SavedDataset(saved)
    chunks = torch.cat([dataset.read(entry)["rows"] for entry in dataset.files])
    which = torch.tensor(split(len(chunks), 0.1, 1))
    held_out, learned = chunks[which == 1], chunks[which == 0]
    assert len(held_out) >= 1 and len(runner.train) == learned[..., 0].numel()
    checkpoint = load_checkpoint(tmp_path / "best_student.pt")
    policy = student_from_description(checkpoint["student"])
    policy.load_state_dict(checkpoint["model_state_dict"])
    with torch.no_grad():
        error = (policy(held_out[..., :2]) - held_out[..., 2:4]).square().mean()
    assert summary["held_out_loss"] == pytest.approx(float(error), rel=1e-4)
    assert checkpoint["best_loss"] == summary["held_out_loss"]
    normalizer = policy.normalizer
    torch.testing.assert_close(normalizer.mean, learned[..., :2].reshape(-1, 2).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_stopped_and_resumed_is_the_same_bit_for_bit(saved, tmp_path, student):
    """Also where the dataset was appended to in the meantime: the run goes on with the files that it began with."""
    import shutil

    own = tmp_path / "own"
    shutil.copytree(saved, own)
    offline(own, tmp_path / "whole", student).run()
    stopped = offline(own, tmp_path / "stopped", student)
    calls = iter(range(10**6))
    per_epoch = stopped.learner.num_updates(len(stopped.train))
    stopped.context.interrupted = lambda: "enough" if next(calls) == 2 * per_epoch + 3 else ""
    with pytest.raises(RunInterrupted):
        stopped.run()
    collect(own, tmp_path, seed=5)
    again = OfflineRunner(stopped.cfg, RunDir(tmp_path / "stopped"))
    again.resume()
    assert again.epoch == 2
    again.run()
    for name in ("best_student.pt", "final_student.pt", "checkpoint_epoch_4.pt"):
        one, two = (load_checkpoint(tmp_path / run / name)["model_state_dict"] for run in ("whole", "stopped"))
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_another_dataset_is_not_resumed_with(saved, tmp_path):
    """A run goes on with what it began with, or says that it cannot."""
    offline(saved, tmp_path / "run").run()
    other = collect(tmp_path / "other", tmp_path, seed=9).path
    with pytest.raises(UserError, match="not the one that this run began with"):
        offline(other, tmp_path / "run").resume()


def test_a_filter_changes_what_is_learned_from(saved, tmp_path, caplog):
    """Those of low return, half of all, are left out; how many have no end is told; none left is an error."""
    caplog.set_level("INFO", "foundation")
    cfg = config(offline=True, device="cpu")
    cfg.dataset.load, cfg.dataset.filter.return_quantile = str(saved), 0.5
    runner = OfflineRunner(cfg, RunDir(tmp_path))
    assert 0.4 < runner.episodes_left_out / runner.episodes < 0.6
    assert runner.train.weights is not None
    assert 0.2 < float((runner.train.weights == 0).float().mean()) < 0.7
    unfinished = unfinished_in(saved)
    assert unfinished[0] > 0 and runner.filtered is not None and runner.filtered.unfinished == unfinished
    assert f"{unfinished[0]} unfinished ones ({unfinished[1]} transitions) are kept" in caplog.text
    assert runner.run()["dataset"]["episodes_unfinished"] == unfinished[0]
    cfg.dataset.filter.return_quantile, cfg.dataset.filter.min_length = None, 13
    cfg.dataset.load = str(finished_only(saved, tmp_path / "finished"))
    with pytest.raises(UserError, match="no episode passes"):
        OfflineRunner(cfg, RunDir(tmp_path))


def unfinished_in(saved: Path) -> tuple[int, int]:
    """Count the episodes, and their rows, of which the files say no end."""
    blocks = [(tensors["episode"].flatten(), table.number) for _, tensors, table in SavedDataset(saved).contents()]
    ended = {number for _, numbers in blocks for number in numbers.tolist()}
    left = [number for numbers, _ in blocks for number in numbers.tolist() if number >= 0 and number not in ended]
    return len(set(left)), len(left)


def finished_only(saved: Path, folder: Path) -> Path:
    """A copy of a dataset in which every episode has ended within, whole."""
    import zlib

    from safetensors.torch import load_file, save_file

    folder.mkdir()
    index = json.loads((saved / "dataset.json").read_text())
    for entry in index["files"]:
        tensors = load_file(saved / entry["file"])
        numbers = tensors["episode"].unique()
        length = torch.full_like(numbers, 12)
        tensors |= {"episode_id": numbers, "episode_length": length, "episode_return": numbers.float()}
        tensors |= {"episode_success": numbers >= 0, "episode_whole": numbers >= 0}
        save_file(tensors, folder / entry["file"])
        data = (folder / entry["file"]).read_bytes()
        entry |= {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    (folder / "dataset.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "Other"}, "task Toy, not Other"),
        ({"sequence_length": 10_000}, "one chunk only"),
    ],
)
def test_what_does_not_fit_is_refused(saved, tmp_path, change, says):
    """One line for another task, and for sequences as long as everything there is."""
    with pytest.raises(UserError, match=says):
        offline(saved, tmp_path, **change)


def test_a_loss_that_needs_more_than_was_saved_is_refused(saved, tmp_path):
    """The values of the teacher's critic were not stored."""
    cfg = config(offline=True, device="cpu")
    cfg.dataset.load, cfg.loss.auxiliary = str(saved), {"value": 0.5}
    cfg.student.value_head = True
    with pytest.raises(UserError, match=r"needs the teacher's value .* has none"):
        OfflineRunner(cfg, RunDir(tmp_path))


def test_a_run_begins_with_a_saved_dataset(saved, tmp_path):
    """``--dataset`` without ``--offline``: its rows are there before epoch 0, in chunks of the run's own sizes."""
    cfg = config(n_epochs=1)
    cfg.dataset.load = str(saved)
    teacher = LinearTeacher(REGULATOR_GAIN.clone())
    runner = DistillationRunner(RegulatorEnv(6), teacher, cfg, RunDir(tmp_path), make_eval_env=RegulatorEnv)
    dataset = SavedDataset(saved)
    assert runner.dataset.weights is not None
    assert float(runner.dataset.weights[: runner.dataset.num_chunks].sum()) == dataset.num_rows
    runner.run()
    assert len(runner.dataset) > dataset.num_rows
    cfg.task = "Other"
    with pytest.raises(UserError, match=r"has task Toy, this run Other"):
        DistillationRunner(RegulatorEnv(6), teacher, cfg, RunDir(tmp_path), make_eval_env=RegulatorEnv)


def test_a_run_with_a_dataset_resumes_exactly(saved, tmp_path):
    """The rows that it began with are read again, those that it collected come from its shards."""
    finals = []
    for name, stop in (("whole", None), ("stopped", 2)):
        runner = None
        for _ in range(1 if stop is None else 2):
            cfg = config(n_epochs=4)
            cfg.dataset.load, cfg.dataset.save = str(saved), str(tmp_path / f"{name}_saved")
            cfg.dataset.filter.success = True
            (tmp_path / name).mkdir(exist_ok=True)
            runner = DistillationRunner(
                RegulatorEnv(8),
                LinearTeacher(REGULATOR_GAIN.clone()),
                cfg,
                RunDir(tmp_path / name),
                make_eval_env=RegulatorEnv,
            )
            if stop is not None:
                assert runner.resume() == ""
                runner.context.interrupted = lambda runner=runner, at=stop: "enough" if runner.epoch == at else ""
                if runner.epoch == 0:
                    with pytest.raises(RunInterrupted):
                        runner.run()
                    runner.recorder.close()
                    continue
                runner.context.interrupted = lambda: ""
            runner.run()
        finals.append(load_checkpoint(tmp_path / name / "final_student.pt")["model_state_dict"])
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])
    one, two = (SavedDataset(tmp_path / f"{name}_saved") for name in ("whole", "stopped"))
    assert [entry.crc32 for entry in one.files] == [entry.crc32 for entry in two.files]


BLOCK = """
import sys
sys.path.insert(0, {root!r})
class Blocked:
    def find_spec(self, name, path=None, target=None):
        blocked = ("foundation.tasks", "foundation.engines", "gymnasium", "rsl_rl", "isaaclab")
        if any(name == b or name.startswith(b + ".") for b in blocked):
            raise ModuleNotFoundError("uninstalled: " + name, name=name)
sys.meta_path.insert(0, Blocked())
from foundation.cli.command import run_command
from foundation.rsl_rl.distillation import main
sys.exit(run_command(main, {argv!r}))
"""


def test_no_simulator_is_needed(saved, tmp_path):
    """The command itself, in a process in which simulator, tasks, engines, gymnasium and RSL-RL cannot be imported."""
    argv = ["--offline", "--dataset", str(saved), "--device", "cpu", "--n_epochs", "2", "--batch_size", "64"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(root=str(ROOT), argv=argv)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "logs" / "distillation" / "Toy").iterdir()
    assert json.loads((run / "summary.json").read_text())["task"] == "Toy"
    assert {"best_student.pt", "final_student.pt", "params"} <= {path.name for path in run.iterdir()}
    assert "Held-out loss" in done.stdout
