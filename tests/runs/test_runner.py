"""Whole runs on a toy environment with a linear teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_env import REGULATOR_GAIN, CountingEnv, LinearTeacher, RegulatorEnv

from foundation.config.distillation_cfg import (
    CollectionCfg,
    DatasetCfg,
    DistillationCfg,
    EarlyStoppingCfg,
    EpisodeFilterCfg,
    OptimizerCfg,
    ScheduleCfg,
)
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.files import load_checkpoint
from foundation.policies.actors import PolicyActor
from foundation.rollout.evaluate import evaluate
from foundation.runs.context import FINAL_SEED
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class, student_from_description

NUM_ENVS = 8


def config(student: str = "mlp", **options: Any) -> DistillationCfg:
    cfg = DistillationCfg(
        **{
            "task": "Toy",
            "seed": 1,
            "n_epochs": 5,
            "epoch_teacher_forcing": 2,
            "num_episodes": 16,
            "batch_size": 32 if student == "mlp" else 4,
            "sequence_length": None if student == "mlp" else 4,
            "learning_rate": 1e-2,
            "num_eval_episodes": 16,
            "final_eval_episodes": 32,
            "save_interval": 2,
            **options,
        }
    )
    cfg.student = student_cfg_class(student)(name=student)
    return cfg


class Writer:
    """Keeps the scalars of every step."""

    def __init__(self) -> None:
        self.scalars: dict[int, dict[str, float]] = {}

    def add_scalars(self, scalars: dict[str, float], step: int) -> None:
        self.scalars.setdefault(step, {}).update(scalars)

    def add_hparams(self, hparams: dict[str, object], metrics: dict[str, float]) -> None:
        """Those of TensorBoard are tested with the writer itself."""

    def flush(self) -> None:
        """Nothing is held back."""


def make(
    folder: Path, cfg: DistillationCfg, *, two_envs: bool = True, teacher: Any = None, **options: Any
) -> DistillationRunner:
    folder.mkdir(parents=True, exist_ok=True)
    return DistillationRunner(
        RegulatorEnv(NUM_ENVS),
        teacher or LinearTeacher(REGULATOR_GAIN.clone()),
        cfg,
        RunDir(folder),
        make_eval_env=RegulatorEnv if two_envs else None,
        **options,
    )


def weights(folder: Path, name: str = "final_student.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)["model_state_dict"]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_distils_its_teacher_and_leaves_every_file(tmp_path):
    """The student reaches the teacher's return; checkpoints, summary and scalars are all there."""
    writer = Writer()
    cfg = config(n_epochs=12, num_episodes=64)
    summary = make(tmp_path, cfg, writer=writer).run()
    assert summary["return_ratio"] > 0.95
    assert summary["teacher_return"] > 3.0 > summary["baselines"]["random"]["mean_return"]
    names = {path.name for path in tmp_path.iterdir()}
    periodic = {f"checkpoint_epoch_{epoch}.pt" for epoch in (2, 4, 6, 8, 10, 12)}
    assert names >= {"best_student.pt", "final_student.pt", "summary.json", *periodic}
    assert json.loads((tmp_path / "summary.json").read_text())["best_student_return"] == summary["best_student_return"]
    assert [step for step in sorted(writer.scalars) if "training/loss" in writer.scalars[step]] == list(range(1, 13))
    wanted = {
        "data_collection/mean_return",
        "data_collection/std_return",
        "training/loss",
        "evaluation/mean_return",
        "evaluation/std_return",
        "evaluation/mean_length",
        "evaluation/return_ratio",
        "evaluation/success_rate",
        "evaluation/action_rmse",
        "performance/env_steps_per_second",
        "dataset/rows",
    }
    assert wanted <= writer.scalars[12].keys()
    assert not (tmp_path / "dataset").exists(), "shards are for resuming, and the run is over"


@pytest.mark.parametrize("two_envs", [True, False])
def test_robustness_is_measured_at_the_end_by_choice(tmp_path, capsys, two_envs):
    """Curves of teacher and student go to a file of their own, worst cases and areas into the summary."""
    summary = make(tmp_path, config(robustness=True, n_epochs=2, epoch_teacher_forcing=1), two_envs=two_envs).run()
    measured = summary["robustness"]
    curves = json.loads((tmp_path / "robustness.json").read_text())["curves"]
    assert [curve["name"] for curve in curves] == list(measured["quantities"])
    assert measured["missing"] == ["mass", "inertia", "gravity", "push", "control_rate"]
    for curve in curves:
        for policy in ("teacher", "student"):
            returns = [point["mean_return"] for point in curve["points"][policy]]
            assert measured["quantities"][curve["name"]]["policies"][policy]["worst_return"] == min(returns)
    assert json.loads((tmp_path / "summary.json").read_text())["robustness"]["missing"] == measured["missing"]
    assert "Not varied: mass" in capsys.readouterr().out


@pytest.mark.parametrize(("batch_size", "warned"), [(4, 0), (1024, 1)])
def test_too_few_updates_are_warned_of_once(tmp_path, caplog, batch_size, warned):
    """A batch as large as an epoch's data learns next to nothing: one warning, with what to do."""
    make(tmp_path, config(n_epochs=3, batch_size=batch_size)).run()
    assert caplog.text.count("updates in an epoch: lower --batch_size") == warned


def test_the_checkpoint_alone_rebuilds_the_student(tmp_path):
    """``best_student.pt`` is plain values: the student that it describes scores what it says."""
    runner = make(tmp_path, config())
    runner.run()
    saved = torch.load(tmp_path / "best_student.pt", weights_only=True)
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "best_return"} <= saved.keys()
    student = student_from_description(saved["student"])
    student.load_state_dict(saved["model_state_dict"])
    obs = torch.randn(5, 2)
    assert torch.equal(student(obs), runner.learner.policy(obs))
    assert saved["obs_groups"] == ["policy"] and saved["task"] == "Toy"


def test_the_best_evaluation_is_kept(tmp_path):
    """``best_student.pt`` is of the epoch with the greatest evaluated return, and its return is that."""
    writer = Writer()
    make(tmp_path, config(n_epochs=6, learning_rate=3e-2), writer=writer).run()
    returns = {epoch: writer.scalars[epoch]["evaluation/mean_return"] for epoch in range(1, 7)}
    best = max(returns, key=returns.__getitem__)
    saved = load_checkpoint(tmp_path / "best_student.pt")
    assert saved["epoch"] == best
    assert saved["best_return"] == pytest.approx(returns[best])
    if best in (2, 4, 6):
        assert same(saved["model_state_dict"], weights(tmp_path, f"checkpoint_epoch_{best}.pt"))


@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_the_same_seed_is_bit_identical_and_another_is_not(tmp_path, student):
    """Two runs with one seed end in the same tensors."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, config(student, seed=seed, n_epochs=3)).run()
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def stop_after(runner: DistillationRunner, epoch: int, polls: int) -> Callable[[], str]:
    """Ask a run to stop at the n-th moment, within an epoch, at which it looks."""
    looks = []

    def stop() -> str:
        if runner.baselines and runner.epoch >= epoch:
            looks.append(1)
        return "SIGTERM" if len(looks) > polls else ""

    return stop


@pytest.mark.parametrize("two_envs", [True, False])
@pytest.mark.parametrize(
    ("student", "options"),
    [
        ("mlp", {}),
        ("mlp", {"on_policy": True}),
        ("mlp", {"shuffle": False, "optimizer": OptimizerCfg(ema_decay=0.9)}),
        ("mlp", {"optimizer": OptimizerCfg(precision="bfloat16", updates_per_epoch=9)}),
        ("mlp", {"dataset": DatasetCfg(size=600, chunk_steps=8)}),
        ("mlp", {"dataset": DatasetCfg(size=600, chunk_steps=8, eviction="reservoir")}),
        ("gru", {"collection": CollectionCfg(beta=ScheduleCfg("linear", 1.0, 0.0), noise_std=0.1, epsilon=0.1)}),
        ("gru", {"collection": CollectionCfg(beta=ScheduleCfg("linear", 1.0, 0.0), beta_per="step", dart_alpha=1.0)}),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, student, options, two_envs):
    """A run stopped at any moment and resumed, three times, ends in the tensors of one that never stopped."""
    whole = make(tmp_path / "whole", config(student, **options), two_envs=two_envs)
    expected = whole.run()
    for epoch, polls in ((0, 2), (1, 4), (3, 3)):
        runner = make(tmp_path / "cut", config(student, **options), two_envs=two_envs)
        runner.context.interrupted = stop_after(runner, epoch, polls)
        if (tmp_path / "cut" / "checkpoint_latest.pt").exists():
            assert runner.resume() == ""
        with pytest.raises(RunInterrupted):
            runner.run()
        assert runner.epoch == epoch
    last = make(tmp_path / "cut", config(student, **options), two_envs=two_envs)
    assert last.resume() == ""
    assert last.epoch == 3
    summary = last.run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert same(weights(tmp_path / "whole", "best_student.pt"), weights(tmp_path / "cut", "best_student.pt"))
    for name in ("best_student_return", "best_epoch", "env_steps", "dataset_rows"):
        assert summary[name] == expected[name]


STANDSTILL = {
    "n_epochs": 30,
    "epoch_teacher_forcing": 3,
    "learning_rate": 1e-9,
    "early_stopping": EarlyStoppingCfg(patience=4, min_delta=1.0),
}
"""A student that learns nothing: patience begins with the student's first epoch, and is over four epochs later."""


@pytest.mark.parametrize(("two_envs", "epochs"), [(True, 7), (False, 8)])
def test_a_run_that_gets_no_better_stops_early_and_says_so(tmp_path, capsys, two_envs, epochs):
    """Where the collection is the evaluation, the first better one is that of the first student epoch."""
    summary = make(tmp_path, config(**STANDSTILL), two_envs=two_envs).run()
    assert (summary["epochs"], summary["stopped_early"]) == (epochs, True)
    assert f"Stopped early after epoch {epochs} of 30" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "final_student.pt")["epoch"] == epochs
    assert json.loads((tmp_path / "summary.json").read_text())["stopped_early"] is True


def test_a_run_resumed_while_it_waits_stops_at_the_same_epoch(tmp_path):
    """The count is part of the state; a run that was stopped early goes on when more patience is given."""
    runner = make(tmp_path, config(**STANDSTILL))
    runner.context.interrupted = lambda: "SIGINT" if runner.epoch == 5 else ""
    with pytest.raises(RunInterrupted):
        runner.run()
    resumed = make(tmp_path, config(**STANDSTILL))
    assert resumed.resume() == ""
    assert resumed.run()["epochs"] == 7
    patient = make(tmp_path, config(**{**STANDSTILL, "early_stopping": EarlyStoppingCfg(patience=6, min_delta=1.0)}))
    patient.resume()
    assert patient.run()["epochs"] == 9


def test_a_run_that_gets_better_is_not_stopped(tmp_path):
    """A summary says that it ran to its end."""
    summary = make(tmp_path, config(early_stopping=EarlyStoppingCfg(patience=3))).run()
    assert (summary["epochs"], summary["stopped_early"]) == (5, False)


def test_a_run_stopped_before_its_first_epoch_resumes_exactly(tmp_path):
    """After the baselines and before any data, nothing is lost."""
    make(tmp_path / "whole", config(n_epochs=2)).run()
    first = make(tmp_path / "cut", config(n_epochs=2))
    first.context.interrupted = lambda: "SIGINT" if first.baselines else ""
    with pytest.raises(RunInterrupted):
        first.run()
    second = make(tmp_path / "cut", config(n_epochs=2))
    assert second.resume() == ""
    second.run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_without_shards_a_run_resumes_and_says_that_it_is_not_exact(tmp_path):
    """``dataset.disk_gb=0`` writes no shards: the data is gone, the student is not."""
    options = {"dataset": DatasetCfg(disk_gb=0.0)}
    runner = make(tmp_path, config(n_epochs=4, **options))
    runner.context.interrupted = lambda: "SIGINT" if runner.epoch == 2 else ""
    with pytest.raises(RunInterrupted):
        runner.run()
    resumed = make(tmp_path, config(n_epochs=4, **options))
    assert "disk_gb" in resumed.resume()
    assert resumed.epoch == 2
    assert resumed.run()["epochs"] == 4


def test_a_run_of_another_shape_is_not_resumed(tmp_path):
    """Another student or another number of environments is an error that says so."""
    make(tmp_path, config(n_epochs=1)).run()
    with pytest.raises(UserError, match="architecture differs"):
        make(tmp_path, config("gru", n_epochs=1)).resume()
    other = DistillationRunner(
        RegulatorEnv(3), LinearTeacher(REGULATOR_GAIN.clone()), config(), RunDir(tmp_path), make_eval_env=RegulatorEnv
    )
    with pytest.raises(UserError, match="--num_envs 8, now 3"):
        other.resume()


FILTERED = DatasetCfg(filter=EpisodeFilterCfg(min_length=1))


@pytest.mark.parametrize(
    ("student", "before", "now", "says"),
    [
        ("mlp", {}, {"dataset": FILTERED}, "'episode'.*None.*dataset.filter"),
        ("mlp", {"dataset": FILTERED}, {}, "'episode'.*this one None"),
        ("gru", {"dataset": DatasetCfg(sequence_start="zero")}, {}, "'states'.*sequence_start"),
        ("gru", {}, {"sequence_length": 8}, "'states'.*sequence_length"),
    ],
)
def test_a_run_is_not_resumed_with_rows_that_lack_what_it_keeps(tmp_path, student, before, now, says):
    """Rows without an episode would be left out by a filter, sequences without a memory would begin with anything."""
    runner = make(tmp_path, config(student, **before))
    runner.context.interrupted = lambda: "SIGINT" if runner.epoch == 2 else ""
    with pytest.raises(RunInterrupted):
        runner.run()
    with pytest.raises(UserError, match=says):
        make(tmp_path, config(student, **now)).resume()


def test_a_teacher_below_the_wanted_return_stops_the_run_at_once(tmp_path):
    """``--teacher_min_return``: the score and the bar are named, and nothing is collected."""
    cfg = config()
    cfg.teacher.min_return = 1e3
    runner = make(tmp_path, cfg)
    with pytest.raises(UserError, match=r"mean return is \d+\.\d\d, below --teacher_min_return 1000"):
        runner.run()
    assert runner.env_steps == 0
    assert not (tmp_path / "best_student.pt").exists()


def test_a_teacher_no_better_than_chance_stops_the_run_after_its_figures_were_shown(tmp_path, capsys, caplog):
    """Nothing is collected, no folder is left to resume; ``distill.teacher.check=false`` goes on with a warning."""
    wrong = LinearTeacher(-REGULATOR_GAIN)
    runner = make(tmp_path / "stops", config(), teacher=wrong)
    with pytest.raises(UserError, match=r"not above that of random actions.*normaliser.*distill\.teacher\.check=false"):
        runner.run()
    assert runner.env_steps == 0 and not list((tmp_path / "stops").glob("*.pt"))
    shown = capsys.readouterr().out
    assert all(f"{who} - Mean return:" in shown for who in ("Teacher", "Zero actions", "Random actions"))
    cfg = config(n_epochs=1, epoch_teacher_forcing=1)
    cfg.teacher.check = False
    make(tmp_path / "goes_on", cfg, teacher=wrong).run()
    assert any(record.message.startswith("The teacher's mean return") for record in caplog.records)


def test_on_policy_runs_learn_from_their_own_epoch_only(tmp_path):
    """The dataset never holds more than an epoch's rows."""
    runner = make(tmp_path, config(on_policy=True))
    held = []
    learn = runner.learner.learn

    def spy(dataset: Any, new_transitions: int, *rest: Any) -> Any:
        held.append((len(dataset), new_transitions))
        return learn(dataset, new_transitions, *rest)

    runner.learner.learn = spy  # type: ignore[method-assign]
    runner.run()
    assert len(held) == 5
    assert all(rows == new for rows, new in held)


def test_where_only_one_environment_can_exist_the_collection_is_the_evaluation(tmp_path):
    """In the student phase the evaluated return is the return of the collected whole episodes, without extra steps."""
    writer = Writer()
    cfg = config(n_epochs=6, num_episodes=12, eval_interval=None)
    runner = make(tmp_path, cfg, two_envs=False, writer=writer)
    summary = runner.run()
    assert runner.mode == "episodes"
    assert [epoch for epoch in range(1, 7) if "evaluation/mean_return" in writer.scalars[epoch]] == [3, 4, 5, 6]
    for epoch in range(3, 7):
        scalars = writer.scalars[epoch]
        assert scalars["evaluation/mean_return"] == pytest.approx(scalars["data_collection/mean_return"], rel=1e-5)
    assert summary["env_steps"] == writer.scalars[6]["dataset/rows"]


@pytest.mark.parametrize("two_envs", [True, False])
def test_the_ratio_that_is_quoted_rests_on_as_many_episodes_of_the_teacher(tmp_path, two_envs):
    """Teacher and student are measured at the end on the same number of episodes from the same starts, wherever.

    A student that is its teacher therefore has a ratio of exactly 1, with an interval of 0.
    """

    class Offset(RegulatorEnv):
        """Returns are positive, so that there is a ratio."""

        def step(self, actions):
            obs, rewards, dones, extras = super().step(actions)
            return obs, rewards + 5.0, dones, extras

    teacher = LinearTeacher(REGULATOR_GAIN.clone())
    cfg = config(n_epochs=1, num_eval_episodes=24, final_eval_episodes=48)
    runner = DistillationRunner(Offset(8), teacher, cfg, RunDir(tmp_path), make_eval_env=Offset if two_envs else None)
    summary = runner.run()
    episodes = 48 if two_envs else 24
    assert summary["final_eval_episodes"] == episodes
    seen = evaluate(
        Offset(episodes if two_envs else 8), PolicyActor(teacher, runner.teacher_obs), episodes, cfg.seed + FINAL_SEED
    )
    assert summary["teacher"]["mean_return"] == seen.mean_return
    assert summary["teacher"]["return_interval_95"] == seen.return_interval
    assert 0.0 < summary["return_ratio_interval_95"] < 1.0


def test_with_one_environment_the_first_epoch_measures_the_teacher(tmp_path, capsys):
    """The wait before the first collected step is that of zero and random actions alone.

    The teacher's own epoch is its measurement.
    """
    cfg = config(n_epochs=2, epoch_teacher_forcing=1, num_eval_episodes=48, num_episodes=32)
    asked = []

    class CountedTeacher(LinearTeacher):
        def step(self, obs, state):
            asked.append(len(obs))
            return super().step(obs, state)

    runner = DistillationRunner(RegulatorEnv(6), CountedTeacher(REGULATOR_GAIN.clone()), cfg, RunDir(tmp_path))
    before = len(asked)
    runner.begin()
    assert len(asked) == before, "the teacher is not asked before the first epoch"
    assert set(runner.measurements.baselines) == set() and runner.measurements.teacher_is_due
    runner.run_epoch(0)
    out = capsys.readouterr().out
    assert out.count("Teacher - Mean return") == 1 and "from the 36 episodes of the first epoch" in out
    assert list(runner.baselines) == ["teacher", "zero", "random"]


def test_with_one_environment_a_useless_teacher_stops_before_anything_is_learned(tmp_path):
    """Its check comes after the first collection, before the first update, and leaves no run to go on with."""
    cfg = config(n_epochs=2, epoch_teacher_forcing=1, num_eval_episodes=48, num_episodes=32)
    runner = DistillationRunner(RegulatorEnv(6), LinearTeacher(-REGULATOR_GAIN), cfg, RunDir(tmp_path))
    with pytest.raises(UserError, match=r"(zero|random) actions"):
        runner.run()
    assert not list(tmp_path.glob("*.pt"))


def test_without_time_outs_success_is_unknown_and_said_once(tmp_path, capsys):
    """No "success 0 %" anywhere: not on the console, not in the summary, not among the scalars."""

    class WithoutTimeOuts(RegulatorEnv):
        def step(self, actions):
            obs, rewards, dones, _ = super().step(actions)
            return obs, rewards, dones, {}

    runner = DistillationRunner(
        WithoutTimeOuts(8),
        LinearTeacher(REGULATOR_GAIN.clone()),
        config(n_epochs=3),
        RunDir(tmp_path),
        make_eval_env=WithoutTimeOuts,
    )
    summary = runner.run()
    out = capsys.readouterr().out
    assert summary["success_rate"] is None and "success_rate" not in summary["student"]
    assert out.count("Success is unknown") == 1 and "success 0" not in out


def test_the_weights_kept_as_best_are_those_that_were_evaluated(tmp_path):
    """Where collection is evaluation, the student that acted is saved, not the one that learned from it since."""
    runner = make(tmp_path, config(n_epochs=4), two_envs=False)
    acted: list[tuple[float, dict]] = []
    collect = runner.collector.collect

    def spy(*args: Any) -> Any:
        before = {name: value.clone() for name, value in runner.student.state_dict().items()}
        stats = collect(*args)
        acted.append((float(stats.returns.double().mean()), before))
        return stats

    runner.collector.collect = spy  # type: ignore[method-assign]
    runner.run()
    best = max(range(2, 4), key=lambda epoch: acted[epoch][0])
    assert same(weights(tmp_path, "best_student.pt"), acted[best][1])
    made_by = load_checkpoint(tmp_path / "best_student.pt")["epoch"]
    assert made_by == best == runner.best_epoch + 1, "counted from 1: the epoch before the one that saw it act"


@pytest.mark.parametrize("interval", [1, 2])
def test_rollouts_begin_anew_after_an_evaluation_in_the_same_environment(tmp_path, interval):
    """``collection.mode=steps`` with one environment: the evaluation resets it under the rollouts' feet."""
    options = {"collection": CollectionCfg(mode="steps"), "eval_interval": interval, "num_episodes": 4}
    runner = make(tmp_path, config(n_epochs=5, **options), two_envs=False)
    begun_anew = []
    collect = runner.collector.collect

    def spy(*args: Any) -> Any:
        chunks = runner.dataset.chunks_written
        stats = collect(*args)
        begun_anew.append(bool(runner.dataset.resets[chunks, 0].all()))
        return stats

    runner.collector.collect = spy  # type: ignore[method-assign]
    summary = runner.run()
    assert begun_anew == [True, *((epoch + 1) % interval == 0 for epoch in range(4))]
    assert summary["student"]["mean_return"] > summary["baselines"]["zero"]["mean_return"]
    assert load_checkpoint(tmp_path / "best_student.pt")["evaluation"]["mean_return"] == runner.best_return


def test_misfits_are_named_before_anything_runs(tmp_path):
    """Observations and actions that do not fit the teacher."""
    with pytest.raises(UserError, match=r"expects 5 observations.*policy \(2\), privileged \(3\)"):
        make(tmp_path, config(), teacher=LinearTeacher(torch.zeros(5, 2)))
    with pytest.raises(UserError, match=r"teacher has 7 actions but the task 'Toy' takes 2"):
        make(tmp_path, config(), teacher=LinearTeacher(torch.zeros(2, 7)))
    cfg = config()
    cfg.loss.name = "kl"
    with pytest.raises(UserError, match="use loss=mse"):
        make(tmp_path, cfg)


def test_teacher_and_student_read_their_own_groups(tmp_path):
    """A privileged teacher (3 inputs) and a student that sees 2 of them, or a slice of 1."""
    gain = torch.cat([REGULATOR_GAIN, torch.zeros(1, 2)])
    cfg = config(n_epochs=8, num_episodes=64)
    cfg.teacher.obs_groups, cfg.student.obs_groups = ["privileged"], ["policy"]
    assert make(tmp_path / "groups", cfg, teacher=LinearTeacher(gain)).run()["return_ratio"] > 0.9
    cfg.student.obs_slice = [0, 1]
    runner = make(tmp_path / "slice", cfg, teacher=LinearTeacher(gain))
    assert runner.num_obs == runner.student.num_obs == 1


def test_nan_in_training_keeps_the_last_good_checkpoint(tmp_path):
    """The run stops with one line, and ``best_student.pt`` is whole and finite."""
    runner = make(tmp_path, config())
    learn = runner.learner.learn

    def explode(dataset: Any, new_transitions: int, epoch: int, *rest: Any) -> Any:
        if epoch == 3:
            with torch.no_grad():
                runner.student.mean.weight.fill_(torch.nan)
        return learn(dataset, new_transitions, epoch, *rest)

    runner.learner.learn = explode  # type: ignore[method-assign]
    with pytest.raises(UserError, match="training loss"):
        runner.run()
    for name in ("best_student.pt", "checkpoint_latest.pt"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(tmp_path, name).values())
    assert load_checkpoint(tmp_path / "checkpoint_latest.pt")["epoch"] == 3


def test_the_normaliser_is_fitted_while_the_teacher_acts_and_frozen_after(tmp_path):
    """Its statistics are those of the teacher-forced rows, and no epoch after changes them."""
    runner = make(tmp_path, config(n_epochs=4))
    counts, means = [], []
    learn = runner.learner.learn

    def spy(*args: Any) -> Any:
        counts.append(float(runner.student.normalizer.count))
        means.append(runner.student.normalizer.mean.clone())
        return learn(*args)

    runner.learner.learn = spy  # type: ignore[method-assign]
    runner.run()
    assert counts[0] < counts[1] == counts[2] == counts[3]
    forced = runner.dataset.rows.view(-1, runner.dataset.row_size)[: int(counts[1]), :2]
    assert torch.allclose(means[-1], forced.mean(0), atol=1e-4)


def test_the_normaliser_is_frozen_from_the_first_epoch_in_which_the_student_acts(tmp_path):
    """With ``collection.beta`` that is what its schedule says; ``epoch_teacher_forcing`` is not asked."""
    falling = CollectionCfg(beta=ScheduleCfg(kind="step", points=[[0, 1.0], [1, 0.5]]))
    runner = make(tmp_path, config(n_epochs=3, epoch_teacher_forcing=50, collection=falling))
    counts = []
    runner._begin_run()
    for epoch in range(3):
        runner.run_epoch(epoch)
        counts.append(float(runner.student.normalizer.count))
    assert counts[0] == counts[1] == counts[2] > 0


def test_an_environment_that_never_ends_is_an_error_and_not_a_hang(tmp_path):
    """The first measurement says so."""
    env = CountingEnv([[10**6]] * 4, 10**6)
    env.max_episode_length = 10
    runner = DistillationRunner(
        env, LinearTeacher(torch.zeros(3, 2)), config(), RunDir(tmp_path), make_eval_env=lambda count: env
    )
    with pytest.raises(UserError, match="time-outs"):
        runner.run()


class CommandedEnv(RegulatorEnv):
    """The regulator with a third observation: a command that is 0.5 while the teacher acts, and 20 after that."""

    steps_of_teacher = 10**9

    def __init__(self, num_envs: int, command: float = 20.0):
        self.taken, self.command = 0, command
        super().__init__(num_envs)

    def get_observations(self):
        obs = super().get_observations()
        command = 0.5 if self.taken < self.steps_of_teacher else self.command
        obs["policy"] = torch.cat([obs["policy"], torch.full((self.num_envs, 1), command)], dim=-1)
        return obs

    def step(self, actions):
        self.taken += 1
        return super().step(actions)


@pytest.mark.parametrize(("command", "largest"), [(0.5, 0.0), (2.5, 2.0), (20.0, 1.0)])
def test_an_observation_that_is_constant_at_first_does_not_blow_up_later(tmp_path, caplog, command, largest):
    """A command that is 0.5 in the teacher's epochs comes in as a small number when it steps by 2 or by 19.5.

    Divided by 1e-2, as the deviation of the first data would have it, it would come in as 200 or 1950 for ever.
    """
    env = CommandedEnv(NUM_ENVS, command)
    cfg = config(n_epochs=4, epoch_teacher_forcing=2)
    cfg.teacher.obs_groups, cfg.teacher.obs_slice = ["policy"], [0, 2]
    runner = DistillationRunner(
        env, LinearTeacher(REGULATOR_GAIN), cfg, RunDir(tmp_path), make_eval_env=lambda n: CommandedEnv(n, command)
    )
    runner._begin_run()
    for epoch in (0, 1):
        runner.run_epoch(epoch)
    frozen = {name: tensor.clone() for name, tensor in runner.student.normalizer.state_dict().items()}
    env.steps_of_teacher = env.taken
    with caplog.at_level("WARNING"):
        for epoch in (2, 3):
            runner.run_epoch(epoch)
    seen = runner.student.normalizer(torch.tensor([0.0, 0.0, command]))[2]
    assert abs(seen.item()) == pytest.approx(largest, rel=0.3, abs=1e-6)
    after = runner.student.normalizer.state_dict()
    assert all(torch.equal(after[name][..., :2], frozen[name][..., :2]) for name in ("mean", "var"))
    lines = [record.getMessage() for record in caplog.records if "normaliser" in record.getMessage()]
    assert "column(s) 2 did not vary" in lines[0]
    assert len(lines) == (2 if command == 20.0 else 1)
